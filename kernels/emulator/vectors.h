// CUDA's vector types, with its alignment, and bfloat16 as cuda_bf16.h has it.
#pragma once

#include <cstdint>
#include <cstring>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct uint3 {
    unsigned x, y, z;
};

#define VECTORS(type, name)                                                                                     \
    struct alignas(2 * sizeof(type)) name##2 {                                                                  \
        type x, y;                                                                                              \
    };                                                                                                          \
    struct alignas(4 * sizeof(type)) name##4 {                                                                  \
        type x, y, z, w;                                                                                        \
    };                                                                                                          \
    constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                                         \
    constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

VECTORS(float, float)
VECTORS(int, int)
VECTORS(unsigned, uint)
#undef VECTORS

namespace emulator {
// The value of the same bits in another type.
template <typename To, typename From> inline To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
} // namespace emulator

// No arithmetic of its own: kernels compute in f32, and an operator that rounds on a GPU but not here would tell the two apart.
struct __nv_bfloat16 {
    std::uint16_t bits = 0;

    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value);
    explicit operator float() const { return emulator::bits<float>(std::uint32_t{bits} << 16); }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 result;
    result.bits = bits;
    return result;
}

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

// Rounds to the nearest, ties to even; a value beyond the largest becomes infinite; every NaN becomes 0x7fff, as on a GPU.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const auto bits = emulator::bits<std::uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return __ushort_as_bfloat16(0x7fff);
    return __ushort_as_bfloat16(static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16));
}

inline __nv_bfloat16::__nv_bfloat16(float value) : bits(__float2bfloat16_rn(value).bits) {}
inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return static_cast<float>(value); }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return __floats2bfloat162_rn(value.x, value.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {__bfloat162float(value.x), __bfloat162float(value.y)}; }
inline float __low2float(__nv_bfloat162 value) { return __bfloat162float(value.x); }
inline float __high2float(__nv_bfloat162 value) { return __bfloat162float(value.y); }
