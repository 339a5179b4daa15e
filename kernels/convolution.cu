// 3 x 3 convolution over time and frequency of packed sequences, its gradients, and what front ends have beside it: pooling, and channels first.
//
// A frame is [bins, channels]. A position is a bin of a row of the packed sequences; R rows of F bins have R F of them, [positions, channels] is
// how tensors lie. Patches hold 9 taps, tap = 3 (place in time) + (place in frequency); what lies outside a sequence or a frame is zero.
//
//   forward            y [P', O]  = relu(patches of x [P', 9 C]  weights [9 C, O] + bias)
//   gradient of x      dx [P, C]  = patches of dy [P, 9 O]  weights [9 O, C]: a tap's patch is where x was read at that tap
//   of the weights     dw [O, 9 C] = dy [P', O]^T  patches of x [P', 9 C]
//
// Implicit products: no patch is ever in device memory. A tile's rows are gathered as they are loaded; from then on it is the product of
// matmul.cu, whose layout of shared memory, fragments and sums these are (matmul_tile.cuh). Which rows hold a row's three places in time is a
// small table, [rows, 3], that convolution_rows makes from the offsets; weights are laid out and rounded once a pass (convolution_weights_*), as
// rows of k = tap channels + channel, padded with zeros, and come by asynchronous copies.
//
// Counted: 18 C O P' operations each; bytes 4 (C P + O P') with every input once, since the nine readers of an element are near and meet in the
// caches. VGG at B=16, T=800, 83 bins (P = 1.06 M, then 0.27 M), on an H200 with 67 (f32), 495 (tf32), 990 (bf16) TFLOP/s and 4.8 TB/s:
//
//     1 ->  64, P = 1.06 M     1.2 GFLOP, 276 MB: 58 us, memory; f32 18 us
//    64 ->  64, P = 1.06 M    78 GFLOP, 544 MB: 113 us of memory; f32 1.2 ms, tf32 160 us, bf16 80 us
//    64 -> 128, P = 0.27 M    39 GFLOP, 206 MB:  43 us of memory; f32 0.6 ms, tf32  80 us, bf16 40 us
//   128 -> 128, P = 0.27 M    79 GFLOP, 275 MB:  57 us of memory; f32 1.2 ms, tf32 160 us, bf16 80 us
//   256 -> 256, every second: P = 6400 x 40, P' = 3200 x 19: 72 GFLOP, 324 MB: f32 1.1 ms, tf32 145 us, bf16 73 us
//
// So arithmetic bounds all but the first, whose 9 channels of a patch fill one stage of shared memory. mma.sync is known to reach about two
// thirds of the rates above. What the gather adds to a product: two loads from shared memory and some ten integer instructions for every tap that
// a thread goes to, which is every channels / 16 (bf16: 32) stages.
//
// - A thread keeps the source positions of its rows in registers while it stays in a tap. Channels that are no multiple of four, a spectrogram's
//   one, are gathered element by element (*_elements).
// - Patches at every second place leave most taps of dx empty: its positions are ordered even bins first, so that a tile has few parities, and
//   a stage that no row of the tile has is skipped: 9 / 4 taps remain, about.
// - dw sums over the positions, which are split; every split writes its sums, convolution_sum adds them in order and lays them out. The patches
//   stand transposed in memory: a thread takes some neighbouring positions of four channels and transposes them on the way.
//
// Pooling and exchange move 4 bytes for each element read and written: pooling 64 channels of P = 1.06 M 340 MB, 70 us; backward 610 MB, 130 us.
//
// tensor cores: convolution_product_tf32_*, convolution_product_bf16_*, convolution_weight_gradient_tf32_*, convolution_weight_gradient_bf16_*
//
// Not yet measured on a GPU.
#include "async.cuh"
#include "matmul_tile.cuh"
#include "vector.cuh"

namespace {

constexpr int SIDE = 3, TAPS = SIDE * SIDE;

// How patches lie over what they are taken of. `backward`: those of dx, over dy.
struct Patches {
    int stride, padding, backward;

    // The place, in time or in frequency, that `place` of the patch at `index` is at; negative or beyond the end: outside.
    DEVICE int source(int index, int place) const {
        if (!backward) return index * stride + place - padding;
        const int at = index + padding - place;
        if (stride == 1) return at;
        return at >= 0 && at % stride == 0 ? at / stride : -1;
    }
};

// [positions, channels], and the table that says which of its rows patches are taken of.
struct Source {
    const float *x;
    const int *table; // [rows of the patches, SIDE]; -1: none
    int bins, channels;
};

// How a tile of patches is made: HEIGHT positions of k = tap channels + channel.
template <typename Arithmetic, int HEIGHT, int THREADS, bool ELEMENTS> struct Gather {
    static constexpr int DEPTH = ROW_BYTES / Arithmetic::BYTES;
    static constexpr int VECTORS = HEIGHT * DEPTH / (4 * THREADS);
    static constexpr int ALONG_K = DEPTH / 4;
    static constexpr int ROW_STEP = THREADS / ALONG_K;

    float4 values[VECTORS];
    int positions[VECTORS]; // of the source, at this tap; -1: outside
    const Source source;
    const Patches patches;
    const int *rows, *bins; // in shared memory: [SIDE, HEIGHT], [HEIGHT]
    int row, k, to, tap;

    DEVICE Gather(const Source &source, const Patches &patches, const int *rows, const int *bins)
        : source(source), patches(patches), rows(rows), bins(bins) {
        row = threadIdx.x / ALONG_K, k = threadIdx.x % ALONG_K * 4;
        to = place(row, k * Arithmetic::BYTES / 16) + k * Arithmetic::BYTES % 16;
        tap = -1;
    }

    DEVICE int position(int i, int tap) const {
        if (tap >= TAPS) return -1;
        const int at = row + i * ROW_STEP;
        const int source_row = rows[tap / SIDE * HEIGHT + at], bin = patches.source(bins[at], tap % SIDE);
        return source_row >= 0 && bin >= 0 && bin < source.bins ? source_row * source.bins + bin : -1;
    }

    // Asks for a stage.
    DEVICE void load(int stage) {
        const int first = stage * DEPTH + k;
        if constexpr (ELEMENTS) {
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                values[i] = make_float4(element(i, first), element(i, first + 1), element(i, first + 2), element(i, first + 3));
            }
        } else {
            const int now = first / source.channels, channel = first - now * source.channels;
            if (now != tap) {
                tap = now;
#pragma unroll
                for (int i = 0; i < VECTORS; ++i) positions[i] = position(i, tap);
            }
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                values[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (positions[i] >= 0) values[i] = Quad{(long long)positions[i] * source.channels + channel}.load(source.x);
            }
        }
    }

    DEVICE float element(int i, int k) const {
        const int tap = k / source.channels, at = position(i, tap);
        return at >= 0 ? source.x[(long long)at * source.channels + k - tap * source.channels] : 0.0f;
    }

    // Waits for what was loaded and stores it.
    DEVICE void store(unsigned char *stage) const {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            unsigned char *chunk = stage + place_below(to, i * ROW_STEP);
            const float4 value = values[i];
            if constexpr (Arithmetic::BYTES == 4) {
                *reinterpret_cast<uint4 *>(chunk) =
                    make_uint4(Arithmetic::word(__float_as_uint(value.x)), Arithmetic::word(__float_as_uint(value.y)),
                               Arithmetic::word(__float_as_uint(value.z)), Arithmetic::word(__float_as_uint(value.w)));
            } else {
                *reinterpret_cast<uint2 *>(chunk) = make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
            }
        }
    }
};

// The weights' way to shared memory: rows of `padded` elements, as convolution_weights_* lays them out.
template <typename Arithmetic, int ROWS, int THREADS> struct Weights {
    static constexpr int COPIES = ROWS * ROW_BYTES / 16 / THREADS, ROW_STEP = THREADS / 4;
    static_assert(COPIES * 16 * THREADS == ROWS * ROW_BYTES, "a stage is not shared out evenly");

    const unsigned char *from[COPIES];
    int to;

    DEVICE Weights(const unsigned char *data, int padded, int first_row, int rows) {
        const int row = threadIdx.x / 4, chunk = threadIdx.x % 4;
        // Rows that do not exist are the last one: what becomes of them is not written.
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int at = min(first_row + row + i * ROW_STEP, rows - 1);
            from[i] = data + (long long)at * padded * Arithmetic::BYTES + 16 * chunk;
        }
        to = place(row, chunk);
    }

    DEVICE void copy(unsigned char *stage, int number) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) copy_async(stage + place_below(to, i * ROW_STEP), from[i] + number * ROW_BYTES);
        copy_async_commit();
    }
};

// The tile [HEIGHT, WIDTH] of a product of patches and weights, in which ACROSS warps lie side by side.
template <typename Arithmetic, int HEIGHT, int WIDTH, int ACROSS, int THREADS, bool ELEMENTS>
DEVICE void product(const Source &source, const Patches &patches, int rows, int bins, const unsigned char *weights, int padded,
                    const Output &output) {
    static_assert(HEIGHT == THREADS, "a thread finds a position");
    constexpr int WARP_HEIGHT = HEIGHT * ACROSS * WARP / THREADS, WARP_WIDTH = WIDTH / ACROSS;
    constexpr int STAGE = (HEIGHT + WIDTH) * ROW_BYTES, DEPTH = ROW_BYTES / Arithmetic::BYTES;
    constexpr int PITCH = WARP_WIDTH + 8; // as in write_sums
    constexpr int STRIPS_BYTES = THREADS / WARP * STRIP_ROWS * PITCH * 4;
    constexpr int BEHIND = 2 * STAGE > STRIPS_BYTES ? 2 * STAGE : STRIPS_BYTES;
    using Sums = typename Arithmetic::template Sums<WARP_HEIGHT, WARP_WIDTH>;
    SHARED_MEMORY(unsigned char, shared);
    int *const source_rows = reinterpret_cast<int *>(shared + BEHIND); // [SIDE, HEIGHT]
    int *const bin_of = source_rows + SIDE * HEIGHT;                   // [HEIGHT]
    int *const target_of = bin_of + HEIGHT;                            // [HEIGHT]: the position; -1: none
    int *const taps_of_warp = target_of + HEIGHT;                      // [THREADS / WARP]

    // Tiles that share patches are neighbours.
    const int across = (output.columns + WIDTH - 1) / WIDTH;
    const int column = int(blockIdx.x) % across * WIDTH, first = int(blockIdx.x) / across * HEIGHT;
    const bool sparse = patches.backward && patches.stride == 2;
    int taps = 0;
    {
        const int even = sparse ? (bins + 1) / 2 : bins;
        const int number = first + int(threadIdx.x);
        int row = rows, bin = 0;
        if (number < rows * even) {
            row = number / even, bin = number % even * (sparse ? 2 : 1);
        } else if (number < rows * bins) {
            row = (number - rows * even) / (bins - even), bin = (number - rows * even) % (bins - even) * 2 + 1;
        }
#pragma unroll
        for (int i = 0; i < SIDE; ++i) {
            const int source_row = row < rows ? source.table[SIDE * row + i] : -1;
            source_rows[i * HEIGHT + threadIdx.x] = source_row;
#pragma unroll
            for (int j = 0; j < SIDE; ++j) {
                const int source_bin = patches.source(bin, j);
                const bool inside = source_row >= 0 && source_bin >= 0 && source_bin < source.bins;
                taps |= int(__any_sync(FULL_WARP, inside)) << (SIDE * i + j);
            }
        }
        bin_of[threadIdx.x] = bin;
        target_of[threadIdx.x] = row < rows ? row * bins + bin : -1;
        if (lane_index() == 0) taps_of_warp[threadIdx.x / WARP] = taps;
        barrier();
#pragma unroll
        for (int warp = 0; warp < THREADS / WARP; ++warp) taps |= taps_of_warp[warp];
    }

    const int stages = padded / DEPTH;
    // A stage of one tap that no position has is nothing but zeros.
    const int per_tap = source.channels % DEPTH == 0 ? source.channels / DEPTH : 0;
    const auto from = [=](int stage) {
        while (per_tap && stage < per_tap * TAPS && !(taps >> stage / per_tap & 1)) ++stage;
        return per_tap && stage >= per_tap * TAPS ? stages : stage;
    };
    const int warp = threadIdx.x / WARP, first_row = warp / ACROSS * WARP_HEIGHT, first_column = warp % ACROSS * WARP_WIDTH;
    Gather<Arithmetic, HEIGHT, THREADS, ELEMENTS> left(source, patches, source_rows, bin_of);
    Weights<Arithmetic, WIDTH, THREADS> right(weights, padded, column, output.columns);
    Sums sums(first_row, first_column);
    int number = from(0);
    bool begun = false;
    for (unsigned char *stage = shared, *last = shared + STAGE;;) {
        const bool more = number < stages;
        if (more) {
            left.load(number);
            // Whoever read this buffer, a stage ago, did so before the last barrier.
            right.copy(stage + HEIGHT * ROW_BYTES, number);
        }
        if (begun) sums.add(last, last + HEIGHT * ROW_BYTES);
        if (!more) break;
        left.store(stage);
        copy_async_wait<0>();
        barrier();
        begun = true;
        number = from(number + 1);
        unsigned char *const free = last;
        last = stage;
        stage = free;
    }

    barrier();
    float *strip = reinterpret_cast<float *>(shared) + warp * STRIP_ROWS * PITCH;
    // As write_sums, but that a row goes to its target.
#pragma unroll 1
    for (int i = 0; i < Sums::STRIPS; ++i) {
#pragma unroll
        for (int known = 0; known < Sums::STRIPS; ++known) {
            if (known == i) sums.write(known, strip, PITCH);
        }
        __syncwarp();
        const int *targets = target_of + first_row + STRIP_ROWS * i;
        float *const c = static_cast<float *>(output.c);
        const int per_access = output.form & WIDE ? 4 : 1;
        for (int j = lane_index() * per_access; j < STRIP_ROWS * WARP_WIDTH; j += WARP * per_access) {
            const int target = targets[j / WARP_WIDTH], at = column + first_column + j % WARP_WIDTH;
            if (target < 0 || at >= output.columns) continue;
            const float *from_strip = strip + j / WARP_WIDTH * PITCH + j % WARP_WIDTH;
            const long long element = (long long)target * output.columns + at;
            if (output.form & WIDE) {
                float4 sum = *reinterpret_cast<const float4 *>(from_strip);
                const float4 before = output.accumulate ? Quad{element}.load(c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                sum.x = finished<float>(sum.x, output, before.x, at);
                sum.y = finished<float>(sum.y, output, before.y, at + 1);
                sum.z = finished<float>(sum.z, output, before.z, at + 2);
                sum.w = finished<float>(sum.w, output, before.w, at + 3);
                Quad{element}.store(c, sum);
            } else {
                finish(c + element, *from_strip, output, at);
            }
        }
        __syncwarp();
    }
}

// A stage of what stands transposed in memory: rows of the tile are columns there, k are positions. A thread has four neighbouring columns of
// VECTORS consecutive positions; matmul.cu's Loader says why they are shared out like that.
template <typename Arithmetic, int ROWS, int THREADS> struct Transposed {
    static constexpr int DEPTH = ROW_BYTES / Arithmetic::BYTES;
    static constexpr int VECTORS = ROWS * DEPTH / (4 * THREADS);
    static constexpr int WORDS = VECTORS * Arithmetic::BYTES / 4;
    static constexpr int PIECES = 4 / WORDS;
    static_assert(VECTORS * 4 * THREADS == ROWS * DEPTH && PIECES * WORDS == 4, "a stage is not shared out evenly");

    uint32_t values[VECTORS][4];
    int row, k, to;

    DEVICE Transposed() {
        const int thread = threadIdx.x;
        row = thread / PIECES % (ROWS / 4) * 4, k = (thread % PIECES + PIECES * (thread / (ROWS / 4 * PIECES))) * VECTORS;
        to = place(row, k * Arithmetic::BYTES / 16) + k * Arithmetic::BYTES % 16;
    }

    DEVICE void set(int i, float4 value) {
        values[i][0] = __float_as_uint(value.x), values[i][1] = __float_as_uint(value.y);
        values[i][2] = __float_as_uint(value.z), values[i][3] = __float_as_uint(value.w);
    }

    DEVICE void store(unsigned char *stage) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            uint32_t words[WORDS];
#pragma unroll
            for (int word = 0; word < WORDS; ++word) {
                if constexpr (Arithmetic::BYTES == 4) words[word] = Arithmetic::word(values[word][j]);
                else words[word] = pack_bf16(__uint_as_float(values[2 * word][j]), __uint_as_float(values[2 * word + 1][j]));
            }
            unsigned char *piece = stage + place_below(to, j);
            if constexpr (WORDS == 4) *reinterpret_cast<uint4 *>(piece) = make_uint4(words[0], words[1], words[2], words[3]);
            else if constexpr (WORDS == 2) *reinterpret_cast<uint2 *>(piece) = make_uint2(words[0], words[1]);
            else *reinterpret_cast<uint32_t *>(piece) = words[0];
        }
    }
};

// The tile [HEIGHT, WIDTH] of dw [outputs, TAPS channels], summed over a split of the positions.
template <typename Arithmetic, int HEIGHT, int WIDTH, int ACROSS, int THREADS, bool ELEMENTS>
DEVICE void weight_gradient(const Source &source, const Patches &patches, int rows, int bins, const float *dy, int outputs,
                            int split_length, float *partial_sums) {
    constexpr int WARP_HEIGHT = HEIGHT * ACROSS * WARP / THREADS, WARP_WIDTH = WIDTH / ACROSS;
    constexpr int STAGE = (HEIGHT + WIDTH) * ROW_BYTES;
    using Sums = typename Arithmetic::template Sums<WARP_HEIGHT, WARP_WIDTH>;
    using Left = Transposed<Arithmetic, HEIGHT, THREADS>;
    using Right = Transposed<Arithmetic, WIDTH, THREADS>;
    SHARED_MEMORY(unsigned char, shared);

    const Place<HEIGHT, WIDTH> block(true);
    const int columns = TAPS * source.channels;
    const int begin = block.split * split_length, end = min(rows * bins, begin + split_length);
    const int warp = threadIdx.x / WARP, first_row = warp / ACROSS * WARP_HEIGHT, first_column = warp % ACROSS * WARP_WIDTH;
    Left left;
    Right right;
    Sums sums(first_row, first_column);

    const bool quads = outputs % 4 == 0 && is_aligned(dy);
    const int output = block.row + left.row;
    // Where this thread is among the patches: its first position, and the source's row at its tap, which is asked for a stage ahead.
    const int column = block.column + right.row;
    const int tap = min(column / source.channels, TAPS - 1), channel = column - tap * source.channels;
    const bool exists = column < columns;
    int row = (begin + right.k) / bins, bin = (begin + right.k) % bins;
    const auto source_row_of = [&](int row, int tap) { return row < rows ? source.table[SIDE * row + tap / SIDE] : -1; };
    int source_row = ELEMENTS ? 0 : source_row_of(row, tap);
    const auto element = [&](int row, int bin, int column) {
        const int tap = column / source.channels, channel = column - tap * source.channels;
        if (tap >= TAPS) return 0.0f;
        const int source_row = source_row_of(row, tap), source_bin = patches.source(bin, tap % SIDE);
        if (source_row < 0 || source_bin < 0 || source_bin >= source.bins) return 0.0f;
        return source.x[((long long)source_row * source.bins + source_bin) * source.channels + channel];
    };

    int buffer = 0;
    for (int next = begin;; next += Left::DEPTH, buffer ^= 1) {
        const bool more = next < end;
        if (more) {
#pragma unroll
            for (int i = 0; i < Left::VECTORS; ++i) {
                const int position = next + left.k + i;
                float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (position < end && output < outputs) {
                    value = load_four(dy + (long long)position * outputs, output, outputs, quads);
                }
                left.set(i, value);
            }
#pragma unroll
            for (int i = 0; i < Right::VECTORS; ++i) {
                float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (next + right.k + i < end) {
                    if constexpr (ELEMENTS) {
                        value = make_float4(element(row, bin, column), element(row, bin, column + 1), element(row, bin, column + 2),
                                            element(row, bin, column + 3));
                    } else {
                        const int source_bin = patches.source(bin, tap % SIDE);
                        if (exists && source_row >= 0 && source_bin >= 0 && source_bin < source.bins) {
                            value = Quad{((long long)source_row * source.bins + source_bin) * source.channels + channel}.load(source.x);
                        }
                    }
                }
                right.set(i, value);
                if (i + 1 < Right::VECTORS && ++bin == bins) {
                    bin = 0;
                    ++row;
                    if constexpr (!ELEMENTS) source_row = source_row_of(row, tap);
                }
            }
            bin += Right::DEPTH - Right::VECTORS + 1;
            row += bin / bins;
            bin %= bins;
        }
        unsigned char *const stage = shared + buffer * STAGE, *const last = shared + (buffer ^ 1) * STAGE;
        if (next > begin) sums.add(last, last + HEIGHT * ROW_BYTES);
        if (!more) break;
        if constexpr (!ELEMENTS) source_row = source_row_of(row, tap);
        // Whoever read this buffer, a stage ago, did so before the last barrier.
        left.store(stage);
        right.store(stage + HEIGHT * ROW_BYTES);
        barrier();
    }

    barrier();
    const Output sums_of_split{nullptr, columns, nullptr, outputs, columns, IDENTITY, 0, 0};
    write_sums<Arithmetic, WARP_WIDTH>(sums, shared, sums_of_split, block.row + first_row, block.column + first_column, block.split,
                                 partial_sums);
}

template <typename Arithmetic> DEVICE void lay_out(const float *weight, unsigned char *to, int outputs, int channels, int padded, int backward) {
    const int rows = backward ? channels : outputs, inner = backward ? outputs : channels, k = TAPS * inner;
    for (int i = Threads::of_launch().number; i < rows * padded; i += Threads::of_launch().count) {
        const int row = i / padded, depth = i % padded, tap = depth / inner, other = depth % inner;
        float value = 0.0f;
        if (depth < k) value = weight[(backward ? other * channels + row : row * channels + other) * TAPS + tap];
        if constexpr (Arithmetic::BYTES == 4) reinterpret_cast<uint32_t *>(to)[i] = Arithmetic::word(__float_as_uint(value));
        else reinterpret_cast<__nv_bfloat16 *>(to)[i] = __float2bfloat16_rn(value);
    }
}

// The largest of up to four, and which it is: the first of equals.
struct Largest {
    float value;
    int place;
    DEVICE void see(float x, int at) {
        if (place < 0 || x > value) value = x, place = at;
    }
};

// A pair of rows of the source and the row of the pooled: nothing where a sequence or a frame has ended. function(at, places): the channels `at`
// of a pooled frame, and where in the source their two by two lie, -1: nowhere.
template <typename Function> DEVICE void pooled(const int *table, int bins, int channels, bool quads, Function function) {
    const int row = blockIdx.x, first = table[SIDE * row], second = table[SIDE * row + 1];
    const int output_bins = (bins + 1) / 2, width = quads ? 4 : 1, of_bin = channels / width;
    for (int i = threadIdx.x; i < output_bins * of_bin; i += blockDim.x) {
        const int bin = i / of_bin, channel = (i - bin * of_bin) * width;
        long long places[4];
#pragma unroll
        for (int place = 0; place < 4; ++place) {
            const int source_row = place / 2 ? second : first, source_bin = 2 * bin + place % 2;
            const bool inside = source_row >= 0 && source_bin < bins;
            places[place] = inside ? ((long long)source_row * bins + source_bin) * channels + channel : -1;
        }
        function(((long long)row * output_bins + bin) * channels + channel, places);
    }
}

DEVICE Largest largest(const float *x, const long long (&places)[4], int lane) {
    Largest largest{0.0f, -1};
#pragma unroll
    for (int place = 0; place < 4; ++place) {
        if (places[place] >= 0) largest.see(x[places[place] + lane], place);
    }
    return largest;
}

// The same of four neighbouring channels.
struct FourLargest {
    Largest x, y, z, w;
    DEVICE FourLargest(const float *from, const long long (&places)[4]) : x{0.0f, -1}, y{0.0f, -1}, z{0.0f, -1}, w{0.0f, -1} {
#pragma unroll
        for (int place = 0; place < 4; ++place) {
            if (places[place] < 0) continue;
            const float4 four = Quad{places[place]}.load(from);
            x.see(four.x, place), y.see(four.y, place), z.see(four.z, place), w.see(four.w, place);
        }
    }
};

} // namespace

// table [rows, SIDE] = the source's row at each place in time of the patches of a row of `offsets`; -1: outside. A thread a row.
KERNEL(256, 4)
convolution_rows(int *table, const int *offsets, int steps, int rows, const int *source_offsets, int source_steps, int stride, int padding,
                 int backward) {
    const Patches patches{stride, padding, backward};
    for (int row = Threads::of_launch().number; row < rows; row += Threads::of_launch().count) {
        int time = 0, beyond = steps; // offsets[time] <= row < offsets[beyond]
        while (beyond - time > 1) {
            const int middle = time + (beyond - time) / 2;
            if (offsets[middle] <= row) time = middle;
            else beyond = middle;
        }
        const int sequence = row - offsets[time];
#pragma unroll
        for (int place = 0; place < SIDE; ++place) {
            const int at = patches.source(time, place);
            int source_row = -1;
            if (at >= 0 && at < source_steps) {
                source_row = source_offsets[at] + sequence;
                if (source_row >= source_offsets[at + 1]) source_row = -1;
            }
            table[SIDE * row + place] = source_row;
        }
    }
}

EXPORT(convolution_rows);

// weight [O, C, 3, 3] as rows of `padded` elements, zeros at their ends: [O, 3, 3, C], or `backward` [C, 3, 3, O]. Any number of blocks.
#define WEIGHTS(name, Arithmetic)                                                                            \
    KERNEL(256, 4)                                                                                           \
    name(const float *weight, unsigned char *to, int outputs, int channels, int padded, int backward) {      \
        lay_out<Arithmetic>(weight, to, outputs, channels, padded, backward);                                \
    }                                                                                                        \
    EXPORT(name)

WEIGHTS(convolution_weights_f32, F32);
WEIGHTS(convolution_weights_tf32, Tf32);
WEIGHTS(convolution_weights_bf16, Bf16);

// y [rows bins, columns] = activation(patches of x  weights + bias), or y += patches  weights; rows and bins are y's. blocks: tiles of y; shared
// memory: two stages or the warps' strips, whichever is more, and (SIDE + 2) HEIGHT + THREADS / 32 integers.
#define PRODUCT(name, Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS, BLOCKS, ELEMENTS)                                                     \
    KERNEL(THREADS, BLOCKS)                                                                                                             \
    name(const float *x, const int *table, int source_bins, int channels, int stride, int padding, int backward, int rows, int bins,    \
         const unsigned char *weights, int padded, float *y, int columns, int form, const float *bias, int activation, int accumulate) { \
        product<Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS, ELEMENTS>({x, table, source_bins, channels}, {stride, padding, backward},   \
                                                                      rows, bins, weights, padded,                                      \
                                                                      {y, columns, bias, rows * bins, columns, activation, accumulate, form}); \
    }                                                                                                                                   \
    EXPORT(name)

PRODUCT(convolution_product_f32_128x64, F32, 128, 64, 1, 128, 3, false);
PRODUCT(convolution_product_f32_128x64_elements, F32, 128, 64, 1, 128, 3, true);
PRODUCT(convolution_product_tf32_128x64, Tf32, 128, 64, 2, 128, 3, false);
PRODUCT(convolution_product_tf32_128x64_elements, Tf32, 128, 64, 2, 128, 3, true);
PRODUCT(convolution_product_tf32_128x128, Tf32, 128, 128, 2, 128, 2, false);
PRODUCT(convolution_product_bf16_128x64, Bf16, 128, 64, 2, 128, 3, false);
PRODUCT(convolution_product_bf16_128x64_elements, Bf16, 128, 64, 2, 128, 3, true);
PRODUCT(convolution_product_bf16_128x128, Bf16, 128, 128, 2, 128, 2, false);

// partial_sums [splits, outputs, TAPS channels]; rows and bins are dy's. blocks: (tile rows, tile columns, splits); split_length: of the
// positions, a multiple of 32.
#define WEIGHT_GRADIENT(name, Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS, BLOCKS, ELEMENTS)                                             \
    KERNEL(THREADS, BLOCKS)                                                                                                             \
    name(const float *x, const int *table, int source_bins, int channels, int stride, int padding, int rows, int bins, const float *dy, \
         int outputs, int split_length, float *partial_sums) {                                                                          \
        weight_gradient<Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS, ELEMENTS>({x, table, source_bins, channels}, {stride, padding, 0},  \
                                                                              rows, bins, dy, outputs, split_length, partial_sums);     \
    }                                                                                                                                   \
    EXPORT(name)

WEIGHT_GRADIENT(convolution_weight_gradient_f32_64x64, F32, 64, 64, 1, 64, 6, false);
WEIGHT_GRADIENT(convolution_weight_gradient_f32_64x64_elements, F32, 64, 64, 1, 64, 6, true);
WEIGHT_GRADIENT(convolution_weight_gradient_tf32_64x64, Tf32, 64, 64, 2, 128, 4, false);
WEIGHT_GRADIENT(convolution_weight_gradient_tf32_64x64_elements, Tf32, 64, 64, 2, 128, 4, true);
WEIGHT_GRADIENT(convolution_weight_gradient_tf32_128x128, Tf32, 128, 128, 2, 128, 2, false);
WEIGHT_GRADIENT(convolution_weight_gradient_bf16_64x64, Bf16, 64, 64, 2, 128, 4, false);
WEIGHT_GRADIENT(convolution_weight_gradient_bf16_64x64_elements, Bf16, 64, 64, 2, 128, 4, true);
WEIGHT_GRADIENT(convolution_weight_gradient_bf16_128x128, Bf16, 128, 128, 2, 128, 2, false);

// dw [outputs, channels, TAPS] = or += the splits' sums [splits, outputs, TAPS, channels], added in their order. Any number of blocks.
KERNEL(256, 4)
convolution_sum(const float *partial_sums, int splits, float *dw, int outputs, int channels, int accumulate) {
    const int elements = outputs * TAPS * channels;
    for (int i = Threads::of_launch().number; i < elements; i += Threads::of_launch().count) {
        float sum = partial_sums[i];
#pragma unroll 4
        for (int split = 1; split < splits; ++split) sum += partial_sums[(long long)split * elements + i];
        const int output = i / (TAPS * channels), tap = i / channels % TAPS, channel = i % channels;
        float *to = dw + (output * channels + channel) * TAPS + tap;
        *to = accumulate ? *to + sum : sum;
    }
}

EXPORT(convolution_sum);

// y [rows, ceil(bins / 2), channels] = the largest of two by two; table: of patches of stride 2 without padding. A block a row.
KERNEL(256, 6)
convolution_pool(float *y, const float *x, const int *table, int bins, int channels) {
    const bool quads = channels % 4 == 0 && are_aligned(x, y);
    pooled(table, bins, channels, quads, [=](long long at, const long long(&places)[4]) {
        if (quads) {
            const FourLargest four(x, places);
            Quad{at}.store(y, make_float4(four.x.value, four.y.value, four.z.value, four.w.value));
        } else {
            y[at] = largest(x, places, 0).value;
        }
    });
}

EXPORT(convolution_pool);

// dx = dy where x is the largest of its two by two, the first of equals, else 0: every element of x is in one of them.
KERNEL(256, 6)
convolution_pool_backward(float *dx, const float *x, const float *dy, const int *table, int bins, int channels) {
    const bool quads = channels % 4 == 0 && are_aligned(x, dx, dy);
    pooled(table, bins, channels, quads, [=](long long at, const long long(&places)[4]) {
        if (quads) {
            const FourLargest four(x, places);
            const float4 slope = Quad{at}.load(dy);
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                if (places[place] < 0) continue;
                Quad{places[place]}.store(dx, make_float4(four.x.place == place ? slope.x : 0.0f, four.y.place == place ? slope.y : 0.0f,
                                                          four.z.place == place ? slope.z : 0.0f, four.w.place == place ? slope.w : 0.0f));
            }
        } else {
            const Largest one = largest(x, places, 0);
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                if (places[place] >= 0) dx[places[place]] = one.place == place ? dy[at] : 0.0f;
            }
        }
    });
}

EXPORT(convolution_pool_backward);

// y [frames, columns, rows] = x [frames, rows, columns], by way of shared memory, [32, 33] floats. blocks: frames times tiles of 32 by 32.
KERNEL(256, 6)
convolution_exchange(float *y, const float *x, int rows, int columns) {
    SHARED_MEMORY(float, tile);
    const int down = (rows + WARP - 1) / WARP, across = (columns + WARP - 1) / WARP;
    const int block = blockIdx.x % (down * across), row = block / across * WARP, column = block % across * WARP;
    const long long frame = (long long)(blockIdx.x / (down * across)) * rows * columns;
    const int lane = threadIdx.x % WARP;
    for (int i = threadIdx.x / WARP; i < WARP; i += 256 / WARP) {
        if (row + i < rows && column + lane < columns) tile[i * (WARP + 1) + lane] = x[frame + (row + i) * columns + column + lane];
    }
    barrier();
    for (int i = threadIdx.x / WARP; i < WARP; i += 256 / WARP) {
        if (column + i < columns && row + lane < rows) y[frame + (column + i) * rows + row + lane] = tile[lane * (WARP + 1) + i];
    }
}

EXPORT(convolution_exchange);
