//! Two servers under the same requests, in turns: their reports, round by round, and the ratios of one round each.

use std::fmt;

use serde::Serialize;

use crate::report::Report;

/// Two servers, measured in turns. `Display` is a table for people; the field names in JSON end with their units.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The first server and the second one.
    pub servers: [Side; 2],
    /// The first server's figures divided by the second one's of the same round.
    pub ratio: Ratio,
}

/// A server of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Its address, as given.
    pub url: String,
    /// The website of its events.
    pub website: String,
    /// Acknowledged events per second.
    pub events_per_s: Option<Spread>,
    /// Median time to an answer.
    pub p50_us: Option<Spread>,
    /// 99 % of the answers are not slower.
    pub p99_us: Option<Spread>,
    /// Rate of empty requests, of those rounds that have one.
    pub empty_requests_per_s: Option<Spread>,
    /// `events_per_s` divided by the rate of empty requests of the same round.
    pub events_ratio: Option<Spread>,
    /// A report for each round.
    pub rounds: Vec<Report>,
}

/// Ratios of two servers, over the rounds in which both acknowledged events; none if there is no such round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// Of `events_per_s`.
    pub events_per_s: Option<Spread>,
    /// Of `latency.p50_us`.
    pub p50: Option<Spread>,
    /// Of `latency.p99_us`.
    pub p99: Option<Spread>,
}

/// The values of several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Of these values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            odd if odd % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Self { median, least: values[0], greatest: values[values.len() - 1] })
    }
}

impl Comparison {
    /// Of these servers, each an address and a website, and their reports in each round.
    pub fn of(servers: [(String, String); 2], rounds: Vec<[Report; 2]>) -> Self {
        let (first, second): (Vec<Report>, Vec<Report>) =
            rounds.into_iter().map(|[first, second]| (first, second)).unzip();
        let ratio = |value: fn(&Report) -> f64| {
            let both = first.iter().zip(&second).map(|(first, second)| (value(first), value(second)));
            Spread::of(both.filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(first, second)| first / second))
        };
        let ratio = Ratio {
            events_per_s: ratio(|report| report.events_per_s),
            p50: ratio(|report| report.latency.p50_us as f64),
            p99: ratio(|report| report.latency.p99_us as f64),
        };
        let [a, b] = servers;
        Self { servers: [Side::of(a, first), Side::of(b, second)], ratio }
    }
}

impl Side {
    fn of((url, website): (String, String), rounds: Vec<Report>) -> Self {
        let spread = |value: fn(&Report) -> f64| Spread::of(rounds.iter().map(value));
        let limits = || rounds.iter().filter_map(|report| report.limit);
        Self {
            events_per_s: spread(|report| report.events_per_s),
            p50_us: spread(|report| report.latency.p50_us as f64),
            p99_us: spread(|report| report.latency.p99_us as f64),
            empty_requests_per_s: Spread::of(limits().map(|limit| limit.empty_requests_per_s)),
            events_ratio: Spread::of(limits().map(|limit| limit.events_ratio)),
            url,
            website,
            rounds,
        }
    }

    /// Events acknowledged in all rounds, and those in answered requests that were not.
    pub fn events(&self) -> (u64, u64) {
        let sum = |value: fn(&Report) -> u64| self.rounds.iter().map(value).sum();
        (sum(|report| report.counts.acknowledged_events), sum(|report| report.counts.refused_events))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = ["", "events/s", "p50 ms", "p99 ms", "empty requests/s", "events of it"];
        let mut rows = vec![columns.map(str::to_owned)];
        for side in &self.servers {
            rows.push([
                side.url.clone(),
                text(side.events_per_s, 1.0, 0),
                text(side.p50_us, 1e-3, 2),
                text(side.p99_us, 1e-3, 2),
                text(side.empty_requests_per_s, 1.0, 0),
                text(side.events_ratio, 1.0, 3),
            ]);
        }
        let Ratio { events_per_s, p50, p99 } = self.ratio;
        rows.push([
            "first / second".to_owned(),
            text(events_per_s, 1.0, 2),
            text(p50, 1.0, 3),
            text(p99, 1.0, 3),
            String::new(),
            String::new(),
        ]);
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        writeln!(f)?;
        for side in &self.servers {
            let (acknowledged, refused) = side.events();
            write!(f, "{}: {acknowledged} events acknowledged, {refused} refused", side.url)?;
            let (errors, missed) = side.rounds.iter().fold((0, 0), |(errors, missed), report| {
                (errors + report.counts.errors.total(), missed + report.counts.missed)
            });
            write!(f, ", {errors} requests without an answer, {missed} missed")?;
            if let Some(refusal) = side.rounds.iter().find_map(|report| report.first_refusal.as_deref()) {
                write!(f, "; first refusal: {refusal}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// `median (least to greatest)`.
fn text(spread: Option<Spread>, unit: f64, digits: usize) -> String {
    let Some(Spread { median, least, greatest }) = spread else { return "–".to_owned() };
    let [median, least, greatest] = [median, least, greatest].map(|value| value * unit);
    format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Counts, Latency, Limit};

    fn report(events_per_s: f64, p99_us: u64) -> Report {
        let counts = Counts { acknowledged_events: events_per_s as u64, ..Counts::default() };
        let latency = Latency { samples: 1, p50_us: p99_us / 2, p99_us, ..Latency::default() };
        Report {
            mark_prefix: "/load/1/".into(),
            elapsed_s: 1.0,
            requests_per_s: events_per_s,
            events_per_s,
            counts,
            warmup: Counts::default(),
            latency,
            client_cpu_s: None,
            first_refusal: None,
            limit: Some(Limit {
                empty_requests_per_s: 1_000.0,
                empty_p50_us: 5,
                requests_ratio: events_per_s / 1_000.0,
                events_ratio: events_per_s / 1_000.0,
            }),
        }
    }

    fn servers() -> [(String, String); 2] {
        [("http://a".into(), "w".into()), ("http://b".into(), "w".into())]
    }

    #[test]
    fn the_ratio_is_that_of_each_round_and_its_median() {
        let rounds = vec![
            [report(900.0, 10), report(100.0, 100)],
            [report(800.0, 20), report(200.0, 100)],
            [report(600.0, 30), report(100.0, 100)],
        ];
        let compared = Comparison::of(servers(), rounds);
        let ratio = compared.ratio.events_per_s.unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.greatest), (6.0, 4.0, 9.0));
        assert_eq!(compared.ratio.p99.unwrap().median, 0.2);
        assert_eq!(compared.servers[0].events_per_s.unwrap().median, 800.0);
        assert_eq!(compared.servers[1].events_ratio.unwrap().greatest, 0.2);
        assert_eq!(compared.servers[1].events(), (400, 0));
    }

    #[test]
    fn a_round_in_which_nothing_was_acknowledged_has_no_ratio() {
        let compared = Comparison::of(
            servers(),
            vec![[report(900.0, 10), report(0.0, 0)], [report(500.0, 10), report(50.0, 5)]],
        );
        assert_eq!(compared.ratio.events_per_s, Spread::of([10.0]));
        let none = Comparison::of(servers(), Vec::new());
        assert_eq!((none.ratio.p50, none.servers[0].events_per_s), (None, None));
        assert!(none.to_string().contains('–'));
    }

    #[test]
    fn an_even_number_of_rounds_has_the_mean_of_the_middle_ones() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 8.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn people_read_a_table_and_the_first_refusal() {
        let refused = Report {
            counts: Counts { acknowledged_events: 50, refused_events: 3, ..Counts::default() },
            first_refusal: Some("400 Website not found.".into()),
            ..report(50.0, 2_000)
        };
        let text = Comparison::of(servers(), vec![[report(500.0, 1_000), refused]]).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("events/s") && lines[0].contains("empty requests/s"), "{text}");
        assert!(lines[1].starts_with("http://a") && lines[1].contains("500 (500 to 500)"), "{text}");
        assert!(
            lines[3].starts_with("first / second") && lines[3].contains("10.00 (10.00 to 10.00)"),
            "{text}"
        );
        assert!(text.contains("http://b: 50 events acknowledged, 3 refused"), "{text}");
        assert!(text.contains("first refusal: 400 Website not found."), "{text}");
    }

    #[test]
    fn machines_read_the_reports_of_all_rounds() {
        let json =
            serde_json::to_value(Comparison::of(servers(), vec![[report(4.0, 1), report(2.0, 1)]])).unwrap();
        assert_eq!(json["ratio"]["events_per_s"]["median"], 2.0);
        assert_eq!(json["servers"][1]["rounds"][0]["acknowledged_events"], 2);
        assert_eq!(json["servers"][0]["url"], "http://a");
    }
}
