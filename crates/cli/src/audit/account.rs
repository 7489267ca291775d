//! Comparing the counts: pure.

use std::collections::{BTreeMap, BTreeSet};

use dashi_domain::calendar::iso_string;
use dashi_domain::fold::Outcomes;
use dashi_domain::glance::HourKey;
use dashi_domain::position::LogId;
use dashi_store::{MissingRange, PartitionCounts, SpoolNote, Tally};
use serde::Serialize;
use uuid::Uuid;

use super::read::PartitionRead;
use crate::spool::HISTORICAL;

/// Findings of one kind that are spelled out for each partition; the others are counted.
const SPELLED_OUT: usize = 5;

/// How long a collector may keep its tallies before it writes them, in seconds.
const TALLY_S: i64 = 10;

/// All that was read.
pub struct Input<'a> {
    /// The projector's counts. Read after the tallies.
    pub counts: &'a [PartitionCounts],
    /// The collectors' counts.
    pub tallies: &'a [Tally],
    pub missing: &'a [MissingRange],
    /// What collectors' spools hold, of all logs. Read after the tallies and before the log.
    pub spools: &'a [SpoolNote],
    /// The log that is audited.
    pub log: &'a LogId,
    /// The log. Read after the counts.
    pub read: &'a [PartitionRead],
    pub website: Option<Uuid>,
    /// The beginning of the first hour that counts.
    pub since_ms: Option<i64>,
    pub now_ms: i64,
}

/// The counts of an hour, or of all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Line {
    /// Submissions that collectors accepted.
    pub accepted: u64,
    /// Accepted submissions that lie in a collector's spool and, but for copies, not in the log yet.
    pub spooled: u64,
    /// Records in the log.
    pub in_log: u64,
    pub applied: u64,
    pub duplicate: u64,
    pub dead: u64,
    /// Records in the log that no projector has reached.
    pub not_read: u64,
    /// Submissions that were answered and are not in the log, by outcome.
    pub refused: BTreeMap<String, u64>,
}

/// An hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hour {
    /// Its beginning, milliseconds since 1970.
    pub hour_ms: i64,
    #[serde(flatten)]
    pub line: Line,
}

/// Something that does not add up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `log_lacks_records`, `accepted_not_in_log`, `counts_differ`.
    pub kind: &'static str,
    pub partition: Option<u32>,
    pub hour_ms: Option<i64>,
    /// Records that are too few, or counted too often.
    pub records: u64,
    /// In words, with likely causes.
    pub text: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit {
    pub adds_up: bool,
    pub hours: Vec<Hour>,
    pub total: Line,
    /// Records that the log had lost before they were read, by the store's notes.
    pub missing: u64,
    pub findings: Vec<Finding>,
    /// Differences that have an explanation.
    pub notes: Vec<String>,
}

/// Compares.
pub fn account(input: &Input<'_>) -> Audit {
    let mut accounting = Accounting { input, findings: Vec::new(), notes: Vec::new() };
    let hours = accounting.hours();
    for read in input.read {
        let counts = input.counts.iter().find(|counts| counts.partition.number() == read.partition);
        let in_gaps = accounting.gaps(read, counts);
        if let Some(counts) = counts {
            accounting.partition(read, counts, in_gaps);
        }
    }
    accounting.collectors(&hours);
    accounting.spooled();
    let mut total = Line::default();
    for line in hours.values() {
        total.add(line);
    }
    let missing = input.counts.iter().map(|counts| counts.missing).sum();
    if missing > 0 {
        accounting.notes.push(format!(
            "{missing} records were lost from the log before they were read, and are noted as missing: `dashi status` \
             lists them"
        ));
    }
    let Accounting { findings, notes, .. } = accounting;
    let hours = hours.into_iter().map(|(hour_ms, line)| Hour { hour_ms, line }).collect();
    Audit { adds_up: findings.is_empty(), hours, total, missing, findings, notes }
}

impl Line {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.spooled += other.spooled;
        self.in_log += other.in_log;
        self.applied += other.applied;
        self.duplicate += other.duplicate;
        self.dead += other.dead;
        self.not_read += other.not_read;
        for (outcome, count) in &other.refused {
            *self.refused.entry(outcome.clone()).or_default() += count;
        }
    }

    fn outcomes(&self) -> u64 {
        self.applied + self.duplicate + self.dead
    }
}

struct Accounting<'a> {
    input: &'a Input<'a>,
    findings: Vec<Finding>,
    notes: Vec<String>,
}

impl Accounting<'_> {
    fn counts(&self, key: &HourKey) -> bool {
        self.input.since_ms.is_none_or(|since_ms| key.hour_ms >= since_ms)
            && self.input.website.is_none_or(|website| key.source_id == website)
    }

    /// Whether all hours and websites are looked at, so that totals can be compared.
    fn is_whole(&self) -> bool {
        self.input.since_ms.is_none() && self.input.website.is_none()
    }

    /// The spools whose records are for this log.
    fn spools(&self) -> impl Iterator<Item = &SpoolNote> {
        self.input.spools.iter().filter(|spool| spool.log == *self.input.log)
    }

    fn hours(&self) -> BTreeMap<i64, Line> {
        let mut hours: BTreeMap<i64, Line> = BTreeMap::new();
        for read in self.input.read {
            for (key, count) in read.passed.iter().chain(&read.unread).filter(|(key, _)| self.counts(key)) {
                hours.entry(key.hour_ms).or_default().in_log += count;
            }
            for (key, count) in read.unread.iter().filter(|(key, _)| self.counts(key)) {
                hours.entry(key.hour_ms).or_default().not_read += count;
            }
        }
        for (key, outcomes) in self.input.counts.iter().flat_map(|counts| &counts.hours) {
            if self.counts(key) {
                let line = hours.entry(key.hour_ms).or_default();
                line.applied += outcomes.applied;
                line.duplicate += outcomes.duplicate;
                line.dead += outcomes.dead;
            }
        }
        for (key, records) in self.spools().flat_map(|spool| &spool.hours).filter(|(key, _)| self.counts(key))
        {
            hours.entry(key.hour_ms).or_default().spooled += records;
        }
        for tally in self.input.tallies {
            let is_accepted = tally.outcome == "accepted";
            // Only accepted submissions are counted by website.
            let is_of_website = if is_accepted {
                self.counts(&tally.key)
            } else {
                self.input.website.is_none()
                    && self.input.since_ms.is_none_or(|since_ms| tally.key.hour_ms >= since_ms)
            };
            if !is_of_website {
                continue;
            }
            let line = hours.entry(tally.key.hour_ms).or_default();
            if is_accepted {
                line.accepted += tally.count;
            } else {
                *line.refused.entry(tally.outcome.clone()).or_default() += tally.count;
            }
        }
        hours
    }

    /// Offsets without a record. Returns how many of them were applied.
    fn gaps(&mut self, read: &PartitionRead, counts: Option<&PartitionCounts>) -> u64 {
        let noted: Vec<_> = self
            .input
            .missing
            .iter()
            .filter(|range| range.partition.number() == read.partition)
            .map(|range| range.missing.range.start.number()..range.missing.range.end.number())
            .collect();
        let is_noted = |offset: u64| noted.iter().any(|range| range.contains(&offset));
        let checkpoint = counts.map_or(0, |counts| counts.checkpoint.offset().number());
        let gaps: Vec<_> =
            read.gaps.iter().filter(|gap| !(is_noted(gap.start) && is_noted(gap.end - 1))).collect();
        for gap in gaps.iter().take(SPELLED_OUT) {
            let records = gap.end - gap.start;
            let which = if records == 1 {
                format!("offset {}", gap.start)
            } else {
                format!("offsets {} to {}", gap.start, gap.end - 1)
            };
            let state = if gap.start < checkpoint {
                "though what was there has its outcome: somebody deleted it, or the file was damaged; a replay would \
                 lack its rows"
            } else {
                "and nothing was applied there yet: it is lost, and the projector will note it as missing"
            };
            let text = format!("partition {}: the log has no record at {which}, {state}", read.partition);
            self.find("log_lacks_records", Some(read.partition), None, records, text);
        }
        if gaps.len() > SPELLED_OUT {
            let records: u64 = gaps[SPELLED_OUT..].iter().map(|gap| gap.end - gap.start).sum();
            let text = format!(
                "partition {}: and {} further gaps in the log's offsets",
                read.partition,
                gaps.len() - SPELLED_OUT
            );
            self.find("log_lacks_records", Some(read.partition), None, records, text);
        }
        gaps.iter().map(|gap| gap.end.min(checkpoint).saturating_sub(gap.start)).sum()
    }

    /// The records that a projector passed, beside those of its counts.
    fn partition(&mut self, read: &PartitionRead, counts: &PartitionCounts, in_gaps: u64) {
        let partition = read.partition;
        let counted: BTreeMap<HourKey, Outcomes> = counts.hours.iter().copied().collect();
        let of_hours: u64 = counted.values().map(Outcomes::total).sum();
        let of_checkpoint = counts.outcomes.total();
        if of_hours > of_checkpoint {
            let text = format!(
                "partition {partition}: the hours count {} records more than the checkpoint ({of_checkpoint}): somebody \
                 changed hour_count or checkpoint",
                of_hours - of_checkpoint
            );
            self.find("counts_differ", Some(partition), None, of_hours - of_checkpoint, text);
        }
        let uncounted = of_checkpoint.saturating_sub(of_hours);
        let trimmed_to_ms = read.trimmed_to_ms();
        let keys: BTreeSet<HourKey> = counted.keys().chain(read.passed.keys()).copied().collect();
        // Records that were read twice are counted twice; offsets without a record are findings of their own.
        let (mut more, mut known) = (0, counts.rewound + in_gaps);
        let (mut fewer, mut removed) = (Vec::new(), 0);
        for key in keys.into_iter().filter(|key| self.counts(key)) {
            let in_log = read.passed.get(&key).copied().unwrap_or(0);
            let outcomes = counted.get(&key).map_or(0, Outcomes::total);
            more += in_log.saturating_sub(outcomes);
            let lacking = outcomes.saturating_sub(in_log);
            if lacking == 0 {
                continue;
            }
            if trimmed_to_ms.is_some_and(|trimmed_to_ms| key.hour_ms <= trimmed_to_ms) {
                removed += lacking;
            } else {
                let explained = lacking.min(known);
                known -= explained;
                if lacking > explained {
                    fewer.push((key, lacking - explained));
                }
            }
        }
        if removed > 0 {
            self.notes.push(format!(
                "partition {partition}: {removed} records that have their outcomes are no longer in the log: retention removed \
                 those before offset {}",
                read.low
            ));
        }
        for (key, records) in fewer.iter().take(SPELLED_OUT) {
            let text = format!(
                "partition {partition}, hour {}: {records} records have an outcome and are not in the log: they were deleted \
                 from the log, or hour_count was changed",
                iso_string(key.hour_ms)
            );
            self.find("log_lacks_records", Some(partition), Some(key.hour_ms), *records, text);
        }
        if fewer.len() > SPELLED_OUT {
            let records = fewer[SPELLED_OUT..].iter().map(|(_, records)| records).sum();
            let text = format!("partition {partition}: and {} further hours", fewer.len() - SPELLED_OUT);
            self.find("log_lacks_records", Some(partition), None, records, text);
        }
        self.uncounted(read, more, uncounted);
    }

    /// Records that a projector passed and did not count by the hour.
    fn uncounted(&mut self, read: &PartitionRead, more: u64, uncounted: u64) {
        let partition = read.partition;
        if more > uncounted {
            let text = format!(
                "partition {partition}: {} records that the projector passed have no outcome: hour_count was changed, or its \
                 rows were deleted",
                more - uncounted
            );
            self.find("counts_differ", Some(partition), None, more - uncounted, text);
        } else if more < uncounted && self.is_whole() && read.low == 0 {
            let text = format!(
                "partition {partition}: the checkpoint counts {} records more than the log has: somebody changed the checkpoint's \
                 counts, or deleted records",
                uncounted - more
            );
            self.find("counts_differ", Some(partition), None, uncounted - more, text);
        }
        if uncounted > 0 && self.is_whole() {
            self.notes.push(format!(
                "partition {partition}: {uncounted} records were applied by an older program, which counted no hours: a \
                 rebuild counts them"
            ));
        }
    }

    /// The collectors' tallies beside log and outcomes.
    fn collectors(&mut self, hours: &BTreeMap<i64, Line>) {
        let mut allowed: u64 = self.input.counts.iter().map(|counts| counts.missing).sum();
        let (mut more, mut more_hours) = (0, 0);
        for (hour_ms, line) in hours {
            // Retention may have removed records whose outcomes are known.
            let known = line.in_log.max(line.outcomes() + line.not_read) + line.spooled;
            let commands = |read: &PartitionRead| -> u64 {
                let of_hour = |key: &HourKey| key.hour_ms == *hour_ms && self.counts(key);
                read.commands.iter().filter(|(key, _)| of_hour(key)).map(|(_, count)| count).sum()
            };
            let commands: u64 = self.input.read.iter().map(commands).sum();
            let events = known.saturating_sub(commands);
            if line.accepted > known {
                let lacking = line.accepted - known;
                let missing = lacking.min(allowed);
                allowed -= missing;
                if lacking > missing {
                    let text = format!(
                        "hour {}: collectors accepted {} submissions more than there are records: the log lost records that \
                         it had acknowledged, or another log's tallies have this log's id",
                        iso_string(*hour_ms),
                        lacking - missing
                    );
                    self.find("accepted_not_in_log", None, Some(*hour_ms), lacking - missing, text);
                }
            } else if events > line.accepted + line.spooled {
                more += events - line.accepted - line.spooled;
                more_hours += 1;
            }
        }
        if more > 0 {
            let newest = hours.keys().next_back().copied().unwrap_or(0);
            let is_now = self.input.now_ms - newest < 3_600_000 + TALLY_S * 1_000;
            let running = if is_now { "collectors write their tallies every few seconds; " } else { "" };
            self.notes.push(format!(
                "the log has {more} records more than the collectors' tallies, in {more_hours} hours, and each has its outcome. \
                 Likely causes: {running}a collector was killed within seconds after it had accepted them; an append was durable \
                 though its acknowledgement did not come, so the client had a 503, or a spool forwarded it again; a program older than the tallies, an import \
                 or another producer appended them"
            ));
        }
    }

    fn spooled(&mut self) {
        let spools = self.spools().filter(|spool| spool.records + spool.set_aside > 0);
        let notes: Vec<String> = spools
            .map(|spool| {
                let (place, when) = match spool.state.as_str() {
                    HISTORICAL => ("lane", "are historical, and are forwarded as live events leave room"),
                    _ => ("spool", "are forwarded when the log takes them"),
                };
                format!(
                    "{} accepted events lie in the {place} of {} ({}) and not in the log yet, as it noted at {}: they {when}",
                    spool.records + spool.set_aside,
                    spool.collector,
                    spool.directory,
                    iso_string(spool.noted_at_ms)
                )
            })
            .collect();
        self.notes.extend(notes);
    }

    fn find(
        &mut self,
        kind: &'static str,
        partition: Option<u32>,
        hour_ms: Option<i64>,
        records: u64,
        text: String,
    ) {
        self.findings.push(Finding { kind, partition, hour_ms, records, text });
    }
}

#[cfg(test)]
mod tests {
    use dashi_domain::glance::HOUR_MS;
    use dashi_domain::position::{Checkpoint, Offset, Partition};

    use super::*;

    fn key(hour: i64, source: u128) -> HourKey {
        HourKey { hour_ms: hour * HOUR_MS, source_id: Uuid::from_u128(source) }
    }

    /// Ten records in two hours, of which the last two are not applied; nine were accepted.
    struct Case {
        spools: Vec<SpoolNote>,
        counts: PartitionCounts,
        tallies: Vec<Tally>,
        read: PartitionRead,
    }

    fn case() -> Case {
        let outcomes = |applied, duplicate, dead| Outcomes { applied, duplicate, dead };
        let tally = |hour, outcome: &str, count| Tally {
            key: key(hour, u128::from(outcome == "accepted")),
            subject: "events".to_owned(),
            outcome: outcome.to_owned(),
            count,
        };
        Case {
            spools: Vec::new(),
            counts: PartitionCounts {
                partition: Partition::new(3),
                checkpoint: Checkpoint::at(Offset::new(8)),
                tail: None,
                outcomes: outcomes(6, 1, 1),
                rewound: 0,
                missing: 0,
                hours: vec![(key(10, 1), outcomes(4, 1, 0)), (key(11, 1), outcomes(2, 0, 1))],
            },
            tallies: vec![tally(10, "accepted", 5), tally(11, "accepted", 4), tally(11, "bot", 7)],
            read: PartitionRead {
                partition: 3,
                low: 0,
                oldest_ms: Some(10 * HOUR_MS + 5),
                passed: BTreeMap::from([(key(10, 1), 5), (key(11, 1), 3)]),
                unread: BTreeMap::from([(key(11, 1), 2)]),
                commands: BTreeMap::new(),
                gaps: Vec::new(),
            },
        }
    }

    impl Case {
        fn audit(&self) -> Audit {
            self.audit_of(None, None)
        }

        fn audit_of(&self, website: Option<Uuid>, since_ms: Option<i64>) -> Audit {
            account(&Input {
                counts: std::slice::from_ref(&self.counts),
                tallies: &self.tallies,
                missing: &[],
                spools: &self.spools,
                log: &LogId::new("audited"),
                read: std::slice::from_ref(&self.read),
                website,
                since_ms,
                now_ms: 100 * HOUR_MS,
            })
        }

        fn kinds(&self) -> Vec<(&'static str, u64)> {
            self.audit().findings.iter().map(|finding| (finding.kind, finding.records)).collect()
        }
    }

    #[test]
    fn what_adds_up_has_no_finding_and_each_hour_its_counts() {
        let audit = case().audit();
        assert!(audit.adds_up, "{audit:?}");
        assert_eq!(audit.hours.len(), 2);
        let Line { accepted, spooled, in_log, applied, duplicate, dead, not_read, refused } = audit.total;
        assert_eq!((accepted, spooled, in_log), (9, 0, 10));
        assert_eq!((applied, duplicate, dead, not_read), (6, 1, 1, 2));
        assert_eq!(refused, BTreeMap::from([("bot".to_owned(), 7)]));
        // The one record more than was tallied is explained.
        assert_eq!(audit.notes.len(), 1, "{:?}", audit.notes);
        assert!(
            audit.notes[0].contains("1 records more") && audit.notes[0].contains("killed"),
            "{:?}",
            audit.notes
        );
        let of_website = case().audit_of(Some(Uuid::from_u128(1)), Some(11 * HOUR_MS));
        assert!(of_website.adds_up, "{of_website:?}");
        assert_eq!((of_website.total.accepted, of_website.total.in_log, of_website.hours.len()), (4, 5, 1));
        assert_eq!(of_website.total.refused.len(), 0);
        assert_eq!(case().audit_of(Some(Uuid::from_u128(2)), None).hours, []);
    }

    #[test]
    fn a_record_that_was_deleted_from_the_log_is_found() {
        let mut case = case();
        *case.read.passed.get_mut(&key(10, 1)).unwrap() -= 1;
        case.read.gaps.push(2..3);
        let found = case.kinds();
        assert!(found.contains(&("log_lacks_records", 1)), "{found:?}");
        assert!(case.audit().findings[0].text.contains("offset 2"), "{:?}", case.audit().findings);
        assert!(!case.audit_of(Some(Uuid::from_u128(1)), None).adds_up);
    }

    #[test]
    fn forged_counts_are_found() {
        for (hour, checkpoint, log) in [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)] {
            let mut case = case();
            case.counts.hours[0].1.applied += hour;
            case.counts.outcomes.applied += checkpoint;
            *case.read.passed.get_mut(&key(11, 1)).unwrap() += log;
            assert!(!case.audit().adds_up, "{hour} {checkpoint} {log}");
        }
    }

    #[test]
    fn an_accepted_submission_that_is_not_in_the_log_is_found() {
        let mut case = case();
        case.tallies[0].count += 1;
        assert_eq!(case.kinds(), [("accepted_not_in_log", 1)]);
        // Unless its loss is known.
        case.counts.missing = 1;
        assert_eq!(case.kinds(), []);
    }

    #[test]
    fn an_accepted_submission_that_lies_in_a_spool_of_this_log_is_there() {
        let mut case = case();
        case.tallies[1].count += 3;
        assert_eq!(case.kinds(), [("accepted_not_in_log", 2)]);
        let spool = |log: &str, records| SpoolNote {
            spool_id: log.to_owned(),
            log: LogId::new(log),
            collector: "host/1".to_owned(),
            directory: "data/spool".to_owned(),
            state: "spooling".to_owned(),
            records,
            bytes: 100,
            set_aside: 0,
            oldest_ms: None,
            full: None,
            trouble: None,
            hours: vec![(key(11, 1), records)],
            noted_at_ms: 0,
        };
        case.spools = vec![spool("another", 9), spool("audited", 1)];
        assert_eq!(case.kinds(), [("accepted_not_in_log", 1)]);
        case.spools[1] = spool("audited", 2);
        let audit = case.audit();
        assert!(audit.adds_up, "{audit:?}");
        assert_eq!((audit.total.accepted, audit.total.spooled, audit.total.in_log), (12, 2, 10));
        assert!(audit.notes.iter().any(|note| note.contains("2 accepted events lie in the spool of host/1")));
    }

    #[test]
    fn records_that_retention_removed_and_records_of_an_older_program_are_explained() {
        let mut case = case();
        *case.read.passed.get_mut(&key(10, 1)).unwrap() -= 3;
        case.read.low = 3;
        let audit = case.audit();
        assert!(
            audit.adds_up
                && audit.notes.iter().any(|note| note.contains("3 records") && note.contains("retention")),
            "{audit:?}"
        );
        // A later hour has none that retention could have removed.
        *case.read.passed.get_mut(&key(11, 1)).unwrap() -= 1;
        assert!(!case.audit().adds_up);

        let mut case = self::case();
        case.counts.hours.remove(0);
        let audit = case.audit();
        assert!(audit.adds_up && audit.notes.iter().any(|note| note.contains("older program")), "{audit:?}");
        case.counts.rewound = 2;
        case.counts.hours[0].1.applied += 2;
        case.counts.outcomes.applied += 2;
        assert!(case.audit().adds_up, "{:?}", case.audit());
    }
}
