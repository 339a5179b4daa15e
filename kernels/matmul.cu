// Matrix products: c [m, n] = activation(a [m, k] b [k, n] + bias [n]), or with + c before the bias; f32 sums and an f32 c.
//
// Operands are f32, or bf16 where the products are bf16 (frozen weights), with k or the other index contiguous: all four
// combinations of a training step. Three arithmetics: exact f32 (FFMA), tf32 and bf16 on the tensor cores (mma.sync).
//
// Counted, for f32 operands: 2 m n k operations; 4 (m k + k n + m n) bytes of device memory, c twice if it is added to. An H200 has 67
// (f32), 495 (tf32) and 990 (bf16) TFLOP/s and 4.8 TB/s by its data sheet; mma.sync is known to reach about two thirds of the latter two. The
// floor is the larger of the two quotients:
//
//   12000 x 2560 x 640   (input projections)    39 GFLOP    160 MB: 33 us of memory;  f32 590 us, tf32 79 us, bf16 40 us of arithmetic
//   5600 x 33278 x 400   (logits)              149 GFLOP    810 MB: 168 us of memory; f32 2.2 ms, tf32 300 us, bf16 150 us
//   1280 x 640 x 12000   (weight gradient)      20 GFLOP     97 MB: 20 us of memory;  f32 290 us, tf32 40 us, bf16 20 us
//
// Between memory and tensor cores lies the L2 cache, and with f32 operands it bounds bf16: a block's tile [M, N] reads 4 (M + N) bytes for
// M N products, so 990 TFLOP/s would take 31 TB/s with 128 x 128 and 23 TB/s with 256 x 128, where the cache gives 6 or so. Hence the 256 x 128
// tile, hence no wgmma: its rate could not be fed. bf16 operands halve those bytes.
//
// Design. Operands are staged in shared memory in ONE form whatever their type and layout: rows of 64 bytes along k (16 f32 or tf32, 32
// bf16), so that one inner loop serves every case, and a tensor-core step is 32 bytes of each row for either type. The way there leads through
// registers: 16-byte loads of the next stage are in flight while this one is multiplied; then they are rounded, transposed if need be, and
// stored, once per element. (cp.async would go around the registers; but raw f32 in shared memory doubles the traffic of the fragments, which are
// read several times and bound the loop next, and it cannot transpose.) Two buffers, one barrier a stage.
//
// The 16-byte chunks of a staged row are permuted (`place`), so that all three accesses are free of bank conflicts: eight consecutive rows at the
// same chunk (ldmatrix, FFMA), two whole neighbouring rows (storing what was contiguous along k), and every fourth row at the same chunk
// (storing what was transposed).
//
// A c with few tiles and a long k (weight gradients) is split along k: every split writes its sums to the workspace, matmul_sum adds them in
// order. Every sum runs over k ascending, whatever the tile, so the bits depend on the shape and the splits alone.
//
// Not yet measured on a GPU.
#include "tile.cuh"

namespace {

// How an operand lies in memory; src/backend/cuda/matmul.rs makes these.
constexpr int WIDTH_MASK = 7;         // elements that a load may take at once, by alignment and extents: 1, 2 or 4
constexpr int CONTIGUOUS_ALONG_K = 8; // else along the other index
constexpr int STORED_AS_BF16 = 16;

enum Activation { IDENTITY, TANH, SIGMOID, RELU };

constexpr int ROW_BYTES = 64;
constexpr int STRIP_ROWS = 16; // of a warp's sums that go through shared memory at a time

// What is added to a row's place: an involution on the eight chunks of a pair of rows, linear in the row's bits, so that the place of row + s
// follows from that of a row that has none of s's bits.
DEVICE constexpr int permutation(int row) {
    return ((row & 1) << 2 ^ ((row >> 1 ^ row >> 3) & 1) ^ (row >> 2 & 1) << 1 ^ (row >> 4 & 1) << 2) << 4;
}
DEVICE constexpr int place(int row, int chunk) { return (row / 2) * (2 * ROW_BYTES) + (chunk * 16 ^ permutation(row)); }
DEVICE constexpr int place_below(int place, int s) { return (place ^ permutation(s)) + (s / 2) * (2 * ROW_BYTES); }

struct Operand {
    const unsigned char *data;
    long long stride; // in elements, between neighbours along the index that is not contiguous
    int form;
    int rows; // m or n: how many there are beside k
};

// One operand's way to shared memory: ROWS rows of a stage, shared out among THREADS threads. A thread has VECTORS vectors of four elements,
// `step` bytes apart: contiguous along k, of rows ROW_STEP apart; else of so many consecutive k, for the same four rows.
template <typename Arithmetic, int ROWS, int THREADS> struct Loader {
    static constexpr int DEPTH = ROW_BYTES / Arithmetic::BYTES; // k of a stage
    static constexpr int VECTORS = ROWS * DEPTH / (4 * THREADS);
    static constexpr int ALONG_K = DEPTH / 4; // vectors in a row, contiguous along k
    static constexpr int ROW_STEP = THREADS / ALONG_K;
    static constexpr int WORDS = VECTORS * Arithmetic::BYTES / 4; // that a thread stores in each of its four rows, transposed
    static constexpr int PIECES = 4 / WORDS;                   // threads that fill a chunk together, transposed
    static_assert(VECTORS * 4 * THREADS == ROWS * DEPTH && PIECES * WORDS == 4 && ROWS % 32 == 0, "a stage is not shared out evenly");

    uint32_t values[VECTORS][4]; // as loaded: four f32, or four bf16 in the first two words
    const Operand operand; // the kernel's arguments, which take no registers
    const unsigned char *from;
    int left;   // of k, from the first vector on
    int across; // contiguous along k: bit i says that vector i's row exists; else how many of the four rows exist
    int to;

    DEVICE Loader(const Operand &operand, int first_row, int begin, int end) : operand(operand) {
        const int thread = threadIdx.x, form = operand.form;
        const long long stride = operand.stride, size = bytes();
        int row, k;
        if (form & CONTIGUOUS_ALONG_K) {
            row = thread / ALONG_K, k = thread % ALONG_K * 4;
            across = 0;
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) across |= int(first_row + row + i * ROW_STEP < operand.rows) << i;
            from = operand.data + ((first_row + row) * stride + begin + k) * size;
        } else {
            // The threads that fill a chunk together are neighbours, then come eight groups of four rows: see the head for why.
            row = thread / PIECES % (ROWS / 4) * 4, k = (thread % PIECES + PIECES * (thread / (ROWS / 4 * PIECES))) * VECTORS;
            across = operand.rows - first_row - row;
            from = operand.data + ((begin + k) * stride + first_row + row) * size;
        }
        to = place(row, k * Arithmetic::BYTES / 16) + k * Arithmetic::BYTES % 16;
        left = end - begin - k;
    }

    DEVICE bool stored_as_bf16() const { return Arithmetic::BYTES == 2 && operand.form & STORED_AS_BF16; }
    DEVICE int bytes() const { return stored_as_bf16() ? 2 : 4; }

    // Asks for the next stage.
    DEVICE void load() {
        const int width = operand.form & WIDTH_MASK;
        if (stored_as_bf16()) {
            if (width == 4) load_as<4, true>();
            else if (width == 2) load_as<2, true>();
            else load_as<1, true>();
        } else {
            if (width == 4) load_as<4, false>();
            else if (width == 2) load_as<2, false>();
            else load_as<1, false>();
        }
        left -= DEPTH;
        from += DEPTH * bytes() * (operand.form & CONTIGUOUS_ALONG_K ? 1 : operand.stride);
    }

    template <int WIDTH, bool BF16> DEVICE void load_as() {
        const bool along_k = operand.form & CONTIGUOUS_ALONG_K;
        const long long step = operand.stride * ((along_k ? ROW_STEP : 1) * bytes());
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            // How many of the four elements exist: a multiple of WIDTH, or more than four.
            const int count = along_k ? (across >> i & 1 ? left : 0) : (i < left ? across : 0);
            const unsigned char *vector = from + i * step;
            uint32_t(&value)[4] = values[i];
            value[0] = value[1] = value[2] = value[3] = 0;
            if (WIDTH == 4 && !BF16) {
                if (count > 0) {
                    const uint4 four = *reinterpret_cast<const uint4 *>(vector);
                    value[0] = four.x, value[1] = four.y, value[2] = four.z, value[3] = four.w;
                }
            } else if (WIDTH == 4 || (WIDTH == 2 && !BF16)) {
#pragma unroll
                for (int j = 0; j < (BF16 ? 1 : 2); ++j) {
                    if (count > 2 * j) {
                        const uint2 two = reinterpret_cast<const uint2 *>(vector)[j];
                        value[2 * j] = two.x, value[2 * j + 1] = two.y;
                    }
                }
            } else if (WIDTH == 2 || !BF16) {
#pragma unroll
                for (int j = 0; j < (BF16 ? 2 : 4); ++j) {
                    if (count > (BF16 ? 2 : 1) * j) value[j] = reinterpret_cast<const uint32_t *>(vector)[j];
                }
            } else {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (count > j) value[j / 2] |= uint32_t(reinterpret_cast<const uint16_t *>(vector)[j]) << 16 * (j % 2);
                }
            }
        }
    }

    // Two neighbours along k in shared memory, of bf16: elements j of vector i and l of vector h.
    DEVICE uint32_t pair(int i, int j, int h, int l) const {
        if (stored_as_bf16()) {
            const uint32_t low = values[i][j / 2] >> 16 * (j % 2), high = values[h][l / 2] >> 16 * (l % 2);
            return (low & 0xffffu) | high << 16;
        }
        return pack_bf16(__uint_as_float(values[i][j]), __uint_as_float(values[h][l]));
    }

    // Waits for what was loaded and stores it.
    DEVICE void store(unsigned char *stage) const {
        if (operand.form & CONTIGUOUS_ALONG_K) {
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                unsigned char *chunk = stage + place_below(to, i * ROW_STEP);
                if constexpr (Arithmetic::BYTES == 4) {
                    *reinterpret_cast<uint4 *>(chunk) = make_uint4(Arithmetic::word(values[i][0]), Arithmetic::word(values[i][1]),
                                                                   Arithmetic::word(values[i][2]), Arithmetic::word(values[i][3]));
                } else {
                    *reinterpret_cast<uint2 *>(chunk) = make_uint2(pair(i, 0, i, 1), pair(i, 2, i, 3));
                }
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t words[WORDS];
#pragma unroll
                for (int word = 0; word < WORDS; ++word) {
                    if constexpr (Arithmetic::BYTES == 4) words[word] = Arithmetic::word(values[word][j]);
                    else words[word] = pair(2 * word, j, 2 * word + 1, j);
                }
                unsigned char *piece = stage + place_below(to, j);
                if constexpr (WORDS == 4) *reinterpret_cast<uint4 *>(piece) = make_uint4(words[0], words[1], words[2], words[3]);
                else if constexpr (WORDS == 2) *reinterpret_cast<uint2 *>(piece) = make_uint2(words[0], words[1]);
                else *reinterpret_cast<uint32_t *>(piece) = words[0];
            }
        }
    }
};

// The sums of a warp's part of a tile, [HEIGHT, WIDTH], on tensor cores.
template <typename A, typename B, int HEIGHT, int WIDTH> struct TensorSums {
    static constexpr int STRIPS = HEIGHT / STRIP_ROWS;
    FragmentC sums[STRIPS][WIDTH / 8];
    int left_place, right_place;

    DEVICE TensorSums(int first_row, int first_column) {
#pragma unroll
        for (int i = 0; i < STRIPS; ++i) {
#pragma unroll
            for (int j = 0; j < WIDTH / 8; ++j) sums[i][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
        }
        // Lanes 0 to 15 point at 16 rows' first 16 bytes, lanes 16 to 31 at the next 16 bytes.
        left_place = place(first_row + lane_index() % 16, lane_index() / 16);
        right_place = place(first_column + lane_index() % 16, lane_index() / 16);
    }

    DEVICE void add(const unsigned char *left, const unsigned char *right) {
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk += 2) {
            B b[WIDTH / 8];
#pragma unroll
            for (int j = 0; j < WIDTH / 16; ++j) {
                uint32_t both[4];
                ldmatrix_x4(both, right + place_below(right_place ^ chunk * 16, 16 * j));
                b[2 * j].x[0] = both[0], b[2 * j].x[1] = both[2];
                b[2 * j + 1].x[0] = both[1], b[2 * j + 1].x[1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < STRIPS; ++i) {
                A a;
                ldmatrix_x4(a.x, left + place_below(left_place ^ chunk * 16, 16 * i));
#pragma unroll
                for (int j = 0; j < WIDTH / 8; ++j) mma(sums[i][j], a, b[j]);
            }
        }
    }

    // Rows 16 i to 16 i + 15, `pitch` floats apart.
    DEVICE void write(int i, float *strip, int pitch) const {
#pragma unroll
        for (int j = 0; j < WIDTH / 8; ++j) {
#pragma unroll
            for (int half = 0; half < 4; half += 2) {
                float *to = strip + FragmentC::row(half) * pitch + 8 * j + FragmentC::column(half);
                *reinterpret_cast<float2 *>(to) = make_float2(sums[i][j].x[half], sums[i][j].x[half + 1]);
            }
        }
    }
};

// The same in exact f32: a lane has rows 4 apart and columns 8 apart, so that eight lanes read eight neighbouring rows. Neighbouring lanes share
// rows, every second one columns: 16-byte loads of shared memory are served by half warps only if they meet in pairs like that.
template <int HEIGHT, int WIDTH> struct ExactSums {
    static_assert(HEIGHT == 32 && WIDTH == 64, "a lane has 8 x 8 sums");
    static constexpr int STRIPS = HEIGHT / STRIP_ROWS;
    float sums[8][8];
    int left_place, right_place;

    DEVICE ExactSums(int first_row, int first_column) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[i][j] = 0.0f;
        }
        left_place = place(first_row + row(), 0);
        right_place = place(first_column + column(), 0);
    }

    static DEVICE int row() { return (lane_index() >> 1 & 1) | (lane_index() >> 3 & 2); }
    static DEVICE int column() { return (lane_index() & 1) | (lane_index() >> 1 & 6); }

    DEVICE void add(const unsigned char *left, const unsigned char *right) {
        // Not unrolled: the loads of several chunks at once would take more registers than there are.
#pragma unroll 1
        for (int chunk = 0; chunk < 4; ++chunk) {
            float4 a[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i] = *reinterpret_cast<const float4 *>(left + place_below(left_place ^ chunk * 16, 4 * i));
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float4 b = *reinterpret_cast<const float4 *>(right + place_below(right_place ^ chunk * 16, 8 * j));
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    float sum = sums[i][j];
                    sum += a[i].x * b.x;
                    sum += a[i].y * b.y;
                    sum += a[i].z * b.z;
                    sum += a[i].w * b.w;
                    sums[i][j] = sum;
                }
            }
        }
    }

    DEVICE void write(int strip_number, float *strip, int pitch) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                strip[(row() + 4 * i) * pitch + column() + 8 * j] = sums[4 * strip_number + i][j];
            }
        }
    }
};

// What an arithmetic makes of the operands in shared memory, and of a warp's [HEIGHT, WIDTH] sums.
struct F32 {
    static constexpr int BYTES = 4;
    static DEVICE uint32_t word(uint32_t value) { return value; }
    template <int HEIGHT, int WIDTH> using Sums = ExactSums<HEIGHT, WIDTH>;
};

struct Tf32 {
    static constexpr int BYTES = 4;
    static DEVICE uint32_t word(uint32_t value) { return to_tf32(__uint_as_float(value)); }
    template <int HEIGHT, int WIDTH> using Sums = TensorSums<FragmentA_tf32, FragmentB_tf32, HEIGHT, WIDTH>;
};

struct Bf16 {
    static constexpr int BYTES = 2;
    template <int HEIGHT, int WIDTH> using Sums = TensorSums<FragmentA_bf16, FragmentB_bf16, HEIGHT, WIDTH>;
};

struct Output {
    float *c;
    long long stride;
    const float *bias; // or null
    int rows, columns;
    int activation;
    int accumulate;
    int wide; // whether rows begin, and end, at multiples of 16 bytes
};

DEVICE float activate(float x, int activation) {
    if (activation == TANH) return tanhf(x);
    if (activation == SIGMOID) return sigmoid(x);
    if (activation == RELU) return x < 0.0f ? 0.0f : x; // so that a NaN stays one
    return x;
}

DEVICE float finished(float sum, const Output &output, float before, int column) {
    sum += before;
    if (output.bias) sum += output.bias[column];
    return activate(sum, output.activation);
}

// Writes a strip of sums, [STRIP_ROWS, WIDTH] in shared memory, to its place: a warp writes whole rows of it.
template <int WIDTH, int PITCH> DEVICE void write_strip(const float *strip, const Output &output, int first_row, int first_column) {
    if (output.wide) {
        for (int i = lane_index(); i < STRIP_ROWS * WIDTH / 4; i += WARP) {
            const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
            if (first_row + row >= output.rows || first_column + column >= output.columns) continue;
            float4 sums = *reinterpret_cast<const float4 *>(strip + row * PITCH + column);
            const int j = first_column + column;
            float4 *to = reinterpret_cast<float4 *>(output.c + (first_row + row) * output.stride + j);
            const float4 before = output.accumulate ? *to : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            sums.x = finished(sums.x, output, before.x, j);
            sums.y = finished(sums.y, output, before.y, j + 1);
            sums.z = finished(sums.z, output, before.z, j + 2);
            sums.w = finished(sums.w, output, before.w, j + 3);
            *to = sums;
        }
    } else {
        for (int i = lane_index(); i < STRIP_ROWS * WIDTH; i += WARP) {
            const int row = i / WIDTH, column = i % WIDTH;
            if (first_row + row >= output.rows || first_column + column >= output.columns) continue;
            float *to = output.c + (first_row + row) * output.stride + first_column + column;
            *to = finished(strip[row * PITCH + column], output, output.accumulate ? *to : 0.0f, first_column + column);
        }
    }
}

// HEIGHT and WIDTH are a block's tile, in which ACROSS warps lie side by side.
template <typename Arithmetic, int HEIGHT, int WIDTH, int ACROSS, int THREADS>
DEVICE void product(const Operand &a, const Operand &b, const Output &c, int k, int split_length, float *partial_sums) {
    constexpr int WARPS_DOWN = THREADS / WARP / ACROSS, WARP_HEIGHT = HEIGHT / WARPS_DOWN, WARP_WIDTH = WIDTH / ACROSS;
    using Sums = typename Arithmetic::template Sums<WARP_HEIGHT, WARP_WIDTH>;
    constexpr int STAGE = (HEIGHT + WIDTH) * ROW_BYTES;
    // The rest of a pitch by 32 banks is 8: four rows of two floats, and four of one, do not meet.
    constexpr int PITCH = WARP_WIDTH + 8;
    SHARED_MEMORY(unsigned char, shared);

    // Without splits, z counts bands of tile rows: blocks that run at the same time share operands in the L2 cache.
    const int split = partial_sums ? blockIdx.z : 0;
    const int tile_row = (partial_sums ? 0 : blockIdx.z * gridDim.x) + blockIdx.x, tile_column = blockIdx.y;
    if (tile_row * HEIGHT >= c.rows) return;
    const int begin = split * split_length, end = min(k, begin + split_length);
    const int warp = threadIdx.x / WARP, first_row = warp / ACROSS * WARP_HEIGHT, first_column = warp % ACROSS * WARP_WIDTH;
    Loader<Arithmetic, HEIGHT, THREADS> left(a, tile_row * HEIGHT, begin, end);
    Loader<Arithmetic, WIDTH, THREADS> right(b, tile_column * WIDTH, begin, end);
    Sums sums(first_row, first_column);

    for (int next = begin;; next += left.DEPTH) {
        const bool more = next < end;
        if (more) {
            left.load();
            right.load();
        }
        unsigned char *const stage = shared + (next & left.DEPTH ? STAGE : 0), *const last = shared + (next & left.DEPTH ? 0 : STAGE);
        if (next > begin) sums.add(last, last + HEIGHT * ROW_BYTES);
        if (!more) break;
        // Whoever read this buffer, a stage ago, did so before the last barrier.
        left.store(stage);
        right.store(stage + HEIGHT * ROW_BYTES);
        barrier();
    }

    barrier();
    Output output = c;
    if (partial_sums) {
        output.c = partial_sums + split * ((long long)c.rows * c.columns);
        output.stride = c.columns;
        output.bias = nullptr;
        output.activation = IDENTITY;
        output.accumulate = 0;
        output.wide = c.columns % 4 == 0;
    }
    float *strip = reinterpret_cast<float *>(shared) + warp * STRIP_ROWS * PITCH;
    // One loop for the strips, not unrolled: its code is long, and which registers a strip is in is all that has to be known.
#pragma unroll 1
    for (int i = 0; i < Sums::STRIPS; ++i) {
#pragma unroll
        for (int known = 0; known < Sums::STRIPS; ++known) {
            if (known == i) sums.write(known, strip, PITCH);
        }
        __syncwarp();
        write_strip<WARP_WIDTH, PITCH>(strip, output, tile_row * HEIGHT + first_row + STRIP_ROWS * i, tile_column * WIDTH + first_column);
        __syncwarp();
    }
}

} // namespace

// blocks: (tile rows of a band, tile columns, bands), or with splits (tile rows, tile columns, splits); shared memory: two stages, or the strips of all warps, whichever is more.
// split_length: of k, a multiple of 32; partial_sums: null, or [splits, m, n] that matmul_sum makes c of.
#define PRODUCT(name, Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS, BLOCKS)                                                               \
    KERNEL(THREADS, BLOCKS)                                                                                                             \
    name(const unsigned char *a, long long a_stride, int a_form, const unsigned char *b, long long b_stride, int b_form, float *c,      \
         long long c_stride, int wide, int m, int n, int k, int split_length, float *partial_sums, const float *bias, int activation,   \
         int accumulate) {                                                                                                              \
        product<Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS>({a, a_stride, a_form, m}, {b, b_stride, b_form, n},                         \
                                                            {c, c_stride, bias, m, n, activation, accumulate, wide}, k, split_length,   \
                                                            partial_sums);                                                              \
    }                                                                                                                                   \
    EXPORT(name)

// Registers set the tiles: 128 x 128 leaves room for a second block, whose arithmetic covers the first one's barriers; 256 x 128 needs a
// multiprocessor's registers for itself. A fragment is read by one warp in every row or column of them, so warps are 64 x 64 where they can be.
PRODUCT(matmul_f32_128x64, F32, 128, 64, 1, 128, 3);
PRODUCT(matmul_f32_64x64, F32, 64, 64, 1, 64, 6);
PRODUCT(matmul_tf32_256x128, Tf32, 256, 128, 2, 256, 1);
PRODUCT(matmul_tf32_128x128, Tf32, 128, 128, 2, 128, 2);
PRODUCT(matmul_tf32_64x64, Tf32, 64, 64, 2, 128, 4);
PRODUCT(matmul_bf16_256x128, Bf16, 256, 128, 2, 256, 1);
PRODUCT(matmul_bf16_128x128, Bf16, 128, 128, 2, 128, 2);
PRODUCT(matmul_bf16_64x64, Bf16, 64, 64, 2, 128, 4);

// c [m, n] of the splits' sums [splits, m, n], added in their order. One thread an element, any number of blocks; m n < 2^31.
KERNEL(256, 4)
matmul_sum(const float *partial_sums, int splits, float *c, long long c_stride, int m, int n, const float *bias, int activation, int accumulate) {
    const Output output{c, c_stride, bias, m, n, activation, accumulate, 0};
    const int elements = m * n;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        float sum = partial_sums[i];
        for (int split = 1; split < splits; ++split) sum += partial_sums[(long long)split * elements + i];
        const int row = i / n, column = i % n;
        float *to = c + row * c_stride + column;
        *to = finished(sum, output, accumulate ? *to : 0.0f, column);
    }
}

EXPORT(matmul_sum);
