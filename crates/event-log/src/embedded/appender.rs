//! Writing frames: the lock, one write and one fsync for each, and the next segment when one is full.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use dashi_domain::layout::Layout;

use super::frame::{FrameBuilder, HEAD_BYTES, Kind};
use super::segments::{Segments, State, lock_file, read_at};

/// Bytes of a segment, after which the next one is begun.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Age of a segment with records, after which the next one is begun: retention removes whole files.
const SEGMENT_MS: i64 = 24 * 3_600 * 1_000;

/// Bytes that are made durable as zeros ahead of the records. An fsync of records that lie within the file's length writes them
/// and nothing else; one that lengthens the file writes its length, too, which takes twice the time.
const AHEAD_BYTES: usize = 256 << 10;

/// Writes frames to the segments of a log, for one task of one process.
pub(super) struct Appender {
    segments: Arc<Segments>,
    /// A handle of its own: two of one process keep each other out, as those of two processes do.
    lock: File,
    /// The segment that grows, by its base.
    open: Option<(u64, File)>,
    /// The position up to which the file has bytes.
    allocated: u64,
    buffer: Vec<u8>,
}

/// The lock. While it is held no other process appends, and this one knows all that there is.
pub(super) struct Held<'a> {
    appender: &'a mut Appender,
    now_ms: i64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // It is given back with the handle at the latest.
        let _ = self.appender.lock.unlock();
    }
}

impl Appender {
    pub(super) fn new(segments: Arc<Segments>) -> io::Result<Self> {
        let lock = lock_file(segments.directory())?;
        Ok(Self { segments, lock, open: None, allocated: 0, buffer: Vec::new() })
    }

    /// Waits for the lock, and learns what others have appended.
    pub(super) fn hold(&mut self, now_ms: i64) -> io::Result<Held<'_>> {
        self.lock.lock()?;
        let held = Held { appender: self, now_ms };
        let segments = &held.appender.segments;
        segments.refresh()?;
        if held.appender.is_left_unfinished()? {
            let segments = &held.appender.segments;
            let mut state = segments.state();
            segments.recover(&mut state, now_ms, false)?;
            segments.publish(&state)?;
            segments.notify(&state);
            drop(state);
            held.appender.open = None;
        }
        Ok(held)
    }

    /// Whether a process that was killed left something behind the tail.
    fn is_left_unfinished(&mut self) -> io::Result<bool> {
        let (base, end) = self.place();
        let file = self.file(base)?;
        let mut bytes = [0; HEAD_BYTES];
        let read = read_at(file, &mut bytes, end - base)?;
        Ok(bytes[..read].iter().any(|byte| *byte != 0))
    }

    /// Where the segment that grows begins, and where the log ends.
    fn place(&self) -> (u64, u64) {
        let state = self.segments.state();
        (state.segments.last().map_or(0, |segment| segment.base), state.end)
    }

    fn file(&mut self, base: u64) -> io::Result<&File> {
        if self.open.as_ref().is_none_or(|(of, _)| *of != base) {
            let file = File::options().read(true).write(true).open(self.segments.path(base))?;
            self.allocated = base + file.metadata()?.len();
            self.open = Some((base, file));
        }
        match &self.open {
            Some((_, file)) => Ok(file),
            None => Err(io::Error::other("the segment is not open")),
        }
    }

    /// Writes a frame where the log ends. Nothing of it is in the log unless this succeeds, or the disk failed so badly that
    /// the file could not be cut either.
    fn write(&mut self, frame: &mut FrameBuilder, kind: Kind, layout: Layout) -> io::Result<()> {
        let (base, end) = self.place();
        self.buffer.clear();
        let head = frame.finish(end, kind, layout, &mut self.buffer);
        let bytes = std::mem::take(&mut self.buffer);
        let written = self.write_bytes(base, end, &bytes, kind == Kind::End);
        if bytes.capacity() <= 2 * FRAME_BYTES {
            self.buffer = bytes;
        }
        if let Err(error) = written {
            let cut =
                self.file(base).and_then(|file| file.set_len(end - base).and_then(|()| file.sync_data()));
            // The next append looks for what is left, and how long the file is.
            self.open = None;
            if let Err(cause) = cut {
                tracing::debug!(error = %cause, "the rest of an append that failed cannot be cut away now");
            }
            return Err(error);
        }
        let mut state = self.segments.state();
        state.apply(&head);
        self.segments.publish(&state)?;
        self.segments.notify(&state);
        Ok(())
    }

    fn write_bytes(&mut self, base: u64, end: u64, bytes: &[u8], is_last: bool) -> io::Result<()> {
        self.file(base)?;
        let after = end + bytes.len() as u64;
        let ahead = if after > self.allocated && !is_last { AHEAD_BYTES } else { 0 };
        let file = self.file(base)?;
        file.write_all_at(bytes, end - base)?;
        if ahead > 0 {
            // Without room for zeros there may be room for the records.
            let zeros = [0; 16 << 10];
            let all = (0..ahead / zeros.len()).map(|n| after + (n * zeros.len()) as u64);
            let made = all
                .map_while(|at| file.write_all_at(&zeros, at - base).ok().map(|()| at + zeros.len() as u64));
            self.allocated = made.last().unwrap_or(after);
        }
        let file = self.file(base)?;
        if is_last {
            file.set_len(after - base)?;
        }
        file.sync_data()
    }

    /// Ends the segment, unless it is ended, and begins the next one.
    fn roll(&mut self, now_ms: i64) -> io::Result<()> {
        let (is_ended, layout) = {
            let state = self.segments.state();
            (state.is_ended, state.layout)
        };
        if !is_ended {
            self.write(&mut FrameBuilder::default(), Kind::End, layout)?;
        }
        let mut state = self.segments.state();
        let base = state.end;
        self.segments.begin(&mut state, base, now_ms)?;
        self.segments.publish(&state)?;
        drop(state);
        self.open = None;
        Ok(())
    }
}

/// Bytes of the records of a frame, after which the next one is begun. A larger record has a frame for itself.
pub(super) const FRAME_BYTES: usize = 4 << 20;

impl Held<'_> {
    /// The log as it is. Not to be kept while a frame is written.
    pub(super) fn with<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.appender.segments.state())
    }

    /// Appends a frame of records, which is durable on return.
    pub(super) fn write(&mut self, frame: &mut FrameBuilder, layout: Layout) -> io::Result<()> {
        if frame.is_empty() {
            return Ok(());
        }
        let is_full = self.with(|state| {
            state.segments.last().is_some_and(|segment| {
                let bytes = state.end - segment.start;
                bytes > 0 && (bytes >= SEGMENT_BYTES || self.now_ms - segment.begun_at_ms >= SEGMENT_MS)
            }) || state.is_ended
        });
        if is_full {
            self.appender.roll(self.now_ms)?;
        }
        self.appender.write(frame, Kind::Records, layout)
    }

    /// Lets no partition go on below these offsets: what retention removed may be missing from restored files, and no offset is
    /// used again.
    pub(super) fn raise(&mut self, low: &[u64]) -> io::Result<()> {
        let is_below = self.with(|state| state.next.iter().zip(low).any(|(next, low)| next < low));
        if !is_below {
            return Ok(());
        }
        let mut state = self.appender.segments.state();
        for (next, low) in state.next.iter_mut().zip(low) {
            *next = (*next).max(*low);
        }
        drop(state);
        self.appender.roll(self.now_ms)
    }

    /// Makes room for a record, behind those that there are.
    pub(super) fn make_room(&mut self) -> io::Result<()> {
        let (base, _) = self.appender.place();
        let file = self.appender.file(base)?;
        let length = file.metadata()?.len();
        file.write_all_at(&[0; 4 << 10], length)?;
        file.sync_data()
    }

    /// Begins a new segment if the one that grows has this many bytes, and removes those whose records all lie before `low`.
    pub(super) fn remove_before(&mut self, low: &[u64], bytes: u64) -> io::Result<()> {
        let is_worth_it = self.with(|state| {
            let is_below = state.next.iter().zip(low).all(|(next, low)| next <= low);
            is_below && state.segments.last().is_some_and(|segment| state.end - segment.start >= bytes.max(1))
        });
        if is_worth_it {
            self.appender.roll(self.now_ms)?;
        }
        self.appender.segments.remove_before(low)
    }
}
