//! Where the tests run: the emulator, or the GPU with `MUON_TEST_DEVICE=gpu`.

use std::sync::{Arc, OnceLock};

use cuda_emulator::{Config, Counters, Emulator};
use muon_cuda::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use muon_cuda::{Cuda, CudaGrad, CudaParamMut, Muon, MuonConfig};

/// Whether a real GPU is asked for.
pub fn on_gpu() -> bool {
    std::env::var("MUON_TEST_DEVICE").is_ok_and(|d| d == "gpu")
}

/// NVRTC into Cargo's target directory, unless `CUDA_EMULATOR_NVRTC_DIR` names another: this binary also runs where nothing of
/// the directory that it was built in exists.
fn fetch_nvrtc() {
    static FETCHED: OnceLock<()> = OnceLock::new();
    FETCHED.get_or_init(|| {
        if std::env::var_os("CUDA_EMULATOR_NVRTC_DIR").is_some() {
            return;
        }
        // The cache of the tests, not the user's.
        let cache = cuda_emulator::fetch_nvrtc().unwrap().target.join("tmp/muon-kernels");
        // SAFETY: every test of this binary comes through here before it looks at the environment.
        unsafe { std::env::set_var("MUON_CUDA_CACHE_DIR", cache) };
    });
}

/// Says, where output is shown, that a test has nothing to do on a GPU.
pub fn only_on_the_emulator(why: &str) -> bool {
    if on_gpu() {
        println!("not tested on a GPU: {why}");
    }
    !on_gpu()
}

/// The emulator of a test; it ends with `finish`, which asserts that nothing was found.
pub struct Session {
    emulator: Option<Emulator>,
}

impl Session {
    pub fn new(seed: u64) -> Self {
        Self::with_config(Config::with_seed(seed))
    }

    pub fn with_config(config: Config) -> Self {
        if on_gpu() {
            return Self { emulator: None };
        }
        fetch_nvrtc();
        Self { emulator: Some(Emulator::load(config).unwrap()) }
    }

    /// What the emulator counted since the last call of [`Session::reset`]; `None` on a GPU.
    pub fn counters(&self) -> Option<Counters> {
        self.emulator.as_ref().map(|e| e.counters().unwrap())
    }

    pub fn reset(&self) {
        if let Some(e) = &self.emulator {
            e.reset_counters().unwrap();
        }
    }

    /// Asserts that the emulator found nothing: no bad access, no race, no leak.
    pub fn finish(self) {
        if let Some(e) = self.emulator {
            let found = e.finish().unwrap();
            assert!(
                found.is_empty(),
                "{}",
                found.iter().map(|f| format!("{f}\n")).collect::<String>()
            );
        }
    }
}

/// Runs a test on a device, and checks what the emulator found.
pub fn with_device<R>(seed: u64, test: impl FnOnce(&Session) -> R) -> R {
    let session = Session::new(seed);
    let result = test(&session);
    session.finish();
    result
}

/// An optimizer on the device.
pub fn muon(config: MuonConfig) -> Muon<Cuda> {
    Muon::new(Cuda::new(0).unwrap(), config).unwrap()
}

/// The stream of an optimizer's device.
pub fn stream(muon: &Muon<Cuda>) -> Arc<CudaStream> {
    Arc::clone(muon.device().stream())
}

/// A slice on the device that starts that many elements into its allocation.
pub struct Offset<T> {
    slice: CudaSlice<T>,
    offset: usize,
    stream: Arc<CudaStream>,
}

impl<T: DeviceRepr + ValidAsZeroBits + Clone + Default> Offset<T> {
    pub fn new(stream: &Arc<CudaStream>, data: &[T], offset: usize) -> Self {
        let mut padded = vec![T::default(); offset];
        padded.extend_from_slice(data);
        Self { slice: stream.clone_htod(&padded).unwrap(), offset, stream: Arc::clone(stream) }
    }

    pub fn download(&self) -> Vec<T> {
        let out = self.stream.clone_dtoh(&self.slice.slice(self.offset..)).unwrap();
        self.stream.synchronize().unwrap();
        out
    }

    pub fn upload(&mut self, data: &[T]) {
        let mut view = self.slice.slice_mut(self.offset..);
        self.stream.memcpy_htod(data, &mut view).unwrap();
    }

    pub fn grad(&self) -> CudaGrad<'_>
    where
        for<'a> CudaGrad<'a>: From<muon_cuda::cudarc::driver::CudaView<'a, T>>,
    {
        CudaGrad::from(self.slice.slice(self.offset..))
    }

    /// A view of no element.
    pub fn empty_param(&mut self) -> CudaParamMut<'_>
    where
        for<'a> CudaParamMut<'a>: From<muon_cuda::cudarc::driver::CudaViewMut<'a, T>>,
    {
        CudaParamMut::from(self.slice.slice_mut(..0))
    }

    pub fn param(&mut self) -> CudaParamMut<'_>
    where
        for<'a> CudaParamMut<'a>: From<muon_cuda::cudarc::driver::CudaViewMut<'a, T>>,
    {
        CudaParamMut::from(self.slice.slice_mut(self.offset..))
    }
}
