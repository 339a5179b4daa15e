// What has to know which sequence and time a row belongs to: dropout, subsampling of frames, and positions. Packed rows, time-major, longest sequence
// first: rows offsets[t] ... offsets[t + 1] - 1 are the frames of time t; offsets: [steps + 1]. Rows from offsets[steps] on belong to no
// sequence, they only make shapes repeat, and become zero.
//
// Bytes per element: dropout and positions 8, subsampling 8 of those kept, its backward by a factor s 4 + 4 / s (8 / s where it adds). Bound by memory:
// dropout's random numbers are about 110 instructions for four elements, 0.55 of what an H200 issues while it moves their 32 bytes.
// 7500 x 320: 19 MB, 4 us at 4.8 TB/s.
//
// A block takes as many rows as give its threads about four accesses each. Its first threads find a row's time by binary search in the
// offsets, once a row, for all of the block.
//
// Not yet measured on a GPU.
#include "exact.cuh"
#include "random.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

// Where a row's frame is; no sequence has a row of time -1.
struct Frame {
    int time, sequence;
};

DEVICE Frame frame_of(int row, const int *offsets, int steps) {
    if (row >= offsets[steps]) return {-1, 0};
    int time = 0, beyond = steps; // offsets[time] <= row < offsets[beyond]
    while (beyond - time > 1) {
        const int middle = time + (beyond - time) / 2;
        if (offsets[middle] <= row) {
            time = middle;
        } else {
            beyond = middle;
        }
    }
    return {time, row - offsets[time]};
}

// The rows of this block, at most THREADS.
struct Rows {
    int first, count;
    DEVICE Rows(int rows, int rows_per_block) : first(blockIdx.x * rows_per_block), count(min(rows_per_block, rows - first)) {}
};

// y = mask x; [rows, columns]. y may be x: backward is the same with gradients. `locked`: the mask of time 0 at all times. The number of
// steps before this one is in memory at `counter`, so that a captured graph draws a new mask each time, or, without, `step`.
KERNEL(THREADS, 6)
sequences_dropout(float *y, const float *x, const int *offsets, int steps, int rows, int columns, int rows_per_block, int locked,
                  unsigned key_low, unsigned key_high, unsigned threshold, float scale, unsigned step, const unsigned long long *counter) {
    SHARED_MEMORY(Frame, frames); // [rows_per_block]
    const Rows mine(rows, rows_per_block);
    if (int(threadIdx.x) < mine.count) frames[threadIdx.x] = frame_of(mine.first + threadIdx.x, offsets, steps);
    barrier();
    const Mask mask = {{key_low, key_high}, threshold, scale, counter ? unsigned(*counter) : step};
    const bool quads = are_aligned(y, x) && columns % 4 == 0;
    for_each_in_rows(Threads::of_block(), mine.count, (columns + 3) / 4, [=](int row, int quarter) {
        const Frame frame = frames[row];
        const long long begin = (long long)(mine.first + row) * columns + 4 * quarter;
        const int length = quads ? 4 : min(4, columns - 4 * quarter);
        if (frame.time < 0) {
            for (int j = 0; j < length; ++j) y[begin + j] = 0.0f;
            return;
        }
        const uint4 drawn = mask.draw(quarter, locked ? 0 : frame.time, frame.sequence);
        if (quads) {
            Quad{begin}.store(y, mask.apply(drawn, Quad{begin}.load(x)));
        } else {
            y[begin] = mask.apply(drawn.x, x[begin]);
            if (length > 1) y[begin + 1] = mask.apply(drawn.y, x[begin + 1]);
            if (length > 2) y[begin + 2] = mask.apply(drawn.z, x[begin + 2]);
            if (length > 3) y[begin + 3] = mask.apply(drawn.w, x[begin + 3]);
        }
    });
}

// to[row] = or += from[source(row)], nothing from a source of -1; `to` has the block's rows, both have `columns`.
template <typename Source>
DEVICE void move_rows(Rows mine, float *to, const float *from, int columns, bool accumulate, int *sources, Source source) {
    if (int(threadIdx.x) < mine.count) sources[threadIdx.x] = source(mine.first + int(threadIdx.x));
    barrier();
    const auto move = [=](int row, auto at) {
        const long long target = (long long)(mine.first + row) * columns;
        const auto values = sources[row] < 0 ? at.all(0.0f) : at.load(from + (long long)sources[row] * columns);
        if (accumulate) {
            if (sources[row] >= 0) at.store(to + target, at.load(to + target) + values);
        } else {
            at.store(to + target, values);
        }
    };
    if (are_aligned(to, from) && columns % 4 == 0) {
        for_each_in_rows(Threads::of_block(), mine.count, columns / 4, [=](int row, int quad) { move(row, Quad{4 * quad}); });
    } else {
        for_each_in_rows(Threads::of_block(), mine.count, columns, [=](int row, int column) { move(row, Single{column}); });
    }
}

// y: every factor-th frame of x, the first always; y: [rows, columns] packed by kept_offsets: [kept_steps + 1], x packed by offsets.
KERNEL(THREADS, 6)
sequences_subsample(float *y, const float *x, const int *offsets, const int *kept_offsets, int kept_steps, int rows, int columns,
                    int rows_per_block, int factor) {
    SHARED_MEMORY(int, sources); // [rows_per_block]
    move_rows(Rows(rows, rows_per_block), y, x, columns, false, sources, [=](int row) {
        const Frame frame = frame_of(row, kept_offsets, kept_steps);
        return frame.time < 0 ? -1 : offsets[frame.time * factor] + frame.sequence;
    });
}

// dx = or += dy where a frame was kept; dx: [rows, columns] packed by offsets: [steps + 1]. Without `accumulate` the other rows become
// zero.
KERNEL(THREADS, 6)
sequences_subsample_backward(float *dx, const float *dy, const int *offsets, const int *kept_offsets, int steps, int rows, int columns,
                             int rows_per_block, int factor, int accumulate) {
    SHARED_MEMORY(int, sources); // [rows_per_block]
    move_rows(Rows(rows, rows_per_block), dx, dy, columns, accumulate, sources, [=](int row) {
        const Frame frame = frame_of(row, offsets, steps);
        return frame.time < 0 || frame.time % factor > 0 ? -1 : kept_offsets[frame.time / factor] + frame.sequence;
    });
}

// y = scale x + p(first + time), p(t)[2 i] = sin(t / 10000^(2 i / columns)) and its cosine in [2 i + 1]; [rows, columns]. Block `time` computes
// the sines of all its rows once: in f64, since an angle of thousands has lost its last digits in f32, so that p is off by no more than its
// rounding and, where the f64 lies beside a tie, one unit in its last place.
KERNEL(THREADS, 4)
sequences_positions(float *y, const float *x, const int *offsets, int steps, int rows, int columns, float scale, int first) {
    const int time = blockIdx.x;
    const bool exists = time < steps; // the last block clears the rows of no sequence
    const int begin = offsets[time], end = exists ? offsets[time + 1] : rows;
    const bool in_pairs = columns % 2 == 0 && reinterpret_cast<std::uintptr_t>(x) % 8 == 0 && reinterpret_cast<std::uintptr_t>(y) % 8 == 0;
    for (int column = 2 * threadIdx.x; column < columns; column += 2 * blockDim.x) {
        const double angle = double(first + time) / pow(10000.0, double(column) / double(columns));
        const float sine = exists ? float(sin(angle)) : 0.0f, cosine = exists ? float(cos(angle)) : 0.0f;
        for (int row = begin; row < end; ++row) {
            const long long place = (long long)row * columns + column;
            if (in_pairs) {
                const float2 values = exists ? *reinterpret_cast<const float2 *>(x + place) : make_float2(0.0f, 0.0f);
                *reinterpret_cast<float2 *>(y + place) =
                    make_float2(sum_of(product(scale, values.x), sine), sum_of(product(scale, values.y), cosine));
            } else {
                y[place] = exists ? sum_of(product(scale, x[place]), sine) : 0.0f;
                if (column + 1 < columns) y[place + 1] = exists ? sum_of(product(scale, x[place + 1]), cosine) : 0.0f;
            }
        }
    }
}

EXPORT(sequences_dropout);
EXPORT(sequences_subsample);
EXPORT(sequences_subsample_backward);
EXPORT(sequences_positions);
