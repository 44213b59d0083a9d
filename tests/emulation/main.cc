// One kernel under emulation, as a library for emulator.py. KERNEL_FILE names the kernel; BACKWARD says which it is.
#define LSTM_HOST
#include "emulation.h"
#include KERNEL_FILE

#define ROWS_ARGUMENTS order, lengths, frames, batch, directions, groups

// Returns what went wrong, or null.
static const char* run_clusters(int clusters, u64 seed) {
    try {
        for (int i = 0; i < clusters; i++) emulation::run_cluster(i * CLUSTER, CLUSTER, seed * 1000 + i);
    } catch (const std::runtime_error&) {
    }
    return emulation::fault;
}

extern "C" {
int shared_size() { return sizeof(Shared); }

#ifdef BACKWARD
const char* run(int clusters, u64 seed, const u16* weight_hh, const u16* gates, const float* cells,
                const u16* d_output, const float* c0, const float* d_h_n, const float* d_c_n, u16* dgates, float* d_h0,
                float* d_c0, ROWS_PARAMETERS) {
    emulation::kernel = [=] {
        lstm_backward(weight_hh, gates, cells, d_output, c0, d_h_n, d_c_n, dgates, d_h0, d_c0, ROWS_ARGUMENTS);
    };
    return run_clusters(clusters, seed);
}
#else
const char* run(int clusters, u64 seed, const u16* weight_hh, u16* gates, float* cells, u16* output, const u16* h0,
                const float* c0, u16* h_n, float* c_n, ROWS_PARAMETERS) {
    emulation::kernel = [=] {
        lstm_forward(weight_hh, gates, cells, output, h0, c0, h_n, c_n, ROWS_ARGUMENTS);
    };
    return run_clusters(clusters, seed);
}
#endif
}
