// All trainable parameters move in three launches, however many tensors they are: partial sums of the gradient's norm, what follows from
// the norm, the update. The arithmetic is that of src/optim, operation by operation (exact.cuh), so an update has the CPU's bits. Three
// scalars only may differ by a unit of f32, and hardly ever do: the clipping coefficient, since the squares are summed in another order,
// and Adam's corrections and Noam's rate, which pass through another pow; all are computed in f64 and rounded once.
//
// Bytes per parameter: norm 4; Adadelta and Adam 28 (four streams read, three written), SGD 12, with momentum 20. Bound by memory:
// about 90 operations for Adadelta stand against 28 bytes, in whose time an H200 does 190. 9.3 M parameters (4x320): 37 MB + 260 MB, 62 us
// at 4.8 TB/s.
//
// A block takes one slice of a tensor; a table says which. Learning rate, epsilon, counts and the verdict on the norm are in device memory,
// so a captured graph follows them. A norm that is not finite makes the update a no-op.
//
// Not yet measured on a GPU.
#include "exact.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
// Elements of a tensor that one block takes: four accesses of 16 bytes to every stream a thread. src/backend/cuda/optim.rs repeats it, and
// the structs.
constexpr int SLICE = 4096;

// A trainable tensor. States that the method has not are null; without a gradient nothing happens to it.
struct Parameter {
    float *values;
    const float *gradient;
    float *first, *second; // states, in the order of Method::state_names
    long long length;
};

struct Slice {
    int parameter;
    int number; // within the tensor
};

struct StepState {
    // Written by the host.
    double learning_rate, epsilon, weight_decay, clip;
    double warmup, width; // of Noam's schedule (src/optim/noam.rs); 0: none
    double lagging_rate, lags_after; // the learning rate where more updates than this were made before; infinity: never
    // Calls so far, updates that they made, the last call's norm.
    unsigned long long steps, updates;
    double norm;
    int non_finite; // the first tensor with an element that is not finite, or -1
    // What the update multiplies by.
    float gradient_scale, learning_rate_f32, epsilon_f32, weight_decay_f32;
    float step_size, correction; // Adam's
    int reserved;
};

// The part of a tensor that is this block's.
struct Part {
    Parameter parameter;
    int length;

    DEVICE Part(const Parameter *parameters, const Slice *slices) {
        const Slice slice = slices[blockIdx.x];
        parameter = parameters[slice.parameter];
        const long long begin = (long long)slice.number * SLICE;
        length = int(min((long long)SLICE, parameter.length - begin));
        parameter.values += begin;
        if (parameter.gradient) parameter.gradient += begin;
        if (parameter.first) parameter.first += begin;
        if (parameter.second) parameter.second += begin;
    }
};

DEVICE double square(float x) { return double(x) * double(x); }

// partials[block]: the sum of squares of a slice of a gradient, in f64: finite if and only if every element is.
KERNEL(THREADS, 6) optim_norm(const Parameter *parameters, const Slice *slices, double *partials) {
    SHARED_MEMORY(double, scratch); // [WARP]
    const Part part(parameters, slices);
    const float *gradient = part.parameter.gradient;
    double sum = 0;
    if (gradient) {
        const bool aligned = is_aligned(gradient);
#pragma unroll
        for (int step = 0; step < SLICE; step += 4 * THREADS) {
            const float4 four = load_four(gradient, step + 4 * int(threadIdx.x), part.length, aligned);
            sum += square(four.x);
            sum += square(four.y);
            sum += square(four.z);
            sum += square(four.w);
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

DEVICE int block_min(int value, int *scratch) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value = min(value, __shfl_xor_sync(FULL_WARP, value, distance));
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    barrier();
    for (int warp = 0; warp < int(blockDim.x) / WARP; ++warp) value = min(value, scratch[warp]);
    barrier();
    return value;
}

DEVICE double f64_of_bits(unsigned long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// One block: the norm, its verdict, and the scalars of this update. beta1 and beta2 are Adam's, as bits of f64; 0 for others.
KERNEL(1024, 1)
optim_prepare(StepState *state, const double *partials, const Slice *slices, int count, unsigned long long beta1,
              unsigned long long beta2) {
    SHARED_MEMORY(double, scratch); // [WARP]
    constexpr int NONE = 0x7fffffff;
    double sum = 0;
    int first = NONE;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const double partial = partials[i];
        sum += partial;
        // Not so for a NaN, either.
        if (!(partial <= 1.7976931348623157e308)) first = min(first, i);
    }
    sum = block_sum(sum, scratch);
    first = block_min(first, reinterpret_cast<int *>(scratch));
    if (threadIdx.x > 0) return;

    const double norm = sqrt(sum);
    state->norm = norm;
    state->steps += 1;
    state->non_finite = first == NONE ? -1 : slices[first].parameter;
    if (first != NONE) return;
    state->updates += 1;
    state->gradient_scale = state->clip == 0 ? 1.0f : float(fmin(state->clip / (norm + 1e-6), 1.0));
    const double updates = double(state->updates);
    double rate = updates - 1 > state->lags_after ? state->lagging_rate : state->learning_rate;
    if (state->warmup > 0) rate *= fmin(pow(updates, -0.5), updates * pow(state->warmup, -1.5)) / sqrt(state->width);
    state->learning_rate_f32 = float(rate);
    state->epsilon_f32 = float(state->epsilon);
    state->weight_decay_f32 = float(state->weight_decay);
    state->step_size = float(rate / (1.0 - pow(f64_of_bits(beta1), updates)));
    state->correction = float(sqrt(1.0 - pow(f64_of_bits(beta2), updates)));
}

// What all methods begin with: the gradient, scaled, with weight decay.
struct Hyper {
    float scale, decay, rate, epsilon;
    DEVICE explicit Hyper(const StepState &state)
        : scale(state.gradient_scale), decay(state.weight_decay_f32), rate(state.learning_rate_f32), epsilon(state.epsilon_f32) {}
    DEVICE float gradient(float g, float p) const { return sum_of(product(g, scale), product(decay, p)); }
};

struct Adadelta {
    static constexpr int STATES = 2;
    Hyper hyper;
    float keep, take;
    DEVICE void operator()(float &p, float g, float &square, float &accumulated) const {
        g = hyper.gradient(g, p);
        square = sum_of(product(square, keep), product(product(take, g), g));
        const float delta = product(quotient(root(sum_of(accumulated, hyper.epsilon)), root(sum_of(square, hyper.epsilon))), g);
        accumulated = sum_of(product(accumulated, keep), product(product(take, delta), delta));
        p = difference(p, product(hyper.rate, delta));
    }
};

struct Sgd {
    static constexpr int STATES = 0;
    Hyper hyper;
    DEVICE void operator()(float &p, float g, float &, float &) const { p = difference(p, product(hyper.rate, hyper.gradient(g, p))); }
};

struct Momentum {
    static constexpr int STATES = 1;
    Hyper hyper;
    float momentum, take;
    bool nesterov;
    DEVICE void operator()(float &p, float g, float &buffer, float &) const {
        g = hyper.gradient(g, p);
        buffer = sum_of(product(buffer, momentum), product(take, g));
        const float direction = nesterov ? sum_of(g, product(momentum, buffer)) : buffer;
        p = difference(p, product(hyper.rate, direction));
    }
};

struct Adam {
    static constexpr int STATES = 2;
    Hyper hyper;
    float take1, keep2, take2, step_size, correction;
    DEVICE void operator()(float &p, float g, float &average, float &square) const {
        g = hyper.gradient(g, p);
        // torch.lerp measures from the nearer end.
        average = take1 < 0.5f ? sum_of(average, product(take1, difference(g, average)))
                               : difference(g, product(difference(g, average), difference(1.0f, take1)));
        square = sum_of(product(square, keep2), product(product(take2, g), g));
        p = difference(p, quotient(product(step_size, average), sum_of(quotient(root(square), correction), hyper.epsilon)));
    }
};

struct Average {
    float weight;
    DEVICE void operator()(float &average, float value, float &, float &) const {
        // The first value takes the place of what is there, which may not be finite.
        average = weight == 1.0f ? value : sum_of(average, product(weight, difference(value, average)));
    }
};

template <typename Rule> DEVICE void apply(const Rule &rule, float &p, float g, float &first, float &second) { rule(p, g, first, second); }
template <typename Rule> DEVICE void apply(const Rule &rule, float4 &p, float4 g, float4 &first, float4 &second) {
    rule(p.x, g.x, first.x, second.x);
    rule(p.y, g.y, first.y, second.y);
    rule(p.z, g.z, first.z, second.z);
    rule(p.w, g.w, first.w, second.w);
}

template <typename Rule> DEVICE void update(const Parameter *parameters, const Slice *slices, const Rule &rule) {
    const Part part(parameters, slices);
    const Parameter &parameter = part.parameter;
    if (!parameter.gradient) return;
    const bool aligned = are_aligned(parameter.values, parameter.gradient, parameter.first, parameter.second);
    for_each(Threads::of_block(), part.length, aligned, [&](auto at) {
        auto values = at.load(parameter.values);
        const auto gradient = at.load(parameter.gradient);
        auto first = at.all(0.0f), second = at.all(0.0f);
        if constexpr (Rule::STATES > 0) first = at.load(parameter.first);
        if constexpr (Rule::STATES > 1) second = at.load(parameter.second);
        apply(rule, values, gradient, first, second);
        at.store(parameter.values, values);
        if constexpr (Rule::STATES > 0) at.store(parameter.first, first);
        if constexpr (Rule::STATES > 1) at.store(parameter.second, second);
    });
}

KERNEL(THREADS, 3) optim_adadelta(const Parameter *parameters, const Slice *slices, const StepState *state, float keep, float take) {
    if (state->non_finite >= 0) return;
    update(parameters, slices, Adadelta{Hyper(*state), keep, take});
}

KERNEL(THREADS, 4) optim_sgd(const Parameter *parameters, const Slice *slices, const StepState *state) {
    if (state->non_finite >= 0) return;
    update(parameters, slices, Sgd{Hyper(*state)});
}

// The first update takes the gradient undamped.
KERNEL(THREADS, 4)
optim_momentum(const Parameter *parameters, const Slice *slices, const StepState *state, float momentum, float take, int nesterov) {
    if (state->non_finite >= 0) return;
    update(parameters, slices, Momentum{Hyper(*state), momentum, state->updates <= 1 ? 1.0f : take, nesterov != 0});
}

KERNEL(THREADS, 3)
optim_adam(const Parameter *parameters, const Slice *slices, const StepState *state, float take1, float keep2, float take2) {
    if (state->non_finite >= 0) return;
    update(parameters, slices, Adam{Hyper(*state), take1, keep2, take2, state->step_size, state->correction});
}

// average += weight (value - average), where the weight is 1 / n for the n-th update since averaging began, when `begun_at` had been made; as
// torch.optim.ASGD counts, 1 / (n - 1). The average is the parameter's first state. 12 bytes per parameter.
KERNEL(THREADS, 4)
optim_average(const Parameter *parameters, const Slice *slices, const StepState *state, unsigned long long begun_at, int original) {
    if (state->non_finite >= 0) return;
    const unsigned long long values = state->updates - begun_at - (original ? 1 : 0);
    const float weight = values <= 1 ? 1.0f : float(1.0 / double(values));
    const Part part(parameters, slices);
    const Parameter &parameter = part.parameter;
    const bool aligned = are_aligned(parameter.values, parameter.first);
    for_each(Threads::of_block(), part.length, aligned, [&](auto at) {
        const auto values = at.load(parameter.values);
        auto average = at.load(parameter.first), unused = at.all(0.0f);
        apply(Average{weight}, average, values, unused, unused);
        at.store(parameter.first, average);
    });
}

EXPORT(optim_norm);
EXPORT(optim_average);
EXPORT(optim_prepare);
EXPORT(optim_adadelta);
EXPORT(optim_sgd);
EXPORT(optim_momentum);
EXPORT(optim_adam);
