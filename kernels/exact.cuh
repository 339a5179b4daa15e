// f32 arithmetic in which every result is rounded to nearest by itself. nvcc fuses a product and a sum into one rounding where it can; the
// CPU does not. Where both have to give the same bits, a kernel says so with these.
#pragma once

#include "common.cuh"

DEVICE float sum_of(float a, float b) { return __fadd_rn(a, b); }
DEVICE float difference(float a, float b) { return __fsub_rn(a, b); }
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float root(float a) { return __fsqrt_rn(a); }
