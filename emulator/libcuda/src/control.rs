//! The exports behind the Rust API: configuration, findings and counters as JSON.

use crate::abi::rt;

/// Answers one JSON request with JSON; 0 on success.
///
/// The answer's bytes belong to the caller, who gives them back with `cuda_emulator_release`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_emulator_control(
    request: *const u8,
    request_len: usize,
    response: *mut *mut u8,
    response_len: *mut usize,
) -> i32 {
    if request.is_null() || response.is_null() || response_len.is_null() {
        return 1;
    }
    // SAFETY: not null, and by contract `request_len` readable bytes.
    let request = unsafe { std::slice::from_raw_parts(request, request_len) };
    let answered = std::panic::catch_unwind(|| rt(|rt| rt.control_json(request)));
    let Ok(Some(bytes)) = answered else { return 2 };
    let bytes = Box::leak(bytes.into_boxed_slice());
    // SAFETY: both are not null and by contract writable.
    unsafe {
        response_len.write(bytes.len());
        response.write(bytes.as_mut_ptr());
    }
    0
}

/// Gives an answer of `cuda_emulator_control` back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_emulator_release(bytes: *mut u8, len: usize) {
    if !bytes.is_null() {
        // SAFETY: by contract these are the address and length that `cuda_emulator_control`
        // handed out, which came from a leaked box of that length, and they come back once.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes, len)) });
    }
}
