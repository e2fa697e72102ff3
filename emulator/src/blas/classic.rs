//! cuBLAS handles and the Gemm family: argument checks and enqueueing.

use std::collections::BTreeMap;

use super::{
    BlasOutcome, BlasStatus,
    arithmetic::{Dtype, InputRounding},
    product::{Group, Item, Items, Product, Scalar, View},
};
use crate::runtime::{Class, FaultSite, Kind, Report, Runtime, Span, Status, Work};

/// One cuBLAS handle.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) context: u64,
    pub(crate) stream: u64,
    /// `cublasPointerMode_t`: 0 host, 1 device.
    pub(crate) pointer_mode: i32,
    pub(crate) math_mode: i32,
    pub(crate) workspace: Option<Span>,
    /// `cublasSetAtomicsMode`, `cublasSetSmCountTarget` and the like.
    pub(crate) settings: BTreeMap<&'static str, i32>,
}

/// How a batch's matrices are found.
#[derive(Clone, Debug)]
pub enum Batching {
    /// One product at three addresses.
    Single([u64; 3]),
    /// Addresses, strides in elements, count.
    Strided([u64; 3], [i64; 3], i32),
    /// Device arrays of pointers, count.
    Arrays([u64; 3], i32),
}

/// The arguments of a product as the C call passes them; matrices are column-major.
#[derive(Clone, Debug)]
pub struct Gemm {
    /// Entry point, for messages.
    pub name: &'static str,
    /// `cublasOperation_t` of A and B.
    pub trans: [i32; 2],
    /// m, n, k.
    pub shape: [i64; 3],
    /// Host or device addresses of alpha and beta.
    pub scalars: [u64; 2],
    /// `cudaDataType` of A, B and C.
    pub types: [i32; 3],
    /// Leading dimensions of A, B and C.
    pub ld: [i64; 3],
    /// `cublasComputeType_t`.
    pub compute: i32,
    /// Where the matrices are.
    pub batching: Batching,
}

/// Groups of batches of one call.
#[derive(Clone, Debug)]
pub struct GroupedGemm {
    /// One entry per group; each is [`Batching::Arrays`] into the shared pointer arrays.
    pub groups: Vec<Gemm>,
}

impl Runtime {
    /// `cublasCreate`.
    ///
    /// # Errors
    /// `NOT_INITIALIZED` without a usable context; an injected status.
    pub fn blas_create(&mut self) -> BlasOutcome<u64> {
        let context = self.current_context().map_err(|_| BlasStatus::NOT_INITIALIZED)?;
        self.blas_inject(FaultSite::BlasHandle)?;
        let handle = self.handles.make(Kind::Blas);
        self.blas.handles.insert(
            handle,
            Handle {
                context,
                stream: 0,
                pointer_mode: 0,
                math_mode: 0,
                workspace: None,
                settings: BTreeMap::new(),
            },
        );
        Ok(handle)
    }

    /// `cublasDestroy`.
    ///
    /// # Errors
    /// `NOT_INITIALIZED` for a handle that is gone.
    pub fn blas_destroy(&mut self, handle: u64) -> BlasOutcome<()> {
        self.blas_handle(handle, "cublasDestroy")?;
        self.blas.handles.remove(&handle);
        Ok(())
    }

    fn blas_handle(&mut self, handle: u64, operation: &str) -> BlasOutcome<&mut Handle> {
        if !self.blas.handles.contains_key(&handle) {
            self.bad_handle(Kind::Blas, handle, operation);
            return Err(BlasStatus::NOT_INITIALIZED);
        }
        self.blas.handles.get_mut(&handle).ok_or(BlasStatus::NOT_INITIALIZED)
    }

    /// `cublasSetStream`: as the manual says, the workspace goes back to the default.
    ///
    /// # Errors
    /// `NOT_INITIALIZED`.
    pub fn blas_set_stream(&mut self, handle: u64, stream: u64) -> BlasOutcome<()> {
        let found = self.blas_handle(handle, "cublasSetStream")?;
        found.stream = stream;
        found.workspace = None;
        Ok(())
    }

    /// `cublasGetStream`.
    ///
    /// # Errors
    /// `NOT_INITIALIZED`.
    pub fn blas_stream(&mut self, handle: u64) -> BlasOutcome<u64> {
        Ok(self.blas_handle(handle, "cublasGetStream")?.stream)
    }

    /// `cublasSetWorkspace`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for an address that is not a multiple of 256 or bytes outside an allocation.
    pub fn blas_set_workspace(&mut self, handle: u64, address: u64, bytes: u64) -> BlasOutcome<()> {
        self.blas_handle(handle, "cublasSetWorkspace")?;
        let workspace = if address == 0 || bytes == 0 {
            None
        } else {
            self.check_workspace(address, bytes, "cublasSetWorkspace")?;
            Some(Span::new(address, bytes))
        };
        self.blas_handle(handle, "cublasSetWorkspace")?.workspace = workspace;
        Ok(())
    }

    pub(super) fn check_workspace(
        &mut self,
        address: u64,
        bytes: u64,
        operation: &str,
    ) -> BlasOutcome<()> {
        if !address.is_multiple_of(256) {
            return Err(self.blas_refuse(
                Class::Misaligned,
                operation,
                format!("the workspace at {address:#x} is not a multiple of 256 bytes"),
            ));
        }
        if let Err(fault) = self.store.check(address, bytes) {
            return Err(self.blas_refuse(
                fault.class,
                operation,
                format!("workspace: {}", fault.message),
            ));
        }
        Ok(())
    }

    /// `cublasSetPointerMode` and `cublasGetPointerMode`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a number that is no mode.
    pub fn blas_pointer_mode(&mut self, handle: u64, set: Option<i32>) -> BlasOutcome<i32> {
        let found = self.blas_handle(handle, "cublasSetPointerMode")?;
        if let Some(mode) = set {
            if !(0..=1).contains(&mode) {
                return Err(BlasStatus::INVALID_VALUE);
            }
            found.pointer_mode = mode;
        }
        Ok(found.pointer_mode)
    }

    /// `cublasSetMathMode` and `cublasGetMathMode`.
    ///
    /// # Errors
    /// `NOT_INITIALIZED`.
    pub fn blas_math_mode(&mut self, handle: u64, set: Option<i32>) -> BlasOutcome<i32> {
        let found = self.blas_handle(handle, "cublasSetMathMode")?;
        if let Some(mode) = set {
            found.math_mode = mode;
        }
        Ok(found.math_mode)
    }

    /// Settings that are kept and handed back but change nothing here.
    ///
    /// # Errors
    /// `NOT_INITIALIZED`.
    pub fn blas_setting(
        &mut self,
        handle: u64,
        name: &'static str,
        set: Option<i32>,
    ) -> BlasOutcome<i32> {
        let found = self.blas_handle(handle, name)?;
        if let Some(value) = set {
            found.settings.insert(name, value);
        }
        Ok(found.settings.get(name).copied().unwrap_or(0))
    }

    /// Records a finding about a cuBLAS call.
    pub(super) fn blas_refuse(
        &mut self,
        class: Class,
        operation: &str,
        message: impl Into<String>,
    ) -> BlasStatus {
        self.report(Report::host(class, operation, message));
        BlasStatus::INVALID_VALUE
    }

    /// Records that a combination is not modelled.
    pub fn blas_unsupported(&mut self, what: &str) -> BlasStatus {
        self.unsupported(what);
        BlasStatus::NOT_SUPPORTED
    }

    /// One product or batch.
    ///
    /// # Errors
    /// `INVALID_VALUE` for arguments the manual forbids, `NOT_SUPPORTED` for formats that are not
    /// modelled, an injected status, `EXECUTION_FAILED` in a context with an error.
    pub fn gemm(&mut self, handle: u64, call: &Gemm) -> BlasOutcome<()> {
        let found = self.blas_handle(handle, call.name)?;
        let (workspace, pointer_mode, math_mode) =
            (found.workspace, found.pointer_mode, found.math_mode);
        let Some(group) = self.group(call, pointer_mode, math_mode)? else { return Ok(()) };
        self.submit(handle, call.name, Product { groups: vec![group], workspace })
    }

    /// `cublasGemmGroupedBatchedEx`.
    ///
    /// # Errors
    /// As [`Runtime::gemm`].
    pub fn gemm_grouped(&mut self, handle: u64, call: &GroupedGemm) -> BlasOutcome<()> {
        let name = "cublasGemmGroupedBatchedEx";
        let found = self.blas_handle(handle, name)?;
        let (workspace, pointer_mode, math_mode) =
            (found.workspace, found.pointer_mode, found.math_mode);
        if pointer_mode == 1 {
            return Err(self.blas_unsupported("cublasGemmGroupedBatchedEx with device scalars"));
        }
        let mut groups = Vec::new();
        for gemm in &call.groups {
            groups.extend(self.group(gemm, pointer_mode, math_mode)?);
        }
        if groups.is_empty() {
            return Ok(());
        }
        self.submit(handle, name, Product { groups, workspace })
    }

    fn submit(&mut self, handle: u64, name: &str, product: Product) -> BlasOutcome<()> {
        let found = self.blas_handle(handle, name)?;
        let (stream, context) = (found.stream, found.context);
        let stream = if stream < 2 {
            self.check_context(context).map_err(|_| BlasStatus::EXECUTION_FAILED)?;
            self.contexts
                .get(&context)
                .map(|found| found.legacy)
                .ok_or(BlasStatus::NOT_INITIALIZED)?
        } else {
            stream
        };
        self.submit_product(stream, name, product)
    }

    /// Fails the chosen call of a kind.
    pub(super) fn blas_inject(&mut self, site: FaultSite) -> BlasOutcome<()> {
        match self.inject(site) {
            Ok(None) => Ok(()),
            Ok(Some(code)) | Err(Status(code)) => Err(BlasStatus(code)),
        }
    }

    pub(super) fn submit_product(
        &mut self,
        stream: u64,
        name: &str,
        product: Product,
    ) -> BlasOutcome<()> {
        let stream = self.resolve_stream(stream, name).map_err(|status| match status {
            Status::INVALID_HANDLE => BlasStatus::INVALID_VALUE,
            _ => BlasStatus::EXECUTION_FAILED,
        })?;
        let capturing = self.streams[&stream].capture.is_some();
        if !capturing {
            self.blas_inject(FaultSite::Blas)?;
        }
        self.enqueue(stream, name, Work::Product(product.into()), None)
            .map_err(|_| BlasStatus::EXECUTION_FAILED)?;
        Ok(())
    }

    /// Checks one product's arguments; `None` when there is nothing to compute.
    fn group(
        &mut self,
        call: &Gemm,
        pointer_mode: i32,
        math_mode: i32,
    ) -> BlasOutcome<Option<Group>> {
        let name = call.name;
        let mut sizes = [0_u64; 3];
        for ((size, given), what) in sizes.iter_mut().zip(call.shape).zip(["m", "n", "k"]) {
            *size = u64::try_from(given).map_err(|_| {
                self.blas_refuse(
                    Class::InvalidArgument,
                    name,
                    format!("`{what}` is {given}, below 0"),
                )
            })?;
        }
        let [m, n, k] = sizes;
        let types = self.types(call, math_mode)?;
        let ([a_type, b_type, c_type], rounding, scalar_type) = types;
        let mut views = [View::column_major(a_type, 0, 0, 1); 3];
        let stored = [(m, k, a_type), (k, n, b_type), (m, n, c_type)];
        for index in 0..3 {
            let (rows, cols, dtype) = stored[index];
            let transposed = match call.trans.get(index) {
                None | Some(0) => false,
                Some(1 | 2) => true,
                Some(other) => {
                    let message =
                        format!("operation {other} of operand {index} is no cublasOperation_t");
                    return Err(self.blas_refuse(Class::InvalidArgument, name, message));
                }
            };
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            let what = ["A", "B", "C"][index];
            let ld = call.ld[index];
            if ld < 1 || (ld as u64) < rows {
                let message = format!(
                    "the leading dimension of {what} is {ld}, but {what} is stored as {rows} x {cols}, column-major, and needs at least {}",
                    rows.max(1)
                );
                return Err(self.blas_refuse(Class::InvalidArgument, name, message));
            }
            let view = View::column_major(dtype, rows, cols, ld as u64);
            views[index] = if transposed { view.transposed() } else { view };
        }
        let [a, b, c] = views;
        if call.scalars.contains(&0) {
            return Err(self.blas_refuse(
                Class::InvalidArgument,
                name,
                "alpha or beta is a null pointer",
            ));
        }
        let count = match call.batching {
            Batching::Single(_) => 1,
            Batching::Strided(_, _, count) | Batching::Arrays(_, count) => count,
        };
        let count = u64::try_from(count).map_err(|_| {
            self.blas_refuse(
                Class::InvalidArgument,
                name,
                format!("the batch count is {count}, below 0"),
            )
        })?;
        if m == 0 || n == 0 || count == 0 {
            return Ok(None);
        }
        let alpha = self.read_scalar(call.scalars[0], scalar_type, pointer_mode, name)?;
        let beta = self.read_scalar(call.scalars[1], scalar_type, pointer_mode, name)?;
        let mut group = Group {
            a,
            b,
            c,
            d: c,
            alpha,
            beta,
            rounding,
            parts_in_output: false,
            items: Items::Known(Vec::new()),
        };
        group.items = match &call.batching {
            Batching::Single([a, b, c]) => Items::Known(vec![Item { a: *a, b: *b, c: *c, d: *c }]),
            Batching::Strided([a, b, c], strides, _) => {
                let at = |base: &u64, stride: i64, index: u64, dtype: Dtype| {
                    base.wrapping_add_signed(
                        stride.wrapping_mul(index as i64).wrapping_mul(dtype.size() as i64),
                    )
                };
                Items::Known(
                    (0..count)
                        .map(|index| {
                            let c = at(c, strides[2], index, c_type);
                            Item {
                                a: at(a, strides[0], index, a_type),
                                b: at(b, strides[1], index, b_type),
                                c,
                                d: c,
                            }
                        })
                        .collect(),
                )
            }
            Batching::Arrays(arrays, _) => {
                self.check_arrays(arrays, count, name)?;
                let [a, b, c] = *arrays;
                Items::Arrays { a, b, c, count }
            }
        };
        if let Items::Known(items) = &group.items {
            let items = items.clone();
            self.check_known(&group, &items, name)?;
        }
        Ok(Some(group))
    }

    pub(super) fn check_known(
        &mut self,
        group: &Group,
        items: &[Item],
        name: &str,
    ) -> BlasOutcome<()> {
        match self.item_error(group, items) {
            None => Ok(()),
            Some((class, message)) => Err(self.blas_refuse(class, name, message)),
        }
    }

    fn check_arrays(&mut self, arrays: &[u64; 3], count: u64, name: &str) -> BlasOutcome<()> {
        for (array, what) in arrays.iter().zip(["A", "B", "C"]) {
            if !self.is_device_address(*array) {
                let message =
                    format!("the array of pointers to {what} at {array:#x} is not device memory");
                return Err(self.blas_refuse(Class::InvalidArgument, name, message));
            }
            if let Err(fault) = self.store.check(*array, 8 * count) {
                let message = format!("the array of pointers to {what}: {}", fault.message);
                return Err(self.blas_refuse(fault.class, name, message));
            }
        }
        Ok(())
    }

    /// What is wrong with the addresses of a batch: alignment, extent, overlap.
    pub(crate) fn item_error(&self, group: &Group, items: &[Item]) -> Option<(Class, String)> {
        let mut outputs: Vec<Span> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let in_place = item.c == item.d;
            let operands = [
                ("A", group.a, item.a, true),
                ("B", group.b, item.b, true),
                ("C", group.c, item.c, in_place || group.may_read_c()),
                ("D", group.d, item.d, !in_place),
            ];
            for (what, view, address, used) in operands {
                if !used || view.extent() == 0 {
                    continue;
                }
                let label = if items.len() > 1 {
                    format!("{what} of product {index}")
                } else {
                    what.to_owned()
                };
                if !address.is_multiple_of(view.dtype.size()) {
                    let message =
                        format!("{label} at {address:#x} is not a multiple of its element size");
                    return Some((Class::Misaligned, message));
                }
                if let Err(fault) = self.store.check(address, view.extent()) {
                    return Some((fault.class, format!("{label}: {}", fault.message)));
                }
            }
            let output = group.d.spans(item.d);
            for (what, view, address) in [("A", group.a, item.a), ("B", group.b, item.b)] {
                if overlap(&view.spans(address), &output) {
                    return Some((
                        Class::Aliasing,
                        format!(
                            "the output overlaps the input {what} of product {index}; no product may be in place"
                        ),
                    ));
                }
            }
            let same_place = item.c == item.d && group.c == group.d;
            if !same_place && group.may_read_c() && overlap(&group.c.spans(item.c), &output) {
                return Some((
                    Class::Aliasing,
                    format!("C and D of product {index} overlap without being the same matrix"),
                ));
            }
            outputs.extend(output);
        }
        outputs.sort_by_key(|span| span.start);
        let twice = outputs.windows(2).find(|pair| pair[0].overlaps(pair[1]))?;
        Some((
            Class::Aliasing,
            format!("two products of the batch write the byte at {:#x}", twice[1].start),
        ))
    }

    pub(super) fn read_scalar(
        &mut self,
        address: u64,
        dtype: Dtype,
        pointer_mode: i32,
        name: &str,
    ) -> BlasOutcome<Scalar> {
        if pointer_mode == 1 {
            if let Err(fault) = self.store.check(address, dtype.size()) {
                let message = format!("alpha or beta in device pointer mode: {}", fault.message);
                return Err(self.blas_refuse(fault.class, name, message));
            }
            return Ok(Scalar::Device { address, dtype });
        }
        if self.is_device_address(address) {
            let message = format!(
                "alpha or beta at {address:#x} is a device address, but the pointer mode is host"
            );
            return Err(self.blas_refuse(Class::InvalidArgument, name, message));
        }
        Ok(Scalar::Value(read_host_scalar(address, dtype)))
    }

    /// Formats of A, B, C, the rounding of inputs, and the format of the scalars.
    fn types(
        &mut self,
        call: &Gemm,
        math_mode: i32,
    ) -> BlasOutcome<([Dtype; 3], InputRounding, Dtype)> {
        let types = call.types.map(Dtype::from_cuda);
        let [Some(a), Some(b), Some(c)] = types else {
            let what = format!("{} with cudaDataType {:?}", call.name, call.types);
            return Err(self.blas_unsupported(&what));
        };
        match product_types(a, b, c, call.compute, math_mode) {
            Some((rounding, scalar)) => Ok(([a, b, c], rounding, scalar)),
            None => {
                let what = format!(
                    "{} with A {a:?}, B {b:?}, C {c:?} and cublasComputeType_t {}",
                    call.name, call.compute
                );
                Err(self.blas_unsupported(&what))
            }
        }
    }
}

/// The rounding of inputs and the scalars' format, for the combinations that are modelled.
pub(super) fn product_types(
    a: Dtype,
    b: Dtype,
    c: Dtype,
    compute: i32,
    math_mode: i32,
) -> Option<(InputRounding, Dtype)> {
    use Dtype::{Bf16, F16, F32, F64};
    if compute == 70 || compute == 71 {
        return ((a, b, c) == (F64, F64, F64)).then_some((InputRounding::None, F64));
    }
    let formats = a == b
        && matches!((a, c), (F32, F32) | (F16, F16) | (F16, F32) | (Bf16, Bf16) | (Bf16, F32));
    if !formats {
        return None;
    }
    let rounding = match compute {
        // CUBLAS_COMPUTE_32F; CUBLAS_TF32_TENSOR_OP_MATH is 3.
        68 if a == F32 && math_mode & 0xF == 3 => InputRounding::Tf32,
        68 | 69 => InputRounding::None,
        74 if a == F32 => InputRounding::F16,
        75 if a == F32 => InputRounding::Bf16,
        77 if a == F32 => InputRounding::Tf32,
        _ => return None,
    };
    Some((rounding, F32))
}

/// Whether any run of one list meets a run of the other.
fn overlap(left: &[Span], right: &[Span]) -> bool {
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        if a.overlaps(*b) {
            return true;
        }
        if a.end <= b.start { i += 1 } else { j += 1 }
    }
    false
}

#[allow(unsafe_code, reason = "reads the scalar a cuBLAS call points to")]
fn read_host_scalar(address: u64, dtype: Dtype) -> f64 {
    if dtype == Dtype::F64 {
        // SAFETY: in host pointer mode the caller promises a readable scalar of the scale type.
        unsafe { std::ptr::read_unaligned(address as *const f64) }
    } else {
        // SAFETY: as above; every other product modelled has f32 scalars.
        f64::from(unsafe { std::ptr::read_unaligned(address as *const f32) })
    }
}
