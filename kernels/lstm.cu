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
#include "lstm_backward.cuh"
#include "lstm_forward.cuh"

// h before each row's step, for the gradient of W_hh: previous [R, H] from output [R, D H]; where a sequence begins, `initial` [N, H] or zeros.
// Blocks (t, *) share time t; those of t = T clear the rows behind. 8 bytes a value, bound by memory.
KERNEL(256, 1) lstm_previous_hidden(const float *output, const float *initial, float *previous, const int *offsets, int steps, int rows,
                                    int hidden, int directions, int direction) {
    const int t = blockIdx.x, worker = blockIdx.y * blockDim.x + threadIdx.x, workers = gridDim.y * blockDim.x;
    if (t == steps) {
        const long long to = (long long)rows * hidden;
        for (long long i = (long long)offsets[steps] * hidden + worker; i < to; i += workers) previous[i] = 0.0f;
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

#define CONNECTIONS unsigned key_low, unsigned key_high, unsigned threshold, float scale, unsigned step, const unsigned long long *counter
#define CONNECTED                                                                                                                          \
    { key_low, key_high, threshold, scale, step, counter }

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
         const float *initial_cell1, float *final_hidden1, float *final_cell1, float *output, const int *offsets, CONNECTIONS, LAUNCH,                \
         unsigned *counters, unsigned char *exchange) {                                                                                    \
        SHARED_MEMORY(unsigned char, shared);                                                                                              \
        const ForwardArguments arguments{                                                                                                  \
            {gates0, cells0, weight0, input_bias0, recurrent_bias0, initial_hidden0, initial_cell0, final_hidden0, final_cell0},          \
            {gates1, cells1, weight1, input_bias1, recurrent_bias1, initial_hidden1, initial_cell1, final_hidden1, final_cell1},          \
            output, offsets, CONNECTED, LAUNCHED, counters, exchange};                                                                                \
        ForwardBlock<Core>(arguments, shared).run();                                                                                       \
    }                                                                                                                                      \
    EXPORT(name)

#define BACKWARD(name, Core, PARTS)                                                                                                        \
    KERNEL(WARP *Core::WARPS, 1)                                                                                                           \
    name(float *gates0, const float *cells0, const float *weight0, const float *initial_cell0, float *cell_gradient0,                     \
         const float *final_hidden_gradient0, float *initial_hidden_gradient0, float *gates1, const float *cells1, const float *weight1, \
         const float *initial_cell1, float *cell_gradient1, const float *final_hidden_gradient1, float *initial_hidden_gradient1,         \
         const float *output_gradient, const int *offsets, CONNECTIONS, LAUNCH, unsigned *counters, unsigned char *exchange, float *parts) {           \
        SHARED_MEMORY(unsigned char, shared);                                                                                              \
        const BackwardArguments arguments{                                                                                                 \
            {gates0, cells0, weight0, initial_cell0, cell_gradient0, final_hidden_gradient0, initial_hidden_gradient0},                   \
            {gates1, cells1, weight1, initial_cell1, cell_gradient1, final_hidden_gradient1, initial_hidden_gradient1},                   \
            output_gradient, offsets, CONNECTED, LAUNCHED, counters, exchange, parts};                                                                \
        BackwardBlock<Core, PARTS>(arguments, shared).run();                                                                               \
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
