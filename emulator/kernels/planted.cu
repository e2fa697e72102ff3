// Kernels with one real-world bug each. Compiled with -DBUGGY they contain it; without, they are the
// fixed twin. The line where the emulator must report it ends in `// FINDS <kernel>`.
#include <cuda_bf16.h>

#ifdef BUGGY
#define PICK(buggy, fixed) buggy
#else
#define PICK(buggy, fixed) fixed
#endif

#define KERNEL extern "C" __global__ void
typedef unsigned u32;

KERNEL tail_off_by_one(const float *x, float *y, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (PICK(i <= n, i < n))
        y[i] = 2 * x[i]; // FINDS tail_off_by_one
}

KERNEL missing_barrier(const float *x, float *y) {
    __shared__ float s[256];
    u32 t = threadIdx.x, base = blockIdx.x * 256;
    s[t] = 0; // so that the race is found whatever the schedule, not a read of unwritten memory
    __syncthreads();
    s[t] = x[base + t]; // FINDS missing_barrier
    PICK(, __syncthreads());
    y[base + t] = s[255 - t]; // FINDS missing_barrier
}

KERNEL barrier_in_branch(const float *x, float *y) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];
    if (PICK(t < 40, true))
        __syncthreads(); // FINDS barrier_in_branch
    y[t] = t < 40 ? s[39 - t] : 0;
}

// Threads that return early do not hold the barrier up, but neither do they write their element.
KERNEL return_before_barrier(const float *x, float *y, u32 n) {
    __shared__ float s[128];
    u32 t = threadIdx.x, i = blockIdx.x * 128 + t;
    PICK(if (i >= n) return, );
    s[t] = i < n ? x[i] : 0;
    __syncthreads();
    if (i < n) y[i] = s[t] + s[127 - t]; // FINDS return_before_barrier
}

KERNEL half_shuffle_mask(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = x[i];
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(PICK(0xffffu, 0xffffffffu), v, o); // FINDS half_shuffle_mask
    y[i] = v;
}

KERNEL shuffle_in_branch(const float *x, float *y) {
    u32 t = threadIdx.x;
    float v = x[t];
    if (PICK(t % 32 < 16, true))
        v += __shfl_down_sync(0xffffffffu, v, 8); // FINDS shuffle_in_branch
    __syncthreads();
    y[t] = t % 32 < 16 ? v : 0;
}

KERNEL exited_lanes_shuffle(const float *x, float *y) {
    u32 t = threadIdx.x, lane = t % 32;
    if (PICK(lane >= 20, false)) return;
    float v = __shfl_down_sync(0xffffffffu, x[t], 4);
    y[t] = v; // FINDS exited_lanes_shuffle
}

KERNEL shuffle_passed_by(const float *x, float *y) {
    u32 t = threadIdx.x;
    float v = x[t];
    if (PICK(t % 32 < 16, true))
        v += __shfl_down_sync(0xffffffffu, v, 8); // FINDS shuffle_passed_by
    y[t] = t % 32 < 16 ? v : 0;
}

KERNEL vote_passed_by(const float *x, float *y) {
    u32 t = threadIdx.x, votes = 0;
    if (PICK(x[t] < 20, true))
        votes = __ballot_sync(0xffffffffu, t % 3 == 0); // FINDS vote_passed_by
    y[t] = __popc(votes);
}

KERNEL match_passed_by(const float *x, float *y) {
    u32 t = threadIdx.x, same = 0;
    if (PICK(t % 2 == 0, true))
        same = __match_any_sync(0xffffffffu, t % 32 / 8); // FINDS match_passed_by
    y[t] = __popc(same);
}

KERNEL reduction_passed_by(const float *x, float *y) {
    u32 t = threadIdx.x, sum = 0;
    if (PICK(t % 32 != 7, true))
        sum = __reduce_add_sync(0xffffffffu, t % 32); // FINDS reduction_passed_by
    y[t] = sum;
}

KERNEL syncwarp_passed_by(const float *x, float *y) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];
    if (PICK(t % 32 >= 8, true))
        __syncwarp(); // FINDS syncwarp_passed_by
    y[t] = s[t] + 1;
}

// Lanes leave the loop one by one, store and return; the others still name them.
KERNEL left_the_loop(const float *x, float *y) {
    u32 t = threadIdx.x, rounds = 0;
    float v = x[t];
#pragma unroll 1
    do {
        v = __shfl_xor_sync(0xffffffffu, v, 1); // FINDS left_the_loop
        rounds++;
    } while (PICK(rounds < t % 32 / 8 + 1, rounds < 4));
    y[t] = v;
}

KERNEL two_barriers_in_one_warp(const float *x, float *y) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    if (t % 2) {
        s[t] = x[t];
        PICK(__syncthreads(), ); // FINDS two_barriers_in_one_warp
    } else {
        s[t] = 2 * x[t];
        PICK(__syncthreads(), ); // FINDS two_barriers_in_one_warp
    }
    PICK(, __syncthreads());
    y[t] = s[63 - t];
}

KERNEL returned_in_a_branch(const float *x, float *y) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];
    if (t % 2) {
        float v = 3 * x[t ^ 1];
        if (PICK(v > 60, v > 1000)) return;
        s[t] = v;
    }
    __syncthreads(); // FINDS returned_in_a_branch
    y[t] = s[63 - t];
}

KERNEL wrote_and_returned(const float *x, float *y) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];
    if (PICK(t % 32 < 4, x[t] < 0)) {
        y[t] = 0;
        return;
    }
    __syncthreads(); // FINDS wrote_and_returned
    y[t] = s[t] + s[63 - t];
}

KERNEL stride_mix_up(const float *x, float *y, u32 rows, u32 cols) {
    u32 c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 8 + threadIdx.y;
    if (r < rows && c < cols)
        y[r * cols + c] = x[r * PICK(rows, cols) + c] + 1; // FINDS stride_mix_up
}

KERNEL shared_too_small(const float *x, float *y) {
    __shared__ float s[PICK(128, 256)];
    __shared__ float other[256];
    u32 t = threadIdx.x;
    other[t] = x[t];
    s[t] = 2 * x[t]; // FINDS shared_too_small
    __syncthreads();
    y[t] = s[255 - t] + other[t];
}

KERNEL dynamic_shared_in_elements(const float *x, float *y) {
    extern __shared__ float d[];
    u32 t = threadIdx.x;
    d[t] = x[t]; // FINDS dynamic_shared_in_elements
    __syncthreads();
    y[t] = d[255 - t];
}

KERNEL uninitialised_accumulator(const float *x, float *y, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += x[i]; // FINDS uninitialised_accumulator
}

KERNEL uninitialised_bins(const u32 *x, u32 *y) {
    __shared__ u32 bins[64];
    u32 t = threadIdx.x;
    PICK(, if (t < 64) bins[t] = 0);
    __syncthreads();
    atomicAdd(&bins[x[t] % 64], 1u); // FINDS uninitialised_bins
    __syncthreads();
    if (t < 64) y[t] = bins[t];
}

KERNEL uninitialised_local(const u32 *x, u32 *y, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 table[16];
    for (u32 k = 0; k < n; k++) table[k] = k * i;
    y[i] = table[x[i] % 16]; // FINDS uninitialised_local
}

KERNEL two_blocks_one_element(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    y[PICK(threadIdx.x, i)] = x[i]; // FINDS two_blocks_one_element
}

KERNEL stencil_in_place(float *x, float *y, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0 || i + 1 >= n) return;
    float v = x[i - 1] + x[i + 1]; // FINDS stencil_in_place
    PICK(x, y)[i] = v; // FINDS stencil_in_place
}

KERNEL exchange_through_global(float *x, float *y) {
    u32 t = threadIdx.x, base = blockIdx.x * 256;
    x[base + t] = t; // FINDS exchange_through_global
    PICK(, __syncthreads());
    y[base + t] = x[base + 255 - t]; // FINDS exchange_through_global
}

KERNEL stride_of_one_block(const float *x, float *y, u32 n) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += PICK(blockDim.x, gridDim.x * blockDim.x))
        y[i] = 3 * x[i]; // FINDS stride_of_one_block
}

KERNEL index_overflow(float *y, u32 first, u32 pitch) {
    u32 row = first + blockIdx.x; // unsigned: the compiler may widen signed products that overflow
    size_t at = PICK((size_t)(row * pitch), (size_t)row * pitch) + threadIdx.x;
    y[at] = threadIdx.x; // FINDS index_overflow
}

KERNEL misaligned_vector(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    float4 v = *(const float4 *)(x + 4 * i + PICK(1, 0)); // FINDS misaligned_vector
    y[i] = v.x + v.y + v.z + v.w;
}

KERNEL pair_tail(const __nv_bfloat16 *x, float *y, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (2 * i + PICK(0, 1) < n) {
        __nv_bfloat162 v = ((const __nv_bfloat162 *)x)[i]; // FINDS pair_tail
        y[i] = __bfloat162float(v.x) + __bfloat162float(v.y);
    }
}

KERNEL missing_syncwarp(const float *x, float *y) {
    __shared__ float s[128];
    u32 t = threadIdx.x;
    s[t] = x[t];
    PICK(, __syncwarp());
    y[t] = s[t ^ 1]; // FINDS missing_syncwarp
}

KERNEL buffer_reused_too_early(const float *x, float *y, u32 tiles) {
    __shared__ float s[128];
    u32 t = threadIdx.x;
    float sum = 0;
    for (u32 k = 0; k < tiles; k++) {
        s[t] = x[k * 128 + t]; // FINDS buffer_reused_too_early
        __syncthreads();
        sum += s[127 - t]; // FINDS buffer_reused_too_early
        PICK(, __syncthreads());
    }
    y[t] = sum;
}

KERNEL plain_read_of_counter(u32 *counter, u32 *y) {
    u32 ticket = threadIdx.x == 0 ? atomicAdd(counter, 1u) : 0; // FINDS plain_read_of_counter
    if (threadIdx.x == 0)
        y[blockIdx.x] = PICK(*(volatile u32 *)counter, ticket) < 100; // FINDS plain_read_of_counter
}

KERNEL write_to_constant(float *table, const float *x) {
    u32 t = threadIdx.x;
    table[t] = 2 * x[t]; // FINDS write_to_constant
}

KERNEL freed_input(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i] + 1; // FINDS freed_input
}

KERNEL null_output(const float *x, float *y, float *norms) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];
    if (PICK(true, norms != nullptr))
        norms[i] = x[i] * x[i]; // FINDS null_output
}

KERNEL barrier_count(const float *x, float *y) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    s[t] = x[t];
    asm volatile("bar.sync 1, %0;" ::"r"(PICK(96, 64)) : "memory"); // FINDS barrier_count
    y[t] = s[63 - t];
}

// Each block reads what the next one replaces, whole rows at a time.
KERNEL next_block_in_place(const float *x, float *y) {
    u32 i = blockIdx.x * 64 + threadIdx.x;
    y[i] = PICK(y, x)[(i + 64) % 256] + 1; // FINDS next_block_in_place
}

KERNEL uneven_barriers(float *y) {
    u32 warp = threadIdx.x / 32;
    float v = 0;
    for (u32 k = 0; k < PICK(warp + 1, 4); k++) {
        v += k;
        __syncthreads(); // FINDS uneven_barriers
    }
    y[threadIdx.x] = v;
}

KERNEL never_ends(u32 *y, u32 n) {
    u32 steps = 0;
    volatile u32 i = threadIdx.x;
    while (PICK(i != n, i < n)) { // FINDS never_ends
        i += 2;
        steps++;
    }
    y[threadIdx.x] = steps;
}

KERNEL checked_input(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (x[i] < PICK(1.0f, 0.0f)) __trap(); // FINDS checked_input
    y[i] = x[i];
}

KERNEL __launch_bounds__(128) too_many_threads(float *y) {
    y[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
}
