// What every kernel file includes first: the dialect that nvcc and, through emulator/, a plain C++ compiler understand.
//
// A kernel file compiles alone, with `nvcc -std=c++17 -Ikernels` and with `g++ -std=c++20 -DHEADFIRST_EMULATOR -Ikernels`. The rules:
//
//   KERNEL(threads, blocks) name(arguments) { ... }     a kernel of at most `threads` threads a block, at least `blocks` blocks a multiprocessor
//   EXPORT(name);                                       at the end of the file, once for each kernel
//   SHARED_MEMORY(type, name);                          the block's dynamic shared memory as `type *name` (16-byte aligned); there is no static one
//   barrier();                                          all threads of the block; never inside a branch that only some of them take
//   grid_barrier(state, blocks);                        all blocks of a cooperative launch: memory written before is visible after
//   grid_arrive(state); grid_wait(state, count);        its two halves, for work in between: a block that waits for `count` arrivals sees what
//                                                       those blocks wrote before them; all threads of a block call both
//
// Arguments are pointers, int, unsigned, long long, unsigned long long and float, nothing else: the host passes one 8-byte slot for each.
// Sizes in elements are int where they are below 2^31, offsets into large tensors long long. Warp primitives carry CUDA's names
// (__shfl_sync, __shfl_xor_sync, __shfl_down_sync, __shfl_up_sync, __ballot_sync, __any_sync, __all_sync, __syncwarp) and full masks
// (FULL_WARP) unless the mask is what they are about. No static or global variables, no local arrays with run-time indices, no float atomics, no printf,
// no recursion. Device functions are `DEVICE`, which says `inline`. Sums run in a fixed order: the bits depend on the shapes alone.
#pragma once

#include <cstdint>

#ifdef HEADFIRST_EMULATOR
#include "emulator/device.h"
#else

#include <cuda_bf16.h>

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define EXPORT(name) static_assert(true, "kernels are exported by their unmangled names")
#define SHARED_MEMORY(type, name)                                   \
    extern __shared__ __align__(128) unsigned char shared_memory[]; \
    type *name = reinterpret_cast<type *>(shared_memory)

DEVICE void barrier() { __syncthreads(); }

// Arrivals are counted for good: the counter must be zero before the first one, and the waiting block knows how many there have to be.
// Thread 0 arrives with release and waits with acquire semantics; the block barriers carry that to all threads.
DEVICE void grid_arrive(unsigned *state) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(state) : "memory");
    }
}

DEVICE void grid_wait(unsigned *state, unsigned count) {
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        unsigned seen;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(state) : "memory");
        } while (int(seen - count) < 0);
    }
    __syncthreads();
}

// The counter of `grid_barrier` wraps around after 2^31 barriers; it must be zero before a kernel's first one and is left at a multiple of
// `blocks`. Thread 0 of every block arrives with release and waits with acquire semantics; the block barriers carry that to all threads.
DEVICE void grid_barrier(unsigned *state, unsigned blocks) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        unsigned arrived;
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(arrived) : "l"(state) : "memory");
        const unsigned target = arrived / blocks * blocks + blocks;
        unsigned seen;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(state) : "memory");
        } while (int(seen - target) < 0);
    }
    __syncthreads();
}

#endif

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int WARP = 32;

// Sum and maximum over a warp: the same bits in every lane, in an order that depends on nothing.
template <typename T> DEVICE T warp_sum(T value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(FULL_WARP, value, distance);
    return value;
}

DEVICE float warp_max(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}

// Sum over a block of up to 1024 threads (a multiple of 32, one-dimensional); `scratch` holds 32 values in shared memory. All threads get the sum. Ends
// with a barrier, so that scratch can be used again at once.
template <typename T> DEVICE T block_sum(T value, T *scratch) {
    const int warps = blockDim.x / WARP;
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    barrier();
    T sum = scratch[0];
    for (int warp = 1; warp < warps; ++warp) sum += scratch[warp];
    barrier();
    return sum;
}

DEVICE float block_max(float value, float *scratch) {
    const int warps = blockDim.x / WARP;
    value = warp_max(value);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    barrier();
    float maximum = scratch[0];
    for (int warp = 1; warp < warps; ++warp) maximum = fmaxf(maximum, scratch[warp]);
    barrier();
    return maximum;
}

// The logistic function, without overflow on either side.
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
