use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// One partition with its writer, in steps of [`STEP_MS`].
#[derive(Debug, Clone)]
struct Writer {
    per_s: f64,
    commit_ms: i64,
    interval_ms: i64,
    batch_max: usize,
    /// The records in the log: when each was appended, and whether it is live.
    log: VecDeque<(i64, bool)>,
    high: u64,
    checkpoint: u64,
    /// The batch that is being applied: when it will be, and its records.
    batch: Option<(i64, usize)>,
    last_ms: i64,
}

const STEP_MS: i64 = 10;
const OBSERVED_EVERY_MS: i64 = 100;

impl Writer {
    const fn new(per_s: f64, commit_ms: i64, interval_ms: i64) -> Self {
        Self {
            per_s,
            commit_ms,
            interval_ms,
            batch_max: 5_000,
            log: VecDeque::new(),
            high: 0,
            checkpoint: 0,
            batch: None,
            last_ms: -1_000_000,
        }
    }

    fn append(&mut self, now_ms: i64, is_live: bool) {
        self.log.push_back((now_ms, is_live));
        self.high += 1;
    }

    /// Goes on to `now_ms`. Returns how long each live record that it applied had waited.
    fn step(&mut self, now_ms: i64) -> Vec<i64> {
        let mut waited = Vec::new();
        if let Some((_, records)) = self.batch.take_if(|(done_ms, _)| *done_ms <= now_ms) {
            self.checkpoint += records as u64;
            let applied = self.log.drain(..records).filter(|(_, is_live)| *is_live);
            waited.extend(applied.map(|(appended_ms, _)| now_ms - appended_ms));
        }
        let is_due = now_ms >= self.last_ms + self.interval_ms || self.log.len() >= self.batch_max;
        if self.batch.is_none() && is_due && !self.log.is_empty() {
            let records = self.log.len().min(self.batch_max);
            let took_ms = self.commit_ms + (records as f64 * 1_000.0 / self.per_s) as i64;
            self.batch = Some((now_ms + took_ms, records));
            self.last_ms = now_ms;
        }
        waited
    }

    fn observed(&self) -> Option<(Checkpoint, Offset)> {
        Some((Checkpoint::at(Offset::new(self.checkpoint)), Offset::new(self.high)))
    }
}

/// Two processes bring history while live events come. Returns the longest wait of a live event, and how many records of
/// history came into the log.
fn run(mut writer: Writer, live_per_s: f64, lanes: usize, delay_ms_max: u64, duration_ms: i64) -> (i64, u64) {
    let mut paces: Vec<Pace> = (0..lanes).map(|_| Pace::new(delay_ms_max)).collect();
    let (mut longest, mut history, mut live) = (0, 0, 0.0);
    let mut now_ms = 0;
    while now_ms < duration_ms {
        live += live_per_s * STEP_MS as f64 / 1_000.0;
        while live >= 1.0 {
            live -= 1.0;
            writer.append(now_ms, true);
        }
        for (place, pace) in paces.iter_mut().enumerate() {
            if (now_ms / STEP_MS) % (OBSERVED_EVERY_MS / STEP_MS) == place as i64 {
                pace.begin_observation();
                pace.observe(now_ms, &[writer.observed()]);
            }
            let all = std::iter::repeat_n(Partition::new(0), 2_000);
            if let Ok(admitted) = pace.admit(now_ms, all) {
                for _ in 0..admitted {
                    writer.append(now_ms, false);
                    pace.settled(Partition::new(0));
                    history += 1;
                }
            }
        }
        longest = writer.step(now_ms).into_iter().fold(longest, i64::max);
        now_ms += STEP_MS;
    }
    (longest, history)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the writer's speed, history makes live events wait by little more than the limit, and gets through.
    #[test]
    #[test]
    fn live_events_wait_by_the_limit_at_most_and_history_gets_through(
        per_s in prop_oneof![50.0_f64..500.0, 500.0_f64..6_000.0],
        commit_ms in 5_i64..80,
        interval_ms in prop_oneof![Just(0_i64), Just(100), Just(500)],
        used in 0.0_f64..0.5,
        lanes in 1_usize..3,
    ) {
        let writer = Writer::new(per_s, commit_ms, interval_ms);
        let (without, _) = run(writer.clone(), per_s * used, 0, 1_000, 20_000);
        let (with, history) = run(writer, per_s * used, lanes, 1_000, 20_000);
        // A record waits for the batch that is being applied, and then for its own.
        let most = without + 2 * 1_000 + 4 * OBSERVED_EVERY_MS;
        prop_assert!(with <= most, "{with} ms with history, {without} ms without");
        let spare = per_s * (1.0 - used) * 20.0;
        prop_assert!(history as f64 >= spare * 0.2 - 100.0, "{history} of {spare}");
    }

    /// A writer that stops, or is far slower than it was, gets no more than its window.
    #[test]
    #[test]
    fn the_backlog_of_a_writer_that_stops_stays_small(
        per_s in prop_oneof![50.0_f64..500.0, 500.0_f64..6_000.0],
        commit_ms in 5_i64..80,
        lanes in 1_usize..4,
    ) {
        let mut writer = Writer::new(per_s, commit_ms, 100);
        let mut paces: Vec<Pace> = (0..lanes).map(|_| Pace::new(1_000)).collect();
        let mut at_stop = 0;
        for step in 0..6_000_i64 {
            let now_ms = step * STEP_MS;
            for (place, pace) in paces.iter_mut().enumerate() {
                if step % 10 == place as i64 {
                    pace.begin_observation();
                    pace.observe(now_ms, &[writer.observed()]);
                }
                let admitted = pace.admit(now_ms, std::iter::repeat_n(Partition::new(0), 2_000));
                for _ in 0..admitted.unwrap_or(0) {
                    writer.append(now_ms, false);
                    pace.settled(Partition::new(0));
                }
                if now_ms >= 35_000 {
                    let wait = pace.admit(now_ms, [Partition::new(0)]).expect_err("it waits");
                    prop_assert!(matches!(wait, Wait::Still { still_s: 13.., .. }), "{wait}");
                }
            }
            if now_ms < 20_000 {
                writer.step(now_ms);
                at_stop = writer.high - writer.checkpoint;
            }
        }
        let left = writer.high - writer.checkpoint;
        let window = (per_s * 1.0 * GAIN * 1.5) as u64 + WINDOW_MIN;
        prop_assert!(left <= at_stop.max(window) + window.max(WINDOW_MIN * 4) / 2 * lanes as u64, "{left}, {at_stop} at its stop");
    }
}

#[test]
fn nothing_is_admitted_unknown_and_each_partition_has_a_window_of_its_own() {
    let at = |offset: u64| Checkpoint::at(Offset::new(offset));
    let [p0, p1, p2] = [0, 1, 2].map(Partition::new);
    let mut pace = Pace::new(1_000);
    assert_eq!(pace.admit(0, [p0]), Err(Wait::Unknown));
    pace.observe(0, &[Some((at(5), Offset::new(5))), Some((at(0), Offset::new(50))), None]);
    assert_eq!(pace.admit(0, std::iter::repeat_n(p0, 99)), Ok(WINDOW_MIN as usize));
    assert_eq!(pace.admit(0, [p1]), Err(Wait::Behind { partition: 1, records: 50, age_ms: 0 }));
    assert_eq!(pace.admit(0, [p2]), Err(Wait::Unknown));
    assert_eq!(pace.admit(0, [Partition::new(3)]), Err(Wait::Unknown), "the log has grown");
    // The first one without room ends the part that may go.
    let mut pace = Pace::new(1_000);
    pace.observe(0, &[Some((at(5), Offset::new(5))), Some((at(0), Offset::new(50)))]);
    assert_eq!(pace.admit(0, [p0, p0, p1, p0]), Ok(2));
    assert_eq!(pace.admit(10_000, [p0]), Err(Wait::Unknown), "too long ago");
}

#[test]
fn records_count_until_an_observation_that_began_after_their_outcome() {
    let p0 = Partition::new(0);
    let observed = |high: u64| [Some((Checkpoint::START, Offset::new(high)))];
    let mut pace = Pace::new(1_000);
    pace.observe(0, &observed(0));
    assert_eq!(pace.admit(0, std::iter::repeat_n(p0, 6)), Ok(6));
    pace.begin_observation();
    pace.settled(p0);
    // It may have looked before the record was there.
    pace.observe(100, &observed(0));
    assert_eq!(pace.admit(100, std::iter::repeat_n(p0, 99)), Ok(4));
    for _ in 0..9 {
        pace.settled(p0);
    }
    pace.begin_observation();
    pace.observe(200, &observed(10));
    assert!(matches!(pace.admit(200, [p0]), Err(Wait::Behind { records: 10, .. })));
}

#[test]
fn a_window_is_what_the_writer_applies_within_the_limit() {
    let p0 = Partition::new(0);
    let mut pace = Pace::new(2_000);
    let observed =
        |checkpoint: u64, high: u64| [Some((Checkpoint::at(Offset::new(checkpoint)), Offset::new(high)))];
    pace.observe(0, &observed(0, 0));
    pace.observe(1_000, &observed(0, 1_000));
    pace.observe(2_000, &observed(1_000, 1_000));
    // A thousand in two seconds: so many, and a quarter more; a quarter of it now.
    assert_eq!(pace.admit(2_000, std::iter::repeat_n(p0, 9_999)), Ok(1_250 / 4));
    // Half a minute later nobody knows.
    pace.observe(32_000, &observed(1_000, 1_000));
    let mut later = pace.clone();
    (0..1_250 / 4).for_each(|_| later.settled(p0));
    later.begin_observation();
    later.observe(32_100, &observed(1_312, 1_312));
    assert_eq!(later.admit(32_100, std::iter::repeat_n(p0, 9_999)), Ok(WINDOW_MIN as usize));
}
