// Matrix tiles: the tensor cores' instructions, one function each, and the conversions that feed them.
//
// A warp holds a tile together: every lane a fragment, the few elements that PTX documents for it (PTX ISA, "Matrix Fragments for
// mma.m16n8k8" and "... mma.m16n8k16"); `row` and `column` of a fragment say which. All 32 lanes of a warp call each function, in
// one-dimensional blocks of whole warps.
//
//   mma(c, a, b)       c [16, 8] += a [16, K] b [K, 8]; f32 sums. bf16: K = 16. tf32: K = 8: in either, a row of a is 32 bytes
//   ldmatrix_x4, ...   8 x 8 matrices of 16-bit elements from rows in shared memory that the lanes point at; the plain one gives tf32's
//                      fragments too, since four 32-bit elements are as long as a row of eight 16-bit ones
//   to_tf32, pack_bf16 f32 -> operand, rounded to nearest (tf32: ties away from zero, as cvt.rna does; bf16: ties to even)
//
// The emulator models them lane by lane: a lane knows its own fragment alone, and a product gathers the others' across the warp, so that
// an element in the wrong lane gives a wrong product there as well. Products are exact in f32 (8 x 8 and 11 x 11 bits of mantissa); the
// emulator adds them to c one by one, k ascending, each sum rounded to nearest. The hardware keeps the sum of a few products wider and
// truncates it (undocumented), so its bits differ from the emulator's, by about 2^-23 of the largest term. tf32 operands lose their 13
// lowest bits on both.
#pragma once

#include "common.cuh"

DEVICE int lane_index() { return int(threadIdx.x % unsigned(WARP)); }

// c or d [16, 8]: element i (0 to 3) of a lane is (row(i), column(i)): 0 and 1 neighbours in a row, 2 and 3 the same eight rows below.
struct FragmentC {
    float x[4];
    static DEVICE int row(int i) { return lane_index() / 4 + 8 * (i / 2); }
    static DEVICE int column(int i) { return lane_index() % 4 * 2 + i % 2; }
};

// a [16, 16]: register i (0 to 3) holds (row(i), column(i)) in its low half and the next column in its high half.
struct FragmentA_bf16 {
    uint32_t x[4];
    static DEVICE int row(int i) { return lane_index() / 4 + 8 * (i % 2); }
    static DEVICE int column(int i) { return lane_index() % 4 * 2 + 8 * (i / 2); }
};

// b [16, 8]: register i (0, 1) holds (row(i), column(i)) in its low half and the next row in its high half.
struct FragmentB_bf16 {
    uint32_t x[2];
    static DEVICE int row(int i) { return lane_index() % 4 * 2 + 8 * i; }
    static DEVICE int column(int) { return lane_index() / 4; }
};

// a [16, 8]: register i (0 to 3) holds (row(i), column(i)).
struct FragmentA_tf32 {
    uint32_t x[4];
    static DEVICE int row(int i) { return lane_index() / 4 + 8 * (i % 2); }
    static DEVICE int column(int i) { return lane_index() % 4 + 4 * (i / 2); }
};

// b [8, 8]: register i (0, 1) holds (row(i), column(i)).
struct FragmentB_tf32 {
    uint32_t x[2];
    static DEVICE int row(int i) { return lane_index() % 4 + 4 * i; }
    static DEVICE int column(int) { return lane_index() / 4; }
};

#ifndef HEADFIRST_EMULATOR

DEVICE uint32_t to_tf32(float value) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return rounded;
}

// Two neighbours in one register, `low` at the lower address.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE void mma(FragmentC &c, const FragmentA_bf16 &a, const FragmentB_bf16 &b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}

DEVICE void mma(FragmentC &c, const FragmentA_tf32 &a, const FragmentB_tf32 &b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
}

// Lane l points at row l % 8 of matrix l / 8 (16 bytes in shared memory, 16-byte aligned). matrix[j] of lane l is then the word l % 4 of
// row l / 4 of matrix j: elements 2 (l % 4) and the next.
DEVICE void ldmatrix_x4(uint32_t (&matrix)[4], const void *row) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address)
                 : "memory");
}

// Two matrices; the pointers of lanes 16 and above are not used.
DEVICE void ldmatrix_x2(uint32_t (&matrix)[2], const void *row) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(address)
                 : "memory");
}

// Each matrix transposed: matrix[j] of lane l holds column l / 4 of rows 2 (l % 4) and the next.
DEVICE void ldmatrix_x4_transposed(uint32_t (&matrix)[4], const void *row) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address)
                 : "memory");
}

DEVICE void ldmatrix_x2_transposed(uint32_t (&matrix)[2], const void *row) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrix[0]), "=r"(matrix[1])
                 : "r"(address)
                 : "memory");
}

#else

DEVICE uint32_t to_tf32(float value) {
    const uint32_t bits = __float_as_uint(value);
    if (value != value) return 0x7fffffffu;
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

DEVICE uint32_t pack_bf16(float low, float high) {
    const uint32_t top = __bfloat16_as_ushort(__float2bfloat16_rn(high));
    return top << 16 | __bfloat16_as_ushort(__float2bfloat16_rn(low));
}

namespace emulated_tile {

// Calls body(lanes), where lanes[l] points at lane l's `mine`: the warp's registers in view. Lane 0 lends the table; nobody leaves while
// it is read.
template <typename T, typename Body> inline void in_view_of_the_warp(const T &mine, Body body) {
    const T *table[WARP];
    const auto lent = __shfl_sync(FULL_WARP, (unsigned long long)(uintptr_t)table, 0);
    const T **lanes = reinterpret_cast<const T **>(uintptr_t(lent));
    lanes[lane_index()] = &mine;
    __syncwarp(FULL_WARP);
    body(lanes);
    __syncwarp(FULL_WARP);
}

// Operands as the hardware reads them: both products of a lane's two bf16, or the one of its tf32.
inline float add_products(float sum, const FragmentA_bf16 *, uint32_t a, uint32_t b) {
    sum += __uint_as_float(a << 16) * __uint_as_float(b << 16);
    return sum + __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
}

inline float add_products(float sum, const FragmentA_tf32 *, uint32_t a, uint32_t b) {
    return sum + __uint_as_float(a & 0xffffe000u) * __uint_as_float(b & 0xffffe000u);
}

template <typename A, typename B> inline void mma(FragmentC &c, const A &a, const B &b) {
    struct Operands {
        const A &a;
        const B &b;
    };
    const Operands mine{a, b};
    FragmentC sum = c;
    in_view_of_the_warp(mine, [&](const Operands **lanes) {
        for (int i = 0; i < 4; ++i) {
            const int row = FragmentC::row(i), column = FragmentC::column(i);
            // A row of a, and a column of b, are eight words: member 0 to 3's first register, then their second.
            for (int word = 0; word < 8; ++word) {
                const uint32_t left = lanes[row % 8 * 4 + word % 4]->a.x[row / 8 + word / 4 * 2];
                const uint32_t right = lanes[column * 4 + word % 4]->b.x[word / 4];
                sum.x[i] = add_products(sum.x[i], &a, left, right);
            }
        }
    });
    c = sum;
}

template <int N> inline void ldmatrix(uint32_t (&matrix)[N], const void *row) {
    if (lane_index() < 8 * N && uintptr_t(row) % 16 != 0) __trap();
    in_view_of_the_warp(row, [&](const void *const **rows) {
        for (int j = 0; j < N; ++j) {
            const char *words = static_cast<const char *>(*rows[8 * j + lane_index() / 4]);
            memcpy(&matrix[j], words + 4 * (lane_index() % 4), 4);
        }
    });
}

template <int N> inline void ldmatrix_transposed(uint32_t (&matrix)[N], const void *row) {
    if (lane_index() < 8 * N && uintptr_t(row) % 16 != 0) __trap();
    in_view_of_the_warp(row, [&](const void *const **rows) {
        for (int j = 0; j < N; ++j) {
            uint16_t half[2];
            for (int i = 0; i < 2; ++i) {
                const char *elements = static_cast<const char *>(*rows[8 * j + 2 * (lane_index() % 4) + i]);
                memcpy(&half[i], elements + 2 * (lane_index() / 4), 2);
            }
            matrix[j] = uint32_t(half[1]) << 16 | half[0];
        }
    });
}

} // namespace emulated_tile

DEVICE void mma(FragmentC &c, const FragmentA_bf16 &a, const FragmentB_bf16 &b) { emulated_tile::mma(c, a, b); }
DEVICE void mma(FragmentC &c, const FragmentA_tf32 &a, const FragmentB_tf32 &b) { emulated_tile::mma(c, a, b); }
DEVICE void ldmatrix_x4(uint32_t (&matrix)[4], const void *row) { emulated_tile::ldmatrix(matrix, row); }
DEVICE void ldmatrix_x2(uint32_t (&matrix)[2], const void *row) { emulated_tile::ldmatrix(matrix, row); }
DEVICE void ldmatrix_x4_transposed(uint32_t (&matrix)[4], const void *row) { emulated_tile::ldmatrix_transposed(matrix, row); }
DEVICE void ldmatrix_x2_transposed(uint32_t (&matrix)[2], const void *row) { emulated_tile::ldmatrix_transposed(matrix, row); }

#endif

// The f32 values of a pair of bf16.
DEVICE float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
