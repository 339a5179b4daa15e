// Log-softmax, cross entropy, arg max over rows of logits.
//
// R rows of V columns. Bytes that must move, at e bytes a logit: log-softmax and its backward 2 and 3 e R V, cross entropy 2 e R V with a gradient
// (the logits are read once and the gradient takes their place), e R V without. Operations: two exponentials and about twelve others a logit,
// at V = 33278 and bf16 half of what a multiprocessor of an H200 does in the time that it takes to move the bytes: memory is the bound. The floor of 5600 x
// 33278 is 173 microseconds for bf16, 346 for f32, at 4.3 TB/s. Not measured on a GPU yet.
//
// Design: a block a row. The row is read 16 bytes at a time, four loads of a thread in flight; maximum and sum come from this one pass
// (Statistics). Where shared memory holds the row (33278 logits: 133 KB in f32, 67 KB in bf16), each thread keeps there what it read and the second
// pass reads no memory; else it reads the row again, mostly from L2. A block of 67 KB leaves room for two others, whose loads and stores
// fill the time that it takes to meet; a block of 133 KB has its multiprocessor alone, and while it meets, other multiprocessors have the memory.
// A row's start is a multiple of 16 bytes only if the stride is so: what lies before the first such address and behind the last one are edges, one
// element a thread. Nothing is exchanged between threads but the statistics, so the passes need no barrier of their own.
#include "softmax.cuh"
#include "vector.cuh"

template <typename Element> constexpr int LANES = 16 / int(sizeof(Element)); // elements of a vector
constexpr int UNROLLED = 4;                                                  // vectors in flight

DEVICE float as_float(float x) { return x; }
DEVICE float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
DEVICE void assign(float &to, float value) { to = value; }
DEVICE void assign(__nv_bfloat16 &to, float value) { to = __float2bfloat16_rn(value); }

DEVICE void unpack(uint4 bits, float (&x)[4]) {
    x[0] = __uint_as_float(bits.x), x[1] = __uint_as_float(bits.y), x[2] = __uint_as_float(bits.z), x[3] = __uint_as_float(bits.w);
}

DEVICE void unpack(uint4 bits, float (&x)[8]) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[2 * i] = __uint_as_float(words[i] << 16), x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
}

DEVICE uint4 pack(const float (&x)[4]) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
}

DEVICE uint4 pack(const float (&x)[8]) {
    return make_uint4(to_bfloat16_pair(x[0], x[1]), to_bfloat16_pair(x[2], x[3]), to_bfloat16_pair(x[4], x[5]), to_bfloat16_pair(x[6], x[7]));
}

// How a row is shared out: vectors that start at multiples of 16 bytes, and edges before and behind them, one element a thread.
template <typename Element> struct Row {
    Element *start;
    int columns, head, vectors;

    DEVICE Row(Element *start, int columns) : start(start), columns(columns) {
        const int beyond = int(reinterpret_cast<std::uintptr_t>(start) % 16 / sizeof(Element));
        head = min(columns, (LANES<Element> - beyond) % LANES<Element>);
        vectors = (columns - head) / LANES<Element>;
    }
    // Edges alone: for rows of several tensors that are not alike aligned.
    DEVICE void scatter() { vectors = 0, head = columns; }
    DEVICE uint4 *vector(int index) const { return reinterpret_cast<uint4 *>(start + head) + index; }
    // The first column of a vector; the column of an edge.
    DEVICE int column(int vector) const { return head + vector * LANES<Element>; }
    DEVICE int edges() const { return columns - vectors * LANES<Element>; }
    DEVICE int edge(int index) const { return index < head ? index : index + vectors * LANES<Element>; }
};

// Of a block, in all its threads; `scratch`: 64 floats. Every warp merges the warps' results in the same way, so all threads have the same bits.
DEVICE Statistics block_statistics(Statistics own, float *scratch) {
    own = warp_statistics(own);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    if (lane == 0) scratch[warp] = own.maximum, scratch[WARP + warp] = own.sum;
    barrier();
    Statistics part;
    if (lane < warps) part.maximum = scratch[lane], part.sum = scratch[WARP + lane];
    return warp_statistics(part);
}

// One pass over a row; with `kept` (shared memory), each thread leaves its vectors there.
template <typename Element> DEVICE Statistics row_statistics(const Row<Element> &row, uint4 *kept, float *scratch) {
    Statistics own;
    const int threads = blockDim.x;
    for (int first = threadIdx.x; first < row.vectors; first += UNROLLED * threads) {
        uint4 bits[UNROLLED];
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i)
            if (first + i * threads < row.vectors) bits[i] = *row.vector(first + i * threads);
#pragma unroll
        for (int i = 0; i < UNROLLED; ++i) {
            if (first + i * threads >= row.vectors) break;
            if (kept) kept[first + i * threads] = bits[i];
            float x[LANES<Element>];
            unpack(bits[i], x);
            own.add(x);
        }
    }
    for (int i = threadIdx.x; i < row.edges(); i += threads) {
        const float x[1] = {as_float(row.start[row.edge(i)])};
        own.add(x);
    }
    return block_statistics(own, scratch);
}

// What a row's probabilities are drawn to: q[j] = base + factor distribution[j], and label_weight more at the label. q adds up to 1.
struct Target {
    const float *distribution; // [V], none: 0
    float factor, base, label_weight;
    int label; // -1: none

    DEVICE bool is_dense() const { return distribution != nullptr || base != 0.0f; }
};

// The second pass over a row: what it needs to know, and the loss of the columns that this thread has seen.
struct Gradient {
    Target target;
    float maximum, log_sum, factor, scale; // factor: scale / sum
    float loss = 0.0f;

    // x becomes the gradient of columns column..column + COUNT. A target that is not dense has its loss from its one logit.
    template <bool DENSE, int COUNT> DEVICE void replace(float (&x)[COUNT], int column) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const float shifted = x[i] - maximum;
            x[i] = exponential(shifted) * factor;
            if (DENSE) {
                float q = target.distribution ? target.base + target.factor * target.distribution[column + i] : target.base;
                if (column + i == target.label) q += target.label_weight;
                loss += q * (log_sum - shifted);
                x[i] -= scale * q;
            }
        }
        if (!DENSE && unsigned(target.label - column) < unsigned(COUNT)) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                if (column + i == target.label) x[i] -= scale * target.label_weight;
        }
    }

    // Over the row; with `write`, the gradient takes the place of the logits. `kept` as for row_statistics.
    template <bool DENSE, typename Element> DEVICE void pass(const Row<Element> &row, const uint4 *kept, bool write) {
        for (int v = threadIdx.x; v < row.vectors; v += blockDim.x) {
            float x[LANES<Element>];
            unpack(kept ? kept[v] : *row.vector(v), x);
            replace<DENSE>(x, row.column(v));
            if (write) *row.vector(v) = pack(x);
        }
        for (int i = threadIdx.x; i < row.edges(); i += blockDim.x) {
            const int column = row.edge(i);
            float x[1] = {as_float(row.start[column])};
            replace<DENSE>(x, column);
            if (write) assign(row.start[column], x[0]);
        }
    }
};

// Loss of row blockIdx.x and, if `with_gradient`, the gradient in place of its logits.
template <typename Element>
DEVICE void cross_entropy(float *scratch, Element *logits, long long stride, const int *labels, const float *targets, const float *prior,
                          float *losses, float smoothing, float scale, const float *scale_factor, int columns, bool with_gradient,
                          bool is_resident) {
    uint4 *kept = is_resident ? reinterpret_cast<uint4 *>(scratch + 64) : nullptr;
    const int index = blockIdx.x;
    const Row<Element> row(logits + index * stride, columns);
    const int label = labels ? labels[index] : -1;
    if (labels && label < 0) {
        if (threadIdx.x == 0) losses[index] = 0.0f;
        if (!with_gradient) return;
        for (int v = threadIdx.x; v < row.vectors; v += blockDim.x) *row.vector(v) = make_uint4(0, 0, 0, 0);
        for (int i = threadIdx.x; i < row.edges(); i += blockDim.x) assign(row.start[row.edge(i)], 0.0f);
        return;
    }

    Target target = {prior, smoothing, 0.0f, 1.0f - smoothing, label};
    if (targets)
        target = {targets + (long long)index * columns, 1.0f, 0.0f, 0.0f, -1};
    else if (!prior)
        target.base = smoothing / float(columns);
    // Read by all before anyone writes: the statistics below meet in between.
    const float label_logit = label >= 0 ? as_float(row.start[label]) : 0.0f;

    const Statistics all = row_statistics(row, kept, scratch);
    const float log_sum = logf(all.sum);
    if (!target.is_dense() && threadIdx.x == 0) losses[index] = log_sum - (label_logit - all.maximum);
    if (!with_gradient && !target.is_dense()) return;

    if (scale_factor) scale *= *scale_factor;
    Gradient gradient = {target, all.maximum, log_sum, scale / all.sum, scale};
    if (!target.is_dense()) {
        gradient.template pass<false>(row, kept, true);
        return;
    }
    gradient.template pass<true>(row, kept, with_gradient);
    barrier(); // all have read their statistics out of `scratch`
    const float loss = block_sum(gradient.loss, scratch);
    if (threadIdx.x == 0) losses[index] = loss;
}

// logits: [R, V], rows `stride` apart, R blocks; labels: [R], below 0 is left out (loss 0, gradient 0), or targets: [R, V], rows that add
// up to 1; prior: [V], adds up to 1, or none for the uniform one; losses: [R]. scale_factor: a number or none. `is_resident`: shared memory for
// 64 floats and the row, else for 64 floats.
KERNEL(1024, 1)
cross_entropy_f32(float *logits, long long stride, const int *labels, const float *targets, const float *prior, float *losses,
                  float smoothing, float scale, const float *scale_factor, int columns, int with_gradient, int is_resident) {
    SHARED_MEMORY(float, scratch);
    cross_entropy(scratch, logits, stride, labels, targets, prior, losses, smoothing, scale, scale_factor, columns, with_gradient != 0,
                  is_resident != 0);
}

KERNEL(512, 3)
cross_entropy_bf16(__nv_bfloat16 *logits, long long stride, const int *labels, const float *targets, const float *prior, float *losses,
                   float smoothing, float scale, const float *scale_factor, int columns, int with_gradient, int is_resident) {
    SHARED_MEMORY(float, scratch);
    cross_entropy(scratch, logits, stride, labels, targets, prior, losses, smoothing, scale, scale_factor, columns, with_gradient != 0,
                  is_resident != 0);
}

// y = x - ln sum exp(x); x, y: [R, V], R blocks; y may be x. Shared memory: 64 floats.
KERNEL(1024, 1) log_softmax_forward(float *x, float *y, int columns) {
    SHARED_MEMORY(float, scratch);
    Row<float> from(x + (long long)blockIdx.x * columns, columns), to(y + (long long)blockIdx.x * columns, columns);
    const Statistics all = row_statistics(from, nullptr, scratch);
    if (from.head != to.head) from.scatter(), to.scatter();
    const float log_sum = logf(all.sum);
    // Two subtractions: maximum + log_sum would lose the small logarithm beside a large maximum.
    for (int v = threadIdx.x; v < from.vectors; v += blockDim.x) {
        float values[4];
        unpack(*from.vector(v), values);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = (values[i] - all.maximum) - log_sum;
        *to.vector(v) = pack(values);
    }
    for (int i = threadIdx.x; i < from.edges(); i += blockDim.x) {
        const int column = from.edge(i);
        to.start[column] = (from.start[column] - all.maximum) - log_sum;
    }
}

// dx = dy - exp(y) sum(dy); y, dy, dx: [R, V], R blocks; dx may be dy. Shared memory: 32 floats.
KERNEL(1024, 1) log_softmax_backward(float *y, float *dy, float *dx, int columns) {
    SHARED_MEMORY(float, scratch);
    const long long start = (long long)blockIdx.x * columns;
    Row<float> from(y + start, columns), upstream(dy + start, columns), to(dx + start, columns);
    float sum = 0.0f;
    for (int v = threadIdx.x; v < upstream.vectors; v += blockDim.x) {
        float values[4];
        unpack(*upstream.vector(v), values);
        sum += (values[0] + values[1]) + (values[2] + values[3]);
    }
    for (int i = threadIdx.x; i < upstream.edges(); i += blockDim.x) sum += upstream.start[upstream.edge(i)];
    sum = block_sum(sum, scratch);
    // Only now: where the result goes must not change the order of the sum.
    if (from.head != upstream.head || from.head != to.head) from.scatter(), upstream.scatter(), to.scatter();
    for (int v = threadIdx.x; v < from.vectors; v += blockDim.x) {
        float logs[4], values[4];
        unpack(*from.vector(v), logs);
        unpack(*upstream.vector(v), values);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] -= exponential(logs[i]) * sum;
        *to.vector(v) = pack(values);
    }
    for (int i = threadIdx.x; i < from.edges(); i += blockDim.x) {
        const int column = from.edge(i);
        to.start[column] = upstream.start[column] - exponential(from.start[column]) * sum;
    }
}

// total = scale times the sum of values: [count], in one block, in f64. Shared memory: 32 doubles.
KERNEL(1024, 1) softmax_total(const float *values, float *total, float scale, int count) {
    SHARED_MEMORY(double, scratch);
    double own = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) own += double(values[i]);
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) *total = float(own * double(scale));
}

EXPORT(cross_entropy_f32);
EXPORT(cross_entropy_bf16);
EXPORT(log_softmax_forward);
EXPORT(log_softmax_backward);
EXPORT(softmax_total);
