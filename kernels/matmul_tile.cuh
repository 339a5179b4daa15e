// A block's tile of a matrix product: operands staged in shared memory, sums in registers, and their way out. matmul.cu says why it is so.
#pragma once

#include "tile.cuh"
#include "vector.cuh"

namespace {

enum Activation { IDENTITY, TANH, SIGMOID, RELU };

constexpr int ROW_BYTES = 64;
constexpr int STRIP_ROWS = 16; // of a warp's sums that go through shared memory at a time

// What a row's place is combined with, by exclusive or: a permutation of the eight chunks of a pair of rows. It is linear in the row's
// bits, so that the place of row + s follows from that of a row that has none of s's bits.
DEVICE constexpr int permutation(int row) {
    return ((row & 1) << 2 ^ ((row >> 1 ^ row >> 3) & 1) ^ (row >> 2 & 1) << 1 ^ (row >> 4 & 1) << 2) << 4;
}
DEVICE constexpr int place(int row, int chunk) { return (row / 2) * (2 * ROW_BYTES) + (chunk * 16 ^ permutation(row)); }
DEVICE constexpr int place_below(int place, int s) { return (place ^ permutation(s)) + (s / 2) * (2 * ROW_BYTES); }

// Eight chunks that are accessed together lie in different banks if they differ in place / 16 % 8.
constexpr bool free_of_conflicts() {
    for (int row = 0; row < 32; ++row) {
        for (int chunk = 0; chunk < 4; ++chunk) {
            int neighbours = 0, pair = 0, fourths = 0;
            for (int i = 0; i < 8; ++i) {
                neighbours |= 1 << place(row / 8 * 8 + i, chunk) / 16 % 8;
                pair |= 1 << place(row / 2 * 2 + i / 4, i % 4) / 16 % 8;
                fourths |= 1 << place(row % 4 + 4 * i, chunk) / 16 % 8;
            }
            if (neighbours != 255 || pair != 255 || fourths != 255) return false;
        }
    }
    return true;
}
static_assert(free_of_conflicts(), "see the head: neighbouring rows, pairs of rows, every fourth row");

// The sums of a warp's part of a tile, [HEIGHT, WIDTH], on tensor cores.
template <typename A, typename B, int HEIGHT, int WIDTH> struct TensorSums {
    static constexpr int STRIPS = HEIGHT / STRIP_ROWS;
    FragmentC sums[STRIPS][WIDTH / 8];
    int left_place, right_place;

    DEVICE TensorSums(int first_row, int first_column) {
#pragma unroll
        for (int i = 0; i < STRIPS; ++i) {
#pragma unroll
            for (int j = 0; j < WIDTH / 8; ++j) sums[i][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
        }
        // Lanes 0 to 15 point at 16 rows' first 16 bytes, lanes 16 to 31 at the next 16 bytes.
        left_place = place(first_row + lane_index() % 16, lane_index() / 16);
        right_place = place(first_column + lane_index() % 16, lane_index() / 16);
    }

    DEVICE void add(const unsigned char *left, const unsigned char *right) {
#pragma unroll
        for (int chunk = 0; chunk < 4; chunk += 2) {
            B b[WIDTH / 8];
#pragma unroll
            for (int j = 0; j < WIDTH / 16; ++j) {
                uint32_t both[4];
                ldmatrix_x4(both, right + place_below(right_place ^ chunk * 16, 16 * j));
                b[2 * j].x[0] = both[0], b[2 * j].x[1] = both[2];
                b[2 * j + 1].x[0] = both[1], b[2 * j + 1].x[1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < STRIPS; ++i) {
                A a;
                ldmatrix_x4(a.x, left + place_below(left_place ^ chunk * 16, 16 * i));
#pragma unroll
                for (int j = 0; j < WIDTH / 8; ++j) mma(sums[i][j], a, b[j]);
            }
        }
    }

    // Rows 16 i to 16 i + 15, `pitch` floats apart.
    DEVICE void write(int i, float *strip, int pitch) const {
#pragma unroll
        for (int j = 0; j < WIDTH / 8; ++j) {
#pragma unroll
            for (int half = 0; half < 4; half += 2) {
                float *to = strip + FragmentC::row(half) * pitch + 8 * j + FragmentC::column(half);
                *reinterpret_cast<float2 *>(to) = make_float2(sums[i][j].x[half], sums[i][j].x[half + 1]);
            }
        }
    }
};

// The same in exact f32: a lane has rows 4 apart and columns 8 apart, so that eight lanes read eight neighbouring rows. Neighbouring
// lanes share rows, every second one columns: 16-byte loads of shared memory are served by half warps only if they meet in pairs like
// that.
template <int HEIGHT, int WIDTH> struct ExactSums {
    static_assert(HEIGHT == 32 && WIDTH == 64, "a lane has 8 x 8 sums");
    static constexpr int STRIPS = HEIGHT / STRIP_ROWS;
    float sums[8][8];
    int left_place, right_place;

    DEVICE ExactSums(int first_row, int first_column) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[i][j] = 0.0f;
        }
        left_place = place(first_row + row(), 0);
        right_place = place(first_column + column(), 0);
    }

    static DEVICE int row() { return (lane_index() >> 1 & 1) | (lane_index() >> 3 & 2); }
    static DEVICE int column() { return (lane_index() & 1) | (lane_index() >> 1 & 6); }

    DEVICE void add(const unsigned char *left, const unsigned char *right) {
        // Not unrolled: the loads of several chunks at once would take more registers than there are.
#pragma unroll 1
        for (int chunk = 0; chunk < 4; ++chunk) {
            float4 a[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) a[i] = *reinterpret_cast<const float4 *>(left + place_below(left_place ^ chunk * 16, 4 * i));
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float4 b = *reinterpret_cast<const float4 *>(right + place_below(right_place ^ chunk * 16, 8 * j));
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    float sum = sums[i][j];
                    sum += a[i].x * b.x;
                    sum += a[i].y * b.y;
                    sum += a[i].z * b.z;
                    sum += a[i].w * b.w;
                    sums[i][j] = sum;
                }
            }
        }
    }

    DEVICE void write(int strip_number, float *strip, int pitch) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                strip[(row() + 4 * i) * pitch + column() + 8 * j] = sums[4 * strip_number + i][j];
            }
        }
    }
};

// What an arithmetic makes of the operands in shared memory, and of a warp's [HEIGHT, WIDTH] sums.
struct F32 {
    static constexpr int BYTES = 4;
    static DEVICE uint32_t word(uint32_t value) { return value; }
    template <int HEIGHT, int WIDTH> using Sums = ExactSums<HEIGHT, WIDTH>;
};

struct Tf32 {
    static constexpr int BYTES = 4;
    static DEVICE uint32_t word(uint32_t value) { return to_tf32(__uint_as_float(value)); }
    template <int HEIGHT, int WIDTH> using Sums = TensorSums<FragmentA_tf32, FragmentB_tf32, HEIGHT, WIDTH>;
};

struct Bf16 {
    static constexpr int BYTES = 2;
    template <int HEIGHT, int WIDTH> using Sums = TensorSums<FragmentA_bf16, FragmentB_bf16, HEIGHT, WIDTH>;
};

// Of an output's form; src/backend/cuda/matmul.rs makes it.
constexpr int WIDE = 1;            // rows begin where four elements may be written at once (and end so in a convolution)
constexpr int WRITTEN_AS_BF16 = 2; // else f32; in products of bf16 only

struct Output {
    void *c;
    long long stride;
    const void *bias; // or null; as c
    int rows, columns;
    int activation;
    int accumulate;
    int form;

    template <typename Element> DEVICE Element *at(int row, int column) const { return static_cast<Element *>(c) + row * stride + column; }
};

DEVICE float activate(float x, int activation) {
    if (activation == TANH) return tanhf(x);
    if (activation == SIGMOID) return sigmoid(x);
    if (activation == RELU) return x < 0.0f ? 0.0f : x; // so that a NaN stays one
    return x;
}

template <typename Element> DEVICE float finished(float sum, const Output &output, float before, int column) {
    sum += before;
    if (output.bias) sum += Single{column}.load(static_cast<const Element *>(output.bias));
    return activate(sum, output.activation);
}

// Writes the element at `column` of a row.
template <typename Element> DEVICE void finish(Element *to, float sum, const Output &output, int column) {
    const Single here{0};
    here.store(to, finished<Element>(sum, output, output.accumulate ? here.load(to) : 0.0f, column));
}

// Writes a strip of sums, [STRIP_ROWS, WIDTH] in shared memory, to its place: a warp writes whole rows of it.
template <typename Element, int WIDTH, int PITCH>
DEVICE void write_strip(const float *strip, const Output &output, int first_row, int first_column) {
    if (output.form & WIDE) {
        for (int i = lane_index(); i < STRIP_ROWS * WIDTH / 4; i += WARP) {
            const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4, j = first_column + column;
            if (first_row + row >= output.rows || j >= output.columns) continue;
            const float *from = strip + row * PITCH + column;
            Element *to = output.at<Element>(first_row + row, j);
            if (j + 4 > output.columns) {
                for (int k = 0; j + k < output.columns; ++k) finish(to + k, from[k], output, j + k);
                continue;
            }
            float4 sums = *reinterpret_cast<const float4 *>(from);
            const Quad here{0};
            const float4 before = output.accumulate ? here.load(to) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            sums.x = finished<Element>(sums.x, output, before.x, j);
            sums.y = finished<Element>(sums.y, output, before.y, j + 1);
            sums.z = finished<Element>(sums.z, output, before.z, j + 2);
            sums.w = finished<Element>(sums.w, output, before.w, j + 3);
            here.store(to, sums);
        }
    } else {
        for (int i = lane_index(); i < STRIP_ROWS * WIDTH; i += WARP) {
            const int row = i / WIDTH, column = i % WIDTH, j = first_column + column;
            if (first_row + row >= output.rows || j >= output.columns) continue;
            finish(output.at<Element>(first_row + row, j), strip[row * PITCH + column], output, j);
        }
    }
}

// Where a block is in a product. Without splits, z counts bands of tile rows: blocks that run at the same time share operands in the L2
// cache.
template <int HEIGHT, int WIDTH> struct Place {
    int split, row, column;

    DEVICE explicit Place(bool splits) {
        split = splits ? blockIdx.z : 0;
        row = ((splits ? 0 : blockIdx.z * gridDim.x) + blockIdx.x) * HEIGHT;
        column = blockIdx.y * WIDTH;
    }
};

// Writes a block's sums: each warp its own, strip by strip through `shared`, which nobody uses any more. The place is of the warp's part.
// partial_sums: null, or [splits, m, n], which takes the sums as they are.
template <typename Arithmetic, int WIDTH, typename Sums>
DEVICE void write_sums(const Sums &sums, unsigned char *shared, Output c, int row, int column, int split, float *partial_sums) {
    // The rest of a pitch by 32 banks is 8: four rows of two floats, and four of one, do not meet.
    constexpr int PITCH = WIDTH + 8;
    if (partial_sums) {
        c.c = partial_sums + split * ((long long)c.rows * c.columns);
        c.stride = c.columns;
        c.bias = nullptr;
        c.activation = IDENTITY;
        c.accumulate = 0;
        c.form = c.columns % 4 == 0 ? WIDE : 0;
    }
    float *strip = reinterpret_cast<float *>(shared) + int(threadIdx.x / WARP) * STRIP_ROWS * PITCH;
    // One loop for the strips, not unrolled: its code is long, and which registers a strip is in is all that has to be known.
#pragma unroll 1
    for (int i = 0; i < Sums::STRIPS; ++i) {
#pragma unroll
        for (int known = 0; known < Sums::STRIPS; ++known) {
            if (known == i) sums.write(known, strip, PITCH);
        }
        __syncwarp();
        if (Arithmetic::BYTES == 2 && c.form & WRITTEN_AS_BF16) {
            write_strip<__nv_bfloat16, WIDTH, PITCH>(strip, c, row + STRIP_ROWS * i, column);
        } else {
            write_strip<float, WIDTH, PITCH>(strip, c, row + STRIP_ROWS * i, column);
        }
        __syncwarp();
    }
}

} // namespace
