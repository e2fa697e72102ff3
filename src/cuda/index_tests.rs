//! Index arithmetic past 2³¹ and 2³² elements, without the memory for them.
//!
//! Kernels get tables that describe a matrix of billions of elements and a block far inside it; base addresses are moved back
//! by as much, so that what is touched is a small buffer. An index that is cut to 32 bits, with a sign or without, goes
//! elsewhere: the emulator finds that, and the bits differ from those of the same block at the front.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "test data, and counters that are to wrap"
)]

use cuda_emulator::{Config, Emulator};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::cache::Cache;
use super::compile::Kernels;
use super::compile::tests::emulator;
use super::launch::{Launcher, Mode, SymmetricBatch};
use super::memory::Buffer;
use super::sources::SOURCES;
use super::state::CudaState;
use super::table::{
    self, AdamWScalars, AdamWStep, BF16, CAUTIOUS, F32, GRAD_SHIFT, ITERATE_SHIFT, MOMENTUM_SHIFT,
    Matrix, NESTEROV, Norm, PARAM_SHIFT, Record, STOCHASTIC, Scalars, Span, TILE, Tensor,
};
use super::workspace::CudaWorkspace;
use super::{CudaGrad, CudaParamMut, passes};
use crate::config::{Bf16Params, MomentumMode, MuonConfig, MuonRule, Nesterov, WeightDecayMode};
use crate::device::{MatrixJob, MuonScalars, StateRule, StateSpec, StepTensor};
use crate::plan::Plan;
use crate::precision::Dtype;
use crate::shape::{Block, MatrixShape};
use crate::{Cpu, Muon, ParamSpec};

/// First tiles that lie past 2³¹ and past 2³² elements.
const FAR: [usize; 2] = [300_000, 600_000];
const _: () = assert!(FAR[0] * TILE > 1 << 31 && FAR[0] * TILE < 1 << 32);
const _: () = assert!(FAR[1] * TILE > 1 << 32);
/// Elements of the block: rows of 16, of which a strided matrix has 20 from one to the next.
const LEN: usize = 1008;
const COLS: usize = 16;
const STRIDE: usize = 20;

struct Device {
    launcher: Launcher,
    emulator: Emulator,
}

impl Device {
    fn new() -> Self {
        let emulator = emulator(Config::with_seed(1));
        let context = CudaContext::new(0).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let kernels = Kernels::load_sources(&context, SOURCES, &Cache::at(cache.path())).unwrap();
        let stream = context.new_stream().unwrap();
        Self {
            launcher: Launcher {
                kernels,
                stream,
                mode: Mode::Enqueue,
                left_out: AtomicU64::new(0),
            },
            emulator,
        }
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.launcher.stream
    }

    fn put<T: DeviceRepr + ValidAsZeroBits>(&self, data: &[T]) -> Buffer<T> {
        let mut buffer = Buffer::zeroed(self.stream(), data.len(), "test data").unwrap();
        buffer.upload(self.stream(), data, "test data").unwrap();
        buffer
    }

    fn get<T: DeviceRepr + Clone + Default>(&self, buffer: &Buffer<T>) -> Vec<T> {
        buffer.download(self.stream(), buffer.len(), "test data").unwrap()
    }

    /// Ends the device; the emulator must have found nothing.
    fn finish(self) {
        let Self { launcher, emulator } = self;
        launcher.stream.synchronize().unwrap();
        drop(launcher);
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

/// Values that differ everywhere, of both signs.
fn values(len: usize, salt: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + salt * 101) % 1009) as f32 / 505.0 - 1.0).collect()
}

fn bf16s(x: &[f32]) -> Vec<half::bf16> {
    x.iter().map(|x| half::bf16::from_f32(*x)).collect()
}

fn raw(x: &[half::bf16]) -> Vec<u32> {
    x.iter().map(|x| u32::from(x.to_bits())).collect()
}

fn words(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The bits of f64, low half first.
fn halves(x: &[f64]) -> Vec<u32> {
    x.iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]).collect()
}

/// An address `elements` before a buffer's start.
fn before<T>(buffer: &Buffer<T>, elements: usize) -> u64 {
    buffer.address().wrapping_sub((elements * size_of::<T>()) as u64)
}

/// Every kernel of passes A and B on the block that starts at that tile: all that they write.
fn passes_on(device: &Device, tile: usize, strided: bool, stochastic: bool) -> Vec<Vec<u32>> {
    let begin = tile * TILE;
    let (stride, there) =
        if strided { (STRIDE, begin / COLS * STRIDE) } else { (begin + LEN, begin) };
    let room = if strided { LEN / COLS * STRIDE } else { LEN };
    let grad = device.put(&bf16s(&values(room, 1)));
    let momentum = device.put(&values(room, 2));
    let iterate = device.put(&bf16s(&vec![0.0; LEN]));
    let param_f32 = device.put(&values(room, 3));
    let param_bf16 = device.put(&bf16s(&values(room, 3)));
    let counters = device.put(&[0u64; 3]);
    let matrix = Matrix {
        grad: before(&grad, there),
        momentum: before(&momentum, there),
        param: if stochastic { before(&param_bf16, there) } else { before(&param_f32, there) },
        master: 0,
        iterate: before(&iterate, begin),
        result: before(&iterate, begin),
        counters: counters.address(),
        rows: if strided { ((begin + LEN) / COLS) as u64 } else { 1 },
        cols: if strided { COLS as u64 } else { (begin + LEN) as u64 },
        row_stride: stride as u64,
        // The index in the parameter, which decides the random bits, is that of the far block for all.
        offset: (FAR[1] * TILE * STRIDE / COLS - there) as u64,
        random_key: 5,
        safety: 1.0,
        norm_floor: 1e-30,
        first_tile: 0u32.wrapping_sub(tile as u32),
        tiles: 1,
        kind: BF16 << GRAD_SHIFT
            | F32 << MOMENTUM_SHIFT
            | if stochastic { BF16 << PARAM_SHIFT | STOCHASTIC } else { F32 << PARAM_SHIFT }
            | BF16 << ITERATE_SHIFT
            | NESTEROV
            | CAUTIOUS,
        matrix: 0,
        matrices: 1,
        reserved: 0,
    };
    let matrices = device.put(&[matrix]);
    let tile_matrix = device.put(&[0u32]);
    let scalars = device.put(&[Scalars {
        momentum: 0.95,
        gain: 0.05,
        keep: 0.9,
        step: 0.3,
        l2: 0.0,
        largest: 1e9,
    }]);
    let norms = device.put(&[Norm { power: 0.5, factor: 1.25, finite: 1, reserved: 0 }]);
    let grad_scale = device.put(&[0.75f32]);
    let (sums, checks) = (device.put(&[0f64]), device.put(&[1f64]));
    let at = [tile_matrix.address(), matrices.address(), scalars.address()];
    let l = &device.launcher;
    l.direction_scan(1, at[0], at[1], at[2], grad_scale.address(), sums.address()).unwrap();
    l.momentum_blend(1, at[0], at[1], at[2], norms.address(), grad_scale.address()).unwrap();
    l.update_check(1, at[0], at[1], checks.address()).unwrap();
    l.update_apply(1, at[0], at[1], at[2], norms.address()).unwrap();
    let sums = device.get(&sums);
    assert!(sums[0] > 0.0);
    assert_eq!(device.get(&checks), [0.0], "not a checked matrix");
    vec![
        halves(&sums),
        words(&device.get(&momentum)),
        raw(&device.get(&iterate)),
        words(&device.get(&param_f32)),
        raw(&device.get(&param_bf16)),
    ]
}

#[test]
fn passes_a_and_b_reach_blocks_past_two_to_the_32() {
    let device = Device::new();
    for strided in [false, true] {
        for stochastic in [false, true] {
            let near = passes_on(&device, 0, strided, stochastic);
            let start = words(&values(near[3].len(), 3));
            assert_eq!(near[3] == start, stochastic, "one of the two parameters was updated");
            assert_eq!(near[4] == raw(&bf16s(&values(near[4].len(), 3))), !stochastic);
            for tile in FAR {
                let far = passes_on(&device, tile, strided, stochastic);
                assert!(far == near, "tile {tile}, strided {strided}, stochastic {stochastic}");
            }
        }
    }
    device.finish();
}

/// Whether a checked matrix takes part, by its update and the largest magnitude that is allowed.
fn judged(device: &Device, update: &[f32], largest: f32, finite: u32) -> u32 {
    let result = device.put(update);
    let len = update.len();
    let matrix = Matrix {
        grad: 0,
        momentum: 0,
        param: 0,
        master: 0,
        iterate: 0,
        result: result.address(),
        counters: 0,
        rows: 1,
        cols: len as u64,
        row_stride: len as u64,
        offset: 0,
        random_key: 0,
        safety: 1.0,
        norm_floor: 1e-30,
        first_tile: 0,
        tiles: len.div_ceil(TILE) as u32,
        kind: F32 << ITERATE_SHIFT | table::CHECKED,
        matrix: 0,
        matrices: 1,
        reserved: 0,
    };
    let matrices = device.put(&[matrix]);
    let tile_matrix = device.put(&vec![0u32; len.div_ceil(TILE)]);
    let scalars = Scalars { momentum: 0.0, gain: 1.0, keep: 1.0, step: 1.0, l2: 0.0, largest };
    let scalars = device.put(&[scalars]);
    let norms = device.put(&[Norm { power: 1.0, factor: 1.0, finite, reserved: 0 }]);
    let partial = device.put(&vec![0f64; len.div_ceil(TILE)]);
    let (matrices, partial) = (matrices.address(), partial.address());
    let l = &device.launcher;
    l.update_check(len.div_ceil(TILE), tile_matrix.address(), matrices, partial).unwrap();
    l.update_verdict(1, matrices, scalars.address(), partial, norms.address()).unwrap();
    device.get(&norms)[0].finite
}

#[test]
fn a_checked_update_is_judged_by_its_largest_element_wherever_it_stands() {
    let device = Device::new();
    let len = 2 * TILE + 39;
    let plain = vec![0.5f32; len];
    assert_eq!(judged(&device, &plain, 0.5, 1), 1);
    assert_eq!(judged(&device, &plain, 0.5, 0), 0, "what the direction decided stays");
    // In packs and beside them, in every tile.
    for at in [0, 3, 255, 4096, TILE - 1, TILE, 2 * TILE, len - 1] {
        for (value, largest, takes_part) in [
            (-7.0, 7.0, 1),
            (-7.0, 6.9, 0),
            (f32::MAX, f32::INFINITY, 1),
            (f32::INFINITY, f32::INFINITY, 0),
            (f32::NAN, f32::INFINITY, 0),
            (-f32::NAN, 1e30, 0),
        ] {
            let mut update = plain.clone();
            update[at] = value;
            let found = judged(&device, &update, largest, 1);
            assert_eq!(found, takes_part, "{value} at {at}, largest {largest}");
        }
    }
    device.finish();
}

/// AdamW and the sum of a gradient on the block that starts at that tile: all that they write.
fn tensor_on(device: &Device, tile: usize, stochastic: bool) -> Vec<Vec<u32>> {
    let begin = tile * TILE;
    let grad = device.put(&bf16s(&values(LEN, 1)));
    let exp_avg = device.put(&values(LEN, 2));
    let exp_avg_sq = device.put(&values(LEN, 3).iter().map(|x| x.abs()).collect::<Vec<_>>());
    let param_f32 = device.put(&values(LEN, 4));
    let param_bf16 = device.put(&bf16s(&values(LEN, 4)));
    let counters = device.put(&[3u64, 0]);
    let (first_tile, tiles) = (0u32.wrapping_sub(tile as u32), 1);
    let span = Span {
        grad: before(&grad, begin),
        rows: 1,
        cols: (begin + LEN) as u64,
        row_stride: (begin + LEN) as u64,
        first_tile,
        tiles,
        kind: BF16 << GRAD_SHIFT,
        reserved: 0,
    };
    let tensor = Tensor {
        grad: span.grad,
        exp_avg: before(&exp_avg, begin),
        exp_avg_sq: before(&exp_avg_sq, begin),
        param: if stochastic { before(&param_bf16, begin) } else { before(&param_f32, begin) },
        master: 0,
        counters: counters.address(),
        len: span.cols,
        random_key: 5,
        first_tile,
        tiles,
        kind: span.kind
            | if stochastic { BF16 << PARAM_SHIFT | STOCHASTIC } else { F32 << PARAM_SHIFT },
        reserved: 0,
    };
    let scalars =
        device.put(&[AdamWScalars { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, keep: 0.99 }]);
    let (spans, tensors, index) = (device.put(&[span]), device.put(&[tensor]), device.put(&[0u32]));
    let (partial, sums) = (device.put(&[0f64]), device.put(&[0f64]));
    let one = device.put(&[1.0f32]);
    let step = AdamWStep { random_key: 0, factors: [0.0; 8], finite: 0, reserved: 0 };
    let steps = device.put(&[step]);
    let l = &device.launcher;
    let at = (tensors.address(), steps.address());
    l.gradient_sum(1, index.address(), spans.address(), one.address(), partial.address()).unwrap();
    // The sum of the one tile: `span_finish` reads partials from `first_tile` on.
    let record = device.put(&[Record::default()]);
    let at_record = record.address();
    l.adamw_prepare(1, at.0, scalars.address(), partial.address(), at.1, at_record).unwrap();
    l.adamw_apply(1, index.address(), at.0, at.1, one.address()).unwrap();
    drop(sums);
    assert_eq!(device.get(&counters), [4, 0]);
    vec![
        halves(&device.get(&partial)),
        words(&device.get(&exp_avg)),
        words(&device.get(&exp_avg_sq)),
        words(&device.get(&param_f32)),
        raw(&device.get(&param_bf16)),
    ]
}

#[test]
fn adamw_and_gradient_sums_reach_blocks_past_two_to_the_32() {
    let device = Device::new();
    let near = tensor_on(&device, 0, false);
    assert!(near[0] != [0, 0] && near[3] != words(&values(LEN, 4)));
    for tile in FAR {
        assert!(tensor_on(&device, tile, false) == near, "tile {tile}");
        // Random bits follow the index: only the moments are those of the front.
        let random = tensor_on(&device, tile, true);
        assert_eq!(random[..3], near[..3], "tile {tile}");
        let start = bf16s(&values(LEN, 4));
        assert_ne!(random[4], raw(&start));
    }
    device.finish();
}

/// Uninitialised memory: what a kernel does not write is not there.
struct Vast(cudarc::driver::CudaSlice<u8>);

impl Vast {
    fn new(device: &Device, bytes: usize) -> Self {
        // SAFETY: bytes have no invalid value; the emulator finds reads of what was never written.
        Self(unsafe { device.stream().alloc::<u8>(bytes) }.unwrap())
    }

    fn address(&self, device: &Device) -> u64 {
        let (address, guard) = self.0.device_ptr(device.stream());
        drop(guard);
        address
    }

    fn put(&mut self, device: &Device, at: usize, bytes: &[u8]) {
        let mut view = self.0.slice_mut(at..at + bytes.len());
        device.stream().memcpy_htod(bytes, &mut view).unwrap();
    }

    fn get(&self, device: &Device, at: usize, len: usize) -> Vec<u8> {
        device.stream().clone_dtoh(&self.0.slice(at..at + len)).unwrap()
    }
}

#[test]
fn matrices_of_a_batch_lie_more_than_two_to_the_32_elements_apart() {
    let device = Device::new();
    let n = 8;
    let square: Vec<half::bf16> = bf16s(&values(n * n, 1));
    let bytes = bytemuck::cast_slice::<half::bf16, u8>(&square);
    let stride = (1usize << 32) + 64;
    let batch = SymmetricBatch { n, stride, batch: 2, dtype: table::BF16 };
    let mut out = Vast::new(&device, stride * 2 + bytes.len());
    for at in [0, stride * 2] {
        out.put(&device, at, bytes);
    }
    let address = out.address(&device);
    let l = &device.launcher;

    l.symmetric_mirror(batch, address).unwrap();
    let mirrored = out.get(&device, 0, bytes.len());
    assert_ne!(mirrored, bytes);
    assert_eq!(out.get(&device, stride * 2, bytes.len()), mirrored);

    let factor = device.put(&vec![0.0f32; 2 * n]);
    l.aol_factors(batch, address, factor.address()).unwrap();
    let factors = device.get(&factor);
    assert!(factors[0] > 0.0 && factors[..n] == factors[n..], "{factors:?}");
    l.aol_scale(address, factor.address(), (n, n), n, stride, 2, 3, table::BF16).unwrap();
    let scaled = out.get(&device, 0, bytes.len());
    assert_ne!(scaled, mirrored);
    assert_eq!(out.get(&device, stride * 2, bytes.len()), scaled);

    // The f32 product, its addends and the result: one matrix each, at the same distance.
    let mut product = Vast::new(&device, stride * 4 + n * n * 4);
    let values = values(n * n, 2);
    for at in [0, stride * 4] {
        product.put(&device, at, bytemuck::cast_slice(&values));
    }
    let completed = Vast::new(&device, stride * 2 + bytes.len());
    l.symmetric_complete(
        batch,
        product.address(&device),
        stride,
        address,
        address,
        completed.address(&device),
        0.5,
        0.25,
    )
    .unwrap();
    let found = completed.get(&device, 0, bytes.len());
    assert_ne!(found, scaled);
    assert_eq!(completed.get(&device, stride * 2, bytes.len()), found);
    drop((out, product, completed, factor));
    device.finish();
}

#[test]
fn tables_of_matrices_past_two_to_the_31_elements_hold_their_addresses() {
    let mut device = Device::new();
    // Buffers of a small matrix; the jobs below describe others, of which only the tables are made.
    let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
    let group = muon.add_group("hidden", MuonRule::default()).unwrap();
    muon.add_param(group, ParamSpec::new("w", &[8, 8])).unwrap();
    let rule = MuonRule::default();
    let plan = Plan::for_shapes(&MuonConfig::default(), &rule, [(&[8usize, 8][..], 2)]).unwrap();
    let stream = Arc::clone(device.stream());
    let mut workspace = CudaWorkspace::new(&stream, &plan).unwrap();
    let spec = StateSpec {
        len: 64,
        param_dtype: Dtype::F32,
        bf16_params: Bf16Params::Master,
        rule: StateRule::Muon { momentum_dtype: Dtype::F32, matrices: 2 },
        salt: 0,
    };
    let states = [CudaState::new(&stream, &spec).unwrap()];
    let momentum = states[0].buffer(0);
    let side = 70_000;
    let elements = side * side;
    assert!(elements > 1 << 32);
    let scalars = MuonScalars {
        momentum: 0.9,
        one_minus_momentum: 0.1,
        keep: 1.0,
        step: 0.1,
        l2: 0.0,
        largest: f32::INFINITY,
        momentum_mode: MomentumMode::Ema,
        nesterov: Nesterov::On,
        weight_decay_mode: WeightDecayMode::Decoupled,
    };
    let job = |matrix: usize, offset: usize, row_stride: usize| MatrixJob {
        tensor: 0,
        param: 0,
        matrix,
        block: Block { offset, shape: MatrixShape { rows: side, cols: side }, row_stride },
        bucket: 0,
        slot: matrix,
        scalars,
    };
    let jobs = [job(0, 0, side), job(1, elements, 3 * side)];
    let (grad, param) = (0x10_0000_0000u64, 0x7000_0000_0000u64);
    // SAFETY: no kernel runs, so nothing is read or written there.
    let param_mut = unsafe { CudaParamMut::from_raw(param, 4 * elements, Dtype::F32) };
    // SAFETY: as above.
    let gradient = unsafe { CudaGrad::from_raw(grad, 4 * elements, Dtype::Bf16) };
    let tensors =
        [StepTensor::<super::Cuda>::new(muon.param_id("w").unwrap(), param_mut, gradient)];
    device.launcher.mode = Mode::TablesOnly;
    let l = &device.launcher;
    passes::pass_a(l, 0, &plan, &jobs, &tensors, &states, &mut workspace, 0).unwrap();
    let made = workspace.chunks[0].addresses;
    let tiles = elements.div_ceil(TILE);
    assert_eq!((made.jobs, made.tiles), (2, 2 * tiles));
    let mut rows = [0u8; 2 * size_of::<Matrix>()];
    stream.synchronize().unwrap();
    // SAFETY: the table holds two entries.
    unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut rows, made.matrices) }.unwrap();
    let word = |matrix: usize, field: usize| {
        let at = matrix * size_of::<Matrix>() + 8 * field;
        u64::from_le_bytes(rows[at..at + 8].try_into().unwrap())
    };
    let n = elements as u64;
    // grad, momentum, param: two, four and four bytes an element.
    assert_eq!([word(0, 0), word(0, 1), word(0, 2)], [grad, momentum, param]);
    assert_eq!(
        [word(1, 0), word(1, 1), word(1, 2)],
        [grad + 2 * n, momentum + 4 * n, param + 4 * n]
    );
    // rows, cols, row stride, offset.
    assert_eq!([word(0, 7), word(0, 8), word(0, 9), word(0, 10)], [70_000, 70_000, 70_000, 0]);
    assert_eq!([word(1, 7), word(1, 8), word(1, 9), word(1, 10)], [70_000, 70_000, 210_000, n]);
    // First tile and tiles, 32 bits each.
    assert_eq!(word(0, 14), (tiles as u64) << 32);
    assert_eq!(word(1, 14), (tiles as u64) << 32 | tiles as u64);
    let mut ends = [0u8; 8];
    // SAFETY: the table holds `2 * tiles` entries, so two from `tiles - 1` on.
    unsafe {
        cudarc::driver::result::memcpy_dtoh_sync(
            &mut ends,
            made.tile_matrix + 4 * (tiles as u64 - 1),
        )
    }
    .unwrap();
    assert_eq!(ends, [0, 0, 0, 0, 1, 0, 0, 0]);
    drop((tensors, workspace, states, stream));
    device.launcher.mode = Mode::Enqueue;
    device.finish();
}
