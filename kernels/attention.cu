// Multi-head attention, fused: softmax(q k^T / sqrt(d)) v over packed sequences, and its gradients, without a T x T matrix in memory.
//
// q, output: [Rq, heads, width], k, v: [Rk, heads, width], packed time-major, longest first: the frame of `time` of a sequence is row
// offsets[time] + sequence. Sequence s of the queries attends to sequence of[s] of the keys, all of it or, causal, up to its own time.
//
// Forward (Milakov and Gimelshein, 2018; Dao et al., 2022): a block has some queries of one head, and takes the keys and values N at a time: scores
// in registers, maximum and sum of every row so far (a larger maximum scales down what has been summed), probabilities, their sum of
// values. What is kept is the logarithm of every row's sum, L. Backward computes the probabilities again, p = exp(s - L), and with
// D = sum(dy y) of a query:  dv = p^T dy    ds = p (dy v^T - D)    dq = ds k    dk = ds^T q    (ds times 1 / sqrt(d)).
// Dropout multiplies p, where it meets v and dv, and dy v^T by the same factors, drawn again at the CPU's counters: (key / 4, query, sequence *
// heads + head, step).
//
// Sums run in a fixed order without atomics: dq has blocks of queries that go over keys (attention_query_gradient), dk and dv blocks of keys
// that go over queries (attention_key_gradient), of all sequences that read these keys, in their order. That computes scores and dy v^T
// twice: 14 T^2 d operations a head instead of 10, and no sum in memory.
//
// Operations a head: forward 4 T^2 d, backward 6 T^2 d and 8 T^2 d; half of it if causal. Bytes: q, k, v, y once (16 T d) and, for
// every block of M queries, keys and values of the sequence from the cache: 2 T d e of e bytes an element, M 4 d operations to 2 d e bytes: at M = 128
// and bf16 128 operations a byte, 22 bytes a clock of a multiprocessor, of about 60 that the L2 cache gives. Floor at T = 8192, d = 64, 4 heads,
// B = 2: 0.14 Tflop: 0.35 ms at 400 Tflop/s (what mma.sync reaches of an H200's 989), and 67 MB, 14 us at 4.8 TB/s: bound by the tensor cores.
// T = 400, d = 64, 4 heads, B = 8: 1.3 Gflop, 3 us; 13 MB, 3 us. f32: 0.06 Pflop/s of the multiprocessors' own.
// Softmax: an exponential and about six others for every 4 d operations of the tensor cores: a quarter of their time at d = 64 in bf16. Dropout:
// Philox is 22 instructions for every probability, no less than the products' time at d = 64 in bf16, forward and backward.
//
// Operands are first rounded and laid out by attention_pack ([R, heads, D], D = 32, 64 or 128 columns, zeros behind a head's own), so that all
// copies are asynchronous ones of 16 bytes and what goes through the cache is as short as the arithmetic allows; f32 of such a width is
// taken as it lies. Two stages: while one is computed on, the next comes in. A warp has S strips of 16 rows of its block's and all of the stage.
// The rows' padding in shared memory carries L and D. A row's bits do not depend on how many warps a block has.
//
// Not measured on a GPU yet.
//
// tensor cores: attention_forward_tf32_*, attention_forward_bf16_*, attention_query_gradient_tf32_*, attention_query_gradient_bf16_*
// tensor cores: attention_key_gradient_tf32_*, attention_key_gradient_bf16_*
#include "attention_tile.cuh"
#include "random.cuh"
#include "softmax.cuh"
#include "vector.cuh"

namespace {

constexpr int MOST_THREADS = 128;

// Who attends to whom, and how.
struct Problem {
    const int *query_offsets, *query_lengths, *key_offsets, *key_lengths;
    const int *of; // [sequences of queries], or null: each to its own
    int heads, width;
    int parts; // blocks of a head, for the longest sequence
    int causal;
    float scale; // 1 / sqrt(width)
    Mask mask;   // threshold 0: none

    DEVICE int keys_of(int sequence) const { return of ? of[sequence] : sequence; }
};

// One head of one sequence.
struct Frames {
    const int *offsets;
    int sequence, length, heads, head;

    // Of a frame's head among all rows' heads: times D or width, where it begins in a tensor.
    DEVICE long long place(int time) const { return (long long)(offsets[time] + sequence) * heads + head; }
};

// What this block is to do: rows `first` and after of a head of a sequence. The last come first where those have most to see.
struct Block {
    int sequence, head, first, rows;

    DEVICE Block(const Problem &problem, int strips, bool last_first) {
        int part = blockIdx.x % problem.parts;
        if (last_first) part = problem.parts - 1 - part;
        head = blockIdx.x / problem.parts % problem.heads;
        sequence = blockIdx.x / problem.parts / problem.heads;
        rows = int(blockDim.x) / WARP * strips * STRIP;
        first = part * rows;
    }
    static DEVICE int warp_rows(int strips) { return int(threadIdx.x) / WARP * strips * STRIP; }
};

// Operands in global memory: [R, heads, D].
struct Tensors {
    const unsigned char *first, *second; // second: or null
    const float2 *statistics;            // L and D of the first's rows, [R, heads], or null
};

// Starts to bring in rows `first` and after of two tensors, each to `count` rows of shared memory, the second's behind the first's. Rows that are
// not there become zero. A row's statistics go to its padding.
template <class Element, int D> DEVICE void bring(unsigned char *to, const Tensors &from, const Frames &frames, int first, int count) {
    constexpr int BYTES = Rows<Element, D>::BYTES, PITCH = Rows<Element, D>::PITCH, CHUNKS = BYTES / 16;
    for (int i = threadIdx.x; i < count * CHUNKS; i += blockDim.x) {
        const int row = i / CHUNKS, chunk = i % CHUNKS * 16;
        const bool exists = first + row < frames.length;
        const long long place = frames.place(exists ? first + row : 0) * BYTES + chunk;
        copy_async(to + row * PITCH + chunk, from.first + place, exists ? 16 : 0);
        if (from.second) copy_async(to + (count + row) * PITCH + chunk, from.second + place, exists ? 16 : 0);
    }
    if (!from.statistics) return;
    for (int row = threadIdx.x; row < count; row += blockDim.x) {
        const bool exists = first + row < frames.length;
        copy_async<8>(to + row * PITCH + BYTES, from.statistics + frames.place(exists ? first + row : 0), exists ? 8 : 0);
    }
}

// y: [rows, columns] is zero in rows that belong to no sequence.
DEVICE void clear_behind(float *y, const int *offsets, int steps, int rows, long long columns) {
    if (blockIdx.x > 0) return;
    for (long long i = offsets[steps] * columns + threadIdx.x; i < rows * columns; i += blockDim.x) y[i] = 0.0f;
}

// Writes a warp's rows, times factor(strip, half): those of the sequence's frames from `first` on, and the columns of the head.
template <int STRIPS, int D, class Factor>
DEVICE void store(const Sums<STRIPS, D> &sums, float *to, const Frames &frames, int first, int width, Factor factor) {
    const bool in_pairs = width % 2 == 0 && reinterpret_cast<std::uintptr_t>(to) % 8 == 0;
#pragma unroll
    for (int half = 0; half < 2 * STRIPS; ++half) {
        const int time = first + 8 * half + FragmentC::row(0);
        if (time >= frames.length) continue;
        float *row = to + frames.place(time) * width;
        const float scale = factor(half / 2, half % 2);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const int column = 8 * n + FragmentC::column(0);
            const float *x = sums.x[half / 2][n].x + half % 2 * 2;
            if (in_pairs) {
                if (column < width) *reinterpret_cast<float2 *>(row + column) = make_float2(scale * x[0], scale * x[1]);
            } else {
                if (column < width) row[column] = scale * x[0];
                if (column + 1 < width) row[column + 1] = scale * x[1];
            }
        }
    }
}

// Of the four lanes that share rows, in all of them.
DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// Which elements of a strip [16, N] stay: bit 4 n + i of a lane is that of element i of its n-th FragmentC. What is drawn at a counter decides on
// four neighbouring keys, so lanes that share some draw one counter each and exchange.
constexpr unsigned ALL = ~0u;

DEVICE unsigned drawn_bits(const Mask &mask, int quarter, int query, int place) {
    const uint4 drawn = mask.draw(quarter, query, place);
    return unsigned(drawn.x >= mask.threshold) | unsigned(drawn.y >= mask.threshold) << 1 | unsigned(drawn.z >= mask.threshold) << 2 |
           unsigned(drawn.w >= mask.threshold) << 3;
}

// A step of transposing bits across lanes that differ in `distance`: where that bit of the lane is 0, the bits of `low` stay and the other
// lane's come to `shift` above, else the reverse.
DEVICE unsigned exchange(unsigned bits, int distance, unsigned low, int shift) {
    const unsigned other = __shfl_xor_sync(FULL_WARP, bits, distance);
    return lane_index() & distance ? (bits & ~low) | (other & ~low) >> shift : (bits & low) | (other & low) << shift;
}

// Rows are queries, columns keys. Two lanes share four keys of two queries.
template <int N> DEVICE unsigned kept_of_queries(const Mask &mask, int first_query, int first_key, int place) {
    static_assert(N <= 64, "four bits for every eight columns");
    if (mask.threshold == 0) return ALL;
    const int query = first_query + lane_index() / 4 + lane_index() % 2 * 8, quarter = first_key / 4 + lane_index() % 4 / 2;
    unsigned bits = 0;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) bits |= drawn_bits(mask, quarter + 2 * n, query, place) << 4 * n;
    return exchange(bits, 1, 0x33333333u, 2);
}

// Rows are keys, columns queries. Four lanes share four keys, and four keys eight below, of two queries.
template <int N> DEVICE unsigned kept_of_keys(const Mask &mask, int first_query, int first_key, int place) {
    static_assert(N <= 64, "four bits for every eight columns");
    if (mask.threshold == 0) return ALL;
    const int member = lane_index() / 4 % 4;
    const int query = first_query + lane_index() % 4 * 2 + member % 2, quarter = first_key / 4 + member / 2 * 2 + lane_index() / 16;
    unsigned bits = 0;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) bits |= drawn_bits(mask, quarter, query + 8 * n, place) << 4 * n;
    return exchange(exchange(bits, 4, 0x55555555u, 1), 8, 0x33333333u, 2);
}

DEVICE float dropped(const Mask &mask, unsigned kept, int n, int i, float x) { return kept >> (4 * n + i) & 1 ? x * mask.scale : 0.0f; }

// p where it stays.
template <int STRIPS, int N>
DEVICE FragmentC dropped(const Mask &mask, const unsigned (&kept)[STRIPS], const Sums<STRIPS, N> &p, int strip, int n) {
    FragmentC values;
#pragma unroll
    for (int i = 0; i < 4; ++i) values.x[i] = dropped(mask, kept[strip], n, i, p.x[strip][n].x[i]);
    return values;
}

// What a warp keeps of its queries while keys go by.
template <int STRIPS> struct Softmax {
    float maximum[STRIPS][2], sum[STRIPS][2]; // sum: of the lane's own columns

    DEVICE Softmax() {
#pragma unroll
        for (int half = 0; half < 2 * STRIPS; ++half) maximum[half / 2][half % 2] = LOWEST, sum[half / 2][half % 2] = 0.0f;
    }

    // Scores become probabilities but for their sum; what was summed up before is scaled down where there is a larger score.
    template <int N, int D> DEVICE void add(Sums<STRIPS, N> &scores, Sums<STRIPS, D> &before, float scale) {
#pragma unroll
        for (int half = 0; half < 2 * STRIPS; ++half) {
            const int strip = half / 2, first = half % 2 * 2;
            float larger = maximum[strip][half % 2];
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
                larger = fmaxf(larger, fmaxf(scores.x[strip][n].x[first], scores.x[strip][n].x[first + 1]));
            }
            larger = row_max(larger);
            const float shrink = exponential((maximum[strip][half % 2] - larger) * scale);
            maximum[strip][half % 2] = larger;
            float total = sum[strip][half % 2] * shrink;
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
#pragma unroll
                for (int i = first; i < first + 2; ++i) {
                    float &x = scores.x[strip][n].x[i];
                    x = exponential((x - larger) * scale);
                    total += x;
                }
            }
            sum[strip][half % 2] = total;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                before.x[strip][n].x[first] *= shrink;
                before.x[strip][n].x[first + 1] *= shrink;
            }
        }
    }
};

template <class Type, int D, int STRIPS, int N>
DEVICE void forward(float *output, float *log_sums, const unsigned char *q, const unsigned char *k, const unsigned char *v,
                    const Problem &problem, int steps, int rows) {
    using Element = typename Type::Element;
    constexpr int PITCH = Rows<Element, D>::PITCH, STAGE = 2 * N * PITCH;
    SHARED_MEMORY(unsigned char, shared);
    clear_behind(output, problem.query_offsets, steps, rows, (long long)problem.heads * problem.width);
    const Block block(problem, STRIPS, problem.causal);
    const Frames queries = {problem.query_offsets, block.sequence, problem.query_lengths[block.sequence], problem.heads, block.head};
    if (block.first >= queries.length) return;
    const int key_sequence = problem.keys_of(block.sequence);
    const Frames keys = {problem.key_offsets, key_sequence, problem.key_lengths[key_sequence], problem.heads, block.head};
    const int seen = problem.causal ? min(keys.length, block.first + block.rows) : keys.length;

    unsigned char *stages = shared + block.rows * PITCH;
    bring<Element, D>(shared, {q, nullptr, nullptr}, queries, block.first, block.rows);
    bring<Element, D>(stages, {k, v, nullptr}, keys, 0, N);
    copy_async_commit();

    const int first = block.first + block.warp_rows(STRIPS), last = first + STRIPS * STRIP - 1;
    const unsigned char *own = shared + block.warp_rows(STRIPS) * PITCH;
    const int place = block.sequence * problem.heads + block.head;
    Sums<STRIPS, D> sums;
    Softmax<STRIPS> softmax;
    for (int key = 0; key < seen; key += N) {
        const unsigned char *stage = stages + key / N % 2 * STAGE;
        copy_async_wait<0>();
        barrier(); // all have this stage, and nobody reads the other one any more
        if (key + N < seen) bring<Element, D>(stages + (key / N + 1) % 2 * STAGE, {k, v, nullptr}, keys, key + N, N);
        copy_async_commit();
        if (first >= queries.length || (problem.causal && key > last)) continue; // the same in all lanes of a warp
        Sums<STRIPS, N> scores;
        Type::template multiply<D>(scores, own, stage);
        if (key + N > keys.length || (problem.causal && key + N > first + 1)) {
            scores.each([=](float &x, int row, int column) {
                if (key + column >= keys.length || (problem.causal && key + column > first + row)) x = -INFINITY;
            });
        }
        softmax.add(scores, sums, problem.scale);
        unsigned kept[STRIPS];
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip) {
            kept[strip] = kept_of_queries<N>(problem.mask, first + STRIP * strip, key, place);
        }
        const auto values = [&](int strip, int n) { return dropped(problem.mask, kept, scores, strip, n); };
        Type::template combine<D, N>(sums, values, stage + N * PITCH);
    }

#pragma unroll
    for (int half = 0; half < 2 * STRIPS; ++half) {
        const float sum = row_sum(softmax.sum[half / 2][half % 2]);
        softmax.sum[half / 2][half % 2] = 1.0f / sum;
        const int time = first + 8 * half + FragmentC::row(0);
        if (lane_index() % 4 == 0 && time < queries.length) {
            log_sums[queries.place(time)] = softmax.maximum[half / 2][half % 2] * problem.scale + logf(sum);
        }
    }
    store(sums, output, queries, first, problem.width, [&](int strip, int half) { return softmax.sum[strip][half]; });
}

// dq of some queries.
template <class Type, int D, int STRIPS, int N>
DEVICE void query_gradient(float *dq, const unsigned char *q, const unsigned char *k, const unsigned char *v, const unsigned char *dy,
                           const float2 *statistics, const Problem &problem, int steps, int rows) {
    using Element = typename Type::Element;
    constexpr int BYTES = Rows<Element, D>::BYTES, PITCH = Rows<Element, D>::PITCH, STAGE = 2 * N * PITCH;
    SHARED_MEMORY(unsigned char, shared);
    clear_behind(dq, problem.query_offsets, steps, rows, (long long)problem.heads * problem.width);
    const Block block(problem, STRIPS, problem.causal);
    const Frames queries = {problem.query_offsets, block.sequence, problem.query_lengths[block.sequence], problem.heads, block.head};
    if (block.first >= queries.length) return;
    const int key_sequence = problem.keys_of(block.sequence);
    const Frames keys = {problem.key_offsets, key_sequence, problem.key_lengths[key_sequence], problem.heads, block.head};
    const int seen = problem.causal ? min(keys.length, block.first + block.rows) : keys.length;

    unsigned char *stages = shared + 2 * block.rows * PITCH;
    bring<Element, D>(shared, {q, dy, statistics}, queries, block.first, block.rows);
    copy_async_commit();
    bring<Element, D>(stages, {k, v, nullptr}, keys, 0, N);
    copy_async_commit();

    const int first = block.first + block.warp_rows(STRIPS), last = first + STRIPS * STRIP - 1;
    const unsigned char *own = shared + block.warp_rows(STRIPS) * PITCH, *own_dy = own + block.rows * PITCH;
    const int place = block.sequence * problem.heads + block.head;
    copy_async_wait<1>();
    barrier();
    float2 of_row[STRIPS][2]; // L and D
#pragma unroll
    for (int half = 0; half < 2 * STRIPS; ++half) {
        of_row[half / 2][half % 2] = *reinterpret_cast<const float2 *>(own + (8 * half + FragmentC::row(0)) * PITCH + BYTES);
    }
    Sums<STRIPS, D> sums;
    for (int key = 0; key < seen; key += N) {
        const unsigned char *stage = stages + key / N % 2 * STAGE;
        copy_async_wait<0>();
        barrier(); // as in forward
        if (key + N < seen) bring<Element, D>(stages + (key / N + 1) % 2 * STAGE, {k, v, nullptr}, keys, key + N, N);
        copy_async_commit();
        if (first >= queries.length || (problem.causal && key > last)) continue;
        Sums<STRIPS, N> scores, slopes;
        Type::template multiply<D>(scores, own, stage);
        if (key + N > keys.length || (problem.causal && key + N > first + 1)) {
            scores.each([=](float &x, int row, int column) {
                if (key + column >= keys.length || (problem.causal && key + column > first + row)) x = -INFINITY;
            });
        }
        Type::template multiply<D>(slopes, own_dy, stage + N * PITCH);
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip) {
            const unsigned kept = kept_of_queries<N>(problem.mask, first + STRIP * strip, key, place);
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 row = of_row[strip][i / 2];
                    const float p = exponential(scores.x[strip][n].x[i] * problem.scale - row.x);
                    slopes.x[strip][n].x[i] = p * (dropped(problem.mask, kept, n, i, slopes.x[strip][n].x[i]) - row.y);
                }
            }
        }
        Type::template combine<D, N>(sums, [&](int strip, int n) { return slopes.x[strip][n]; }, stage);
    }
    store(sums, dq, queries, first, problem.width, [&](int, int) { return problem.scale; });
}

// The queries that read a sequence of keys, N at a time: all sequences of them, one after the other.
template <int N> struct Readers {
    const Problem &problem;
    int count, keys, first_seen; // first_seen: queries before it see none of the block's keys
    int sequence = -1, first = 0, length = 0;

    // To the next N; sequence == count: there are no more.
    DEVICE void advance() {
        first += N;
        while (first >= length && sequence < count) {
            ++sequence;
            if (sequence == count || problem.keys_of(sequence) != keys) continue;
            first = first_seen / N * N;
            length = problem.query_lengths[sequence];
        }
    }
};

// dk and dv of some keys, either only if it is wanted.
template <class Type, int D, int STRIPS, int N>
DEVICE void key_gradient(float *dk, float *dv, const unsigned char *q, const unsigned char *k, const unsigned char *v,
                         const unsigned char *dy, const float2 *statistics, const Problem &problem, int sequences, int steps, int rows) {
    using Element = typename Type::Element;
    constexpr int BYTES = Rows<Element, D>::BYTES, PITCH = Rows<Element, D>::PITCH, STAGE = 2 * N * PITCH;
    SHARED_MEMORY(unsigned char, shared);
    if (dk) clear_behind(dk, problem.key_offsets, steps, rows, (long long)problem.heads * problem.width);
    if (dv) clear_behind(dv, problem.key_offsets, steps, rows, (long long)problem.heads * problem.width);
    const Block block(problem, STRIPS, false);
    const Frames keys = {problem.key_offsets, block.sequence, problem.key_lengths[block.sequence], problem.heads, block.head};
    if (block.first >= keys.length) return;

    unsigned char *stages = shared + 2 * block.rows * PITCH;
    const auto bring_queries = [&](int stage, const Readers<N> &readers) {
        const Frames queries = {problem.query_offsets, readers.sequence, readers.length, problem.heads, block.head};
        bring<Element, D>(stages + stage * STAGE, {q, dy, statistics}, queries, readers.first, N);
    };
    Readers<N> next = {problem, sequences, block.sequence, problem.causal ? block.first : 0};
    next.advance();
    bring<Element, D>(shared, {k, dk ? v : nullptr, nullptr}, keys, block.first, block.rows);
    if (next.sequence < sequences) bring_queries(0, next);
    copy_async_commit();

    const int first = block.first + block.warp_rows(STRIPS), last = first + STRIPS * STRIP - 1;
    const unsigned char *own = shared + block.warp_rows(STRIPS) * PITCH, *own_v = own + block.rows * PITCH;
    Sums<STRIPS, D> key_sums, value_sums;
    for (int turn = 0; next.sequence < sequences; turn ^= 1) {
        const int query = next.first, place = next.sequence * problem.heads + block.head;
        const unsigned char *stage = stages + turn * STAGE, *stage_dy = stage + N * PITCH;
        copy_async_wait<0>();
        barrier(); // as in forward
        next.advance();
        if (next.sequence < sequences) bring_queries(turn ^ 1, next);
        copy_async_commit();
        if (first >= keys.length || (problem.causal && query + N - 1 < first)) continue;
        Sums<STRIPS, N> scores;
        Type::template multiply<D>(scores, own, stage);
        if (problem.causal && last > query) {
            scores.each([=](float &x, int row, int column) {
                if (first + row > query + column) x = -INFINITY;
            });
        }
        // Rows that are not there have neither dy nor L nor D: they add nothing.
        const auto of_column = [=](int column) { return *reinterpret_cast<const float2 *>(stage + column * PITCH + BYTES); };
        scores.each([=](float &x, int, int column) { x = exponential(x * problem.scale - of_column(column).x); });
        unsigned kept[STRIPS];
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip) {
            kept[strip] = kept_of_keys<N>(problem.mask, query, first + STRIP * strip, place);
        }
        if (dv) {
            const auto values = [&](int strip, int n) { return dropped(problem.mask, kept, scores, strip, n); };
            Type::template combine<D, N>(value_sums, values, stage_dy);
        }
        if (dk) {
            Sums<STRIPS, N> slopes;
            Type::template multiply<D>(slopes, own_v, stage_dy);
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float mean = of_column(8 * n + FragmentC::column(i)).y;
#pragma unroll
                    for (int strip = 0; strip < STRIPS; ++strip) {
                        float &slope = slopes.x[strip][n].x[i];
                        slope = scores.x[strip][n].x[i] * (dropped(problem.mask, kept[strip], n, i, slope) - mean);
                    }
                }
            }
            Type::template combine<D, N>(key_sums, [&](int strip, int n) { return slopes.x[strip][n]; }, stage);
        }
    }
    copy_async_wait<0>(); // where no query reads the keys, what was brought in is still under way
    if (dk) store(key_sums, dk, keys, first, problem.width, [&](int, int) { return problem.scale; });
    if (dv) store(value_sums, dv, keys, first, problem.width, [&](int, int) { return 1.0f; });
}

struct Rounded_f32 {
    using Element = float;
    static DEVICE float4 of(float4 x) { return x; }
};
struct Rounded_tf32 {
    using Element = float;
    static DEVICE float of(float x) { return __uint_as_float(to_tf32(x)); }
    static DEVICE float4 of(float4 x) { return make_float4(of(x.x), of(x.y), of(x.z), of(x.w)); }
};
struct Rounded_bf16 {
    using Element = __nv_bfloat16; // a store rounds
    static DEVICE float4 of(float4 x) { return x; }
};

// to: [places, padded] = x: [places, width], rounded, zeros behind.
template <class Rounded> DEVICE void pack(typename Rounded::Element *to, const float *x, int places, int width, int padded) {
    if (!to) return;
    const bool aligned = is_aligned(x) && width % 4 == 0;
    const int quads = padded / 4;
    for_each_in_rows(Threads::of_launch(), places, quads, [=](int place, int quad) {
        const float4 values = load_four(x + (long long)place * width, 4 * quad, width, aligned);
        Quad{(long long)place * padded + 4 * quad}.store(to, Rounded::of(values));
    });
}

} // namespace

// Operands of the kernels below: to: [R, heads, padded] from [R, heads, width]; places: R heads, of queries (q, dy) and of keys (k, v). blocks: (any,
// 4), the second by tensor; one whose `to` is null is left out.
#define PACK(name, Rounded)                                                                                                             \
    KERNEL(256, 6)                                                                                                                      \
    name(Rounded::Element *q_to, const float *q, Rounded::Element *dy_to, const float *dy, Rounded::Element *k_to, const float *k,      \
         Rounded::Element *v_to, const float *v, int query_places, int key_places, int width, int padded) {                             \
        if (blockIdx.y == 0) pack<Rounded>(q_to, q, query_places, width, padded);                                                       \
        if (blockIdx.y == 1) pack<Rounded>(dy_to, dy, query_places, width, padded);                                                     \
        if (blockIdx.y == 2) pack<Rounded>(k_to, k, key_places, width, padded);                                                         \
        if (blockIdx.y == 3) pack<Rounded>(v_to, v, key_places, width, padded);                                                         \
    }                                                                                                                                   \
    EXPORT(name)

PACK(attention_pack_f32, Rounded_f32);
PACK(attention_pack_tf32, Rounded_tf32);
PACK(attention_pack_bf16, Rounded_bf16);

// statistics: [R, heads] = L and D = sum(dy y), 0 without dy and y; log_sums: [R, heads], dy, y: [R, heads, width]. A warp has a head of a row.
KERNEL(256, 6)
attention_statistics(float2 *statistics, const float *log_sums, const float *dy, const float *y, int places, int width) {
    const int warp = Threads::of_launch().number / WARP, warps = Threads::of_launch().count / WARP;
    for (int place = warp; place < places; place += warps) {
        float sum = 0.0f;
        if (y) {
            const long long start = (long long)place * width;
            for (int column = lane_index(); column < width; column += WARP) sum += dy[start + column] * y[start + column];
            sum = warp_sum(sum);
        }
        if (lane_index() == 0) statistics[place] = make_float2(log_sums[place], sum);
    }
}

// blocks: parts * heads * sequences (of queries; attention_key_gradient: of keys), of 32 to 128 threads, each warp 16 STRIPS rows. Shared
// memory: rows of Rows::PITCH bytes: forward the block's and 4 N, backward twice the block's and 4 N.
#define PROBLEM_ARGUMENTS                                                                                                               \
    const int *query_offsets, const int *query_lengths, const int *key_offsets, const int *key_lengths, const int *of, int heads,       \
        int width, int parts, int causal, float scale, unsigned key_low, unsigned key_high, unsigned threshold, float mask_scale,       \
        unsigned step, const unsigned long long *counter
#define PROBLEM                                                                                                                         \
    Problem {                                                                                                                           \
        query_offsets, query_lengths, key_offsets, key_lengths, of, heads, width, parts, causal, scale, {                               \
            {key_low, key_high}, threshold, mask_scale, counter ? unsigned(*counter) : step                                             \
        }                                                                                                                               \
    }

#define FORWARD(suffix, Type, D, STRIPS, N, BLOCKS)                                                                                     \
    KERNEL(MOST_THREADS, BLOCKS)                                                                                                        \
    attention_forward_##suffix(float *output, float *log_sums, const unsigned char *q, const unsigned char *k, const unsigned char *v,  \
                               int steps, int rows, PROBLEM_ARGUMENTS) {                                                                \
        forward<Type, D, STRIPS, N>(output, log_sums, q, k, v, PROBLEM, steps, rows);                                                   \
    }                                                                                                                                   \
    EXPORT(attention_forward_##suffix)

#define QUERY_GRADIENT(suffix, Type, D, STRIPS, N, BLOCKS)                                                                              \
    KERNEL(MOST_THREADS, BLOCKS)                                                                                                        \
    attention_query_gradient_##suffix(float *dq, const unsigned char *q, const unsigned char *k, const unsigned char *v,                \
                                      const unsigned char *dy, const float2 *statistics, int steps, int rows, PROBLEM_ARGUMENTS) {      \
        query_gradient<Type, D, STRIPS, N>(dq, q, k, v, dy, statistics, PROBLEM, steps, rows);                                          \
    }                                                                                                                                   \
    EXPORT(attention_query_gradient_##suffix)

#define KEY_GRADIENT(suffix, Type, D, STRIPS, N, BLOCKS)                                                                                \
    KERNEL(MOST_THREADS, BLOCKS)                                                                                                        \
    attention_key_gradient_##suffix(float *dk, float *dv, const unsigned char *q, const unsigned char *k, const unsigned char *v,       \
                                    const unsigned char *dy, const float2 *statistics, int sequences, int steps, int rows,              \
                                    PROBLEM_ARGUMENTS) {                                                                                \
        key_gradient<Type, D, STRIPS, N>(dk, dv, q, k, v, dy, statistics, PROBLEM, sequences, steps, rows);                             \
    }                                                                                                                                   \
    EXPORT(attention_key_gradient_##suffix)

// As src/backend/cuda/attention.rs has them: registers set STRIPS and N, and shared memory (99 KiB a block on sm_86, 89 and 120) those of 128
// columns of 4 bytes.
FORWARD(f32_32, F32, 32, 2, 32, 2);
FORWARD(f32_64, F32, 64, 2, 32, 2);
FORWARD(f32_128, F32, 128, 1, 32, 2);
FORWARD(tf32_32, Tf32, 32, 2, 32, 2);
FORWARD(tf32_64, Tf32, 64, 2, 32, 2);
FORWARD(tf32_128, Tf32, 128, 1, 32, 2);
FORWARD(bf16_32, Bf16, 32, 2, 64, 2);
FORWARD(bf16_64, Bf16, 64, 2, 64, 2);
FORWARD(bf16_128, Bf16, 128, 2, 32, 2);

QUERY_GRADIENT(f32_32, F32, 32, 1, 32, 2);
QUERY_GRADIENT(f32_64, F32, 64, 1, 32, 2);
QUERY_GRADIENT(f32_128, F32, 128, 1, 16, 2);
QUERY_GRADIENT(tf32_32, Tf32, 32, 1, 32, 2);
QUERY_GRADIENT(tf32_64, Tf32, 64, 1, 32, 2);
QUERY_GRADIENT(tf32_128, Tf32, 128, 1, 16, 2);
QUERY_GRADIENT(bf16_32, Bf16, 32, 2, 32, 2);
QUERY_GRADIENT(bf16_64, Bf16, 64, 2, 32, 2);
QUERY_GRADIENT(bf16_128, Bf16, 128, 1, 32, 2);

KEY_GRADIENT(f32_32, F32, 32, 1, 32, 2);
KEY_GRADIENT(f32_64, F32, 64, 1, 32, 2);
KEY_GRADIENT(f32_128, F32, 128, 1, 16, 2);
KEY_GRADIENT(tf32_32, Tf32, 32, 1, 32, 2);
KEY_GRADIENT(tf32_64, Tf32, 64, 1, 32, 2);
KEY_GRADIENT(tf32_128, Tf32, 128, 1, 16, 2);
KEY_GRADIENT(bf16_32, Bf16, 32, 2, 32, 2);
KEY_GRADIENT(bf16_64, Bf16, 64, 2, 32, 2);
KEY_GRADIENT(bf16_128, Bf16, 128, 1, 32, 2);

EXPORT(attention_statistics);
