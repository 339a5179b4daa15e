// LSTM over whole packed sequences, one or two directions, forward and backward; PyTorch's equations and gate order:
//
//   i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of  W_ih x_t + b_ih + b_hh + W_hh h_{t-1}        c_t = f c_{t-1} + i g        h_t = o tanh(c_t)
//
// H hidden units, D directions, N sequences, T time steps, R packed rows (src/ops/sequences.rs). W_ih x_t of all rows was formed by one product
// before; the gradients of the weights are products after. The kernels own what is sequential.
//
// Work and bytes. A step multiplies [4H, H] by [H, n] (backward its transpose by [4H, n]): 8 n H^2 operations. The weights stay on chip for
// all steps; what passes through the caches is h (backward: the gates' gradients, four times that) once for every block, and once for all 9 H
// values a row (gates in and out, c; backward 11 H). What bounds a step is (estimates for an H200 from its data sheet and from published
// latencies; nothing here was measured on a GPU yet):
//
//                                         H = 320, N = 30, D = 2       H = 1150, N = 80, D = 1
//   arithmetic, bf16 (tensor cores)       49 MFLOP      < 0.1 us        0.85 GFLOP   about 1.4 us (mma.sync, 600 TFLOP/s)
//   arithmetic, f32                                     0.8 us                       14 us
//   h from the second-level cache, bf16   0.6 MB        0.1 us          10.7 MB      2 us (5.5 TB/s)
//   one exchange between blocks           store, arrival, poll, load: each crosses the chip, 0.9 to 1.1 us together
//
// Design. One cooperative launch runs all steps. A group of blocks serves one direction and one slice of the sequences; as many slices as the
// chip has room for, since slices never wait for each other and every one shortens what a block has to read. A block owns U units, all four
// gates of them, and their weights (lstm_product.cuh); the cell states stay in its shared memory. Per step: wait for the group's arrivals,
// multiply, add the warps' parts, apply the equations, hand h to the group, arrive; what no other block waits for (gates, c and h of the
// row to memory, the next row's gates into shared memory) is done between arriving and waiting.
//
// A group exchanges h through two buffers in turn. A block writes the buffer of step s + 1 when it has seen all arrivals of step s - 1, which
// a block makes after its last look at the buffer of step s - 1, the one that is written: so no block overwrites what another still reads.
//
// Backward, dh_t = dy_t + W_hh^T dgates_{t+1}. PARTS = 1: a block owns U units and their columns of W_hh, all 4H rows, and reads the gradients
// of all four gates. PARTS = 4, for large H where that would be too much to read: four blocks share 4 U units, each multiplies one gate's H
// rows, and they exchange their sums (a second meeting, of four blocks) before each applies the equations to its own U units.
//
// Steps can also be launched one by one, first_step to last_step, with the same arguments: then no block waits in vain, so that more blocks than
// the chip holds, and devices without cooperative launches, are served too (PARTS = 1). Weights that do not fit on the chip are read at every step.
//
// Sums run in an order that follows from the shape and the launch alone.
//
// tensor cores: lstm_forward_bf16, lstm_forward_tf32, lstm_backward_bf16*, lstm_backward_tf32*
#include "lstm_product.cuh"

// The pointers of a direction.
constexpr int DIRECTION_BYTES = 80;
// A counter of arrivals has a sector of the cache to itself.
constexpr int COUNTER_STRIDE = 8;

// What a launch computes: `launched` directions from `first_direction` on, and of the sequences from `first_sequence` on `slices` slices of
// `columns` (a column is a sequence of a slice), `tile` of them at a time; both multiples of GROUP. The rest of a direction or a batch that is
// too large for the chip is another launch's.
struct Launch {
    int steps, rows, hidden, sequences, directions; // T, R, H, N, D
    int first_direction, launched, first_sequence, slices, columns, tile, weight_slots;
    int first_step, last_step;
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

    // This thread among all those of the direction, and their number.
    DEVICE int worker() const { return (slice * blocks + block) * blockDim.x + threadIdx.x; }
    DEVICE int workers(const Launch &launch) const { return launch.slices * blocks * blockDim.x; }

    // The group's buffer that step `number` reads: [columns, column_bytes].
    DEVICE unsigned char *buffer(unsigned char *exchange, int number, const Launch &launch, int column_bytes) const {
        return exchange + (long long)((number & 1) * groups + group) * launch.columns * column_bytes;
    }
};

// One step of a slice: its first sequence's row, and how many of its sequences are active, the first ones.
struct Step {
    int row, active;
};

// The steps of a slice in the order in which they are computed; `upwards`: from time 0 on. Number -1 and those behind the last have no sequence.
struct Steps {
    const int *offsets; // [steps + 1]
    int first, columns, count;
    bool upwards;

    // The slice's sequences are those from `first` on, at most `columns`. All threads; `scratch` as in block_sum.
    DEVICE Steps(const int *offsets, int steps, int first, int columns, bool upwards, int *scratch)
        : offsets(offsets), first(first), columns(columns), upwards(upwards) {
        int mine = 0;
        for (int t = threadIdx.x; t < steps; t += blockDim.x) mine += offsets[t + 1] - offsets[t] > first;
        count = block_sum(mine, scratch);
    }

    DEVICE Step operator[](int number) const {
        if (number < 0 || number >= count) return {0, 0};
        const int t = upwards ? number : count - 1 - number;
        const int row = offsets[t], end = offsets[t + 1];
        return {row + first, min(end - row - first, columns)};
    }
};

// What both passes share out of a block's shared memory; a column is a sequence of the slice.
template <class Core, class Direction, int UNITS, int SLOTS> struct Memory {
    Direction *direction;   // in shared memory, for registers are what the weights need
    unsigned char *product; // ProductMemory
    float *sums;            // [warps, tile, Core::STRIDE]: each warp's part of the product
    float *slots; // [SLOTS, tile, UNITS]: what belongs to the units of one row; only the thread that computes them touches it
    float *state; // [columns, UNITS]
    float *bias;  // [UNITS, 4]
    int slot_stride;

    DEVICE Memory(unsigned char *memory, int chunks, int weight_slots, int tile, int columns) {
        static_assert(sizeof(Direction) <= DIRECTION_BYTES);
        direction = reinterpret_cast<Direction *>(memory);
        product = memory + DIRECTION_BYTES;
        sums = reinterpret_cast<float *>(product + ProductMemory<Core>(chunks, weight_slots).bytes());
        slots = sums + blockDim.x / WARP * tile * Core::STRIDE;
        slot_stride = tile * UNITS;
        state = slots + SLOTS * slot_stride;
        bias = state + columns * UNITS;
    }

    DEVICE float &slot(int number, int item) const { return slots[number * slot_stride + item]; }
};

// Zeros in [from, to), by `workers` threads of which this is number `worker`.
DEVICE void clear(float *x, long long from, long long to, int worker, int workers) {
    for (long long i = from + worker; i < to; i += workers) x[i] = 0.0f;
}

struct ForwardDirection {
    float *gates;                            // [R, 4H]: W_ih x in, activations out
    float *cells;                            // [R, H]
    const float *weight;                     // [4H, H]
    const float *input_bias, *recurrent_bias; // [4H]
    const float *initial_hidden, *initial_cell; // [N, H], or null for zeros
    float *final_hidden, *final_cell;        // [N, H], or null
};

struct ForwardArguments {
    ForwardDirection first, second;
    float *output; // [R, D H]
    const int *offsets;
    Launch launch;
    unsigned *counters;
    unsigned char *exchange; // [2, launched, slices, columns, chunks, CHUNK_BYTES]
};

// Rows of A: four gates a unit. W_hh has less than 2^31 weights.
template <int CHUNK> struct ForwardOperand {
    const float *weight; // the first unit's
    int hidden, units;

    struct Chunk {
        const float *weight;
        int hidden, units, length;

        DEVICE float operator()(int row, int k) const {
            return row / 4 < units && k < length ? weight[(row % 4 * hidden + row / 4) * hidden + k] : 0.0f;
        }
    };
    DEVICE Chunk chunk(int number) const { return {weight + number * CHUNK, hidden, units, hidden - number * CHUNK}; }
};

template <class Core> DEVICE void forward(const ForwardArguments &a) {
    constexpr int UNITS = Core::ROWS / 4, SLOTS = 5, HIDDEN = 4; // the slot of h, behind the gates'
    SHARED_MEMORY(unsigned char, shared);
    const Launch &launch = a.launch;
    const int H = launch.hidden, thread = threadIdx.x, threads = blockDim.x, warps = threads / WARP;
    const Place place(launch);
    const int chunks = (H + Core::CHUNK - 1) / Core::CHUNK, column_bytes = chunks * CHUNK_BYTES;
    const Memory<Core, ForwardDirection, UNITS, SLOTS> memory(shared, chunks, launch.weight_slots, launch.tile, launch.columns);
    if (thread == 0) *memory.direction = place.direction == 0 ? a.first : a.second;
    const ForwardDirection &d = *memory.direction; // there after the barrier in Steps
    const int first_unit = place.block * UNITS;
    const Steps steps(a.offsets, launch.steps, place.first_sequence, launch.columns, place.direction == 0, reinterpret_cast<int *>(memory.sums));
    const int last_step = min(launch.last_step, steps.count);
    if (launch.first_step < 0) {
        // The rows behind the last sequence's.
        const int worker = place.worker(), workers = place.workers(launch), width = launch.directions * H;
        const long long from = a.offsets[launch.steps], to = launch.rows;
        clear(d.gates, from * 4 * H, to * 4 * H, worker, workers);
        clear(d.cells, from * H, to * H, worker, workers);
        if (place.direction == 0) clear(a.output, from * width, to * width, worker, workers);
    }

    Product<Core, ForwardOperand<Core::CHUNK>> product({d.weight + first_unit * H, H, H - first_unit}, chunks, launch.weight_slots, memory.product);
    if (last_step > 0) product.load();
#pragma unroll 1
    for (int i = thread; i < 4 * UNITS; i += threads) {
        const int unit = first_unit + i / 4;
        if (unit < H) memory.bias[i] = d.input_bias[i % 4 * H + unit] + d.recurrent_bias[i % 4 * H + unit];
    }

    Step before = steps[launch.first_step - 1], now = steps[launch.first_step];
#pragma unroll 1
    for (int i = thread; i < launch.columns * UNITS; i += threads) {
        const int n = i / UNITS, unit = first_unit + i % UNITS, sequence = place.first_sequence + n;
        float cell = 0.0f;
        if (unit < H && n < before.active) {
            cell = d.cells[(long long)(before.row + n) * H + unit];
        } else if (unit < H && sequence < launch.sequences && d.initial_cell) {
            cell = d.initial_cell[(long long)sequence * H + unit];
        }
        memory.state[i] = cell;
    }

    const auto fetch = [&](const Step &step, int tile) {
#pragma unroll 1
        for (int i = thread; i < min(launch.tile, step.active - tile) * UNITS; i += threads) {
            const int n = tile + i / UNITS, u = i % UNITS;
            if (first_unit + u >= H) continue;
            const float *gates = d.gates + (long long)(step.row + n) * 4 * H + first_unit + u;
            for (int gate = 0; gate < 4; ++gate) copy_async<4>(&memory.slot(gate, i), gates + gate * H);
        }
        copy_async_commit();
    };
    const auto hand_over = [&](int number, int n, int unit, float h) {
        unsigned char *column = place.buffer(a.exchange, number, launch, column_bytes) + (long long)n * column_bytes;
        reinterpret_cast<typename Core::Element *>(column)[unit] = Core::element(h);
    };
    unsigned *counter = a.counters + place.group * COUNTER_STRIDE;

    fetch(now, 0);
    for (int number = launch.first_step; number < last_step; ++number) {
        const Step next = steps[number + 1];
        const int going_on = min(now.active, next.active);
        // Sequences that begin without an initial state have nothing to multiply.
        const int with_product = d.initial_hidden ? now.active : min(before.active, now.active);
        if (with_product > 0) grid_wait(counter, place.blocks * (number + 1));
        const unsigned char *from = place.buffer(a.exchange, number, launch, column_bytes);

        for (int tile = 0; tile == 0 || tile < now.active; tile += launch.tile) {
            const int items = min(launch.tile, now.active - tile) * UNITS, multiplied = min(launch.tile, with_product - tile);
            if (multiplied > 0) {
                product.run(from + (long long)tile * column_bytes, column_bytes, multiplied,
                            memory.sums + thread / WARP * launch.tile * Core::STRIDE);
            }
            copy_async_wait<0>();
            barrier();
#pragma unroll 1
            for (int i = thread; i < items; i += threads) {
                const int n = i / UNITS, u = i % UNITS;
                if (first_unit + u >= H) continue;
                float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (n < multiplied) {
                    const float *part = memory.sums + n * Core::STRIDE + 4 * u;
                    for (int warp = 0; warp < warps; ++warp, part += launch.tile * Core::STRIDE) {
                        const float4 x = *reinterpret_cast<const float4 *>(part);
                        sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
                    }
                }
                const float *bias = memory.bias + 4 * u;
                const float input_gate = sigmoid(memory.slot(0, i) + bias[0] + sum.x);
                const float forget_gate = sigmoid(memory.slot(1, i) + bias[1] + sum.y);
                const float candidate = tanhf(memory.slot(2, i) + bias[2] + sum.z);
                const float output_gate = sigmoid(memory.slot(3, i) + bias[3] + sum.w);
                float &cell = memory.state[(tile + n) * UNITS + u];
                cell = fmaf(forget_gate, cell, input_gate * candidate);
                const float h = output_gate * tanhf(cell);
                if (tile + n < going_on) hand_over(number + 1, tile + n, first_unit + u, h);
                memory.slot(0, i) = input_gate;
                memory.slot(1, i) = forget_gate;
                memory.slot(2, i) = candidate;
                memory.slot(3, i) = output_gate;
                memory.slot(HIDDEN, i) = h;
            }
            const bool last_tile = tile + launch.tile >= now.active;
            if (last_tile) {
                if (d.initial_hidden) {
#pragma unroll 1
                    for (int i = thread; i < (next.active - going_on) * UNITS; i += threads) {
                        const int n = going_on + i / UNITS, unit = first_unit + i % UNITS;
                        if (unit < H) hand_over(number + 1, n, unit, d.initial_hidden[(long long)(place.first_sequence + n) * H + unit]);
                    }
                }
                grid_arrive(counter);
            } else {
                barrier();
            }
#pragma unroll 1
            for (int i = thread; i < items; i += threads) {
                const int n = tile + i / UNITS, u = i % UNITS, unit = first_unit + u;
                if (unit >= H) continue;
                const long long row = now.row + n;
                const float cell = memory.state[n * UNITS + u], h = memory.slot(HIDDEN, i);
                for (int gate = 0; gate < 4; ++gate) d.gates[(row * 4 + gate) * H + unit] = memory.slot(gate, i);
                d.cells[row * H + unit] = cell;
                a.output[(row * launch.directions + place.direction) * H + unit] = h;
                if (n >= going_on) {
                    const long long state = (long long)(place.first_sequence + n) * H + unit;
                    if (d.final_hidden) d.final_hidden[state] = h;
                    if (d.final_cell) d.final_cell[state] = cell;
                }
            }
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

struct BackwardDirection {
    float *gates;        // [R, 4H]: activations in, their sums' gradients out
    const float *cells;  // [R, H]
    const float *weight; // [4H, H]
    const float *initial_cell; // [N, H], or null
    float *cell_gradient;      // [N, H]: of the final cell in, of the initial one out
    const float *final_hidden_gradient; // [N, H], or null
    float *initial_hidden_gradient;     // [N, H], or null
};

struct BackwardArguments {
    BackwardDirection first, second;
    const float *output_gradient; // [R, D H]
    const int *offsets;
    Launch launch;
    unsigned *counters;
    unsigned char *exchange; // [2, launched, slices, columns, 4, chunks, CHUNK_BYTES]
    float *parts;            // [launched, slices, blocks / 4, columns, 4, Core::ROWS]; with PARTS = 4
};

// Rows of A: units. k runs over the gates' rows of W_hh, each gate's padded to whole chunks.
template <int CHUNK> struct BackwardOperand {
    const float *weight; // the first gate's and unit's
    int hidden, units, gate_chunks;

    struct Chunk {
        const float *weight;
        int hidden, units, length;

        DEVICE float operator()(int row, int k) const { return row < units && k < length ? weight[k * hidden + row] : 0.0f; }
    };
    DEVICE Chunk chunk(int number) const {
        const int gate = number / gate_chunks, first = number % gate_chunks * CHUNK;
        return {weight + (gate * hidden + first) * hidden, hidden, units, hidden - first};
    }
};

template <class Core, int PARTS> DEVICE void backward(const BackwardArguments &a) {
    constexpr int UNITS = Core::ROWS / PARTS, SLOTS = 7, CELL = 4, EARLIER_CELL = 5, OUTPUT = 6; // slots behind the gates'
    SHARED_MEMORY(unsigned char, shared);
    const Launch &launch = a.launch;
    const int H = launch.hidden, thread = threadIdx.x, threads = blockDim.x, warps = threads / WARP;
    const Place place(launch);
    const int gate_chunks = (H + Core::CHUNK - 1) / Core::CHUNK, gate_bytes = gate_chunks * CHUNK_BYTES, column_bytes = 4 * gate_bytes;
    const int chunks = 4 / PARTS * gate_chunks;
    const Memory<Core, BackwardDirection, UNITS, SLOTS> memory(shared, chunks, launch.weight_slots, launch.tile, launch.columns);
    if (thread == 0) *memory.direction = place.direction == 0 ? a.first : a.second;
    const BackwardDirection &d = *memory.direction; // there after the barrier in Steps
    const int team = place.block / PARTS, part = place.block % PARTS; // PARTS blocks share the rows of A
    const int first_unit = place.block * UNITS;
    const Steps steps(a.offsets, launch.steps, place.first_sequence, launch.columns, place.direction == 1, reinterpret_cast<int *>(memory.sums));
    // One step more, without sequences, gives W_hh^T dgates of the last: the gradient of the initial h.
    const int last_step = min(launch.last_step, steps.count + (d.initial_hidden_gradient ? 1 : 0));
    if (launch.first_step == 0) {
        clear(d.gates, a.offsets[launch.steps] * 4ll * H, launch.rows * 4ll * H, place.worker(), place.workers(launch));
    }

    const int first_row = team * Core::ROWS;
    Product<Core, BackwardOperand<Core::CHUNK>> product({d.weight + part * H * H + first_row, H, H - first_row, gate_chunks}, chunks,
                                                        launch.weight_slots, memory.product);
    if (last_step > 1) product.load();

    // The cells' gradient passes through cell_gradient from launch to launch.
    const auto move_state = [&](bool out) {
#pragma unroll 1
        for (int i = thread; i < min(launch.columns, launch.sequences - place.first_sequence) * UNITS; i += threads) {
            const int unit = first_unit + i % UNITS;
            if (unit >= H) continue;
            float &global = d.cell_gradient[(long long)(place.first_sequence + i / UNITS) * H + unit];
            (out ? global : memory.state[i]) = out ? memory.state[i] : global;
        }
    };
    move_state(false);

    Step before = steps[launch.first_step - 1], now = steps[launch.first_step], next = steps[launch.first_step + 1];
    const auto fetch = [&](const Step &step, const Step &after, int tile) {
#pragma unroll 1
        for (int i = thread; i < min(launch.tile, step.active - tile) * UNITS; i += threads) {
            const int n = tile + i / UNITS, u = i % UNITS, unit = first_unit + u;
            if (unit >= H) continue;
            const long long row = step.row + n;
            for (int gate = 0; gate < 4; ++gate) copy_async<4>(&memory.slot(gate, i), d.gates + (row * 4 + gate) * H + unit);
            copy_async<4>(&memory.slot(CELL, i), d.cells + row * H + unit);
            if (n < after.active) {
                copy_async<4>(&memory.slot(EARLIER_CELL, i), d.cells + (long long)(after.row + n) * H + unit);
            } else if (d.initial_cell) {
                copy_async<4>(&memory.slot(EARLIER_CELL, i), d.initial_cell + (long long)(place.first_sequence + n) * H + unit);
            } else {
                memory.slot(EARLIER_CELL, i) = 0.0f;
            }
            copy_async<4>(&memory.slot(OUTPUT, i), a.output_gradient + (row * launch.directions + place.direction) * H + unit);
        }
        copy_async_commit();
    };
    unsigned *counter = a.counters + place.group * COUNTER_STRIDE;
    const int teams = place.blocks / PARTS;
    unsigned *team_counter = a.counters + (place.groups + place.group * teams + team) * COUNTER_STRIDE;
    unsigned team_arrivals = 0;

    fetch(now, next, 0);
    for (int number = launch.first_step; number < last_step; ++number) {
        const Step after = steps[number + 2];
        const int continuing = min(before.active, now.active);
        const int with_product = d.initial_hidden_gradient ? before.active : continuing;
        const int width = max(now.active, with_product);
        if (with_product > 0) grid_wait(counter, place.blocks * number);
        const unsigned char *from = place.buffer(a.exchange, number, launch, column_bytes);
        unsigned char *to = place.buffer(a.exchange, number + 1, launch, column_bytes);

        for (int tile = 0; tile < width; tile += launch.tile) {
            const int items = min(launch.tile, width - tile) * UNITS, multiplied = min(launch.tile, with_product - tile);
            float *team_sums = a.parts + ((long long)(place.group * teams + team) * launch.columns + tile) * PARTS * Core::ROWS; // [multiplied, PARTS, ROWS]
            const auto sum_of_warps = [&](int n, int row) {
                float sum = 0.0f;
                const float *from_warp = memory.sums + n * Core::STRIDE + row;
                for (int warp = 0; warp < warps; ++warp) sum += from_warp[warp * launch.tile * Core::STRIDE];
                return sum;
            };
            if (multiplied > 0) {
                product.run(from + (long long)tile * column_bytes + (PARTS == 1 ? 0 : part * gate_bytes), column_bytes, multiplied,
                            memory.sums + thread / WARP * launch.tile * Core::STRIDE);
            }
            copy_async_wait<0>();
            barrier();
            if (PARTS > 1 && multiplied > 0) {
#pragma unroll 1
                for (int i = thread; i < multiplied * Core::ROWS; i += threads) {
                    const int n = i / Core::ROWS, row = i % Core::ROWS;
                    team_sums[(n * PARTS + part) * Core::ROWS + row] = sum_of_warps(n, row);
                }
                team_arrivals += PARTS;
                grid_arrive(team_counter);
                grid_wait(team_counter, team_arrivals);
            }
#pragma unroll 1
            for (int i = thread; i < items; i += threads) {
                const int n = i / UNITS, u = i % UNITS, unit = first_unit + u, column = tile + n;
                if (unit >= H) continue;
                float recurrent = 0.0f;
                if (n < multiplied && PARTS == 1) recurrent = sum_of_warps(n, u);
                if (n < multiplied && PARTS > 1) {
                    for (int gate = 0; gate < PARTS; ++gate) {
                        recurrent += __ldcg(team_sums + (n * PARTS + gate) * Core::ROWS + part * UNITS + u);
                    }
                }
                const long long sequence = (long long)(place.first_sequence + column) * H + unit;
                if (column >= now.active) {
                    d.initial_hidden_gradient[sequence] = recurrent; // its first step was the one before
                    continue;
                }
                if (column >= continuing) recurrent = d.final_hidden_gradient ? d.final_hidden_gradient[sequence] : 0.0f;
                const float input_gate = memory.slot(0, i), forget_gate = memory.slot(1, i), candidate = memory.slot(2, i);
                const float output_gate = memory.slot(3, i), tanh_cell = tanhf(memory.slot(CELL, i));
                const float dh = memory.slot(OUTPUT, i) + recurrent;
                float &state = memory.state[column * UNITS + u];
                const float through = dh * output_gate, dc = state + fmaf(-through * tanh_cell, tanh_cell, through);
                const float gradients[4] = {dc * candidate * fmaf(-input_gate, input_gate, input_gate),
                                            dc * memory.slot(EARLIER_CELL, i) * fmaf(-forget_gate, forget_gate, forget_gate),
                                            dc * input_gate * fmaf(-candidate, candidate, 1.0f),
                                            dh * tanh_cell * fmaf(-output_gate, output_gate, output_gate)};
                state = dc * forget_gate;
#pragma unroll
                for (int gate = 0; gate < 4; ++gate) {
                    auto *gate_column = reinterpret_cast<typename Core::Element *>(to + (long long)column * column_bytes + gate * gate_bytes);
                    gate_column[unit] = Core::element(gradients[gate]);
                    memory.slot(gate, i) = gradients[gate];
                }
            }
            const bool last_tile = tile + launch.tile >= width;
            if (last_tile) {
                grid_arrive(counter);
            } else {
                barrier();
            }
#pragma unroll 1
            for (int i = thread; i < min(launch.tile, now.active - tile) * UNITS; i += threads) {
                const int n = tile + i / UNITS, u = i % UNITS;
                if (first_unit + u >= H) continue;
                for (int gate = 0; gate < 4; ++gate) {
                    d.gates[((long long)(now.row + n) * 4 + gate) * H + first_unit + u] = memory.slot(gate, i);
                }
            }
            if (last_tile) {
                fetch(next, after, 0);
            } else {
                fetch(now, next, tile + launch.tile);
            }
        }
        before = now;
        now = next;
        next = after;
    }
    barrier();
    move_state(true);
}

// h before each row's step, for the gradient of W_hh: previous [R, H] from output [R, D H]; where a sequence begins, `initial` [N, H] or zeros.
// Blocks (t, *) share time t; those of t = T clear the rows behind. 8 bytes a value, bound by memory.
KERNEL(256, 1) lstm_previous_hidden(const float *output, const float *initial, float *previous, const int *offsets, int steps, int rows,
                                    int hidden, int directions, int direction) {
    const int t = blockIdx.x, worker = blockIdx.y * blockDim.x + threadIdx.x, workers = gridDim.y * blockDim.x;
    if (t == steps) {
        clear(previous, (long long)offsets[steps] * hidden, (long long)rows * hidden, worker, workers);
        return;
    }
    const int row = offsets[t], active = offsets[t + 1] - row, neighbour = direction == 0 ? t - 1 : t + 1;
    const bool exists = neighbour >= 0 && neighbour < steps;
    const int other_row = exists ? offsets[neighbour] : 0, continuing = exists ? min(active, offsets[neighbour + 1] - other_row) : 0;
    const long long count = (long long)active * hidden;
#pragma unroll 4
    for (long long i = worker; i < count; i += workers) {
        const int n = int(i / hidden), unit = int(i - (long long)n * hidden);
        float h = 0.0f;
        if (n < continuing) {
            h = output[((long long)(other_row + n) * directions + direction) * hidden + unit];
        } else if (initial) {
            h = initial[i];
        }
        previous[(long long)row * hidden + i] = h;
    }
}

// The kernels by name: what each core and number of parts are good for, src/backend/cuda/lstm.rs knows.
#define LAUNCH                                                                                                                             \
    int steps, int rows, int hidden, int sequences, int directions, int first_direction, int launched, int first_sequence, int slices,    \
        int columns, int tile, int weight_slots, int first_step, int last_step
#define LAUNCHED                                                                                                                           \
    {                                                                                                                                      \
        steps, rows, hidden, sequences, directions, first_direction, launched, first_sequence, slices, columns, tile, weight_slots,       \
            first_step, last_step                                                                                                          \
    }

#define FORWARD(name, Core)                                                                                                                \
    KERNEL(WARP *Core::WARPS, 1)                                                                                                           \
    name(float *gates0, float *cells0, const float *weight0, const float *input_bias0, const float *recurrent_bias0,                      \
         const float *initial_hidden0, const float *initial_cell0, float *final_hidden0, float *final_cell0, float *gates1,              \
         float *cells1, const float *weight1, const float *input_bias1, const float *recurrent_bias1, const float *initial_hidden1,      \
         const float *initial_cell1, float *final_hidden1, float *final_cell1, float *output, const int *offsets, LAUNCH,                 \
         unsigned *counters, unsigned char *exchange) {                                                                                    \
        forward<Core>({{gates0, cells0, weight0, input_bias0, recurrent_bias0, initial_hidden0, initial_cell0, final_hidden0,             \
                        final_cell0},                                                                                                      \
                       {gates1, cells1, weight1, input_bias1, recurrent_bias1, initial_hidden1, initial_cell1, final_hidden1,             \
                        final_cell1},                                                                                                      \
                       output, offsets, LAUNCHED, counters, exchange});                                                                    \
    }                                                                                                                                      \
    EXPORT(name)

#define BACKWARD(name, Core, PARTS)                                                                                                        \
    KERNEL(WARP *Core::WARPS, 1)                                                                                                           \
    name(float *gates0, const float *cells0, const float *weight0, const float *initial_cell0, float *cell_gradient0,                     \
         const float *final_hidden_gradient0, float *initial_hidden_gradient0, float *gates1, const float *cells1, const float *weight1, \
         const float *initial_cell1, float *cell_gradient1, const float *final_hidden_gradient1, float *initial_hidden_gradient1,         \
         const float *output_gradient, const int *offsets, LAUNCH, unsigned *counters, unsigned char *exchange, float *parts) {           \
        backward<Core, PARTS>({{gates0, cells0, weight0, initial_cell0, cell_gradient0, final_hidden_gradient0,                           \
                                initial_hidden_gradient0},                                                                                 \
                               {gates1, cells1, weight1, initial_cell1, cell_gradient1, final_hidden_gradient1,                           \
                                initial_hidden_gradient1},                                                                                 \
                               output_gradient, offsets, LAUNCHED, counters, exchange, parts});                                            \
    }                                                                                                                                      \
    EXPORT(name)

using WideBfloat16 = TensorCore<Bfloat16, 5, 4, 4>;
using NarrowBfloat16 = TensorCore<Bfloat16, 2, 8, 4>;
using WideTf32 = TensorCore<Tf32, 3, 6, 3>;
using NarrowTf32 = TensorCore<Tf32, 2, 8, 4>;

FORWARD(lstm_forward_f32, Scalar);
FORWARD(lstm_forward_bf16, WideBfloat16);
FORWARD(lstm_forward_tf32, WideTf32);
BACKWARD(lstm_backward_f32, Scalar, 1);
BACKWARD(lstm_backward_f32_parts, Scalar, 4);
BACKWARD(lstm_backward_bf16, NarrowBfloat16, 1);
BACKWARD(lstm_backward_bf16_parts, WideBfloat16, 4);
BACKWARD(lstm_backward_tf32, NarrowTf32, 1);
BACKWARD(lstm_backward_tf32_parts, WideTf32, 4);
EXPORT(lstm_previous_hidden);
