// Backward scan: gradients of the gates before their activation ("dgates"), and of the initial states. The gradients of
// input, weights and bias are dense products of dgates, made afterwards (asr/lstm/op.py).
//
// Clusters, rows and ownership of units as in forward.cu. A round of a block, from the last step down:
//
//   1. dh = the output's gradient + the sum over all blocks of their parts of the round before, which lie in
//      `parts[(round - 1) % 2]`, one slot a source: every thread adds its cells' slots in the order of the blocks, so
//      that the result does not depend on timing;
//   2. every thread takes its cells back through the gates; dgates go to memory and to `dgates[round % 2]`;
//   3. after a block barrier, each warp multiplies them by weight_hh of this block's gates (transposed), for 16 units
//      of the cluster at a time, and pushes these parts of dh in fp32 to the blocks that own the units.
//
// With h_{t-1} needed nowhere, the parts (4 bytes a unit and row) are half the traffic that sending dgates would be.
// Two buffers need no "empty" barrier, by the argument of forward.cu: a block pushes round k after its block barrier,
// when all its threads have read what every block sent in round k-1, and a block sent that after its own block barrier
// of round k-1, when its threads had read round k-2: the buffer that round k overwrites. The last round waits for all
// bytes that anybody sends, so there is no barrier at the end.
#include "common.cuh"

constexpr int STEPS = UNITS / 4;       // of 16 of this block's gates
constexpr int UNIT_TILES = 2 * PEERS;  // of 16 hidden units that a warp multiplies, counted from this block's own on
// Tiles of rows multiplied at once: where weights lie in shared memory all, so that they are read but once a round;
// else one, so that its push is on the way during the product of the next.
constexpr int TOGETHER = PARTS_IN_SHARED ? TILES : 1;

struct Shared {
    Weights<STEPS, UNIT_TILES>::Rest weights;
    float parts[2][CLUSTER][TILES][THREADS]; // [buffer][source block][tile][cell = thread]
    uint4 dgates[2][TILES][UNITS / 8][32];   // the B operand: [8 units][row * 4 + pair of units]
    u64 full[2];                             // mbarriers
};

// The m-th tile of a warp.
DEVICE int tile_of(int warp, int m) { return 2 * (warp + m / 2 * WARPS) + m % 2; }

// What a step of a cell needs from memory.
struct Saved {
    uint2 gates;
    float c_before;
    u16 d_output;
};

// weight_hh   (directions, 4, HIDDEN, HIDDEN)
// gates       (frames, batch, directions, HIDDEN, 4) and cells (frames, batch, directions, HIDDEN), from lstm_forward
// d_output    (frames, batch, directions, HIDDEN); read at valid frames only
// c0          (directions, batch, HIDDEN) fp32
// d_h_n, d_c_n  the same, fp32; null: zero
// dgates      (frames, batch, directions, HIDDEN, 4), written everywhere: 0 behind a row's end, for the products
// d_h0, d_c0  (directions, batch, HIDDEN) fp32
KERNEL lstm_backward(const u16* __restrict__ weight_hh, const u16* gates, const float* cells, const u16* d_output,
                     const float* c0, const float* d_h_n, const float* d_c_n, u16* dgates, float* d_h0, float* d_c0,
                     ROWS_PARAMETERS) {
    const Rows rows(order, lengths, frames, batch, directions, groups);
    SHARED(Shared, shared);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, quad = lane % 4;
    const int rank = cluster_rank(), steps = rows.steps;
    // A thread owns the cell where the *sender's* mma leaves it: pair of units thread / 16, pair of rows
    // thread / 4 % 4, element thread % 4. So a push is 512 bytes in a row (less where its units belong to two blocks),
    // and the slots of a cell are read without bank conflicts.
    const int element = thread % 4;
    const int own = thread / 16 * 2 + element / 2, unit = rank * UNITS + own;
    const int place = thread / 4 % 4 * 2 + element % 2; // its row in a tile

    // Weights, transposed, as the A operand: row r of a tile is unit 2r of its 16, row r + 8 is unit 2r + 1; a column
    // is a gate of this block, 4 unit + gate, permuted so that 16 bytes of dgates feed two k steps. A warp has two
    // tiles in a row, and two more behind the first ones of all warps. `to[m]` is the first of this lane's two units.
    Weights<STEPS, UNIT_TILES> weights(shared.weights); // a part is a k step; fragments: [tile]
    int to[UNIT_TILES];
#pragma unroll
    for (int m = 0; m < UNIT_TILES; m++) {
        to[m] = (rank * UNITS + tile_of(warp, m) * 16 + lane / 4 * 2) % HIDDEN;
        auto fetch = [&](int k) {
            const i64 from = (i64)rows.direction * 4 * HIDDEN + rank * UNITS + k / 2 * 8 + quad * 2 + k % 2;
            u32 a[2][2];
#pragma unroll
            for (int f = 0; f < 4; f++) {
                const u16* w = weight_hh + (from + f / 2 * 2 * HIDDEN) * HIDDEN + to[m] + f % 2;
                a[f / 2][f % 2] = pack(w[0], w[(i64)HIDDEN * HIDDEN]);
            }
            weights.set(k, m, uint4{a[0][0], a[0][1], a[1][0], a[1][1]});
        };
#pragma unroll 1 // what is under way takes registers too
        for (int k = 0; k < PARTS_IN_SHARED; k++) fetch(k);
#pragma unroll
        for (int k = PARTS_IN_SHARED; k < STEPS; k++) fetch(k);
    }

    u32 bytes = 0; // that fill an mbarrier: 8 a unit, block and pair of rows that exist
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        const int live = rows.count - n * ROWS;
        bytes += CLUSTER * UNITS * 8 * (live >= ROWS ? ROWS / 2 : live > 0 ? (live + 1) / 2 : 0);
    }
    if (thread == 0) {
        for (int i = 0; i < 2; i++) mbarrier_init(shared_address(&shared.full[i]));
        mbarrier_publish();
        for (int i = 0; i < 2; i++) mbarrier_expect(shared_address(&shared.full[i]), bytes);
    }
    cluster_barrier(); // the peers' mbarriers exist before anything is pushed

    const i64 stride = rows.stride();
    int row[TILES], length[TILES];
    i64 cell[TILES]; // the step of the row whose values are loaded
    float dc[TILES], c[TILES];
    Saved saved[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        row[n] = rows.row(n * ROWS + place);
        length[n] = rows.length_of(row[n]);
        cell[n] = rows.at(rows.last_frame(length[n]), row[n], unit);
        dc[n] = d_c_n && row[n] >= 0 ? d_c_n[rows.state(row[n], unit)] : 0.f;
        c[n] = length[n] > 0 ? cells[cell[n]] : 0.f;
        if (row[n] >= 0)
            for (int t = length[n]; t < frames; t++) *(uint2*)(dgates + rows.at(t, row[n], unit) * 4) = uint2{0, 0};
    }
    auto load = [&](int step, int n) {
        if (step >= length[n]) return;
        saved[n].gates = *(const uint2*)(gates + cell[n] * 4);
        saved[n].d_output = d_output[cell[n]];
        saved[n].c_before = step > 0 ? cells[cell[n] - stride] : c0[rows.state(row[n], unit)];
    };
#pragma unroll
    for (int n = 0; n < TILES; n++)
        if (steps > 0) load(steps - 1, n);
    u32 far_parts[UNIT_TILES], far_full[UNIT_TILES];
#pragma unroll
    for (int m = 0; m < UNIT_TILES; m++) {
        const u32 peer = to[m] / UNITS, cell_there = to[m] % UNITS * 8 + quad * 4;
        far_parts[m] = peer_address(shared_address(&shared.parts[0][rank][0][cell_there]), peer);
        far_full[m] = peer_address(shared_address(&shared.full[0]), peer);
    }

    for (int round = 0; round <= steps; round++) { // the last round, of step -1, only collects the gradient of h0
        const int step = steps - 1 - round, buffer = round & 1;
        float dh[TILES] = {};
        if (round > 0) {
            const u32 bar = shared_address(&shared.full[buffer ^ 1]);
            mbarrier_wait(bar, (round - 1) / 2 & 1);
            if (thread == 0 && round + 1 < steps) mbarrier_expect(bar, bytes);
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int i = 0; i < CLUSTER; i++) dh[n] += shared.parts[buffer ^ 1][i][n][thread];
        }
        // The gradient of h_n enters at a row's last step; in a row without frames, h_n is h0 (its last step is -1).
#pragma unroll
        for (int n = 0; n < TILES; n++)
            if (d_h_n && row[n] >= 0 && step == length[n] - 1) dh[n] += d_h_n[rows.state(row[n], unit)];
        if (step < 0) {
#pragma unroll
            for (int n = 0; n < TILES; n++)
                if (row[n] >= 0) {
                    d_h0[rows.state(row[n], unit)] = dh[n];
                    d_c0[rows.state(row[n], unit)] = dc[n];
                }
            break;
        }

#pragma unroll
        for (int n = 0; n < TILES; n++) {
            uint2 out = {0, 0}; // a row that has not begun yet (from its end) contributes nothing
            if (step < length[n]) {
                const float gate_i = low(saved[n].gates.x), gate_f = high(saved[n].gates.x);
                const float gate_g = low(saved[n].gates.y), gate_o = high(saved[n].gates.y);
                const float dh_all = dh[n] + widen(saved[n].d_output), tanh_c = tanh_fast(c[n]);
                dc[n] += dh_all * gate_o * (1.f - tanh_c * tanh_c);
                out.x = pack(round16(dc[n] * gate_g * gate_i * (1.f - gate_i)),
                             round16(dc[n] * saved[n].c_before * gate_f * (1.f - gate_f)));
                out.y = pack(round16(dc[n] * gate_i * (1.f - gate_g * gate_g)),
                             round16(dh_all * tanh_c * gate_o * (1.f - gate_o)));
                dc[n] *= gate_f;
                c[n] = saved[n].c_before;
                *(uint2*)(dgates + cell[n] * 4) = out;
                cell[n] -= stride;
            }
            ((uint2*)shared.dgates[buffer][n][own / 8])[place * 8 + own % 8] = out;
            if (step > 0) load(step - 1, n); // in flight under the product
        }
        block_barrier();

#pragma unroll
        for (int first = 0; first < TILES; first += TOGETHER) {
            float sum[TOGETHER][UNIT_TILES][4] = {};
#pragma unroll
            for (int k = 0; k < STEPS; k += 2)
#pragma unroll
                for (int n = 0; n < TOGETHER; n++) {
                    const uint4 v = shared.dgates[buffer][first + n][k / 2][lane];
#pragma unroll
                    for (int m = 0; m < UNIT_TILES; m++) weights.multiply(sum[n][m], k, m, v.x, v.y);
#pragma unroll
                    for (int m = 0; m < UNIT_TILES; m++) weights.multiply(sum[n][m], k + 1, m, v.z, v.w);
                }
#pragma unroll
            for (int i = 0; i < TOGETHER * UNIT_TILES; i++) {
                const int n = first + i / UNIT_TILES, m = i % UNIT_TILES;
                if ((EVERY_WARP_SENDS || tile_of(warp, m) < HIDDEN / 16) && n * ROWS + 2 * quad < rows.count) {
                    const float* s = sum[i / UNIT_TILES][m];
                    push16(far_parts[m] + buffer * (u32)sizeof(shared.parts[0]) +
                               n * (u32)sizeof(shared.parts[0][0][0]),
                           far_full[m] + buffer * (u32)sizeof(shared.full[0]),
                           uint4{__float_as_uint(s[0]), __float_as_uint(s[1]), __float_as_uint(s[2]),
                                 __float_as_uint(s[3])});
                }
            }
        }
    }
}
