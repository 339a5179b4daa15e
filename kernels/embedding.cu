// Rows of a table, by token, and the table's gradient. R tokens, C columns, V rows of the table, f32. A token outside 0 ... V - 1 stands
// for no token: its row is zero, and nothing comes of it in the gradient.
//
// Bytes: gather 8 R C; gradient 4 R C read and 4 U C written (8 where it adds) for U distinct tokens, and 4 V C written before where it
// does not add. Bound by memory: 5600 x 400: 18 MB each, 4 us at 4.8 TB/s.
//
// The gradient of a token is the sum over its rows, in their order, in pieces of at most 32 rows, and then over the pieces: no atomics, and
// the longest chain of loads stays short for the commonest word. The host groups the rows (src/backend/cpu/embedding.rs sums in the same
// order, to the same bits). A warp takes 128 columns of a piece.
//
// Not yet measured on a GPU.
#include "exact.cuh"
#include "random.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int WIDTH = 4 * WARP; // columns of a warp

// Rows order[begin] ... order[begin + count - 1] of one token. `partial` is the row for its sum if the token has other pieces, else -1.
// Token -1: none.
struct Piece {
    int token, begin, count, partial;
};

// A token of several pieces: partial sums begin ... begin + count - 1. Token -1: none.
struct Total {
    int token, begin, count, unused;
};

// y[r] = scales[token] weight[token]; y: [rows, columns], weight: [vocabulary, columns], scales: [vocabulary] or null.
KERNEL(THREADS, 6)
embedding_gather(float *y, const float *weight, const int *tokens, const float *scales, int rows, int columns, int vocabulary) {
    const auto gather = [=](int row, auto from, auto to) {
        const int token = tokens[row];
        auto values = to.all(0.0f);
        if (unsigned(token) < unsigned(vocabulary)) {
            values = from.load(weight + (long long)token * columns);
            if (scales) values = scales[token] * values;
        }
        to.store(y, values);
    };
    const long long stride = columns;
    if (are_aligned(y, weight) && columns % 4 == 0) {
        for_each_in_rows(Threads::of_launch(), rows, columns / 4,
                         [=](int row, int quad) { gather(row, Quad{4 * quad}, Quad{row * stride + 4 * quad}); });
    } else {
        for_each_in_rows(Threads::of_launch(), rows, columns,
                         [=](int row, int column) { gather(row, Single{column}, Single{row * stride + column}); });
    }
}

// scales[v] = 0 with probability p, else 1 / (1 - p): the dropout mask of a single frame of `vocabulary` units.
KERNEL(THREADS, 6)
embedding_mask(float *scales, int vocabulary, unsigned key_low, unsigned key_high, unsigned threshold, float scale, unsigned step,
               const unsigned long long *counter) {
    const Mask mask = {{key_low, key_high}, threshold, scale, counter ? unsigned(*counter) : step};
    const Threads threads = Threads::of_launch();
    for (int quarter = threads.number; quarter < (vocabulary + 3) / 4; quarter += threads.count) {
        const uint4 drawn = mask.draw(quarter, 0, 0);
        const float4 values = mask.apply(drawn, Quad::all(1.0f));
        store_four(scales, 4ll * quarter, vocabulary, is_aligned(scales), values);
    }
}

// What a warp does: the columns of one piece or total.
struct Strip {
    int number; // of the piece
    int column, columns;
    bool aligned;

    DEVICE Strip(int columns, bool aligned) : columns(columns), aligned(aligned && columns % 4 == 0) {
        const int warp = (blockIdx.x * THREADS + threadIdx.x) / WARP, strips = (columns + WIDTH - 1) / WIDTH;
        number = warp / strips;
        column = warp % strips * WIDTH + 4 * (threadIdx.x % WARP);
    }
    DEVICE float4 load(const float *x, long long row) const { return load_four(x + row * columns, column, columns, aligned); }
    DEVICE void store(float *y, long long row, float4 values) const { store_four(y + row * columns, column, columns, aligned, values); }

    // dweight[token] = or += scales[token] sum, each operation rounded by itself as on the CPU.
    DEVICE void finish(float *dweight, const float *scales, int token, float4 sum, bool accumulate) const {
        if (scales) {
            const float scale = scales[token];
            sum = lanes([=](float x) { return product(scale, x); }, sum);
        }
        if (accumulate) sum = load(dweight, token) + sum;
        store(dweight, token, sum);
    }
};

// dy: [rows, columns], order: [rows], partials: [rows / 16, columns].
KERNEL(THREADS, 4)
embedding_gradient(float *dweight, const float *dy, const Piece *pieces, const int *order, const float *scales, float *partials,
                   int piece_count, int columns, int accumulate) {
    const Strip strip(columns, are_aligned(dweight, dy, partials));
    if (strip.number >= piece_count) return;
    const Piece piece = pieces[strip.number];
    if (piece.token < 0) return;
    float4 sum = Quad::all(0.0f);
#pragma unroll 4
    for (int i = 0; i < piece.count; ++i) sum = sum + strip.load(dy, order[piece.begin + i]);
    if (piece.partial < 0) {
        strip.finish(dweight, scales, piece.token, sum, accumulate != 0);
    } else {
        strip.store(partials, piece.partial, sum);
    }
}

KERNEL(THREADS, 4)
embedding_totals(float *dweight, const float *partials, const Total *totals, const float *scales, int total_count, int columns,
                 int accumulate) {
    const Strip strip(columns, are_aligned(dweight, partials));
    if (strip.number >= total_count) return;
    const Total total = totals[strip.number];
    if (total.token < 0) return;
    float4 sum = Quad::all(0.0f);
#pragma unroll 4
    for (int i = 0; i < total.count; ++i) sum = sum + strip.load(partials, total.begin + i);
    strip.finish(dweight, scales, total.token, sum, accumulate != 0);
}

EXPORT(embedding_gather);
EXPORT(embedding_mask);
EXPORT(embedding_gradient);
EXPORT(embedding_totals);
