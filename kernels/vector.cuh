// Loops over f32 elements: four to an access of 16 bytes where all pointers allow it, single ones for the rest.
//
// A loop's body is written once, against a place: `at.load(x)` is a float4 at a Quad and a float at a Single, and the arithmetic below
// takes either. So the bits of an elementwise result depend neither on alignment nor on which of the two computed it.
#pragma once

#include "common.cuh"

DEVICE float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
DEVICE float4 operator*(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
DEVICE float4 operator*(float factor, float4 a) { return make_float4(factor * a.x, factor * a.y, factor * a.z, factor * a.w); }

// function(a), function(a, b): lane by lane.
template <typename Function> DEVICE float lanes(Function function, float a) { return function(a); }
template <typename Function> DEVICE float lanes(Function function, float a, float b) { return function(a, b); }
template <typename Function> DEVICE float lanes(Function function, float a, float b, float c) { return function(a, b, c); }
template <typename Function> DEVICE float4 lanes(Function function, float4 a) {
    return make_float4(function(a.x), function(a.y), function(a.z), function(a.w));
}
template <typename Function> DEVICE float4 lanes(Function function, float4 a, float4 b) {
    return make_float4(function(a.x, b.x), function(a.y, b.y), function(a.z, b.z), function(a.w, b.w));
}
template <typename Function> DEVICE float4 lanes(Function function, float4 a, float4 b, float4 c) {
    return make_float4(function(a.x, b.x, c.x), function(a.y, b.y, c.y), function(a.z, b.z, c.z), function(a.w, b.w, c.w));
}

// Two bf16 in a word, the first in its low half, as they lie in memory.
DEVICE unsigned to_bfloat16_pair(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return unsigned(__bfloat16_as_ushort(pair.y)) << 16 | __bfloat16_as_ushort(pair.x);
}

// The element at `i`.
struct Single {
    long long i;
    DEVICE float load(const float *x) const { return x[i]; }
    DEVICE float load(const __nv_bfloat16 *x) const { return __bfloat162float(x[i]); }
    DEVICE void store(float *y, float value) const { y[i] = value; }
    DEVICE void store(__nv_bfloat16 *y, float value) const { y[i] = __float2bfloat16_rn(value); }
    static DEVICE float all(float value) { return value; }
};

// The four elements from `i`, a multiple of four.
struct Quad {
    long long i;
    DEVICE float4 load(const float *x) const { return *reinterpret_cast<const float4 *>(x + i); }
    DEVICE float4 load(const __nv_bfloat16 *x) const {
        const uint2 pairs = *reinterpret_cast<const uint2 *>(x + i);
        return make_float4(__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u), __uint_as_float(pairs.y << 16),
                           __uint_as_float(pairs.y & 0xffff0000u));
    }
    DEVICE void store(float *y, float4 value) const { *reinterpret_cast<float4 *>(y + i) = value; }
    DEVICE void store(__nv_bfloat16 *y, float4 value) const {
        *reinterpret_cast<uint2 *>(y + i) = make_uint2(to_bfloat16_pair(value.x, value.y), to_bfloat16_pair(value.z, value.w));
    }
    static DEVICE float4 all(float value) { return make_float4(value, value, value, value); }
};

// Whether a Quad may be used: f32 at a multiple of 16 bytes, bf16 of 8. A null pointer hinders nothing.
DEVICE bool is_aligned(const float *x) { return reinterpret_cast<std::uintptr_t>(x) % 16 == 0; }
DEVICE bool is_aligned(const __nv_bfloat16 *x) { return reinterpret_cast<std::uintptr_t>(x) % 8 == 0; }
template <typename... Pointers> DEVICE bool are_aligned(Pointers... pointers) { return (is_aligned(pointers) && ...); }

// The four elements of x: [n] from i, a multiple of four: for sums, whose order must not depend on alignment. `filling` stands for what
// lies beyond n.
DEVICE float4 load_four(const float *x, long long i, long long n, bool aligned, float filling = 0.0f) {
    if (aligned && i + 4 <= n) return Quad{i}.load(x);
    const auto single = [=](long long j) { return j < n ? x[j] : filling; };
    return make_float4(single(i), single(i + 1), single(i + 2), single(i + 3));
}

DEVICE void store_four(float *y, long long i, long long n, bool aligned, float4 values) {
    if (aligned && i + 4 <= n) {
        Quad{i}.store(y, values);
        return;
    }
    if (i < n) y[i] = values.x;
    if (i + 1 < n) y[i + 1] = values.y;
    if (i + 2 < n) y[i + 2] = values.z;
    if (i + 3 < n) y[i + 3] = values.w;
}

// Which of a group's `count` threads this is. Loops stride by the group: all threads of a launch (one-dimensional, fewer than 2^31), or of
// a block.
struct Threads {
    int number, count;
    static DEVICE Threads of_launch() { return {int(blockIdx.x * blockDim.x + threadIdx.x), int(gridDim.x * blockDim.x)}; }
    static DEVICE Threads of_block() { return {int(threadIdx.x), int(blockDim.x)}; }
};

// function(place) for every element of [0, n).
template <typename Function> DEVICE void for_each(Threads threads, long long n, bool aligned, Function function) {
    const long long quads = aligned ? n / 4 : 0;
    for (long long quad = threads.number; quad < quads; quad += threads.count) function(Quad{4 * quad});
    for (long long i = 4 * quads + threads.number; i < n; i += threads.count) function(Single{i});
}

// function(row, column) for every row of [0, rows) and column of [0, columns), columns > 0. Divides once, not for every element.
template <typename Function> DEVICE void for_each_in_rows(Threads threads, int rows, int columns, Function function) {
    const int rows_per_step = threads.count / columns, columns_per_step = threads.count % columns;
    int row = threads.number / columns, column = threads.number % columns;
    while (row < rows) {
        function(row, column);
        row += rows_per_step;
        column += columns_per_step;
        if (column >= columns) {
            column -= columns;
            ++row;
        }
    }
}
