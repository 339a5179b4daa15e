// The two matrix products of attention.cu, each a warp's own, in each arithmetic; and how rows lie in shared memory.
//
//   multiply   c [16 S, N] += own [16 S, D] other [N, D]^T    both operands from shared memory
//   combine    c [16 S, D] += p [16 S, N] other [N, D]        p from registers: what multiply left there, changed
//
// Sums have the places of FragmentC in all arithmetics, so that what happens to them between the products is written once. `other` is brought in
// once for both products. S strips of 16 rows share each of its fragments: with S = 2 a tensor core waits less for shared memory, from which a
// product of 16 x 16 x N (bf16) takes 32 bytes for every row of N.
#pragma once

#include "async.cuh"
#include "tile.cuh"

namespace {

constexpr int STRIP = 16;

// Rows of D elements in shared memory, 16 bytes behind each: neighbouring rows differ by an odd multiple of 16 bytes, so that eight rows'
// chunks of 16 bytes lie in different banks, and so do the words of `combine` in tf32, which come from every second row.
template <class Element, int D> struct Rows {
    static constexpr int BYTES = D * int(sizeof(Element));
    static constexpr int PITCH = BYTES + 16;
    static_assert(PITCH / 16 % 2 == 1, "see above");
};

template <int STRIPS, int COLUMNS> struct Sums {
    FragmentC x[STRIPS][COLUMNS / 8] = {};

    // function(element, row, column) for the lane's elements.
    template <class Function> DEVICE void each(Function function) {
#pragma unroll
        for (int strip = 0; strip < STRIPS; ++strip) {
#pragma unroll
            for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    function(x[strip][n].x[i], STRIP * strip + FragmentC::row(i), 8 * n + FragmentC::column(i));
                }
            }
        }
    }
};

// What both tensor-core arithmetics share: a row of either operand is 32 bytes an instruction.
template <class E, class A, class B> struct TensorCores {
    using Element = E;

    template <int D, int STRIPS, int N>
    static DEVICE void multiply(Sums<STRIPS, N> &c, const unsigned char *own, const unsigned char *other) {
        constexpr int PITCH = Rows<E, D>::PITCH;
        // Lanes 0 to 15 point at 16 rows' first 16 bytes, lanes 16 to 31 at the next 16 bytes.
        const int place = lane_index() % 16 * PITCH + lane_index() / 16 * 16;
        // Unrolled further, the loads of long rows come so early that registers run out.
#pragma unroll 4
        for (int k = 0; k < Rows<E, D>::BYTES; k += 32) {
            A a[STRIPS];
#pragma unroll
            for (int strip = 0; strip < STRIPS; ++strip) ldmatrix_x4(a[strip].x, own + place + strip * STRIP * PITCH + k);
#pragma unroll
            for (int n = 0; n < N / 8; n += 2) {
                uint32_t both[4];
                ldmatrix_x4(both, other + place + n * 8 * PITCH + k);
#pragma unroll
                for (int strip = 0; strip < STRIPS; ++strip) {
                    mma(c.x[strip][n], a[strip], B{{both[0], both[2]}});
                    mma(c.x[strip][n + 1], a[strip], B{{both[1], both[3]}});
                }
            }
        }
    }
};

struct Bf16 : TensorCores<__nv_bfloat16, FragmentA_bf16, FragmentB_bf16> {
    // p(strip, n): a FragmentC of columns 8 n to 8 n + 7. Two of them lie as one FragmentA does.
    template <int D, int N, int STRIPS, class P> static DEVICE void combine(Sums<STRIPS, D> &c, P p, const unsigned char *other) {
        constexpr int PITCH = Rows<Element, D>::PITCH;
        other += lane_index() % 16 * PITCH + lane_index() / 16 * 16;
#pragma unroll
        for (int k = 0; k < N; k += 16) {
            FragmentA_bf16 a[STRIPS];
#pragma unroll
            for (int strip = 0; strip < STRIPS; ++strip) {
                const FragmentC low = p(strip, k / 8), high = p(strip, k / 8 + 1);
                a[strip] = {{pack_bf16(low.x[0], low.x[1]), pack_bf16(low.x[2], low.x[3]), pack_bf16(high.x[0], high.x[1]),
                             pack_bf16(high.x[2], high.x[3])}};
            }
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                uint32_t both[4];
                ldmatrix_x4_transposed(both, other + k * PITCH + n * 16);
#pragma unroll
                for (int strip = 0; strip < STRIPS; ++strip) {
                    mma(c.x[strip][n], a[strip], FragmentB_bf16{{both[0], both[1]}});
                    mma(c.x[strip][n + 1], a[strip], FragmentB_bf16{{both[2], both[3]}});
                }
            }
        }
    }
};

struct Tf32 : TensorCores<float, FragmentA_tf32, FragmentB_tf32> {
    // A lane has columns 2 j and 2 j + 1 of p, j = lane % 4, where a FragmentA wants k = j and k = j + 4: the rows of `other` are counted in that
    // order instead.
    template <int D, int N, int STRIPS, class P> static DEVICE void combine(Sums<STRIPS, D> &c, P p, const unsigned char *other) {
        constexpr int PITCH = Rows<Element, D>::PITCH;
        other += lane_index() % 4 * 2 * PITCH + lane_index() / 4 * 4;
#pragma unroll
        for (int k = 0; k < N; k += 8) {
            FragmentA_tf32 a[STRIPS];
#pragma unroll
            for (int strip = 0; strip < STRIPS; ++strip) {
                const FragmentC c = p(strip, k / 8);
                a[strip] = {{to_tf32(c.x[0]), to_tf32(c.x[2]), to_tf32(c.x[1]), to_tf32(c.x[3])}};
            }
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const unsigned char *from = other + k * PITCH + n * 32;
                const FragmentB_tf32 b = {
                    {*reinterpret_cast<const uint32_t *>(from), *reinterpret_cast<const uint32_t *>(from + PITCH)}};
#pragma unroll
                for (int strip = 0; strip < STRIPS; ++strip) mma(c.x[strip][n], a[strip], b);
            }
        }
    }
};

DEVICE void add_products(float &sum, float4 a, float4 b) {
    sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Exact products of f32, without tensor cores. Four lanes share a row, eight a column.
struct F32 {
    using Element = float;

    template <int D, int STRIPS, int N>
    static DEVICE void multiply(Sums<STRIPS, N> &c, const unsigned char *own, const unsigned char *other) {
        constexpr int PITCH = Rows<float, D>::PITCH;
        own += FragmentC::row(0) * PITCH;
        other += FragmentC::column(0) * PITCH;
        // Not unrolled further: the loads of several chunks at once would take more registers than there are.
#pragma unroll 1
        for (int k = 0; k < Rows<float, D>::BYTES; k += 16) {
            float4 a[STRIPS][2];
#pragma unroll
            for (int half = 0; half < 2 * STRIPS; ++half) {
                a[half / 2][half % 2] = *reinterpret_cast<const float4 *>(own + 8 * half * PITCH + k);
            }
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
                const unsigned char *from = other + 8 * n * PITCH + k;
                const float4 b = *reinterpret_cast<const float4 *>(from), next = *reinterpret_cast<const float4 *>(from + PITCH);
#pragma unroll
                for (int strip = 0; strip < STRIPS; ++strip) {
                    FragmentC &sums = c.x[strip][n];
                    add_products(sums.x[0], a[strip][0], b);
                    add_products(sums.x[1], a[strip][0], next);
                    add_products(sums.x[2], a[strip][1], b);
                    add_products(sums.x[3], a[strip][1], next);
                }
            }
        }
    }

    template <int D, int N, int STRIPS, class P> static DEVICE void combine(Sums<STRIPS, D> &c, P p, const unsigned char *other) {
        constexpr int PITCH = Rows<float, D>::PITCH;
        other += FragmentC::column(0) * int(sizeof(float));
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
            FragmentC mine[STRIPS];
#pragma unroll
            for (int strip = 0; strip < STRIPS; ++strip) mine[strip] = p(strip, n);
            // Two columns of p at a time: those of one of the four lanes that share its rows.
#pragma unroll 1
            for (int member = 0; member < 4; ++member) {
                const int source = lane_index() / 4 * 4 + member;
                const unsigned char *from = other + (8 * n + 2 * member) * PITCH;
                FragmentC theirs[STRIPS];
#pragma unroll
                for (int strip = 0; strip < STRIPS; ++strip) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) theirs[strip].x[i] = __shfl_sync(FULL_WARP, mine[strip].x[i], source);
                }
#pragma unroll
                for (int m = 0; m < D / 8; ++m) {
                    const float2 b = *reinterpret_cast<const float2 *>(from + 32 * m);
                    const float2 next = *reinterpret_cast<const float2 *>(from + PITCH + 32 * m);
#pragma unroll
                    for (int strip = 0; strip < STRIPS; ++strip) {
                        float(&sums)[4] = c.x[strip][m].x;
                        const float(&a)[4] = theirs[strip].x;
                        sums[0] = fmaf(a[1], next.x, fmaf(a[0], b.x, sums[0]));
                        sums[1] = fmaf(a[1], next.y, fmaf(a[0], b.y, sums[1]));
                        sums[2] = fmaf(a[3], next.x, fmaf(a[2], b.x, sums[2]));
                        sums[3] = fmaf(a[3], next.y, fmaf(a[2], b.y, sums[3]));
                    }
                }
            }
        }
    }
};

} // namespace
