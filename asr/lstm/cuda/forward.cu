// Forward scan of one LSTM layer: all time steps, one or two directions, a ragged batch, in one launch.
//
// A cluster of CLUSTER blocks runs one direction of one group of rows. Block r owns the hidden units UNITS r ..
// UNITS r + UNITS - 1 and keeps the rows of weight_hh that make their gates for the whole scan, in registers and, where
// these are too few, in shared memory. A step of a block:
//
//   1. h of the step before, of all blocks, lies in `hidden[step % 2]`, the own block's first, then rank + 1's and so
//      on: wait for a few sources at a time and multiply what they sent, in blocks of 32 units;
//   2. the two warps of a pair, each of which took every second block of 32, exchange halves of their sums;
//   3. every thread finishes one cell (a unit of a row) a tile: gates, c (in fp32, in a register), h;
//   4. h goes to `staged[step % 2]`; after a block barrier each thread pushes 16 bytes of the block's slice to the
//      peers that it serves, into their `hidden[(step + 1) % 2]`. The bytes themselves complete the peers' mbarriers.
//
// Why two buffers need no "empty" barrier: a block pushes h of step s after its block barrier of step s, so all its
// warps have waited for h of step s-1 from every block. Each of those sent it after its own block barrier of step s-1,
// when it had read the buffer that h of step s overwrites. `staged` is double for the same reason.
// Why no phase is overrun: bytes for the next filling of a buffer need this block's own later h.
// Why there is no barrier at the end: the last step waits for all bytes that anybody sends to this block.
#include "common.cuh"

constexpr int BLOCKS = HIDDEN / 64;                         // of 32 units of h that a warp multiplies
constexpr int SHARING = CLUSTER % 4 || CLUSTER < 8 ? 2 : 4; // sources that share an mbarrier
constexpr int GROUPS = CLUSTER / SHARING;                   // mbarriers a buffer
static_assert(SHARING * UNITS >= 64, "a pair of blocks ends at most one group: none goes without its wait");
constexpr int AHEAD = 4;                                    // steps that inputs are brought into L2 early
constexpr int PIECES = UNITS / 8;                           // 16 bytes each, of a row of a block's slice

// The mbarrier that counts what the warps of a pair read in their block j.
DEVICE constexpr int group_of(int j) { return (64 * j + 63) / (SHARING * UNITS); }

struct Shared {
    Weights<BLOCKS, 4>::Rest weights;
    uint4 hidden[2][2 * BLOCKS][TILES][32]; // [buffer][block of 32 units, from this rank's on][tile][row * 4 + quarter]
    u16 staged[2][TILES][ROWS][UNITS];
    float4 swap[WARPS][TILES][32];
    u64 full[2][GROUPS]; // mbarriers
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
    const int pair = warp / 2, half = warp % 2; // a pair of warps owns 8 units; a warp multiplies half of the blocks
    const int rank = cluster_rank(), steps = rows.steps;
    const int own = pair * 8 + lane / 4, unit = rank * UNITS + own; // the unit that this thread finishes

    // Weights as the A operand: tile 0 holds the gates i and f of the pair's 8 units, tile 1 g and o, so that a thread
    // gets all four gates of a cell. K is permuted: 16 bytes of a weight row, and of h, feed two k steps.
    Weights<BLOCKS, 4> weights(shared.weights); // a part is a block; fragments: [k step][tile]
    auto fetch = [&](int j) {
        const u16* column = weight_hh + (rank * UNITS + (2 * j + half) * 32 + quad * 8) % HIDDEN;
        uint4 gate[4];
#pragma unroll
        for (int g = 0; g < 4; g++)
            gate[g] = *(const uint4*)(column + ((i64)(rows.direction * 4 + g) * HIDDEN + unit) * HIDDEN);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const uint4 a = gate[2 * tile], b = gate[2 * tile + 1];
            weights.set(j, tile, uint4{a.x, b.x, a.y, b.y});
            weights.set(j, 2 + tile, uint4{a.z, b.z, a.w, b.w});
        }
    };
#pragma unroll 1 // what is under way takes registers too
    for (int j = 0; j < PARTS_IN_SHARED; j++) fetch(j);
#pragma unroll
    for (int j = PARTS_IN_SHARED; j < BLOCKS; j++) fetch(j);

    // Every block reads the whole h0 of its rows: nothing is exchanged before step 0.
    for (int i = threadIdx.x; i < 2 * BLOCKS * TILES * 32; i += THREADS) {
        const int block = i / (TILES * 32), tile = i / 32 % TILES, row = rows.row(tile * ROWS + i % 32 / 4);
        uint4 v = {0, 0, 0, 0};
        if (row >= 0) v = *(const uint4*)(h0 + rows.state(row, (rank * UNITS + block * 32 + i % 4 * 8) % HIDDEN));
        shared.hidden[0][block][tile][i % 32] = v;
    }

    // The 16 bytes of the block's slice that this thread pushes: 8 units of a row. There are 8 threads for each.
    const int piece = threadIdx.x % UNITS, turn = threadIdx.x / UNITS;
    const int piece_row = piece / PIECES, piece_unit = piece % PIECES * 8;

    // This thread's cells, one a tile, and the piece that it stores to the output (turn n stores tile n).
    int length[TILES], stored_length[TILES];
    i64 cell[TILES], stored[TILES];
    float c[TILES];
    u16 h[TILES];
    uint2 input[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        const int row = rows.row(n * ROWS + 2 * quad + half);
        length[n] = rows.length_of(row);
        cell[n] = rows.at(rows.first_frame(length[n]), row, unit);
        c[n] = row >= 0 ? c0[rows.state(row, unit)] : 0.f;
        h[n] = row >= 0 ? h0[rows.state(row, unit)] : (u16)0;
        if (length[n] > 0) input[n] = *(const uint2*)(gates + cell[n] * 4);
        const int stored_row = rows.row(n * ROWS + piece_row);
        stored_length[n] = turn == n ? rows.length_of(stored_row) : 0;
        stored[n] = rows.at(rows.first_frame(stored_length[n]), stored_row, rank * UNITS + piece_unit);
    }

    // Where this thread's piece goes in each peer, and the mbarrier that counts it. Peer rank+d has this block as its
    // source number CLUSTER-d, counted from its own.
    u32 far_hidden[PEERS], far_full[PEERS];
#pragma unroll
    for (int i = 0; i < PEERS; i++) {
        const int d = (turn + 8 * i) % CLUSTER, peer = (rank + d) % CLUSTER, source = (CLUSTER - d) % CLUSTER;
        const int at = source * UNITS + piece_unit; // as the peer counts
        far_hidden[i] = peer_address(shared_address(&shared.hidden[0][at / 32][0][piece_row * 4 + at % 32 / 8]), peer);
        far_full[i] = peer_address(shared_address(&shared.full[0][source / SHARING]), peer);
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

        float sum[2][TILES][2][4] = {}; // k steps apart: four independent chains a tile hide the latency of an mma
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) {
            if (step > 0 && (j == 0 || group_of(j) != group_of(j - 1))) {
                const u32 bar = shared_address(&shared.full[buffer][group_of(j)]);
                mbarrier_wait(bar, parity);
                if (threadIdx.x == 0 && step + 2 < steps) mbarrier_expect(bar, bytes);
            }
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                const uint4 v = shared.hidden[buffer][2 * j + half][n][lane];
#pragma unroll
                for (int tile = 0; tile < 2; tile++) weights.multiply(sum[0][n][tile], j, tile, v.x, v.y);
#pragma unroll
                for (int tile = 0; tile < 2; tile++) weights.multiply(sum[1][n][tile], j, 2 + tile, v.z, v.w);
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
            cell[n] += stride;
            if (step + 1 < length[n]) input[n] = *(const uint2*)(gates + cell[n] * 4); // in flight for a whole step
            if (step + AHEAD < length[n]) prefetch(gates + (cell[n] + (AHEAD - 1) * stride) * 4);
        }
        block_barrier();

#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const uint4 v = ((const uint4*)shared.staged[buffer][n])[piece];
            // Rows that do not exist are not sent: their columns of the product may hold anything.
            if (step + 1 < steps && n * ROWS + piece_row < rows.count) {
#pragma unroll
                for (int i = 0; i < PEERS; i++)
                    if (EVERY_WARP_SENDS || turn + 8 * i < CLUSTER)
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
        const int row = rows.row(n * ROWS + 2 * quad + half);
        if (row >= 0) {
            h_n[rows.state(row, unit)] = h[n];
            c_n[rows.state(row, unit)] = c[n];
        }
        const int padded = rows.row(n * ROWS + piece_row); // zeros behind its end; the threads of a piece take turns
        if (padded >= 0)
            for (int t = rows.length_of(padded) + turn; t < frames; t += 8)
                *(uint4*)(output + rows.at(t, padded, rank * UNITS + piece_unit)) = uint4{0, 0, 0, 0};
    }
}
