//! Streams and events.

use std::ffi::{c_int, c_uint, c_void};

use cuda_emulator::runtime::status::Status;

use crate::abi::{Out, aliases, entries, rt};

entries! {
    cuStreamCreate(stream: Out<u64>, flags: c_uint) { stream.set(rt(|rt| rt.stream_create(flags, 0))?) }
    cuStreamCreateWithPriority(stream: Out<u64>, flags: c_uint, priority: c_int) {
        stream.set(rt(|rt| rt.stream_create(flags, priority))?)
    }
    cuStreamDestroy_v2(stream: u64) { rt(|rt| rt.stream_destroy(stream)) }
    cuStreamSynchronize(stream: u64) { rt(|rt| rt.stream_synchronize(stream)) }
    cuStreamQuery(stream: u64) { rt(|rt| rt.stream_query(stream)) }
    cuStreamWaitEvent(stream: u64, event: u64, flags: c_uint) {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        rt(|rt| rt.stream_wait_event(stream, event))
    }
    cuStreamGetFlags(stream: u64, flags: Out<c_uint>) { flags.set(rt(|rt| rt.stream_facts(stream))?.0) }
    cuStreamGetPriority(stream: u64, priority: Out<c_int>) {
        priority.set(rt(|rt| rt.stream_facts(stream))?.1)
    }
    cuStreamGetCtx(stream: u64, context: Out<u64>) { context.set(rt(|rt| rt.stream_facts(stream))?.2) }
    cuStreamGetId(stream: u64, id: Out<u64>) {
        rt(|rt| rt.stream_facts(stream))?;
        id.set(stream & 0xFFFF_FFFF)
    }
    cuStreamGetDevice(stream: u64, device: Out<c_int>) {
        let found = rt(|rt| rt.stream_facts(stream).and_then(|facts| rt.context_device(facts.2)))?;
        device.set(found)
    }
    cuStreamBeginCapture_v2(stream: u64, mode: c_int) { rt(|rt| rt.begin_capture(stream, mode)) }
    cuStreamEndCapture(stream: u64, graph: Out<u64>) {
        match rt(|rt| rt.end_capture(stream)) {
            Ok(found) => graph.set(found),
            Err(status) => {
                graph.set_if_wanted(0);
                Err(status)
            }
        }
    }
    cuStreamIsCapturing(stream: u64, status: Out<c_int>) {
        status.set(rt(|rt| rt.capture_status(stream))?.0)
    }
    cuLaunchHostFunc(stream: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let function = function.ok_or(Status::INVALID_VALUE)?;
        rt(|rt| rt.launch_host(stream, function, data as usize))
    }
    cuEventCreate(event: Out<u64>, flags: c_uint) { event.set(rt(|rt| rt.event_create(flags))?) }
    cuEventDestroy_v2(event: u64) { rt(|rt| rt.event_destroy(event)) }
    cuEventRecord(event: u64, stream: u64) { rt(|rt| rt.event_record(event, stream)) }
    cuEventRecordWithFlags(event: u64, stream: u64, flags: c_uint) {
        if flags != 0 {
            return Err(rt(|rt| rt.unsupported("cuEventRecordWithFlags with CU_EVENT_RECORD_EXTERNAL")));
        }
        rt(|rt| rt.event_record(event, stream))
    }
    cuEventSynchronize(event: u64) { rt(|rt| rt.event_synchronize(event)) }
    cuEventQuery(event: u64) { rt(|rt| rt.event_query(event)) }
    cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64) {
        milliseconds.set(rt(|rt| rt.event_elapsed(start, end))?)
    }
    cuThreadExchangeStreamCaptureMode(_mode: Out<c_int>) {
        Err(rt(|rt| rt.unsupported("cuThreadExchangeStreamCaptureMode")))
    }
}

aliases! {
    cuStreamDestroy = cuStreamDestroy_v2(stream: u64);
    cuStreamBeginCapture = cuStreamBeginCapture_v2(stream: u64, mode: c_int);
    cuEventDestroy = cuEventDestroy_v2(event: u64);
    cuEventElapsedTime = cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64);
}
