// What is done to every element by itself, and sums over all elements or down columns. All tensors f32 unless said otherwise.
//
// Bound by memory: at most about 30 operations (tanh) stand against 8 bytes an element, in whose time an H200 does 55. The floor is bytes
// over copy bandwidth; bytes per element, each input read once, each output written once:
//
//   fill 4   scale, bias + activation 8   add, multiply, activation backward 12   f32 -> bf16 6
//   sum, column sums 4   activation backward together with column sums 12, apart 16
//   7500 x 1280: bias + tanh 77 MB, column sums 38 MB: 16 us and 8 us at 4.8 TB/s
//
// Elementwise: 16-byte accesses, threads stride over the launch. A multiprocessor has to keep about 25 KiB of loads in flight (4.8 TB/s and
// 0.7 us over 132 of them); 1536 threads with one load of 16 bytes each are 24 KiB, so kernels stay at 40 registers and are not unrolled.
//
// Sums: slices that follow from the shape alone, each summed by one block, then the slices: the bits do not depend on the GPU.
//
// Not yet measured on a GPU.
#include "column_sums.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

// y = value; [n].
KERNEL(THREADS, 6) elementwise_fill(float *y, float value, long long n) {
    for_each(Threads::of_launch(), n, is_aligned(y), [=](auto at) { at.store(y, at.all(value)); });
}

// y = factor x, or factor scalar x with a scalar in memory; [n]. y may be x.
KERNEL(THREADS, 6) elementwise_scale(float *y, const float *x, float factor, const float *scalar, long long n) {
    const float scale = scalar ? *scalar * factor : factor;
    for_each(Threads::of_launch(), n, are_aligned(y, x), [=](auto at) { at.store(y, scale * at.load(x)); });
}

// c = a + b; [n]. c may be a or b.
KERNEL(THREADS, 6) elementwise_add(float *c, const float *a, const float *b, long long n) {
    for_each(Threads::of_launch(), n, are_aligned(a, b, c), [=](auto at) { at.store(c, at.load(a) + at.load(b)); });
}

// c = a b; [n]. c may be a or b.
KERNEL(THREADS, 6) elementwise_multiply(float *c, const float *a, const float *b, long long n) {
    for_each(Threads::of_launch(), n, are_aligned(a, b, c), [=](auto at) { at.store(c, at.load(a) * at.load(b)); });
}

// y = x rounded to bf16, nearest even; [n].
KERNEL(THREADS, 6) elementwise_to_bf16(__nv_bfloat16 *y, const float *x, long long n) {
    for_each(Threads::of_launch(), n, are_aligned(y, x), [=](auto at) { at.store(y, at.load(x)); });
}

// Activations, numbered as in src/backend/cuda/elementwise.rs. The derivative is taken from the result y. NaN stays NaN.
struct Identity {
    static DEVICE float forward(float x) { return x; }
    static DEVICE float backward(float, float dy) { return dy; }
};
struct Tanh {
    static DEVICE float forward(float x) { return tanhf(x); }
    static DEVICE float backward(float y, float dy) { return dy * fmaf(-y, y, 1.0f); }
};
struct Sigmoid {
    static DEVICE float forward(float x) { return sigmoid(x); }
    static DEVICE float backward(float y, float dy) { return dy * (y * (1.0f - y)); }
};
struct Relu {
    static DEVICE float forward(float x) { return x < 0.0f ? 0.0f : x; }
    static DEVICE float backward(float y, float dy) { return y > 0.0f ? dy : 0.0f; }
};

template <typename Body> DEVICE void with_activation(int activation, Body body) {
    switch (activation) {
    case 1: return body(Tanh{});
    case 2: return body(Sigmoid{});
    case 3: return body(Relu{});
    default: return body(Identity{});
    }
}

// y = activation(y + bias) in place; y: [rows, columns], bias: [columns] or null.
KERNEL(THREADS, 6) elementwise_bias_activation(float *y, const float *bias, int rows, int columns, int activation) {
    with_activation(activation, [=](auto function) {
        const auto forward = [=](float x) { return function.forward(x); };
        const auto update = [=](auto at, auto at_bias) {
            const auto x = at.load(y);
            at.store(y, lanes(forward, bias ? x + at_bias.load(bias) : x));
        };
        if (are_aligned(y, bias) && columns % 4 == 0) {
            const long long quads = columns / 4;
            for_each_in_rows(Threads::of_launch(), rows, columns / 4,
                             [=](int row, int quad) { update(Quad{4 * (row * quads + quad)}, Quad{4 * quad}); });
        } else {
            const long long stride = columns;
            for_each_in_rows(Threads::of_launch(), rows, columns,
                             [=](int row, int column) { update(Single{row * stride + column}, Single{column}); });
        }
    });
}

// dy becomes dx = dy activation'; y: what the activation gave; both [n].
KERNEL(THREADS, 6) elementwise_activation_backward(float *dy, const float *y, long long n, int activation) {
    with_activation(activation, [=](auto function) {
        const auto backward = [=](float y, float dy) { return function.backward(y, dy); };
        for_each(Threads::of_launch(), n, are_aligned(dy, y), [=](auto at) { at.store(dy, lanes(backward, at.load(y), at.load(dy))); });
    });
}

// Elements that one block sums: eight loads of 16 bytes a thread.
constexpr int SUM_SLICE = 8192;

// The sum of x: [n], in f64. Block b sums elements b SUM_SLICE ... into partials[b]; a single block writes the result.
KERNEL(THREADS, 4) elementwise_sum(const float *x, long long n, double *partials, float *result) {
    SHARED_MEMORY(double, scratch); // [WARP]
    const long long begin = (long long)blockIdx.x * SUM_SLICE + 4 * threadIdx.x;
    const bool aligned = is_aligned(x);
    double sum = 0;
#pragma unroll
    for (int step = 0; step < SUM_SLICE; step += 4 * THREADS) {
        const float4 four = load_four(x, begin + step, n, aligned);
        sum += double(four.x);
        sum += double(four.y);
        sum += double(four.z);
        sum += double(four.w);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x > 0) return;
    if (gridDim.x == 1) {
        *result = float(sum);
    } else {
        partials[blockIdx.x] = sum;
    }
}

// The sum of the partial sums, by one block.
KERNEL(1024, 1) elementwise_total(const double *partials, int count, float *result) {
    SHARED_MEMORY(double, scratch); // [WARP]
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *result = float(sum);
}

// Sums down the columns of a: [rows, columns], rows `stride` elements apart; partials: [slabs, columns]. Block (i, j) has the i-th slab of
// rows and the j-th tile of columns. With y, whose rows lie like those of a, a becomes a activation'(y) on the way: a layer's bias gradient
// without a pass of its own.
KERNEL(TILE_THREADS, 4)
elementwise_column_sums(float *a, const float *y, int rows, int columns, long long stride, int activation, float *partials) {
    SHARED_MEMORY(float4, scratch); // [TILE_LANES, TILE_WIDTH / 4]
    const ColumnTile tile(columns, are_aligned(a, y, partials) && stride % 4 == 0);
    with_activation(activation, [=](auto function) {
        const auto backward = [=](float y, float dy) { return function.backward(y, dy); };
        const float4 sum = tile.sum_rows(rows, scratch, [=](int row) {
            float4 values = tile.load(a + row * stride);
            if (y) {
                values = lanes(backward, tile.load(y + row * stride), values);
                tile.store(a + row * stride, values);
            }
            return values;
        });
        if (tile.lane == 0) tile.store(partials + (long long)blockIdx.x * columns, sum);
    });
}

// The same of bf16, as they are.
KERNEL(TILE_THREADS, 4)
elementwise_column_sums_bf16(const __nv_bfloat16 *a, int rows, int columns, long long stride, float *partials) {
    SHARED_MEMORY(float4, scratch); // [TILE_LANES, TILE_WIDTH / 4]
    const ColumnTile tile(columns, are_aligned(a, partials) && stride % 4 == 0);
    const float4 sum = tile.sum_rows(rows, scratch, [=](int row) { return tile.load(a + row * stride); });
    if (tile.lane == 0) tile.store(partials + (long long)blockIdx.x * columns, sum);
}

// sums = or += the sums over the slabs; partials: [slabs, columns], sums: [columns].
KERNEL(TOTAL_THREADS, 1) elementwise_column_totals(const float *partials, int slabs, int columns, float *sums, int accumulate) {
    SHARED_MEMORY(float, scratch); // [TOTAL_LANES, WARP]
    const float total = column_total(partials, slabs, columns, scratch);
    const int column = blockIdx.x * WARP + threadIdx.x % WARP;
    if (threadIdx.x >= WARP || column >= columns) return;
    sums[column] = accumulate ? sums[column] + total : total;
}

EXPORT(elementwise_fill);
EXPORT(elementwise_scale);
EXPORT(elementwise_add);
EXPORT(elementwise_multiply);
EXPORT(elementwise_to_bf16);
EXPORT(elementwise_bias_activation);
EXPORT(elementwise_activation_backward);
EXPORT(elementwise_sum);
EXPORT(elementwise_total);
EXPORT(elementwise_column_sums);
EXPORT(elementwise_column_sums_bf16);
EXPORT(elementwise_column_totals);
