//! Stream capture: work goes into a graph instead of the queue.

use super::{
    Runtime,
    event::CapturedRecord,
    graph::Graph,
    handle::Kind,
    report::Class,
    status::{Outcome, Status},
    stream::thread_number,
    task::{Node, Work},
};

/// One capture sequence, over the streams that joined it.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) context: u64,
    origin: u64,
    thread: u64,
    /// `CUstreamCaptureMode`: 0 global, 1 thread-local, 2 relaxed.
    mode: i32,
    pub(crate) active: bool,
    /// Each capturing stream and the nodes its next node depends on.
    frontiers: Vec<(u64, Vec<usize>)>,
    nodes: Vec<Node>,
}

impl Capture {
    /// Whether this capture forbids potentially unsafe calls to `thread`.
    pub(crate) fn forbids(&self, thread: u64) -> bool {
        match self.mode {
            0 => true,
            1 => self.thread == thread,
            _ => false,
        }
    }

    fn frontier(&mut self, stream: u64) -> &mut Vec<usize> {
        let index =
            self.frontiers.iter().position(|(handle, _)| *handle == stream).unwrap_or_else(|| {
                self.frontiers.push((stream, Vec::new()));
                self.frontiers.len() - 1
            });
        &mut self.frontiers[index].1
    }
}

impl Runtime {
    /// `cuStreamBeginCapture`.
    ///
    /// # Errors
    /// `STREAM_CAPTURE_UNSUPPORTED` for a default stream, `ILLEGAL_STATE` when already capturing.
    pub fn begin_capture(&mut self, stream: u64, mode: i32) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuStreamBeginCapture")?;
        if !(0..=2).contains(&mode) {
            return Err(Status::INVALID_VALUE);
        }
        let context = self.streams[&stream].context;
        if self.contexts[&context].legacy == stream {
            return Err(self.refuse(
                Status::STREAM_CAPTURE_UNSUPPORTED,
                Class::Capture,
                "cuStreamBeginCapture",
                "the legacy default stream cannot be captured; use a stream of your own",
            ));
        }
        if self.streams[&stream].capture.is_some() {
            return Err(Status::ILLEGAL_STATE);
        }
        let handle = self.handles.make(Kind::Capture);
        self.captures.insert(
            handle,
            Capture {
                context,
                origin: stream,
                thread: thread_number(),
                mode,
                active: true,
                frontiers: vec![(stream, Vec::new())],
                nodes: Vec::new(),
            },
        );
        if let Some(found) = self.streams.get_mut(&stream) {
            found.capture = Some(handle);
        }
        Ok(())
    }

    /// `cuStreamEndCapture`: the captured graph.
    ///
    /// # Errors
    /// `ILLEGAL_STATE` when not capturing, and the capture's own errors, which end it.
    pub fn end_capture(&mut self, stream: u64) -> Outcome<u64> {
        let stream = self.resolve_stream(stream, "cuStreamEndCapture")?;
        let Some(handle) = self.streams[&stream].capture else { return Err(Status::ILLEGAL_STATE) };
        let thread = thread_number();
        let Some(capture) = self.captures.get(&handle) else { return Err(Status::ILLEGAL_STATE) };
        if capture.origin != stream {
            return self.fail_capture(
                stream,
                Status::STREAM_CAPTURE_UNMATCHED,
                "cuStreamEndCapture",
                "the capture began in another stream",
            );
        }
        if capture.mode != 2 && capture.thread != thread {
            return Err(Status::STREAM_CAPTURE_WRONG_THREAD);
        }
        let Some(capture) = self.captures.remove(&handle) else {
            return Err(Status::ILLEGAL_STATE);
        };
        for found in self.streams.values_mut().filter(|found| found.capture == Some(handle)) {
            found.capture = None;
        }
        if !capture.active {
            return Err(Status::STREAM_CAPTURE_INVALIDATED);
        }
        // Everything captured must be an ancestor of the origin's last nodes.
        let mut joined = vec![false; capture.nodes.len()];
        let mut stack: Vec<usize> = capture
            .frontiers
            .iter()
            .filter(|(handle, _)| *handle == stream)
            .flat_map(|(_, nodes)| nodes.clone())
            .collect();
        while let Some(index) = stack.pop() {
            if !std::mem::replace(&mut joined[index], true) {
                stack.extend(&capture.nodes[index].after);
            }
        }
        if let Some(index) = joined.iter().position(|joined| !joined) {
            let label = capture.nodes[index].label.clone();
            return Err(self.refuse(
                Status::STREAM_CAPTURE_UNJOINED,
                Class::Capture,
                "cuStreamEndCapture",
                format!("{label} was captured in another stream that never joined back; record an event there and wait for it"),
            ));
        }
        let graph = self.handles.make(Kind::Graph);
        self.graphs.insert(graph, Graph { nodes: capture.nodes });
        Ok(graph)
    }

    /// `cuStreamIsCapturing`: 0 none, 1 active, 2 invalidated; with the capture's id.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn capture_status(&mut self, stream: u64) -> Outcome<(i32, u64)> {
        let stream = self.resolve_stream(stream, "cuStreamIsCapturing")?;
        let Some(handle) = self.streams[&stream].capture else { return Ok((0, 0)) };
        let active = self.captures.get(&handle).is_some_and(|capture| capture.active);
        Ok((if active { 1 } else { 2 }, handle & 0xFFFF_FFFF))
    }

    pub(crate) fn check_capture(&self, capture: u64) -> Outcome<()> {
        match self.captures.get(&capture) {
            Some(found) if found.active => Ok(()),
            _ => Err(Status::STREAM_CAPTURE_INVALIDATED),
        }
    }

    pub(crate) fn invalidate(&mut self, capture: u64) {
        if let Some(found) = self.captures.get_mut(&capture) {
            found.active = false;
        }
    }

    /// Invalidates the stream's capture and records why.
    pub(crate) fn fail_capture<T>(
        &mut self,
        stream: u64,
        status: Status,
        operation: &str,
        message: &str,
    ) -> Outcome<T> {
        if let Some(capture) = self.streams.get(&stream).and_then(|found| found.capture) {
            self.invalidate(capture);
        }
        Err(self.refuse(status, Class::Capture, operation, message))
    }

    pub(crate) fn capture_frontier(&mut self, stream: u64) -> Vec<usize> {
        let capture = self.streams[&stream].capture;
        capture
            .and_then(|capture| self.captures.get_mut(&capture))
            .map(|capture| capture.frontier(stream).clone())
            .unwrap_or_default()
    }

    /// Adds work of a capturing stream to its graph.
    pub(crate) fn capture_node(&mut self, stream: u64, label: &str, work: Work) -> Outcome<()> {
        let Some(handle) = self.streams[&stream].capture else { return Err(Status::ILLEGAL_STATE) };
        self.check_capture(handle)?;
        let node = self.handles.make(Kind::Node);
        let (context, lane) = (self.streams[&stream].context, self.streams[&stream].lane);
        let Some(capture) = self.captures.get_mut(&handle) else {
            return Err(Status::ILLEGAL_STATE);
        };
        let index = capture.nodes.len();
        let after = std::mem::replace(capture.frontier(stream), vec![index]);
        let label = Self::label(label);
        capture.nodes.push(Node { handle: node, context, lane, label, after, work });
        Ok(())
    }

    /// A wait for an event that was recorded during a capture: the stream joins it.
    pub(crate) fn wait_captured(&mut self, stream: u64, record: &CapturedRecord) -> Outcome<()> {
        if self.check_capture(record.capture).is_err() {
            return Err(self.refuse(
                Status::STREAM_CAPTURE_INVALIDATED,
                Class::Capture,
                "cuStreamWaitEvent",
                "the event was recorded in a capture that has ended",
            ));
        }
        let context = self.streams[&stream].context;
        if self.contexts[&context].legacy == stream {
            return self.fail_capture(
                stream,
                Status::STREAM_CAPTURE_IMPLICIT,
                "cuStreamWaitEvent",
                "the legacy default stream would join a capture",
            );
        }
        match self.streams[&stream].capture {
            Some(own) if own != record.capture => {
                return self.fail_capture(
                    stream,
                    Status::STREAM_CAPTURE_MERGE,
                    "cuStreamWaitEvent",
                    "the wait would merge two captures",
                );
            }
            _ => {}
        }
        if let Some(found) = self.streams.get_mut(&stream) {
            found.capture = Some(record.capture);
        }
        if let Some(capture) = self.captures.get_mut(&record.capture) {
            let frontier = capture.frontier(stream);
            frontier.extend(&record.after);
            frontier.sort_unstable();
            frontier.dedup();
        }
        Ok(())
    }

    /// Work on the legacy stream would make it depend on a capturing blocking stream.
    pub(crate) fn forbid_implicit_dependency(
        &mut self,
        stream: u64,
        operation: &str,
    ) -> Outcome<()> {
        let context = self.streams[&stream].context;
        if self.contexts.get(&context).is_none_or(|found| found.legacy != stream) {
            return Ok(());
        }
        let capturing = self
            .streams
            .values()
            .filter(|other| other.context == context && other.blocking)
            .find_map(|other| other.capture);
        let Some(capture) = capturing else { return Ok(()) };
        self.invalidate(capture);
        Err(self.refuse(
            Status::STREAM_CAPTURE_IMPLICIT,
            Class::Capture,
            operation,
            "the legacy default stream would depend on a blocking stream that is being captured",
        ))
    }
}
