//! Host programs that launch kernels wrongly, and beside each its repaired twin.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the bugs are planted below cudarc's safe layer")]

mod seeded;

use std::{
    ffi::{CString, c_void},
    sync::{Arc, OnceLock},
};

use cuda_emulator::Class;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use seeded::{Twin, free, read_back};

const N: usize = 5000;

const SOURCE: &str = r#"
extern "C" __global__ void scale(float *y, const float *x, float a, unsigned int n) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}
extern "C" __global__ void reverse_block(float *y, const float *x) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
"#;

/// [`seeded::check`] for programs that compile their kernels.
fn check_compiled(expected: &[Class], program: impl Fn(Twin) -> Vec<u8>) {
    if seeded::fetch_nvrtc() {
        seeded::check(expected, program);
    }
}

static PTX: OnceLock<CString> = OnceLock::new();

struct Program {
    ctx: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: sys::CUmodule,
}

impl Program {
    fn new() -> Self {
        let ctx = seeded::context();
        let stream = ctx.new_stream().unwrap();
        // Compiled once: the programs differ in what the host does.
        let text = PTX.get_or_init(|| {
            let options =
                cudarc::nvrtc::CompileOptions { arch: Some("sm_90"), ..Default::default() };
            let ptx = cudarc::nvrtc::compile_ptx_with_opts(SOURCE, options).unwrap();
            CString::new(ptx.to_src()).unwrap()
        });
        // SAFETY: NUL-terminated PTX.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        Program { ctx, stream, module }
    }

    fn function(&self, name: &str) -> sys::CUfunction {
        let name = CString::new(name).unwrap();
        // SAFETY: a live module.
        unsafe { result::module::get_function(self.module, name) }.unwrap()
    }

    fn finish(self) {
        self.ctx.synchronize().unwrap();
        // SAFETY: loaded above, unloaded once.
        unsafe { result::module::unload(self.module) }.unwrap();
    }
}

fn upload(values: &[f32]) -> sys::CUdeviceptr {
    // SAFETY: a fresh allocation of exactly these bytes.
    unsafe {
        let buffer = result::malloc_sync(4 * values.len()).unwrap();
        result::memcpy_htod_sync(buffer, values).unwrap();
        result::ctx::synchronize().unwrap();
        buffer
    }
}

fn numbers() -> Vec<f32> {
    (0..N).map(|i| i as f32).collect()
}

/// Launches `scale` over N elements.
///
/// # Safety
/// The buffers hold N floats.
unsafe fn scale(program: &Program, y: u64, x: u64, a: f32, stream: sys::CUstream) {
    let n = N as u32;
    let mut params: [*mut c_void; 4] = [
        (&raw const y).cast_mut().cast(),
        (&raw const x).cast_mut().cast(),
        (&raw const a).cast_mut().cast(),
        (&raw const n).cast_mut().cast(),
    ];
    // SAFETY: the arguments are those of `scale`.
    unsafe {
        result::launch_kernel(
            program.function("scale"),
            (N.div_ceil(256) as u32, 1, 1),
            (256, 1, 1),
            0,
            stream,
            &mut params,
        )
        .unwrap();
    }
}

#[test]
fn launches_in_two_streams_without_an_event() {
    check_compiled(&[Class::Race], |twin| {
        let program = Program::new();
        let second = program.ctx.new_stream().unwrap();
        let (x, y, z) = (upload(&numbers()), upload(&numbers()), upload(&numbers()));
        // SAFETY: all buffers hold N floats.
        unsafe {
            scale(&program, y, x, 2.0, program.stream.cu_stream());
            if twin == Twin::Fixed {
                second.join(&program.stream).unwrap();
            }
            scale(&program, z, y, 3.0, second.cu_stream());
        }
        second.synchronize().unwrap();
        program.ctx.synchronize().unwrap();
        let got = read_back(z, 4 * N);
        free(&[x, y, z]);
        program.finish();
        got
    });
}

#[test]
fn a_later_launch_overwrites_what_a_copy_still_reads() {
    check_compiled(&[Class::Race], |twin| {
        let program = Program::new();
        let second = program.ctx.new_stream().unwrap();
        let (x, y, z) = (upload(&numbers()), upload(&numbers()), upload(&numbers()));
        // SAFETY: all buffers hold N floats.
        unsafe {
            result::memcpy_dtod_async(z, y, 4 * N, second.cu_stream()).unwrap();
            if twin == Twin::Fixed {
                program.stream.join(&second).unwrap();
            }
            scale(&program, y, x, 2.0, program.stream.cu_stream());
        }
        program.ctx.synchronize().unwrap();
        let got = read_back(z, 4 * N);
        free(&[x, y, z]);
        program.finish();
        got
    });
}

#[test]
fn launch_on_memory_that_was_freed() {
    check_compiled(&[Class::UseAfterFree], |twin| {
        let program = Program::new();
        let (x, y) = (upload(&numbers()), upload(&numbers()));
        // SAFETY: the buffers hold N floats; one dies early in the buggy program.
        unsafe { scale(&program, y, x, 2.0, program.stream.cu_stream()) };
        if twin == Twin::Buggy {
            // SAFETY: allocated above, freed once; that it is too early is the point.
            unsafe { result::free_sync(x) }.unwrap();
        }
        program.stream.synchronize().unwrap();
        let got = read_back(y, 4 * N);
        free(&[y]);
        if twin == Twin::Fixed {
            free(&[x]);
        }
        program.finish();
        got
    });
}

#[test]
fn more_dynamic_shared_memory_than_was_asked_for() {
    check_compiled(&[Class::LaunchLimit], |twin| {
        let program = Program::new();
        let (x, y) = (upload(&numbers()), upload(&numbers()));
        let reverse = program.function("reverse_block");
        let bytes = 100 << 10;
        let mut params: [*mut c_void; 2] =
            [(&raw const y).cast_mut().cast(), (&raw const x).cast_mut().cast()];
        // SAFETY: the arguments are those of `reverse_block`; 4 blocks of 1000 threads lie in N.
        unsafe {
            if twin == Twin::Fixed {
                let attribute =
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                result::function::set_function_attribute(reverse, attribute, bytes).unwrap();
            }
            result::launch_kernel(
                reverse,
                (4, 1, 1),
                (1000, 1, 1),
                bytes as u32,
                program.stream.cu_stream(),
                &mut params,
            )
            .unwrap();
        }
        program.stream.synchronize().unwrap();
        let got = read_back(y, 4 * N);
        free(&[x, y]);
        program.finish();
        got
    });
}

#[test]
fn argument_buffer_of_the_wrong_size() {
    check_compiled(&[Class::InvalidArgument], |twin| {
        let program = Program::new();
        let (x, y) = (upload(&numbers()), upload(&numbers()));
        // As `scale` lays them out, or with the count as 64 bits.
        let mut packed: Vec<u8> = [y.to_le_bytes(), x.to_le_bytes()].concat();
        packed.extend(2.0_f32.to_le_bytes());
        packed.extend((N as u32).to_le_bytes());
        if twin == Twin::Buggy {
            packed.extend([0; 4]);
        }
        let mut size = packed.len();
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            packed.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut size).cast(),
            std::ptr::null_mut(),
        ];
        // SAFETY: `extra` is a list of pairs with its end.
        unsafe {
            sys::cuLaunchKernel(
                program.function("scale"),
                N.div_ceil(256) as u32,
                1,
                1,
                256,
                1,
                1,
                0,
                program.stream.cu_stream(),
                std::ptr::null_mut(),
                extra.as_mut_ptr(),
            )
            .result()
            .unwrap();
        }
        program.stream.synchronize().unwrap();
        let got = read_back(y, 4 * N);
        free(&[x, y]);
        program.finish();
        got
    });
}

#[test]
fn module_unloaded_under_a_queued_launch() {
    check_compiled(&[Class::UseAfterFree], |twin| {
        let program = Program::new();
        let (x, y) = (upload(&numbers()), upload(&numbers()));
        // SAFETY: the buffers hold N floats; the module dies early in the buggy program.
        unsafe {
            scale(&program, y, x, 2.0, program.stream.cu_stream());
            if twin == Twin::Fixed {
                program.stream.synchronize().unwrap();
            }
            result::module::unload(program.module).unwrap();
        }
        program.stream.synchronize().unwrap();
        let got = read_back(y, 4 * N);
        free(&[x, y]);
        got
    });
}

#[test]
fn block_count_that_covers_too_much_and_a_kernel_without_its_guard() {
    // The kernel has no tail check: one block too many reads past the end.
    check_compiled(&[Class::OutOfBounds], |twin| {
        let program = Program::new();
        let (x, y) = (upload(&numbers()), upload(&numbers()));
        let reverse = program.function("reverse_block");
        let blocks = if twin == Twin::Fixed { 5 } else { 6 };
        let mut params: [*mut c_void; 2] =
            [(&raw const y).cast_mut().cast(), (&raw const x).cast_mut().cast()];
        // SAFETY: the arguments are those of `reverse_block`.
        unsafe {
            result::launch_kernel(
                reverse,
                (blocks, 1, 1),
                (1000, 1, 1),
                4000,
                program.stream.cu_stream(),
                &mut params,
            )
            .unwrap();
        }
        program.stream.synchronize().unwrap();
        let got = read_back(y, 4 * N);
        free(&[x, y]);
        program.finish();
        got
    });
}
