//! Any bytes, all the way from a body to rows.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dashi_fuzz::check(bytes));
