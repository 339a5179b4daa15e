// Random numbers and dropout masks: the same bits as src/random.rs on the CPU, for any launch shape.
//
// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a counter to four numbers under a key. Ten
// rounds of two 32 x 32 -> 64 multiplications and four exclusive ors: about 80 instructions for four elements.
#pragma once

#include "common.cuh"

struct Philox {
    unsigned low, high; // the key

    DEVICE uint4 operator()(unsigned x, unsigned y, unsigned z, unsigned w) const {
        unsigned k = low, l = high;
#pragma unroll
        for (int round = 0; round < 10; ++round) {
            const unsigned long long first = 0xd2511f53ull * x, second = 0xcd9e8d57ull * z;
            x = unsigned(second >> 32) ^ y ^ k;
            y = unsigned(second);
            z = unsigned(first >> 32) ^ w ^ l;
            w = unsigned(first);
            k += 0x9e3779b9u;
            l += 0xbb67ae85u;
        }
        return make_uint4(x, y, z, w);
    }
};

// One layer's dropout mask at one step. What belongs to units 4 q ... 4 q + 3 of a sequence's frame at `time` is drawn at the counter
// (q, time, sequence, step); an element stays where its number is at least the threshold, p 2^32, and is then multiplied by 1 / (1 - p).
struct Mask {
    Philox philox;
    unsigned threshold;
    float scale;
    unsigned step;

    DEVICE uint4 draw(unsigned quarter, unsigned time, unsigned sequence) const { return philox(quarter, time, sequence, step); }
    DEVICE float apply(unsigned drawn, float x) const { return drawn >= threshold ? x * scale : 0.0f; }
    DEVICE float4 apply(uint4 drawn, float4 x) const {
        return make_float4(apply(drawn.x, x.x), apply(drawn.y, x.y), apply(drawn.z, x.z), apply(drawn.w, x.w));
    }

    // DropConnect: `value` is a matrix's element in `row` and `column`, rows being the frames of one sequence. Without a threshold nothing is
    // dropped and nothing is drawn.
    DEVICE float connect(float value, int row, int column) const {
        if (threshold == 0) return value;
        const uint4 drawn = draw(unsigned(column) / 4, row, 0);
        const unsigned low = column % 2 ? drawn.y : drawn.x, high = column % 2 ? drawn.w : drawn.z;
        return apply(column % 4 < 2 ? low : high, value);
    }
};
