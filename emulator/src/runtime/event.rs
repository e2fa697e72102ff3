//! Events: recording, waiting, timing.

use std::time::Instant;

use super::{
    Runtime,
    clock::Clock,
    handle::Kind,
    report::Class,
    status::{Outcome, Status},
    task::{TaskId, Work},
};

const DISABLE_TIMING: u32 = 2;

/// One event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) context: u64,
    pub(crate) flags: u32,
    /// Tells records apart: an old record must not complete a newer one.
    pub(crate) generation: u64,
    /// The latest record; `None` if it was never recorded.
    pub(crate) task: Option<TaskId>,
    pub(crate) clock: Clock,
    /// When the latest record ran.
    pub(crate) at: Option<Instant>,
    /// The capture and its nodes, if the latest record was captured.
    pub(crate) captured: Option<CapturedRecord>,
}

/// An event recorded in a capturing stream.
#[derive(Clone, Debug)]
pub(crate) struct CapturedRecord {
    pub(crate) capture: u64,
    pub(crate) after: Vec<usize>,
}

impl Runtime {
    /// `cuEventCreate`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for unknown flags.
    pub fn event_create(&mut self, flags: u32) -> Outcome<u64> {
        let context = self.current_context()?;
        if flags & 4 != 0 {
            return Err(self.unsupported("cuEventCreate with CU_EVENT_INTERPROCESS"));
        }
        if flags & !3 != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let handle = self.handles.make(Kind::Event);
        self.events.insert(
            handle,
            Event {
                context,
                flags,
                generation: 0,
                task: None,
                clock: Clock::default(),
                at: None,
                captured: None,
            },
        );
        Ok(handle)
    }

    /// `cuEventDestroy`: waits already queued stay in force.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn event_destroy(&mut self, event: u64) -> Outcome<()> {
        match self.events.remove(&event) {
            Some(_) => Ok(()),
            None => Err(self.bad_handle(Kind::Event, event, "cuEventDestroy")),
        }
    }

    fn event(&mut self, event: u64, operation: &str) -> Outcome<&Event> {
        if !self.events.contains_key(&event) {
            return Err(self.bad_handle(Kind::Event, event, operation));
        }
        Ok(&self.events[&event])
    }

    /// `cuEventRecord`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, also for an event of another context.
    pub fn event_record(&mut self, event: u64, stream: u64) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuEventRecord")?;
        let context = self.event(event, "cuEventRecord")?.context;
        if context != self.streams[&stream].context {
            return Err(self.refuse(
                Status::INVALID_HANDLE,
                Class::InvalidArgument,
                "cuEventRecord",
                "event and stream belong to different contexts",
            ));
        }
        if let Some(capture) = self.streams[&stream].capture {
            self.check_capture(capture)?;
            let after = self.capture_frontier(stream);
            if let Some(found) = self.events.get_mut(&event) {
                found.captured = Some(CapturedRecord { capture, after });
            }
            return Ok(());
        }
        let generation = self.event(event, "cuEventRecord")?.generation + 1;
        let task =
            self.enqueue(stream, "record of an event", Work::Record { event, generation }, None)?;
        let clock = self.streams[&stream].clock.clone();
        if let Some(found) = self.events.get_mut(&event) {
            found.generation = generation;
            found.task = task;
            found.clock = clock;
            found.at = None;
            found.captured = None;
        }
        Ok(())
    }

    fn forbid_captured_event(&mut self, event: u64, operation: &str) -> Outcome<()> {
        let Some(captured) = self.event(event, operation)?.captured.clone() else { return Ok(()) };
        self.invalidate(captured.capture);
        Err(self.refuse(
            Status::CAPTURED_EVENT,
            Class::Capture,
            operation,
            "the event was last recorded in a capturing stream",
        ))
    }

    /// `cuEventSynchronize`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, a capture error, or the error of the work before the record.
    pub fn event_synchronize(&mut self, event: u64) -> Outcome<()> {
        self.require_init()?;
        self.forbid_captured_event(event, "cuEventSynchronize")?;
        self.counters.synchronisations += 1;
        let found = self.event(event, "cuEventSynchronize")?;
        let (context, task, clock) = (found.context, found.task, found.clock.clone());
        self.check_context(context)?;
        if let Some(task) = task {
            self.run_until(&[task]);
            self.host.join(&clock);
        }
        self.check_context(context)
    }

    /// `cuEventQuery`: may let one queued operation run, so that a polling host gets on.
    ///
    /// # Errors
    /// `NOT_READY` while the record is queued.
    pub fn event_query(&mut self, event: u64) -> Outcome<()> {
        self.require_init()?;
        self.forbid_captured_event(event, "cuEventQuery")?;
        let found = self.event(event, "cuEventQuery")?;
        let (context, task, clock) = (found.context, found.task, found.clock.clone());
        self.check_context(context)?;
        let Some(task) = task else { return Ok(()) };
        let done = self.poll(&[task]);
        self.check_context(context)?;
        if !done {
            return Err(Status::NOT_READY);
        }
        self.host.join(&clock);
        Ok(())
    }

    /// `cuEventElapsedTime` in milliseconds of the emulator's own run time; never negative.
    ///
    /// # Errors
    /// `INVALID_HANDLE` for an event that was never recorded or takes no time, `NOT_READY` while
    /// one of the records is queued.
    pub fn event_elapsed(&mut self, start: u64, end: u64) -> Outcome<f32> {
        self.require_init()?;
        let mut at = [None; 2];
        for (slot, event) in at.iter_mut().zip([start, end]) {
            self.forbid_captured_event(event, "cuEventElapsedTime")?;
            let found = self.event(event, "cuEventElapsedTime")?;
            let message = if found.flags & DISABLE_TIMING != 0 {
                Some("the event was created with CU_EVENT_DISABLE_TIMING")
            } else if found.task.is_none() {
                Some("the event was never recorded")
            } else {
                None
            };
            *slot = found.at;
            if let Some(message) = message {
                return Err(self.refuse(
                    Status::INVALID_HANDLE,
                    Class::InvalidArgument,
                    "cuEventElapsedTime",
                    message,
                ));
            }
        }
        match at {
            [Some(start), Some(end)] => {
                Ok(end.saturating_duration_since(start).as_secs_f64() as f32 * 1e3)
            }
            _ => Err(Status::NOT_READY),
        }
    }
}
