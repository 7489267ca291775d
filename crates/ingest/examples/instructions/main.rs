//! Fixed work loads for `scripts/instructions`, which counts their instructions:
//!
//! ```text
//! cargo build --workspace --example instructions
//! valgrind --tool=callgrind … target/debug/examples/instructions accept|fold|encode_decode
//! ```
//!
//! * `accept`: events from the parsed request to the bytes of the answer, through the collector's router. The thread of
//!   the log does its work on a thread of its own and is not counted; the hand-over to it is.
//! * `fold`: records of the log into changes of the tables, in batches as a projector reads them.
//! * `encode_decode`: records of the log read into events and written again.
//!
//! Only the functions `counted_…` are counted: callgrind turns counting on where one begins and off where it ends. Each
//! thus has a name of its own, is never inlined, and does not call itself. Each run does the same: inputs are functions
//! of a number, and the seeds of hash maps are constant ([`constant_seeds`]).

mod accept;
mod bodies;
mod constant_seeds;
mod records;

use std::error::Error;

/// A work load that failed: there is no count then.
type Outcome<T> = Result<T, Box<dyn Error>>;

/// The website of all events.
const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

/// Prints the number of events that were worked on, as a JSON object.
#[expect(clippy::print_stdout, reason = "the result of this program")]
fn main() -> Outcome<()> {
    let load = std::env::args().nth(1).unwrap_or_default();
    let events = match load.as_str() {
        "accept" => accept::run()?,
        "fold" => records::run_fold()?,
        "encode_decode" => records::run_encode_decode()?,
        other => return Err(format!("no load {other:?}: give accept, fold or encode_decode").into()),
    };
    println!(r#"{{"events":{events}}}"#);
    Ok(())
}
