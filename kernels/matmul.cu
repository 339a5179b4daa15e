// Matrix products: c [m, n] = activation(a [m, k] b [k, n] + bias [n]), or with + c before the bias; f32 sums.
//
// Operands and c are f32, or bf16 where the products are bf16 (a language model's logits and their gradient), operands with k or the other
// index contiguous: all four combinations of a training step. Three arithmetics: exact f32 (FFMA), tf32 and bf16 on the tensor cores (mma.sync).
//
// Counted, for f32 operands: 2 m n k operations; 4 (m k + k n + m n) bytes of device memory, c twice if it is added to. An H200 has 67
// (f32), 495 (tf32) and 990 (bf16) TFLOP/s and 4.8 TB/s by its data sheet; mma.sync is known to reach about two thirds of the latter two.
// The floor is the larger of the two quotients:
//
//   12000 x 2560 x 640   (input projections)    39 GFLOP    160 MB: 33 us of memory;  f32 590 us, tf32 79 us, bf16 40 us of arithmetic
//   5600 x 33278 x 400   (logits)              149 GFLOP    810 MB: 168 us of memory; f32 2.2 ms, tf32 300 us, bf16 150 us
//   1280 x 640 x 12000   (weight gradient)      20 GFLOP     95 MB: 20 us of memory;  f32 290 us, tf32 40 us, bf16 20 us
//
// Between memory and tensor cores lies the L2 cache: a block's tile [M, N] reads 4 (M + N) bytes of f32 for M N products, which at 990
// TFLOP/s would be 31 TB/s with 128 x 128 and 23 TB/s with 256 x 128, where the cache gives 7 or so. Hence the 256 x 128 tile, and hence
// packing, for 6 bytes of memory per element (8 for tf32) and two launches.
//
// Design. Operands are staged in shared memory in ONE form whatever their type and layout: rows of 64 bytes along k (16 f32 or tf32, 32
// bf16), so that one inner loop serves every case, and a tensor-core step is 32 bytes of each row for either type. Two ways lead there:
//
// - `product`, through registers: 16-byte loads of the next stage are in flight while this one is multiplied; then they are rounded,
//   transposed if need be, and stored, once per element. Two buffers, one barrier a stage. (Asynchronous copies can do neither, and raw f32
//   in shared memory would double the traffic of the fragments, which are read several times and bound the loop next.)
// - `packed_product`, for large products: a first pass (matmul_pack) rounds the operands, makes them rows of k and pads them, in the
//   workspace. Then asynchronous copies go straight to shared memory, three stages ahead of the arithmetic, with no masks and no registers
//   between. bf16 packed are half the bytes of f32, for device memory and cache.
//
// The 16-byte chunks of a staged row are permuted (`place`), so that all three accesses are free of bank conflicts: eight consecutive
// rows at the same chunk (ldmatrix, FFMA), two whole neighbouring rows (storing what was contiguous along k), and every fourth row at the
// same chunk (storing what was transposed).
//
// A c with few tiles and a long k (weight gradients) is split along k: every split writes its sums to the workspace, matmul_sum adds them
// in order. Every sum runs over k ascending, whatever the tile, so the bits depend on the shape and the splits alone.
//
// tensor cores: matmul_tf32_*, matmul_bf16_*
//
// Not yet measured on a GPU.
#include "async.cuh"
#include "matmul_tile.cuh"

namespace {

// How an operand lies in memory; src/backend/cuda/matmul.rs makes these.
constexpr int WIDTH_MASK = 7;         // elements that a load may take at once, by alignment and extents: 1, 2 or 4
constexpr int CONTIGUOUS_ALONG_K = 8; // else along the other index
constexpr int STORED_AS_BF16 = 16;

struct Operand {
    const unsigned char *data;
    long long stride; // in elements, between neighbours along the index that is not contiguous
    int form;
    int rows; // m or n: how many there are beside k
};

// One operand's way to shared memory: ROWS rows of a stage, shared out among THREADS threads. A thread has VECTORS vectors of four
// elements, `step` bytes apart: contiguous along k, of rows ROW_STEP apart; else of so many consecutive k, for the same four rows.
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

// HEIGHT and WIDTH are a block's tile, in which ACROSS warps lie side by side.
template <typename Arithmetic, int HEIGHT, int WIDTH, int ACROSS, int THREADS>
DEVICE void product(const Operand &a, const Operand &b, const Output &c, int k, int split_length, float *partial_sums) {
    constexpr int WARP_HEIGHT = HEIGHT * ACROSS * WARP / THREADS, WARP_WIDTH = WIDTH / ACROSS;
    constexpr int STAGE = (HEIGHT + WIDTH) * ROW_BYTES;
    using Sums = typename Arithmetic::template Sums<WARP_HEIGHT, WARP_WIDTH>;
    SHARED_MEMORY(unsigned char, shared);

    const Place<HEIGHT, WIDTH> block(partial_sums);
    if (block.row >= c.rows) return;
    const int begin = block.split * split_length, end = min(k, begin + split_length);
    const int warp = threadIdx.x / WARP, first_row = warp / ACROSS * WARP_HEIGHT, first_column = warp % ACROSS * WARP_WIDTH;
    Loader<Arithmetic, HEIGHT, THREADS> left(a, block.row, begin, end);
    Loader<Arithmetic, WIDTH, THREADS> right(b, block.column, begin, end);
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
    write_sums<Arithmetic, WARP_WIDTH>(sums, shared, c, block.row + first_row, block.column + first_column, block.split, partial_sums);
}

// A packed operand's way to shared memory: rows of k, rounded, padded with zeros to whole stages. Chunks are copied past the registers,
// four threads a row.
template <int ROWS, int THREADS> struct Copier {
    static constexpr int COPIES = ROWS * ROW_BYTES / 16 / THREADS, ROW_STEP = THREADS / 4;
    static_assert(COPIES * 16 * THREADS == ROWS * ROW_BYTES && ROW_STEP % 2 == 0, "a stage is not shared out evenly");

    const unsigned char *from[COPIES];
    int to;

    DEVICE Copier(const unsigned char *data, long long row_bytes, int first_row, int rows, long long begin) {
        const int row = threadIdx.x / 4, chunk = threadIdx.x % 4;
        // Rows that do not exist are the last one: what becomes of them is not written.
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            from[i] = data + min(first_row + row + i * ROW_STEP, rows - 1) * row_bytes + begin + 16 * chunk;
        }
        to = place(row, chunk);
    }

    // Starts to copy the next stage.
    DEVICE void copy(unsigned char *stage) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            copy_async(stage + place_below(to, i * ROW_STEP), from[i]);
            from[i] += ROW_BYTES;
        }
    }
};

constexpr int COPIED_STAGES = 4;

// As `product`, of packed operands.
template <typename Arithmetic, int HEIGHT, int WIDTH, int ACROSS, int THREADS>
DEVICE void packed_product(const Operand &a, const Operand &b, const Output &c, int k, int split_length, float *partial_sums) {
    constexpr int WARP_HEIGHT = HEIGHT * ACROSS * WARP / THREADS, WARP_WIDTH = WIDTH / ACROSS;
    constexpr int STAGE = (HEIGHT + WIDTH) * ROW_BYTES;
    using Sums = typename Arithmetic::template Sums<WARP_HEIGHT, WARP_WIDTH>;
    SHARED_MEMORY(unsigned char, shared);

    const Place<HEIGHT, WIDTH> block(partial_sums);
    if (block.row >= c.rows) return;
    const long long first = (long long)block.split * split_length * Arithmetic::BYTES;
    const int stages = (min(k - block.split * split_length, split_length) * Arithmetic::BYTES + ROW_BYTES - 1) / ROW_BYTES;
    const int warp = threadIdx.x / WARP, first_row = warp / ACROSS * WARP_HEIGHT, first_column = warp % ACROSS * WARP_WIDTH;
    Copier<HEIGHT, THREADS> left(a.data, a.stride * Arithmetic::BYTES, block.row, c.rows, first);
    Copier<WIDTH, THREADS> right(b.data, b.stride * Arithmetic::BYTES, block.column, c.columns, first);
    Sums sums(first_row, first_column);

#pragma unroll
    for (int i = 0; i < COPIED_STAGES - 1; ++i) {
        if (i < stages) {
            left.copy(shared + i * STAGE);
            right.copy(shared + i * STAGE + HEIGHT * ROW_BYTES);
        }
        copy_async_commit();
    }
    unsigned char *stage = shared, *free = shared + (COPIED_STAGES - 1) * STAGE;
    for (int i = 0; i < stages; ++i) {
        // Behind the barrier this stage is whole, and nobody reads the one before any more, which is the next to be filled. A group for
        // every stage, empty at the end, keeps the count.
        copy_async_wait<COPIED_STAGES - 2>();
        barrier();
        if (i + COPIED_STAGES - 1 < stages) {
            left.copy(free);
            right.copy(free + HEIGHT * ROW_BYTES);
        }
        copy_async_commit();
        sums.add(stage, stage + HEIGHT * ROW_BYTES);
        free = stage;
        stage = stage == shared + (COPIED_STAGES - 1) * STAGE ? shared : stage + STAGE;
    }

    copy_async_wait<0>();
    barrier();
    write_sums<Arithmetic, WARP_WIDTH>(sums, shared, c, block.row + first_row, block.column + first_column, block.split, partial_sums);
}

// Rounds a matrix [rows, k] and lays it out as packed operands are: rows of k, `padded` elements apart, zeros behind k. A block makes
// [PACKED, PACKED] of it, by way of shared memory, [PACKED, PACKED + 1] floats, so that both sides are read and written along their lines.
constexpr int PACKED = 64;

template <typename Arithmetic> DEVICE void pack(const Operand &from, int k, unsigned char *to, int padded) {
    constexpr int PITCH = PACKED + 1, PER_CHUNK = 16 / Arithmetic::BYTES, CHUNKS = PACKED / PER_CHUNK;
    SHARED_MEMORY(float, tile);
    const int first_k = blockIdx.x * PACKED, first_row = blockIdx.y * PACKED;
    const bool along_k = from.form & CONTIGUOUS_ALONG_K;
#pragma unroll
    for (int i = 0; i < PACKED * PACKED / 256; ++i) {
        const int line = threadIdx.x / PACKED + i * (256 / PACKED), element = threadIdx.x % PACKED;
        const int row = along_k ? line : element, depth = along_k ? element : line;
        float value = 0.0f;
        if (first_row + row < from.rows && first_k + depth < k) {
            const long long place =
                along_k ? (first_row + row) * from.stride + first_k + depth : (first_k + depth) * from.stride + first_row + row;
            if (from.form & STORED_AS_BF16) value = bf16_low(reinterpret_cast<const uint16_t *>(from.data)[place]);
            else value = reinterpret_cast<const float *>(from.data)[place];
        }
        tile[row * PITCH + depth] = value;
    }
    barrier();
    for (int i = threadIdx.x; i < PACKED * CHUNKS; i += 256) {
        const int row = i / CHUNKS, depth = i % CHUNKS * PER_CHUNK;
        if (first_row + row >= from.rows || first_k + depth >= padded) continue;
        const float *values = tile + row * PITCH + depth;
        uint4 chunk;
        if constexpr (Arithmetic::BYTES == 2) {
            chunk = make_uint4(pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3]), pack_bf16(values[4], values[5]),
                               pack_bf16(values[6], values[7]));
        } else {
            chunk = make_uint4(to_tf32(values[0]), to_tf32(values[1]), to_tf32(values[2]), to_tf32(values[3]));
        }
        *reinterpret_cast<uint4 *>(to + ((first_row + row) * (long long)padded + first_k + depth) * Arithmetic::BYTES) = chunk;
    }
}

} // namespace

// blocks: (tile rows of a band, tile columns, bands), or with splits (tile rows, tile columns, splits); shared memory: the stages, or the
// strips of all warps, whichever is more. split_length: of k, a multiple of 32; partial_sums: null, or [splits, m, n] that matmul_sum
// makes c of.
#define PRODUCT(name, compute, Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS, BLOCKS)                                                      \
    KERNEL(THREADS, BLOCKS)                                                                                                             \
    name(const unsigned char *a, long long a_stride, int a_form, const unsigned char *b, long long b_stride, int b_form, void *c,       \
         long long c_stride, int c_form, int m, int n, int k, int split_length, float *partial_sums, const void *bias, int activation,    \
         int accumulate) {                                                                                                              \
        compute<Arithmetic, HEIGHT, WIDTH, ACROSS, THREADS>({a, a_stride, a_form, m}, {b, b_stride, b_form, n},                         \
                                                            {c, c_stride, bias, m, n, activation, accumulate, c_form}, k, split_length, \
                                                            partial_sums);                                                              \
    }                                                                                                                                   \
    EXPORT(name)

// Registers set the tiles: 128 x 128 leaves room for a second block, whose arithmetic covers the first one's barriers; 256 x 128 needs a
// multiprocessor's registers for itself. A fragment is read by one warp in every row or column of them, so warps are 64 x 64 where they
// can be.
PRODUCT(matmul_f32_128x64, product, F32, 128, 64, 1, 128, 3);
PRODUCT(matmul_f32_64x64, product, F32, 64, 64, 1, 64, 6);
PRODUCT(matmul_tf32_256x128, product, Tf32, 256, 128, 2, 256, 1);
PRODUCT(matmul_tf32_128x128, product, Tf32, 128, 128, 2, 128, 2);
PRODUCT(matmul_tf32_64x64, product, Tf32, 64, 64, 2, 128, 4);
PRODUCT(matmul_bf16_256x128, product, Bf16, 256, 128, 2, 256, 1);
PRODUCT(matmul_bf16_128x128, product, Bf16, 128, 128, 2, 128, 2);
PRODUCT(matmul_bf16_64x64, product, Bf16, 64, 64, 2, 128, 4);
PRODUCT(matmul_tf32_packed_256x128, packed_product, Tf32, 256, 128, 2, 256, 1);
PRODUCT(matmul_tf32_packed_128x128, packed_product, Tf32, 128, 128, 2, 128, 2);
PRODUCT(matmul_bf16_packed_256x128, packed_product, Bf16, 256, 128, 2, 256, 1);
PRODUCT(matmul_bf16_packed_128x128, packed_product, Bf16, 128, 128, 2, 128, 2);

// blocks: (stretches of PACKED of `padded`, of rows).
#define PACK(name, Arithmetic)                                                                                                       \
    KERNEL(256, 4)                                                                                                                      \
    name(const unsigned char *from, long long stride, int form, int rows, int k, unsigned char *to, int padded) {                       \
        pack<Arithmetic>({from, stride, form, rows}, k, to, padded);                                                                    \
    }                                                                                                                                   \
    EXPORT(name)

PACK(matmul_pack_tf32, Tf32);
PACK(matmul_pack_bf16, Bf16);

// c [m, n] of the splits' sums [splits, m, n], added in their order. One thread an element, any number of blocks; m n < 2^31.
template <typename Element> DEVICE void sum_splits(const float *partial_sums, int splits, const Output &output) {
    const int elements = output.rows * output.columns;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += gridDim.x * blockDim.x) {
        float sum = partial_sums[i];
        for (int split = 1; split < splits; ++split) sum += partial_sums[(long long)split * elements + i];
        const int row = i / output.columns, column = i % output.columns;
        finish(output.at<Element>(row, column), sum, output, column);
    }
}

#define SUM(name, Element)                                                                                                             \
    KERNEL(256, 4)                                                                                                                      \
    name(const float *partial_sums, int splits, void *c, long long c_stride, int m, int n, const void *bias, int activation,           \
         int accumulate) {                                                                                                              \
        sum_splits<Element>(partial_sums, splits, {c, c_stride, bias, m, n, activation, accumulate, 0});                                \
    }                                                                                                                                   \
    EXPORT(name)

SUM(matmul_sum_f32, float);
SUM(matmul_sum_bf16, __nv_bfloat16);
