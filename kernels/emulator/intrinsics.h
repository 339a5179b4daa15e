// CUDA's intrinsics, as far as kernels use them. The f32 functions are those of the C library: they differ from the GPU's in the last
// bits, as documented in the CUDA programming guide.
#pragma once

#include "vectors.h"

#include <math.h>

#include <atomic>
#include <type_traits>

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); } // a NaN becomes 0, as on a GPU

inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulator::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline float __int_as_float(int x) { return emulator::bits<float>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
// Conversions saturate and turn NaN into 0, as on a GPU; a cast of such a value is undefined in C++.
inline int __float2int_rn(float x) {
    if (isnan(x)) return 0;
    return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : static_cast<int>(rintf(x));
}

inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<unsigned long long>(x) * y >> 32); }
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<long long>(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

// min and max in the types that CUDA overloads them for; of a float and NaN they give the float.
#define MIN_MAX(type)                                           \
    constexpr type min(type x, type y) { return y < x ? y : x; } \
    constexpr type max(type x, type y) { return x < y ? y : x; }
MIN_MAX(int)
MIN_MAX(unsigned)
MIN_MAX(long)
MIN_MAX(unsigned long)
MIN_MAX(long long)
MIN_MAX(unsigned long long)
#undef MIN_MAX
constexpr unsigned min(int x, unsigned y) { return min(static_cast<unsigned>(x), y); }
constexpr unsigned min(unsigned x, int y) { return min(x, static_cast<unsigned>(y)); }
constexpr unsigned max(int x, unsigned y) { return max(static_cast<unsigned>(x), y); }
constexpr unsigned max(unsigned x, int y) { return max(x, static_cast<unsigned>(y)); }
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }

// Loads and stores with a word about caches, which say nothing here.
template <typename T> inline T __ldg(const T *from) { return *from; }
template <typename T> inline T __ldcg(const T *from) { return *from; }
template <typename T> inline T __ldcs(const T *from) { return *from; }
template <typename T> inline void __stcg(T *to, T value) { *to = value; }
template <typename T> inline void __stcs(T *to, T value) { *to = value; }

// Atomics on integers; those on floats are not there, since their sums would depend on the order.
namespace emulator {
template <typename T> using Atomic = std::enable_if_t<std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), T>;

template <typename T, typename Change> inline T change(T *where, Change change) {
    T old = __atomic_load_n(where, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(where, &old, change(old), false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    }
    return old;
}
} // namespace emulator

template <typename T> inline emulator::Atomic<T> atomicAdd(T *where, std::type_identity_t<T> value) {
    return __atomic_fetch_add(where, value, __ATOMIC_ACQ_REL);
}
template <typename T> inline emulator::Atomic<T> atomicSub(T *where, std::type_identity_t<T> value) {
    return __atomic_fetch_sub(where, value, __ATOMIC_ACQ_REL);
}
template <typename T> inline emulator::Atomic<T> atomicOr(T *where, std::type_identity_t<T> value) {
    return __atomic_fetch_or(where, value, __ATOMIC_ACQ_REL);
}
template <typename T> inline emulator::Atomic<T> atomicAnd(T *where, std::type_identity_t<T> value) {
    return __atomic_fetch_and(where, value, __ATOMIC_ACQ_REL);
}
template <typename T> inline emulator::Atomic<T> atomicExch(T *where, std::type_identity_t<T> value) {
    return __atomic_exchange_n(where, value, __ATOMIC_ACQ_REL);
}
template <typename T> inline emulator::Atomic<T> atomicMin(T *where, std::type_identity_t<T> value) {
    return emulator::change(where, [&](T old) { return value < old ? value : old; });
}
template <typename T> inline emulator::Atomic<T> atomicMax(T *where, std::type_identity_t<T> value) {
    return emulator::change(where, [&](T old) { return old < value ? value : old; });
}
template <typename T>
inline emulator::Atomic<T> atomicCAS(T *where, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    __atomic_compare_exchange_n(where, &expected, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return expected;
}

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
