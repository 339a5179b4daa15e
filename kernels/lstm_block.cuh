// What both passes of the LSTM share: which block does what, when, and with which part of its shared memory (the head of lstm.cu says why).
#pragma once

#include "lstm_product.cuh"
#include "random.cuh"

// A counter of arrivals has a sector of the cache to itself.
constexpr int COUNTER_STRIDE = 8;

// What a launch computes: `launched` directions from `first_direction` on, and of the sequences from `first_sequence` on `slices` slices of
// `columns` (a column is a sequence of a slice), `tile` of them at a time; both multiples of GROUP. The rest of a layer or a batch that is
// too large for the chip is another launch's.
struct Launch {
    int steps, rows, hidden, sequences, directions; // T, R, H, N, D
    int first_direction, launched, first_sequence, slices, columns, tile, weight_slots;
    int first_step, last_step;
};

// DropConnect on the recurrent weights, as kernels take it; a threshold of 0: none. `counter`: see sequences_dropout.
struct Connections {
    unsigned key_low, key_high, threshold;
    float scale;
    unsigned step;
    const unsigned long long *counter;

    DEVICE Mask mask() const { return {{key_low, key_high}, threshold, scale, counter ? unsigned(*counter) : step}; }
};

// Where a block works: `block` of `blocks` in a group.
struct Place {
    int groups, group, blocks, block, direction, slice, first_sequence;

    DEVICE explicit Place(const Launch &launch) {
        groups = launch.launched * launch.slices;
        blocks = gridDim.x / groups;
        group = blockIdx.x / blocks;
        block = blockIdx.x % blocks;
        direction = launch.first_direction + group / launch.slices;
        slice = group % launch.slices;
        first_sequence = launch.first_sequence + slice * launch.columns;
    }

    // The group's buffer that step `number` reads: [columns, column_bytes].
    DEVICE unsigned char *buffer(unsigned char *exchange, int number, const Launch &launch, int column_bytes) const {
        return exchange + (long long)((number & 1) * groups + group) * launch.columns * column_bytes;
    }

    // Zeros in the rows from `from` to `to`, by all threads of the direction.
    DEVICE void clear(float *x, long long from, long long to, int width, const Launch &launch) const {
        const long long worker = (slice * blocks + block) * blockDim.x + threadIdx.x, workers = launch.slices * blocks * blockDim.x;
        for (long long i = from * width + worker; i < to * width; i += workers) x[i] = 0.0f;
    }
};

// One step of a slice: its first sequence's row, and how many of its sequences are active, the first ones.
struct Step {
    int row, active;
};

// The steps of a slice in the order in which they are computed; `upwards`: from time 0 on. Number -1 and those behind the last have no sequence.
struct Steps {
    const int *offsets; // [T + 1]
    int first, columns, count;
    bool upwards;

    // All threads; `scratch` as in block_sum.
    DEVICE Steps(const int *offsets, const Launch &launch, const Place &place, bool upwards, int *scratch)
        : offsets(offsets), first(place.first_sequence), columns(launch.columns), upwards(upwards) {
        int mine = 0;
        for (int t = threadIdx.x; t < launch.steps; t += blockDim.x) mine += offsets[t + 1] - offsets[t] > first;
        count = block_sum(mine, scratch);
    }

    DEVICE Step operator[](int number) const {
        if (number < 0 || number >= count) return {0, 0};
        const int t = upwards ? number : count - 1 - number;
        const int row = offsets[t], end = offsets[t + 1];
        return {row + first, min(end - row - first, columns)};
    }
};

// What a block is to do. It lies in shared memory and is read when it is needed: registers are what the weights need.
template <class Direction, class Operand> struct Job {
    Direction direction;
    Operand operand;
    Steps steps;
    Place place;
    unsigned *counter; // of the group's arrivals
};
constexpr int JOB_BYTES = 192;

// A block's shared memory. An item is a unit of one of a tile's columns: UNITS column + unit; the same thread has it in all steps.
template <class Core, class JobType, int UNITS, int SLOTS> struct Memory {
    JobType *job;
    unsigned char *product; // ProductMemory
    float *sums;            // [warps, tile, Core::STRIDE]: each warp's part of the product
    float *slots;           // [SLOTS, tile, UNITS]: what is known of an item, and what was computed
    float *state;           // [columns, UNITS]
    float *bias;            // [UNITS, 4]
    int slot_stride, sum_stride;

    DEVICE Memory(unsigned char *memory, int chunks, const Launch &launch) {
        static_assert(sizeof(JobType) <= JOB_BYTES);
        job = reinterpret_cast<JobType *>(memory);
        product = memory + JOB_BYTES;
        sums = reinterpret_cast<float *>(product + ProductMemory<Core>(chunks, launch.weight_slots).bytes());
        sum_stride = launch.tile * Core::STRIDE;
        slots = sums + blockDim.x / WARP * sum_stride;
        slot_stride = launch.tile * UNITS;
        state = slots + SLOTS * slot_stride;
        bias = state + launch.columns * UNITS;
    }

    DEVICE float &slot(int number, int item) const { return slots[number * slot_stride + item]; }
    DEVICE float *warp_sums() const { return sums + int(threadIdx.x) / WARP * sum_stride; }
};
