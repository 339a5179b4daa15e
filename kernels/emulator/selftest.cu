// Kernels that test the emulator: right ones, and ones with a mistake that it must find. Their promises are in
// src/backend/cuda/emulator.rs.
#include "async.cuh"

// What a launch tells a thread about its place: [blocks, threads], one number each.
KERNEL(1024, 1) selftest_places(unsigned *places) {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    places[block * blockDim.x * blockDim.y * blockDim.z + thread] =
        threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * blockIdx.x + 10000 * blockIdx.y + 100000 * blockIdx.z;
}
EXPORT(selftest_places);

KERNEL(1, 1)
selftest_arguments(int *i, int value_i, unsigned *u, unsigned value_u, long long *l, long long value_l, unsigned long long *ul,
                   unsigned long long value_ul, float *f, float value_f) {
    *i = value_i;
    *u = value_u;
    *l = value_l;
    *ul = value_ul;
    *f = value_f;
}
EXPORT(selftest_arguments);

// Sums of `count` values by blocks: [blocks].
KERNEL(1024, 1) selftest_sum(const float *values, float *sums, int count) {
    SHARED_MEMORY(float, scratch);
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += values[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
EXPORT(selftest_sum);

// Inclusive prefix sums within the block, in place (Hillis and Steele).
template <bool SYNCHRONISED> DEVICE void scan(int *values) {
    SHARED_MEMORY(int, sums);
    const int thread = threadIdx.x;
    sums[thread] = values[thread];
    barrier();
    for (int distance = 1; distance < int(blockDim.x); distance *= 2) {
        const int other = thread >= distance ? sums[thread - distance] : 0;
        if (SYNCHRONISED) barrier(); // all have read what others are about to change
        sums[thread] += other;
        barrier();
    }
    values[thread] = sums[thread];
}

KERNEL(1024, 1) selftest_scan(int *values) { scan<true>(values); }
EXPORT(selftest_scan);

KERNEL(1024, 1) selftest_scan_without_barrier(int *values) { scan<false>(values); }
EXPORT(selftest_scan_without_barrier);

// to: [columns, rows] = from: [rows, columns], in tiles of 32 x 32 by blocks of 32 x 8.
KERNEL(256, 1) selftest_transpose(const float *from, float *to, int rows, int columns) {
    SHARED_MEMORY(float, tile); // [32, 33]
    const int row = blockIdx.y * 32, column = blockIdx.x * 32;
    for (int i = threadIdx.y; i < 32; i += 8) {
        if (row + i < rows && column + int(threadIdx.x) < columns) {
            tile[i * 33 + threadIdx.x] = from[(row + i) * columns + column + threadIdx.x];
        }
    }
    barrier();
    for (int i = threadIdx.y; i < 32; i += 8) {
        if (column + i < columns && row + int(threadIdx.x) < rows) {
            to[(column + i) * rows + row + threadIdx.x] = tile[threadIdx.x * 33 + i];
        }
    }
}
EXPORT(selftest_transpose);

// results: [9, threads]; the last row has votes of the even and the odd lanes, each under a mask of their own.
KERNEL(64, 1) selftest_shuffles(int *results) {
    const int thread = threadIdx.x, lane = thread % WARP, threads = blockDim.x;
    results[0 * threads + thread] = __shfl_sync(FULL_WARP, thread, lane + 5);
    results[1 * threads + thread] = __shfl_up_sync(FULL_WARP, thread, 3u);
    results[2 * threads + thread] = __shfl_down_sync(FULL_WARP, thread, 3u, 8);
    results[3 * threads + thread] = __shfl_xor_sync(FULL_WARP, thread, 16);
    results[4 * threads + thread] = int(__ballot_sync(FULL_WARP, lane % 3 == 0));
    results[5 * threads + thread] = __any_sync(FULL_WARP, thread == 40);
    results[6 * threads + thread] = __all_sync(FULL_WARP, thread < 32);
    results[7 * threads + thread] = int(__shfl_sync(FULL_WARP, double(thread) * 0.5, 30));
    const unsigned half = lane % 2 ? 0xaaaaaaaau : 0x55555555u;
    results[8 * threads + thread] = lane % 2 ? int(__ballot_sync(half, lane < 16)) : int(__ballot_sync(half, lane >= 16));
}
EXPORT(selftest_shuffles);

// Thread 0 of each warp writes what the others read, with nothing but __syncwarp between (or not).
template <bool SYNCHRONISED> DEVICE void broadcast(int *results) {
    SHARED_MEMORY(int, box);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 7) box[warp] = warp + 1;
    if (SYNCHRONISED) __syncwarp();
    results[threadIdx.x] = box[warp];
}

KERNEL(64, 1) selftest_broadcast(int *results) { broadcast<true>(results); }
EXPORT(selftest_broadcast);

KERNEL(64, 1) selftest_broadcast_without_syncwarp(int *results) { broadcast<false>(results); }
EXPORT(selftest_broadcast_without_syncwarp);

// In each round a block adds its neighbour's number to its own: boxes: [2, blocks], the result in boxes[rounds % 2].
template <bool SYNCHRONISED> DEVICE void ring(unsigned *boxes, unsigned *state, int rounds) {
    const unsigned blocks = gridDim.x, mine = blockIdx.x, neighbour = (mine + 1) % blocks;
    for (int round = 0; round < rounds; ++round) {
        const unsigned *from = boxes + round % 2 * blocks;
        unsigned *to = boxes + (round + 1) % 2 * blocks;
        if (threadIdx.x == blockDim.x - 1) to[mine] = from[mine] + 3 * from[neighbour];
        if (SYNCHRONISED) grid_barrier(state, blocks);
    }
}

KERNEL(256, 1) selftest_ring(unsigned *boxes, unsigned *state, int rounds) { ring<true>(boxes, state, rounds); }
EXPORT(selftest_ring);

KERNEL(256, 1) selftest_ring_without_barrier(unsigned *boxes, unsigned *state, int rounds) { ring<false>(boxes, state, rounds); }
EXPORT(selftest_ring_without_barrier);

// The first half of the blocks and the second half meet apart, each with a state of its own, as the directions of an LSTM do.
KERNEL(64, 1) selftest_two_rings(unsigned *sums, unsigned *states, int rounds) {
    const unsigned half = gridDim.x / 2, group = blockIdx.x / half;
    for (int round = 0; round < rounds * int(group + 1); ++round) {
        if (threadIdx.x == 0) atomicAdd(&sums[group], 1u);
        grid_barrier(&states[group], half);
        if (sums[group] != half * unsigned(round + 1)) __trap();
        grid_barrier(&states[group], half);
    }
}
EXPORT(selftest_two_rings);

// Only blocks below `blocks` go to the barrier.
KERNEL(32, 1) selftest_lost_blocks(unsigned *state, int blocks) {
    if (int(blockIdx.x) < blocks) grid_barrier(state, gridDim.x);
}
EXPORT(selftest_lost_blocks);

KERNEL(256, 1) selftest_bfloat16(const float *values, unsigned *bits, float *back, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const __nv_bfloat16 value = __float2bfloat16_rn(values[i]);
        bits[i] = __bfloat16_as_ushort(value);
        back[i] = __bfloat162float(value);
    }
}
EXPORT(selftest_bfloat16);

// Only threads below `threads` go to the barrier.
KERNEL(256, 1) selftest_lost_threads(int threads) {
    if (int(threadIdx.x) < threads) barrier();
}
EXPORT(selftest_lost_threads);

KERNEL(256, 1) selftest_divergent() {
    if (threadIdx.x < 10) {
        barrier();
    } else {
        barrier();
    }
}
EXPORT(selftest_divergent);

// `how`: the lane ends (0), waits in the barrier (1), is in another primitive (2), waits with another mask (3), is not in its mask (4).
KERNEL(256, 1) selftest_missing_lane(int lane, int how) {
    if (int(threadIdx.x) == lane) {
        if (how == 0) return;
        if (how == 1) barrier();
        if (how == 2) __any_sync(FULL_WARP, 1);
        if (how == 3) __syncwarp(3u << lane % WARP);
        if (how == 4) __syncwarp(1u << (lane ^ 1) % WARP);
    }
    __shfl_xor_sync(FULL_WARP, 1.0f, 1);
    barrier();
}
EXPORT(selftest_missing_lane);

KERNEL(32, 1) selftest_stray_source() { __shfl_down_sync(threadIdx.x < 16 ? 0xffffu : 0xffff0000u, 1, 1); }
EXPORT(selftest_stray_source);

KERNEL(256, 1) selftest_write(int index, int value) {
    SHARED_MEMORY(int, numbers);
    if (threadIdx.x == 3) numbers[index] = value;
}
EXPORT(selftest_write);

// The value at `index`, which may lie beside the buffer.
KERNEL(1, 1) selftest_read(const float *values, int index, float *result) { *result = values[index]; }
EXPORT(selftest_read);

// What is in the shared memory before anything was written there.
KERNEL(256, 1) selftest_poison(unsigned *bits) {
    SHARED_MEMORY(unsigned, numbers);
    bits[threadIdx.x] = numbers[threadIdx.x];
}
EXPORT(selftest_poison);

// Each thread copies 16 bytes of each of `steps` tiles of [threads, 4] ahead of their use, in two buffers: to[step] is from[step] as its
// neighbour copied it. `mistake`: the wait is missing (1), the buffer is filled again before all have read it (2).
KERNEL(64, 1) selftest_pipeline(const float *from, float *to, int steps, int last, int mistake) {
    SHARED_MEMORY(float, buffers); // [2, threads, 4]
    const int thread = threadIdx.x, size = 4 * blockDim.x, neighbour = (thread + 1) % blockDim.x;
    const auto start = [&](int step) {
        if (step < steps) {
            copy_async(buffers + step % 2 * size + 4 * thread, from + step * size + 4 * thread, step == steps - 1 ? last : 16);
        }
        copy_async_commit();
    };
    start(0);
    for (int step = 0; step < steps; ++step) {
        start(step + 1);
        if (mistake != 1) copy_async_wait<1>();
        barrier();
        for (int i = 0; i < 4; ++i) to[step * size + 4 * thread + i] = buffers[step % 2 * size + 4 * neighbour + i];
        if (mistake != 2) barrier();
    }
}
EXPORT(selftest_pipeline);

KERNEL(64, 1) selftest_trap(int thread) {
    if (int(threadIdx.x) == thread) __trap();
}
EXPORT(selftest_trap);

// counts: how many threads ran, the largest number, the bits of all lanes.
KERNEL(1024, 1) selftest_atomics(unsigned *counts) {
    atomicAdd(&counts[0], 1u);
    atomicMax(&counts[1], blockIdx.x * blockDim.x + threadIdx.x);
    atomicOr(&counts[2], 1u << threadIdx.x % WARP);
}
EXPORT(selftest_atomics);

// y = x + y, one element a thread, with float4 where it fits.
KERNEL(256, 1) selftest_add(const float *__restrict__ x, float *__restrict__ y, int count) {
    const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 4 <= count) {
        const float4 a = __ldg(reinterpret_cast<const float4 *>(x + i));
        float4 &b = *reinterpret_cast<float4 *>(y + i);
        b = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    } else {
        for (int j = i; j < count; ++j) y[j] += x[j];
    }
}
EXPORT(selftest_add);

// Nothing but barriers, for measuring.
KERNEL(1024, 1) selftest_barriers(int rounds) {
    for (int round = 0; round < rounds; ++round) barrier();
}
EXPORT(selftest_barriers);
