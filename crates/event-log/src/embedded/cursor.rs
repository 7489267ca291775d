//! Walking through the records of one partition, in the files. It waits for the disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use dashi_domain::position::{Offset, Partition};
use uuid::Uuid;

use super::frame::{Kind, RECORD_BYTES, Run};
use super::segments::Segments;
use super::window::Window;

/// How far behind the end of the log a place is that is no longer likely to be in the memory of the file system.
const WARM_BYTES: u64 = 32 << 20;

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: Offset,
    pub(super) appended_at_ms: i64,
    pub(super) key: Uuid,
    /// Of an overwritten record: as many zeros.
    pub(super) value: Vec<u8>,
    pub(super) is_overwritten: bool,
    /// Whether it is as it was written. One that is not is damaged.
    pub(super) is_whole: bool,
    /// Where it lies, in the segment of this base.
    pub(super) at: (u64, u64),
}

/// A place in the log, on the way through a partition. Clones go their own ways.
#[derive(Clone)]
pub(super) struct Cursor {
    segments: Arc<Segments>,
    partition: Partition,
    /// The next offset that it looks for. Everything before it is passed.
    next: Offset,
    place: Option<Place>,
    window: Window,
}

#[derive(Clone)]
struct Place {
    base: u64,
    file: Arc<File>,
    /// What the frame that it is in has left of the partition, and where each run's next record lies.
    runs: VecDeque<(Run, u64)>,
    /// Where the next frame begins.
    frame: u64,
}

impl Cursor {
    pub(super) fn new(segments: Arc<Segments>, partition: Partition, next: Offset) -> Self {
        Self { segments, partition, next, place: None, window: Window::default() }
    }

    pub(super) const fn next(&self) -> Offset {
        self.next
    }

    /// Whether what it reads next was written so lately that no disk will be waited for.
    pub(super) fn is_warm(&self) -> bool {
        let end = self.segments.state().end;
        match &self.place {
            Some(place) => place.frame + WARM_BYTES > end,
            None => end < WARM_BYTES,
        }
    }

    /// The next records: at most so many, none beyond these bytes of values but one in any case. Fewer at the end of the log;
    /// [`Cursor::next`] is behind the last one then, or behind offsets that have no record.
    ///
    /// # Errors
    /// The files cannot be read. [`io::ErrorKind::NotFound`]: retention may have removed a segment on the way.
    pub(super) fn read(&mut self, records_max: usize, bytes_max: usize) -> io::Result<Vec<Found>> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        while found.len() < records_max.max(1) && bytes < bytes_max.max(1) {
            let Some((record, _)) = self.record(true)? else { break };
            bytes += record.value.len();
            found.push(record);
        }
        Ok(found)
    }

    /// The number of records from here to the end, and the bytes of their values.
    pub(super) fn count(&mut self) -> io::Result<(u64, u64)> {
        let (mut records, mut bytes) = (0, 0);
        while let Some((_, of_value)) = self.record(false)? {
            records += 1;
            bytes += of_value;
        }
        Ok((records, bytes))
    }

    /// When the next record was appended, milliseconds since 1970; `None` at the end.
    pub(super) fn appended_at_ms(&self) -> io::Result<Option<i64>> {
        Ok(self.clone().record(false)?.map(|(record, _)| record.appended_at_ms))
    }

    /// The first offset from here on whose record was appended at `at_ms` or later; the next one of the partition if there is none.
    pub(super) fn offset_at(mut self, at_ms: i64) -> io::Result<Offset> {
        let before = {
            let state = self.segments.state();
            let later = state.segments.partition_point(|segment| segment.begun_at_ms < at_ms);
            later
                .checked_sub(1)
                .and_then(|at| state.segments.get(at))
                .map(|segment| segment.first_of(self.partition))
        };
        // Times grow with offsets, so the record lies in the last segment that was begun before, or behind it.
        self.next = self.next.max(Offset::new(before.unwrap_or(0)));
        while self.has_run()? {
            let Some((run, _)) = self.place.as_mut().and_then(|place| place.runs.pop_front()) else { break };
            if run.at_ms >= at_ms {
                return Ok(self.next.max(run.first));
            }
            self.next = self.next.max(run.end());
        }
        Ok(self.next)
    }

    /// The next record, and the bytes of its value; without the value itself unless that is wanted.
    fn record(&mut self, with_value: bool) -> io::Result<Option<(Found, u64)>> {
        while self.has_run()? {
            let Some(place) = &mut self.place else { break };
            let (base, end, file) = (place.base, place.frame, &place.file);
            let Some((run, at)) = place.runs.front_mut() else { continue };
            while run.first < self.next && run.count > 0 {
                match self.window.value_bytes(file, base, *at, end)? {
                    Some(bytes) => pass(run, at, bytes),
                    None => break,
                }
            }
            if run.count == 0 {
                place.runs.pop_front();
                continue;
            }
            let mut found = Found {
                offset: run.first,
                appended_at_ms: run.at_ms,
                key: Uuid::nil(),
                value: Vec::new(),
                is_overwritten: false,
                is_whole: true,
                at: (base, *at),
            };
            let bytes = if with_value {
                self.window.record(file, base, *at, end)?.map(|record| {
                    found.key = record.key;
                    found.value = record.value.to_vec();
                    (found.is_overwritten, found.is_whole) = (record.is_overwritten, record.is_whole);
                    record.value.len()
                })
            } else {
                self.window.value_bytes(file, base, *at, end)?
            };
            let Some(bytes) = bytes else {
                // The head is whole and the rest is not there, or a length is not the one that was written.
                self.segments.report_damage(base, *at, end);
                self.next = self.next.max(run.end());
                place.runs.pop_front();
                continue;
            };
            pass(run, at, bytes);
            self.next = run.first;
            return Ok(Some((found, bytes as u64)));
        }
        Ok(None)
    }

    /// Goes on to the next run with a record that it looks for; `false` at the end of the log.
    fn has_run(&mut self) -> io::Result<bool> {
        loop {
            if self.place.as_ref().is_some_and(|place| !place.runs.is_empty()) {
                return Ok(true);
            }
            if self.place.is_none() {
                let first = {
                    let state = self.segments.state();
                    // The last one that begins at or before the offset; the first one there is, if retention removed that.
                    let behind = state
                        .segments
                        .partition_point(|of| of.first_of(self.partition) <= self.next.number());
                    state.segments.get(behind.saturating_sub(1)).map(|segment| (segment.base, segment.start))
                };
                match first {
                    Some((base, start)) => self.go_to(base, start)?,
                    None => return Ok(false),
                }
            }
            let end = self.segments.state().end;
            let Some(place) = &mut self.place else { return Ok(false) };
            if place.frame >= end {
                return Ok(false);
            }
            let head = self.window.head(&place.file, place.base, place.frame, end)?;
            match head {
                Some(head) if head.kind == Kind::End => match following(&self.segments, place.base) {
                    Some((base, start)) => self.go_to(base, start)?,
                    // The next segment is about to be begun.
                    None => return Ok(false),
                },
                Some(head) => {
                    let next = self.next;
                    place.runs.extend(head.runs_of(self.partition).filter(|(run, _)| run.end() > next));
                    place.frame = head.end();
                }
                None => {
                    let following = following(&self.segments, place.base);
                    let until = following.map_or(end, |(base, _)| base);
                    let next = self.window.next_head(&place.file, place.base, place.frame, until)?;
                    self.segments.report_damage(place.base, place.frame, next.unwrap_or(until));
                    match (next, following) {
                        (Some(next), _) => place.frame = next,
                        (None, Some((base, start))) => self.go_to(base, start)?,
                        (None, None) => place.frame = end,
                    }
                }
            }
        }
    }

    fn go_to(&mut self, base: u64, frame: u64) -> io::Result<()> {
        let file = Arc::new(File::open(self.segments.path(base))?);
        self.window.clear();
        self.place = Some(Place { base, file, runs: VecDeque::new(), frame });
        Ok(())
    }
}

/// Takes the first record from what is left of a run.
fn pass(run: &mut Run, at: &mut u64, value_bytes: usize) {
    run.first = run.first.next();
    run.count -= 1;
    *at += (RECORD_BYTES + value_bytes) as u64;
}

/// Base and first frame of the segment behind this one.
fn following(segments: &Segments, base: u64) -> Option<(u64, u64)> {
    let state = segments.state();
    let at = state.segments.partition_point(|segment| segment.base <= base);
    state.segments.get(at).map(|segment| (segment.base, segment.start))
}
