// What the forward and the backward scan share: the shape, every PTX instruction behind a function, who does what.
//
// Macros that set the shape (a scan is compiled for one shape, see asr/lstm/cuda/launch.py):
//   LSTM_CLUSTER  thread blocks in a cluster (even, at most 16)
//   LSTM_UNITS    hidden units that a block owns (32, 40 or 48); it has 8 threads for each
//   LSTM_TILES    tiles of 8 batch rows that a cluster works on (1 or 2)
//   LSTM_FP16     1: the 16-bit numbers are fp16; 0: bf16
//   LSTM_PARTS    parts of a warp's weights that lie in shared memory, the others in registers; see Weights
//   LSTM_BOUNDED  (optional) a wait of more than 2 seconds ends in a trap, not in a hang
//   LSTM_HOST     (tests) the primitives come from a host emulation, tests/emulation/emulation.h
//
// No header of CUDA is included, so that NVRTC needs no include path.
#pragma once

constexpr int CLUSTER = LSTM_CLUSTER;
constexpr int TILES = LSTM_TILES;
constexpr int UNITS = LSTM_UNITS;       // hidden units of a block
constexpr int HIDDEN = UNITS * CLUSTER; // hidden units, padded: units that do not exist have zero weights and stay 0
constexpr int ROWS = 8;                 // batch rows of a tile: the N of mma.m16n8k16
constexpr int THREADS = ROWS * UNITS;   // one for each cell of a tile
constexpr int WARPS = THREADS / 32;
constexpr int PARTS_IN_SHARED = LSTM_PARTS;
constexpr unsigned SHARED_LIMIT = 227 << 10; // bytes a block, from compute capability 9.0 on
// Blocks that a thread sends to in forward.cu, and half of the blocks' tiles that a warp multiplies in backward.cu.
constexpr int PEERS = (CLUSTER + 7) / 8;
constexpr bool EVERY_WARP_SENDS = CLUSTER % 8 == 0;
static_assert(CLUSTER % 2 == 0 && CLUSTER <= 16, "a cluster is even, and devices hold 16 blocks at most");
static_assert(UNITS % 8 == 0 && HIDDEN % 64 == 0, "the two warps of a pair split the units in blocks of 32");
static_assert(TILES == 1 || TILES == 2, "registers hold the sums of at most two tiles");

#ifndef LSTM_HOST

typedef unsigned short u16; // a 16-bit floating-point number
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 1)
// The launcher asks for sizeof(type) bytes of dynamic shared memory; every block of a cluster has it at one offset.
#define SHARED(type, name)                                                                                             \
    static_assert(sizeof(type) <= SHARED_LIMIT, "more shared memory than a block can have");                           \
    extern __shared__ __align__(128) unsigned char shared_bytes[];                                                     \
    type& name = *reinterpret_cast<type*>(shared_bytes)

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE u32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }

DEVICE void block_barrier() { asm volatile("bar.sync 0;" ::: "memory"); }
DEVICE void pair_barrier(int id) { asm volatile("bar.sync %0, 64;" ::"r"(id) : "memory"); }
DEVICE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE void mbarrier_init(u32 bar) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar) : "memory"); }
DEVICE void mbarrier_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// The one arrival of a phase: it ends when `bytes` bytes have been pushed (some may have come before this call).
DEVICE void mbarrier_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Returns whether the phase of this parity has ended; may suspend the thread for a while.
// Its acquire has the scope of a block, which is how CUTLASS waits for bytes from other blocks: cluster scope would add
// an invalidation of L1 to every wait, and what is awaited lies in shared memory.
DEVICE bool mbarrier_try(u32 bar, u32 parity) {
    u32 done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(bar), "r"(parity) : "memory");
    return done;
}
DEVICE u64 nanoseconds() { u64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); return t; }
DEVICE void mbarrier_wait(u32 bar, u32 parity) {
#ifdef LSTM_BOUNDED
    const u64 start = nanoseconds();
    while (!mbarrier_try(bar, parity))
        if (nanoseconds() - start > 2000000000ull) asm volatile("trap;");
#else
    while (!mbarrier_try(bar, parity)) {}
#endif
}

// The address in block `rank` of the cluster that corresponds to `address` in this block.
DEVICE u32 peer_address(u32 address, u32 rank) {
    u32 r;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
    return r;
}
// 16 bytes to another block's shared memory; the mbarrier, in the same block, counts them when they have landed.
DEVICE void push16(u32 to, u32 bar, uint4 v) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%2,%3,%4,%5}, [%1];"
                 ::"r"(to), "r"(bar), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

#if LSTM_FP16
#define MMA_TYPE "f16"
DEVICE u16 round16(float x) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DEVICE float widen(u16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
#else
#define MMA_TYPE "bf16"
DEVICE u16 round16(float x) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DEVICE float widen(u16 x) { return __uint_as_float((u32)x << 16); }
#endif
// sum (16 x 8) += A (16 x 16) B (16 x 8). Volatile: all lanes must stay together, so it may not move into a branch.
DEVICE void mma(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float reciprocal_fast(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

#endif // LSTM_HOST

constexpr float LOG2_E = 1.4426950408889634f;
DEVICE float sigmoid(float x) { return reciprocal_fast(1.f + exp2_fast(-LOG2_E * x)); }
DEVICE float tanh_fast(float x) { return 1.f - 2.f * reciprocal_fast(1.f + exp2_fast(2.f * LOG2_E * x)); }

DEVICE u32 pack(u16 low, u16 high) { return (u32)low | (u32)high << 16; }
DEVICE float low(u32 pair) { return widen((u16)pair); }
DEVICE float high(u32 pair) { return widen((u16)(pair >> 16)); }

// A warp's weights, fragments of A: in registers but for the first PARTS_IN_SHARED parts, which are too many for them
// and are read from shared memory at each use. Each lane reads what it wrote itself, so that no barrier is needed.
template <int PARTS, int FRAGMENTS> struct Weights {
    static constexpr int KEPT = PARTS - PARTS_IN_SHARED;
    static_assert(KEPT > 0, "a part at least is kept in registers");
    // Not empty where all is in registers: C++ has no empty arrays.
    struct Rest { uint4 at[PARTS_IN_SHARED ? PARTS_IN_SHARED * FRAGMENTS : 1][PARTS_IN_SHARED ? THREADS : 1]; };

    u32 kept[KEPT][FRAGMENTS][4];
    Rest& rest;

    DEVICE Weights(Rest& rest) : rest(rest) {}
    DEVICE void set(int part, int fragment, uint4 v) {
        if (part < PARTS_IN_SHARED) {
            rest.at[part * FRAGMENTS + fragment][threadIdx.x] = v;
        } else {
            u32(&a)[4] = kept[part - PARTS_IN_SHARED][fragment];
            a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
        }
    }
    // sum += the fragment times B
    DEVICE void multiply(float (&sum)[4], int part, int fragment, u32 b0, u32 b1) const {
        if (part < PARTS_IN_SHARED) {
            const uint4 v = rest.at[part * FRAGMENTS + fragment][threadIdx.x];
            const u32 a[4] = {v.x, v.y, v.z, v.w};
            mma(sum, a, b0, b1);
        } else {
            mma(sum, kept[part - PARTS_IN_SHARED][fragment], b0, b1);
        }
    }
};

// The rows of a batch and how they are shared out. Arguments of both kernels, as scalars in this order:
//   order      (batch) the rows sorted by length, longest first
//   lengths    (batch) valid frames of each row; what lies outside 0..frames is cut to it
//   frames, batch, directions, groups
// Cluster number `c` works on direction c % directions of group c / directions: long rows start first.
#define ROWS_PARAMETERS const i64 *order, const i64 *lengths, int frames, int batch, int directions, int groups
struct Rows {
    const i64 *order, *lengths;
    int frames, batch, directions;
    int direction, first, count; // of this cluster: its rows are order[first], ..., order[first + count - 1]
    int steps;                   // frames of its longest row

    DEVICE Rows(ROWS_PARAMETERS)
        : order(order), lengths(lengths), frames(frames), batch(batch), directions(directions) {
        const int cluster = blockIdx.x / CLUSTER, group = cluster / directions;
        direction = cluster % directions;
        first = (int)((i64)group * batch / groups);
        count = (int)((i64)(group + 1) * batch / groups) - first;
        steps = 0;
        for (int i = 0; i < count; i++) {
            const int length = length_of(row(i));
            steps = length > steps ? length : steps;
        }
    }
    DEVICE int row(int i) const { return i < count ? (int)order[first + i] : -1; } // -1: there is no such row
    DEVICE int length_of(int row) const {
        if (row < 0) return 0;
        const i64 length = lengths[row];
        return length < 0 ? 0 : length > frames ? frames : (int)length;
    }
    // Index of a unit at time t in what is laid out (frames, batch, directions, HIDDEN).
    DEVICE i64 at(int t, int row, int unit) const {
        return (((i64)t * batch + row) * directions + direction) * HIDDEN + unit;
    }
    // Index of a unit in a state, (directions, batch, HIDDEN).
    DEVICE i64 state(int row, int unit) const { return ((i64)direction * batch + row) * HIDDEN + unit; }
    // Step 0 of a row is its first frame; in the reverse direction its last *valid* one. Padding is never visited.
    DEVICE int first_frame(int length) const { return direction ? length - 1 : 0; }
    DEVICE int last_frame(int length) const { return direction ? 0 : length - 1; }
    // From a step to the next one, in what `at` indexes.
    DEVICE i64 stride() const { return (i64)(direction ? -1 : 1) * batch * directions * HIDDEN; }
};
