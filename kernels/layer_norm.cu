// Layer normalisation of rows (Ba, Kiros, Hinton, 2016): y = gamma n + beta with n = (x - mean) / deviation, where mean and deviation =
// sqrt(variance + epsilon) are the row's. All f32. Kept for backward: x, and mean and 1 / deviation of every row.
//
//   dx = (g - mean(g) - n mean(g n)) / deviation with g = dy gamma     dgamma = sum over rows of dy n     dbeta = sum over rows of dy
//
// Bytes per element: forward 8, dx 12, dgamma and dbeta 8. Fewer than 20 operations: bound by memory. 1600 x 256 (a Transformer's batch):
// 1.6 MB a tensor, which stays in the second-level cache, so the launches take the time; 12,000 x 512: 49 MB forward, 10 us at 4.8 TB/s.
//
// Forward and dx: a warp for each row up to 1024 columns, a block for each longer one. A row is read two or three times, after the first
// from the multiprocessor's own cache. The variance is taken about the mean, in a pass of its own, so that nothing cancels. dgamma and
// dbeta are not fused with dx: a frozen layer wants dx alone, and column sums (column_sums.cuh) want another shape of block.
//
// Not yet measured on a GPU.
#include "column_sums.cuh"

constexpr int THREADS = 256;

// Who has a row: a warp or a block. The sum is the same in all threads.
struct WarpTeam {
    Threads threads;
    int row;
    DEVICE explicit WarpTeam(float *) : threads{int(threadIdx.x) % WARP, WARP}, row(blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP) {}
    DEVICE float sum(float value) const { return warp_sum(value); }
};

struct BlockTeam {
    Threads threads;
    int row;
    float *scratch; // [WARP]
    DEVICE explicit BlockTeam(float *scratch) : threads(Threads::of_block()), row(blockIdx.x), scratch(scratch) {}
    DEVICE float sum(float value) const { return block_sum(value, scratch); }
};

DEVICE float sum_of_lanes(float4 a) { return (a.x + a.y) + (a.z + a.w); }

template <typename Team>
DEVICE void forward(Team team, float *y, float *means, float *inverse_deviations, const float *x, const float *gamma, const float *beta,
                    int rows, int columns, float epsilon) {
    if (team.row >= rows) return;
    const bool aligned = are_aligned(x, y, gamma, beta) && columns % 4 == 0;
    x += (long long)team.row * columns;
    y += (long long)team.row * columns;
    const int begin = 4 * team.threads.number, step = 4 * team.threads.count;

    float sum = 0;
    for (int i = begin; i < columns; i += step) sum += sum_of_lanes(load_four(x, i, columns, aligned));
    const float mean = team.sum(sum) / columns;
    sum = 0;
    for (int i = begin; i < columns; i += step) {
        const float4 deviations = load_four(x, i, columns, aligned, mean) + Quad::all(-mean);
        sum += sum_of_lanes(deviations * deviations);
    }
    const float inverse = 1.0f / sqrtf(team.sum(sum) / columns + epsilon);
    for (int i = begin; i < columns; i += step) {
        const float4 normal = inverse * (load_four(x, i, columns, aligned) + Quad::all(-mean));
        store_four(y, i, columns, aligned, normal * load_four(gamma, i, columns, aligned) + load_four(beta, i, columns, aligned));
    }
    if (team.threads.number == 0) {
        means[team.row] = mean;
        inverse_deviations[team.row] = inverse;
    }
}

template <typename Team>
DEVICE void backward(Team team, float *dx, const float *dy, const float *x, const float *gamma, const float *means,
                     const float *inverse_deviations, int rows, int columns, bool accumulate) {
    if (team.row >= rows) return;
    const bool aligned = are_aligned(dx, dy, x, gamma) && columns % 4 == 0;
    const float mean = means[team.row], inverse = inverse_deviations[team.row];
    x += (long long)team.row * columns;
    dy += (long long)team.row * columns;
    dx += (long long)team.row * columns;
    const int begin = 4 * team.threads.number, step = 4 * team.threads.count;
    const auto normal_at = [=](int i) { return inverse * (load_four(x, i, columns, aligned) + Quad::all(-mean)); };
    const auto gradient_at = [=](int i) { return load_four(dy, i, columns, aligned) * load_four(gamma, i, columns, aligned); };

    float sum = 0, sum_with_normal = 0;
    for (int i = begin; i < columns; i += step) {
        const float4 gradient = gradient_at(i);
        sum += sum_of_lanes(gradient);
        sum_with_normal += sum_of_lanes(gradient * normal_at(i));
    }
    const float mean_gradient = team.sum(sum) / columns, slope = team.sum(sum_with_normal) / columns;
    for (int i = begin; i < columns; i += step) {
        float4 result = inverse * (gradient_at(i) + Quad::all(-mean_gradient) + -slope * normal_at(i));
        if (accumulate) result = load_four(dx, i, columns, aligned) + result;
        store_four(dx, i, columns, aligned, result);
    }
}

// y, x: [rows, columns], gamma, beta: [columns], means, inverse_deviations: [rows]. y may be x.
KERNEL(THREADS, 6)
layer_norm_forward(float *y, float *means, float *inverse_deviations, const float *x, const float *gamma, const float *beta, int rows,
                   int columns, float epsilon) {
    forward(WarpTeam(nullptr), y, means, inverse_deviations, x, gamma, beta, rows, columns, epsilon);
}

KERNEL(THREADS, 6)
layer_norm_forward_long(float *y, float *means, float *inverse_deviations, const float *x, const float *gamma, const float *beta, int rows,
                        int columns, float epsilon) {
    SHARED_MEMORY(float, scratch);
    forward(BlockTeam(scratch), y, means, inverse_deviations, x, gamma, beta, rows, columns, epsilon);
}

// dx = or += ...; dx, dy, x: [rows, columns]. dx may be dy.
KERNEL(THREADS, 6)
layer_norm_backward(float *dx, const float *dy, const float *x, const float *gamma, const float *means, const float *inverse_deviations,
                    int rows, int columns, int accumulate) {
    backward(WarpTeam(nullptr), dx, dy, x, gamma, means, inverse_deviations, rows, columns, accumulate != 0);
}

KERNEL(THREADS, 6)
layer_norm_backward_long(float *dx, const float *dy, const float *x, const float *gamma, const float *means,
                         const float *inverse_deviations, int rows, int columns, int accumulate) {
    SHARED_MEMORY(float, scratch);
    backward(BlockTeam(scratch), dx, dy, x, gamma, means, inverse_deviations, rows, columns, accumulate != 0);
}

// partials: [slabs, 2, columns], the slabs' sums for dgamma and dbeta. Block (i, j) has the i-th tile of columns and the j-th slab of rows.
KERNEL(TILE_THREADS, 3)
layer_norm_column_sums(const float *dy, const float *x, const float *means, const float *inverse_deviations, int rows, int columns,
                       float *partials) {
    SHARED_MEMORY(Pair, scratch); // [TILE_THREADS]
    const ColumnTile tile(columns, are_aligned(dy, x, partials));
    const Pair sums = tile.sum_rows(rows, scratch, [=](int row) {
        const long long begin = (long long)row * columns;
        const float4 gradient = tile.load(dy + begin);
        const float4 normal = inverse_deviations[row] * (tile.load(x + begin) + Quad::all(-means[row]));
        return Pair{gradient * normal, gradient};
    });
    if (tile.lane > 0) return;
    partials += (long long)blockIdx.y * 2 * columns;
    tile.store(partials, sums.first);
    tile.store(partials + columns, sums.second);
}

// dgamma, dbeta = or += the sums over the slabs; both [columns].
KERNEL(TOTAL_THREADS, 1)
layer_norm_column_totals(const float *partials, int slabs, int columns, float *dgamma, float *dbeta, int accumulate) {
    SHARED_MEMORY(float, scratch); // [TOTAL_THREADS]
    const float total = column_total(partials, slabs, 2 * columns, scratch);
    const int column = blockIdx.x * WARP + threadIdx.x % WARP;
    if (threadIdx.x >= WARP || column >= 2 * columns) return;
    float *sum = column < columns ? dgamma + column : dbeta + (column - columns);
    *sum = accumulate ? *sum + total : total;
}

EXPORT(layer_norm_forward);
EXPORT(layer_norm_forward_long);
EXPORT(layer_norm_backward);
EXPORT(layer_norm_backward_long);
EXPORT(layer_norm_column_sums);
EXPORT(layer_norm_column_totals);
