// Kernels of the conformance suite: what compilers emit for ordinary CUDA C, checked on the host.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void saxpy(float *y, const float *x, float a, unsigned n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (size_t)blockDim.x)
        y[i] = a * x[i] + y[i];
}

__device__ float warp_sum(float v) {
    for (int o = 16; o; o >>= 1) v += __shfl_down_sync(0xffffffffu, v, o);
    return v;
}

extern "C" __global__ void block_sum(const float *__restrict__ x, float *__restrict__ partial,
                                     unsigned n) {
    __shared__ float warps[32];
    float v = 0;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (size_t)blockDim.x)
        v += x[i];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0;
        v = warp_sum(v);
        if (threadIdx.x == 0) partial[blockIdx.x] = v;
    }
}

extern "C" __global__ void scan(const unsigned *x, unsigned *y, unsigned n) {
    extern __shared__ unsigned buffer[];
    unsigned t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    buffer[t] = i < n ? x[i] : 0;
    __syncthreads();
    for (unsigned d = 1; d < blockDim.x; d *= 2) {
        unsigned v = t >= d ? buffer[t - d] : 0;
        __syncthreads();
        buffer[t] += v;
        __syncthreads();
    }
    if (i < n) y[i] = buffer[t];
}

extern "C" __global__ void transpose(const float *x, float *y, unsigned rows, unsigned cols) {
    __shared__ float tile[32][33];
    unsigned c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
    for (unsigned k = 0; k < 32; k += 8)
        if (r + k < rows && c < cols)
            tile[threadIdx.y + k][threadIdx.x] = x[(size_t)(r + k) * cols + c];
    __syncthreads();
    c = blockIdx.y * 32 + threadIdx.x;
    r = blockIdx.x * 32 + threadIdx.y;
    for (unsigned k = 0; k < 32; k += 8)
        if (r + k < cols && c < rows)
            y[(size_t)(r + k) * rows + c] = tile[threadIdx.x][threadIdx.y + k];
}

extern "C" __global__ void histogram(const unsigned char *x, unsigned *bins, unsigned n) {
    __shared__ unsigned local[256];
    for (unsigned b = threadIdx.x; b < 256; b += blockDim.x) local[b] = 0;
    __syncthreads();
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (size_t)blockDim.x)
        atomicAdd(&local[x[i]], 1u);
    __syncthreads();
    for (unsigned b = threadIdx.x; b < 256; b += blockDim.x)
        if (local[b]) atomicAdd(&bins[b], local[b]);
}

// C = A B, row-major, tiles of 32 with two buffers, four outputs per thread.
extern "C" __global__ void __launch_bounds__(256) gemm(const float *a, const float *b, float *c,
                                                       unsigned m, unsigned n, unsigned k) {
    __shared__ float ta[2][32][33], tb[2][32][32];
    unsigned tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    unsigned row = blockIdx.y * 32, col = blockIdx.x * 32;
    float sum[4] = {0, 0, 0, 0};
    auto fill = [&](unsigned slot, unsigned at) {
        for (unsigned i = 0; i < 4; i++) {
            unsigned r = ty + 8 * i;
            ta[slot][r][tx] = row + r < m && at + tx < k ? a[(size_t)(row + r) * k + at + tx] : 0;
            tb[slot][r][tx] = at + r < k && col + tx < n ? b[(size_t)(at + r) * n + col + tx] : 0;
        }
    };
    fill(0, 0);
    __syncthreads();
    unsigned slot = 0;
    for (unsigned at = 0; at < k; at += 32) {
        if (at + 32 < k) fill(slot ^ 1, at + 32);
#pragma unroll 8
        for (unsigned q = 0; q < 32; q++)
            for (unsigned i = 0; i < 4; i++) sum[i] += ta[slot][ty + 8 * i][q] * tb[slot][q][tx];
        __syncthreads();
        slot ^= 1;
    }
    for (unsigned i = 0; i < 4; i++)
        if (row + ty + 8 * i < m && col + tx < n)
            c[(size_t)(row + ty + 8 * i) * n + col + tx] = sum[i];
}

extern "C" __global__ void widen_halves(float *from_f16, float *from_bf16) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned short bits = (unsigned short)i;
    from_f16[i] = __half2float(__ushort_as_half(bits));
    from_bf16[i] = __bfloat162float(__ushort_as_bfloat16(bits));
}

extern "C" __global__ void narrow_floats(const float *x, unsigned short *f16, unsigned short *bf16,
                                         unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    f16[i] = __half_as_ushort(__float2half_rn(x[i]));
    f16[n + i] = __half_as_ushort(__float2half_rz(x[i]));
    bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
    bf16[n + i] = __bfloat16_as_ushort(__float2bfloat16_rz(x[i]));
}

extern "C" __global__ void half_arithmetic(const unsigned *x, const unsigned *y, unsigned *f16,
                                           unsigned *bf16, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __half2 a = *(const __half2 *)&x[i], b = *(const __half2 *)&y[i];
    __half2 s = __hadd2(a, b), p = __hmul2(a, b), q = __hfma2(a, b, a);
    f16[3 * i] = *(unsigned *)&s, f16[3 * i + 1] = *(unsigned *)&p, f16[3 * i + 2] = *(unsigned *)&q;
    __nv_bfloat162 u = *(const __nv_bfloat162 *)&x[i], v = *(const __nv_bfloat162 *)&y[i];
    __nv_bfloat162 s2 = __hadd2(u, v), p2 = __hmul2(u, v), q2 = __hfma2(u, v, u);
    bf16[3 * i] = *(unsigned *)&s2, bf16[3 * i + 1] = *(unsigned *)&p2;
    bf16[3 * i + 2] = *(unsigned *)&q2;
}

extern "C" __global__ void rounding(const float *x, const float *y, float *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = x[i], b = y[i], *o = out + 20 * (size_t)i;
    o[0] = __fadd_rn(a, b), o[1] = __fadd_rz(a, b), o[2] = __fadd_rd(a, b), o[3] = __fadd_ru(a, b);
    o[4] = __fmul_rn(a, b), o[5] = __fmul_rz(a, b), o[6] = __fmul_rd(a, b), o[7] = __fmul_ru(a, b);
    o[8] = __fdiv_rn(a, b), o[9] = __fdiv_rz(a, b), o[10] = __fdiv_rd(a, b);
    o[11] = __fdiv_ru(a, b);
    o[12] = __fmaf_rn(a, b, a), o[13] = __fmaf_rz(a, b, a), o[14] = __fmaf_rd(a, b, a);
    o[15] = __fmaf_ru(a, b, a);
    float c = fabsf(a);
    o[16] = __fsqrt_rn(c), o[17] = __fsqrt_rz(c), o[18] = __fsqrt_rd(c), o[19] = __fsqrt_ru(c);
}

extern "C" __global__ void float_to_int(const float *x, int *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[4 * i] = __float2int_rn(x[i]), out[4 * i + 1] = __float2int_rz(x[i]);
    out[4 * i + 2] = __float2int_rd(x[i]), out[4 * i + 3] = __float2int_ru(x[i]);
}

extern "C" __global__ void divergent(const int *x, int *y, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i], steps = 0;
    while (v != 1 && steps < 1000) {
        if (v % 2 == 0) v /= 2;
        else {
            v = 3 * v + 1;
            if (v % 5 == 0) steps += 2;
        }
        steps++;
    }
    switch (i % 9) {
    case 0: steps += 100; break;
    case 1: steps *= 3; break;
    case 2: steps -= 7; break;
    case 3: steps ^= 0x55; break;
    case 4: steps <<= 2; break;
    case 5: steps = -steps; break;
    case 6: steps %= 11; break;
    case 7: steps |= 0x80; break;
    default: break;
    }
    y[i] = steps;
}

struct Pair {
    float a;
    double b;
    signed char c;
};

__device__ __noinline__ double weigh(Pair p, int k) {
    return k & 1 ? p.a * p.b : p.b + p.c;
}

__device__ __noinline__ double twice(Pair p, int k) { return weigh(p, k) + weigh(p, k + 1); }

extern "C" __global__ void calls(double *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Pair p = {(float)i, 0.5 * i, (signed char)(i % 100)};
    if (i % 3) out[i] = twice(p, i);
    else out[i] = weigh(p, 1);
}

extern "C" __global__ void grid3(unsigned *out) {
    unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y,
             z = blockIdx.z * blockDim.z + threadIdx.z;
    unsigned w = gridDim.x * blockDim.x, h = gridDim.y * blockDim.y;
    out[((size_t)z * h + y) * w + x] = x + 1000 * y + 1000000 * z;
}

extern "C" __global__ void wide_index(const unsigned char *base, unsigned char *out,
                                      unsigned long long offset) {
    // The pointer is far below the allocation; only 64-bit arithmetic gets back into it.
    const unsigned char *p = base + offset;
    out[threadIdx.x] = p[threadIdx.x];
}

extern "C" __global__ void integers(const int *x, const int *y, long long *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int a = x[i], b = y[i];
    unsigned ua = a, ub = b;
    long long *o = out + 24 * (size_t)i;
    o[0] = b ? a / b : 0, o[1] = b ? a % b : 0, o[2] = ub ? ua / ub : 0, o[3] = ub ? ua % ub : 0;
    o[4] = __mulhi(a, b), o[5] = __umulhi(ua, ub), o[6] = (long long)a * b;
    o[7] = __clz(a), o[8] = __popc(ua), o[9] = __ffs(a), o[10] = __brev(ua);
    o[11] = __byte_perm(ua, ub, 0x4321), o[12] = __funnelshift_l(ua, ub, 7);
    o[13] = __sad(a, b, 5u), o[14] = min(a, b), o[15] = max(ua, ub), o[16] = a >> (ub & 31);
    o[17] = (unsigned)(ua >> (ub & 31)), o[18] = abs(a);
    unsigned long long wide = (unsigned long long)ua << 32 | ub;
    o[19] = __umul64hi(wide, wide + 12345), o[20] = wide / (ua | 1), o[21] = __clzll(wide);
    o[22] = (wide >> (ub & 63)) & 0xfff, o[23] = ((long long)wide >> 3) * 7;
}

extern "C" __global__ void votes(unsigned *out, unsigned n) {
    unsigned i = threadIdx.x, lane = i % 32;
    bool odd = (i * 7) % 3 == 1;
    out[6 * i] = __ballot_sync(~0u, odd);
    out[6 * i + 1] = __any_sync(~0u, i == 40) + 2 * __all_sync(~0u, i < 64);
    out[6 * i + 2] = __match_any_sync(~0u, lane % 5);
    out[6 * i + 3] = __reduce_add_sync(~0u, i) ^ __reduce_max_sync(~0u, i);
    out[6 * i + 4] = __syncthreads_count(odd);
    unsigned group = lane < 16 ? 0xffffu : 0xffff0000u;
    out[6 * i + 5] = __shfl_xor_sync(group, i, 3, 16);
}

__constant__ float coefficients[3] = {3.4445f, -4.7750f, 2.0315f};
__device__ unsigned counter = 5;

extern "C" __global__ void module_variables(float *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = coefficients[i % 3];
    if (threadIdx.x == 0) atomicAdd(&counter, 2);
}

extern "C" __global__ void vectors(const float4 *x, float4 *y, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float4 v = __ldg(&x[i]);
    y[i] = make_float4(v.w, v.z, v.y + 1, v.x * 2);
}

extern "C" __global__ void local_array(const unsigned *x, unsigned *y, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned table[16];
    for (int k = 0; k < 16; k++) table[k] = k * i;
    if (i < n) y[i] = table[x[i] % 16];
}

// Threads beyond the tail leave before the barrier, which then waits for the others only.
extern "C" __global__ void early_exit(const float *x, float *y, unsigned n) {
    __shared__ float s[128];
    unsigned t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    if (i >= n) return;
    s[t] = x[i];
    __syncthreads();
    y[i] = t > 0 ? s[t] + s[t - 1] : s[t];
}

// Lanes return one by one, each ahead of a shuffle that names all 32.
extern "C" __global__ void leave_one_by_one(float *y) {
    unsigned t = threadIdx.x;
    float v = t;
#pragma unroll 1
    for (unsigned k = 0; k < 32; k++) {
        if (k == t) return;
        v = __shfl_sync(0xffffffffu, v, t);
        y[32 * k + t] = v + k;
    }
}
