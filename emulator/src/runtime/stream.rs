//! Streams: creation, synchronisation, waiting on events.

use super::{
    Runtime,
    clock::{Clock, Lane},
    context::current,
    handle::Kind,
    report::Class,
    status::{Outcome, Status},
    task::TaskId,
};

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) lane: Lane,
    /// How many operations were queued on the lane.
    pub(crate) count: u64,
    /// Takes part in the legacy default stream's implicit ordering.
    pub(crate) blocking: bool,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    /// What the next operation waits for.
    pub(crate) frontier: Vec<TaskId>,
    /// What is known to have happened before the next operation.
    pub(crate) clock: Clock,
    pub(crate) capture: Option<u64>,
    pub(crate) name: String,
}

const NON_BLOCKING: u32 = 1;

impl Runtime {
    pub(crate) fn make_stream(
        &mut self,
        context: u64,
        flags: u32,
        priority: i32,
        legacy: bool,
    ) -> u64 {
        let handle = self.handles.make(Kind::Stream);
        let lane = self.next_lane;
        self.next_lane += 1;
        let name =
            if legacy { "the legacy default stream".to_owned() } else { format!("stream {lane}") };
        self.streams.insert(
            handle,
            Stream {
                context,
                lane,
                count: 0,
                blocking: flags & NON_BLOCKING == 0,
                flags,
                priority,
                frontier: Vec::new(),
                clock: self.host.clone(),
                capture: None,
                name,
            },
        );
        handle
    }

    /// `cuStreamCreate` and `cuStreamCreateWithPriority`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for unknown flags. A priority outside the range is clamped.
    pub fn stream_create(&mut self, flags: u32, priority: i32) -> Outcome<u64> {
        let context = self.current_context()?;
        if flags & !NON_BLOCKING != 0 {
            return Err(Status::INVALID_VALUE);
        }
        Ok(self.make_stream(context, flags, priority.clamp(-5, 0), false))
    }

    /// `cuStreamDestroy`: queued work still runs.
    ///
    /// # Errors
    /// `INVALID_HANDLE` for a stream that is gone.
    pub fn stream_destroy(&mut self, stream: u64) -> Outcome<()> {
        if stream <= 2 || self.contexts.values().any(|context| context.legacy == stream) {
            return Err(Status::INVALID_HANDLE);
        }
        let Some(found) = self.streams.get(&stream) else {
            return Err(self.bad_handle(Kind::Stream, stream, "cuStreamDestroy"));
        };
        let context = found.context;
        if let Some(capture) = found.capture {
            self.invalidate(capture);
        }
        // Destroying a stream orders nothing, but its work goes on.
        if let (Some(stream), Some(found)) =
            (self.streams.remove(&stream), self.contexts.get_mut(&context))
        {
            found.retired.clock.join(&stream.clock);
            if stream.blocking {
                found.retired.blocking.join(&stream.clock);
                found.retired.frontier.retain(|task| self.pending.contains_key(task));
                found.retired.frontier.extend(&stream.frontier);
            }
        }
        self.check_context(context)
    }

    /// Turns the special stream numbers into streams and checks the context.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, or the context's sticky error.
    pub(crate) fn resolve_stream(&mut self, stream: u64, operation: &str) -> Outcome<u64> {
        if stream <= 2 {
            let context = self.current_context()?;
            if stream == 2 {
                return Ok(self.per_thread_stream(context));
            }
            return Ok(self.contexts[&context].legacy);
        }
        let Some(found) = self.streams.get(&stream) else {
            return Err(self.bad_handle(Kind::Stream, stream, operation));
        };
        let context = found.context;
        self.require_init()?;
        self.check_context(context)?;
        Ok(stream)
    }

    fn per_thread_stream(&mut self, context: u64) -> u64 {
        let thread = thread_number();
        if let Some(stream) = self.contexts[&context].per_thread.get(&thread) {
            return *stream;
        }
        let stream = self.make_stream(context, 0, 0, false);
        if let Some(found) = self.contexts.get_mut(&context) {
            found.per_thread.insert(thread, stream);
        }
        stream
    }

    /// `cuStreamSynchronize`.
    ///
    /// # Errors
    /// The first error of the work it waits for, or a capture error.
    pub fn stream_synchronize(&mut self, stream: u64) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuStreamSynchronize")?;
        self.forbid_capturing(stream, "cuStreamSynchronize")?;
        self.counters.synchronisations += 1;
        self.wait_stream(stream)
    }

    /// Runs a stream's work and lets the host know that it happened.
    pub(crate) fn wait_stream(&mut self, stream: u64) -> Outcome<()> {
        let found = &self.streams[&stream];
        let (context, frontier) = (found.context, found.frontier.clone());
        let mut clock = found.clock.clone();
        let mut targets = frontier;
        if self.contexts.get(&context).is_some_and(|c| c.legacy == stream) {
            // Waiting for the legacy stream waits for every blocking stream.
            for other in self
                .streams
                .values()
                .filter(|s| s.context == context && s.blocking && s.capture.is_none())
            {
                targets.extend(&other.frontier);
                clock.join(&other.clock);
            }
        }
        if let Some(found) = self.contexts.get(&context).filter(|c| c.legacy == stream) {
            targets.extend(&found.retired.frontier);
            clock.join(&found.retired.blocking);
        }
        self.run_until(&targets);
        self.host.join(&clock);
        self.check_context(context)
    }

    /// `cuStreamQuery`: may let one queued operation run, so that a polling host gets on.
    ///
    /// # Errors
    /// `NOT_READY` while work is queued.
    pub fn stream_query(&mut self, stream: u64) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuStreamQuery")?;
        self.forbid_capturing(stream, "cuStreamQuery")?;
        let frontier = self.streams[&stream].frontier.clone();
        let done = self.poll(&frontier);
        let context = self.streams[&stream].context;
        self.check_context(context)?;
        if !done {
            return Err(Status::NOT_READY);
        }
        let clock = self.streams[&stream].clock.clone();
        self.host.join(&clock);
        Ok(())
    }

    /// `cuCtxSynchronize` for the current context.
    ///
    /// # Errors
    /// The first error of the context's work, or a capture error.
    pub fn context_synchronize(&mut self) -> Outcome<()> {
        let context = self.current_context()?;
        self.forbid_any_capture("cuCtxSynchronize")?;
        self.counters.synchronisations += 1;
        self.drain_context(context)
    }

    /// Runs all of a context's work and lets the host know.
    pub(crate) fn drain_context(&mut self, context: u64) -> Outcome<()> {
        let targets: Vec<TaskId> = self
            .pending
            .iter()
            .filter(|(_, task)| task.context == context)
            .map(|(id, _)| *id)
            .collect();
        let mut clock = Clock::default();
        for task in targets.iter().filter_map(|id| self.pending.get(id)) {
            clock.join(&task.clock);
        }
        for stream in self.streams.values().filter(|stream| stream.context == context) {
            clock.join(&stream.clock);
        }
        if let Some(found) = self.contexts.get(&context) {
            clock.join(&found.retired.clock);
        }
        self.run_until(&targets);
        self.host.join(&clock);
        self.check_context(context)
    }

    /// `cuStreamWaitEvent`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, or a capture error.
    pub fn stream_wait_event(&mut self, stream: u64, event: u64) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuStreamWaitEvent")?;
        let Some(found) = self.events.get(&event) else {
            return Err(self.bad_handle(Kind::Event, event, "cuStreamWaitEvent"));
        };
        if let Some(captured) = found.captured.clone() {
            return self.wait_captured(stream, &captured);
        }
        if self.streams[&stream].capture.is_some() {
            // The dependency would be on work outside the graph.
            if found.task.is_none() {
                return Ok(());
            }
            return self.fail_capture(
                stream,
                Status::STREAM_CAPTURE_ISOLATION,
                "cuStreamWaitEvent",
                "the event was recorded outside the capture",
            );
        }
        let (task, clock) = (found.task, found.clock.clone());
        if let (Some(task), Some(found)) = (task, self.streams.get_mut(&stream)) {
            found.frontier.push(task);
            found.clock.join(&clock);
        }
        Ok(())
    }

    /// Flags, priority and context of a stream.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn stream_facts(&mut self, stream: u64) -> Outcome<(u32, i32, u64)> {
        let stream = self.resolve_stream(stream, "cuStreamGet*")?;
        let found = &self.streams[&stream];
        Ok((found.flags, found.priority, found.context))
    }

    /// Fails when the calling thread may not make this potentially unsafe call during a capture.
    pub(crate) fn forbid_any_capture(&mut self, operation: &str) -> Outcome<()> {
        let thread = thread_number();
        let context = current();
        let hit = self
            .captures
            .iter()
            .find(|(_, capture)| {
                capture.active && capture.forbids(thread) && capture.context == context
            })
            .map(|(handle, _)| *handle);
        let Some(capture) = hit else { return Ok(()) };
        self.invalidate(capture);
        Err(self.refuse(
            Status::STREAM_CAPTURE_UNSUPPORTED,
            Class::Capture,
            operation,
            "not allowed while a stream is being captured; the capture is invalid from here on",
        ))
    }

    /// Fails when `stream` is being captured: nothing has run that could be waited for.
    pub(crate) fn forbid_capturing(&mut self, stream: u64, operation: &str) -> Outcome<()> {
        if self.streams[&stream].capture.is_none() {
            return Ok(());
        }
        self.fail_capture(
            stream,
            Status::STREAM_CAPTURE_UNSUPPORTED,
            operation,
            "the stream is being captured, so nothing has run that could be waited for",
        )
    }
}

/// A number for the calling thread.
pub(crate) fn thread_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    MINE.with(|mine| *mine)
}
