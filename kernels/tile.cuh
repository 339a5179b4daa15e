// Matrix tiles: the tensor cores' instructions, one function each, and the conversions that feed them.
//
// A warp holds a tile together: every lane a fragment, the few elements that PTX documents for it (PTX ISA, "Matrix Fragments for mma.m16n8k8" and
// "... for mma.m16n8k16"). `row` and `column` of a fragment say which; `group` is lane / 4, `member` lane % 4. All 32 lanes call each function, with
// one-dimensional blocks of whole warps.
//
//   mma(c, a, b)       c [16, 8] += a [16, K] b [K, 8]; f32 sums. bf16: K = 16. tf32: K = 8.
//   ldmatrix_x4, ...   8 x 8 matrices of 16-bit elements from rows in shared memory that the lanes point at; the plain one gives tf32's
//                      fragments too, since four 32-bit elements are as long as a row of eight 16-bit ones
//   to_tf32, pack_bf16 f32 -> operand, rounded to nearest (tf32: ties away from zero, as cvt.rna does; bf16: ties to even)
//
// The emulator models them lane by lane: a lane knows its own fragment alone, and a product gathers the others' across the warp, so that an element
// in the wrong lane gives a wrong product there as well. Products are exact in f32 (8 x 8 and 11 x 11 bits of mantissa); the emulator adds them to c one by
// one, k ascending, each sum rounded to nearest. The hardware keeps the sum of a few products wider and truncates it (undocumented), so its bits differ
// from the emulator's by about 2^-23 of the largest term; tf32 operands lose their 13 lowest bits on both.
#pragma once

#include "common.cuh"

#ifdef HEADFIRST_EMULATOR
#include <cstring>
#endif

DEVICE int lane_index() { return int(threadIdx.x) % WARP; }

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

DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t float_to_bits(float value) { return __float_as_uint(value); }

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

// Lane l points at row l % 8 of matrix l / 8 (16 bytes in shared memory, 16-byte aligned). matrix[j] of lane l is then the word l % 4 of row l / 4 of
// matrix j: elements 2 (l % 4) and the next.
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

DEVICE float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

DEVICE uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

DEVICE uint32_t to_tf32(float value) {
    const uint32_t bits = float_to_bits(value);
    if (value != value) return 0x7fffffffu;
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

namespace emulated_tile {

inline uint32_t to_bf16(float value) {
    const uint32_t bits = float_to_bits(value);
    return value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// Calls body(lanes), where lanes[l] points at lane l's `mine`: the warp's registers in view. One lane lends the table; nobody leaves while it is read.
template <typename T, typename Body> inline void in_view_of_the_warp(const T &mine, Body body) {
    const T *table[WARP];
    const auto lent = __shfl_sync(FULL_WARP, (unsigned long long)(uintptr_t)table, 0);
    const T **lanes = reinterpret_cast<const T **>(uintptr_t(lent));
    lanes[lane_index()] = &mine;
    __syncwarp(FULL_WARP);
    body(lanes);
    __syncwarp(FULL_WARP);
}

// An element of a 16-bit or 32-bit operand as the hardware reads it.
inline float bf16_element(uint32_t word, int half) { return bits_to_float(half ? word & 0xffff0000u : word << 16); }
inline float tf32_element(uint32_t word) { return bits_to_float(word & 0xffffe000u); }


} // namespace emulated_tile

DEVICE uint32_t pack_bf16(float low, float high) { return emulated_tile::to_bf16(high) << 16 | emulated_tile::to_bf16(low); }

DEVICE void mma(FragmentC &c, const FragmentA_bf16 &a, const FragmentB_bf16 &b) {
    struct Operands {
        const FragmentA_bf16 &a;
        const FragmentB_bf16 &b;
    };
    const Operands mine{a, b};
    FragmentC sum = c;
    emulated_tile::in_view_of_the_warp(mine, [&](const Operands **lanes) {
        for (int i = 0; i < 4; ++i) {
            const int row = FragmentC::row(i), column = FragmentC::column(i);
            for (int k = 0; k < 16; ++k) {
                const uint32_t left = lanes[row % 8 * 4 + k % 8 / 2]->a.x[row / 8 + k / 8 * 2];
                const uint32_t right = lanes[column * 4 + k % 8 / 2]->b.x[k / 8];
                sum.x[i] += emulated_tile::bf16_element(left, k % 2) * emulated_tile::bf16_element(right, k % 2);
            }
        }
    });
    c = sum;
}

DEVICE void mma(FragmentC &c, const FragmentA_tf32 &a, const FragmentB_tf32 &b) {
    struct Operands {
        const FragmentA_tf32 &a;
        const FragmentB_tf32 &b;
    };
    const Operands mine{a, b};
    FragmentC sum = c;
    emulated_tile::in_view_of_the_warp(mine, [&](const Operands **lanes) {
        for (int i = 0; i < 4; ++i) {
            const int row = FragmentC::row(i), column = FragmentC::column(i);
            for (int k = 0; k < 8; ++k) {
                const uint32_t left = lanes[row % 8 * 4 + k % 4]->a.x[row / 8 + k / 4 * 2];
                const uint32_t right = lanes[column * 4 + k % 4]->b.x[k / 4];
                sum.x[i] += emulated_tile::tf32_element(left) * emulated_tile::tf32_element(right);
            }
        }
    });
    c = sum;
}

namespace emulated_tile {

template <int N> inline void ldmatrix(uint32_t (&matrix)[N], const void *row) {
    in_view_of_the_warp(row, [&](const void *const **rows) {
        for (int j = 0; j < N; ++j) {
            const char *words = static_cast<const char *>(*rows[8 * j + lane_index() / 4]);
            std::memcpy(&matrix[j], words + 4 * (lane_index() % 4), 4);
        }
    });
}

template <int N> inline void ldmatrix_transposed(uint32_t (&matrix)[N], const void *row) {
    in_view_of_the_warp(row, [&](const void *const **rows) {
        for (int j = 0; j < N; ++j) {
            uint16_t half[2];
            for (int i = 0; i < 2; ++i) {
                const char *elements = static_cast<const char *>(*rows[8 * j + 2 * (lane_index() % 4) + i]);
                std::memcpy(&half[i], elements + 2 * (lane_index() / 4), 2);
            }
            matrix[j] = uint32_t(half[1]) << 16 | half[0];
        }
    });
}

} // namespace emulated_tile

DEVICE void ldmatrix_x4(uint32_t (&matrix)[4], const void *row) { emulated_tile::ldmatrix(matrix, row); }
DEVICE void ldmatrix_x2(uint32_t (&matrix)[2], const void *row) { emulated_tile::ldmatrix(matrix, row); }
DEVICE void ldmatrix_x4_transposed(uint32_t (&matrix)[4], const void *row) { emulated_tile::ldmatrix_transposed(matrix, row); }
DEVICE void ldmatrix_x2_transposed(uint32_t (&matrix)[2], const void *row) { emulated_tile::ldmatrix_transposed(matrix, row); }

#endif

// The f32 values of a pair of bf16.
DEVICE float bf16_low(uint32_t pair) { return bits_to_float(pair << 16); }
DEVICE float bf16_high(uint32_t pair) { return bits_to_float(pair & 0xffff0000u); }
