//! The answer as text.

use dashi_domain::calendar::iso_string;

use super::account::{Audit, Line};

/// Hours that are printed; of more, the oldest are summed up.
const HOURS_MAX: usize = 48;

/// A table of hours, the reasons of what was refused, and the verdict.
pub fn text(audit: &Audit) -> String {
    let mut out = row(["hour", "accepted", "in log", "applied", "duplicate", "dead", "not read", "refused"]
        .map(str::to_owned));
    let left_out = audit.hours.len().saturating_sub(HOURS_MAX);
    if left_out > 0 {
        out.push_str(&format!("… {left_out} earlier hours; --json has all\n"));
    }
    for hour in &audit.hours[left_out..] {
        let time = iso_string(hour.hour_ms);
        out.push_str(&line(time.get(..16).unwrap_or(&time), &hour.line));
    }
    out.push_str(&line("total", &audit.total));
    if !audit.total.refused.is_empty() {
        let mut reasons: Vec<_> = audit.total.refused.iter().collect();
        reasons.sort_by_key(|(outcome, count)| (std::cmp::Reverse(**count), *outcome));
        let reasons: Vec<String> =
            reasons.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
        out.push_str(&format!("refused or ignored: {}\n", reasons.join(", ")));
    }
    for note in &audit.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    for finding in &audit.findings {
        out.push_str(&format!("DOES NOT ADD UP: {}\n", finding.text));
    }
    let Line { in_log, not_read, .. } = audit.total;
    if audit.adds_up {
        out.push_str(&format!(
            "It adds up: each of {in_log} records in the log has one outcome or is not read yet ({not_read}), and nothing \
             that a collector accepted is missing.\n"
        ));
    } else {
        let records: u64 = audit.findings.iter().map(|finding| finding.records).sum();
        out.push_str(&format!("It does not add up: {} findings, {records} records.\n", audit.findings.len()));
    }
    out
}

fn line(name: &str, line: &Line) -> String {
    let numbers = [
        line.accepted,
        line.in_log,
        line.applied,
        line.duplicate,
        line.dead,
        line.not_read,
        line.refused.values().sum(),
    ]
    .map(|number| number.to_string());
    let [a, b, c, d, e, f, g] = numbers;
    row([name.to_owned(), a, b, c, d, e, f, g])
}

fn row(cells: [String; 8]) -> String {
    let [name, rest @ ..] = cells;
    let rest: Vec<String> = rest.iter().map(|cell| format!("{cell:>10}")).collect();
    format!("{name:<16} {}\n", rest.join(" "))
}
