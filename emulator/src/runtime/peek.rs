//! Reading memory that may not be there: the argument pointers of a launch.
//!
//! A launch with too few arguments makes the driver read past the array it was given. On a device
//! that is undefined; here the kernel of the operating system copies the bytes, and says so when
//! they cannot be read.

/// Copies `into.len()` bytes from `address`; `false` when they are not readable.
#[allow(
    unsafe_code,
    reason = "asks the operating system to copy between two ranges of this process"
)]
pub(crate) fn read(address: u64, into: &mut [u8]) -> bool {
    if into.is_empty() {
        return true;
    }
    if address < 4096 {
        return false;
    }
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: `local` describes a live, writable slice; `remote` may be any range, the call
    // reports unreadable memory as an error instead of touching it from here.
    let copied = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    if copied >= 0 {
        return copied as usize == into.len();
    }
    let error = std::io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EFAULT) {
        return false;
    }
    // A sandbox that forbids the call: read as a driver would.
    // SAFETY: the caller of the driver promises that the arguments are readable.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, into.as_mut_ptr(), into.len()) };
    true
}

#[cfg(test)]
mod tests {
    #[test]
    fn unmapped_memory_is_noticed() {
        let value = 0x1234_5678_u32;
        let mut bytes = [0; 4];
        assert!(super::read(&raw const value as u64, &mut bytes));
        assert_eq!(u32::from_le_bytes(bytes), value);
        assert!(!super::read(0x1000_0000_0000, &mut bytes));
        assert!(!super::read(8, &mut bytes));
    }
}
