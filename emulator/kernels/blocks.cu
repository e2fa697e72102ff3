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
