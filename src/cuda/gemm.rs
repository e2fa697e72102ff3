//! All matrix products: cublasLt, f32 sums, C apart from D.
//!
//! cublasLt is column-major: a row-major `C = A·B` is the column-major `Cᵀ = Bᵀ·Aᵀ`, which needs no transposition in
//! memory, since the column-major view of a row-major matrix is its transpose.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cublasLtReductionScheme_t, cudaDataType,
};
use cudarc::driver::CudaStream;

use super::memory::Buffer;
use super::status::cublas_error;
use super::table;
use crate::error::{Error, Result};
use crate::precision::Precision;

/// Whether an operand is transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Op {
    N,
    T,
}

/// A batch of column-major products `D ← alpha·op(A)·op(B) + beta·C` of `m × k` and `k × n` matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) op_a: Op,
    pub(super) op_b: Op,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Leading dimensions of A, B, and of C and D.
    pub(super) ld: [usize; 3],
    /// Elements from one matrix to the next of A, B, and of C and D.
    pub(super) stride: [usize; 3],
    pub(super) batch: usize,
    /// Element type of A and B.
    pub(super) input: u32,
    /// Element type of C and D.
    pub(super) output: u32,
    pub(super) compute: Compute,
}

impl Product {
    /// Bytes to which every operand is aligned at these addresses of A, B, C and D: the largest power of two, 256 at most,
    /// that divides them and, of a batch, the bytes from one matrix to the next, which its kernels take for as aligned.
    fn alignment(&self, addresses: [u64; 4]) -> u32 {
        let mut bits = addresses.iter().fold(LARGEST_ALIGNMENT, |bits, address| bits | address);
        if self.batch > 1 {
            let types = [self.input, self.input, self.output];
            for (stride, dtype) in self.stride.into_iter().zip(types) {
                bits |= stride as u64 * table::element_bytes(dtype);
            }
        }
        1 << bits.trailing_zeros()
    }
}

/// What becomes of the operands of a product on their way to its f32 sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Compute {
    /// They are used as they are.
    Exact,
    /// f32 operands are cut to tf32, for the tensor cores.
    Tf32,
}

impl Compute {
    /// How a precision of the iterate multiplies.
    pub(super) fn of(precision: Precision) -> Self {
        if precision == Precision::Tf32 { Self::Tf32 } else { Self::Exact }
    }
}

/// What a cached plan belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    product: Product,
    /// Bytes to which A, B, C and D of every matrix of the batch are aligned.
    alignment: u32,
}

/// What cublasLt assumes of addresses by default, in bytes; more is never promised.
const LARGEST_ALIGNMENT: u64 = 256;

struct MatmulPlan {
    desc: cublasLtMatmulDesc_t,
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

/// A cublasLt handle with its workspace and one plan per product, all used on one stream.
pub(super) struct Gemm {
    handle: cublasLtHandle_t,
    stream: Arc<CudaStream>,
    /// Never used by two streams at a time, which keeps results repeatable.
    workspace: Buffer<u8>,
    plans: HashMap<Key, MatmulPlan>,
    calls: u64,
    flops: u64,
}

// SAFETY: handle, descriptors and layouts are heap objects of cublasLt without thread affinity; `&mut self` on every call keeps
// threads apart.
unsafe impl Send for Gemm {}

impl Gemm {
    /// NVIDIA's advice: 32 MiB from capability 9.0 on, else 4 MiB.
    fn workspace_bytes(major: i32) -> usize {
        if major >= 9 { 32 << 20 } else { 4 << 20 }
    }

    /// A handle for the stream's context.
    ///
    /// # Errors
    /// Out of memory; a failed library.
    pub(super) fn new(stream: &Arc<CudaStream>, major: i32) -> Result<Self> {
        let workspace =
            Buffer::zeroed(stream, Self::workspace_bytes(major), "the cublasLt workspace")?;
        let handle =
            result::create_handle().map_err(|e| cublas_error(e, "creating a cublasLt handle"))?;
        Ok(Self {
            handle,
            stream: Arc::clone(stream),
            workspace,
            plans: HashMap::new(),
            calls: 0,
            flops: 0,
        })
    }

    /// Products and their FLOPs so far, a multiply-add counted as two.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.calls, self.flops)
    }

    /// Enqueues the products. A, B, C, D are addresses; C may be D, and is not read where `beta` is 0.
    ///
    /// # Errors
    /// A product that cublasLt does not support; a failed device.
    #[expect(clippy::too_many_arguments, reason = "the operands of a product")]
    pub(super) fn run(
        &mut self,
        product: &Product,
        alpha: f32,
        a: u64,
        b: u64,
        beta: f32,
        c: u64,
        d: u64,
    ) -> Result<()> {
        let doing = || {
            format!(
                "product {}x{}x{} of {} matrices",
                product.m, product.n, product.k, product.batch
            )
        };
        let alignment = product.alignment([a, b, c, d]);
        let key = Key { product: *product, alignment };
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key).map_err(|e| e.context(doing()))?;
            self.plans.insert(key, plan);
        }
        let Some(plan) = self.plans.get(&key) else {
            return Err(Error::device("a plan that was just made is gone"));
        };
        let [a, b, c, d] = [a, b, c, d].map(|address| address as *mut c_void);
        // SAFETY: (1) handle, descriptor, layouts and algorithm are alive and belong together; (2) the layouts are those of slots of
        // a workspace that holds `batch` such matrices at each address; (3) the algorithm was asked for under their alignment;
        // (4, 5) D is none of A and B, as recipes guarantee; (6) workspace and slots are freed on the same stream. The
        // scalars are read before the call returns.
        let done = unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                a,
                plan.layouts[0],
                b,
                plan.layouts[1],
                c,
                plan.layouts[2],
                d,
                plan.layouts[2],
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                self.workspace.len(),
                self.stream.cu_stream().cast(),
            )
        };
        done.map_err(|e| cublas_error(e, doing()))?;
        self.calls += 1;
        let Product { m, n, k, batch, .. } = *product;
        self.flops += 2 * m as u64 * n as u64 * k as u64 * batch as u64;
        Ok(())
    }

    /// What cublasLt says to one square product of such matrices: bytes of workspace, and waves of blocks.
    ///
    /// # Errors
    /// A product that it does not support; a failed library.
    pub(super) fn ask(&self, precision: Precision) -> Result<(usize, f32)> {
        const SIDE: usize = 1024;
        let dtype = table::precision_code(precision);
        let product = Product {
            op_a: Op::T,
            op_b: Op::N,
            m: SIDE,
            n: SIDE,
            k: SIDE,
            ld: [SIDE; 3],
            stride: [SIDE * SIDE; 3],
            batch: 1,
            input: dtype,
            output: dtype,
            compute: Compute::of(precision),
        };
        let (_, found) = self
            .choose(&Key { product, alignment: 256 })
            .map_err(|e| e.context(format_args!("product {SIDE}x{SIDE}x{SIDE} in {precision}")))?;
        Ok((found.workspaceSize, found.wavesCount))
    }

    fn plan(&self, key: &Key) -> Result<MatmulPlan> {
        let (made, found) = self.choose(key)?;
        let [a, b, c] = made.layouts[..] else {
            return Err(Error::device("three layouts were made and are not there"));
        };
        Ok(made.finish(found.algo, [a, b, c]))
    }

    /// Describes a product and asks cublasLt for an algorithm.
    fn choose(&self, key: &Key) -> Result<(Unfinished, cublasLtMatmulHeuristicResult_t)> {
        let p = &key.product;
        let compute = match p.compute {
            Compute::Exact => cublasComputeType_t::CUBLAS_COMPUTE_32F,
            Compute::Tf32 => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        };
        let desc = result::create_matmul_desc(compute, cudaDataType::CUDA_R_32F)
            .map_err(|e| cublas_error(e, "describing a product"))?;
        let mut made = Unfinished { desc, layouts: Vec::new(), preference: None };
        for (attribute, op) in [
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, p.op_a),
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, p.op_b),
        ] {
            // `cublasOperation_t`, which the bindings of cublasLt leave out.
            let value: i32 = match op {
                Op::N => 0,
                Op::T => 1,
            };
            // SAFETY: the descriptor is alive; the value has the attribute's type and outlives the call.
            let set = unsafe {
                result::set_matmul_desc_attribute(
                    desc,
                    attribute,
                    std::ptr::from_ref(&value).cast(),
                    size_of_val(&value),
                )
            };
            set.map_err(|e| cublas_error(e, "describing a product"))?;
        }
        let size = |op: Op, rows: usize, cols: usize| {
            if op == Op::N { (rows, cols) } else { (cols, rows) }
        };
        let sizes = [size(p.op_a, p.m, p.k), size(p.op_b, p.k, p.n), (p.m, p.n)];
        let types = [p.input, p.input, p.output];
        for i in 0..3 {
            made.layouts.push(layout(types[i], sizes[i], p.ld[i], p.stride[i], p.batch)?);
        }
        let preference =
            result::create_matmul_pref().map_err(|e| cublas_error(e, "choosing an algorithm"))?;
        made.preference = Some(preference);
        let bytes = self.workspace.len();
        let alignment = key.alignment;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive; the value has the attribute's type and outlives the call.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
                .map_err(|e| cublas_error(e, "choosing an algorithm"))
        };
        set(
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&bytes).cast(),
            size_of_val(&bytes),
        )?;
        // No product split along k: by default its parts may be kept in the type of D, which rounds each to 16 bit, and be
        // added in an order that differs from run to run; and split products that leave out the end of k were reported of
        // cuBLAS 12.8 and 13.1 on an H100 (facebookexperimental/triton #2767).
        let reduction = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        set(
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            std::ptr::from_ref(&reduction).cast(),
            size_of_val(&reduction),
        )?;
        for attribute in [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, std::ptr::from_ref(&alignment).cast(), size_of_val(&alignment))?;
        }
        let [a, b, c] = made.layouts[..] else {
            return Err(Error::device("three layouts were made and are not there"));
        };
        // SAFETY: all objects are alive and describe one product.
        let found =
            unsafe { result::get_matmul_algo_heuristic(self.handle, desc, a, b, c, c, preference) }
                .map_err(|e| cublas_error(e, "choosing an algorithm"))?;
        Ok((made, found))
    }
}

/// A layout of a batch.
fn layout(
    dtype: u32,
    (rows, cols): (usize, usize),
    ld: usize,
    stride: usize,
    batch: usize,
) -> Result<cublasLtMatrixLayout_t> {
    let kind = match dtype {
        table::F32 => cudaDataType::CUDA_R_32F,
        table::BF16 => cudaDataType::CUDA_R_16BF,
        _ => cudaDataType::CUDA_R_16F,
    };
    let failed = |e| cublas_error(e, "describing a matrix");
    let wide = |what: &str, n: usize| {
        i64::try_from(n).map_err(|_| Error::shape_mismatch(what, "a number below 2^63", n))
    };
    let batch = i32::try_from(batch)
        .map_err(|_| Error::shape_mismatch("matrices in a batch", "fewer than 2^31", batch))?;
    let stride = wide("elements from one matrix to the next", stride)?;
    let made = result::create_matrix_layout(kind, rows as u64, cols as u64, wide("columns", ld)?)
        .map_err(failed)?;
    let attributes: [(LayoutAttribute, *const c_void, usize); 2] = [
        (
            LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
            std::ptr::from_ref(&batch).cast(),
            size_of_val(&batch),
        ),
        (
            LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
            std::ptr::from_ref(&stride).cast(),
            size_of_val(&stride),
        ),
    ];
    for (attribute, value, size) in attributes {
        // SAFETY: the layout is alive; the value has the attribute's type and outlives the call.
        let set = unsafe { result::set_matrix_layout_attribute(made, attribute, value, size) };
        if let Err(e) = set {
            // SAFETY: it was made above and goes nowhere else.
            let _ = unsafe { result::destroy_matrix_layout(made) };
            return Err(failed(e));
        }
    }
    Ok(made)
}

/// Objects of a plan that is being made; what is not finished is destroyed.
struct Unfinished {
    desc: cublasLtMatmulDesc_t,
    layouts: Vec<cublasLtMatrixLayout_t>,
    preference: Option<cudarc::cublaslt::sys::cublasLtMatmulPreference_t>,
}

impl Unfinished {
    fn finish(
        mut self,
        algorithm: cublasLtMatmulAlgo_t,
        layouts: [cublasLtMatrixLayout_t; 3],
    ) -> MatmulPlan {
        self.layouts.clear();
        let plan = MatmulPlan { desc: self.desc, layouts, algorithm };
        self.desc = std::ptr::null_mut();
        plan
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        for layout in self.layouts.drain(..) {
            // SAFETY: alive, and nobody else has it. A failure leaks it, which is all that can be done.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
        if let Some(preference) = self.preference.take() {
            // SAFETY: as above.
            let _ = unsafe { result::destroy_matmul_pref(preference) };
        }
        if !self.desc.is_null() {
            // SAFETY: as above.
            let _ = unsafe { result::destroy_matmul_desc(self.desc) };
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        for (_, plan) in self.plans.drain() {
            for layout in plan.layouts {
                // SAFETY: alive, and nobody else has it. A failure leaks it, which is all that can be done.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
            // SAFETY: as above.
            let _ = unsafe { result::destroy_matmul_desc(plan.desc) };
        }
        // SAFETY: as above; the library waits for work that still uses the handle.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl fmt::Debug for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gemm")
            .field("plans", &self.plans.len())
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}
