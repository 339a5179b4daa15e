// Connectionist temporal classification (Graves et al. 2006), log-softmax fused: losses, and the gradient to the logits.
//
// T frames, N utterances, R packed rows, V symbols (0 is the blank), L labels of an utterance. The states are pairs l = 0..L of blank b[l] and label
// a[l] (there is no a[L]; what stands there reaches nothing that counts):
//
//   alpha: b_t[l] = (b[l] + a[l-1]) y_t(blank)        a_t[l] = (a[l] + b[l] + skip[l] a[l-1]) y_t(label l)
//   d loss / d logit_t(k) = y_t(k) - sum of alpha beta / p over the states of k
//
// skip[l] is 1 where label l differs from label l - 1, else 0. Beta, with the emission of its own frame, is the same recursion over the reversed
// utterance: pair r is b[L-r] and a[L-1-r], frames run backward. So one function serves both.
//
// Numbers are a mantissa and an exponent of their own, as in src/backend/cpu/ctc: sums need no exp and no log, nothing overflows, nothing vanishes
// beside a larger neighbour, and relative errors only add up: one rounding for each of some 3 T operations. A mantissa grows by less than a factor of 6 a
// step (three terms, an emission below 2), so it is brought back to [1, 2) only every K steps. Emissions are exp(x - max), in 32 bits:
// 10 of exponent, 22 of mantissa; below 2^-1022 (708 nats under the frame's largest) they count as that. With T <= 2^18 no exponent leaves an int.
//
// Kernels, in this order:
//   ctc_prepare    a warp a row: maximum, ln of the sum, emissions of the utterance's labels (gathered once, so that the recursion reads them in a row);
//                  a block an utterance: does it fit its frames, and where each label first occurs.
//   ctc_recursion  two blocks an utterance, alpha and beta at the same time. A warp holds 32 P neighbouring pairs in registers; a step takes from the left
//                  neighbour one shuffled number. The leftmost HALO pairs are the left warp's: a wrong value enters there and moves right by one pair a step, so the
//                  warps meet (one barrier) only every K steps, to hand each other fresh halos through shared memory. There the state is also written to
//                  memory: a checkpoint, 16 bytes a pair every K frames instead of every frame. Emissions are asked for K steps ahead.
//   ctc_gradient   a block for K frames of an utterance: repeats the K steps of alpha from its checkpoint, then those of beta, and adds alpha beta / p
//                  to the symbols' occupations: in shared memory, in fixed point (2^-30), so that the sum does not depend on the order of the atomics.
//                  Then softmax minus occupation over each row's sum of occupations, which takes out the rounding that they have in common.
//
// Counted at T = 800, 201 states, N = 30, V = 50: 4.8 MB of logits read twice, 4.8 MB of gradient, 10 MB of emissions written and read three times, 10 MB of
// checkpoints written and read: all of it in L2, some 20 microseconds if it came from memory. The bound is the recursion: 800 dependent steps. A step's chain is a shuffle, then
// max, subtract, max, shift-add, two sums and a product: about 60 cycles; a warp with P = 2 issues about 70 instructions a step. So 70 to 85
// cycles, 32 to 40 microseconds at 1.75 GHz, and some 20 for the two kernels around it. Not measured on a GPU yet.
//
// Limits: 4095 labels an utterance (8191 states), T <= 2^18; src/backend/cuda/ctc.rs holds them.
#include "softmax.cuh"

constexpr int ZERO = -(1 << 29);    // the exponent of zero: far below any other, far from overflow when two are added
constexpr int DEEPEST = 1022;       // an emission is at least 2^-DEEPEST of its frame's largest
constexpr int BIAS = 1023;          // of the exponents of packed emissions
constexpr float UNIT = 1073741824.0f; // of the occupations in fixed point: 2^-30

constexpr int BLANK = 0;

// mantissa 2^exponent; the mantissa is 1 or more.
struct alignas(8) Number {
    float mantissa;
    int exponent;
};

struct alignas(16) Pair {
    Number blank, label;
};

// Times 2^-exponent, for an exponent that is not smaller than the number's; as good as 0 where it is larger by 127 or more.
DEVICE float scaled(Number x, int exponent) {
    return __int_as_float(__float_as_int(x.mantissa) + max(x.exponent - exponent, -127) * (1 << 23));
}

DEVICE Number sum(Number x, Number y) {
    const int exponent = max(x.exponent, y.exponent);
    return {scaled(x, exponent) + scaled(y, exponent), exponent};
}

// `late` is what comes last, out of a shuffle.
DEVICE Number sum(Number x, Number y, Number late) {
    const int exponent = max(max(x.exponent, y.exponent), late.exponent);
    return {(scaled(x, exponent) + scaled(y, exponent)) + scaled(late, exponent), exponent};
}

DEVICE Number product(Number x, Number y) { return {x.mantissa * y.mantissa, x.exponent + y.exponent}; }

DEVICE Number normal(Number x) {
    const int bits = __float_as_int(x.mantissa);
    return {__int_as_float((bits & 0x7fffff) | 0x3f800000), x.exponent + (bits >> 23) - 127};
}

// exp(x) for x <= 0 in 10 bits of biased exponent and 22 of mantissa.
DEVICE unsigned packed_exponential(float x) {
    constexpr float LN2 = 0.693147181f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    x = fmaxf(x, -DEEPEST * LN2);
    const float n = rintf(x * LOG2_E);
    const float rest = fmaf(n, -LN2_LOW, fmaf(n, -LN2_HIGH, x));
    // How far the bits of exp(rest), between 0.7 and 1.42, lie from those of 1 is exponent and mantissa at once; half of it, rounded, has 22 bits.
    const int half = (__float_as_int(exp2_flushed(rest * LOG2_E)) - 0x3f800000 + 1) >> 1;
    return unsigned(int(n) + BIAS) * (1u << 22) + unsigned(half);
}

DEVICE Number unpacked(unsigned emission) {
    return {__uint_as_float((emission << 1 & 0x7fffffu) | 0x3f800000u), int(emission >> 22) - BIAS};
}

// Where things are. Rows are kept by utterance here (row `first + t` of `emissions`), so that a frame's place needs no table.
struct Batch {
    const int *lengths, *labels, *label_starts; // [N], the labels of all, [N + 1]
    int width;                                  // the most labels of an utterance, and the blank
    const unsigned *emissions;                  // [R, width]: labels 0..L - 1, then the blank
    Pair *checkpoints;                          // [2, R / K + N, width]: alpha, beta; none without a gradient
    int checkpoint_count;                       // R / K + N
};

template <int K> struct Utterance {
    int index, length, count; // frames, labels
    const int *labels;
    int first; // row
    unsigned emissions; // where they begin in Batch::emissions
    Pair *alpha, *beta; // [segments, width]

    DEVICE Utterance(const Batch &batch, int index)
        : index(index), length(batch.lengths[index]), count(batch.label_starts[index + 1] - batch.label_starts[index]),
          labels(batch.labels + batch.label_starts[index]) {
        int before = 0;
        for (int n = threadIdx.x % WARP; n < index; n += WARP) before += batch.lengths[n];
        first = warp_sum(before);
        emissions = unsigned(first) * batch.width;
        // The segments of those before are at most first / K + index.
        alpha = batch.checkpoints + (long long)(first / K + index) * batch.width;
        beta = alpha + (long long)batch.checkpoint_count * batch.width;
    }
    DEVICE int segments() const { return (length + K - 1) / K; }
};

// What a lane holds: P neighbouring pairs of one of the two recursions, and the emissions of the next AHEAD steps for them.
template <int P, int K, int AHEAD = K> struct Lane {
    static constexpr int HALO = (K + P - 1) / P * P; // pairs of a warp that are its left neighbour's
    static constexpr int USEFUL = WARP * P - HALO;

    Pair pairs[P];
    int start; // the first pair
    int skip[P];
    unsigned places[P], blank_place; // of the first frame's emissions
    unsigned emissions[AHEAD][P], blanks[AHEAD];

    // Tile `tile` of those that begin with pair `origin`.
    DEVICE Lane(const Utterance<K> &utterance, int origin, int tile, bool reverse) {
        start = origin + tile * USEFUL - HALO + lane() * P;
#pragma unroll
        for (int p = 0; p < P; ++p) {
            const int l = start + p, count = utterance.count;
            const bool is_label = 0 <= l && l < count;
            const int place = !is_label ? count : reverse ? count - 1 - l : l;
            const int before = reverse ? place + 1 : place - 1;
            skip[p] = is_label && l > 0 && utterance.labels[place] != utterance.labels[before] ? 0 : ZERO;
            places[p] = utterance.emissions + place;
        }
        blank_place = utterance.emissions + utterance.count;
    }
    DEVICE static int lane() { return threadIdx.x % WARP; }
    DEVICE static bool is_useful() { return lane() >= HALO / P; }

    // Before the first frame: a path starts in the first blank.
    DEVICE void begin() {
#pragma unroll
        for (int p = 0; p < P; ++p) pairs[p] = {{1.0f, start + p == 0 ? 0 : ZERO}, {1.0f, ZERO}};
    }
    // From a checkpoint of `count` + 1 pairs.
    DEVICE void resume(const Pair *checkpoint, int count) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
            const int l = start + p;
            pairs[p] = 0 <= l && l <= count ? checkpoint[l] : Pair{{1.0f, ZERO}, {1.0f, ZERO}};
        }
    }
    // The emissions of frame t, for step k of a segment. (A kernel's argument and an unsigned place: the shortest way to an address.)
    DEVICE void fetch(int k, const Batch &batch, int t) {
        const unsigned row = t * batch.width;
#pragma unroll
        for (int p = 0; p < P; ++p) emissions[k % AHEAD][p] = batch.emissions[row + places[p]];
        blanks[k % AHEAD] = batch.emissions[row + blank_place];
    }
    // The sums of a step. Lane 0 takes its own label for its left neighbour's: that is the wrong value that the halo is for.
    DEVICE void add_paths() {
        const Number last = pairs[P - 1].label;
        const Number left = {__shfl_up_sync(FULL_WARP, last.mantissa, 1), __shfl_up_sync(FULL_WARP, last.exponent, 1)};
#pragma unroll
        for (int p = P - 1; p >= 0; --p) {
            const Number before = p > 0 ? pairs[p - 1].label : left;
            pairs[p].label = sum(pairs[p].label, pairs[p].blank, {before.mantissa, before.exponent + skip[p]});
            pairs[p].blank = sum(pairs[p].blank, before);
        }
    }
    DEVICE void emit(int k) {
        const Number blank = unpacked(blanks[k % AHEAD]);
#pragma unroll
        for (int p = 0; p < P; ++p)
            pairs[p] = {product(pairs[p].blank, blank), product(pairs[p].label, unpacked(emissions[k % AHEAD][p]))};
    }
    DEVICE void normalize() {
#pragma unroll
        for (int p = 0; p < P; ++p) pairs[p] = {normal(pairs[p].blank), normal(pairs[p].label)};
    }
};

// Maximum and ln of the sum of every row, emissions; blocks of whole warps: (1 + ceil(T / warps), N). norms: [R, 2], R by utterance as in Batch; emissions:
// [R, width]; feasible: [N]; first_places: [N, width], where each label first occurs. Shared memory: 32 ints.
KERNEL(256, 4)
ctc_prepare(const float *logits, const int *offsets, const int *lengths, const int *labels, const int *label_starts, unsigned *emissions,
            float *norms, int *feasible, int *first_places, int symbols, int width) {
    SHARED_MEMORY(int, scratch);
    const Batch batch = {lengths, labels, label_starts, width, emissions, nullptr, 0};
    const Utterance<1> utterance(batch, blockIdx.y);
    if (blockIdx.x == 0) {
        int repeats = 0;
        for (int l = threadIdx.x; l < utterance.count; l += blockDim.x) {
            const int label = utterance.labels[l];
            int place = l;
            for (int before = l - 1; before >= 0; --before) place = utterance.labels[before] == label ? before : place;
            first_places[blockIdx.y * width + l] = place;
            // A label repeated at once needs a blank, and so a frame, in between.
            repeats += l > 0 && utterance.labels[l - 1] == label;
        }
        repeats = block_sum(repeats, scratch);
        if (threadIdx.x == 0) feasible[blockIdx.y] = utterance.count + repeats <= utterance.length;
        return;
    }
    const int t = (blockIdx.x - 1) * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (t >= utterance.length) return;
    const float *row = logits + (long long)(offsets[t] + int(blockIdx.y)) * symbols;
    constexpr int COUNT = 4;
    Statistics own;
    for (int k = lane; k < symbols; k += COUNT * WARP) {
        float x[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) x[i] = k + i * WARP < symbols ? row[k + i * WARP] : -INFINITY;
        own.add(x);
    }
    const Statistics all = warp_statistics(own);
    const long long place = utterance.first + t;
    if (lane == 0) norms[2 * place] = all.maximum, norms[2 * place + 1] = logf(all.sum);
    for (int l = lane; l <= utterance.count; l += WARP) {
        const int symbol = l < utterance.count ? utterance.labels[l] : BLANK;
        emissions[place * width + l] = packed_exponential(row[symbol] - all.maximum);
    }
}

// Alpha (blockIdx.y 0) or beta (1) of utterance blockIdx.x. Alpha also gives the loss and `total`, the probability of the labels without the
// softmax's denominators.
template <int P, int K, int AHEAD>
DEVICE void recursion(Pair *halos, const Batch &batch, const float *norms, const int *feasible, float *losses, Number *totals) {
    using Tile = Lane<P, K, AHEAD>;
    constexpr int HALO = Tile::HALO, USEFUL = Tile::USEFUL;
    const bool reverse = blockIdx.y == 1;
    const Utterance<K> utterance(batch, blockIdx.x);
    if (!feasible[utterance.index]) {
        if (threadIdx.x == 0 && !reverse) losses[utterance.index] = 0.0f;
        return;
    }
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = Tile::lane();
    const int length = utterance.length, count = utterance.count, segments = utterance.segments();
    Number *ends = reinterpret_cast<Number *>(halos + 2 * warps * HALO); // [2]: the last blank and label; then 32 doubles
    double *scratch = reinterpret_cast<double *>(ends + 2);

    // Segments lie at multiples of K frames for both, so a reversed one begins with the shorter segment.
    const int sign = reverse ? -1 : 1;
    auto frame = [=](int segment, int k) {
        const int begin = !reverse ? segment * K : segment == 0 ? length - 1 : (segments - segment) * K - 1;
        return min(max(begin + sign * k, 0), length - 1); // beyond the utterance: fetched and not used
    };

    Tile tile(utterance, 0, warp, reverse);
    tile.begin();
    const bool is_needed = warp * USEFUL <= count;
    if (is_needed && segments > 0) {
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) tile.fetch(k, batch, frame(0, k));
    }
    Pair *checkpoint = reverse ? utterance.beta : utterance.alpha;
    for (int segment = 0; segment < segments; ++segment) {
        Pair *halo = halos + (segment % 2 * warps + warp) * HALO;
        if (is_needed) {
            const int short_one = reverse ? 0 : segments - 1;
            const int steps = segment == short_one ? length - (segments - 1) * K : K;
#pragma unroll AHEAD
            for (int k = 0; k < K; ++k) {
                if (k < steps) {
                    tile.add_paths();
                    tile.emit(k);
                }
                const int next = k + AHEAD; // whose emissions take the place of those just used
                tile.fetch(k, batch, next < K ? frame(segment, next) : frame(segment + 1, next - K));
            }
            tile.normalize();
            // All of the one, then all of the other: taken in turn, pair by pair, they cost ctc_recursion_long registers that sm_100 has to spill.
            const bool is_saved = batch.checkpoints && segment + 1 < segments && Tile::is_useful();
#pragma unroll
            for (int p = 0; p < P; ++p) {
                const int l = tile.start + p;
                if (is_saved && l <= count)
                    checkpoint[(long long)(reverse ? segments - 1 - segment : segment) * batch.width + l] = tile.pairs[p];
            }
            if (lane >= WARP - HALO / P) {
#pragma unroll
                for (int p = 0; p < P; ++p) halo[(lane - WARP + HALO / P) * P + p] = tile.pairs[p];
            }
        }
        // One barrier is enough: the next segment's halos go to the other half, and that half's readers are through when all are here.
        barrier();
        if (is_needed && warp > 0 && !Tile::is_useful()) {
#pragma unroll
            for (int p = 0; p < P; ++p) tile.pairs[p] = halo[lane * P + p - HALO];
        }
    }
    if (reverse) return;

    // p = b[L] + a[L - 1].
#pragma unroll
    for (int p = 0; p < P; ++p) {
        const int l = tile.start + p;
        if (is_needed && Tile::is_useful() && l == count) ends[0] = tile.pairs[p].blank;
        if (is_needed && Tile::is_useful() && l == count - 1) ends[1] = tile.pairs[p].label;
    }
    if (count == 0 && threadIdx.x == 0) ends[1] = {1.0f, ZERO};
    double log_sums = 0.0;
    for (int t = threadIdx.x; t < length; t += blockDim.x) log_sums += double(norms[2 * (utterance.first + t) + 1]);
    log_sums = block_sum(log_sums, scratch);
    if (threadIdx.x == 0) {
        const Number total = normal(sum(ends[0], ends[1]));
        totals[utterance.index] = total;
        losses[utterance.index] = float(log_sums - double(logf(total.mantissa)) - total.exponent * 0.693147180559945309);
    }
}

// Softmax minus occupation of frames blockIdx.x K ... of utterance blockIdx.y.
template <int P, int K>
DEVICE void gradient_of(Number *alpha_blanks, const Batch &batch, const float *logits, const int *offsets, const float *norms,
                        const int *feasible, const int *first_places, const Number *totals, float *gradient, float factor, int symbols) {
    constexpr int AHEAD = 2;
    using Tile = Lane<P, K, AHEAD>;
    const int n = blockIdx.y, segment = blockIdx.x, warp = threadIdx.x / WARP, warps = blockDim.x / WARP, lane = Tile::lane();
    const Utterance<K> utterance(batch, n);
    const int begin = segment * K, steps = min(K, utterance.length - begin), count = utterance.count;
    if (steps <= 0) return;
    const bool fits = feasible[n];
    if (!fits) {
        for (int k = warp; k < steps; k += warps) {
            float *row = gradient + (long long)(offsets[begin + k] + n) * symbols;
            for (int v = lane; v < symbols; v += WARP) row[v] = 0.0f;
        }
        return;
    }

    // Alpha of a chunk of pairs: [K, chunk], [K, chunk + 1] (shifted by one, so that place l has the neighbours b[l] and a[l - 1]), and the
    // occupations, [K, width]: of each label where it first occurs, of the blank at `count`.
    const int chunk = warps * Tile::USEFUL;
    Number *alpha_labels = alpha_blanks + K * chunk;
    unsigned *occupations = reinterpret_cast<unsigned *>(alpha_labels + K * (chunk + 1));
    for (int i = threadIdx.x; i < K * batch.width; i += blockDim.x) occupations[i] = 0;
    if (threadIdx.x < K) alpha_labels[threadIdx.x * (chunk + 1)] = {1.0f, ZERO};

    const int *first_place = first_places + n * batch.width;
    const Number total = totals[n];
    const float over_total = UNIT / total.mantissa;
    auto occupation = [&](Number alpha, Number beta) {
        const int exponent = alpha.exponent + beta.exponent - total.exponent;
        const float power = __int_as_float((min(max(exponent, -127), 2) + 127) * (1 << 23));
        // At most 1 but for rounding; the bound keeps what is not a number out of the conversion.
        return unsigned(fminf(alpha.mantissa * beta.mantissa * power * over_total, 1.5f * UNIT) + 0.5f);
    };
    auto frame = [=](int k) { return begin + min(max(k, 0), steps - 1); }; // beyond the segment: fetched and not used
    for (int origin = 0; origin <= count; origin += chunk) {
        {
            Tile tile(utterance, origin, warp, false);
            if (segment == 0)
                tile.begin();
            else
                tile.resume(utterance.alpha + (long long)(segment - 1) * batch.width, count);
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) tile.fetch(i, batch, frame(i));
#pragma unroll 1
            for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    const int k = first + i;
                    if (k >= steps) break;
                    tile.add_paths();
                    tile.emit(i);
                    tile.fetch(i, batch, frame(k + AHEAD));
                    if (!Tile::is_useful()) continue;
#pragma unroll
                    for (int p = 0; p < P; ++p) {
                        const int place = tile.start + p - origin;
                        alpha_blanks[k * chunk + place] = tile.pairs[p].blank;
                        alpha_labels[k * (chunk + 1) + place + 1] = tile.pairs[p].label;
                    }
                }
            }
        }
        barrier();
        {
            // Reversed pair r stands for b[L - r] and a[L - r - 1].
            Tile tile(utterance, count - (origin + chunk - 1), warp, true);
            if (begin + K >= utterance.length)
                tile.begin();
            else
                tile.resume(utterance.beta + (long long)(segment + 1) * batch.width, count);
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) tile.fetch(i, batch, frame(steps - 1 - i));
            int slots[P];
#pragma unroll
            for (int p = 0; p < P; ++p) {
                const int r = tile.start + p;
                slots[p] = 0 <= r && r < count ? first_place[count - 1 - r] : -1;
            }
#pragma unroll 1
            for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
                for (int i = 0; i < AHEAD; ++i) {
                    const int k = steps - 1 - (first + i);
                    if (k < 0) break;
                    tile.add_paths(); // without the emission of frame k, which alpha has
                    unsigned blanks = 0;
#pragma unroll
                    for (int p = 0; p < P; ++p) {
                        const int r = tile.start + p, place = count - r - origin;
                        if (!Tile::is_useful() || r < 0 || r > count) continue;
                        blanks += occupation(alpha_blanks[k * chunk + place], tile.pairs[p].blank);
                        if (slots[p] < 0) continue;
                        const unsigned units = occupation(alpha_labels[k * (chunk + 1) + place], tile.pairs[p].label);
                        if (units) atomicAdd(&occupations[k * batch.width + slots[p]], units);
                    }
                    blanks = warp_sum(blanks);
                    if (lane == 0 && blanks) atomicAdd(&occupations[k * batch.width + count], blanks);
                    tile.emit(i);
                    tile.fetch(i, batch, frame(k - AHEAD));
                }
            }
        }
        barrier();
        if (origin + chunk <= count) {
            // The next chunk's a[l - 1].
            if (threadIdx.x < K) alpha_labels[threadIdx.x * (chunk + 1)] = alpha_labels[threadIdx.x * (chunk + 1) + chunk];
            barrier();
        }
    }

    for (int k = warp; k < steps; k += warps) {
        const unsigned *occupied = occupations + k * batch.width;
        unsigned all = 0;
        for (int l = lane; l <= count; l += WARP) all += occupied[l];
        all = warp_sum(all);
        const float share = all ? factor / float(all) : 0.0f;
        const long long start = (long long)(offsets[begin + k] + n) * symbols;
        const float maximum = norms[2 * (utterance.first + begin + k)], log_sum = norms[2 * (utterance.first + begin + k) + 1];
#pragma unroll 4
        for (int v = lane; v < symbols; v += WARP)
            gradient[start + v] = factor * exponential((logits[start + v] - maximum) - log_sum);
        __syncwarp(); // the softmax is there before its symbols' occupations are taken off
        for (int l = lane; l <= count; l += WARP) {
            if (l < count && first_place[l] != l) continue;
            gradient[start + (l < count ? utterance.labels[l] : BLANK)] -= share * float(occupied[l]);
        }
    }
}

// The rows behind the last frame's.
DEVICE void clear_rest(const int *offsets, float *gradient, int steps, int rows, int symbols) {
    const int block = blockIdx.y * gridDim.x + blockIdx.x, blocks = gridDim.x * gridDim.y;
    for (int row = offsets[steps] + block; row < rows; row += blocks)
        for (int v = threadIdx.x; v < symbols; v += blockDim.x) gradient[(long long)row * symbols + v] = 0.0f;
}

// Blocks (N, 2), (N, 1) without a gradient, of enough warps for the widest utterance. Shared memory: 2 warps HALO pairs, 2 numbers, 32 doubles.
#define RECURSION(name, threads, P, K, AHEAD)                                                                                                         \
    KERNEL(threads, 1)                                                                                                                         \
    name(const int *lengths, const int *labels, const int *label_starts, const unsigned *emissions, const float *norms, const int *feasible,   \
         float *losses, Number *totals, Pair *checkpoints, int width, int checkpoint_count) {                                                  \
        SHARED_MEMORY(Pair, halos);                                                                                                            \
        const Batch batch = {lengths, labels, label_starts, width, emissions, checkpoints, checkpoint_count};                                  \
        recursion<P, K, AHEAD>(halos, batch, norms, feasible, losses, totals);                                                                        \
    }                                                                                                                                          \
    EXPORT(name)

RECURSION(ctc_recursion_short, 512, 2, 8, 8);
RECURSION(ctc_recursion_long, 768, 6, 4, 1);

// Blocks (ceil(T / K), N). gradient: [R, V], may be the logits. Shared memory: K (2 chunk + 1) numbers, K width ints, with a chunk of
// warps * USEFUL pairs.
#define GRADIENT(name, P, K)                                                                                                                   \
    KERNEL(256, 3)                                                                                                                             \
    name(const float *logits, const int *offsets, const int *lengths, const int *labels, const int *label_starts, const unsigned *emissions,   \
         const float *norms, const int *feasible, const int *first_places, const Number *totals, Pair *checkpoints, float *gradient,           \
         float scale, const float *scale_factor, int steps, int utterances, int rows, int symbols, int width, int checkpoint_count) {          \
        SHARED_MEMORY(Number, alpha);                                                                                                          \
        clear_rest(offsets, gradient, steps, rows, symbols);                                                                                   \
        if (utterances == 0) return;                                                                                                           \
        const Batch batch = {lengths, labels, label_starts, width, emissions, checkpoints, checkpoint_count};                                  \
        gradient_of<P, K>(alpha, batch, logits, offsets, norms, feasible, first_places, totals, gradient,                                      \
                          scale * (scale_factor ? *scale_factor : 1.0f), symbols);                                                             \
    }                                                                                                                                          \
    EXPORT(name)

GRADIENT(ctc_gradient_short, 2, 8);
GRADIENT(ctc_gradient_long, 2, 4);

EXPORT(ctc_prepare);
