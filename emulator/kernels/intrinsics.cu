// Calls of most arithmetic, conversion, atomic, cache and warp functions of CUDA C: their PTX must
// load and run. The mathematical functions are also compared with the host.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define KERNEL extern "C" __global__ void

KERNEL math_f32(const float *x, float *y) {
    float a = x[threadIdx.x], *o = y + 20 * threadIdx.x;
    o[0] = expf(a), o[1] = logf(a), o[2] = powf(a, 2.5f), o[3] = sinf(a), o[4] = cosf(a);
    o[5] = tanhf(a), o[6] = erff(a), o[7] = cbrtf(a), o[8] = rsqrtf(a), o[9] = log1pf(a);
    o[10] = expm1f(a), o[11] = atan2f(a, 3), o[12] = fmodf(a, 0.7f), o[13] = exp2f(a);
    o[14] = log2f(a), o[15] = hypotf(a, 2), o[16] = sqrtf(a), o[17] = 1 / a, o[18] = roundf(a);
    o[19] = truncf(a) + floorf(a) + ceilf(a) + rintf(a);
}

KERNEL math_f64(const double *x, double *y) {
    double a = x[threadIdx.x], *o = y + 12 * threadIdx.x;
    o[0] = exp(a), o[1] = log(a), o[2] = pow(a, 2.5), o[3] = sin(a), o[4] = cos(a);
    o[5] = tanh(a), o[6] = cbrt(a), o[7] = rsqrt(a), o[8] = sqrt(a), o[9] = 1 / a;
    o[10] = a / 3, o[11] = fmod(a, 0.7);
}

KERNEL half_functions(__half *y, const __half *x) {
    int i = threadIdx.x;
    __half a = x[i], b = x[i + 1];
    y[i] = __hadd(a, b) + __hsub(a, b)*__hdiv(a, b) + hsqrt(a) + hrsqrt(a) + hexp(a) + hexp2(a) +
        hlog(a) + hlog2(a) + hsin(a) + hcos(a) + hrcp(a) + hfloor(a) + hceil(a) + htrunc(a) +
        hrint(a) + __habs(a) + __hneg(a) + __hmax(a, b) + __hmin_nan(a, b) + __hfma_relu(a, b, a) +
        __hadd_sat(a, b) + __float2half_rd(3.f) + __half(__half2int_rn(a)) +
        __half(__half2uint_rz(b)) + __half(__half2ll_rn(a)) + __half(__half2short_rn(a)) +
        (__hlt(a, b)?a:b) + (__hequ(a, b)?a:b) + __half(__hisnan(a)) + __ll2half_rn(i) +
        __ushort2half_rn(i) + htanh(a);
}

KERNEL half2_functions(__half2 *y, const __half2 *x) {
    int i = threadIdx.x;
    __half2 a = x[i], b = x[i + 1];
    y[i] = __hadd2(a, b) + __hmul2(a, b) + __hfma2_sat(a, b, a) + h2exp(a) + h2sqrt(a) + __hmax2(a,
        b) + __hmin2(a, b) + __habs2(a) + __hneg2(b) + __hgt2(a, b) + __hleu2(a, b) +
        __lows2half2(a, b) + __lowhigh2highlow(a) + __floats2half2_rn(1.f, i)+ (__hbeq2(a, b)?a:b)
        + h2floor(a) + __hfma2_relu(a, b, b) + __hcmadd(a, b, a);
}

KERNEL bfloat16_functions(__nv_bfloat16 *y, const __nv_bfloat16 *x) {
    int i = threadIdx.x;
    auto a = x[i], b = x[i + 1];
    y[i] = __hadd(a, b) + __hsub(a, b)*__hdiv(a, b) + hsqrt(a) + hrsqrt(a) + hexp(a) + hlog(a) +
        hrcp(a) + hfloor(a) + htrunc(a) + __habs(a) + __hneg(a) + __hmax(a, b) + __hmin_nan(a, b) +
        __hfma_relu(a, b, a) + __hadd_sat(a, b) + __float2bfloat16_rd(3.f) +
        __int2bfloat16_rn(__bfloat162int_rn(a)) + __uint2bfloat16_rz(__bfloat162uint_rz(b)) +
        __ll2bfloat16_rn(i) + (__hlt(a, b)?a:b) + (__hneu(a, b)?a:b) + __double2bfloat16(i*0.3) +
        __ushort2bfloat16_rn(i) + htanh(a);
}

KERNEL bfloat162_functions(__nv_bfloat162 *y, const __nv_bfloat162 *x) {
    int i = threadIdx.x;
    auto a = x[i], b = x[i + 1];
    y[i] = __hadd2(a, b) + __hmul2(a, b) + __hfma2_sat(a, b, a) + h2exp(a) + h2sqrt(a) + __hmax2(a,
        b) + __hmin2(a, b) + __habs2(a) + __hneg2(b) + __hgt2(a, b) + __hleu2(a, b) +
        __floats2bfloat162_rn(1.f, i) + (__hbeq2(a, b)?a:b) + h2floor(a) + __hfma2_relu(a, b, b);
}

KERNEL atomics(int *a, float *f, double *d, __half2 *h,
               __nv_bfloat162 *b, unsigned long long *u, __half *hs, unsigned short *us) {
    atomicAdd(a, 1);
    atomicSub(a, 1);
    atomicExch(a, 3);
    atomicMin(a, 2);
    atomicMax(a, 4);
    atomicAnd(a, 7);
    atomicOr(a, 8);
    atomicXor(a, 1);
    atomicCAS(a, 1, 2);
    atomicInc((unsigned*)a, 5);
    atomicDec((unsigned*)a, 5);
    atomicAdd(f, 1.f);
    atomicAdd(d, 1.);
    atomicAdd(h, __float2half2_rn(1));
    atomicAdd(b, __float2bfloat162_rn(1));
    atomicAdd(u, 1ull);
    atomicCAS(u, 1ull, 2ull);
    atomicAdd(hs, __float2half(1));
    atomicCAS(us, (unsigned short)1, (unsigned short)2);
    atomicExch(f, 2.f);
    atomicAdd_block(a, 1);
    atomicAdd_system(a, 2);
    __threadfence();
    __threadfence_block();
    __threadfence_system();
}

KERNEL cache_operators(float *y, const float *x, const int4 *q, const double2 *d,
                       const uchar4 *c, const short2 *s) {
    int i = threadIdx.x;
    int4 a = __ldcs(q + i);
    double2 e = __ldcg(d + i);
    uchar4 f = c[i];
    short2 g = s[i];
    y[i] = __ldca(x + i) + __ldlu(x + i) + __ldcv(x + i) + __ldg(x + i) + a.x + a.w + e.x + f.x +
        f.w + g.x + g.y;
    __stcs(y + i + 64, 1.f);
    __stcg(y + i + 128, 1.f);
    __stwt(y + i + 192, 2.f);
}

KERNEL bit_functions(int *y, const int *x, long long *z) {
    int i = threadIdx.x;
    int a = x[i];
    y[i] = __brev(a) + __ffs(a) + __clz(a) + __popc(a) + __byte_perm(a, i, 0x1230) + __vadd2(a, i)
        + __vmaxs2(a, i) + __vsub4(a, i) + __dp4a(a, i, a) + __mul24(a, i) + __rhadd(a, i) +
        __funnelshift_rc(a, i, 40);
}

KERNEL wide_integers(long long *z, const long long *x) {
    int i = threadIdx.x;
    long long a = x[i];
    z[i] = a/7 + a%13 + a/(i + 1) + __clzll(a) + __popcll(a) + __ffsll(a) + __brevll(a) +
        __mul64hi(a, a) + llabs(a) + min(a, 3LL) + clock64()*0 + (a>>i) + (a<<i) +
        (unsigned long long)a/(unsigned)(i + 3) + __double_as_longlong(3.) + (long long)(float)a;
}

struct Big {
    int v[20];
};

KERNEL grid_constant(const __grid_constant__ Big b, int *y) {
    y[threadIdx.x] = b.v[threadIdx.x%20];
}

KERNEL warp_and_block_votes(int *y) {
    int t = threadIdx.x, all;
    unsigned active = __activemask();
    if (active != 0xffffffffu) __trap();
    y[t] = __syncthreads_or(t == 3) + __syncthreads_and(1) + __match_all_sync(active, 3, &all) + all;
}
