// Kernels whose blocks hear of each other. With -DBUGGY each has one bug, whose line ends in
// `// FINDS <kernel>`; without, it is the fixed twin.

#ifdef BUGGY
#define PICK(buggy, fixed) buggy
#else
#define PICK(buggy, fixed) fixed
#endif

#define KERNEL extern "C" __global__ void
typedef unsigned u32;

// The order of the additions decides the last bits.
KERNEL float_sums(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&y[threadIdx.x % 32], x[i]);
}

// Which block gets which ticket is the order in which blocks ran.
KERNEL tickets(u32 *counter, u32 *y) {
    __shared__ u32 ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(counter, 1u);
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = ticket;
}

// Many blocks write one element, each a different one first.
KERNEL blocks_collide(const float *x, float *y) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i] + 1;
    y[i ^ 256] = x[i] + 2;
}

// Block 0 has a message for the others.
KERNEL message_without_fence(float *data, u32 *flag, float *y) {
    u32 t = threadIdx.x;
    if (blockIdx.x == 0) {
        data[t] = 3 * t; // FINDS message_without_fence
        __syncthreads();
        PICK(, __threadfence());
        if (t == 0) atomicExch(flag, 1u);
        y[t] = 0;
        return;
    }
    if (t == 0)
        while (atomicAdd(flag, 0u) == 0) {}
    __threadfence();
    __syncthreads();
    y[blockIdx.x * blockDim.x + t] = data[t]; // FINDS message_without_fence
}

KERNEL message_block_fence(float *data, u32 *flag, float *y) {
    u32 t = threadIdx.x;
    if (blockIdx.x == 0) {
        data[t] = 3 * t; // FINDS message_block_fence
        __syncthreads();
        PICK(__threadfence_block(), __threadfence());
        if (t == 0) atomicExch(flag, 1u);
        y[t] = 0;
        return;
    }
    if (t == 0)
        while (atomicAdd(flag, 0u) == 0) {}
    __threadfence();
    __syncthreads();
    y[blockIdx.x * blockDim.x + t] = data[t]; // FINDS message_block_fence
}

KERNEL message_block_atomic(float *data, u32 *flag, float *y) {
    u32 t = threadIdx.x;
    if (blockIdx.x == 0) {
        data[t] = 3 * t;
        __syncthreads();
        __threadfence();
        if (t == 0) PICK(atomicExch_block, atomicExch)(flag, 1u); // FINDS message_block_atomic
        y[t] = 0;
        return;
    }
    if (t == 0)
        while (atomicAdd(flag, 0u) == 0) {} // FINDS message_block_atomic
    __threadfence();
    __syncthreads();
    y[blockIdx.x * blockDim.x + t] = data[t];
}

KERNEL message_not_acquired(float *data, u32 *flag, float *y) {
    u32 t = threadIdx.x;
    if (blockIdx.x == 0) {
        data[t] = 3 * t; // FINDS message_not_acquired
        __syncthreads();
        __threadfence();
        if (t == 0) atomicExch(flag, 1u);
        y[t] = 0;
        return;
    }
    while (atomicAdd(flag, 0u) == 0) {}
    PICK(, __threadfence());
    y[blockIdx.x * blockDim.x + t] = data[t]; // FINDS message_not_acquired
}

KERNEL message_by_release(float *data, u32 *flag, float *y) {
    u32 t = threadIdx.x, seen;
    if (blockIdx.x == 0) {
        data[t] = 3 * t; // FINDS message_by_release
        __syncthreads();
        if (t == 0) asm volatile(PICK("st.relaxed.gpu.global.u32 [%0], 1;", "st.release.gpu.global.u32 [%0], 1;") ::"l"(flag) : "memory");
        y[t] = 0;
        return;
    }
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    } while (seen == 0);
    y[blockIdx.x * blockDim.x + t] = data[t]; // FINDS message_by_release
}

// NVIDIA's sample threadFenceReduction: the block that comes last adds what the others left.
KERNEL last_block(const float *x, float *partial, u32 *count, float *y) {
    __shared__ bool last;
    u32 t = threadIdx.x;
    if (t == 0) {
        float sum = 0;
        for (u32 i = 0; i < blockDim.x; i++) sum += x[blockIdx.x * blockDim.x + i];
        partial[blockIdx.x] = sum; // FINDS last_block
        PICK(, __threadfence());
        last = atomicInc(count, gridDim.x) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && t < 32) {
        float sum = 0;
        for (u32 i = t; i < gridDim.x; i += 32) sum += partial[i]; // FINDS last_block
        for (u32 o = 16; o; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        if (t == 0) *y = sum;
    }
}

// Threads of one warp and of several blocks wait for each other.
KERNEL under_a_lock(u32 *lock, u32 *sum) {
    while (atomicCAS(lock, 0u, 1u) != 0u) {}
    PICK(, __threadfence());
    *sum = *sum + threadIdx.x; // FINDS under_a_lock
    PICK(, __threadfence());
    atomicExch(lock, 0u);
}

// Every block waits for all: they must be in flight together.
KERNEL barrier_of_blocks(float *data, u32 *count, float *y) {
    u32 t = threadIdx.x, next = (blockIdx.x + 1) % gridDim.x;
    data[blockIdx.x * blockDim.x + t] = blockIdx.x; // FINDS barrier_of_blocks
    __syncthreads();
    if (t == 0) {
        PICK(, __threadfence()); // after the barrier: for the writes of all threads
        atomicAdd(count, 1u);
        while (atomicAdd(count, 0u) < gridDim.x) {}
        __threadfence();
    }
    __syncthreads();
    y[blockIdx.x * blockDim.x + t] = data[next * blockDim.x + t]; // FINDS barrier_of_blocks
}

// Warps of one block, by a flag in shared memory.
KERNEL flag_in_shared(float *y) {
    __shared__ float s[32];
    __shared__ u32 flag;
    u32 t = threadIdx.x;
    if (t == 0) flag = 0;
    __syncthreads();
    if (t < 32) {
        s[t] = t; // FINDS flag_in_shared
        __syncwarp();
        PICK(, __threadfence_block());
        if (t == 0) atomicExch_block(&flag, 1u);
        y[t] = 0;
    } else {
        while (atomicAdd_block(&flag, 0u) == 0) {}
        __threadfence_block();
        y[t] = s[t % 32]; // FINDS flag_in_shared
    }
}

KERNEL waits_for_ever(u32 *flag, u32 *y) {
    if (blockIdx.x == 1 && threadIdx.x == 37) atomicExch(flag, 1u);
    if (threadIdx.x == 37)
        while (atomicAdd(flag, 0u) != PICK(2, 1)) {} // FINDS waits_for_ever
    y[blockIdx.x * blockDim.x + threadIdx.x] = threadIdx.x;
}

KERNEL same_value(float *y, u32 *z) {
    __shared__ volatile u32 s;
    if (PICK(true, threadIdx.x % 32 == 0)) {
        y[blockIdx.x] = 7; // FINDS same_value
        s = 3; // FINDS same_value
    }
    __syncthreads();
    z[blockIdx.x * blockDim.x + threadIdx.x] = s;
}

KERNEL other_values(float *y, u32 *z) {
    if (PICK(true, threadIdx.x == 0)) y[blockIdx.x] = threadIdx.x; // FINDS other_values
    z[blockIdx.x * blockDim.x + threadIdx.x] = 3;
}

KERNEL unwritten_or_race(const float *x, float *y) {
    __shared__ float s[256];
    u32 t = threadIdx.x, base = blockIdx.x * 256;
    s[t] = x[base + t]; // FINDS unwritten_or_race
    PICK(, __syncthreads());
    y[base + t] = s[255 - t]; // FINDS unwritten_or_race
}

KERNEL unwritten_or_race_global(const float *x, float *y, float *scratch) {
    u32 t = threadIdx.x, base = blockIdx.x * 256;
    scratch[base + t] = x[base + t]; // FINDS unwritten_or_race_global
    PICK(, __syncthreads());
    y[base + t] = scratch[base + 255 - t]; // FINDS unwritten_or_race_global
}
