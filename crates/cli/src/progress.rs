//! Progress of a long command, on standard error: a bar on a terminal, a line every few seconds elsewhere, as JSON for
//! machines. The rate is that of the last seconds, and the time that is left follows from it.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The time between two lines.
const LINE: Duration = Duration::from_secs(5);

/// The rate is that of so many last seconds.
const WINDOW: Duration = Duration::from_secs(20);

/// Units of the progress shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things of this name, such as "records".
    Of(&'static str),
    /// Thousandths of the work, shown as per cent.
    Thousandths,
}

/// A state of the work.
#[derive(Debug, Clone, Copy)]
pub struct State<'s> {
    /// The part of the command that runs, such as "replay"; with a new one, the rate begins again.
    pub part: &'s str,
    /// How much is done.
    pub done: u64,
    /// How much there is to do; 0 if it is not known.
    pub total: u64,
    pub unit: Unit,
    /// A condition to be shown beside it, such as the reason of a wait.
    pub note: Option<&'s str>,
}

impl State<'_> {
    /// Whether nothing is left to do.
    fn is_over(&self) -> bool {
        self.done >= self.total && self.total > 0
    }
}

/// Shows progress. It may be called as often as is convenient.
pub struct ProgressDisplay {
    bar: ProgressBar,
    form: Form,
    shown: Mutex<Shown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Bar,
    Lines,
    Json,
}

#[derive(Default)]
struct Shown {
    part: String,
    rate: Rate,
    last_line: Option<Instant>,
}

impl ProgressDisplay {
    /// Shows nothing yet. With `json`, lines are JSON objects with the one member `progress`.
    pub fn new(json: bool) -> Self {
        let form = match json {
            true => Form::Json,
            false if std::io::stderr().is_terminal() => Form::Bar,
            false => Form::Lines,
        };
        let bar = match form {
            Form::Bar => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)),
            Form::Lines | Form::Json => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{prefix:18} {bar:32} {wide_msg}") {
            bar.set_style(style);
        }
        Self { bar, form, shown: Mutex::default() }
    }

    /// Shows a state: at once on a terminal, elsewhere if the last line is some seconds old or was of another part. A part
    /// with nothing left to do has no line.
    pub fn show(&self, state: State<'_>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if shown.part != state.part {
            *shown = Shown { part: state.part.to_owned(), ..Shown::default() };
            self.bar.reset();
            self.bar.set_prefix(state.part.to_owned());
        }
        shown.rate.add(now, state.done);
        let per_s = shown.rate.per_s();
        if self.form == Form::Bar {
            self.bar.set_length(state.total.max(1));
            self.bar.set_position(state.done);
            self.bar.set_message(text(&state, per_s));
            return;
        }
        let is_first = shown.last_line.is_none();
        if shown.last_line.is_some_and(|last| now - last < LINE) || (is_first && state.is_over()) {
            return;
        }
        shown.last_line = Some(now);
        match self.form {
            Form::Json => eprintln!("{}", json(&state, per_s)),
            Form::Bar | Form::Lines => eprintln!("{}: {}", state.part, text(&state, per_s)),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// How long work may take before it is shown that it is waited for.
const UNREMARKABLE: Duration = Duration::from_secs(2);

/// Waits for work that ends within `bound` by itself, and shows how much of that time is over once it takes longer than is
/// unremarkable.
pub async fn within<T>(json: bool, part: &str, bound: Duration, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let mut work = pin!(work);
    if let Ok(ended) = tokio::time::timeout(UNREMARKABLE, &mut work).await {
        return ended;
    }
    let display = ProgressDisplay::new(json);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            _ = tick.tick() => {
                let share = began.elapsed().as_secs_f64() / bound.as_secs_f64().max(0.001);
                let done = (share.min(1.0) * 1_000.0) as u64;
                let (unit, note) = (Unit::Thousandths, Some("at most"));
                display.show(State { part, done, total: 1_000, unit, note });
            }
        }
    };
    display.finish();
    ended
}

/// Seconds until the work is done, at this rate.
fn left_s(state: &State<'_>, per_s: Option<f64>) -> Option<f64> {
    let left = state.total.checked_sub(state.done)? as f64;
    per_s.filter(|per_s| *per_s > 0.0).map(|per_s| left / per_s)
}

fn text(state: &State<'_>, per_s: Option<f64>) -> String {
    let State { done, total, unit, .. } = state;
    let left = left_s(state, per_s).filter(|_| *total > 0);
    let mut text = match unit {
        Unit::Of(unit) => {
            let of = if *total > 0 { format!(" of {total}") } else { String::new() };
            let rate = per_s.map(|per_s| format!(", {per_s:.0}/s")).unwrap_or_default();
            format!("{done}{of} {unit}{rate}")
        }
        Unit::Thousandths => format!("{} %", done * 100 / (*total).max(1)),
    };
    if let Some(left) = left {
        text.push_str(&format!(", {} left", duration(left)));
    }
    if let Some(note) = state.note {
        text.push_str(&format!("; {note}"));
    }
    text
}

fn json(state: &State<'_>, per_s: Option<f64>) -> serde_json::Value {
    let tenth = |number: f64| (number * 10.0).round() / 10.0;
    let unit = match state.unit {
        Unit::Of(unit) => unit,
        Unit::Thousandths => "thousandths",
    };
    serde_json::json!({ "progress": {
        "part": state.part,
        "done": state.done,
        "total": state.total,
        "unit": unit,
        "per_s": per_s.map(tenth),
        "left_s": left_s(state, per_s).map(tenth),
        "note": state.note,
    } })
}

/// A duration in words, as exact as is useful: `35 s`, `12 min`, `3 h 20 min`.
pub fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    if seconds < 9.95 {
        format!("{:.1} s", seconds.max(0.0))
    } else if seconds < 99.5 {
        format!("{seconds:.0} s")
    } else if minutes < 100 {
        format!("{minutes} min")
    } else {
        format!("{} h {} min", minutes / 60, minutes % 60)
    }
}

/// The rate of the last seconds.
#[derive(Debug, Default)]
struct Rate {
    /// Amounts done, a quarter of a second apart or more, the oldest first. The last one is always the newest.
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn add(&mut self, now: Instant, done: u64) {
        const APART: Duration = Duration::from_millis(250);
        // The newest amount replaces the last one, unless that is far enough from the one before it to stay.
        let length = self.seen.len();
        if length > 1 && self.seen[length - 1].0 - self.seen[length - 2].0 < APART {
            self.seen.pop_back();
        }
        self.seen.push_back((now, done));
        while self.seen.len() > 2 && now - self.seen[1].0 >= WINDOW {
            self.seen.pop_front();
        }
    }

    /// Per second; `None` if there is only one amount, or nothing was done.
    fn per_s(&self) -> Option<f64> {
        let ((first, from), (last, to)) = (self.seen.front()?, self.seen.back()?);
        let seconds = (*last - *first).as_secs_f64();
        let done = to.saturating_sub(*from);
        (seconds > 0.05 && done > 0).then(|| done as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(done: u64, total: u64, unit: Unit) -> State<'static> {
        State { part: "replay", done, total, unit, note: None }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut rate = Rate::default();
        assert_eq!(rate.per_s(), None);
        rate.add(at(0), 500);
        assert_eq!(rate.per_s(), None, "amounts of an earlier run are no rate");
        rate.add(at(1_000), 600);
        assert_eq!(rate.per_s(), Some(100.0));
        for second in 2..=60 {
            rate.add(at(second * 1_000), 600 + (second - 1) * 10);
        }
        assert_eq!(rate.per_s(), Some(10.0), "the fast beginning is forgotten");
        assert!(rate.seen.len() < 30, "{}", rate.seen.len());
    }

    #[test]
    fn amounts_close_together_are_one() {
        let began = Instant::now();
        let mut rate = Rate::default();
        for step in 0..10_000 {
            rate.add(began + Duration::from_millis(step), step);
        }
        assert!(rate.seen.len() < 50, "{}", rate.seen.len());
        assert_eq!(rate.per_s().map(f64::round), Some(1_000.0));
    }

    #[test]
    fn a_line_has_amount_rate_and_time_left() {
        assert_eq!(text(&state(0, 900, Unit::Of("records")), None), "0 of 900 records");
        let half = text(&state(500, 1_000, Unit::Of("records")), Some(100.0));
        assert_eq!(half, "500 of 1000 records, 100/s, 5.0 s left");
        assert_eq!(text(&state(280, 1_000, Unit::Thousandths), Some(1.0)), "28 %, 12 min left");
        assert_eq!(text(&state(7, 0, Unit::Of("rows")), Some(3.0)), "7 rows, 3/s");
        let waiting = State { note: Some("it waits"), ..state(1, 2, Unit::Of("records")) };
        assert_eq!(text(&waiting, None), "1 of 2 records; it waits");
        assert_eq!(json(&state(500, 1_000, Unit::Of("records")), Some(100.0))["progress"]["left_s"], 5.0);
    }

    #[test]
    fn durations_are_as_exact_as_is_useful() {
        let words: Vec<_> = [0.04, 9.96, 99.4, 99.6, 3_600.0, 12_000.0].map(duration).into();
        assert_eq!(words, ["0.0 s", "10 s", "99 s", "2 min", "60 min", "3 h 20 min"]);
    }
}
