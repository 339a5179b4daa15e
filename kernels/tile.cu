// What tile.cuh promises, as kernels of one warp, for tests on the emulator and on a GPU: the host deals the registers out by PTX's tables
// and looks where the results come back. Nothing here is on a training step's way.
//
// tensor cores: tile_mma_*
#include "tile.cuh"

// d = c + a b with the registers of lane l at [l * N]: a [32, 4], b [32, 2], c and d [32, 4].
template <typename A, typename B> DEVICE void product(const unsigned *a, const unsigned *b, const float *c, float *d) {
    const int lane = lane_index();
    A left;
    B right;
    FragmentC sum;
    for (int i = 0; i < 4; ++i) left.x[i] = a[4 * lane + i];
    for (int i = 0; i < 2; ++i) right.x[i] = b[2 * lane + i];
    for (int i = 0; i < 4; ++i) sum.x[i] = c[4 * lane + i];
    mma(sum, left, right);
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum.x[i];
}

KERNEL(32, 1) tile_mma_bf16(const unsigned *a, const unsigned *b, const float *c, float *d) {
    product<FragmentA_bf16, FragmentB_bf16>(a, b, c, d);
}

KERNEL(32, 1) tile_mma_tf32(const unsigned *a, const unsigned *b, const float *c, float *d) {
    product<FragmentA_tf32, FragmentB_tf32>(a, b, c, d);
}

// Where the fragments say that their elements are: rows and columns, lane l's at [l * 16]: c 4, a bf16 4, a tf32 4, b bf16 2, b tf32 2.
KERNEL(32, 1) tile_places(int *rows, int *columns) {
    const int lane = lane_index();
    rows += 16 * lane, columns += 16 * lane;
    for (int i = 0; i < 4; ++i) {
        rows[i] = FragmentC::row(i), columns[i] = FragmentC::column(i);
        rows[4 + i] = FragmentA_bf16::row(i), columns[4 + i] = FragmentA_bf16::column(i);
        rows[8 + i] = FragmentA_tf32::row(i), columns[8 + i] = FragmentA_tf32::column(i);
    }
    for (int i = 0; i < 2; ++i) {
        rows[12 + i] = FragmentB_bf16::row(i), columns[12 + i] = FragmentB_bf16::column(i);
        rows[14 + i] = FragmentB_tf32::row(i), columns[14 + i] = FragmentB_tf32::column(i);
    }
}

// The four ways to load from 32 rows of 16 bytes (words [32, 4]); lane l's registers at [l * 12]: x4 4, x4 transposed 4, x2 2, x2
// transposed 2.
KERNEL(32, 1) tile_ldmatrix(const unsigned *words, unsigned *registers) {
    SHARED_MEMORY(unsigned, shared);
    const int lane = lane_index();
    for (int i = 0; i < 4; ++i) shared[4 * lane + i] = words[4 * lane + i];
    barrier();
    const unsigned *row = shared + 4 * lane;
    uint32_t four[4], four_transposed[4], two[2], two_transposed[2];
    ldmatrix_x4(four, row);
    ldmatrix_x4_transposed(four_transposed, row);
    ldmatrix_x2(two, row);
    ldmatrix_x2_transposed(two_transposed, row);
    registers += 12 * lane;
    for (int i = 0; i < 4; ++i) registers[i] = four[i], registers[4 + i] = four_transposed[i];
    for (int i = 0; i < 2; ++i) registers[8 + i] = two[i], registers[10 + i] = two_transposed[i];
}

// to_tf32 of each, and pack_bf16 of each with its negative.
KERNEL(32, 1) tile_conversions(const float *values, unsigned *tf32, unsigned *bf16, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        tf32[i] = to_tf32(values[i]);
        bf16[i] = pack_bf16(values[i], -values[i]);
    }
}

EXPORT(tile_mma_bf16);
EXPORT(tile_mma_tf32);
EXPORT(tile_places);
EXPORT(tile_ldmatrix);
EXPORT(tile_conversions);
