// Symmetric products: the lower triangle of a cuBLAS result, completed and mirrored.
#include "prelude.cuh"

// Side of the square of elements that one block completes; 16 threads of a pack each make a row.
constexpr u32 SIDE = 64;

// Row and column, in squares, of lower-triangle square number `square`.
__device__ inline void lower_square(u32 square, u32& row, u32& col) {
  row = (u32)((sqrtf(8.0f * (float)square + 1.0f) - 1.0f) * 0.5f);
  while ((u64)(row + 1) * (row + 2) / 2 <= square) ++row;
  while ((u64)row * (row + 1) / 2 > square) --row;
  col = square - (u32)((u64)row * (row + 1) / 2);
}

// A pack of a row from column `col`; elements from `n` on are 0. One access if `aligned`.
__device__ inline void load_row(const void* base, usize i, u32 type, u32 col, u32 n, bool aligned,
                                float (&x)[PACK]) {
  if (aligned && col + PACK <= n) {
    load_pack(base, i, type, x);
    return;
  }
#pragma unroll
  for (u32 k = 0; k < PACK; ++k) x[k] = col + k < n ? load(base, i + k, type) : 0.0f;
}

__device__ inline void store_row(void* base, usize i, u32 type, u32 col, u32 n, bool aligned,
                                 const float (&x)[PACK]) {
  if (aligned && col + PACK <= n) {
    store_pack(base, i, type, x);
    return;
  }
#pragma unroll
  for (u32 k = 0; k < PACK; ++k) {
    if (col + k < n) store(base, i + k, type, x[k]);
  }
}

// The square from shared memory to its mirrored place and, if LOWER, to its own; on the diagonal its lower triangle is
// mirrored in itself.
template <bool LOWER>
__device__ inline void store_mirrored(const float (&square)[SIDE][SIDE + 1], void* out, usize base, u32 n,
                                      u32 row0, u32 col0, u32 type, bool aligned) {
  for (u32 t = threadIdx.x; t < SIDE * SIDE / PACK; t += BLOCK) {
    const u32 r = t / (SIDE / PACK), c = t % (SIDE / PACK) * PACK;
    float x[PACK];
    if ((LOWER || row0 == col0) && row0 + r < n && col0 + c < n) {
#pragma unroll
      for (u32 k = 0; k < PACK; ++k) {
        const bool upper = row0 == col0 && c + k > r;
        x[k] = upper ? square[c + k][r] : square[r][c + k];
      }
      store_row(out, base + (usize)(row0 + r) * n + col0 + c, type, col0 + c, n, aligned, x);
    }
    if (row0 != col0 && col0 + r < n && row0 + c < n) {
#pragma unroll
      for (u32 k = 0; k < PACK; ++k) x[k] = square[c + k][r];
      store_row(out, base + (usize)(col0 + r) * n + row0 + c, type, row0 + c, n, aligned, x);
    }
  }
}

// symmetric_complete
//   computes     out <- product + beta*c + gamma*d, rounded once; lower triangle formed, then mirrored
//   operands     product[batch][n][n] f32 in · c, d[batch][n][n] in · out[batch][n][n] out; row-major, matrices of c, d and
//                out `stride` elements apart, those of product `product_stride`
//   launch       2-D; x = squares of 64 in the lower triangle, y = batch; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where n is a multiple of 4 and the buffers are aligned, single elements elsewhere
//   aliasing     out may be neither c, d nor product
//   traffic      half of 8 B read + 4 B written per element, 16 bit
//   arithmetic   (product + beta*c) + gamma*d in f32, no fused multiply-add
//   determinism  bitwise repeatable; out is symmetric to the bit
//   edge cases   gamma = 0 still reads d
//   resources    <= 64 registers, 0 spills
//   launcher     src/cuda/launch.rs::symmetric_complete        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256, 4) symmetric_complete(
    const float* product, const void* c, const void* d, void* out, u32 n, u64 product_stride, u64 stride,
    float beta, float gamma, u32 type) {
  __shared__ float square[SIDE][SIDE + 1];
  u32 row, col;
  lower_square(blockIdx.x, row, col);
  const u32 row0 = row * SIDE, col0 = col * SIDE;
  const usize base = (usize)blockIdx.y * stride, product_base = (usize)blockIdx.y * product_stride;
  const bool aligned = n % PACK == 0 && stride % PACK == 0 && product_stride % PACK == 0 &&
                       ((usize)product | (usize)c | (usize)d | (usize)out) % 16 == 0;
  for (u32 t = threadIdx.x; t < SIDE * SIDE / PACK; t += BLOCK) {
    const u32 r = t / (SIDE / PACK), k0 = t % (SIDE / PACK) * PACK;
    // A square over the edge is filled with zeros: its mirror image reads whole packs of it.
    const u32 end = row0 + r < n ? n : 0;
    const usize i = (usize)(row0 + r) * n + col0 + k0;
    float p[PACK], x[PACK], y[PACK];
    load_row(product, product_base + i, F32, col0 + k0, end, aligned, p);
    load_row(c, base + i, type, col0 + k0, end, aligned, x);
    load_row(d, base + i, type, col0 + k0, end, aligned, y);
#pragma unroll
    for (u32 k = 0; k < PACK; ++k) square[r][k0 + k] = (p[k] + beta * x[k]) + gamma * y[k];
  }
  __syncthreads();
  store_mirrored<true>(square, out, base, n, row0, col0, type, aligned);
}

// symmetric_mirror
//   computes     out's upper triangle <- its lower triangle
//   operands     out[batch][n][n] in/out; row-major, matrices `stride` elements apart
//   launch       2-D; x = squares of 64 in the lower triangle, y = batch; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where n is a multiple of 4 and out is aligned, single elements elsewhere
//   aliasing     none
//   traffic      half of 2 B read + 2 B written per element, 16 bit
//   arithmetic   none
//   determinism  bitwise repeatable; out is symmetric to the bit
//   edge cases   none
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::symmetric_mirror        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) symmetric_mirror(
    void* out, u32 n, u64 stride, u32 type) {
  __shared__ float square[SIDE][SIDE + 1];
  u32 row, col;
  lower_square(blockIdx.x, row, col);
  const u32 row0 = row * SIDE, col0 = col * SIDE;
  const usize base = (usize)blockIdx.y * stride;
  const bool aligned = n % PACK == 0 && stride % PACK == 0 && (usize)out % 16 == 0;
  for (u32 t = threadIdx.x; t < SIDE * SIDE / PACK; t += BLOCK) {
    const u32 r = t / (SIDE / PACK), k0 = t % (SIDE / PACK) * PACK;
    const u32 end = row0 + r < n ? n : 0;
    float x[PACK];
    load_row(out, base + (usize)(row0 + r) * n + col0 + k0, type, col0 + k0, end, aligned, x);
#pragma unroll
    for (u32 k = 0; k < PACK; ++k) square[r][k0 + k] = x[k];
  }
  __syncthreads();
  store_mirrored<false>(square, out, base, n, row0, col0, type, aligned);
}
