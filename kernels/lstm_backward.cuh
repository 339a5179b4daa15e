// The LSTM's backward pass: what one block does (the head of lstm.cu says why).
#pragma once

#include "lstm_block.cuh"

struct BackwardDirection {
    float *gates;        // [R, 4H]: activations in, their sums' gradients out
    const float *cells;  // [R, H]
    const float *weight; // [4H, H]
    const float *initial_cell;          // [N, H], or null
    float *cell_gradient;               // [N, H]: of the final cell in, of the initial one out
    const float *final_hidden_gradient; // [N, H], or null
    float *initial_hidden_gradient;     // [N, H], or null
};

struct BackwardArguments {
    BackwardDirection first, second;
    const float *output_gradient; // [R, D H]
    const int *offsets;
    Connections connections;
    Launch launch;
    unsigned *counters;
    unsigned char *exchange; // [2, launched, slices, columns, 4, chunks, CHUNK_BYTES]
    float *parts;            // [launched, slices, teams, columns, 4, Core::ROWS]; with PARTS = 4
};

// Rows of A: units. k runs over the gates' rows of W_hh, each gate's padded to whole chunks. W_hh has less than 2^31 weights.
template <int CHUNK> struct BackwardOperand {
    const float *weight;
    int hidden, first_gate, first_unit, gate_chunks;
    Mask mask;

    struct Chunk {
        const BackwardOperand &all;
        int gate, first;

        DEVICE float operator()(int row, int k) const {
            const int unit = first + k, column = all.first_unit + row;
            if (unit >= all.hidden || column >= all.hidden) return 0.0f;
            const int place = gate * all.hidden + unit;
            return all.mask.connect(all.weight[place * all.hidden + column], place, column);
        }
    };
    DEVICE Chunk chunk(int number) const {
        return {*this, first_gate + number / gate_chunks, number % gate_chunks * CHUNK};
    }
};

// PARTS blocks are a team: they share the rows of A, and each has its gates and its units.
template <class Core, int PARTS> struct BackwardBlock {
    // What is known of an item: activations, later their gradients, in the order i, f, g, o; c of this row and of the row before, dy.
    static constexpr int UNITS = Core::ROWS / PARTS, SLOTS = 7, CELL = 4, EARLIER_CELL = 5, OUTPUT = 6;
    using Operand = BackwardOperand<Core::CHUNK>;
    using ThisJob = Job<BackwardDirection, Operand>;

    const BackwardArguments &a;
    const Launch &launch;
    const int H, gate_bytes;
    const Memory<Core, ThisJob, UNITS, SLOTS> memory;
    const ThisJob &job;

    static DEVICE int gate_chunks(const Launch &launch) { return (launch.hidden + Core::CHUNK - 1) / Core::CHUNK; }

    DEVICE BackwardBlock(const BackwardArguments &a, unsigned char *shared)
        : a(a), launch(a.launch), H(launch.hidden), gate_bytes(gate_chunks(launch) * CHUNK_BYTES),
          memory(shared, 4 / PARTS * gate_chunks(launch), launch), job(*memory.job) {
        const Place place(launch);
        const BackwardDirection direction = place.direction == 0 ? a.first : a.second;
        const int row = place.block / PARTS * Core::ROWS, gate = place.block % PARTS;
        const Steps steps(a.offsets, launch, place, place.direction == 1, reinterpret_cast<int *>(memory.sums));
        if (threadIdx.x == 0) {
            *memory.job = {direction, {direction.weight, H, gate, row, gate_chunks(launch), a.connections.mask()}, steps, place,
                           a.counters + place.group * COUNTER_STRIDE};
        }
        barrier();
    }

    DEVICE void run() const {
        // One step more, without sequences, gives W_hh^T dgates of the last: the gradient of the initial h.
        const bool wants_initial = job.direction.initial_hidden_gradient != nullptr;
        const int last_step = min(launch.last_step, job.steps.count + wants_initial), column_bytes = 4 * gate_bytes;
        if (launch.first_step == 0) job.place.clear(job.direction.gates, a.offsets[launch.steps], launch.rows, 4 * H, launch);
        Product<Core, Operand> product(job.operand, 4 / PARTS * gate_chunks(launch), launch.weight_slots, memory.product);
        if (last_step > 1) product.load();

        unsigned team_arrivals = 0;
        // Where a step's rows lie is read when it is needed: during the product every register counts.
        int before = job.steps[launch.first_step - 1].active, active = job.steps[launch.first_step].active;
        move_state(false);
        fetch(launch.first_step, 0);
        for (int number = launch.first_step; number < last_step; ++number) {
            const int with_product = job.direction.initial_hidden_gradient ? before : min(before, active);
            const int width = max(active, with_product);
            int following = 0;
            if (with_product > 0) grid_wait(job.counter, job.place.blocks * number);
            for (int tile = 0; tile < width; tile += launch.tile) {
                const int multiplied = min(launch.tile, with_product - tile);
                if (multiplied > 0) {
                    const unsigned char *gradients = job.place.buffer(a.exchange, number, launch, column_bytes);
                    if (PARTS > 1) gradients += job.place.block % PARTS * gate_bytes;
                    product.run(gradients + (long long)tile * column_bytes, column_bytes, multiplied, memory.warp_sums());
                }
                copy_async_wait<0>();
                barrier();
                if (PARTS > 1 && multiplied > 0) meet_team(tile, multiplied, team_arrivals += PARTS);
                apply(number, tile, before, active, multiplied);
                const bool last_tile = tile + launch.tile >= width;
                if (last_tile) {
                    grid_arrive(job.counter);
                } else {
                    barrier();
                }
                store(number, tile);
                if (last_tile) {
                    following = job.steps[number + 1].active;
                    fetch(number + 1, 0);
                } else {
                    fetch(number, tile + launch.tile);
                }
            }
            before = active;
            active = following;
        }
        barrier();
        move_state(true);
    }

    // The cells' gradient, which passes through cell_gradient from launch to launch.
    DEVICE void move_state(bool out) const {
        const int first_sequence = job.place.first_sequence, first_unit = job.place.block * UNITS;
        float *gradient = job.direction.cell_gradient + (long long)first_sequence * H;
        for (int i = threadIdx.x; i < min(launch.columns, launch.sequences - first_sequence) * UNITS; i += blockDim.x) {
            const int unit = first_unit + i % UNITS;
            if (unit >= H) continue;
            float &global = gradient[(long long)(i / UNITS) * H + unit];
            (out ? global : memory.state[i]) = out ? memory.state[i] : global;
        }
    }

    // What is known of a step's tile to its slots.
    DEVICE void fetch(int number, int tile) const {
        const BackwardDirection &d = job.direction;
        const Step step = job.steps[number], next = job.steps[number + 1]; // next to be computed, the one before in time
        const int first_unit = job.place.block * UNITS, items = min(launch.tile, step.active - tile) * UNITS;
        const float *cells = d.cells, *gates = d.gates, *initial_cell = d.initial_cell;
        const float *output_gradient = a.output_gradient + job.place.direction * H;
#pragma unroll 1
        for (int i = threadIdx.x; i < items; i += blockDim.x) {
            const int column = tile + i / UNITS, unit = first_unit + i % UNITS;
            if (unit >= H) continue;
            const long long row = step.row + column;
            for (int gate = 0; gate < 4; ++gate) copy_async<4>(&memory.slot(gate, i), gates + (row * 4 + gate) * H + unit);
            copy_async<4>(&memory.slot(CELL, i), cells + row * H + unit);
            if (column < next.active) {
                copy_async<4>(&memory.slot(EARLIER_CELL, i), cells + (long long)(next.row + column) * H + unit);
            } else if (initial_cell) {
                copy_async<4>(&memory.slot(EARLIER_CELL, i), initial_cell + (long long)(job.place.first_sequence + column) * H + unit);
            } else {
                memory.slot(EARLIER_CELL, i) = 0.0f;
            }
            copy_async<4>(&memory.slot(OUTPUT, i), output_gradient + row * launch.directions * H + unit);
        }
        copy_async_commit();
    }

    DEVICE float sum_of_warps(int n, int row) const {
        float sum = 0.0f;
        const float *part = memory.sums + n * Core::STRIDE + row;
        const int warps = blockDim.x / WARP;
#pragma unroll 4
        for (int warp = 0; warp < warps; ++warp, part += memory.sum_stride) sum += *part;
        return sum;
    }

    // The team's sums of the tile from `tile` on: [columns, PARTS, Core::ROWS].
    DEVICE float *team_sums(int tile) const {
        const Place &place = job.place;
        const int teams = place.blocks / PARTS, team = place.block / PARTS;
        return a.parts + ((long long)(place.group * teams + team) * launch.columns + tile) * PARTS * Core::ROWS;
    }

    // Gives the team the sums over this block's gates, and waits for those of the others.
    DEVICE void meet_team(int tile, int multiplied, unsigned arrivals) const {
        const Place &place = job.place;
        float *to = team_sums(tile) + place.block % PARTS * Core::ROWS;
        for (int i = threadIdx.x; i < multiplied * Core::ROWS; i += blockDim.x) {
            const int n = i / Core::ROWS, row = i % Core::ROWS;
            to[n * PARTS * Core::ROWS + row] = sum_of_warps(n, row);
        }
        const int teams = place.blocks / PARTS, team = place.block / PARTS;
        unsigned *counter = a.counters + (place.groups + place.group * teams + team) * COUNTER_STRIDE;
        grid_arrive(counter);
        grid_wait(counter, arrivals);
    }

    // W_hh^T dgates of the step that was computed before.
    DEVICE float recurrent_gradient(const float *team, int n, int u) const {
        if (PARTS == 1) return sum_of_warps(n, u);
        float sum = 0.0f;
        const float *from = team + n * PARTS * Core::ROWS + job.place.block % PARTS * UNITS + u;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) sum += __ldcg(from + part * Core::ROWS);
        return sum;
    }

    // The equations of a tile, whose first `multiplied` columns have a product; the gates' gradients go to the group. `active` sequences
    // are in this step, of which the first ones were among the `before` of the step that was computed before.
    DEVICE void apply(int number, int tile, int before, int active, int multiplied) const {
        const int first_unit = job.place.block * UNITS, items = min(launch.tile, max(active - tile, multiplied)) * UNITS;
        const int continuing = min(before, active);
        unsigned char *to = job.place.buffer(a.exchange, number + 1, launch, 4 * gate_bytes) + (long long)tile * 4 * gate_bytes;
        const float *team = PARTS > 1 ? team_sums(tile) : nullptr;
#pragma unroll 1
        for (int i = threadIdx.x; i < items; i += blockDim.x) {
            const int n = i / UNITS, u = i % UNITS, unit = first_unit + u, column = tile + n;
            if (unit >= H) continue;
            float recurrent = n < multiplied ? recurrent_gradient(team, n, u) : 0.0f;
            const long long state = (long long)(job.place.first_sequence + column) * H + unit;
            if (column >= active) {
                job.direction.initial_hidden_gradient[state] = recurrent; // its first step was the one before
                continue;
            }
            if (column >= continuing) {
                recurrent = job.direction.final_hidden_gradient ? job.direction.final_hidden_gradient[state] : 0.0f;
            }
            const float input_gate = memory.slot(0, i), forget_gate = memory.slot(1, i), candidate = memory.slot(2, i);
            const float output_gate = memory.slot(3, i), tanh_cell = tanhf(memory.slot(CELL, i));
            const float dh = memory.slot(OUTPUT, i) + recurrent, through = dh * output_gate;
            float &cell_gradient = memory.state[tile * UNITS + i];
            const float dc = cell_gradient + fmaf(-through * tanh_cell, tanh_cell, through);
            cell_gradient = dc * forget_gate;
            const auto give = [&](int gate, float gradient) {
                unsigned char *column = to + (long long)(4 * n + gate) * gate_bytes;
                reinterpret_cast<typename Core::Element *>(column)[unit] = Core::element(gradient);
                memory.slot(gate, i) = gradient;
            };
            give(0, dc * candidate * fmaf(-input_gate, input_gate, input_gate));
            give(1, dc * memory.slot(EARLIER_CELL, i) * fmaf(-forget_gate, forget_gate, forget_gate));
            give(2, dc * input_gate * fmaf(-candidate, candidate, 1.0f));
            give(3, dh * tanh_cell * fmaf(-output_gate, output_gate, output_gate));
        }
    }

    // A tile's gradients to global memory.
    DEVICE void store(int number, int tile) const {
        const Step now = job.steps[number];
        const int first_unit = job.place.block * UNITS, items = min(launch.tile, now.active - tile) * UNITS;
        float *gates = job.direction.gates + (long long)(now.row + tile) * 4 * H + first_unit;
#pragma unroll 1
        for (int i = threadIdx.x; i < items; i += blockDim.x) {
            const int n = i / UNITS, u = i % UNITS;
            if (first_unit + u >= H) continue;
            for (int gate = 0; gate < 4; ++gate) gates[((long long)n * 4 + gate) * H + u] = memory.slot(gate, i);
        }
    }
};
