// A GPU's cluster on the host, for the unchanged kernels: every primitive that common.cuh names, as slow and as hostile
// as the rules allow. One fiber a thread, all blocks of a cluster at once.
//
//   - The scheduler picks warps at random and starves a block, a warp, or one warp of every block for a while.
//   - The network delivers pushes late and out of order, in bursts, and counts their bytes later than it lands them.
//   - Shared memory begins as NaN.
//   - Faults end the run with a message: a deadlock, an mbarrier used before it exists or is published, an arrival too
//     many, a push that is misaligned, out of bounds or into a block that has left, pushes in flight at the end.
//
// Sums have a fixed order in the kernels, so any difference between two schedules is a race. Not seen: speed, bank
// conflicts, the weakness of memory below 16 bytes, and whether the instructions exist.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <vector>

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef long long i64;
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
struct float4 { float x, y, z, w; };
struct OneDimension { int x; };

#define DEVICE inline
#define KERNEL extern "C" void
#define SHARED(type, name)                                                                                             \
    static_assert(sizeof(type) <= SHARED_LIMIT, "more shared memory than a block can have");                           \
    emulation::current->block->shared_size = sizeof(type);                                                             \
    type& name = *reinterpret_cast<type*>(emulation::current->block->shared)
#define threadIdx (OneDimension{emulation::current->thread})
#define blockIdx (OneDimension{emulation::current->block->index})

namespace emulation {

constexpr int BLOCK_THREADS = 8 * LSTM_UNITS, BLOCK_WARPS = BLOCK_THREADS / 32, STACK = 64 << 10;
constexpr u32 SHARED_LIMIT = 227 << 10;

struct Meeting { int arrived = 0; u64 generation = 0; };                 // a barrier of threads
struct MBarrier { long pending = 1, bytes = 0; u64 phase = 0; bool published = false; };
struct Warp {
    Meeting meeting;
    struct { float sum[4]; u32 a[4], b[2]; float result[4]; } lane[32];
};
struct Block {
    int index, left; // its number in the grid; threads that have returned
    u32 rank, shared_size;
    alignas(128) char shared[SHARED_LIMIT];
    std::map<u32, MBarrier> mbarriers; // by their offset in `shared`
    Meeting named[16];
    Warp warps[BLOCK_WARPS];
};
struct Fiber {
    ucontext_t context;
    char* stack = nullptr;
    Block* block;
    int thread;
    bool done;
    const u64* waits_on; // runs again when this is no longer `value`
    u64 value;
    bool ready() const { return !done && (!waits_on || *waits_on != value); }
};
struct Push { Block* to; u32 offset, mbarrier; uint4 data; bool landed; };

static std::vector<Block*> blocks;
static std::vector<Fiber> fibers;
static std::vector<Push> network;
static Meeting cluster;
static Fiber* current;
static ucontext_t scheduler;
static std::mt19937_64 random_bits;
static std::function<void()> kernel;
static const char* fault; // what ended the run, or null
static bool in_thread;    // a fiber runs, not the scheduler

// Ends the run: a thread is never scheduled again, the scheduler throws.
[[noreturn]] static void fail(const char* what) {
    fault = what;
    while (in_thread) swapcontext(&current->context, &scheduler);
    throw std::runtime_error(what);
}
static void wait_while(const u64* p, u64 value) {
    current->waits_on = p;
    current->value = value;
    while (*p == value) swapcontext(&current->context, &scheduler);
    current->waits_on = nullptr;
}
static void meet(Meeting& meeting, int threads) {
    const u64 generation = meeting.generation;
    if (++meeting.arrived == threads) {
        meeting.arrived = 0;
        meeting.generation++;
    } else {
        wait_while(&meeting.generation, generation);
    }
}
static MBarrier& mbarrier_of(Block* block, u32 offset) {
    auto found = block->mbarriers.find(offset);
    if (found == block->mbarriers.end()) fail("mbarrier used before it exists");
    return found->second;
}
static void end_phase(MBarrier& bar) {
    if (bar.pending < 0) fail("arrival beyond the phase");
    if (bar.pending || bar.bytes) return;
    bar.phase++;
    bar.pending = 1;
}
// The data of a push that is under way, or if they have landed their count.
static void deliver(size_t i) {
    Push push = network[i];
    network[i] = network.back();
    network.pop_back();
    if (push.to->left == BLOCK_THREADS) fail("push into a block that has left");
    if (!push.landed) {
        memcpy(push.to->shared + push.offset, &push.data, 16);
        push.landed = true;
        network.push_back(push);
        return;
    }
    MBarrier& bar = mbarrier_of(push.to, push.mbarrier);
    if (!bar.published) fail("push counted by an mbarrier that was never published");
    bar.bytes -= 16;
    end_phase(bar);
}
static void run_thread() {
    kernel();
    current->done = true;
    current->block->left++;
    swapcontext(&current->context, &scheduler);
}
static void start(int first_block, int count) {
    network.clear();
    cluster = Meeting();
    while ((int)blocks.size() < count) blocks.push_back(new Block);
    for (int i = 0; i < count; i++) {
        Block* block = blocks[i];
        block->index = first_block + i;
        block->rank = i;
        block->left = 0;
        block->mbarriers.clear();
        memset(block->shared, 0xff, sizeof block->shared); // NaN in every format
        std::fill(block->named, block->named + 16, Meeting());
        for (Warp& warp : block->warps) warp.meeting = Meeting();
    }
    if (fibers.size() < (size_t)count * BLOCK_THREADS) fibers.resize(count * BLOCK_THREADS);
    for (int i = 0; i < count * BLOCK_THREADS; i++) {
        Fiber& fiber = fibers[i];
        fiber.block = blocks[i / BLOCK_THREADS];
        fiber.thread = i % BLOCK_THREADS;
        fiber.done = false;
        fiber.waits_on = nullptr;
        if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_thread, 0);
    }
}

// Who is not scheduled for a while: warps are numbered through all blocks.
struct Starvation {
    int how = 0, whom = 0;
    u64 tick = 0, next = 0;
    void advance(int count) {
        if (tick++ != next) return;
        how = random_bits() % 4;
        whom = random_bits() % (how == 1 ? count : how == 2 ? count * BLOCK_WARPS : BLOCK_WARPS);
        next += 1 << (8 + random_bits() % 7);
    }
    bool holds(int warp) const { // a block; a warp; that warp of every block
        return (how == 1 && warp / BLOCK_WARPS == whom) || (how == 2 && warp == whom) ||
               (how == 3 && warp % BLOCK_WARPS == whom);
    }
};

// Runs one cluster under the schedule that `seed` stands for.
static void run_cluster(int first_block, int count, u64 seed) {
    random_bits.seed(seed);
    fault = nullptr;
    start(first_block, count);
    std::vector<int> live(count * BLOCK_WARPS);
    for (size_t i = 0; i < live.size(); i++) live[i] = i;
    Starvation starvation;
    size_t idle = 0; // turns in a row in which nothing ran
    while (!live.empty()) {
        starvation.advance(count);
        if (!network.empty() && random_bits() % 4 == 0)
            for (size_t n = 1 + network.size() / 32; n-- && !network.empty();) deliver(random_bits() % network.size());
        const size_t turn = random_bits() % live.size();
        const int warp = live[turn];
        if (starvation.holds(warp)) {
            if (++idle > live.size() * 4) starvation.how = idle = 0;
            continue;
        }
        bool ran = false, done = true;
        for (int lane = 0; lane < 32; lane++) {
            Fiber& fiber = fibers[warp * 32 + lane];
            if (fiber.ready()) {
                current = &fiber;
                in_thread = true;
                swapcontext(&scheduler, &fiber.context);
                in_thread = false;
                if (fault) fail(fault);
                ran = true;
            }
            done &= fiber.done;
        }
        if (done) {
            live[turn] = live.back();
            live.pop_back();
        }
        if (ran) {
            idle = 0;
            continue;
        }
        if (++idle < live.size() * 4) continue;
        idle = 0;
        if (!network.empty()) {
            deliver(random_bits() % network.size());
            continue;
        }
        bool stuck = true;
        for (int waiting : live)
            for (int lane = 0; lane < 32; lane++) stuck &= !fibers[waiting * 32 + lane].ready();
        if (stuck) fail("deadlock");
    }
    if (!network.empty()) fail("pushes still in flight at the end");
}

} // namespace emulation

DEVICE u32 shared_address(const void* p) { return (u32)((const char*)p - emulation::current->block->shared); }
DEVICE u32 cluster_rank() { return emulation::current->block->rank; }
DEVICE void block_barrier() { emulation::meet(emulation::current->block->named[0], emulation::BLOCK_THREADS); }
DEVICE void pair_barrier(int id) { emulation::meet(emulation::current->block->named[id], 64); }
DEVICE void cluster_barrier() { emulation::meet(emulation::cluster, LSTM_CLUSTER * emulation::BLOCK_THREADS); }
DEVICE void mbarrier_init(u32 bar) {
    if (bar % 8 || bar + 8 > emulation::current->block->shared_size) emulation::fail("misplaced mbarrier");
    emulation::current->block->mbarriers[bar] = emulation::MBarrier();
}
DEVICE void mbarrier_publish() {
    for (auto& entry : emulation::current->block->mbarriers) entry.second.published = true;
}
DEVICE void mbarrier_expect(u32 bar, u32 bytes) {
    auto& state = emulation::mbarrier_of(emulation::current->block, bar);
    state.bytes += bytes;
    state.pending--;
    emulation::end_phase(state);
}
DEVICE void mbarrier_wait(u32 bar, u32 parity) {
    auto& state = emulation::mbarrier_of(emulation::current->block, bar);
    const u64 phase = state.phase;
    if ((phase & 1) == parity) emulation::wait_while(&state.phase, phase);
}
DEVICE u32 peer_address(u32 address, u32 rank) { return address | rank << 24; }
DEVICE void push16(u32 to, u32 bar, uint4 data) {
    const u32 rank = to >> 24, offset = to & 0xffffff;
    if (rank != bar >> 24) emulation::fail("data and mbarrier of a push in different blocks");
    if (rank >= LSTM_CLUSTER || offset % 16 || offset + 16 > emulation::blocks[rank]->shared_size)
        emulation::fail("push out of bounds or misaligned");
    emulation::network.push_back({emulation::blocks[rank], offset, bar & 0xffffff, data, false});
}

DEVICE float __uint_as_float(u32 x) { float f; memcpy(&f, &x, 4); return f; }
DEVICE u32 __float_as_uint(float f) { u32 x; memcpy(&x, &f, 4); return x; }
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE float reciprocal_fast(float x) { return 1.f / x; }
DEVICE void prefetch(const void*) {}
#if LSTM_FP16
DEVICE u16 round16(float x) { _Float16 h = (_Float16)x; u16 r; memcpy(&r, &h, 2); return r; }
DEVICE float widen(u16 x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
#else
DEVICE u16 round16(float x) {
    const u32 bits = __float_as_uint(x);
    return x != x ? 0x7fff : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // to nearest, ties to even
}
DEVICE float widen(u16 x) { return __uint_as_float((u32)x << 16); }
#endif

// mma.m16n8k16 with the fragments as PTX lays them out. The last of the warp's lanes to arrive computes for all.
DEVICE void mma(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulation::Warp& warp = emulation::current->block->warps[emulation::current->thread / 32];
    auto& own = warp.lane[emulation::current->thread % 32];
    memcpy(own.sum, sum, sizeof own.sum);
    memcpy(own.a, a, sizeof own.a);
    own.b[0] = b0;
    own.b[1] = b1;
    const u64 generation = warp.meeting.generation;
    if (++warp.meeting.arrived < 32) {
        emulation::wait_while(&warp.meeting.generation, generation);
    } else {
        float A[16][16], B[16][8];
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < 4; r++)
                for (int e = 0; e < 2; e++) {
                    const int k = lane % 4 * 2 + e;
                    A[lane / 4 + 8 * (r % 2)][k + 8 * (r / 2)] = widen((u16)(warp.lane[lane].a[r] >> 16 * e));
                    if (r < 2) B[k + 8 * r][lane / 4] = widen((u16)(warp.lane[lane].b[r] >> 16 * e));
                }
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < 4; r++) {
                float s = warp.lane[lane].sum[r];
                for (int k = 0; k < 16; k++) s += A[lane / 4 + 8 * (r / 2)][k] * B[k][lane % 4 * 2 + r % 2];
                warp.lane[lane].result[r] = s;
            }
        warp.meeting.arrived = 0;
        warp.meeting.generation++;
    }
    memcpy(sum, own.result, sizeof own.result);
}
