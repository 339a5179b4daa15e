// The product of the LSTM's time steps, C [rows, columns] = A [rows, K] B [K, columns]: A is the same at every step and stays on the chip, B
// comes from other multiprocessors at every step.
//
// A block owns some rows of A. Its warps share out K, so that each weight lies in one place on the chip and each element of B is read once a
// block; the warps' partial sums meet in shared memory, in the order of the warps.
//
//   operand    A as it lies in global memory: operand.chunk(c)(row, k) is the weight of a row and the chunk's k-th place, 0 outside of A
//   chunk      64 bytes of a column of B (CHUNK elements along k), and the weights that multiply it. B is laid out with its columns as
//              rows of whole chunks, zeros behind K
//   held       the first HELD chunks of a warp: their weights stay in registers
//   slot       room for the weights of a further chunk of a warp in shared memory. If there are fewer slots than chunks, the last slot takes
//              the remaining ones in turn, from global memory at every step
//   group      8 columns, what a tensor core's tile takes; B comes in group by group, DEPTH of them under way
//
// A core multiplies one group by a warp's chunks. Lane l brings in the 16 bytes l % 4 of column l / 4 of each chunk. For a tensor core that is
// its own part of B, if the k's of a chunk are counted in another order, which does no harm where A counts them so too: lane l % 4 has
// the CHUNK / 4 neighbouring k's that it loaded. So a warp of tensor cores exchanges nothing with itself.
#pragma once

#include "async.cuh"
#include "tile.cuh"

constexpr int CHUNK_BYTES = 64;
constexpr int GROUP = 8;
constexpr int DEPTH = 3;
constexpr int GROUP_BYTES = GROUP * CHUNK_BYTES; // of one chunk

// Where lane l's 16 bytes of a group's chunk are in shared memory, in units of 16 bytes: column, and the quarter of its 64 bytes.
DEVICE int group_place(int column, int quarter) { return column * (CHUNK_BYTES / 16) + quarter; }

// The rows, of 16, of tensor cores: m16n8k16 for bf16, m16n8k8 for tf32. `half` is the one of a chunk's two products.
struct Bfloat16 {
    using Element = __nv_bfloat16;
    using A = FragmentA_bf16;
    using B = FragmentB_bf16;
    static constexpr int CHUNK = 32;

    static DEVICE Element element(float value) { return __float2bfloat16_rn(value); }

    template <class Weights> static DEVICE A fragment(const Weights &weights, int row, int half) {
        const int k = lane_index() % 4 * 8 + 4 * half;
        const auto pair = [&](int below, int i) {
            const int place = row + A::row(0) + below;
            return pack_bf16(weights(place, k + i), weights(place, k + i + 1));
        };
        return {pair(0, 0), pair(8, 0), pair(0, 2), pair(8, 2)};
    }
};

struct Tf32 {
    using Element = float;
    using A = FragmentA_tf32;
    using B = FragmentB_tf32;
    static constexpr int CHUNK = 16;

    static DEVICE Element element(float value) { return __uint_as_float(to_tf32(value)); }

    template <class Weights> static DEVICE A fragment(const Weights &weights, int row, int half) {
        const int k = lane_index() % 4 * 4 + 2 * half;
        const auto one = [&](int below, int i) { return to_tf32(weights(row + A::row(0) + below, k + i)); };
        return {one(0, 0), one(8, 0), one(0, 1), one(8, 1)};
    }
};

// TILES tiles of 16 rows by 8 columns a warp. With few tiles the two halves of a chunk have sums of their own: a product waits for the one
// before that adds to the same sum, about 33 cycles, and 4 sums keep a multiprocessor's tensor cores busy.
template <class Type, int TILES, int HELD_CHUNKS> struct TensorCore {
    using Element = typename Type::Element;
    using A = typename Type::A;
    static constexpr int CHUNK = Type::CHUNK, HELD = HELD_CHUNKS, WARPS = 8;
    static constexpr int ROWS = 16 * TILES;
    static constexpr int STRIDE = ROWS + 4;         // of a column of sums: lanes of a fragment's four columns store to different banks
    static constexpr int WEIGHTS = 2 * TILES;       // 16-byte vectors of a lane for one chunk
    static constexpr int SUMS = TILES < 4 ? 2 : 1;
    A held[HELD][2][TILES] = {};

    static DEVICE Element element(float value) { return Type::element(value); }

    // Half a chunk at a time in a loop that is not unrolled: its code would be the larger part of the kernel.
    template <class Operand> DEVICE void hold(const Operand &operand, int first, int count) {
#pragma unroll 1
        for (int part = 0; part < 2 * min(count, HELD); ++part) {
            const auto weights = operand.chunk(first + part / 2);
            A fresh[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) fresh[tile] = fragment(weights, part % 2 * TILES + tile);
#pragma unroll
            for (int i = 0; i < 2 * HELD * TILES; ++i) {
                if (part == i / TILES) held[i / TILES / 2][i / TILES % 2][i % TILES] = fresh[i % TILES];
            }
        }
    }

    template <class Weights> static DEVICE A fragment(const Weights &weights, int i) {
        return Type::fragment(weights, i % TILES * 16, i / TILES);
    }

    template <class Weights> static DEVICE uint4 vector(const Weights &weights, int i) {
        const A a = fragment(weights, i);
        return make_uint4(a.x[0], a.x[1], a.x[2], a.x[3]);
    }

    // `rest(chunk)` gives a chunk's weights behind the held ones, as this lane stored them; `group` is the first chunk's; `sums` [GROUP, STRIDE].
    template <class Rest> DEVICE void multiply(const uint4 *group, int count, const Rest &rest, float *sums) const {
        FragmentC sum[SUMS][TILES] = {};
        const uint4 *mine = group + group_place(lane_index() / 4, lane_index() % 4);
        const auto add = [&](int half, int tile, const A &a, uint4 x) {
            const typename Type::B b = half == 0 ? typename Type::B{{x.x, x.y}} : typename Type::B{{x.z, x.w}};
            mma(sum[half % SUMS][tile], a, b);
        };
#pragma unroll
        for (int chunk = 0; chunk < HELD; ++chunk) {
            if (chunk < count) {
                const uint4 x = mine[chunk * (GROUP_BYTES / 16)];
#pragma unroll
                for (int i = 0; i < WEIGHTS; ++i) add(i / TILES, i % TILES, held[chunk][i / TILES][i % TILES], x);
            }
        }
#pragma unroll 1
        for (int chunk = HELD; chunk < count; ++chunk) {
            const uint4 x = mine[chunk * (GROUP_BYTES / 16)];
            const uint4 *weights = rest(chunk);
#pragma unroll
            for (int i = 0; i < WEIGHTS; ++i) {
                const uint4 a = weights[i * WARP];
                add(i / TILES, i % TILES, A{{a.x, a.y, a.z, a.w}}, x);
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float value = SUMS == 2 ? sum[0][tile].x[i] + sum[SUMS - 1][tile].x[i] : sum[0][tile].x[i];
                sums[FragmentC::column(i) * STRIDE + 16 * tile + FragmentC::row(i)] = value;
            }
        }
    }
};

// Exact f32: lane l has the rows l / 4, l / 4 + 8, ... and the quarter l % 4 of a chunk's k's. A vector of B serves 4 ROWS / 8 products; the four
// quarters are added by shuffles.
struct Scalar {
    using Element = float;
    static constexpr int CHUNK = 16, HELD = 6, WARPS = 8;
    static constexpr int ROWS = 40;
    static constexpr int STRIDE = ROWS; // 8 modulo 32: the four columns of a store go to different banks
    static constexpr int WEIGHTS = ROWS / 8;
    float4 held[HELD][WEIGHTS] = {};

    static DEVICE Element element(float value) { return value; }

    template <class Operand> DEVICE void hold(const Operand &operand, int first, int count) {
#pragma unroll 1
        for (int chunk = 0; chunk < min(count, HELD); ++chunk) {
            const auto weights = operand.chunk(first + chunk);
            float4 fresh[WEIGHTS];
#pragma unroll
            for (int i = 0; i < WEIGHTS; ++i) fresh[i] = fragment(weights, i);
#pragma unroll
            for (int i = 0; i < HELD * WEIGHTS; ++i) {
                if (chunk == i / WEIGHTS) held[i / WEIGHTS][i % WEIGHTS] = fresh[i % WEIGHTS];
            }
        }
    }

    template <class Weights> static DEVICE float4 fragment(const Weights &weights, int i) {
        const int row = 8 * i + lane_index() / 4, k = lane_index() % 4 * 4;
        return make_float4(weights(row, k), weights(row, k + 1), weights(row, k + 2), weights(row, k + 3));
    }

    template <class Weights> static DEVICE uint4 vector(const Weights &weights, int i) {
        const float4 a = fragment(weights, i);
        return make_uint4(__float_as_uint(a.x), __float_as_uint(a.y), __float_as_uint(a.z), __float_as_uint(a.w));
    }

    static DEVICE float add(float sum, float4 a, float4 b) {
        return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
    }

    template <class Rest> DEVICE void multiply(const uint4 *group, int count, const Rest &rest, float *sums) const {
        const float4 *all = reinterpret_cast<const float4 *>(group);
        const int quarter = lane_index() % 4;
        // Four columns at a time, so that their 20 sums stay in registers beside the weights.
#pragma unroll 1
        for (int first = 0; first < GROUP; first += 4) {
            float sum[4][WEIGHTS] = {};
#pragma unroll
            for (int chunk = 0; chunk < HELD; ++chunk) {
                if (chunk < count) {
#pragma unroll
                    for (int column = 0; column < 4; ++column) {
                        const float4 b = all[chunk * (GROUP_BYTES / 16) + group_place(first + column, quarter)];
#pragma unroll
                        for (int i = 0; i < WEIGHTS; ++i) sum[column][i] = add(sum[column][i], held[chunk][i], b);
                    }
                }
            }
#pragma unroll 1
            for (int chunk = HELD; chunk < count; ++chunk) {
                const float4 *b = all + chunk * (GROUP_BYTES / 16);
                const float4 *weights = reinterpret_cast<const float4 *>(rest(chunk));
#pragma unroll
                for (int i = 0; i < WEIGHTS; ++i) {
                    const float4 a = weights[i * WARP];
#pragma unroll
                    for (int column = 0; column < 4; ++column) {
                        sum[column][i] = add(sum[column][i], a, b[group_place(first + column, quarter)]);
                    }
                }
            }
            // Each lane keeps the column of its quarter: first two columns of four, then one of two.
            const bool upper = quarter >= 2, odd = quarter % 2 == 1;
#pragma unroll
            for (int i = 0; i < WEIGHTS; ++i) {
                const float even_sum = (upper ? sum[2][i] : sum[0][i]) + __shfl_xor_sync(FULL_WARP, upper ? sum[0][i] : sum[2][i], 2);
                const float odd_sum = (upper ? sum[3][i] : sum[1][i]) + __shfl_xor_sync(FULL_WARP, upper ? sum[1][i] : sum[3][i], 2);
                const float whole = (odd ? odd_sum : even_sum) + __shfl_xor_sync(FULL_WARP, odd ? even_sum : odd_sum, 1);
                sums[(first + quarter) * STRIDE + 8 * i + lane_index() / 4] = whole;
            }
        }
    }
};

// A warp's share of the product: its chunks, and where they and B's groups lie.
template <class Core, class Operand> struct Product {
    Core core;
    Operand operand;
    int first, count, span; // of the chunks: a warp has up to `span` of them
    int slots;
    uint4 *weights;       // [slots, Core::WEIGHTS, 32]
    unsigned char *stage; // [DEPTH, span, GROUP_BYTES]

    // `stages` and `all_weights` are the block's.
    DEVICE Product(const Operand &operand, int total, int slots, unsigned char *stages, uint4 *all_weights) : operand(operand), slots(slots) {
        const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        span = (total + warps - 1) / warps;
        first = warp * span;
        count = max(0, min(span, total - first));
        weights = all_weights + warp * slots * Core::WEIGHTS * WARP + lane_index();
        stage = stages + warp * DEPTH * span * GROUP_BYTES;
    }

    // The chunks that stay on the chip.
    DEVICE int kept() const { return span > Core::HELD + slots ? Core::HELD + slots - 1 : span; }

    // A lane reads no weights but those that it stored itself.
    DEVICE const uint4 *store(int chunk, int slot) const {
        uint4 *to = weights + slot * Core::WEIGHTS * WARP;
        const auto from = operand.chunk(first + chunk);
#pragma unroll 1
        for (int i = 0; i < Core::WEIGHTS; ++i) to[i * WARP] = Core::vector(from, i);
        return to;
    }

    // Brings weights onto the chip, for all steps.
    DEVICE void load() {
        core.hold(operand, first, count);
        for (int chunk = Core::HELD; chunk < min(count, kept()); ++chunk) store(chunk, chunk - Core::HELD);
    }

    DEVICE void start(const unsigned char *b, int column_bytes, int group, int groups) const {
        if (group < groups) {
            const int column = lane_index() / 4, quarter = lane_index() % 4;
            unsigned char *to = stage + group % DEPTH * span * GROUP_BYTES + 16 * group_place(column, quarter);
            const unsigned char *from = b + (long long)(GROUP * group + column) * column_bytes + first * CHUNK_BYTES + 16 * quarter;
            for (int chunk = 0; chunk < count; ++chunk) copy_async(to + chunk * GROUP_BYTES, from + chunk * CHUNK_BYTES);
        }
        copy_async_commit();
    }

    // b: column n of this product starts at n `column_bytes`; sums [groups of `columns`, GROUP, Core::STRIDE], this warp's part of each.
    DEVICE void run(const unsigned char *b, int column_bytes, int columns, float *sums) const {
        const int groups = (columns + GROUP - 1) / GROUP;
        const auto rest = [&](int chunk) {
            return chunk < kept() ? weights + (chunk - Core::HELD) * Core::WEIGHTS * WARP : store(chunk, slots - 1);
        };
#pragma unroll 1
        for (int group = 0; group < DEPTH - 1; ++group) start(b, column_bytes, group, groups);
#pragma unroll 1
        for (int group = 0; group < groups; ++group) {
            copy_async_wait<DEPTH - 2>();
            // The lanes see each other's copies, and all are through with the stage that is filled next.
            __syncwarp();
            start(b, column_bytes, group + DEPTH - 1, groups);
            const auto *here = reinterpret_cast<const uint4 *>(stage + group % DEPTH * span * GROUP_BYTES);
            core.multiply(here, count, rest, sums + group * GROUP * Core::STRIDE);
        }
    }
};
