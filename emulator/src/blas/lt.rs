//! cublasLt: descriptors, layouts, preferences, the heuristic and the matmul with C apart from D.

use std::collections::BTreeMap;

use super::{
    BlasOutcome, BlasStatus,
    arithmetic::Dtype,
    classic::product_types,
    product::{Group, Item, Items, Product, Scalar, View},
};
use crate::runtime::{Class, FaultSite, Kind, Runtime, Span};

/// A cublasLt object; attributes are kept as the bytes the program set.
#[derive(Clone, Debug, Default)]
pub(crate) struct LtObject {
    kind: u8,
    attributes: BTreeMap<i32, Vec<u8>>,
}

/// All live cublasLt objects.
#[derive(Debug, Default)]
pub(crate) struct LtState {
    objects: BTreeMap<u64, LtObject>,
}

impl LtState {
    /// How many handles, descriptors, layouts and preferences there are.
    pub(crate) fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for object in self.objects.values() {
            if let Some(count) = counts.get_mut(usize::from(object.kind)) {
                *count += 1;
            }
        }
        counts
    }
}

/// Which kind of object an attribute belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LtAttribute {
    /// A library handle: no attributes.
    Handle = 0,
    /// `cublasLtMatmulDesc_t`.
    Desc = 1,
    /// `cublasLtMatrixLayout_t`.
    Layout = 2,
    /// `cublasLtMatmulPreference_t`.
    Preference = 3,
}

impl LtAttribute {
    /// Bytes of an attribute and its value before it is set, in cublasLt 13.10; `None` for a number that it does not know.
    ///
    /// What a call that makes an object sets has no default that shows.
    fn known(self, attribute: i32) -> Option<(usize, i64)> {
        use LtAttribute::{Desc, Handle, Layout, Preference};
        Some(match (self, attribute) {
            (Desc, 0) => (4, 68),
            (Desc, 6) => (4, 2),
            (Desc, 7) => (4, 1),
            (Desc, 22 | 26) => (4, -1),
            (Desc, 25) => (1, 0),
            (Desc, 41) => (4, 32768),
            (Desc, 1..=5 | 15 | 16 | 31..=35 | 37) => (4, 0),
            (Desc, 8 | 10..=14 | 17..=21 | 23 | 24 | 36 | 38..=40) => (8, 0),
            (Layout, 5) => (4, 1),
            (Layout, 0 | 1 | 8 | 12 | 13) => (4, 0),
            (Layout, 2..=4 | 6 | 7 | 9..=11) => (8, 0),
            (Preference, REDUCTION_SCHEMES) => (4, 7),
            (Preference, 5..=8) => (4, 256),
            (Preference, 12) => (8, -1),
            (Preference, 0 | 9) => (4, 0),
            (Preference, 1 | 13..=15) => (8, 0),
            (Handle | Desc | Layout | Preference, _) => return None,
        })
    }

    /// Whether another value than the default is carried out, or changes nothing here: the target number of processors,
    /// fast accumulation, the limits on the search. Any other is refused where the object is used.
    fn is_modelled(self, attribute: i32) -> bool {
        match self {
            LtAttribute::Handle => false,
            LtAttribute::Desc => matches!(attribute, 0..=7 | 15 | 25),
            LtAttribute::Layout => matches!(attribute, 0..=6),
            LtAttribute::Preference => matches!(attribute, 0..=9 | 12),
        }
    }
}

/// A value in the bytes of an attribute, sign-extended.
fn number_of(bytes: &[u8]) -> i64 {
    let mut raw = [0; 8];
    raw[..bytes.len()].copy_from_slice(bytes);
    let unused = 64 - 8 * bytes.len() as u32;
    i64::from_le_bytes(raw) << unused >> unused
}

/// The arguments of `cublasLtMatmul`.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// The library handle.
    pub handle: u64,
    /// The operation descriptor.
    pub desc: u64,
    /// Addresses of alpha and beta.
    pub scalars: [u64; 2],
    /// Addresses of A, B, C and D.
    pub addresses: [u64; 4],
    /// Layouts of A, B, C and D.
    pub layouts: [u64; 4],
    /// The algorithm's mark and the alignments it was chosen for, if one was given.
    pub algorithm: Option<[u64; 2]>,
    /// Address and size of the workspace.
    pub workspace: (u64, u64),
    /// The stream.
    pub stream: u64,
}

/// Marks an algorithm that came from our heuristic.
const ALGORITHM: u64 = 0x4D55_4F4E_0000_0001;
/// Marks one that splits the inner dimension and adds the parts in D's type.
const SPLIT_ALGORITHM: u64 = 0x4D55_4F4E_0000_0002;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
const MAX_WORKSPACE: i32 = 1;
/// `CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK`. The default is all schemes, 7.
const REDUCTION_SCHEMES: i32 = 3;
/// `CUBLASLT_REDUCTION_SCHEME_INPLACE` and `CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE`: parts are kept in the type of D.
const REDUCTIONS_IN_OUTPUT_TYPE: i64 = 1 | 4;
/// Inner dimension from which the heuristic splits where it may.
const SPLIT_FROM: u64 = 32;
/// `CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES`; B, C and D follow. The default is 256.
const MIN_ALIGNMENT_A: i32 = 5;

/// A matrix layout, decoded.
#[derive(Clone, Copy, Debug)]
struct Layout {
    view: View,
    batch: u64,
    stride: i64,
}

impl Runtime {
    /// Makes a cublasLt object.
    ///
    /// # Errors
    /// For a handle, `NOT_INITIALIZED` without a usable context, and an injected status.
    pub fn lt_create(&mut self, kind: LtAttribute) -> BlasOutcome<u64> {
        if kind == LtAttribute::Handle {
            self.current_context().map_err(|_| BlasStatus::NOT_INITIALIZED)?;
            self.blas_inject(FaultSite::BlasHandle)?;
        }
        let handle = self.handles.make(Kind::Blas);
        self.blas
            .lt
            .objects
            .insert(handle, LtObject { kind: kind as u8, attributes: BTreeMap::new() });
        Ok(handle)
    }

    fn lt_object(
        &mut self,
        kind: LtAttribute,
        object: u64,
        operation: &str,
    ) -> BlasOutcome<&mut LtObject> {
        if self.blas.lt.objects.get(&object).is_none_or(|found| found.kind != kind as u8) {
            self.bad_handle(Kind::Blas, object, operation);
            return Err(BlasStatus::INVALID_VALUE);
        }
        self.blas.lt.objects.get_mut(&object).ok_or(BlasStatus::INVALID_VALUE)
    }

    /// The handle of a call that asks for a product or does it.
    fn lt_handle(&mut self, handle: u64, operation: &str) -> BlasOutcome<()> {
        let found = self.lt_object(LtAttribute::Handle, handle, operation).map(drop);
        found.map_err(|status| if handle == 0 { BlasStatus::NOT_INITIALIZED } else { status })
    }

    /// Destroys a cublasLt object. Null is one already, unless it is to be a handle.
    ///
    /// # Errors
    /// `INVALID_VALUE` for one that is gone.
    pub fn lt_destroy(&mut self, kind: LtAttribute, object: u64) -> BlasOutcome<()> {
        if object == 0 && kind != LtAttribute::Handle {
            return Ok(());
        }
        self.lt_object(kind, object, "cublasLt destroy")?;
        self.blas.lt.objects.remove(&object);
        Ok(())
    }

    /// The size and default of an attribute.
    fn lt_known(&mut self, kind: LtAttribute, attribute: i32) -> BlasOutcome<(usize, i64)> {
        kind.known(attribute).ok_or_else(|| {
            let message = format!("cublasLt 13.10 has no {kind:?} attribute {attribute}");
            self.blas_refuse(Class::InvalidArgument, "cublasLt attribute", message)
        })
    }

    /// Sets an attribute from the bytes the program passed. Their value is looked at when the object is used, as cublasLt does.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a wrong size, an attribute that there is not, or an object that is gone.
    pub fn lt_set(
        &mut self,
        kind: LtAttribute,
        object: u64,
        attribute: i32,
        value: &[u8],
    ) -> BlasOutcome<()> {
        let name = "cublasLt set attribute";
        self.lt_object(kind, object, name)?;
        let (size, _) = self.lt_known(kind, attribute)?;
        if value.len() != size {
            let message =
                format!("{kind:?} attribute {attribute} has {size} bytes, not {}", value.len());
            return Err(self.blas_refuse(Class::InvalidArgument, name, message));
        }
        self.lt_object(kind, object, name)?.attributes.insert(attribute, value.to_vec());
        Ok(())
    }

    /// The bytes of an attribute: those that were set, or its default.
    ///
    /// # Errors
    /// `INVALID_VALUE` for an attribute that there is not, or an object that is gone.
    pub fn lt_get(
        &mut self,
        kind: LtAttribute,
        object: u64,
        attribute: i32,
    ) -> BlasOutcome<Vec<u8>> {
        let (size, default) = self.lt_known(kind, attribute)?;
        let found = self.lt_object(kind, object, "cublasLt get attribute")?;
        let set = found.attributes.get(&attribute).cloned();
        Ok(set.unwrap_or_else(|| default.to_le_bytes()[..size].to_vec()))
    }

    fn lt_number(&mut self, kind: LtAttribute, object: u64, attribute: i32) -> BlasOutcome<i64> {
        self.lt_get(kind, object, attribute).map(|bytes| number_of(&bytes))
    }

    /// Refuses an object with an attribute that is not modelled and has another value than its default.
    fn lt_modelled(&mut self, kind: LtAttribute, object: u64) -> BlasOutcome<()> {
        let found = self.lt_object(kind, object, "cublasLtMatmul")?;
        let unknown = found.attributes.iter().find(|(attribute, bytes)| {
            let default = kind.known(**attribute).map(|(_, default)| default);
            !kind.is_modelled(**attribute) && Some(number_of(bytes)) != default
        });
        let Some((attribute, _)) = unknown else { return Ok(()) };
        let what = format!("cublasLt {kind:?} attribute {attribute}");
        Err(self.blas_unsupported(&what))
    }

    fn lt_layout(&mut self, layout: u64, what: &str) -> BlasOutcome<Layout> {
        self.lt_modelled(LtAttribute::Layout, layout)?;
        let number = |runtime: &mut Self, attribute| {
            runtime.lt_number(LtAttribute::Layout, layout, attribute)
        };
        let code = number(self, 0)? as i32;
        let order = number(self, 1)?;
        let (rows, cols, ld) = (number(self, 2)?, number(self, 3)?, number(self, 4)?);
        let (batch, stride) = (number(self, 5)?, number(self, 6)?);
        let Some(dtype) = Dtype::from_cuda(code) else {
            return Err(self.blas_unsupported(&format!("a cublasLt layout of cudaDataType {code}")));
        };
        if !(0..=1).contains(&order) {
            return Err(self.blas_unsupported(&format!("cublasLt matrix order {order}")));
        }
        if rows <= 0 || cols <= 0 || batch <= 0 {
            let message =
                format!("{what} is {rows} x {cols} with a batch of {batch}; all must be above 0");
            return Err(self.blas_refuse(Class::InvalidArgument, "cublasLtMatmul", message));
        }
        let needed = if order == 0 { rows } else { cols };
        if ld < needed {
            let message = format!(
                "the leading dimension of {what} is {ld}, but {what} is {rows} x {cols}, {}-major, and needs at least {needed}",
                if order == 0 { "column" } else { "row" }
            );
            return Err(self.blas_refuse(Class::InvalidArgument, "cublasLtMatmul", message));
        }
        let (rows, cols, ld) = (rows as u64, cols as u64, ld as u64);
        let view = if order == 0 {
            View::column_major(dtype, rows, cols, ld)
        } else {
            View::column_major(dtype, cols, rows, ld).transposed()
        };
        Ok(Layout { view, batch: batch as u64, stride })
    }

    /// Whether a matmul with these layouts can be done; the heuristic's and the matmul's checks.
    fn lt_group(
        &mut self,
        desc: u64,
        layouts: [u64; 4],
    ) -> BlasOutcome<(Group, [Layout; 4], Dtype)> {
        let name = "cublasLtMatmul";
        self.lt_modelled(LtAttribute::Desc, desc)?;
        let number =
            |runtime: &mut Self, attribute| runtime.lt_number(LtAttribute::Desc, desc, attribute);
        let compute = number(self, 0)? as i32;
        let epilogue = number(self, 7)?;
        if epilogue != 1 {
            return Err(self.blas_unsupported(&format!("cublasLt epilogue {epilogue}")));
        }
        if number(self, 5)? != 0 || number(self, 6)? != 2 {
            return Err(self.blas_unsupported("cublasLt with a transposed C or a fill mode"));
        }
        let scale = number(self, 1)? as i32;
        let trans = [number(self, 3)?, number(self, 4)?];
        let mut decoded =
            [Layout { view: View::column_major(Dtype::F32, 1, 1, 1), batch: 1, stride: 0 }; 4];
        for ((slot, layout), what) in decoded.iter_mut().zip(layouts).zip(["A", "B", "C", "D"]) {
            *slot = self.lt_layout(layout, what)?;
        }
        for (layout, trans) in decoded.iter_mut().zip(trans) {
            match trans {
                0 => {}
                1 | 2 => layout.view = layout.view.transposed(),
                _ => return Err(BlasStatus::INVALID_VALUE),
            }
        }
        let [a, b, c, d] = decoded.map(|layout| layout.view);
        if a.cols != b.rows
            || a.rows != d.rows
            || b.cols != d.cols
            || (c.rows, c.cols) != (d.rows, d.cols)
        {
            let message = format!(
                "op(A) is {} x {}, op(B) {} x {}, C {} x {}, D {} x {}: they do not fit together",
                a.rows, a.cols, b.rows, b.cols, c.rows, c.cols, d.rows, d.cols
            );
            return Err(self.blas_refuse(Class::InvalidArgument, name, message));
        }
        if decoded.iter().any(|layout| layout.batch != decoded[3].batch) {
            let message =
                format!("the batch counts differ: {:?}", decoded.map(|layout| layout.batch));
            return Err(self.blas_refuse(Class::InvalidArgument, name, message));
        }
        let types =
            product_types(a.dtype, b.dtype, d.dtype, compute, 0).filter(|_| c.dtype == d.dtype);
        let wanted = types.map(|(_, scalar)| i32::from(scalar == Dtype::F64));
        let Some((rounding, scalar)) = types.filter(|_| wanted == Some(scale)) else {
            let what = format!(
                "cublasLtMatmul with A {:?}, B {:?}, C {:?}, D {:?}, compute type {compute}, scale type {scale}",
                a.dtype, b.dtype, c.dtype, d.dtype
            );
            return Err(self.blas_unsupported(&what));
        };
        let zero = Scalar::Value(0.0);
        let items = Items::Known(Vec::new());
        let group =
            Group { a, b, c, d, alpha: zero, beta: zero, rounding, parts_in_output: false, items };
        Ok((group, decoded, scalar))
    }

    /// `cublasLtMatmulAlgoGetHeuristic`: an algorithm, if the problem can be done.
    ///
    /// cublasLt may split the inner dimension and add the parts in D's type unless the preference masks those reduction
    /// schemes out; here it does so whenever it may and it shows, that is where D has 16 bits.
    ///
    /// # Errors
    /// As [`Runtime::lt_matmul`]; `INTERNAL_ERROR` while the calling thread captures a stream; an injected status.
    pub fn lt_heuristic(
        &mut self,
        handle: u64,
        desc: u64,
        layouts: [u64; 4],
        preference: u64,
    ) -> BlasOutcome<[u64; 2]> {
        let name = "cublasLtMatmulAlgoGetHeuristic";
        self.lt_handle(handle, name)?;
        self.blas_inject(FaultSite::Heuristic)?;
        // CUDA 13.3's asks for the context's resources, which a capture forbids; earlier ones do not.
        self.forbid_any_capture(name).map_err(|_| BlasStatus::INTERNAL_ERROR)?;
        let (group, ..) = self.lt_group(desc, layouts)?;
        self.lt_modelled(LtAttribute::Preference, preference)?;
        let number = |runtime: &mut Self, attribute| {
            runtime.lt_number(LtAttribute::Preference, preference, attribute)
        };
        let splits = number(self, REDUCTION_SCHEMES)? & REDUCTIONS_IN_OUTPUT_TYPE != 0
            && number(self, MAX_WORKSPACE)? != 0
            && group.d.dtype.size() == 2
            && group.a.cols >= SPLIT_FROM;
        let mut alignments = 0;
        for index in 0..4 {
            let bytes = number(self, MIN_ALIGNMENT_A + index)?;
            alignments |= (bytes as u64 & 0xFFFF) << (16 * index);
        }
        Ok([if splits { SPLIT_ALGORITHM } else { ALGORITHM }, alignments])
    }

    /// Checks the addresses of a matmul, those of every matrix of a batch, against what its algorithm was chosen for.
    fn check_alignment(
        &mut self,
        addresses: [u64; 4],
        layouts: &[Layout; 4],
        alignments: u64,
    ) -> BlasOutcome<()> {
        let names = ["A", "B", "C", "D"];
        for (index, (address, what)) in addresses.into_iter().zip(names).enumerate() {
            let wanted = (alignments >> (16 * index) & 0xFFFF).max(1);
            let layout = &layouts[index];
            let stride = layout.stride.unsigned_abs().wrapping_mul(layout.view.dtype.size());
            let found = if !address.is_multiple_of(wanted) {
                format!("{what} at {address:#x} is not")
            } else if layout.batch > 1 && !stride.is_multiple_of(wanted) {
                format!(
                    "the stride of {what}, {stride} bytes from one matrix of the batch to the next, is not"
                )
            } else {
                continue;
            };
            let message = format!(
                "{found} a multiple of the {wanted} bytes that the heuristic assumed; set \
                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{what}_BYTES"
            );
            return Err(self.blas_refuse(Class::Misaligned, "cublasLtMatmul", message));
        }
        Ok(())
    }

    /// `cublasLtMatmul`: D = alpha · op(A) · op(B) + beta · C.
    ///
    /// D overlaps neither A nor B; it may be C; C may be A or B.
    ///
    /// # Errors
    /// `INVALID_VALUE` for arguments the manual forbids, `NOT_SUPPORTED` for what is not modelled,
    /// an injected status, `EXECUTION_FAILED` in a context with an error.
    pub fn lt_matmul(&mut self, call: &Matmul) -> BlasOutcome<()> {
        let name = "cublasLtMatmul";
        self.lt_handle(call.handle, name)?;
        let (mut group, layouts, scalar) = self.lt_group(call.desc, call.layouts)?;
        let mark = call.algorithm.map_or(ALGORITHM, |algorithm| algorithm[0]);
        if ![ALGORITHM, SPLIT_ALGORITHM].contains(&mark) {
            let message = "the algorithm did not come from cublasLtMatmulAlgoGetHeuristic";
            return Err(self.blas_refuse(Class::InvalidArgument, name, message));
        }
        group.parts_in_output = mark == SPLIT_ALGORITHM;
        let mode = self.lt_number(LtAttribute::Desc, call.desc, 2)? as i32;
        if !(0..=1).contains(&mode) {
            return Err(self.blas_unsupported(&format!("cublasLt pointer mode {mode}")));
        }
        if call.scalars.contains(&0) {
            return Err(self.blas_refuse(
                Class::InvalidArgument,
                name,
                "alpha or beta is a null pointer",
            ));
        }
        group.alpha = self.read_scalar(call.scalars[0], scalar, mode, name)?;
        group.beta = self.read_scalar(call.scalars[1], scalar, mode, name)?;
        // A null C is allowed where beta is 0.
        let c_base = match call.addresses[2] {
            0 if !group.may_read_c() => call.addresses[3],
            address => address,
        };
        let bases = [call.addresses[0], call.addresses[1], c_base, call.addresses[3]];
        if let Some([_, alignments]) = call.algorithm {
            self.check_alignment(bases, &layouts, alignments)?;
        }
        let items: Vec<Item> = (0..layouts[3].batch)
            .map(|index| {
                let mut at = bases;
                for (address, layout) in at.iter_mut().zip(&layouts) {
                    let bytes = layout.stride.wrapping_mul(layout.view.dtype.size() as i64);
                    *address = address.wrapping_add_signed(bytes.wrapping_mul(index as i64));
                }
                let [a, b, c, d] = at;
                Item { a, b, c, d }
            })
            .collect();
        self.check_known(&group, &items, name)?;
        group.items = Items::Known(items);
        let (address, bytes) = call.workspace;
        let workspace = if address == 0 || bytes == 0 {
            None
        } else {
            self.check_workspace(address, bytes, name)?;
            Some(Span::new(address, bytes))
        };
        self.submit_product(call.stream, name, Product { groups: vec![group], workspace })
    }
}
