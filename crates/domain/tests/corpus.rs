//! The fuzz target's corpus, every file of it, on the stable toolchain.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report, in its helper functions too")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn every_body_of_the_corpus_is_refused_as_documented_or_makes_a_whole_event() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/body");
    let mut bodies = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let body = fs::read(&path).unwrap();
        if let Err(panic) = std::panic::catch_unwind(|| fuzz::check(&body)) {
            eprintln!("with the body in {}", path.display());
            std::panic::resume_unwind(panic);
        }
        bodies += 1;
    }
    assert!(bodies >= 100, "{bodies}");
}
