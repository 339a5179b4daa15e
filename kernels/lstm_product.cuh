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
//   group      8 columns, what a tensor core's tile takes
//   bite       the chunks of a warp that are multiplied from one stage: B comes in by bites of groups, DEPTH stages of them under way
//
// A core multiplies a group by chunks. Lane l brings in the 16 bytes l % 4 of column l / 4 of each chunk. For a tensor core that is its own part
// of B, if the k's of a chunk are counted in another order, which does no harm where A counts them so too: lane l % 4 has the CHUNK / 4
// neighbouring k's that it loaded. So a warp of tensor cores exchanges nothing with itself.
#pragma once

#include "async.cuh"
#include "tile.cuh"

constexpr int CHUNK_BYTES = 64;
constexpr int GROUP = 8;
constexpr int DEPTH = 3;
constexpr int GROUP_VECTORS = GROUP * CHUNK_BYTES / 16; // of one chunk, 16 bytes each: column n has 4 n to 4 n + 3

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
template <class Type, int TILES, int HELD_CHUNKS, int BITE_CHUNKS> struct TensorCore {
    using Element = typename Type::Element;
    using A = typename Type::A;
    static constexpr int CHUNK = Type::CHUNK, HELD = HELD_CHUNKS, BITE = BITE_CHUNKS, WARPS = 8;
    static constexpr int ROWS = 16 * TILES;
    static constexpr int STRIDE = ROWS + 4;   // of a column of sums: lanes of a fragment's four columns store to different banks
    static constexpr int VECTORS = 2 * TILES; // a lane's weights for one chunk, 16 bytes each: those of half i / TILES, tile i % TILES
    static constexpr int HALVES = TILES < 4 ? 2 : 1;

    struct Sums {
        FragmentC x[HALVES][TILES];
    };
    A held[HELD][VECTORS] = {};

    static DEVICE Element element(float value) { return Type::element(value); }

    template <class Weights> static DEVICE A fragment(const Weights &weights, int i) {
        return Type::fragment(weights, i % TILES * 16, i / TILES);
    }

    template <class Weights> static DEVICE uint4 vector(const Weights &weights, int i) {
        const A a = fragment(weights, i);
        return make_uint4(a.x[0], a.x[1], a.x[2], a.x[3]);
    }

    // Half a chunk at a time, in a loop that is not unrolled: its code would be the larger part of the kernel.
    template <class Operand> DEVICE void hold(const Operand &operand, int first, int count) {
#pragma unroll 1
        for (int part = 0; part < 2 * min(count, HELD); ++part) {
            const auto weights = operand.chunk(first + part / 2);
            A fresh[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) fresh[tile] = fragment(weights, part % 2 * TILES + tile);
#pragma unroll
            for (int i = 0; i < HELD * VECTORS; ++i) {
                if (part == i / TILES) held[i / VECTORS][i % VECTORS] = fresh[i % TILES];
            }
        }
    }

    static DEVICE void add(Sums &sums, int i, const A &a, uint4 b) {
        const int half = i / TILES;
        mma(sums.x[half % HALVES][i % TILES], a, half == 0 ? typename Type::B{{b.x, b.y}} : typename Type::B{{b.z, b.w}});
    }

    static DEVICE uint4 mine(const uint4 *group) { return group[lane_index()]; }

    // `chunk` is known when compiled. `group`: the chunk's part of B.
    DEVICE void add_held(Sums &sums, int chunk, const uint4 *group) const {
        const uint4 b = mine(group);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) add(sums, i, held[chunk][i], b);
    }

    // `weights`: the lane's own, WARP apart.
    static DEVICE void add_kept(Sums &sums, const uint4 *weights, const uint4 *group) {
        const uint4 b = mine(group);
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            const uint4 a = weights[i * WARP];
            add(sums, i, A{{a.x, a.y, a.z, a.w}}, b);
        }
    }

    // to: [GROUP, STRIDE]
    static DEVICE void store(const Sums &sums, float *to) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float sum = sums.x[0][tile].x[i];
                if (HALVES == 2) sum += sums.x[HALVES - 1][tile].x[i];
                to[FragmentC::column(i) * STRIDE + 16 * tile + FragmentC::row(i)] = sum;
            }
        }
    }
};

// Exact f32: lane l has the rows l / 4, l / 4 + 8, ... and the quarter l % 4 of a chunk's k's. A vector of B serves 4 VECTORS products; the sums
// of the four quarters are added by shuffles.
struct Scalar {
    using Element = float;
    static constexpr int CHUNK = 16, HELD = 6, BITE = 3, WARPS = 8;
    static constexpr int ROWS = 40;
    static constexpr int STRIDE = ROWS; // 8 modulo 32: the four columns of a store go to different banks
    static constexpr int VECTORS = ROWS / 8;

    struct Sums {
        float x[GROUP][VECTORS];
    };
    float4 held[HELD][VECTORS] = {};

    static DEVICE Element element(float value) { return value; }

    template <class Weights> static DEVICE float4 fragment(const Weights &weights, int i) {
        const int row = 8 * i + lane_index() / 4, k = lane_index() % 4 * 4;
        return make_float4(weights(row, k), weights(row, k + 1), weights(row, k + 2), weights(row, k + 3));
    }

    template <class Weights> static DEVICE uint4 vector(const Weights &weights, int i) {
        const float4 a = fragment(weights, i);
        return make_uint4(__float_as_uint(a.x), __float_as_uint(a.y), __float_as_uint(a.z), __float_as_uint(a.w));
    }

    template <class Operand> DEVICE void hold(const Operand &operand, int first, int count) {
#pragma unroll 1
        for (int chunk = 0; chunk < min(count, HELD); ++chunk) {
            const auto weights = operand.chunk(first + chunk);
            float4 fresh[VECTORS];
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) fresh[i] = fragment(weights, i);
#pragma unroll
            for (int i = 0; i < HELD * VECTORS; ++i) {
                if (chunk == i / VECTORS) held[i / VECTORS][i % VECTORS] = fresh[i % VECTORS];
            }
        }
    }

    static DEVICE void add(float &sum, float4 a, float4 b) {
        sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
    }

    DEVICE void add_held(Sums &sums, int chunk, const uint4 *group) const {
        const float4 *b = reinterpret_cast<const float4 *>(group) + lane_index() % 4;
#pragma unroll
        for (int column = 0; column < GROUP; ++column) {
            const float4 x = b[4 * column];
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) add(sums.x[column][i], held[chunk][i], x);
        }
    }

    static DEVICE void add_kept(Sums &sums, const uint4 *weights, const uint4 *group) {
        const float4 *a = reinterpret_cast<const float4 *>(weights), *b = reinterpret_cast<const float4 *>(group) + lane_index() % 4;
        float4 x[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) x[i] = a[i * WARP];
#pragma unroll
        for (int column = 0; column < GROUP; ++column) {
            const float4 y = b[4 * column];
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) add(sums.x[column][i], x[i], y);
        }
    }

    // Lane l keeps the columns l % 4 and l % 4 + 4: it gives away four of eight, then two of four.
    static DEVICE void store(const Sums &sums, float *to) {
        const int quarter = lane_index() % 4;
        const bool upper = quarter >= 2, odd = quarter % 2 == 1;
#pragma unroll
        for (int first = 0; first < GROUP; first += 4) {
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                const float x[4] = {sums.x[first][i], sums.x[first + 1][i], sums.x[first + 2][i], sums.x[first + 3][i]};
                const float even_sum = (upper ? x[2] : x[0]) + __shfl_xor_sync(FULL_WARP, upper ? x[0] : x[2], 2);
                const float odd_sum = (upper ? x[3] : x[1]) + __shfl_xor_sync(FULL_WARP, upper ? x[1] : x[3], 2);
                const float sum = (odd ? odd_sum : even_sum) + __shfl_xor_sync(FULL_WARP, odd ? even_sum : odd_sum, 1);
                to[(first + quarter) * STRIDE + 8 * i + lane_index() / 4] = sum;
            }
        }
    }
};

// Shared memory of a product: stages, then weights.
template <class Core> struct ProductMemory {
    int span, bite; // the most chunks of a warp, and of one of its bites
    int stage_vectors, weight_vectors; // of a warp

    DEVICE ProductMemory(int chunks, int slots) {
        const int warps = blockDim.x / WARP;
        span = (chunks + warps - 1) / warps;
        bite = min(span, Core::BITE);
        stage_vectors = DEPTH * bite * GROUP_VECTORS;
        weight_vectors = slots * Core::VECTORS * WARP;
    }

    DEVICE int bytes() const { return blockDim.x / WARP * (stage_vectors + weight_vectors) * 16; }
};

// A warp's share of the product: its chunks, and where they and the stages lie.
template <class Core, class Operand> struct Product {
    static constexpr int HELD_BITES = Core::HELD / Core::BITE;
    static_assert(Core::HELD % Core::BITE == 0);
    Core core;
    const Operand &operand; // in shared memory
    int first, count, span, bite; // of the chunks
    int slots;
    uint4 *stages;  // [DEPTH, bite, GROUP_VECTORS]
    uint4 *weights; // [slots, Core::VECTORS, 32], this lane's

    // `memory` is the block's.
    DEVICE Product(const Operand &operand, int total, int slots, unsigned char *memory) : operand(operand), slots(slots) {
        const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        const ProductMemory<Core> sizes(total, slots);
        span = sizes.span;
        bite = sizes.bite;
        first = warp * span;
        count = max(0, min(span, total - first));
        stages = reinterpret_cast<uint4 *>(memory) + warp * sizes.stage_vectors;
        weights = reinterpret_cast<uint4 *>(memory) + warps * sizes.stage_vectors + warp * sizes.weight_vectors + lane_index();
    }

    // The chunks that stay on the chip.
    DEVICE int kept() const { return span > Core::HELD + slots ? Core::HELD + slots - 1 : span; }

    // A lane reads no weights but those that it stored itself.
    DEVICE const uint4 *store(int chunk, int slot) const {
        uint4 *to = weights + slot * Core::VECTORS * WARP;
        const auto from = operand.chunk(first + chunk);
#pragma unroll 1
        for (int i = 0; i < Core::VECTORS; ++i) to[i * WARP] = Core::vector(from, i);
        return to;
    }

    // Brings weights onto the chip, for all steps.
    DEVICE void load() {
        core.hold(operand, first, count);
        for (int chunk = Core::HELD; chunk < min(count, kept()); ++chunk) store(chunk, chunk - Core::HELD);
    }

    // Bites in the order in which they are multiplied: all of a group, then the next group.
    struct Cursor {
        int group, bite, stage;

        DEVICE void advance(int bites) {
            stage = stage + 1 == DEPTH ? 0 : stage + 1;
            bite = bite + 1 == bites ? 0 : bite + 1;
            group += bite == 0;
        }
    };

    DEVICE void start(const Cursor &at, int groups, const unsigned char *b, int column_bytes) const {
        if (at.group < groups) {
            uint4 *to = stages + at.stage * bite * GROUP_VECTORS + lane_index();
            const unsigned char *from = b + (long long)(GROUP * at.group + lane_index() / 4) * column_bytes + lane_index() % 4 * 16;
            const int begin = at.bite * bite, end = min(count, begin + bite);
            for (int chunk = begin; chunk < end; ++chunk, to += GROUP_VECTORS) copy_async(to, from + (first + chunk) * CHUNK_BYTES);
        }
        copy_async_commit();
    }

    // b: column n of this product starts at n `column_bytes`; sums [groups of `columns`, GROUP, Core::STRIDE], this warp's part of each.
    DEVICE void run(const unsigned char *b, int column_bytes, int columns, float *to) const {
        const int groups = (columns + GROUP - 1) / GROUP, bites = (span + bite - 1) / bite;
        Cursor ahead{0, 0, 0}, at{0, 0, 0};
#pragma unroll 1
        for (int i = 0; i < DEPTH - 1; ++i, ahead.advance(bites)) start(ahead, groups, b, column_bytes);
#pragma unroll 1
        while (at.group < groups) {
            typename Core::Sums sums = {};
#pragma unroll 1
            for (int i = 0; i < bites; ++i, at.advance(bites), ahead.advance(bites)) {
                copy_async_wait<DEPTH - 2>();
                // The lanes see each other's copies, and all are through with the stage that is filled next.
                __syncwarp();
                start(ahead, groups, b, column_bytes);
                multiply(sums, i, stages + at.stage * bite * GROUP_VECTORS);
            }
            Core::store(sums, to);
            to += GROUP * Core::STRIDE;
        }
    }

    DEVICE void multiply(typename Core::Sums &sums, int number, const uint4 *stage) const {
        const int begin = number * bite, size = min(bite, count - begin);
#pragma unroll
        for (int held = 0; held < HELD_BITES; ++held) {
            if (number != held) continue;
#pragma unroll
            for (int i = 0; i < Core::BITE; ++i) {
                if (i < size) core.add_held(sums, held * Core::BITE + i, stage + i * GROUP_VECTORS);
            }
        }
        if (number < HELD_BITES) return;
#pragma unroll 1
        for (int i = 0; i < size; ++i) {
            const int chunk = begin + i;
            const uint4 *from = chunk < kept() ? weights + (chunk - Core::HELD) * Core::VECTORS * WARP : store(chunk, slots - 1);
            Core::add_kept(sums, from, stage + i * GROUP_VECTORS);
        }
    }
};
