// The LSTM's forward pass: what one block does (the head of lstm.cu says why).
#pragma once

#include "lstm_block.cuh"

struct ForwardDirection {
    float *gates;                             // [R, 4H]: W_ih x in, activations out
    float *cells;                             // [R, H]
    const float *weight;                      // [4H, H]
    const float *input_bias, *recurrent_bias; // [4H]
    const float *initial_hidden, *initial_cell; // [N, H], or null for zeros
    float *final_hidden, *final_cell;           // [N, H], or null
};

struct ForwardArguments {
    ForwardDirection first, second;
    float *output; // [R, D H]
    const int *offsets;
    Connections connections;
    Launch launch;
    unsigned *counters;
    unsigned char *exchange; // [2, launched, slices, columns, chunks, CHUNK_BYTES]
};

// Rows of A: four gates a unit. W_hh has less than 2^31 weights.
template <int CHUNK> struct ForwardOperand {
    const float *weight;
    int hidden, first_unit;
    Mask mask;

    struct Chunk {
        const ForwardOperand &all;
        int first;

        DEVICE float operator()(int row, int k) const {
            const int unit = all.first_unit + row / 4, column = first + k;
            if (unit >= all.hidden || column >= all.hidden) return 0.0f;
            const int place = row % 4 * all.hidden + unit;
            return all.mask.connect(all.weight[place * all.hidden + column], place, column);
        }
    };
    DEVICE Chunk chunk(int number) const { return {*this, number * CHUNK}; }
};

template <class Core> struct ForwardBlock {
    // What is known of an item, and then its results: gates' sums or activations in the order i, f, g, o; h.
    static constexpr int UNITS = Core::ROWS / 4, SLOTS = 5, HIDDEN = 4;
    using Operand = ForwardOperand<Core::CHUNK>;
    using ThisJob = Job<ForwardDirection, Operand>;

    const ForwardArguments &a;
    const Launch &launch;
    const int H, chunks, column_bytes;
    const Memory<Core, ThisJob, UNITS, SLOTS> memory;
    const ThisJob &job;

    DEVICE ForwardBlock(const ForwardArguments &a, unsigned char *shared)
        : a(a), launch(a.launch), H(launch.hidden), chunks((H + Core::CHUNK - 1) / Core::CHUNK), column_bytes(chunks * CHUNK_BYTES),
          memory(shared, chunks, launch), job(*memory.job) {
        const Place place(launch);
        const ForwardDirection direction = place.direction == 0 ? a.first : a.second;
        const int first_unit = place.block * UNITS;
        const Steps steps(a.offsets, launch, place, place.direction == 0, reinterpret_cast<int *>(memory.sums));
        if (threadIdx.x == 0) {
            *memory.job = {direction, {direction.weight, H, first_unit, a.connections.mask()}, steps, place,
                           a.counters + place.group * COUNTER_STRIDE};
        }
        barrier();
    }

    DEVICE void run() const {
        const int last_step = min(launch.last_step, job.steps.count);
        if (launch.first_step < 0) clear_rows();
        Product<Core, Operand> product(job.operand, chunks, launch.weight_slots, memory.product);
        if (last_step > 0) product.load();

        Step before = job.steps[launch.first_step - 1], now = job.steps[launch.first_step];
        begin(before);
        fetch(now, 0);
        for (int number = launch.first_step; number < last_step; ++number) {
            const Step next = job.steps[number + 1];
            // Sequences that begin without an initial state have nothing to multiply.
            const int with_product = job.direction.initial_hidden ? now.active : min(before.active, now.active);
            if (with_product > 0) grid_wait(job.counter, job.place.blocks * (number + 1));
            for (int tile = 0; tile == 0 || tile < now.active; tile += launch.tile) {
                const int multiplied = min(launch.tile, with_product - tile);
                if (multiplied > 0) {
                    const unsigned char *h = job.place.buffer(a.exchange, number, launch, column_bytes);
                    product.run(h + (long long)tile * column_bytes, column_bytes, multiplied, memory.warp_sums());
                }
                copy_async_wait<0>();
                barrier();
                apply(number, tile, now, next, multiplied);
                const bool last_tile = tile + launch.tile >= now.active;
                if (last_tile) {
                    enter(number, now, next);
                    grid_arrive(job.counter);
                } else {
                    barrier();
                }
                store(tile, now, next);
                if (last_tile) {
                    fetch(next, 0);
                } else {
                    fetch(now, tile + launch.tile);
                }
            }
            before = now;
            now = next;
        }
    }

    // The rows behind the last sequence's.
    DEVICE void clear_rows() const {
        const int from = a.offsets[launch.steps], to = launch.rows;
        job.place.clear(job.direction.gates, from, to, 4 * H, launch);
        job.place.clear(job.direction.cells, from, to, H, launch);
        if (job.place.direction == 0) job.place.clear(a.output, from, to, launch.directions * H, launch);
    }

    // Biases, and the cells before the first step of this launch: `before` is the step of an earlier one.
    DEVICE void begin(const Step &before) const {
        const ForwardDirection &d = job.direction;
        const int first_unit = job.place.block * UNITS;
        for (int i = threadIdx.x; i < 4 * UNITS; i += blockDim.x) {
            const int unit = first_unit + i / 4;
            if (unit < H) memory.bias[i] = d.input_bias[i % 4 * H + unit] + d.recurrent_bias[i % 4 * H + unit];
        }
        for (int i = threadIdx.x; i < launch.columns * UNITS; i += blockDim.x) {
            const int column = i / UNITS, unit = first_unit + i % UNITS, sequence = job.place.first_sequence + column;
            float cell = 0.0f;
            if (unit < H && column < before.active) {
                cell = d.cells[(long long)(before.row + column) * H + unit];
            } else if (unit < H && sequence < launch.sequences && d.initial_cell) {
                cell = d.initial_cell[(long long)sequence * H + unit];
            }
            memory.state[i] = cell;
        }
    }

    // W_ih x of a tile to its slots.
    DEVICE void fetch(const Step &step, int tile) const {
        const int first_unit = job.place.block * UNITS, items = min(launch.tile, step.active - tile) * UNITS;
        const float *gates = job.direction.gates + (long long)(step.row + tile) * 4 * H + first_unit;
#pragma unroll 1
        for (int i = threadIdx.x; i < items; i += blockDim.x) {
            const int n = i / UNITS, u = i % UNITS;
            if (first_unit + u >= H) continue;
            const float *from = gates + (long long)n * 4 * H + u;
            for (int gate = 0; gate < 4; ++gate) copy_async<4>(&memory.slot(gate, i), from + gate * H);
        }
        copy_async_commit();
    }

    // The equations of a tile, whose first `multiplied` columns have a product; h goes to the group.
    DEVICE void apply(int number, int tile, const Step &now, const Step &next, int multiplied) const {
        const int first_unit = job.place.block * UNITS, items = min(launch.tile, now.active - tile) * UNITS, warps = blockDim.x / WARP;
        unsigned char *to = job.place.buffer(a.exchange, number + 1, launch, column_bytes) + (long long)tile * column_bytes;
#pragma unroll 1
        for (int i = threadIdx.x; i < items; i += blockDim.x) {
            const int n = i / UNITS, u = i % UNITS;
            if (first_unit + u >= H) continue;
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (n < multiplied) {
                const float *part = memory.sums + n * Core::STRIDE + 4 * u;
#pragma unroll 4
                for (int warp = 0; warp < warps; ++warp, part += memory.sum_stride) {
                    const float4 x = *reinterpret_cast<const float4 *>(part);
                    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
                }
            }
            const float *bias = memory.bias + 4 * u;
            const float input_gate = sigmoid(memory.slot(0, i) + bias[0] + sum.x);
            const float forget_gate = sigmoid(memory.slot(1, i) + bias[1] + sum.y);
            const float candidate = tanhf(memory.slot(2, i) + bias[2] + sum.z);
            const float output_gate = sigmoid(memory.slot(3, i) + bias[3] + sum.w);
            float &cell = memory.state[tile * UNITS + i];
            cell = fmaf(forget_gate, cell, input_gate * candidate);
            const float h = output_gate * tanhf(cell);
            if (tile + n < next.active) hand_over(to, n, first_unit + u, h);
            memory.slot(0, i) = input_gate;
            memory.slot(1, i) = forget_gate;
            memory.slot(2, i) = candidate;
            memory.slot(3, i) = output_gate;
            memory.slot(HIDDEN, i) = h;
        }
    }

    DEVICE void hand_over(unsigned char *buffer, int column, int unit, float h) const {
        reinterpret_cast<typename Core::Element *>(buffer + (long long)column * column_bytes)[unit] = Core::element(h);
    }

    // The initial h of the sequences that begin with the next step. Without initial states nobody reads theirs.
    DEVICE void enter(int number, const Step &now, const Step &next) const {
        const float *initial = job.direction.initial_hidden;
        if (!initial) return;
        const int first_unit = job.place.block * UNITS, first = min(now.active, next.active);
        unsigned char *to = job.place.buffer(a.exchange, number + 1, launch, column_bytes);
        for (int i = threadIdx.x; i < (next.active - first) * UNITS; i += blockDim.x) {
            const int column = first + i / UNITS, unit = first_unit + i % UNITS;
            if (unit < H) hand_over(to, column, unit, initial[(long long)(job.place.first_sequence + column) * H + unit]);
        }
    }

    // A tile's results to global memory.
    DEVICE void store(int tile, const Step &now, const Step &next) const {
        const ForwardDirection &d = job.direction;
        const int first_unit = job.place.block * UNITS, items = min(launch.tile, now.active - tile) * UNITS;
        float *gates = d.gates, *cells = d.cells, *output = a.output + job.place.direction * H;
#pragma unroll 1
        for (int i = threadIdx.x; i < items; i += blockDim.x) {
            const int column = tile + i / UNITS, unit = first_unit + i % UNITS;
            if (unit >= H) continue;
            const long long row = now.row + column;
            const float cell = memory.state[tile * UNITS + i], h = memory.slot(HIDDEN, i);
            for (int gate = 0; gate < 4; ++gate) gates[(row * 4 + gate) * H + unit] = memory.slot(gate, i);
            cells[row * H + unit] = cell;
            output[row * launch.directions * H + unit] = h;
            if (column >= next.active) {
                const long long state = (long long)(job.place.first_sequence + column) * H + unit;
                if (d.final_hidden) d.final_hidden[state] = h;
                if (d.final_cell) d.final_cell[state] = cell;
            }
        }
    }
};
