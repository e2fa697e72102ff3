// Pass A: gradient and momentum into a direction, its sum of squares, and the normalised iterate.
#include "prelude.cuh"

// The new momentum of one element, as it is stored.
__device__ inline float blend(float g, float m, const Scalars& s, u32 momentum_type) {
  const float x = s.momentum * m + s.gain * g;
  return momentum_type == F32 ? x : bf16_to_f32(f32_to_bf16(x));
}

// What L2 decay adds to the gradients of a matrix: the parameter, or its master copy once it was made. Where nothing is added,
// the gradients themselves, which are then not read for it.
__device__ inline Operand weights_of(const Matrix& m, const Operand& grad, usize strided) {
  if (!(m.kind & L2)) return grad;
  return m.kind & L2_MASTER ? at(m.master, F32, strided) : at(m.param, dtype(m.kind, PARAM_SHIFT), strided);
}

// The direction of one element, from the momentum as it is stored.
__device__ inline float direction(float g, float m, const Scalars& s, bool nesterov) {
  return nesterov ? s.gain * g + s.momentum * m : m;
}

// direction_scan
//   computes     partial[b] <- sum over tile b of d*d, with m' = momentum*m + gain*g and d = m' or, with Nesterov,
//                gain*g + momentum*m'; g is the gradient times grad_scale, with L2 plus l2 * (master or param)
//   operands     tile_matrix[grid], matrices, scalars, grad_scale[1] in · grad, momentum, param, master of the matrices in ·
//                partial[grid] out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where grad and momentum are aligned together, single elements elsewhere
//   aliasing     partial overlaps nothing
//   traffic      read 6 B per element (bf16 gradient, f32 momentum), with L2 4 B more
//   arithmetic   f32, no fused multiply-add; squares and sums f64: no overflow for any f32, exact under powers of two
//   determinism  bitwise repeatable; partials depend on the matrix alone
//   edge cases   a NaN or an infinity makes the partial not finite
//   resources    <= 64 registers, 0 spills
//   launcher     src/cuda/launch.rs::direction_scan        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256, 4) direction_scan(
    const u32* tile_matrix, const Matrix* matrices, const Scalars* scalars, const float* grad_scale,
    double* partial) {
  const u32 index = load_entry(tile_matrix, blockIdx.x);
  const Matrix& m = load_entry(matrices, index);
  const Scalars s = load_entry(scalars, index);
  const float scale = load_entry(grad_scale, 0);
  const u32 grad_type = dtype(m.kind, GRAD_SHIFT), momentum_type = dtype(m.kind, MOMENTUM_SHIFT);
  const bool nesterov = m.kind & NESTEROV, decays = m.kind & L2;
  double sum = 0;
  for_pieces(m, blockIdx.x - m.first_tile, [&](usize, usize strided, usize n) {
    const Operand grad = at(m.grad, grad_type, strided), momentum = at(m.momentum, momentum_type, strided);
    const Operand weights = weights_of(m, grad, strided);
    const Operand operands[3] = {grad, momentum, weights};
    const auto add = [&](float g, float old, float w) {
      g *= scale;
      if (decays) g += s.l2 * w;
      const double d = direction(g, blend(g, old, s, momentum_type), s, nesterov);
      sum += d * d;
    };
    for_segment(
        operands, n,
        [&](usize i) {
          const float w = decays ? load(weights.base, i, weights.type) : 0.0f;
          add(load(grad.base, i, grad_type), load(momentum.base, i, momentum_type), w);
        },
        [&](usize i) {
          float g[PACK], old[PACK], w[PACK] = {};
          load_pack(grad.base, i, grad_type, g);
          load_pack(momentum.base, i, momentum_type, old);
          if (decays) load_pack(weights.base, i, weights.type, w);
#pragma unroll
          for (u32 k = 0; k < PACK; ++k) add(g[k], old[k], w[k]);
        });
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// momentum_blend
//   computes     m <- m', where the matrix is not CHECKED;  x <- (d * power) * factor, rounded to the iterate's type;
//                where the matrix is not finite x <- 0 and m stays
//   operands     tile_matrix[grid], matrices, scalars, norms, grad_scale[1] in · grad, param, master of the matrices in ·
//                momentum of the matrices in/out · iterate of the matrices out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where grad, momentum and iterate are aligned together, single elements elsewhere
//   aliasing     none of grad, momentum, iterate overlap
//   traffic      read 6 B + write 6 B = 12 B per element (bf16 gradient and iterate, f32 momentum), with L2 4 B more
//   arithmetic   f32, no fused multiply-add; power is a power of two, so x rounds once beyond the factor's product
//   determinism  bitwise repeatable
//   edge cases   a zero matrix stays zero; a norm below norm_floor is divided by norm_floor
//   resources    <= 64 registers, 0 spills
//   launcher     src/cuda/launch.rs::momentum_blend        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256, 4) momentum_blend(
    const u32* tile_matrix, const Matrix* matrices, const Scalars* scalars, const Norm* norms,
    const float* grad_scale) {
  const u32 index = load_entry(tile_matrix, blockIdx.x);
  const Matrix& m = load_entry(matrices, index);
  const Scalars s = load_entry(scalars, index);
  const Norm norm = load_entry(norms, index);
  const float scale = load_entry(grad_scale, 0);
  const u32 grad_type = dtype(m.kind, GRAD_SHIFT), momentum_type = dtype(m.kind, MOMENTUM_SHIFT);
  const u32 iterate_type = dtype(m.kind, ITERATE_SHIFT);
  const bool nesterov = m.kind & NESTEROV, commits = !(m.kind & CHECKED), decays = m.kind & L2;
  for_pieces(m, blockIdx.x - m.first_tile, [&](usize dense, usize strided, usize n) {
    const Operand grad = at(m.grad, grad_type, strided), momentum = at(m.momentum, momentum_type, strided);
    const Operand iterate = at(m.iterate, iterate_type, dense);
    const Operand weights = weights_of(m, grad, strided);
    const Operand operands[4] = {grad, momentum, iterate, weights};
    void* const x = (void*)iterate.base;
    void* const m_new = (void*)momentum.base;
    if (!norm.finite) {
      const float zeros[PACK] = {};
      for_segment(
          operands, n, [&](usize i) { store(x, i, iterate_type, 0.0f); },
          [&](usize i) { store_pack(x, i, iterate_type, zeros); });
      return;
    }
    const auto one = [&](float g, float& old, float w) {
      g *= scale;
      if (decays) g += s.l2 * w;
      old = blend(g, old, s, momentum_type);
      return (direction(g, old, s, nesterov) * norm.power) * norm.factor;
    };
    for_segment(
        operands, n,
        [&](usize i) {
          float old = load(momentum.base, i, momentum_type);
          const float w = decays ? load(weights.base, i, weights.type) : 0.0f;
          const float y = one(load(grad.base, i, grad_type), old, w);
          if (commits) store(m_new, i, momentum_type, old);
          store(x, i, iterate_type, y);
        },
        [&](usize i) {
          float g[PACK], old[PACK], w[PACK] = {};
          load_pack(grad.base, i, grad_type, g);
          load_pack(momentum.base, i, momentum_type, old);
          if (decays) load_pack(weights.base, i, weights.type, w);
#pragma unroll
          for (u32 k = 0; k < PACK; ++k) g[k] = one(g[k], old[k], w[k]);
          if (commits) store_pack(m_new, i, momentum_type, old);
          store_pack(x, i, iterate_type, g);
        });
  });
}

// momentum_commit
//   computes     m <- m' of the CHECKED matrices that are finite, after their update was looked at; the others stay
//   operands     tile_matrix[grid], matrices, scalars, norms, grad_scale[1] in · grad, param, master of the matrices in ·
//                momentum of the matrices in/out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where grad and momentum are aligned together, single elements elsewhere
//   aliasing     none of grad, momentum overlap
//   traffic      read 6 B + write 4 B = 10 B per element of CHECKED matrices (bf16 gradient, f32 momentum), with L2 4 B more
//   arithmetic   f32, no fused multiply-add: the bits of momentum_blend
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 64 registers, 0 spills
//   launcher     src/cuda/launch.rs::momentum_commit        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) momentum_commit(
    const u32* tile_matrix, const Matrix* matrices, const Scalars* scalars, const Norm* norms,
    const float* grad_scale) {
  const u32 index = load_entry(tile_matrix, blockIdx.x);
  const Matrix& m = load_entry(matrices, index);
  if (!(m.kind & CHECKED) || !load_entry(norms, index).finite) return;
  const Scalars s = load_entry(scalars, index);
  const float scale = load_entry(grad_scale, 0);
  const u32 grad_type = dtype(m.kind, GRAD_SHIFT), momentum_type = dtype(m.kind, MOMENTUM_SHIFT);
  const bool decays = m.kind & L2;
  for_pieces(m, blockIdx.x - m.first_tile, [&](usize, usize strided, usize n) {
    const Operand grad = at(m.grad, grad_type, strided), momentum = at(m.momentum, momentum_type, strided);
    const Operand weights = weights_of(m, grad, strided);
    const Operand operands[3] = {grad, momentum, weights};
    void* const m_new = (void*)momentum.base;
    const auto one = [&](float g, float old, float w) {
      g *= scale;
      if (decays) g += s.l2 * w;
      return blend(g, old, s, momentum_type);
    };
    for_segment(
        operands, n,
        [&](usize i) {
          const float old = load(momentum.base, i, momentum_type);
          const float w = decays ? load(weights.base, i, weights.type) : 0.0f;
          store(m_new, i, momentum_type, one(load(grad.base, i, grad_type), old, w));
        },
        [&](usize i) {
          float g[PACK], old[PACK], w[PACK] = {};
          load_pack(grad.base, i, grad_type, g);
          load_pack(momentum.base, i, momentum_type, old);
          if (decays) load_pack(weights.base, i, weights.type, w);
#pragma unroll
          for (u32 k = 0; k < PACK; ++k) old[k] = one(g[k], old[k], w[k]);
          store_pack(m_new, i, momentum_type, old);
        });
  });
}
