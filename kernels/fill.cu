// Sets a tensor to one value. 4 bytes written per element, nothing read: bound by memory.
#include "common.cuh"

// y: [n]. Any number of blocks: each thread goes on by the size of the grid.
KERNEL(256, 1) fill(float *y, float value, long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) y[i] = value;
}

EXPORT(fill);
