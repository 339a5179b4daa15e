// Sums down the columns of a matrix in a fixed order: tiles of 128 columns by slabs of 128 rows, then the slabs.
//
// A tile's warps take a slab's rows in turn (lane l: rows l, l + 8, ...), each thread four columns, so a row of a tile is one access of 512
// bytes; the eight lanes meet in shared memory. An element passes through at most 16 + 8 additions in its slab and slabs / 32 + 32 over the
// slabs: the error stays below that many roundings of the sum of absolute values.
//
// src/backend/cuda/elementwise.rs launches them and repeats the sizes.
#pragma once

#include "vector.cuh"

constexpr int TILE_WIDTH = 128; // columns: a warp's accesses of 16 bytes
constexpr int TILE_ROWS = 128;  // 7500 x 1280: 590 blocks, 16 loads a thread
constexpr int TILE_LANES = 8;
constexpr int TILE_THREADS = TILE_LANES * WARP;
constexpr int TOTAL_LANES = 32;
constexpr int TOTAL_THREADS = TOTAL_LANES * WARP;

// Two sums that are taken on the same way.
struct Pair {
    float4 first, second;
};
DEVICE Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }

// The columns of this thread: four neighbours with `quads`, else four that are a warp apart, so that single accesses coalesce too.
struct ColumnTile {
    int columns, first, lane, rows_begin;
    bool quads;

    DEVICE ColumnTile(int columns, bool aligned) : columns(columns), quads(aligned && columns % 4 == 0) {
        const int x = threadIdx.x % WARP;
        lane = threadIdx.x / WARP;
        first = blockIdx.y * TILE_WIDTH + (quads ? 4 * x : x);
        rows_begin = blockIdx.x * TILE_ROWS;
    }

    // Zero beyond the last column. Of f32 or bf16.
    template <typename Element> DEVICE float4 load(const Element *row) const {
        if (quads) return first < columns ? Quad{first}.load(row) : Quad::all(0.0f);
        return make_float4(single(row, 0), single(row, 1), single(row, 2), single(row, 3));
    }

    DEVICE void store(float *row, float4 values) const {
        if (quads) {
            if (first < columns) Quad{first}.store(row, values);
            return;
        }
        if (first < columns) row[first] = values.x;
        if (first + WARP < columns) row[first + WARP] = values.y;
        if (first + 2 * WARP < columns) row[first + 2 * WARP] = values.z;
        if (first + 3 * WARP < columns) row[first + 3 * WARP] = values.w;
    }

    // The sum of values(row) over the slab, in the threads of lane 0. Value: float4 or Pair. `scratch` holds TILE_THREADS of them and may
    // be used again at once.
    template <typename Value, typename Values> DEVICE Value sum_rows(int rows, Value *scratch, Values values) const {
        Value sum = {};
        const int end = min(rows, rows_begin + TILE_ROWS);
#pragma unroll 4
        for (int row = rows_begin + lane; row < end; row += TILE_LANES) sum = sum + values(row);
        scratch[threadIdx.x] = sum;
        barrier();
        if (lane == 0) {
            for (int other = 1; other < TILE_LANES; ++other) sum = sum + scratch[other * WARP + threadIdx.x];
        }
        barrier();
        return sum;
    }

  private:
    template <typename Element> DEVICE float single(const Element *row, int step) const {
        const int column = first + step * WARP;
        return column < columns ? Single{column}.load(row) : 0.0f;
    }
};

// In the block's first warp: the sum of partials[slab, column] over all slabs, for column blockIdx.x WARP + thread. `scratch` holds
// TOTAL_THREADS floats.
DEVICE float column_total(const float *partials, int slabs, int columns, float *scratch) {
    const int column = blockIdx.x * WARP + threadIdx.x % WARP;
    float sum = 0;
    if (column < columns) {
#pragma unroll 4
        for (int slab = threadIdx.x / WARP; slab < slabs; slab += TOTAL_LANES) sum += partials[(long long)slab * columns + column];
    }
    scratch[threadIdx.x] = sum;
    barrier();
    if (threadIdx.x < WARP) {
        for (int other = 1; other < TOTAL_LANES; ++other) sum += scratch[other * WARP + threadIdx.x];
    }
    return sum;
}
