//! What the device reaches at most: copies, and one large product by cublasLt, measured in the same run.

use std::ffi::c_void;
use std::sync::Arc;

use muon_cuda::Precision;
use muon_cuda::cudarc::cublaslt::result;
use muon_cuda::cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cudaDataType,
};
use muon_cuda::cudarc::driver::{CudaStream, DevicePtr};

use half::{bf16, f16};

use super::{Failure, Scale, median_ms, numbers};

/// Bytes that a second of copying reads and writes.
pub(super) fn copies(stream: &Arc<CudaStream>, scale: Scale) -> Result<f64, Failure> {
    let bytes = scale.pick(1 << 30, 1 << 16);
    let from = stream.alloc_zeros::<u8>(bytes)?;
    let mut to = stream.alloc_zeros::<u8>(bytes)?;
    let times = scale.pick(20, 2);
    let ms = median_ms(stream, times, || Ok(stream.memcpy_dtod(&from, &mut to)?))?;
    Ok(2.0 * bytes as f64 / (ms.median * 1e-3))
}

/// FLOP/s of one large square product with the iterate's inputs and f32 sums.
pub(super) fn products(
    stream: &Arc<CudaStream>,
    precision: Precision,
    scale: Scale,
) -> Result<f64, Failure> {
    let n = scale.pick(8192usize, 64);
    let (kind, compute, size) = match precision {
        Precision::Bf16 => (cudaDataType::CUDA_R_16BF, cublasComputeType_t::CUBLAS_COMPUTE_32F, 2),
        Precision::Fp16 => (cudaDataType::CUDA_R_16F, cublasComputeType_t::CUBLAS_COMPUTE_32F, 2),
        Precision::Tf32 => {
            (cudaDataType::CUDA_R_32F, cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32, 4)
        }
        _ => (cudaDataType::CUDA_R_32F, cublasComputeType_t::CUBLAS_COMPUTE_32F, 4),
    };
    let values = numbers(n * n, 7);
    let values = values.iter();
    let bytes: Vec<u8> = match precision {
        Precision::Bf16 => values.flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        Precision::Fp16 => values.flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.flat_map(|x| x.to_le_bytes()).collect(),
    };
    let (a, b) = (stream.clone_htod(&bytes)?, stream.clone_htod(&bytes)?);
    let d = stream.alloc_zeros::<u8>(n * n * size)?;
    let workspace = stream.alloc_zeros::<u8>(scale.pick(32 << 20, 1 << 16))?;
    let address = |slice: &muon_cuda::cudarc::driver::CudaSlice<u8>| {
        let (address, guard) = slice.device_ptr(stream);
        drop(guard);
        address as *mut c_void
    };
    let [a, b, d_address, room] = [&a, &b, &d, &workspace].map(address);
    let bytes = workspace.len();
    let (side, ld) = (n as u64, n as i64);
    let handle = result::create_handle()?;
    let desc = result::create_matmul_desc(compute, cudaDataType::CUDA_R_32F)?;
    let layout = result::create_matrix_layout(kind, side, side, ld)?;
    let preference = result::create_matmul_pref()?;
    // SAFETY: the preference is alive, and the value has the attribute's type.
    unsafe {
        result::set_matmul_pref_attribute(
            preference,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&bytes).cast(),
            size_of_val(&bytes),
        )
    }?;
    // SAFETY: all objects are alive and describe one square product.
    let found = unsafe {
        result::get_matmul_algo_heuristic(handle, desc, layout, layout, layout, layout, preference)
    }?;
    let (alpha, beta) = (1.0f32, 0.0f32);
    let ms = median_ms(stream, scale.pick(20, 2), || {
        // SAFETY: objects and buffers are alive, and each buffer holds n·n elements.
        unsafe {
            result::matmul(
                handle,
                desc,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                a,
                layout,
                b,
                layout,
                d_address,
                layout,
                d_address,
                layout,
                &raw const found.algo,
                room,
                bytes,
                stream.cu_stream().cast(),
            )
        }?;
        Ok(())
    })?;
    // SAFETY: alive until here, used nowhere else.
    unsafe { result::destroy_matmul_pref(preference) }?;
    // SAFETY: as above.
    unsafe { result::destroy_matrix_layout(layout) }?;
    // SAFETY: as above.
    unsafe { result::destroy_matmul_desc(desc) }?;
    // SAFETY: as above.
    unsafe { result::destroy_handle(handle) }?;
    Ok(2.0 * (n as f64).powi(3) / (ms.median * 1e-3))
}
