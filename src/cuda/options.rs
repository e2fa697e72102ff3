//! How kernels are compiled: the one list of NVRTC options, which the tests share.

/// The oldest architecture the kernels are written for: bf16 arithmetic and tensor cores begin with it.
pub(crate) const OLDEST_ARCHITECTURE: u32 = 80;

/// NVRTC's options for an architecture such as `compute_90` (for PTX) or `sm_90` (for machine code).
///
/// No product and sum are fused, division and square root are IEEE's, and subnormals are kept: the CPU
/// device computes the same bits. `-lineinfo` costs nothing at run time and gives profilers and
/// compute-sanitizer the lines of `kernels/`.
pub(crate) fn options(architecture: &str) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(
        [
            "--std=c++17",
            "--fmad=false",
            "--ftz=false",
            "--prec-div=true",
            "--prec-sqrt=true",
            "-lineinfo",
        ]
        .map(str::to_owned),
    );
    options
}
