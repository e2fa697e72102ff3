//! A product through cublasLt, from descriptors to the call.

use std::ffi::c_void;

use cudarc::cublaslt::sys as lt;

use super::{Case, Layout, Type};

/// cublasLt with C apart from D and a leading dimension of its own for each.
///
/// # Safety
/// The buffers hold what the layouts say.
pub(crate) unsafe fn matmul(
    case: &Case,
    layouts: [&Layout; 4],
    at: [u64; 4],
    alpha: *const c_void,
    beta: *const c_void,
    batch: usize,
    stream: &cudarc::driver::CudaStream,
) {
    let lt_type = |dtype: Type| match dtype {
        Type::CUDA_R_16F => lt::cudaDataType_t::CUDA_R_16F,
        Type::CUDA_R_16BF => lt::cudaDataType_t::CUDA_R_16BF,
        _ => lt::cudaDataType_t::CUDA_R_32F,
    };
    let compute = if case.tf32 {
        lt::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
    } else {
        lt::cublasComputeType_t::CUBLAS_COMPUTE_32F
    };
    // SAFETY: each object is made, set with values of its attributes' sizes, and destroyed once.
    unsafe {
        let mut handle = std::ptr::null_mut();
        lt::cublasLtCreate(&raw mut handle).result().unwrap();
        let mut desc = std::ptr::null_mut();
        lt::cublasLtMatmulDescCreate(&raw mut desc, compute, lt::cudaDataType_t::CUDA_R_32F)
            .result()
            .unwrap();
        let set = |attribute, value: i32| {
            lt::cublasLtMatmulDescSetAttribute(desc, attribute, (&raw const value).cast(), 4)
                .result()
                .unwrap();
        };
        set(
            lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            i32::from(case.trans[0]),
        );
        set(
            lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
            i32::from(case.trans[1]),
        );
        set(
            lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_POINTER_MODE,
            i32::from(case.device_scalars),
        );
        let mut objects = [std::ptr::null_mut(); 4];
        for (index, (object, layout)) in objects.iter_mut().zip(layouts).enumerate() {
            let dtype = lt_type(if index < 2 { case.input } else { case.output });
            lt::cublasLtMatrixLayoutCreate(
                object,
                dtype,
                layout.rows as u64,
                layout.cols as u64,
                layout.ld as i64,
            )
            .result()
            .unwrap();
            let (count, stride) = (batch as i32, layout.stride as i64);
            use lt::cublasLtMatrixLayoutAttribute_t as Attribute;
            lt::cublasLtMatrixLayoutSetAttribute(
                *object,
                Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                (&raw const count).cast(),
                4,
            )
            .result()
            .unwrap();
            lt::cublasLtMatrixLayoutSetAttribute(
                *object,
                Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                (&raw const stride).cast(),
                8,
            )
            .result()
            .unwrap();
        }
        let mut preference = std::ptr::null_mut();
        lt::cublasLtMatmulPreferenceCreate(&raw mut preference).result().unwrap();
        // Batches have odd strides, so nothing wider than an element is aligned.
        use lt::cublasLtMatmulPreferenceAttributes_t as Preference;
        for (attribute, dtype) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, case.input),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, case.input),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, case.output),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, case.output),
        ] {
            let bytes = super::size(dtype) as u32;
            lt::cublasLtMatmulPreferenceSetAttribute(
                preference,
                attribute,
                (&raw const bytes).cast(),
                4,
            )
            .result()
            .unwrap();
        }
        let mut heuristic: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
        let mut found = 0;
        lt::cublasLtMatmulAlgoGetHeuristic(
            handle,
            desc,
            objects[0],
            objects[1],
            objects[2],
            objects[3],
            preference,
            1,
            &raw mut heuristic,
            &raw mut found,
        )
        .result()
        .unwrap();
        assert_eq!(found, 1);
        lt::cublasLtMatmul(
            handle,
            desc,
            alpha,
            at[0] as *const c_void,
            objects[0],
            at[1] as *const c_void,
            objects[1],
            beta,
            at[2] as *const c_void,
            objects[2],
            at[3] as *mut c_void,
            objects[3],
            &raw const heuristic.algo,
            std::ptr::null_mut(),
            0,
            stream.cu_stream().cast(),
        )
        .result()
        .unwrap();
        lt::cublasLtMatmulPreferenceDestroy(preference).result().unwrap();
        for object in objects {
            lt::cublasLtMatrixLayoutDestroy(object).result().unwrap();
        }
        lt::cublasLtMatmulDescDestroy(desc).result().unwrap();
        lt::cublasLtDestroy(handle).result().unwrap();
    }
}
