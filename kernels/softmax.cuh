// What softmax.cu and ctc.cu share: the exponential of what is not positive, and the statistics of a row of logits.
#pragma once

#include "common.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float LOWEST = -3.402823466e38f; // the least finite number

#ifdef HEADFIRST_EMULATOR
DEVICE float exp2_flushed(float x) { return x < -126.0f ? 0.0f : exp2f(x); }
#else
// 2^x in one instruction (relative error about 2^-22), results below 2^-126 are 0. exp2f spends three more on those.
DEVICE float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

// exp(x) for x <= 0. The maximum is subtracted before the product with log2 e, not after it: a common offset of the logits costs no accuracy.
DEVICE float exponential(float x) { return exp2_flushed(x * LOG2_E); }

// The maximum of the logits seen so far and the sum of exp(x - maximum): one pass over them is enough. A NaN shows in the sum.
struct Statistics {
    float maximum = LOWEST, sum = 0.0f;

    // Several at once, so that the sum is brought to a new maximum once for all of them. -INFINITY adds nothing.
    template <int COUNT> DEVICE void add(const float (&x)[COUNT]) {
        float larger = maximum;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) larger = fmaxf(larger, x[i]);
        sum *= exponential(maximum - larger);
        maximum = larger;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sum += exponential(x[i] - maximum);
    }
};

// Of a warp, in all its lanes.
DEVICE Statistics warp_statistics(Statistics own) {
    const float maximum = warp_max(own.maximum);
    const float sum = warp_sum(own.sum * exponential(own.maximum - maximum));
    Statistics all;
    all.maximum = maximum;
    all.sum = sum;
    return all;
}
