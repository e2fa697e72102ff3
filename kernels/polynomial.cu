// Pieces of a recipe that are no product: the AOL preconditioner.
#include "prelude.cuh"

// aol_factors
//   computes     factor[i] <- 1 / sqrt(max(sum_j |r_ij|, smallest normal f32))
//   operands     r[batch][n][n] in · factor[batch][n] f32 out; row-major, matrices of r `stride` elements apart
//   launch       2-D; x = rows, y = batch; block = 256 exactly; dynamic smem 0 B
//   alignment    natural; consecutive threads read consecutive elements
//   aliasing     none
//   traffic      read 2 B per element, 16 bit
//   arithmetic   magnitudes summed in f64, the result rounded to f32 once
//   determinism  bitwise repeatable
//   edge cases   a zero row gives a large finite factor; its elements stay 0
//   resources    <= 40 registers, 0 spills
//   launcher     src/cuda/launch.rs::aol_factors        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) aol_factors(
    const void* r, float* factor, u32 n, u64 stride, u32 type) {
  const usize row = (usize)blockIdx.y * stride + (usize)blockIdx.x * n;
  double sum = 0;
  for (u32 j = threadIdx.x; j < n; j += BLOCK) sum += fabsf(load(r, row + j, type));
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    const double floor = 1.1754943508222875e-38;
    factor[(usize)blockIdx.y * n + blockIdx.x] = (float)(1.0 / sqrt(sum > floor ? sum : floor));
  }
}

// aol_scale
//   computes     a_ij <- a_ij * (f_i * f_j), either factor left out as `by` says (1 rows, 2 columns, 3 both)
//   operands     a[batch][rows][cols] in/out · factor[batch][n] f32 in; row-major, matrices of a `stride` elements apart
//   launch       2-D; x = any number of blocks, y = batch; block = 256 exactly; dynamic smem 0 B
//   alignment    natural; consecutive threads access consecutive elements
//   aliasing     none
//   traffic      read 2 B + write 2 B per element, 16 bit
//   arithmetic   f32, rounded to the type once; the factors first, so that what is symmetric stays so to the bit
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 40 registers, 0 spills
//   launcher     src/cuda/launch.rs::aol_scale        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) aol_scale(
    void* a, const float* factor, u64 rows, u64 cols, u32 n, u64 stride, u32 by, u32 type) {
  const usize base = (usize)blockIdx.y * stride;
  const float* const f = factor + (usize)blockIdx.y * n;
  const usize step = (usize)gridDim.x * BLOCK, len = rows * cols;
  for (usize i = (usize)blockIdx.x * BLOCK + threadIdx.x; i < len; i += step) {
    float scale = 1.0f;
    if (by & 1) scale = f[i / cols];
    if (by & 2) scale *= f[i % cols];
    store(a, base + i, type, load(a, base + i, type) * scale);
  }
}
