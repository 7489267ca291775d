//! Constant seeds of hash maps. With random ones, the instructions of each look-up differ from run to run.

/// Takes the place of the C library's function of this name, of which the standard library asks the seeds of its hash
/// maps (it looks the symbol up so that programs which measure can do this). Fills the buffer with a constant.
#[expect(unsafe_code, reason = "the standard library has no safe way to seed its hash maps")]
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        // SAFETY: by the contract of getrandom(2), the buffer is the caller's and has `length` bytes.
        unsafe { buffer.add(at).write((at as u8).wrapping_mul(37) ^ 0x5a) };
    }
    length as isize
}
