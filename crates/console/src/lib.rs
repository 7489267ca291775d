//! The console: a web page for operators at `/console`, and the data that it shows. Page and scripts are compiled in and
//! load nothing from elsewhere.
//!
//! * [`Console::router`]: the page, and its data below `/console/data`
//! * [`Access`]: who may read and who may write
//! * [`Question`]: the data that the process is asked for; the console computes none of it, it limits how often and how
//!   long the process works on it
//! * [`Pulse`]: the rates of the last minutes, by the process's own metrics
//! * [`Live`]: events as they are applied
//! * `assets`: the files of the page

mod access;
mod answers;
mod assets;
mod console;
mod live;
mod metrics_text;
mod pulse;

pub use access::Access;
pub use answers::{Ask, Decision, Failure, Question};
pub use console::{Console, ConsoleSettings, PATHS, ProcessFacts};
pub use live::{Live, LiveSettings};
pub use pulse::Pulse;
