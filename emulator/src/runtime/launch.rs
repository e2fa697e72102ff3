//! Launches: argument packing, limits, queueing and running.

use super::{
    Runtime,
    config::FaultSite,
    counters::KernelCounters,
    order::Span,
    report::{Class, Report},
    status::{Outcome, Status},
    store::{Store, class_of},
    task::{Callback, Launch, Task, Work},
};
use crate::exec::{BlockOrder, DeviceLimits, LaunchOptions, LaunchParams, launch};
use crate::finding::Finding;

/// Threads that run the blocks of a launch at most.
const MOST_WORKERS: usize = 16;

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub struct LaunchShape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// All blocks must be resident at once.
    pub cooperative: bool,
}

/// The arguments of a launch as the driver's call passes them.
#[derive(Clone, Copy, Debug)]
pub enum Arguments {
    /// Address of an array of pointers, one per parameter.
    Pointers(u64),
    /// Address and size of a packed buffer (`CU_LAUNCH_PARAM_BUFFER_POINTER`).
    Packed(u64, u64),
}

impl Runtime {
    fn limits(&self, device: usize) -> DeviceLimits {
        let profile = &self.devices[device].profile;
        DeviceLimits {
            shared_bytes: profile.shared_per_block,
            shared_bytes_optin: profile.shared_per_block_optin,
            multiprocessors: profile.multiprocessors,
            ..DeviceLimits::H100
        }
    }

    /// `cuLaunchKernel` and its kin.
    ///
    /// # Errors
    /// `INVALID_VALUE` and `LAUNCH_OUT_OF_RESOURCES` for shapes over a limit, `INVALID_HANDLE`, a
    /// capture error, an injected fault.
    pub fn launch(
        &mut self,
        function: u64,
        shape: LaunchShape,
        stream: u64,
        arguments: Arguments,
    ) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuLaunchKernel")?;
        let launch = self.prepare_launch(function, shape, arguments)?;
        let context = self.function(function, "cuLaunchKernel")?.context;
        if context != self.streams[&stream].context {
            return Err(self.refuse(
                Status::INVALID_HANDLE,
                Class::InvalidArgument,
                "cuLaunchKernel",
                "function and stream belong to different contexts",
            ));
        }
        let capturing = self.streams[&stream].capture.is_some();
        self.counters.launch_calls += 1;
        // A captured launch counts when its graph is launched.
        let fault = if capturing { None } else { self.inject(FaultSite::Launch)? };
        let label = format!("launch of `{}`", launch.kernel.name);
        self.enqueue(stream, &label, Work::Launch(launch), fault)?;
        Ok(())
    }

    /// Checks a launch and packs its arguments.
    fn prepare_launch(
        &mut self,
        function: u64,
        shape: LaunchShape,
        arguments: Arguments,
    ) -> Outcome<Launch> {
        let found = self.function(function, "cuLaunchKernel")?;
        let (context, kernel) = (found.context, std::sync::Arc::clone(&found.kernel));
        let opted_in = found.max_dynamic_shared;
        self.check_context(context)?;
        let device = self.contexts[&context].device;
        if let Some((status, message)) = self.shape_error(device, function, shape, opted_in) {
            let message = format!("`{}`: {message}", kernel.name);
            return Err(self.refuse(status, Class::LaunchLimit, "cuLaunchKernel", message));
        }
        let params = match pack(&kernel.entry, arguments) {
            Ok(params) => params,
            Err(message) => {
                let message = format!("`{}`: {message}", kernel.name);
                return Err(self.refuse(
                    Status::INVALID_VALUE,
                    Class::InvalidArgument,
                    "cuLaunchKernel",
                    message,
                ));
            }
        };
        Ok(Launch {
            kernel,
            function,
            grid: shape.grid,
            block: shape.block,
            shared: shape.shared,
            params: params.into(),
        })
    }

    fn shape_error(
        &self,
        device: usize,
        function: u64,
        shape: LaunchShape,
        opted_in: Option<u32>,
    ) -> Option<(Status, String)> {
        let limits = self.limits(device);
        let entry = &self.functions[&function].kernel.entry;
        let axes = ["x", "y", "z"];
        for (axis, name) in axes.iter().enumerate() {
            for (what, value, limit) in [
                ("grid", shape.grid[axis], limits.grid[axis]),
                ("block", shape.block[axis], limits.block[axis]),
            ] {
                if value == 0 || value > limit {
                    return Some((
                        Status::INVALID_VALUE,
                        format!("the {what}'s {name} extent is {value}; it must be 1 to {limit}"),
                    ));
                }
            }
        }
        let threads = shape.block.iter().map(|extent| u64::from(*extent)).product::<u64>();
        if threads > u64::from(limits.threads_per_block) {
            return Some((
                Status::INVALID_VALUE,
                format!(
                    "{threads} threads per block are over the device's {}",
                    limits.threads_per_block
                ),
            ));
        }
        if let Some(bound) = entry.max_threads
            && threads > u64::from(bound)
        {
            return Some((
                Status::INVALID_VALUE,
                format!("{threads} threads per block are over the {bound} of its launch bounds"),
            ));
        }
        if let Some(required) = entry.required_block
            && required != shape.block
        {
            return Some((
                Status::INVALID_VALUE,
                format!("block {:?} is not the required {required:?}", shape.block),
            ));
        }
        let allowed = opted_in.unwrap_or(limits.shared_bytes.saturating_sub(entry.shared_bytes));
        if shape.shared > allowed {
            return Some((
                Status::INVALID_VALUE,
                format!(
                    "{} bytes of dynamic shared memory are over the {allowed} allowed; raise CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES first (device limit {})",
                    shape.shared, limits.shared_bytes_optin
                ),
            ));
        }
        if shape.cooperative {
            let blocks = shape.grid.iter().map(|extent| u64::from(*extent)).product::<u64>();
            let resident = self.resident_blocks(device, entry, threads as u32, shape.shared);
            let most = u64::from(resident) * u64::from(limits.multiprocessors);
            if blocks > most {
                return Some((
                    Status(720),
                    format!(
                        "{blocks} blocks of a cooperative launch are over the {most} that fit at once"
                    ),
                ));
            }
        }
        None
    }

    pub(crate) fn execute_launch(&mut self, task: &Task, work: &Launch) -> Result<(), Status> {
        let device = self.contexts.get(&task.context).map_or(0, |found| found.device);
        let opted_in =
            self.functions.get(&work.function).and_then(|found| found.max_dynamic_shared);
        let params = LaunchParams {
            grid: work.grid,
            block: work.block,
            dynamic_shared: work.shared,
            max_dynamic_shared: opted_in,
            params: &work.params,
            limits: self.limits(device),
        };
        let default = LaunchOptions::default();
        let threads = work.block.iter().product();
        let resident = self.resident_blocks(device, &work.kernel.entry, threads, work.shared);
        let options = LaunchOptions {
            seed: self.rng.next(),
            order: BlockOrder::Permuted,
            instruction_budget: self
                .config
                .instruction_budget
                .unwrap_or(default.instruction_budget),
            threads: std::thread::available_parallelism()
                .map_or(default.threads, std::num::NonZero::get)
                .min(MOST_WORKERS),
            resident_blocks: u64::from(resident) * u64::from(params.limits.multiprocessors),
        };
        let result =
            launch(&work.kernel.image, &work.kernel.name, self.store.memory(), &params, &options);
        match result {
            Ok(report) => {
                let counted = KernelCounters {
                    launches: 1,
                    blocks: report.counters.blocks,
                    threads: report.counters.threads,
                    instructions: report.counters.thread_instructions,
                    global_load_bytes: report.counters.global_bytes_loaded,
                    global_store_bytes: report.counters.global_bytes_stored,
                    global_load_sectors: report.counters.sectors_loaded,
                    global_store_sectors: report.counters.sectors_stored,
                    bank_conflicts: report.counters.bank_conflicts,
                    flops: report.counters.flops,
                    atomics: report.counters.atomics,
                    barriers: report.counters.barriers,
                };
                self.counters.total.add(&counted);
                self.counters.kernels.entry(work.kernel.name.clone()).or_default().add(&counted);
                self.approximate.extend(report.approximate);
                for note in &report.notes {
                    let note = found_in(task, work, note);
                    let same = |old: &Report| {
                        (old.class, &old.kernel, old.ptx_line)
                            == (note.class, &note.kernel, note.ptx_line)
                    };
                    if !self.reports.iter().any(same) {
                        self.report(note);
                    }
                }
                self.check_launch_order(task, &report.reads, &report.writes)
            }
            Err(finding) => {
                let class = class_of(finding.kind);
                let status = match class {
                    Class::OutOfBounds | Class::UseAfterFree => Status::ILLEGAL_ADDRESS,
                    Class::Misaligned => Status::MISALIGNED_ADDRESS,
                    Class::Progress => Status::LAUNCH_TIMEOUT,
                    _ => Status::LAUNCH_FAILED,
                };
                self.report(found_in(task, work, &finding));
                // A launch that ended early has no defined results, whatever findings do.
                Err(status)
            }
        }
    }

    /// Orders what a launch read and wrote against all other work.
    fn check_launch_order(
        &mut self,
        task: &Task,
        reads: &[(u64, u64)],
        writes: &[(u64, u64)],
    ) -> Result<(), Status> {
        let spans = |ranges: &[(u64, u64)]| -> Vec<Span> {
            ranges
                .iter()
                .filter(|(start, _)| Store::is_device_address(*start))
                .map(|(start, end)| Span { start: *start, end: *end })
                .collect()
        };
        self.check_order(task, &spans(reads), &spans(writes))
    }

    /// `cuLaunchHostFunc`.
    ///
    /// # Errors
    /// As [`Runtime::launch`].
    pub fn launch_host(
        &mut self,
        stream: u64,
        function: unsafe extern "C" fn(*mut std::ffi::c_void),
        data: usize,
    ) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuLaunchHostFunc")?;
        self.enqueue(stream, "a host function", Work::Host(Callback { function, data }), None)?;
        Ok(())
    }

    /// `cuGraphAddKernelNode`.
    ///
    /// # Errors
    /// As [`Runtime::launch`]; `INVALID_VALUE` for a dependency outside the graph.
    pub fn graph_add_kernel(
        &mut self,
        graph: u64,
        dependencies: &[u64],
        function: u64,
        shape: LaunchShape,
        arguments: Arguments,
    ) -> Outcome<u64> {
        let launch = self.prepare_launch(function, shape, arguments)?;
        let label = format!("launch of `{}`", launch.kernel.name);
        self.graph_add(graph, dependencies, &label, Work::Launch(launch))
    }
}

/// A finding of the interpreter as a report.
fn found_in(task: &Task, work: &Launch, finding: &Finding) -> Report {
    let mut message = finding.message.clone();
    if let Some(allocation) = &finding.allocation {
        message = format!("{message} ({allocation})");
    }
    let source = finding.source.as_ref();
    Report {
        kernel: finding.kernel.clone().or_else(|| Some(work.kernel.name.clone())),
        block: finding.block,
        thread: finding.thread,
        ptx_line: finding.ptx_line,
        source: source.map(|source| format!("{}:{}", source.file, source.line)),
        ..Report::host(class_of(finding.kind), &*task.stamp.what, message)
    }
}

/// Packs the arguments as the entry's parameter space wants them.
fn pack(entry: &crate::ptx::Entry, arguments: Arguments) -> Result<Vec<u8>, String> {
    let mut packed = vec![0; entry.param_bytes as usize];
    match arguments {
        Arguments::Packed(address, bytes) => {
            if bytes != u64::from(entry.param_bytes) {
                return Err(format!(
                    "the argument buffer has {bytes} bytes, the parameters take {}",
                    entry.param_bytes
                ));
            }
            if !super::peek::read(address, &mut packed) {
                return Err(format!("the argument buffer at {address:#x} cannot be read"));
            }
        }
        Arguments::Pointers(0) if entry.params.is_empty() => {}
        Arguments::Pointers(0) => {
            return Err(format!("no arguments, but {} parameters", entry.params.len()));
        }
        Arguments::Pointers(array) => {
            for (index, param) in entry.params.iter().enumerate() {
                let mut pointer = [0; 8];
                let readable = super::peek::read(array + 8 * index as u64, &mut pointer);
                let into =
                    &mut packed[param.offset as usize..(param.offset + param.bytes) as usize];
                if !readable || !super::peek::read(u64::from_le_bytes(pointer), into) {
                    return Err(format!(
                        "argument {index} (`{}`, {} bytes) cannot be read; {} parameters are expected",
                        param.name,
                        param.bytes,
                        entry.params.len()
                    ));
                }
            }
        }
    }
    Ok(packed)
}
