// Norms: partial sums into what a matrix is multiplied with, and the global gradient norm.
#include "prelude.cuh"

// norm_finish
//   computes     per matrix: sum of its partials; finite <- whether it is finite and, where the direction is the update
//                (neither normalised nor CHECKED), its root at most largest; power * factor <-
//                1 / (safety * max(sqrt(sum), norm_floor)), power a power of two and factor in [1, 2); 1 and 1 for a
//                matrix that is not normalised
//   operands     matrices[grid], scalars[grid], partial in · norms[grid] out
//   launch       1-D; one block per matrix; block = 32 exactly; dynamic smem 0 B
//   alignment    natural
//   aliasing     none
//   traffic      8 B per tile
//   arithmetic   f64; each result rounds to f32 once
//   determinism  bitwise repeatable: lane l sums partials l, l + 32, ..., lanes in a fixed tree
//   edge cases   not finite: power and factor 0; a sum of 0 gives 1 / (safety * norm_floor)
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::norm_finish        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(32) norm_finish(
    const Matrix* matrices, const Scalars* scalars, const double* partial, Norm* norms) {
  const Matrix& m = matrices[blockIdx.x];
  const u32 first = m.first_tile, tiles = m.tiles;
  double sum = 0;
  for (u32 k = threadIdx.x; k < tiles; k += 32) sum += partial[first + k];
  sum = warp_sum(sum);
  if (threadIdx.x != 0) return;
  Norm norm = {0.0f, 0.0f, 0, 0};
  const double root = sqrt(sum);
  if (is_finite(sum) && (m.kind & (NORMALIZE | CHECKED) || root <= scalars[blockIdx.x].largest)) {
    norm = {1.0f, 1.0f, 1, 0};
    if (m.kind & NORMALIZE) {
      const double floor = m.norm_floor;
      const double inverse = 1.0 / (m.safety * (root > floor ? root : floor));
      const double power = __longlong_as_double(__double_as_longlong(inverse) & 0x7ff0000000000000ll);
      norm.power = (float)power;
      norm.factor = (float)(inverse / power);
    }
  }
  norms[blockIdx.x] = norm;
}

// update_check
//   computes     partial[b] <- largest magnitude in tile b of the result, NaN if there is one; 0 where the matrix is not CHECKED
//   operands     tile_matrix[grid], matrices in · result of the matrices in · partial[grid] out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where result is aligned, single elements elsewhere
//   aliasing     partial overlaps nothing
//   traffic      read 2 B per element of CHECKED matrices (16-bit iterate); runs where there are some
//   arithmetic   comparisons
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::update_check        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) update_check(
    const u32* tile_matrix, const Matrix* matrices, double* partial) {
  const u32 index = load_entry(tile_matrix, blockIdx.x);
  const Matrix& m = load_entry(matrices, index);
  if (!(m.kind & CHECKED)) {
    if (threadIdx.x == 0) partial[blockIdx.x] = 0;
    return;
  }
  const usize begin = (usize)(blockIdx.x - m.first_tile) * TILE, len = m.rows * m.cols;
  const usize n = len - begin < TILE ? len - begin : TILE;
  const u32 type = dtype(m.kind, ITERATE_SHIFT);
  const Operand result = at(m.result, type, begin);
  const Operand operands[1] = {result};
  // As integers magnitudes are in order, an infinity behind them and a NaN behind that.
  u32 largest = 0;
  const auto look = [&](float x) { largest = max(largest, __float_as_uint(x) & 0x7fffffffu); };
  for_segment(
      operands, n, [&](usize i) { look(load(result.base, i, type)); },
      [&](usize i) {
        float x[PACK];
        load_pack(result.base, i, type, x);
#pragma unroll
        for (u32 k = 0; k < PACK; ++k) look(x[k]);
      });
  largest = block_max(largest);
  if (threadIdx.x == 0) partial[blockIdx.x] = __uint_as_float(largest);
}

// update_verdict
//   computes     per matrix: finite <- finite and every partial of it is finite and at most largest
//   operands     matrices[grid], scalars[grid], partial in · norms[grid] in/out
//   launch       1-D; one block per matrix; block = 32 exactly; dynamic smem 0 B
//   alignment    natural
//   aliasing     none
//   traffic      8 B per tile
//   arithmetic   comparisons
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::update_verdict        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(32) update_verdict(
    const Matrix* matrices, const Scalars* scalars, const double* partial, Norm* norms) {
  const Matrix& m = matrices[blockIdx.x];
  const u32 first = m.first_tile, tiles = m.tiles;
  const double largest = scalars[blockIdx.x].largest;
  bool fits = true;
  for (u32 k = threadIdx.x; k < tiles; k += 32) {
    const double most = partial[first + k];
    fits = fits && is_finite(most) && most <= largest;
  }
  fits = __all_sync(0xffffffffu, fits);
  if (threadIdx.x == 0 && !fits) norms[blockIdx.x].finite = 0;
}

// gradient_sum
//   computes     partial[b] <- sum over tile b of (g * factor)^2
//   operands     tile_span[grid], spans, factor[1] in · grad of the spans in · partial[grid] out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where grad is aligned, single elements elsewhere
//   aliasing     partial overlaps nothing
//   traffic      read 2 B (bf16) or 4 B (f32) per element
//   arithmetic   the product f32, squares and sums f64
//   determinism  bitwise repeatable
//   edge cases   a NaN or an infinity makes the partial not finite
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::gradient_sum        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) gradient_sum(
    const u32* tile_span, const Span* spans, const float* factor, double* partial) {
  const u32 index = load_entry(tile_span, blockIdx.x);
  const Span& s = load_entry(spans, index);
  const u32 type = dtype(s.kind, GRAD_SHIFT);
  const float scale = load_entry(factor, 0);
  double sum = 0;
  const auto add = [&](float g) {
    const double x = g * scale;
    sum += x * x;
  };
  for_pieces(s, blockIdx.x - s.first_tile, [&](usize, usize strided, usize n) {
    const Operand grad = at(s.grad, type, strided);
    const Operand operands[1] = {grad};
    for_segment(
        operands, n, [&](usize i) { add(load(grad.base, i, type)); },
        [&](usize i) {
          float g[PACK];
          load_pack(grad.base, i, type, g);
#pragma unroll
          for (u32 k = 0; k < PACK; ++k) add(g[k]);
        });
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// span_finish
//   computes     sums[s] <- sum of the partials of span s
//   operands     spans[grid], partial in · sums[grid] out
//   launch       1-D; one block per span; block = 32 exactly; dynamic smem 0 B
//   alignment    natural
//   aliasing     none
//   traffic      8 B per tile
//   arithmetic   f64
//   determinism  bitwise repeatable
//   edge cases   not finite sums stay so
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::span_finish        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(32) span_finish(
    const Span* spans, const double* partial, double* sums) {
  const u32 first = spans[blockIdx.x].first_tile, tiles = spans[blockIdx.x].tiles;
  double sum = 0;
  for (u32 k = threadIdx.x; k < tiles; k += 32) sum += partial[first + k];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// clip_factor
//   computes     gradient_norm <- inverse_loss_scale * sqrt(sum of the finite sums); clip_factor <-
//                min(1, clip_norm / gradient_norm); grad_scale <- inverse_loss_scale * clip_factor
//   operands     sums[count] in · grad_scale[1], record[1] out
//   launch       1 block of 32 threads; dynamic smem 0 B
//   alignment    natural
//   aliasing     none
//   traffic      8 B per span
//   arithmetic   f64; the result rounds to f32 once
//   determinism  bitwise repeatable
//   edge cases   a span (a matrix, or a tensor of AdamW) that is not finite is left out: its own pass skips it
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::clip_factor        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(32) clip_factor(
    const double* sums, u32 count, double inverse_loss_scale, double clip_norm, float* grad_scale, Record* record) {
  double sum = 0;
  for (u32 k = threadIdx.x; k < count; k += 32) {
    if (is_finite(sums[k])) sum += sums[k];
  }
  const double norm = inverse_loss_scale * sqrt(warp_sum(sum));
  if (threadIdx.x != 0) return;
  const double factor = norm > clip_norm ? clip_norm / norm : 1.0;
  record->gradient_norm = norm;
  record->clip_factor = factor;
  *grad_scale = (float)(inverse_loss_scale * factor);
}
