//! Running one task: checks its memory, its order against other work, and does it.

use std::time::Instant;

use super::{
    Runtime,
    copy::write_host,
    global::calling_back,
    host::{digest, host_span, read_host},
    order::Span,
    report::{Class, Report},
    status::Status,
    store::Fault,
    task::{HostSource, Rows, Task, Work},
};

/// The spans of strided rows; adjoining rows are one span.
fn row_spans(address: u64, pitch: u64, rows: Rows) -> Vec<Span> {
    if pitch == rows.width || rows.height == 1 {
        return vec![Span::new(address, rows.bytes())];
    }
    (0..rows.height).map(|row| Span::new(address + row * pitch, rows.width)).collect()
}

impl Runtime {
    /// What a task reads and writes, as far as that is known before it runs: kernels are not.
    pub(crate) fn footprint(&self, work: &Work) -> (Vec<Span>, Vec<Span>) {
        match work {
            Work::HostToDevice { dst, rows, source } => {
                let reads = match source {
                    HostSource::Pinned { address, .. } => {
                        row_spans(*address, rows.src_pitch, *rows)
                    }
                    _ => Vec::new(),
                };
                (reads, row_spans(*dst, rows.dst_pitch, *rows))
            }
            Work::DeviceToHost { src, dst, pinned, rows } => {
                let writes =
                    if *pinned { row_spans(*dst, rows.dst_pitch, *rows) } else { Vec::new() };
                (row_spans(*src, rows.src_pitch, *rows), writes)
            }
            Work::DeviceToDevice { src, dst, rows } => {
                (row_spans(*src, rows.src_pitch, *rows), row_spans(*dst, rows.dst_pitch, *rows))
            }
            Work::Fill { dst, rows, .. } => (Vec::new(), row_spans(*dst, rows.dst_pitch, *rows)),
            Work::Product(product) => product.footprint(),
            Work::Allocate { address, bytes } => (Vec::new(), vec![Span::new(*address, *bytes)]),
            _ => (Vec::new(), Vec::new()),
        }
    }

    /// Records a finding about a task and returns the status it fails with, if it fails.
    pub(crate) fn task_fault(&mut self, task: &Task, fault: Fault) -> Result<(), Status> {
        let status = match fault.class {
            Class::OutOfBounds | Class::UseAfterFree => Status::ILLEGAL_ADDRESS,
            Class::Misaligned => Status::MISALIGNED_ADDRESS,
            _ => Status::LAUNCH_FAILED,
        };
        self.report(Report::host(fault.class, &*task.stamp.what, fault.message));
        if self.fails() { Err(status) } else { Ok(()) }
    }

    /// Checks that every access of a task is ordered against all others to the same bytes.
    pub(crate) fn check_order(
        &mut self,
        task: &Task,
        reads: &[Span],
        writes: &[Span],
    ) -> Result<(), Status> {
        let mut found = None;
        for span in reads {
            let conflict = self.order.read(*span, &task.stamp, &task.clock);
            found = found.or(conflict.map(|conflict| (conflict, false)));
        }
        for span in writes {
            let conflict = self.order.write(*span, &task.stamp, &task.clock);
            found = found.or(conflict.map(|conflict| (conflict, true)));
        }
        let Some((conflict, writing)) = found else { return Ok(()) };
        let verb = |writes: bool| if writes { "writes" } else { "reads" };
        let place = match self.store.find(conflict.span.start) {
            Some((base, size)) => format!(
                "bytes {}..{} of the {size}-byte allocation at {base:#x}",
                conflict.span.start - base,
                conflict.span.end - base
            ),
            None => format!("host bytes {:#x}..{:#x}", conflict.span.start, conflict.span.end),
        };
        let message = format!(
            "{} {} {place}, which {} {} with nothing ordering the two; an event wait or a synchronisation is missing",
            task.stamp.what,
            verb(writing),
            conflict.earlier.what,
            verb(conflict.earlier_wrote),
        );
        let class =
            if matches!(task.work, Work::Free { .. }) { Class::UseAfterFree } else { Class::Race };
        self.task_fault(task, Fault { class, message })
    }

    pub(crate) fn execute(&mut self, task: &Task) -> Result<(), Status> {
        match &task.work {
            Work::Join => Ok(()),
            Work::Record { event, generation } => {
                if let Some(found) = self.events.get_mut(event)
                    && found.generation == *generation
                {
                    found.at = Some(Instant::now());
                }
                Ok(())
            }
            Work::Host(callback) => {
                let callback = *callback;
                #[allow(unsafe_code, reason = "calls the function the program handed over")]
                calling_back(|| {
                    // SAFETY: the program passed this function to cuLaunchHostFunc to be called
                    // once with this pointer.
                    unsafe { (callback.function)(callback.data as *mut std::ffi::c_void) };
                });
                Ok(())
            }
            Work::Allocate { .. } => {
                let (reads, writes) = self.footprint(&task.work);
                self.check_order(task, &reads, &writes)
            }
            Work::Free { address } => {
                let Some(bytes) = self.allocations.get(address).map(|a| a.bytes) else {
                    return Ok(());
                };
                let result = self.check_order(task, &[], &[Span::new(*address, bytes)]);
                self.drop_allocation(*address);
                result
            }
            Work::Launch(launch) => self.execute_launch(task, launch),
            Work::Product(product) => self.execute_product(task, product),
            Work::HostToDevice { .. }
            | Work::DeviceToHost { .. }
            | Work::DeviceToDevice { .. }
            | Work::Fill { .. } => self.execute_transfer(task),
        }
    }

    /// Checks the device ranges of a task and its order, without touching the bytes.
    pub(crate) fn check_footprint(&mut self, task: &Task) -> Result<(), Status> {
        let (reads, writes) = self.footprint(&task.work);
        for span in reads.iter().chain(&writes) {
            if !super::store::Store::is_device_address(span.start) {
                continue;
            }
            if let Err(fault) = self.store.check(span.start, span.end - span.start) {
                self.task_fault(task, fault)?;
                // Without the memory there is nothing to do, whatever findings do.
                return Err(Status::ILLEGAL_ADDRESS);
            }
        }
        self.check_order(task, &reads, &writes)
    }

    fn execute_transfer(&mut self, task: &Task) -> Result<(), Status> {
        if let Some(span) = host_span(&task.work)
            && !matches!(task.work, Work::DeviceToHost { pinned: false, .. })
            && self.pinned_at(span.start, span.end - span.start).is_none()
        {
            return self.task_fault(
                task,
                Fault {
                    class: Class::HostMemory,
                    message: format!(
                        "the pinned host memory at {:#x} was freed before the copy ran",
                        span.start
                    ),
                },
            );
        }
        self.check_footprint(task)?;
        match &task.work {
            Work::HostToDevice { source, dst, rows } => {
                let bytes = match source {
                    HostSource::Staged(bytes) => bytes.to_vec(),
                    HostSource::AtLaunch { address } => read_host(*address, *rows),
                    HostSource::Pinned { address, digest: before } => {
                        let bytes = read_host(*address, *rows);
                        if before.is_some_and(|before| before != digest(&bytes)) {
                            self.task_fault(
                                task,
                                Fault {
                                    class: Class::HostMemory,
                                    message: format!(
                                        "the pinned source at {address:#x} was changed by the host after the copy was queued and before it ran"
                                    ),
                                },
                            )?;
                        }
                        bytes
                    }
                };
                for (row, from) in bytes.chunks_exact(rows.width as usize).enumerate() {
                    let at = dst + row as u64 * rows.dst_pitch;
                    self.store.write(at, from).or_else(|fault| self.task_fault(task, fault))?;
                }
                self.counters.host_to_device.calls += 1;
                self.counters.host_to_device.bytes += rows.bytes();
            }
            Work::DeviceToHost { src, dst, rows, .. } => {
                let mut bytes = vec![0; rows.bytes() as usize];
                for (row, into) in bytes.chunks_exact_mut(rows.width as usize).enumerate() {
                    let at = src + row as u64 * rows.src_pitch;
                    self.read_written(task, at, into)?;
                }
                write_host(*dst, &bytes, *rows);
                self.counters.device_to_host.calls += 1;
                self.counters.device_to_host.bytes += rows.bytes();
            }
            Work::DeviceToDevice { src, dst, rows } => {
                for row in 0..rows.height {
                    let (dst, src) = (dst + row * rows.dst_pitch, src + row * rows.src_pitch);
                    self.store
                        .copy(dst, src, rows.width)
                        .or_else(|fault| self.task_fault(task, fault))?;
                }
                self.counters.device_to_device.calls += 1;
                self.counters.device_to_device.bytes += rows.bytes();
            }
            Work::Fill { dst, pattern, unit, rows } => {
                for index in 0..rows.height {
                    let at = dst + index * rows.dst_pitch;
                    let count = rows.width / u64::from(*unit);
                    self.store
                        .fill(at, *pattern, *unit, count)
                        .or_else(|fault| self.task_fault(task, fault))?;
                }
                self.counters.memsets.calls += 1;
                self.counters.memsets.bytes += rows.bytes();
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads bytes that must all have been written; unwritten ones are a finding.
    pub(crate) fn read_written(
        &mut self,
        task: &Task,
        address: u64,
        into: &mut [u8],
    ) -> Result<(), Status> {
        if let Err(fault) = self.store.read_written(address, into) {
            self.task_fault(task, fault)?;
            self.store.read(address, into).or_else(|fault| self.task_fault(task, fault))?;
        }
        Ok(())
    }
}
