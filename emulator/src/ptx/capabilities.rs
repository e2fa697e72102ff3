//! What the interpreter can do with each PTX instruction. `CAPABILITIES.md` is this table; tests check
//! that the two agree and that every example loads, or is refused, as its row says.

use super::instructions::REFUSED;

/// How faithfully an instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// Bit for bit what the PTX manual defines.
    Exact,
    /// The hardware's last bits are not documented; the result here is the correctly rounded one, and
    /// the launch report names the instruction.
    Approximate,
    /// Accepted and without effect on results (hints, sleeps).
    NoEffect,
    /// Refused when the module is loaded.
    Unsupported,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Capability {
    /// Instructions of the row.
    pub instructions: &'static str,
    /// Types and modifiers.
    pub forms: &'static str,
    /// How faithfully it is executed.
    pub fidelity: Fidelity,
    /// Complete instructions of the row, `;`-separated, over registers `%p` (pred), `%h` (16 bits),
    /// `%r` (32), `%d` (64), `%f` (f32), `%g` (f64), and `buffer` (shared).
    pub examples: &'static str,
}

const fn row(
    instructions: &'static str,
    forms: &'static str,
    fidelity: Fidelity,
    examples: &'static str,
) -> Capability {
    Capability { instructions, forms, fidelity, examples }
}

use Fidelity::{Approximate, Exact, NoEffect, Unsupported};

/// The instructions that are understood.
pub const CAPABILITIES: &[Capability] = &[
    row(
        "add, sub, mul, mad",
        "16, 32 and 64 bits; .lo .hi .wide; .sat (s32)",
        Exact,
        "add.s32 %r1, %r2, 3; sub.sat.s32 %r1, %r2, %r3; mul.wide.u32 %d1, %r1, %r2; \
         mad.lo.s64 %d1, %d2, %d3, %d4; mul.hi.u64 %d1, %d2, %d3; mad.wide.s16 %r1, %h1, %h2, %r3",
    ),
    row(
        "add.cc, addc, sub.cc, subc, mad.cc, madc",
        "32 and 64 bits",
        Exact,
        "add.cc.u32 %r1, %r2, %r3; addc.u32 %r1, %r2, 0; madc.hi.cc.u32 %r1, %r2, %r3, %r4",
    ),
    row(
        "mul24, mad24, sad, dp4a",
        "32 bits",
        Exact,
        "mul24.lo.u32 %r1, %r2, %r3; sad.s32 %r1, %r2, %r3, %r4; dp4a.s32.u32 %r1, %r2, %r3, %r4",
    ),
    row(
        "div, rem, min, max, abs, neg",
        "integers of 16, 32 and 64 bits; min, max, add in 16x2",
        Exact,
        "div.s64 %d1, %d2, %d3; rem.u16 %h1, %h2, %h3; max.s32 %r1, %r2, %r3; min.s16x2 %r1, %r2, %r3",
    ),
    row(
        "and, or, xor, not, cnot, shl, shr, shf, lop3",
        "predicates and all widths",
        Exact,
        "and.pred %p1, %p2, %p3; shl.b64 %d1, %d2, 3; shr.s16 %h1, %h2, 4; \
         shf.l.wrap.b32 %r1, %r2, %r3, %r4; lop3.b32 %r1, %r2, %r3, %r4, 0x96",
    ),
    row(
        "bfe, bfi, bfind, brev, clz, popc, prmt",
        "32 and 64 bits; prmt in its default mode",
        Exact,
        "bfe.s32 %r1, %r2, 3, 9; bfi.b64 %d1, %d2, %d3, 32, 32; bfind.shiftamt.u32 %r1, %r2; \
         popc.b64 %r1, %d1; prmt.b32 %r1, %r2, %r3, 0x5410",
    ),
    row(
        "add, sub, mul, fma, mad",
        "f32 and f64; .rn .rz .rm .rp, .ftz, .sat (f64 with .rz .rm .rp: exact unless a result or \
         partial product is subnormal)",
        Exact,
        "add.rz.ftz.f32 %f1, %f2, %f3; fma.rp.sat.f32 %f1, %f2, %f3, %f4; mul.rm.f64 %g1, %g2, %g3",
    ),
    row(
        "div, rcp, sqrt",
        "f32 and f64 with a rounding modifier",
        Exact,
        "div.rn.f32 %f1, %f2, %f3; rcp.rz.f32 %f1, %f2; sqrt.rp.f64 %g1, %g2; rcp.rn.f64 %g1, %g2",
    ),
    row(
        "div, rcp, sqrt",
        "f32 .approx and .full; f64 rcp.approx.ftz",
        Approximate,
        "div.approx.f32 %f1, %f2, %f3; div.full.ftz.f32 %f1, %f2, %f3; rcp.approx.f32 %f1, %f2; \
         sqrt.approx.ftz.f32 %f1, %f2; rcp.approx.ftz.f64 %g1, %g2",
    ),
    row(
        "rsqrt, ex2, lg2, sin, cos, tanh",
        "f32 .approx; rsqrt f64",
        Approximate,
        "rsqrt.approx.f32 %f1, %f2; ex2.approx.ftz.f32 %f1, %f2; lg2.approx.f32 %f1, %f2; \
         sin.approx.f32 %f1, %f2; cos.approx.f32 %f1, %f2; tanh.approx.f32 %f1, %f2",
    ),
    row(
        "min, max, abs, neg, copysign",
        "f16, bf16, their pairs, f32, f64; .NaN, .ftz",
        Exact,
        "max.NaN.f32 %f1, %f2, %f3; min.bf16x2 %r1, %r2, %r3; neg.f16 %h1, %h2; \
         copysign.f32 %f1, %f2, %f3",
    ),
    row(
        "add, sub, mul, fma",
        "f16, bf16, f16x2, bf16x2; .rn, .ftz, .sat, .relu",
        Exact,
        "add.rn.f16 %h1, %h2, %h3; fma.rn.bf16x2 %r1, %r2, %r3, %r4; mul.bf16 %h1, %h2, %h3; \
         fma.rn.relu.f16x2 %r1, %r2, %r3, %r4",
    ),
    row(
        "ex2, tanh",
        "f16, bf16 and their pairs, .approx",
        Approximate,
        "ex2.approx.f16 %h1, %h2; tanh.approx.bf16x2 %r1, %r2",
    ),
    row(
        "cvt",
        "between integers, f16, bf16, tf32, f32, f64; all roundings, .ftz, .sat, .relu; pairs from f32",
        Exact,
        "cvt.rni.s32.f32 %r1, %f1; cvt.rn.f32.u64 %f1, %d1; cvt.rz.bf16.f32 %h1, %f1; \
         cvt.rn.f16x2.f32 %r1, %f1, %f2; cvt.sat.u8.s32 %r1, %r2; cvt.rna.tf32.f32 %r1, %f1; \
         cvt.f32.bf16 %f1, %h1; cvt.rmi.ftz.f32.f32 %f1, %f2",
    ),
    row(
        "setp, set, selp, slct, testp",
        "all types, all comparisons, boolean operand, two results",
        Exact,
        "setp.ltu.f32 %p1|%p2, %f1, %f2; setp.eq.and.s32 %p1, %r1, %r2, !%p2; \
         set.eq.f16.f16 %h1, %h2, %h3; selp.b64 %d1, %d2, %d3, %p1; testp.subnormal.f32 %p1, %f1",
    ),
    row(
        "mov",
        "registers, literals, addresses, special registers; packing and unpacking vectors",
        Exact,
        "mov.b32 %r1, {%h1, %h2}; mov.b64 {%r1, %r2}, %d1; mov.u32 %r1, %tid.x; mov.u32 %r1, buffer",
    ),
    row(
        "ld, st",
        "global, shared, local, param, const, generic; b8 to b64, .v2 .v4 .v8; cache operators, .nc, \
         .volatile; .relaxed, .acquire, .release (none orders anything)",
        Exact,
        "ld.global.nc.L1::no_allocate.v4.f32 {%f1, %f2, %f3, %f4}, [%d1+16]; st.shared.v2.b32 \
         [buffer+8], {%r1, %r2}; ld.volatile.global.u8 %h1, [%d1]; ld.relaxed.gpu.global.u32 %r1, [%d1]",
    ),
    row(
        "atom, red",
        "integer add, and, or, xor, min, max, inc, dec, exch, cas; add of f16, bf16, pairs, f32, f64",
        Exact,
        "atom.global.add.u32 %r1, [%d1], 1; red.shared.add.f32 [buffer], %f1; \
         atom.cas.b64 %d1, [%d2], %d3, %d4; atom.global.gpu.relaxed.add.noftz.bf16x2 %r1, [%d1], %r2",
    ),
    row(
        "cvta, isspacep",
        "global, const, shared, local, param",
        Exact,
        "cvta.to.global.u64 %d1, %d2; cvta.shared.u64 %d1, %d2; isspacep.shared %p1, %d1",
    ),
    row(
        "bra, brx.idx, call, ret, exit, trap, brkpt",
        "calls are expanded in place: no recursion, no pointers",
        Exact,
        "@%p1 bra END; trap; exit; ret",
    ),
    row(
        "bar, barrier",
        "sync, arrive, red; 16 barriers, thread counts; bar.warp.sync",
        Exact,
        "bar.sync 0; barrier.sync.aligned 1, 64; bar.arrive 2, 64; bar.red.popc.u32 %r1, 0, %p1; \
         bar.warp.sync 0xffffffff",
    ),
    row(
        "shfl, vote, match, redux, activemask, elect",
        ".sync forms",
        Exact,
        "shfl.sync.down.b32 %r1|%p1, %r2, 1, 31, -1; vote.sync.ballot.b32 %r1, %p1, -1; \
         match.any.sync.b32 %r1, %r2, -1; redux.sync.add.s32 %r1, %r2, -1; activemask.b32 %r1; \
         elect.sync %r1|%p1, -1",
    ),
    row(
        "membar, fence",
        "all scopes (a cluster is a block)",
        Exact,
        "membar.gl; fence.acq_rel.gpu; fence.sc.cta",
    ),
    row(
        "nanosleep, pmevent, prefetch, prefetchu",
        "",
        NoEffect,
        "nanosleep.u32 100; prefetch.global.L2 [%d1]",
    ),
    row(
        "mma, wmma, ldmatrix, wgmma, tcgen05",
        "tensor cores",
        Unsupported,
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, \
         {%r5, %r6}, {%f1, %f2, %f3, %f4}; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r2]; \
         wgmma.fence.sync.aligned",
    ),
    row(
        "cp.async, mbarrier, bulk copies, tensormap",
        "asynchronous copies",
        Unsupported,
        "cp.async.ca.shared.global [%r1], [%d1], 16; mbarrier.init.shared.b64 [buffer], 32",
    ),
    row(
        "barrier.cluster, mapa, getctarank",
        "clusters",
        Unsupported,
        "barrier.cluster.arrive; mapa.u64 %d1, %d2, 0",
    ),
    row(
        "tex, tld4, suld, sust",
        "textures and surfaces",
        Unsupported,
        "tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%d1, {%r1}]",
    ),
];

/// The table as the document shows it.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# What the emulator does with PTX\n\n\
         Generated from the table in `src/ptx/capabilities.rs`; a test fails when this file differs.\n\n\
         * **exact**: bit for bit what the PTX manual defines (NaNs from f32, f16 and bf16 arithmetic are \
         the canonical ones).\n\
         * **approximate**: the hardware's last bits are not documented; the result is the nearest one, and \
         the launch report names the instruction.\n\
         * **no effect**: accepted, changes nothing.\n\
         * **unsupported**: the module is refused at load, with the instruction's text and line.\n\n\
         An instruction or modifier that is in no row is refused at load as unknown.\n\n\
         | instructions | forms | fidelity |\n|---|---|---|\n",
    );
    for row in CAPABILITIES {
        let fidelity = match row.fidelity {
            Exact => "exact",
            Approximate => "approximate",
            NoEffect => "no effect",
            Unsupported => "unsupported",
        };
        out += &format!("| {} | {} | {fidelity} |\n", row.instructions, row.forms);
    }
    out += &format!("\nRefused by name: `{}`.\n", REFUSED.join("`, `"));
    out
}
