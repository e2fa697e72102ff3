// What every kernel file starts with: storage types, 16-byte accesses, tiles, reductions.
//
// No header of CUDA is included, so NVRTC needs none. Kernels are compiled with --fmad=false: every product
// and every sum rounds once, as on the CPU device, so both produce the same bits.

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using usize = decltype(sizeof(0));

// Threads of a block, and elements of a tile: the unit of work of one block. Partial sums are per tile, so a
// sum depends on the shape alone.
constexpr u32 BLOCK = 256;
constexpr usize TILE = 8192;
// Elements that one thread loads at a time: 16 bytes of f32, 8 bytes of a 16-bit type. Eight elements would make f32
// two accesses a thread, each of which touches every sector of both.
constexpr u32 PACK = 4;

// Element types, as the host numbers them (src/cuda/table.rs).
constexpr u32 F32 = 0;
constexpr u32 BF16 = 1;
constexpr u32 F16 = 2;

// Bits of `kind` in a table entry (src/cuda/table.rs).
constexpr u32 GRAD_SHIFT = 0;
constexpr u32 MOMENTUM_SHIFT = 2;
constexpr u32 PARAM_SHIFT = 4;
constexpr u32 ITERATE_SHIFT = 6;
constexpr u32 NESTEROV = 1u << 8;
constexpr u32 CAUTIOUS = 1u << 9;
constexpr u32 NORMALIZE = 1u << 10;
constexpr u32 STOCHASTIC = 1u << 11;
constexpr u32 CHECKED = 1u << 12;
constexpr u32 L2 = 1u << 13;
constexpr u32 L2_MASTER = 1u << 14;

__device__ inline u32 dtype(u32 kind, u32 shift) { return kind >> shift & 3u; }

// One matrix of a step. The pointers address its first element; elements of grad, momentum, param and master lie
// at row * row_stride + col, those of iterate and result at row * cols + col.
struct Matrix {
  const void* grad;
  void* momentum;
  void* param;
  float* master;      // null where there is none
  void* iterate;
  const void* result;
  u64* counters;      // of its parameter: steps, then skips of each matrix, then outcome of each matrix
  u64 rows;
  u64 cols;
  u64 row_stride;
  u64 offset;         // of its first element in the parameter
  u64 random_key;     // of stochastic rounding, without the step
  double safety;
  double norm_floor;
  u32 first_tile;     // position of its first tile among the blocks of a launch
  u32 tiles;
  u32 kind;
  u32 matrix;         // which of its parameter's matrices
  u32 matrices;       // of its parameter
  u32 reserved;
};

// The scalars of one matrix in one step.
struct Scalars {
  float momentum;
  float gain;         // of the gradient: 1 - momentum (EMA) or 1 (sum)
  float keep;
  float step;
  float l2;           // what the parameter is multiplied with before it is added to the gradient
  float largest;      // magnitude of an element of the update before step; a matrix with a larger one is skipped
};

// What a matrix is multiplied with, power first, and whether it takes part in the step.
struct Norm {
  float power;
  float factor;
  u32 finite;
  u32 reserved;
};

// A gradient as a whole, or a matrix of one: elements lie at row * row_stride + col.
struct Span {
  const void* grad;
  u64 rows;
  u64 cols;
  u64 row_stride;
  u32 first_tile;
  u32 tiles;
  u32 kind;
  u32 reserved;
};

// What a step reports. Each field is written by one kernel, where the step has it.
struct Record {
  double gradient_norm;
  double clip_factor;
  u64 skipped_matrices;
  u64 skipped_adamw;
};

__device__ inline float bf16_to_f32(u16 x) { return __uint_as_float((u32)x << 16); }

__device__ inline u16 f32_to_bf16(float x) {
  u16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

__device__ inline float f16_to_f32(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

__device__ inline u16 f32_to_f16(float x) {
  u16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

__device__ inline usize bytes(u32 type) { return type == F32 ? 4 : 2; }

__device__ inline float load(const void* base, usize i, u32 type) {
  if (type == F32) return ((const float*)base)[i];
  const u16 x = ((const u16*)base)[i];
  return type == BF16 ? bf16_to_f32(x) : f16_to_f32(x);
}

__device__ inline void store(void* base, usize i, u32 type, float x) {
  if (type == F32) {
    ((float*)base)[i] = x;
  } else {
    ((u16*)base)[i] = type == BF16 ? f32_to_bf16(x) : f32_to_f16(x);
  }
}

// A pack from an address that is a multiple of its size: one access.
__device__ inline void load_pack(const void* base, usize i, u32 type, float (&x)[PACK]) {
  if (type == F32) {
    const float4 v = *(const float4*)((const float*)base + i);
    x[0] = v.x; x[1] = v.y; x[2] = v.z; x[3] = v.w;
    return;
  }
  const uint2 v = *(const uint2*)((const u16*)base + i);
  const u32 words[2] = {v.x, v.y};
#pragma unroll
  for (u32 k = 0; k < 2; ++k) {
    const u16 low = (u16)words[k], high = (u16)(words[k] >> 16);
    x[2 * k] = type == BF16 ? bf16_to_f32(low) : f16_to_f32(low);
    x[2 * k + 1] = type == BF16 ? bf16_to_f32(high) : f16_to_f32(high);
  }
}

__device__ inline void store_pack(void* base, usize i, u32 type, const float (&x)[PACK]) {
  if (type == F32) {
    // Written out: beside a branch of single stores of the same values the compiler takes the pack apart.
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global((float*)base + i)),
                 "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
    return;
  }
  u32 words[2];
#pragma unroll
  for (u32 k = 0; k < 2; ++k) {
    const u16 low = type == BF16 ? f32_to_bf16(x[2 * k]) : f32_to_f16(x[2 * k]);
    const u16 high = type == BF16 ? f32_to_bf16(x[2 * k + 1]) : f32_to_f16(x[2 * k + 1]);
    words[k] = (u32)low | (u32)high << 16;
  }
  *(uint2*)((u16*)base + i) = make_uint2(words[0], words[1]);
}

// An operand of a segment: where its first element lies, and its type.
struct Operand {
  const void* base;
  u32 type;
};

// Pointers come from tables, so the compiler must be told that they are global to emit global accesses.
__device__ inline Operand at(const void* base, u32 type, usize i) {
  const void* const p = (const char*)base + i * bytes(type);
  __builtin_assume(__isGlobal(p));
  return {p, type};
}

// Elements before the packs of every operand are aligned, below PACK; PACK if there is no such number.
template <usize N>
__device__ inline u32 common_head(const Operand (&operands)[N]) {
  for (u32 head = 0; head < PACK; ++head) {
    bool aligned = true;
#pragma unroll
    for (usize k = 0; k < N; ++k) {
      const usize size = bytes(operands[k].type);
      aligned &= ((usize)operands[k].base + head * size) % (PACK * size) == 0;
    }
    if (aligned) return head;
  }
  return PACK;
}

// Calls one(i) or pack(i) so that every element of [0, n) is covered once: packs where all operands are aligned,
// single elements before, after, and everywhere if they are never aligned together.
template <usize N, class One, class Pack>
__device__ inline void for_segment(const Operand (&operands)[N], usize n, One one, Pack pack) {
  const u32 head = common_head(operands);
  if (head == PACK || n < head + PACK) {
    for (usize i = threadIdx.x; i < n; i += BLOCK) one(i);
    return;
  }
  if (threadIdx.x < head) one(threadIdx.x);
  const usize packs = (n - head) / PACK;
  for (usize k = threadIdx.x; k < packs; k += BLOCK) pack(head + k * PACK);
  const usize tail = head + packs * PACK;
  if (tail + threadIdx.x < n) one(tail + threadIdx.x);
}

// Calls work(dense, strided, n) for the contiguous pieces of one tile of a Matrix or a Span: `dense` is the index of the
// piece's first element in the iterate, `strided` the one in gradient, momentum and parameter.
template <class Strided, class Work>
__device__ inline void for_pieces(const Strided& m, usize tile, Work work) {
  const usize begin = tile * TILE;
  usize end = begin + TILE;
  if (end > m.rows * m.cols) end = m.rows * m.cols;
  if (m.row_stride == m.cols) {
    work(begin, begin, end - begin);
    return;
  }
  for (usize i = begin; i < end;) {
    const usize row = i / m.cols, col = i - row * m.cols;
    usize n = m.cols - col;
    if (n > end - i) n = end - i;
    work(i, row * m.row_stride + col, n);
    i += n;
  }
}

// A table entry into shared memory, word by word, so that it is read once a block and not once a thread; all threads
// must call, and get the same reference. Each type has its own place.
template <class T>
__device__ inline const T& load_entry(const T* entries, u32 index) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) / 4 <= BLOCK && alignof(T) <= 8, "one word a thread");
  __shared__ u64 words[(sizeof(T) + 7) / 8];
  if (threadIdx.x < sizeof(T) / 4) ((u32*)words)[threadIdx.x] = ((const u32*)(entries + index))[threadIdx.x];
  __syncthreads();
  return *(const T*)words;
}

// Sum over a warp in a fixed order; all lanes must call and get the result.
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (u32 offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Sum over a block in a fixed order; all threads must call, thread 0 gets the result.
__device__ inline double block_sum(double x) {
  __shared__ double warps[BLOCK / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (u32 k = 0; k < BLOCK / 32; ++k) sum += warps[k];
  }
  return sum;
}

// Maximum over a block; all threads must call, thread 0 gets the result.
__device__ inline u32 block_max(u32 x) {
  __shared__ u32 warps[BLOCK / 32];
#pragma unroll
  for (u32 offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, offset));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (u32 k = 0; k < BLOCK / 32; ++k) x = max(x, warps[k]);
  }
  return x;
}

__device__ inline bool is_finite(double x) {
  return (__double_as_longlong(x) & 0x7ff0000000000000ll) != 0x7ff0000000000000ll;
}

// Finalizer of SplitMix64 (Steele, Lea, Flood 2014), as in src/cpu/elementwise.rs.
__device__ inline u64 mix(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Rounds to bf16 at random: up with the probability of the part that is cut off. `index` is that of the element in
// its parameter.
__device__ inline float round_stochastic(float x, u64 key, u64 index) {
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  const u32 random = (u32)mix(key + index) & 0xffffu;
  return __uint_as_float((bits + random) & 0xffff0000u);
}
