// Pass B: decay and update of the parameters, step counts, master copies.
#include "prelude.cuh"

// Outcomes of a matrix in a step; 0 where it had no part in it.
constexpr u64 UPDATED = 1;
constexpr u64 SKIPPED = 2;

// update_apply
//   computes     p <- keep*p - step*x, with keep 1 where the decay is cautious and p and x have opposite signs; a matrix
//                that is not finite stays, is counted as skipped, and its outcome is SKIPPED, else UPDATED
//   operands     tile_matrix[grid], matrices, scalars, norms in · result of the matrices in · param, master, counters of the
//                matrices in/out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where result, param and master are aligned together, single elements elsewhere
//   aliasing     none of result, param, master overlap
//   traffic      read 6 B + write 4 B = 10 B per element (f32 parameter, 16-bit result)
//   arithmetic   f32, no fused multiply-add; a bf16 parameter is the rounded master, rounds at random, or to nearest
//   determinism  bitwise repeatable; random bits are a function of seed, step and index
//   edge cases   keep = 0 without caution does not read p: what it held does not matter, NaN included
//   resources    <= 80 registers, 0 spills
//   launcher     src/cuda/launch.rs::update_apply        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256, 3) update_apply(
    const u32* tile_matrix, const Matrix* matrices, const Scalars* scalars, const Norm* norms) {
  const u32 index = load_entry(tile_matrix, blockIdx.x);
  const Matrix& m = load_entry(matrices, index);
  const Scalars s = load_entry(scalars, index);
  const bool finite = load_entry(norms, index).finite;
  if (blockIdx.x == m.first_tile && threadIdx.x == 0) {
    m.counters[1 + m.matrix] += finite ? 0 : 1;
    m.counters[1 + m.matrices + m.matrix] = finite ? UPDATED : SKIPPED;
  }
  if (!finite) return;
  const u32 result_type = dtype(m.kind, ITERATE_SHIFT), param_type = dtype(m.kind, PARAM_SHIFT);
  const bool cautious = m.kind & CAUTIOUS, stochastic = m.kind & STOCHASTIC, has_master = m.master;
  const bool reads = s.keep != 0.0f || cautious;
  const u64 key = stochastic ? mix(m.random_key + m.counters[0]) : 0;
  for_pieces(m, blockIdx.x - m.first_tile, [&](usize dense, usize strided, usize n) {
    const Operand result = at(m.result, result_type, dense), param = at(m.param, param_type, strided);
    // Where there is a master copy it is what is updated, and the parameter is written from it.
    const Operand kept =
        at(has_master ? (const void*)m.master : m.param, has_master ? F32 : param_type, strided);
    const Operand operands[3] = {result, param, kept};
    const auto updated = [&](float p, float x) {
      const bool opposed = (p > 0.0f && x < 0.0f) || (p < 0.0f && x > 0.0f);
      const float keep = cautious && opposed ? 1.0f : s.keep;
      return (keep == 0.0f ? 0.0f : p * keep) - s.step * x;
    };
    for_segment(
        operands, n,
        [&](usize i) {
          float p = updated(reads ? load(kept.base, i, kept.type) : 0.0f, load(result.base, i, result_type));
          if (stochastic) p = round_stochastic(p, key, m.offset + strided + i);
          if (has_master) store((void*)kept.base, i, F32, p);
          store((void*)param.base, i, param_type, p);
        },
        [&](usize i) {
          float p[PACK] = {}, x[PACK];
          if (reads) load_pack(kept.base, i, kept.type, p);
          load_pack(result.base, i, result_type, x);
#pragma unroll
          for (u32 k = 0; k < PACK; ++k) {
            p[k] = updated(p[k], x[k]);
            if (stochastic) p[k] = round_stochastic(p[k], key, m.offset + strided + i + k);
          }
          if (has_master) store_pack((void*)kept.base, i, F32, p);
          store_pack((void*)param.base, i, param_type, p);
        });
  });
}

// step_finish
//   computes     per parameter: steps += 1 if the outcome of one of its matrices is UPDATED; outcomes <- 0;
//                skipped_matrices <- how many are SKIPPED
//   operands     counters[count] pointers in · matrices[count] in · the counters in/out · record[1] out
//   launch       1 block of 256 threads, each every 256th parameter; dynamic smem 0 B
//   alignment    natural
//   aliasing     no two counters overlap
//   traffic      16 B per matrix
//   arithmetic   integers; the skips are added as f64, exact below 2^53
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 48 registers, 0 spills
//   launcher     src/cuda/launch.rs::step_finish        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) step_finish(
    u64* const* counters, const u64* matrices, u32 count, Record* record) {
  double skipped = 0;
  for (u32 i = threadIdx.x; i < count; i += BLOCK) {
    u64* const c = counters[i];
    const u64 n = matrices[i];
    u64 updated = 0;
    for (u64 k = 0; k < n; ++k) {
      const u64 outcome = c[1 + n + k];
      updated |= outcome & UPDATED;
      skipped += outcome == SKIPPED ? 1.0 : 0.0;
      c[1 + n + k] = 0;
    }
    c[0] += updated;
  }
  skipped = block_sum(skipped);
  if (threadIdx.x == 0) record->skipped_matrices = (u64)skipped;
}

// master_fill
//   computes     master[i] <- param[i]
//   operands     param[len] bf16 in · master[len] f32 out
//   launch       1-D; any number of blocks; block = 256 exactly; dynamic smem 0 B
//   alignment    natural; consecutive threads access consecutive elements
//   aliasing     none
//   traffic      read 2 B + write 4 B per element, once in a parameter's life
//   arithmetic   exact
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 32 registers, 0 spills
//   launcher     src/cuda/launch.rs::master_fill        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) master_fill(const u16* param, float* master, u64 len) {
  const usize step = (usize)gridDim.x * BLOCK;
  for (usize i = (usize)blockIdx.x * BLOCK + threadIdx.x; i < len; i += step) {
    master[i] = bf16_to_f32(param[i]);
  }
}
