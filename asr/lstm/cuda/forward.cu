// Forward scan of one LSTM layer: all time steps, one or two directions, a ragged batch, in one launch.
//
// A cluster of CLUSTER blocks runs one direction of one group of rows. Block r owns the hidden units 32r .. 32r+31 and
// keeps the 128 rows of weight_hh that make their gates in registers for the whole scan. A step of a block:
//
//   1. h of the step before, of all blocks, lies in `hidden[step % 2]`: wait for it source by source and multiply each
//      source's 32 columns as they arrive, the own block's first;
//   2. the two warps of a pair, each of which took half of the sources, exchange halves of their sums;
//   3. every thread finishes one cell (a unit of a row) a tile: gates, c (in fp32, in a register), h;
//   4. h goes to `staged[step % 2]`; after a block barrier each warp pushes the block's slice to the peers it serves,
//      into their `hidden[(step + 1) % 2]`. The bytes themselves complete the peers' mbarriers.
//
// Why two buffers need no "empty" barrier: a block pushes h of step s after its block barrier of step s, so all its
// warps have waited for h of step s-1 from every block. Each of those sent it after its own block barrier of step s-1,
// when it had read the buffer that h of step s overwrites. `staged` is double for the same reason.
// Why no phase is overrun: bytes for the next filling of a buffer need this block's own later h.
// Why there is no barrier at the end: the last step waits for all bytes that anybody sends to this block.
#include "common.cuh"

constexpr int SOURCES = CLUSTER / 2;                            // blocks whose h a warp multiplies
constexpr int SHARING = CLUSTER % 4 || CLUSTER < 8 ? 2 : 4;     // sources that share an mbarrier: even, half for a warp
constexpr int GROUPS = CLUSTER / SHARING;                       // mbarriers a buffer
constexpr int AHEAD = 4;                                        // steps that inputs are brought into L2 early

struct Shared {
    uint4 hidden[2][CLUSTER][TILES][32]; // [buffer][source block][tile][row * 4 + quarter of the 32 units]
    u16 staged[2][TILES][ROWS][UNITS];
    float4 swap[WARPS][TILES][32];
    u64 full[2][GROUPS];                 // mbarriers
};

// weight_hh  (directions, 4, HIDDEN, HIDDEN), gates in the order i, f, g, o: as torch stores it
// gates      (frames, batch, directions, HIDDEN, 4): in, the input's part with the bias; out, where cells are kept, the
//            activated gates of valid frames
// cells      (frames, batch, directions, HIDDEN) fp32, written at valid frames; null: nothing is kept for backward
// output     (frames, batch, directions, HIDDEN), written everywhere: 0 behind a row's end
// h0, h_n    (directions, batch, HIDDEN);  c0, c_n the same in fp32
KERNEL lstm_forward(const u16* __restrict__ weight_hh, u16* gates, float* cells, u16* output, const u16* h0,
                    const float* c0, u16* h_n, float* c_n, ROWS_PARAMETERS) {
    const Rows rows(order, lengths, frames, batch, directions, groups);
    SHARED(Shared, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4;
    const int pair = warp / 2, half = warp % 2; // a pair of warps owns 8 units; a warp multiplies half of the sources
    const int rank = cluster_rank(), steps = rows.steps;
    const int own = pair * 8 + lane / 4, unit = rank * UNITS + own; // the unit that this thread finishes

    // Weights as the A operand: tile 0 holds the gates i and f of the pair's 8 units, tile 1 g and o, so that a thread
    // gets all four gates of a cell. K is permuted: 16 bytes of a weight row, and of h, feed two k steps.
    u32 weight[SOURCES][2][2][4]; // [source][k step][tile][fragment]
#pragma unroll
    for (int j = 0; j < SOURCES; j++) {
        const int source = (rank + 2 * j + half) % CLUSTER;
#pragma unroll
        for (int gate = 0; gate < 4; gate++) {
            const i64 row = (i64)(rows.direction * 4 + gate) * HIDDEN + unit;
            const uint4 v = *(const uint4*)(weight_hh + row * HIDDEN + source * UNITS + quad * 8);
            weight[j][0][gate / 2][gate % 2] = v.x;
            weight[j][0][gate / 2][gate % 2 + 2] = v.y;
            weight[j][1][gate / 2][gate % 2] = v.z;
            weight[j][1][gate / 2][gate % 2 + 2] = v.w;
        }
    }

    // Every block reads the whole h0 of its rows: nothing is exchanged before step 0.
    for (int i = threadIdx.x; i < CLUSTER * TILES * 32; i += THREADS) {
        const int source = i / (TILES * 32), tile = i / 32 % TILES, row = rows.row(tile * ROWS + i % 32 / 4);
        uint4 v = {0, 0, 0, 0};
        if (row >= 0) v = *(const uint4*)(h0 + rows.state(row, source * UNITS + i % 4 * 8));
        shared.hidden[0][source][tile][i % 32] = v;
    }

    // This thread's cells, one a tile, and the 8 units of a row that it stores to the output (warp n stores tile n).
    int row[TILES], length[TILES], stored_length[TILES];
    i64 cell[TILES], stored[TILES];
    float c[TILES];
    u16 h[TILES];
    uint2 input[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        row[n] = rows.row(n * ROWS + 2 * quad + half);
        length[n] = rows.length_of(row[n]);
        cell[n] = rows.at(rows.first_frame(length[n]), row[n], unit);
        c[n] = row[n] >= 0 ? c0[rows.state(row[n], unit)] : 0.f;
        h[n] = row[n] >= 0 ? h0[rows.state(row[n], unit)] : (u16)0;
        if (length[n] > 0) input[n] = *(const uint2*)(gates + cell[n] * 4);
        const int stored_row = rows.row(n * ROWS + lane / 4);
        stored_length[n] = warp == n ? rows.length_of(stored_row) : 0;
        stored[n] = rows.at(rows.first_frame(stored_length[n]), stored_row, rank * UNITS + quad * 8);
    }

    // Where this lane's 16 bytes go in each peer, and the mbarrier that counts them. Peer rank+d has this block as its
    // source number CLUSTER-d, counted from its own.
    u32 far_hidden[PEERS], far_full[PEERS];
#pragma unroll
    for (int i = 0; i < PEERS; i++) {
        const int d = (warp + WARPS * i) % CLUSTER, peer = (rank + d) % CLUSTER;
        far_hidden[i] = peer_address(shared_address(&shared.hidden[0][rank][0][lane]), peer);
        far_full[i] = peer_address(shared_address(&shared.full[0][(CLUSTER - d) % CLUSTER / SHARING]), peer);
    }
    const u32 bytes = SHARING * rows.count * UNITS * sizeof(u16); // that fill an mbarrier: rows that exist
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * GROUPS; i++) mbarrier_init(shared_address(&shared.full[0][0] + i));
        mbarrier_publish();
        for (int i = 0; i < 2 * GROUPS; i++) mbarrier_expect(shared_address(&shared.full[0][0] + i), bytes);
    }
    cluster_barrier(); // the peers' mbarriers exist before anything is pushed

    const i64 stride = rows.stride();
    for (int step = 0; step < steps; step++) {
        const int buffer = step & 1;
        const u32 parity = (step - 1) / 2 & 1; // this buffer is being filled for the ((step - 1) / 2)th time
        uint2 next_input[TILES];               // loaded under the product
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            if (step + 1 < length[n]) next_input[n] = *(const uint2*)(gates + (cell[n] + stride) * 4);
            if (step + AHEAD < length[n]) prefetch(gates + (cell[n] + AHEAD * stride) * 4);
        }

        float sum[2][TILES][2][4] = {}; // k steps apart: four independent chains a tile hide the latency of an mma
#pragma unroll
        for (int j = 0; j < SOURCES; j++) {
            if (step > 0 && 2 * j % SHARING == 0) {
                const u32 bar = shared_address(&shared.full[buffer][2 * j / SHARING]);
                mbarrier_wait(bar, parity);
                if (threadIdx.x == 0 && step + 2 < steps) mbarrier_expect(bar, bytes);
            }
            const int source = (rank + 2 * j + half) % CLUSTER;
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                const uint4 v = shared.hidden[buffer][source][n][lane];
                mma(sum[0][n][0], weight[j][0][0], v.x, v.y);
                mma(sum[0][n][1], weight[j][0][1], v.x, v.y);
                mma(sum[1][n][0], weight[j][1][0], v.z, v.w);
                mma(sum[1][n][1], weight[j][1][1], v.z, v.w);
            }
        }

        // A thread has the rows 2 quad and 2 quad + 1 of its unit: it keeps row 2 quad + half and gives the other away.
        float4 kept[TILES];
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float s[2][4];
#pragma unroll
            for (int i = 0; i < 8; i++) s[i / 4][i % 4] = sum[0][n][i / 4][i % 4] + sum[1][n][i / 4][i % 4];
            const float4 even = {s[0][0], s[0][2], s[1][0], s[1][2]}, odd = {s[0][1], s[0][3], s[1][1], s[1][3]};
            kept[n] = half ? odd : even;
            shared.swap[warp][n][lane] = half ? even : odd;
        }
        pair_barrier(1 + pair);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const float4 other = shared.swap[warp ^ 1][n][lane];
            if (step < length[n]) { // a row that has ended keeps its state
                const float gate_i = sigmoid(kept[n].x + other.x + low(input[n].x));
                const float gate_f = sigmoid(kept[n].y + other.y + high(input[n].x));
                const float gate_g = tanh_fast(kept[n].z + other.z + low(input[n].y));
                const float gate_o = sigmoid(kept[n].w + other.w + high(input[n].y));
                c[n] = gate_f * c[n] + gate_i * gate_g;
                h[n] = round16(gate_o * tanh_fast(c[n]));
                if (cells) {
                    *(uint2*)(gates + cell[n] * 4) = uint2{pack(round16(gate_i), round16(gate_f)),
                                                           pack(round16(gate_g), round16(gate_o))};
                    cells[cell[n]] = c[n];
                }
            }
            shared.staged[buffer][n][2 * quad + half][own] = h[n];
            input[n] = next_input[n];
            cell[n] += stride;
        }
        block_barrier();

#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const uint4 v = ((const uint4*)shared.staged[buffer][n])[lane]; // row lane / 4, units 8 quad ..
            // Rows that do not exist are not sent: their columns of the product may hold anything.
            if (step + 1 < steps && n * ROWS + lane / 4 < rows.count) {
#pragma unroll
                for (int i = 0; i < PEERS; i++)
                    if (EVERY_WARP_SENDS || warp + WARPS * i < CLUSTER)
                        push16(far_hidden[i] + (buffer ^ 1) * (u32)sizeof(shared.hidden[0]) +
                                   n * (u32)sizeof(shared.hidden[0][0][0]),
                               far_full[i] + (buffer ^ 1) * (u32)sizeof(shared.full[0]), v);
            }
            if (step < stored_length[n]) *(uint4*)(output + stored[n]) = v;
            stored[n] += stride;
        }
    }

#pragma unroll
    for (int n = 0; n < TILES; n++) {
        if (row[n] >= 0) {
            h_n[rows.state(row[n], unit)] = h[n];
            c_n[rows.state(row[n], unit)] = c[n];
        }
        const int padded = rows.row(n * ROWS + lane / 4); // zeros behind its end; the warps take turns
        if (padded >= 0)
            for (int t = rows.length_of(padded) + warp; t < frames; t += WARPS)
                *(uint4*)(output + rows.at(t, padded, rank * UNITS + quad * 8)) = uint4{0, 0, 0, 0};
    }
}
