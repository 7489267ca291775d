//! The allocator, and the memory that it keeps back.
#![expect(unsafe_code, reason = "mimalloc's options have no safe binding")]

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// Requests make many small, short-lived allocations on several threads; the system's allocator took a tenth of the
/// collector's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long free memory is kept for the next allocation before the system gets it back, in ms; mimalloc's own is 1,000.
const PURGE_DELAY_MS: i64 = 10;

/// Source: mimalloc's `mimalloc.h`, `mi_option_purge_delay`.
const PURGE_DELAY: mi_option_t = 15;

/// Gives free memory back soon, in small pages: the batches of a projector, and what waits in a collector for a slow broker,
/// come and go by tens of megabytes, and what each leaves free is scattered over huge pages that nobody may give back.
/// `MIMALLOC_PURGE_DELAY` still decides where it is set.
pub fn give_back_soon() {
    // A kernel without huge pages has none to turn off.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // SAFETY: it sets a number in a table of the allocator, which has this option in its versions 2 and 3.
    unsafe { mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) }
}
