// A decoder's step: location-aware attention (Chorowski et al., 2015; ESPnet v1's AttLoc) and the LSTM cell behind it, forward and backward.
//
//   e_j = g . tanh(V h_j + W z + U (F * a')_j)    a = softmax(2 e)    c = sum a_j h_j    z = LSTM([y, c], z)
//
// N sequences of symbols, each over the T frames of its utterance; A units of the attention, C channels of K taps, E columns of a frame, H units.
// V h [R', A] comes ready; the products of all symbols, before the first step (y) and behind the last (the gradients of weights), are matmul.cu's.
// Here are the steps: four launches each, six backward. The loop over them is the host's, which a graph replays.
//
//   product              W z; backward those of the gates' and the query's gradients
//   energies             2 e, from T A tangents                              blocks: 32 frames of a sequence
//   contexts             a and c                                             blocks: 64 columns of a sequence; each takes the softmax by itself
//   cell                 gates, the product with [c, z] within, cell, z; z is written where the next step's product reads it
//   cell_backward        the gradients of the gates' sums
//   frames_dot           those of a, from that of c and those that the next step's a' has
//   energies_backward    from those of a to those of V h, W z, g, U and F * a'; tangents are computed again
//   location_backward    from those of F * a' to those of a' and F
//   frames_backward      that of h, the sum over all steps of a_j dc: once, behind the last
//
// Counted for one step of N = 16, T = 200, A = E = 320, H = 300, C = 10, K = 201, on an H200 (67 TFLOP/s, 4.8 TB/s):
// energies 2 N T (C K + A C + A) = 35 MFLOP, 1 M tangents of about 25 instructions, 4 MB of V h, which the L2 cache keeps from step to step: about
// 1 us each; contexts 2 MFLOP and 4 MB; backward about four times all that. The LSTM's products are 24 MFLOP and read 3 MB of weights, from the
// cache too: too few rows for a tile of matmul.cu, whose loop over the depth would take 10 us. What bounds a step is therefore latency: launches
// that wait for one another, some 3 us each. The products are exact in f32 whatever the others are.
//
// A product's warp has four columns, or a unit's four gates, of 16 rows: 64 sums in registers, lanes share the depth, and a reduction that halves
// the sums at every turn leaves each lane with two of them.
//
// Sums over frames and sequences (g, U, F) stay with the block that has these frames of this sequence, from step to step, and are added in the
// end in the order of sequences and frames: nothing is added by two blocks, and no order depends on time.
//
// Channels are padded to multiples of four, so that the inner loops read four of them at once; lanes are frames or units then, 48 bytes apart.
//
// Not yet measured on a GPU.
#include "common.cuh"
#include "vector.cuh"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int FRAMES = 32; // of a block, a warp's lanes
constexpr int UNITS = 128; // of the attention that a block takes at a time
constexpr int COLUMNS = 64;
constexpr float SHARPENING = 2.0f; // ESPnet's factor on the energies

DEVICE float dot(float4 a, float4 b, float sum) {
    sum += a.x * b.x;
    sum += a.y * b.y;
    sum += a.z * b.z;
    sum += a.w * b.w;
    return sum;
}

DEVICE float4 quad(const float *x) { return *reinterpret_cast<const float4 *>(x); }
DEVICE void set_quad(float *x, float4 value) { *reinterpret_cast<float4 *>(x) = value; }

// Who attends to what: sequence n to its utterance's frames, with its weights of all steps one behind the other from starts[n] on.
struct Readers {
    const int *utterances, *starts;
    const int *frame_offsets, *frame_lengths;
};

struct Reader {
    int utterance, frames, start;
    const int *offsets;

    DEVICE Reader(const Readers &readers, int n) {
        utterance = readers.utterances[n];
        frames = readers.frame_lengths[utterance];
        start = readers.starts[n];
        offsets = readers.frame_offsets;
    }

    DEVICE int row(int frame) const { return offsets[frame] + utterance; }

    // The weights of the step before `step`; null: all alike.
    DEVICE const float *previous(const float *attention, const float *initial, int step) const {
        if (step > 0) return attention + start + (long long)(step - 1) * frames;
        return initial ? initial + start : nullptr;
    }
};

struct Location {
    int channels, taps;
    DEVICE int padded() const { return (channels + 3) / 4 * 4; }
    DEVICE int window() const { return FRAMES + taps - 1; }
};

// What a block holds of the location, in shared memory: see `shared` in src/backend/cuda/attention_decoder.rs.
struct Room {
    float *taps;    // [taps, padded]
    float *located; // [FRAMES, padded]
    float *parts;   // [WARPS, FRAMES, padded]
    float *units;   // [UNITS, padded]
    float *window;  // [FRAMES + taps - 1]
    float *behind;

    DEVICE Room(float *shared, const Location &location) {
        const int padded = location.padded();
        taps = shared;
        located = taps + location.taps * padded;
        parts = located + FRAMES * padded;
        units = parts + WARPS * FRAMES * padded;
        window = units + UNITS * padded;
        behind = window + location.window();
    }
};

DEVICE void load_taps(float *to, const float *taps, const Location &location) {
    const int padded = location.padded();
    for (int i = threadIdx.x; i < location.taps * padded; i += THREADS) {
        const int channel = i / location.taps, tap = i % location.taps;
        to[tap * padded + channel] = channel < location.channels ? taps[i] : 0.0f;
    }
}

// The weights of the step before around the frames from `first` on.
DEVICE void load_window(float *to, const float *previous, const Reader &reader, int first, const Location &location) {
    for (int i = threadIdx.x; i < location.window(); i += THREADS) {
        const int at = first - location.taps / 2 + i;
        const bool inside = at >= 0 && at < reader.frames;
        to[i] = !inside ? 0.0f : previous ? previous[at] : 1.0f / float(reader.frames);
    }
}

// The sums of the warps' parts, in their order: element i of [FRAMES, padded].
DEVICE float sum_of_parts(const float *parts, int i, int stride) {
    float sum = parts[i];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) sum += parts[warp * stride + i];
    return sum;
}

// located = F * a'. Lanes are frames, warps share the taps. Ends with a barrier.
DEVICE void locate(const Room &room, const float *taps, const float *previous, const Reader &reader, int first, const Location &location) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, padded = location.padded();
    load_taps(room.taps, taps, location);
    load_window(room.window, previous, reader, first, location);
    barrier();
    const int begin = warp * location.taps / WARPS, end = (warp + 1) * location.taps / WARPS;
    for (int channel = 0; channel < padded; channel += 4) {
        float4 sum = Quad::all(0.0f);
#pragma unroll 4
        for (int tap = begin; tap < end; ++tap) sum = sum + room.window[lane + tap] * quad(room.taps + tap * padded + channel);
        set_quad(room.parts + (warp * FRAMES + lane) * padded + channel, sum);
    }
    barrier();
    for (int i = threadIdx.x; i < FRAMES * padded; i += THREADS) room.located[i] = sum_of_parts(room.parts, i, FRAMES * padded);
    barrier();
}

// The rows of U of the units from `first` on.
DEVICE void load_units(float *to, const float *location_weight, int first, int units, const Location &location) {
    const int padded = location.padded();
    for (int i = threadIdx.x; i < UNITS * padded; i += THREADS) {
        const int unit = first + i / padded, channel = i % padded;
        to[i] = unit < units && channel < location.channels ? location_weight[unit * location.channels + channel] : 0.0f;
    }
}

// What a step's sequences leave in the blocks' own sums, one behind the other: dg [A], dU [A, C], dF [C, K].
struct OwnSums {
    float *energy, *location, *taps;
    DEVICE OwnSums(float *sums, int block, int units, const Location &location) {
        energy = sums + (long long)block * (units + units * location.channels + location.channels * location.taps);
        this->location = energy + units;
        taps = this->location + units * location.channels;
    }
};

DEVICE void put(float *sum, float value, bool add) { *sum = add ? *sum + value : value; }

// Each lane has 2 LANES values; then lane l has the sums over the warp of the values 2 (l % LANES) and the next, in values[0] and values[1].
template <int LANES> DEVICE void sum_and_share_out(float (&values)[2 * WARP]) {
    const bool upper = threadIdx.x & (LANES / 2);
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        const float low = values[i], high = values[i + LANES];
        values[i] = (upper ? high : low) + __shfl_xor_sync(FULL_WARP, upper ? low : high, LANES / 2);
    }
    if constexpr (LANES > 2) sum_and_share_out<LANES / 2>(values);
}

// The products of ROWS rows, from `first` on, with COLUMNS columns of a warp, whose weights are rows of `depth` elements, weight_step apart: lane l
// then has, of the row first + l / 2, those of the columns 2 (l % 2) and the next. Lanes share the depth, and a block's warps the rows, in
// shared memory [ROWS, DEPTH]. All threads of the block call it; weights: null, where the warp has nothing to do; columns behind `last` are it again.
struct Rows {
    static constexpr int ROWS = 16, COLUMNS = 4, DEPTH = 256, WARPS = 4;
    static_assert(ROWS * COLUMNS == 2 * WARP, "a lane ends with two sums");

    DEVICE static float2 product(float *shared, const float *x, long long stride, int first, int count, const float *weights,
                                 long long weight_step, int last, int depth) {
        const int lane = threadIdx.x % WARP;
        float sums[2 * WARP];
#pragma unroll
        for (int i = 0; i < 2 * WARP; ++i) sums[i] = 0.0f;
        for (int begin = 0; begin < depth; begin += DEPTH) {
            const int length = min(DEPTH, depth - begin);
            barrier();
            for (int i = threadIdx.x; i < ROWS * DEPTH; i += WARPS * WARP) {
                const int row = first + i / DEPTH, k = i % DEPTH;
                shared[i] = row < count && k < length ? x[row * stride + begin + k] : 0.0f;
            }
            barrier();
            if (!weights) continue;
            for (int k = lane; k < length; k += WARP) {
                float weight[COLUMNS];
#pragma unroll
                for (int column = 0; column < COLUMNS; ++column) weight[column] = weights[min(column, last) * weight_step + begin + k];
#pragma unroll
                for (int row = 0; row < ROWS; ++row) {
                    const float value = shared[row * DEPTH + k];
#pragma unroll
                    for (int column = 0; column < COLUMNS; ++column) sums[row * COLUMNS + column] += value * weight[column];
                }
            }
        }
        sum_and_share_out<WARP>(sums);
        return make_float2(sums[0], sums[1]);
    }
};

} // namespace

// to [4H, E + H] = the input weights that read the context, [4H, D + E] from column D on, beside the recurrent ones; or, transposed, [E + H, 4H].
KERNEL(THREADS, 4)
attention_decoder_weights(float *to, const float *input, const float *recurrent, int rows, int embedding, int frame, int hidden, int transposed) {
    const int columns = frame + hidden;
    for (int i = Threads::of_launch().number; i < rows * columns; i += Threads::of_launch().count) {
        const int row = transposed ? i % rows : i / columns, column = transposed ? i / rows : i % columns;
        to[i] = column < frame ? input[(long long)row * (embedding + frame) + embedding + column]
                               : recurrent[(long long)row * hidden + column - frame];
    }
}

EXPORT(attention_decoder_weights);

// The state before the first step, zeros without one, to where its products read it.
KERNEL(THREADS, 4)
attention_decoder_begin(float *inputs, const float *state, int count, int frame, int hidden) {
    for (int i = Threads::of_launch().number; i < count * hidden; i += Threads::of_launch().count) {
        inputs[(long long)(i / hidden) * (frame + hidden) + frame + i % hidden] = state ? state[i] : 0.0f;
    }
}

EXPORT(attention_decoder_begin);

// energies [N, most_frames]. blocks: (32 frames, sequences).
KERNEL(THREADS, 2)
attention_decoder_energies(float *energies, const float *encoded, const float *query, const float *taps, const float *location_weight,
                           const float *energy_weight, const float *attention, const float *initial, const int *utterances,
                           const int *starts, const int *frame_offsets, const int *frame_lengths, int step, int units, int channels,
                           int tap_count, int most_frames) {
    SHARED_MEMORY(float, shared);
    const int n = blockIdx.y, first = blockIdx.x * FRAMES;
    const Reader reader({utterances, starts, frame_offsets, frame_lengths}, n);
    if (first >= reader.frames) return;
    const Location location{channels, tap_count};
    const Room room(shared, location);
    locate(room, taps, reader.previous(attention, initial, step), reader, first, location);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, padded = location.padded();

    // A warp has four frames, its lanes units.
    const float *rows[4];
    float sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        rows[i] = encoded + (long long)reader.row(min(first + 4 * warp + i, reader.frames - 1)) * units;
        sums[i] = 0.0f;
    }
    for (int begin = 0; begin < units; begin += UNITS) {
        barrier();
        load_units(room.units, location_weight, begin, units, location);
        barrier();
        for (int i = lane; i < UNITS; i += WARP) {
            const int unit = begin + i;
            if (unit >= units) break;
            const float of_query = query[(long long)n * units + unit], weight = energy_weight[unit];
            float x[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) x[k] = rows[k][unit] + of_query;
            for (int channel = 0; channel < padded; channel += 4) {
                const float4 u = quad(room.units + i * padded + channel);
#pragma unroll
                for (int k = 0; k < 4; ++k) x[k] = dot(u, quad(room.located + (4 * warp + k) * padded + channel), x[k]);
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[k] += weight * tanhf(x[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const float sum = warp_sum(sums[k]);
        const int frame = first + 4 * warp + k;
        if (lane == 0 && frame < reader.frames) energies[(long long)n * most_frames + frame] = SHARPENING * sum;
    }
}

EXPORT(attention_decoder_energies);

// The attention of this step, and contexts [N, stride]. blocks: (64 columns of a frame, sequences); shared memory: THREADS + 4 COLUMNS + 32 floats.
KERNEL(THREADS, 4)
attention_decoder_contexts(float *contexts, float *attention, const float *energies, const float *frames, const int *utterances,
                           const int *starts, const int *frame_offsets, const int *frame_lengths, int step, int columns, int stride,
                           int most_frames) {
    SHARED_MEMORY(float, shared);
    float *const weights = shared, *const slices = weights + THREADS, *const scratch = slices + 4 * COLUMNS;
    const int n = blockIdx.y, thread = threadIdx.x;
    const Reader reader({utterances, starts, frame_offsets, frame_lengths}, n);
    const float *own = energies + (long long)n * most_frames;
    float *now = attention + reader.start + (long long)step * reader.frames;
    float largest = -INFINITY, sum = 0.0f;
    for (int frame = thread; frame < reader.frames; frame += THREADS) largest = fmaxf(largest, own[frame]);
    largest = block_max(largest, scratch);
    for (int frame = thread; frame < reader.frames; frame += THREADS) sum += expf(own[frame] - largest);
    const float factor = 1.0f / block_sum(sum, scratch);

    const int column = blockIdx.x * COLUMNS + thread % COLUMNS, slice = thread / COLUMNS;
    float context = 0.0f;
    for (int first = 0; first < reader.frames; first += THREADS) {
        const int mine = first + thread, count = min(THREADS, reader.frames - first);
        barrier();
        if (mine < reader.frames) {
            weights[thread] = expf(own[mine] - largest) * factor;
            if (blockIdx.x == 0) now[mine] = weights[thread];
        }
        barrier();
        if (column < columns) {
#pragma unroll 4
            for (int i = slice; i < count; i += THREADS / COLUMNS) {
                context += weights[i] * frames[(long long)reader.row(first + i) * columns + column];
            }
        }
    }
    slices[thread] = context;
    barrier();
    if (slice == 0 && column < columns) {
        for (int other = 1; other < THREADS / COLUMNS; ++other) context += slices[other * COLUMNS + thread];
        contexts[(long long)n * stride + column] = context;
    }
}

EXPORT(attention_decoder_contexts);

// y [N, columns] = (or +=) x [N, depth] weights [columns, depth]^T, rows of x and y being so far apart. blocks: (16 columns, 16 rows); shared
// memory: [16, 256] floats, as for the cell.
KERNEL(128, 4)
attention_decoder_product(float *y, int y_stride, const float *x, int x_stride, const float *weights, int count, int columns, int depth,
                          int accumulate) {
    SHARED_MEMORY(float, shared);
    const int column = (int(blockIdx.x) * Rows::WARPS + int(threadIdx.x) / WARP) * Rows::COLUMNS, last = columns - 1 - column;
    const int first = blockIdx.y * Rows::ROWS, lane = threadIdx.x % WARP;
    const float *own = last >= 0 ? weights + (long long)column * depth : nullptr;
    const float2 sums = Rows::product(shared, x, x_stride, first, count, own, depth, last, depth);
    const int row = first + lane / 2, place = lane % 2 * 2;
    if (row >= count) return;
    float *to = y + (long long)row * y_stride + column + place;
    if (place <= last) put(to, sums.x, accumulate);
    if (place + 1 <= last) put(to + 1, sums.y, accumulate);
}

EXPORT(attention_decoder_product);

// gates [N, 4H]: the symbols' part of the sums, then i, f, g, o; cells [N, H] and hidden [N, H] of this step, the latter also to the inputs of the
// next, [next, frame + H] from column `frame` on. read: this step's, [N, frame + H], which weights [4H, frame + H] multiply. before: the cells
// before, null: zeros. A warp has a unit's four gates. blocks: (4 units, 16 rows).
KERNEL(128, 4)
attention_decoder_cell(float *gates, const float *read, const float *weights, const float *input_bias, const float *recurrent_bias,
                       const float *before, float *cells, float *hidden, float *next_inputs, int count, int next, int units, int frame) {
    SHARED_MEMORY(float, shared);
    const int unit = blockIdx.x * Rows::WARPS + threadIdx.x / WARP, first = blockIdx.y * Rows::ROWS, lane = threadIdx.x % WARP;
    const long long depth = frame + units;
    const bool works = unit < units;
    const float2 own = Rows::product(shared, read, depth, first, count, works ? weights + unit * depth : nullptr, units * depth, 3,
                                     int(depth));
    // The even lane of a row has i and f, the odd one g and o.
    const float of_candidate = __shfl_xor_sync(FULL_WARP, own.x, 1), of_output = __shfl_xor_sync(FULL_WARP, own.y, 1);
    const int n = first + lane / 2;
    if (!works || n >= count || lane % 2) return;
    float *const at = gates + (long long)n * 4 * units + unit;
    const auto sum = [=](int gate, float product) {
        return at[gate * units] + product + (input_bias[gate * units + unit] + recurrent_bias[gate * units + unit]);
    };
    const float input_gate = sigmoid(sum(0, own.x)), forget_gate = sigmoid(sum(1, own.y));
    const float candidate = tanhf(sum(2, of_candidate)), output_gate = sigmoid(sum(3, of_output));
    const int i = n * units + unit;
    const float cell = (before ? forget_gate * before[i] : 0.0f) + input_gate * candidate, state = output_gate * tanhf(cell);
    at[0] = input_gate, at[units] = forget_gate, at[2 * units] = candidate, at[3 * units] = output_gate;
    cells[i] = cell;
    hidden[i] = state;
    if (n < next) next_inputs[n * depth + frame + unit] = state;
}

EXPORT(attention_decoder_cell);

// dgates [N, 4H] of the sums, from dy [N, H] and, of the first `next` sequences, what the step behind says of z and of the cell: dnext_inputs
// [next, frame + H] from column `frame` on, and dcells [N, H], which becomes that of the cells before.
KERNEL(THREADS, 4)
attention_decoder_cell_backward(float *dgates, float *dcells, const float *gates, const float *cells, const float *before, const float *dy,
                                const float *dnext_inputs, int count, int next, int units, int frame) {
    for (int i = Threads::of_launch().number; i < count * units; i += Threads::of_launch().count) {
        const int n = i / units, unit = i % units;
        const long long place = (long long)n * 4 * units + unit;
        const float input_gate = gates[place], forget_gate = gates[place + units];
        const float candidate = gates[place + 2 * units], output_gate = gates[place + 3 * units];
        const float tangent = tanhf(cells[i]);
        float dh = dy[i], dc = 0.0f;
        if (n < next) {
            dh += dnext_inputs[(long long)n * (frame + units) + frame + unit];
            dc = dcells[i];
        }
        dc += dh * output_gate * (1.0f - tangent * tangent);
        dgates[place] = dc * candidate * input_gate * (1.0f - input_gate);
        dgates[place + units] = before ? dc * before[i] * forget_gate * (1.0f - forget_gate) : 0.0f;
        dgates[place + 2 * units] = dc * input_gate * (1.0f - candidate * candidate);
        dgates[place + 3 * units] = dh * tangent * output_gate * (1.0f - output_gate);
        dcells[i] = dc * forget_gate;
    }
}

EXPORT(attention_decoder_cell_backward);

// dattention [N, most_frames] = (of the first `next` sequences +=) h_j . dc. blocks: (32 frames, sequences).
KERNEL(THREADS, 4)
attention_decoder_frames_dot(float *dattention, const float *frames, const float *dcontexts, const int *utterances, const int *starts,
                             const int *frame_offsets, const int *frame_lengths, int next, int columns, int stride, int most_frames) {
    const int n = blockIdx.y, first = blockIdx.x * FRAMES, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Reader reader({utterances, starts, frame_offsets, frame_lengths}, n);
    if (first >= reader.frames) return;
    const float *rows[4];
    float sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        rows[i] = frames + (long long)reader.row(min(first + 4 * warp + i, reader.frames - 1)) * columns;
        sums[i] = 0.0f;
    }
    for (int column = lane; column < columns; column += WARP) {
        const float slope = dcontexts[(long long)n * stride + column];
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] += slope * rows[i][column];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float sum = warp_sum(sums[i]);
        const int frame = first + 4 * warp + i;
        if (lane == 0 && frame < reader.frames) put(dattention + (long long)n * most_frames + frame, sum, n < next);
    }
}

EXPORT(attention_decoder_frames_dot);

// From dattention to: dencoded [R', A] += (null: not wanted); dlocated [N, most_frames, padded]; dquery_parts [blocks of frames, N, A]; and the
// blocks' own sums for g and U (null: not wanted), which of the first `next` sequences have begun. blocks: (32 frames, sequences).
KERNEL(THREADS, 2)
attention_decoder_energies_backward(const float *dattention, float *dencoded, float *dlocated, float *dquery_parts, float *own_sums,
                                    const float *encoded, const float *query, const float *taps, const float *location_weight,
                                    const float *energy_weight, const float *attention, const int *utterances, const int *starts,
                                    const int *frame_offsets, const int *frame_lengths, int step, int next, int sequences, int units,
                                    int channels, int tap_count, int most_frames) {
    SHARED_MEMORY(float, shared);
    constexpr int PITCH = UNITS + 1;
    const int n = blockIdx.y, first = blockIdx.x * FRAMES, thread = threadIdx.x;
    const Reader reader({utterances, starts, frame_offsets, frame_lengths}, n);
    if (first >= reader.frames) return;
    const Location location{channels, tap_count};
    const Room room(shared, location);
    float *const slopes = room.behind;                       // [FRAMES, PITCH]
    float *const denergies = slopes + FRAMES * PITCH;        // [FRAMES]
    float *const halves = denergies + FRAMES;                // [2, 2, UNITS]
    float *const scratch = halves + 4 * UNITS;               // [32]
    int *const rows = reinterpret_cast<int *>(scratch + 32); // [FRAMES]
    const OwnSums own(own_sums, n * gridDim.x + blockIdx.x, units, location);
    const int lane = thread % WARP, warp = thread / WARP, padded = location.padded();
    const bool begun = n < next;

    locate(room, taps, reader.previous(attention, nullptr, step), reader, first, location);
    const float *now = attention + reader.start + (long long)step * reader.frames, *dnow = dattention + (long long)n * most_frames;
    float mean = 0.0f;
    for (int frame = thread; frame < reader.frames; frame += THREADS) mean += now[frame] * dnow[frame];
    mean = block_sum(mean, scratch);
    if (thread < FRAMES) {
        const int frame = first + thread;
        const bool exists = frame < reader.frames;
        denergies[thread] = exists ? SHARPENING * now[frame] * (dnow[frame] - mean) : 0.0f;
        rows[thread] = reader.row(min(frame, reader.frames - 1));
    }

    const int i = thread % UNITS, half = thread / UNITS;
    for (int begin = 0; begin < units; begin += UNITS) {
        barrier();
        load_units(room.units, location_weight, begin, units, location);
        barrier();
        // Lanes are units, and a thread has half of the frames, four at a time.
        const int unit = begin + i;
        float dquery = 0.0f, dweight = 0.0f;
        for (int frame = half * (FRAMES / 2); frame < (half + 1) * (FRAMES / 2); frame += 4) {
            float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (unit < units) {
                const float of_query = query[(long long)n * units + unit], weight = energy_weight[unit];
#pragma unroll
                for (int k = 0; k < 4; ++k) x[k] = encoded[(long long)rows[frame + k] * units + unit] + of_query;
                // Not unrolled: the loads of several turns at once would take more registers than two blocks have.
#pragma unroll 1
                for (int channel = 0; channel < padded; channel += 4) {
                    const float4 u = quad(room.units + i * padded + channel);
#pragma unroll
                    for (int k = 0; k < 4; ++k) x[k] = dot(u, quad(room.located + (frame + k) * padded + channel), x[k]);
                }
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float tangent = tanhf(x[k]), denergy = denergies[frame + k];
                    dweight += denergy * tangent;
                    x[k] = denergy * weight * (1.0f - tangent * tangent);
                    dquery += x[k];
                    if (dencoded && first + frame + k < reader.frames) dencoded[(long long)rows[frame + k] * units + unit] += x[k];
                }
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) slopes[(frame + k) * PITCH + i] = x[k];
        }
        halves[half * UNITS + i] = dquery;
        halves[(2 + half) * UNITS + i] = dweight;
        barrier();
        if (unit < units) {
            const float sum = halves[2 * half * UNITS + i] + halves[(2 * half + 1) * UNITS + i];
            if (half == 0) dquery_parts[((long long)blockIdx.x * sequences + n) * units + unit] = sum;
            else if (own_sums) put(own.energy + unit, sum, begun);
        }
        if (own_sums) {
            for (int item = thread; item < UNITS * padded / 4; item += THREADS) {
                const int at = item % UNITS, channel = item / UNITS * 4;
                if (begin + at >= units) continue;
                float4 sum = Quad::all(0.0f);
#pragma unroll 4
                for (int frame = 0; frame < FRAMES; ++frame) {
                    sum = sum + slopes[frame * PITCH + at] * quad(room.located + frame * padded + channel);
                }
                float *to = own.location + (begin + at) * channels + channel;
                put(to, sum.x, begun);
                if (channel + 1 < channels) put(to + 1, sum.y, begun);
                if (channel + 2 < channels) put(to + 2, sum.z, begun);
                if (channel + 3 < channels) put(to + 3, sum.w, begun);
            }
        }
        // Lanes are frames, and warps share the units.
        for (int channel = 0; channel < padded; channel += 4) {
            float *part = room.parts + (warp * FRAMES + lane) * padded + channel;
            float4 sum = begin > 0 ? quad(part) : Quad::all(0.0f);
#pragma unroll 4
            for (int at = warp * (UNITS / WARPS); at < (warp + 1) * (UNITS / WARPS); ++at) {
                sum = sum + slopes[lane * PITCH + at] * quad(room.units + at * padded + channel);
            }
            set_quad(part, sum);
        }
    }
    barrier();
    for (int item = thread; item < FRAMES * padded; item += THREADS) {
        const int frame = first + item / padded;
        if (frame >= reader.frames) continue;
        dlocated[((long long)n * most_frames + frame) * padded + item % padded] = sum_of_parts(room.parts, item, FRAMES * padded);
    }
}

EXPORT(attention_decoder_energies_backward);

// From dlocated to: dattention [N, most_frames] of the step before (null: it has none); the blocks' own sums for F (null: not wanted); and dquery
// [N, A], the sum of its parts. blocks: (32 frames, sequences); shared memory: the taps and a window of dlocated, [taps, padded] and
// [FRAMES + taps - 1, padded], a window of a', [FRAMES + taps - 1], and THREADS floats.
KERNEL(THREADS, 2)
attention_decoder_location_backward(const float *dlocated, float *dattention, float *own_sums, const float *dquery_parts, float *dquery,
                                    const float *taps, const float *attention, const int *utterances, const int *starts,
                                    const int *frame_offsets, const int *frame_lengths, int step, int next, int sequences, int units,
                                    int channels, int tap_count, int most_frames) {
    SHARED_MEMORY(float, shared);
    const int n = blockIdx.y, first = blockIdx.x * FRAMES, thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const Reader reader({utterances, starts, frame_offsets, frame_lengths}, n);
    if (first >= reader.frames) return;
    const Location location{channels, tap_count};
    const int padded = location.padded(), side = tap_count / 2;
    float *const all_taps = shared;                                    // [taps, padded]
    float *const slopes = all_taps + tap_count * padded;               // [window, padded]
    float *const previous = slopes + location.window() * padded;       // [window]
    float *const parts = previous + location.window();                 // [WARPS, FRAMES]
    if (blockIdx.x == 0) {
        const int blocks = (reader.frames + FRAMES - 1) / FRAMES;
        for (int unit = thread; unit < units; unit += THREADS) {
            float sum = dquery_parts[(long long)n * units + unit];
#pragma unroll 4
            for (int block = 1; block < blocks; ++block) sum += dquery_parts[((long long)block * sequences + n) * units + unit];
            dquery[(long long)n * units + unit] = sum;
        }
    }
    load_taps(all_taps, taps, location);
    load_window(previous, reader.previous(attention, nullptr, step), reader, first, location);
    for (int i = thread; i < location.window() * padded; i += THREADS) {
        const int frame = first - side + i / padded;
        const bool inside = frame >= 0 && frame < reader.frames;
        slopes[i] = inside ? dlocated[((long long)n * most_frames + frame) * padded + i % padded] : 0.0f;
    }
    barrier();
    if (dattention) {
        // Lanes are frames of a', and warps share the taps: tap k of frame j sees frame j + k - side.
        float sum = 0.0f;
        for (int tap = warp * tap_count / WARPS; tap < (warp + 1) * tap_count / WARPS; ++tap) {
            const float *slope = slopes + (lane + tap_count - 1 - tap) * padded;
            for (int channel = 0; channel < padded; channel += 4) sum = dot(quad(slope + channel), quad(all_taps + tap * padded + channel), sum);
        }
        parts[thread] = sum;
        barrier();
        if (thread < FRAMES && first + thread < reader.frames) {
            dattention[(long long)n * most_frames + first + thread] = sum_of_parts(parts, thread, FRAMES);
        }
    }
    if (own_sums) {
        const OwnSums own(own_sums, n * gridDim.x + blockIdx.x, units, location);
        for (int item = thread; item < tap_count * padded / 4; item += THREADS) {
            const int tap = item % tap_count, channel = item / tap_count * 4;
            float4 sum = Quad::all(0.0f);
#pragma unroll 4
            for (int frame = 0; frame < FRAMES; ++frame) {
                sum = sum + previous[frame + tap] * quad(slopes + (frame + side) * padded + channel);
            }
            float *to = own.taps + channel * tap_count + tap;
            const bool begun = n < next;
            put(to, sum.x, begun);
            if (channel + 1 < channels) put(to + tap_count, sum.y, begun);
            if (channel + 2 < channels) put(to + 2 * tap_count, sum.z, begun);
            if (channel + 3 < channels) put(to + 3 * tap_count, sum.w, begun);
        }
    }
}

EXPORT(attention_decoder_location_backward);

// dg [A], dU [A, C] and dF [C, K], null: not wanted, of the blocks' own sums: those of the sequences in their order, each of its blocks in theirs.
KERNEL(THREADS, 4)
attention_decoder_sum(const float *own_sums, float *energy, float *location_weight, float *taps, const int *utterances,
                      const int *frame_lengths, int sequences, int blocks, int units, int channels, int tap_count) {
    const int of_energy = units, of_location = units * channels, all = of_energy + of_location + channels * tap_count;
    for (int i = Threads::of_launch().number; i < all; i += Threads::of_launch().count) {
        float *to = i < of_energy                 ? (energy ? energy + i : nullptr)
                    : i < of_energy + of_location ? (location_weight ? location_weight + i - of_energy : nullptr)
                                                  : (taps ? taps + i - of_energy - of_location : nullptr);
        if (!to) continue;
        float sum = 0.0f;
        for (int n = 0; n < sequences; ++n) {
            const int own = (frame_lengths[utterances[n]] + FRAMES - 1) / FRAMES;
#pragma unroll 4
            for (int block = 0; block < own; ++block) sum += own_sums[(long long)(n * blocks + block) * all + i];
        }
        *to = sum;
    }
}

EXPORT(attention_decoder_sum);

// dframes [R', E]: of every frame the sum over its reader's steps of a_j dc. readers: of every utterance the sequence that reads it, -1: none.
// dcontexts: [R, stride]. blocks: (32 frames, 64 columns, utterances); shared memory: [32, 32] and [32, 64] floats.
KERNEL(THREADS, 4)
attention_decoder_frames_backward(float *dframes, const float *attention, const float *dcontexts, const int *readers, const int *starts,
                                  const int *frame_offsets, const int *frame_lengths, const int *token_offsets, const int *token_lengths,
                                  int columns, int stride) {
    SHARED_MEMORY(float, shared);
    constexpr int STEPS = 32, OWN = FRAMES * COLUMNS / THREADS;
    float *const weights = shared, *const slopes = weights + STEPS * FRAMES;
    const int utterance = blockIdx.z, first = blockIdx.x * FRAMES, thread = threadIdx.x, frames = frame_lengths[utterance];
    if (first >= frames) return;
    const int n = readers[utterance], column = blockIdx.y * COLUMNS + thread % COLUMNS, group = thread / COLUMNS * OWN;
    const int steps = n < 0 ? 0 : token_lengths[n], start = n < 0 ? 0 : starts[n];
    float sums[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) sums[i] = 0.0f;
    for (int begin = 0; begin < steps; begin += STEPS) {
        barrier();
        for (int i = thread; i < STEPS * FRAMES; i += THREADS) {
            const int step = begin + i / FRAMES, frame = first + i % FRAMES;
            const bool inside = step < steps && frame < frames;
            weights[i] = inside ? attention[start + (long long)step * frames + frame] : 0.0f;
        }
        for (int i = thread; i < STEPS * COLUMNS; i += THREADS) {
            const int step = begin + i / COLUMNS, at = blockIdx.y * COLUMNS + i % COLUMNS;
            const bool inside = step < steps && at < columns;
            slopes[i] = inside ? dcontexts[(long long)(token_offsets[step] + n) * stride + at] : 0.0f;
        }
        barrier();
#pragma unroll 4
        for (int step = 0; step < STEPS; ++step) {
            const float slope = slopes[step * COLUMNS + thread % COLUMNS];
            const float4 low = quad(weights + step * FRAMES + group), high = quad(weights + step * FRAMES + group + 4);
            sums[0] += low.x * slope, sums[1] += low.y * slope, sums[2] += low.z * slope, sums[3] += low.w * slope;
            sums[4] += high.x * slope, sums[5] += high.y * slope, sums[6] += high.z * slope, sums[7] += high.w * slope;
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int frame = first + group + i;
        if (frame < frames && column < columns) dframes[(long long)(frame_offsets[frame] + utterance) * columns + column] = sums[i];
    }
}

EXPORT(attention_decoder_frames_backward);
