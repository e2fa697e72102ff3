// AdamW for what is not a hidden matrix.
#include "prelude.cuh"

// 2^126: below it the sum of squares of a gradient leaves the second moment finite (src/limits.rs).
constexpr double LARGEST_SQUARE = 85070591730234615865843651857942052864.0;

// One tensor.
struct Tensor {
  const void* grad;
  float* exp_avg;
  float* exp_avg_sq;
  void* param;
  float* master;      // null where there is none
  u64* counters;      // steps, skips
  u64 len;
  u64 random_key;     // of stochastic rounding, without the step
  u32 first_tile;
  u32 tiles;
  u32 kind;
  u32 reserved;
};

// The scalars of one tensor in one step.
struct AdamWScalars {
  double lr;
  double beta1;
  double beta2;
  float eps;
  float keep;
};

// What adamw_prepare makes of them.
struct AdamWStep {
  u64 random_key;
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float step;             // lr / (1 - beta1^t)
  float root_correction;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float keep;
  u32 finite;
  u32 reserved;
};

// x^t by repeated squaring, in the order of the CPU device.
__device__ inline double power(double x, u64 t) {
  double result = 1.0;
  for (;;) {
    if (t & 1) result *= x;
    t /= 2;
    if (t == 0) return result;
    x *= x;
  }
}

// adamw_prepare
//   computes     per tensor: finite <- whether sums is below LARGEST_SQUARE; then steps += 1 and the scalars with their bias
//                corrections, else skips += 1; skipped_adamw <- how many are not
//   operands     tensors[count], scalars[count], sums[count] in · counters of the tensors in/out · steps[count], record[1] out
//   launch       1 block of 256 threads, each every 256th tensor; dynamic smem 0 B
//   alignment    natural
//   aliasing     none
//   traffic      about 200 B per tensor
//   arithmetic   f64; each result rounds to f32 once
//   determinism  bitwise repeatable
//   edge cases   none
//   resources    <= 64 registers, 0 spills
//   launcher     src/cuda/launch.rs::adamw_prepare        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) adamw_prepare(
    const Tensor* tensors, const AdamWScalars* scalars, const double* sums, AdamWStep* steps, u32 count, Record* record) {
  double skipped = 0;
  for (u32 i = threadIdx.x; i < count; i += BLOCK) {
    u64* const counters = tensors[i].counters;
    const AdamWScalars s = scalars[i];
    AdamWStep out = {};
    if (sums[i] < LARGEST_SQUARE) {
      out.random_key = mix(tensors[i].random_key + counters[0]);
      counters[0] += 1;
      // As on the CPU device, whose exponent is an i32.
      const u64 t = counters[0] < 2147483647ull ? counters[0] : 2147483647ull;
      out.beta1 = (float)s.beta1;
      out.one_minus_beta1 = (float)(1.0 - s.beta1);
      out.beta2 = (float)s.beta2;
      out.one_minus_beta2 = (float)(1.0 - s.beta2);
      out.step = (float)(s.lr / (1.0 - power(s.beta1, t)));
      out.root_correction = (float)(1.0 / sqrt(1.0 - power(s.beta2, t)));
      out.eps = s.eps;
      out.keep = s.keep;
      out.finite = 1;
    } else {
      counters[1] += 1;
      skipped += 1.0;
    }
    steps[i] = out;
  }
  skipped = block_sum(skipped);
  if (threadIdx.x == 0) record->skipped_adamw = (u64)skipped;
}

// adamw_apply
//   computes     m <- beta1*m + (1-beta1)*g;  v <- beta2*v + (1-beta2)*g*g;
//                p <- keep*p - step*(m / (sqrt(v)*root_correction + eps)); nothing where the tensor is skipped
//   operands     tile_tensor[grid], tensors, steps, grad_scale[1] in · grad of the tensors in · exp_avg, exp_avg_sq, param, master
//                of the tensors in/out
//   launch       1-D; one block per tile; block = 256 exactly; dynamic smem 0 B
//   alignment    packs (f32 16 B, 16-bit 8 B) where the operands are aligned together, single elements elsewhere
//   aliasing     none of the operands overlap
//   traffic      read 14 B + write 12 B = 26 B per element (bf16 gradient, f32 parameter)
//   arithmetic   f32, no fused multiply-add, division and root correctly rounded
//   determinism  bitwise repeatable
//   edge cases   v = 0 with m = 0 leaves p decayed
//   resources    <= 80 registers, 0 spills
//   launcher     src/cuda/launch.rs::adamw_apply        source  NUMERICS.md
extern "C" __global__ void __launch_bounds__(256) adamw_apply(
    const u32* tile_tensor, const Tensor* tensors, const AdamWStep* steps, const float* grad_scale) {
  const u32 index = load_entry(tile_tensor, blockIdx.x);
  const Tensor& t = load_entry(tensors, index);
  const AdamWStep s = load_entry(steps, index);
  if (!s.finite) return;
  const float scale = load_entry(grad_scale, 0);
  const usize begin = (usize)(blockIdx.x - t.first_tile) * TILE;
  const usize n = t.len - begin < TILE ? t.len - begin : TILE;
  const u32 grad_type = dtype(t.kind, GRAD_SHIFT), param_type = dtype(t.kind, PARAM_SHIFT);
  const bool stochastic = t.kind & STOCHASTIC, has_master = t.master;
  const Operand grad = at(t.grad, grad_type, begin), param = at(t.param, param_type, begin);
  const Operand m = at(t.exp_avg, F32, begin), v = at(t.exp_avg_sq, F32, begin);
  const Operand kept =
      at(has_master ? (const void*)t.master : t.param, has_master ? F32 : param_type, begin);
  const Operand operands[5] = {grad, m, v, param, kept};
  const auto updated = [&](float p, float g, float& m1, float& m2) {
    g *= scale;
    m1 = s.beta1 * m1 + s.one_minus_beta1 * g;
    m2 = s.beta2 * m2 + s.one_minus_beta2 * (g * g);
    const float denominator = sqrtf(m2) * s.root_correction + s.eps;
    return p * s.keep - s.step * (m1 / denominator);
  };
  for_segment(
      operands, n,
      [&](usize i) {
        float m1 = load(m.base, i, F32), m2 = load(v.base, i, F32);
        float p = updated(load(kept.base, i, kept.type), load(grad.base, i, grad_type), m1, m2);
        if (stochastic) p = round_stochastic(p, s.random_key, begin + i);
        store((void*)m.base, i, F32, m1);
        store((void*)v.base, i, F32, m2);
        if (has_master) store((void*)kept.base, i, F32, p);
        store((void*)param.base, i, param_type, p);
      },
      [&](usize i) {
        float g[PACK], p[PACK], m1[PACK], m2[PACK];
        load_pack(grad.base, i, grad_type, g);
        load_pack(kept.base, i, kept.type, p);
        load_pack(m.base, i, F32, m1);
        load_pack(v.base, i, F32, m2);
#pragma unroll
        for (u32 k = 0; k < PACK; ++k) {
          p[k] = updated(p[k], g[k], m1[k], m2[k]);
          if (stochastic) p[k] = round_stochastic(p[k], s.random_key, begin + i + k);
        }
        store_pack((void*)m.base, i, F32, m1);
        store_pack((void*)v.base, i, F32, m2);
        if (has_master) store_pack((void*)kept.base, i, F32, p);
        store_pack((void*)param.base, i, param_type, p);
      });
}
