//! cublasLt, under the prefix `cuda_emulator_` for the thin libcublasLt.

use std::ffi::{c_int, c_void};

use cuda_emulator::blas::{BlasOutcome, LtAttribute, Matmul};

use crate::{
    abi::{In, Out, blas_entries, rt},
    blas::{INVALID, give},
};

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

fn set(
    kind: LtAttribute,
    object: u64,
    attribute: c_int,
    value: *const c_void,
    size: usize,
) -> BlasOutcome<()> {
    if value.is_null() {
        return Err(INVALID);
    }
    // SAFETY: not null, and by contract readable for `size` bytes.
    let value = unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) };
    rt(|rt| rt.lt_set(kind, object, attribute, value))
}

fn get(
    kind: LtAttribute,
    object: u64,
    attribute: c_int,
    value: *mut c_void,
    size: usize,
    written: Out<usize>,
) -> BlasOutcome<()> {
    let found = rt(|rt| rt.lt_get(kind, object, attribute))?;
    written.set_if_wanted(found.len());
    if size == 0 {
        return Ok(());
    }
    if value.is_null() || size < found.len() {
        return Err(INVALID);
    }
    // SAFETY: not null, and by contract writable for `size` bytes, which is enough.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), value.cast::<u8>(), found.len()) };
    Ok(())
}

/// Makes an object with these attributes, where there is a place for it.
fn make(place: Out<u64>, kind: LtAttribute, attributes: &[(c_int, &[u8])]) -> BlasOutcome<()> {
    if place.raw().is_null() {
        return Err(INVALID);
    }
    let made = rt(|rt| {
        let made = rt.lt_create(kind)?;
        for (attribute, value) in attributes {
            rt.lt_set(kind, made, *attribute, value)?;
        }
        Ok(made)
    })?;
    give(place, made)
}

blas_entries! {
    cuda_emulator_cublasLtCreate(handle: Out<u64>) { make(handle, LtAttribute::Handle, &[]) }
    cuda_emulator_cublasLtDestroy(handle: u64) { rt(|rt| rt.lt_destroy(LtAttribute::Handle, handle)) }
    cuda_emulator_cublasLtMatmulDescCreate(desc: Out<u64>, compute: c_int, scale: c_int) {
        make(desc, LtAttribute::Desc, &[(0, &compute.to_le_bytes()), (1, &scale.to_le_bytes())])
    }
    cuda_emulator_cublasLtMatmulDescDestroy(desc: u64) { rt(|rt| rt.lt_destroy(LtAttribute::Desc, desc)) }
    cuda_emulator_cublasLtMatmulDescSetAttribute(desc: u64, attribute: c_int, value: *const c_void, size: usize) {
        set(LtAttribute::Desc, desc, attribute, value, size)
    }
    cuda_emulator_cublasLtMatmulDescGetAttribute(desc: u64, attribute: c_int, value: *mut c_void, size: usize, written: Out<usize>) {
        get(LtAttribute::Desc, desc, attribute, value, size, written)
    }
    cuda_emulator_cublasLtMatrixLayoutCreate(layout: Out<u64>, dtype: c_int, rows: u64, cols: u64, ld: i64) {
        let (dtype, rows, cols, ld) =
            (dtype.to_le_bytes(), rows.to_le_bytes(), cols.to_le_bytes(), ld.to_le_bytes());
        make(layout, LtAttribute::Layout, &[(0, &dtype), (2, &rows), (3, &cols), (4, &ld)])
    }
    cuda_emulator_cublasLtMatrixLayoutDestroy(layout: u64) {
        rt(|rt| rt.lt_destroy(LtAttribute::Layout, layout))
    }
    cuda_emulator_cublasLtMatrixLayoutSetAttribute(layout: u64, attribute: c_int, value: *const c_void, size: usize) {
        set(LtAttribute::Layout, layout, attribute, value, size)
    }
    cuda_emulator_cublasLtMatrixLayoutGetAttribute(layout: u64, attribute: c_int, value: *mut c_void, size: usize, written: Out<usize>) {
        get(LtAttribute::Layout, layout, attribute, value, size, written)
    }
    cuda_emulator_cublasLtMatmulPreferenceCreate(preference: Out<u64>) {
        make(preference, LtAttribute::Preference, &[])
    }
    cuda_emulator_cublasLtMatmulPreferenceDestroy(preference: u64) {
        rt(|rt| rt.lt_destroy(LtAttribute::Preference, preference))
    }
    cuda_emulator_cublasLtMatmulPreferenceSetAttribute(preference: u64, attribute: c_int, value: *const c_void, size: usize) {
        set(LtAttribute::Preference, preference, attribute, value, size)
    }
    cuda_emulator_cublasLtMatmulPreferenceGetAttribute(preference: u64, attribute: c_int, value: *mut c_void, size: usize, written: Out<usize>) {
        get(LtAttribute::Preference, preference, attribute, value, size, written)
    }
    cuda_emulator_cublasLtMatmulAlgoGetHeuristic(handle: u64, desc: u64, a: u64, b: u64, c: u64, d: u64, preference: u64, wanted: c_int, results: Out<Heuristic>, found: Out<c_int>) {
        if wanted < 1 || results.raw().is_null() {
            return Err(INVALID);
        }
        match rt(|rt| rt.lt_heuristic(handle, desc, [a, b, c, d], preference)) {
            Ok(algorithm) => {
                let mut words = [0; 8];
                words[..2].copy_from_slice(&algorithm);
                give(results, Heuristic { algorithm: words, workspace: 0, state: 0, waves: 1.0, reserved: [0; 4] })?;
                give(found, 1)
            }
            Err(status) => {
                found.set_if_wanted(0);
                Err(status)
            }
        }
    }
    cuda_emulator_cublasLtMatmul(handle: u64, desc: u64, alpha: u64, a: u64, a_layout: u64, b: u64, b_layout: u64, beta: u64, c: u64, c_layout: u64, d: u64, d_layout: u64, algorithm: In<[u64; 2]>, workspace: u64, bytes: usize, stream: u64) {
        let call = Matmul {
            handle,
            desc,
            scalars: [alpha, beta],
            addresses: [a, b, c, d],
            layouts: [a_layout, b_layout, c_layout, d_layout],
            algorithm: if algorithm.address() == 0 { None } else { Some(algorithm.get().map_err(|_| INVALID)?) },
            workspace: (workspace, bytes as u64),
            stream,
        };
        rt(|rt| rt.lt_matmul(&call))
    }
}
