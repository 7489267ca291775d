//! The directory of segments: the files with the records, and what this process knows of them.
//!
//! Positions count bytes of the log from its beginning, through all segments: a segment is named by the position at which it
//! begins. Whoever appends holds the lock of the directory. The file `tail` names the position up to which everything is
//! durable; it is written behind each fsync, so that the readers of other processes see nothing that a loss of power could take
//! back.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashi_domain::layout::Layout;
use dashi_domain::position::{Offset, Partition};
use tokio::sync::watch;
use uuid::Uuid;

use super::frame::{self, FrameBuilder, HEADER_BYTES, Head, Kind};
use super::window::Window;

/// The file whose lock an appending process holds.
pub(super) const LOCK: &str = "append-lock";

const TAIL: &str = "tail";
const EXTENSION: &str = "records";

/// See the module's text.
pub(super) struct Segments {
    directory: PathBuf,
    log: Uuid,
    tail: File,
    state: Mutex<State>,
    /// The number of partitions; wakes those who wait for more.
    partitions: watch::Sender<u32>,
    /// The offset that the next record of each partition gets; wakes its readers.
    high: Mutex<Vec<watch::Sender<u64>>>,
}

/// The log up to [`State::end`], which this process knows to be durable.
#[derive(Debug)]
pub(super) struct State {
    /// The position behind the last durable frame.
    pub(super) end: u64,
    /// The offset that the next record of each partition gets.
    pub(super) next: Vec<u64>,
    /// The layout in force.
    pub(super) layout: Layout,
    /// In their order; the last one is the one that grows.
    pub(super) segments: Vec<Segment>,
    /// Whether the last segment is ended, and the next one not begun yet.
    pub(super) is_ended: bool,
    /// How often the catalogue has changed in a way that readers have to notice.
    changes: u64,
}

/// A file of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// The position at which it begins.
    pub(super) base: u64,
    /// When it was begun, milliseconds since 1970.
    pub(super) begun_at_ms: i64,
    /// The offset that the next record of each partition had then.
    pub(super) first: Vec<u64>,
    pub(super) layout: Layout,
    /// The position of its first frame with records.
    pub(super) start: u64,
}

impl Segment {
    /// The first offset of a partition that can lie in it.
    pub(super) fn first_of(&self, partition: Partition) -> u64 {
        self.first.get(partition.number() as usize).copied().unwrap_or(0)
    }
}

impl State {
    const fn new(changes: u64) -> Self {
        let layout = Layout { version: 0, partitions: 0 };
        Self { end: 0, next: Vec::new(), layout, segments: Vec::new(), is_ended: false, changes }
    }

    /// The offset that the next record of a partition gets.
    pub(super) fn next_of(&self, partition: Partition) -> u64 {
        self.next.get(partition.number() as usize).copied().unwrap_or(0)
    }

    /// Adds a frame that lies behind the others.
    pub(super) fn apply(&mut self, head: &Head) {
        self.layout = self.layout.max(head.layout);
        let partitions = self.layout.partitions as usize;
        if self.next.len() < partitions {
            self.next.resize(partitions, 0);
        }
        for run in &head.runs {
            if let Some(next) = self.next.get_mut(run.partition.number() as usize) {
                *next = run.end().number().max(*next);
            }
        }
        self.end = head.end();
        self.is_ended = head.kind == Kind::End;
    }

    fn begin(&mut self, segment: Segment) {
        self.layout = self.layout.max(segment.layout);
        self.next.resize(self.next.len().max(segment.first.len()), 0);
        for (next, first) in self.next.iter_mut().zip(&segment.first) {
            *next = (*next).max(*first);
        }
        self.end = segment.start;
        self.is_ended = false;
        self.segments.push(segment);
    }
}

impl Segments {
    /// Opens the directory, and makes it and its first segment for a log that has none. Frames that a killed process left behind
    /// the tail are taken if they are whole, and cut away otherwise. `new` are the layout and the next offsets of a log without
    /// segments.
    pub(super) fn open(
        directory: &Path,
        log: Uuid,
        new: (Layout, Vec<u64>),
        now_ms: i64,
    ) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let lock = lock_file(directory)?;
        lock.lock()?;
        let tail =
            File::options().create(true).truncate(false).read(true).write(true).open(directory.join(TAIL))?;
        let segments = Self {
            directory: directory.to_owned(),
            log,
            tail,
            state: Mutex::new(State::new(0)),
            partitions: watch::Sender::new(0),
            high: Mutex::default(),
        };
        let mut state = State::new(segments.noted()?.1);
        segments.list(&mut state)?;
        if state.segments.is_empty() {
            let State { layout, next, .. } = &mut state;
            (*layout, *next) = new;
            segments.begin(&mut state, 0, now_ms)?;
        }
        segments.catch_up(&mut state, true)?;
        segments.recover(&mut state, now_ms, true)?;
        segments.publish(&state)?;
        segments.notify(&state);
        *segments.state() = state;
        Ok(segments)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) const fn partitions(&self) -> &watch::Sender<u32> {
        &self.partitions
    }

    /// Follows the next offset of a partition.
    pub(super) fn high(&self, partition: Partition) -> watch::Receiver<u64> {
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        let at = partition.number() as usize;
        while high.len() <= at {
            high.push(watch::Sender::new(0));
        }
        high[at].subscribe()
    }

    /// Wakes those who wait for what is new.
    pub(super) fn notify(&self, state: &State) {
        let higher = |known: &watch::Sender<u64>, next: u64| {
            known.send_if_modified(|known| next > std::mem::replace(known, next.max(*known)));
        };
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        while high.len() < state.next.len() {
            high.push(watch::Sender::new(0));
        }
        for (known, next) in high.iter().zip(&state.next) {
            higher(known, *next);
        }
        let partitions = state.layout.partitions;
        self.partitions
            .send_if_modified(|known| partitions > std::mem::replace(known, partitions.max(*known)));
    }

    /// Learns what other processes have appended. Returns how often the catalogue has changed.
    pub(super) fn refresh(&self) -> io::Result<u64> {
        let (end, changes) = self.noted()?;
        let mut state = self.state();
        if end > state.end {
            self.catch_up(&mut state, false)?;
            self.notify(&state);
        }
        if std::mem::replace(&mut state.changes, changes) != changes {
            while state.segments.len() > 1 && !self.path(state.segments[0].base).exists() {
                state.segments.remove(0);
            }
        }
        Ok(changes)
    }

    /// The end of what is durable and the number of changes of the catalogue, as `tail` has them.
    fn noted(&self) -> io::Result<(u64, u64)> {
        let mut bytes = [0; 16];
        let length = read_at(&self.tail, &mut bytes, 0)?;
        let number = |at: usize| {
            let bytes: [u8; 8] = bytes[at..at + 8].try_into().unwrap_or_default();
            if at + 8 <= length { u64::from_le_bytes(bytes) } else { 0 }
        };
        Ok((number(0), number(8)))
    }

    /// Notes that everything before [`State::end`] is durable.
    pub(super) fn publish(&self, state: &State) -> io::Result<()> {
        self.tail.write_all_at(&state.end.to_le_bytes(), 0)
    }

    /// Lets the readers of all processes look at the catalogue again.
    pub(super) fn note_change(&self) -> io::Result<()> {
        let lock = lock_file(&self.directory)?;
        lock.lock()?;
        let changes = self.noted()?.1 + 1;
        self.tail.write_all_at(&changes.to_le_bytes(), 8)
    }

    /// Goes on to the end that `tail` names. Frames up to there were whole when it was written. A copy of the directory that was
    /// made while the log was written may have a newer tail than segment: one that is `opened` ends where its frames end.
    pub(super) fn catch_up(&self, state: &mut State, opened: bool) -> io::Result<()> {
        let (end, _) = self.noted()?;
        let (mut window, mut file) = (Window::default(), None);
        while state.end < end {
            if state.is_ended {
                match self.load(state.end)? {
                    Some(segment) => state.begin(segment),
                    None => break,
                }
                continue;
            }
            let base = state.segments.last().map_or(0, |segment| segment.base);
            let open = match &file {
                Some((of, open)) if *of == base => open,
                _ => match File::open(self.path(base)) {
                    Ok(open) => &file.insert((base, open)).1,
                    // Retention of another process removed it, and there is one behind it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && self.skip_removed(state)? => {
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let position = state.end;
            match window.head(open, base, position, end)? {
                Some(head) => state.apply(&head),
                None => match window.next_head(open, base, position, end)? {
                    Some(next) => {
                        self.report_damage(base, position, next);
                        state.end = next;
                    }
                    None => {
                        self.report_damage(base, position, end);
                        if opened {
                            break;
                        }
                        state.end = end;
                    }
                },
            }
        }
        Ok(())
    }

    /// Goes on with the segments behind those that are known, if there are any.
    fn skip_removed(&self, state: &mut State) -> io::Result<bool> {
        let known = state.segments.last().map_or(0, |segment| segment.base);
        let mut listed = State::new(state.changes);
        self.list(&mut listed)?;
        state.segments.clear();
        for segment in listed.segments {
            state.begin(segment);
        }
        Ok(state.segments.last().is_some_and(|segment| segment.base > known))
    }

    /// Says that a part of the log cannot be read.
    pub(super) fn report_damage(&self, base: u64, from: u64, to: u64) {
        tracing::error!(
            file = %self.path(base).display(),
            from_byte = from - base,
            to_byte = to - base,
            "a part of the event log is damaged or missing: its records cannot be read, and count as missing. Restore the file \
             from a copy, if there is one, and replay"
        );
    }

    /// Looks behind the tail, for the process that holds the lock: takes whole frames, and cuts away anything else. A process
    /// that was killed while it wrote leaves the beginning of a frame; a loss of power may leave any part of it, which is looked
    /// for when the log is `opened`.
    pub(super) fn recover(&self, state: &mut State, now_ms: i64, opened: bool) -> io::Result<()> {
        let mut window = Window::default();
        loop {
            if state.is_ended {
                match self.load(state.end)? {
                    Some(segment) => state.begin(segment),
                    None => self.begin(state, state.end, now_ms)?,
                }
            }
            let base = state.segments.last().map_or(0, |segment| segment.base);
            let path = self.path(base);
            let file = File::options().read(true).write(true).open(&path)?;
            let length = file.metadata()?.len();
            let position = state.end;
            window.clear();
            let head = window.head(&file, base, position, base + length)?;
            let whole = match &head {
                Some(head) => {
                    let mut body = vec![0; (head.end() - head.body()) as usize];
                    read_at(&file, &mut body, head.body() - base)? == body.len()
                        && frame::is_whole(head, &body)
                }
                None => false,
            };
            if let Some(head) = head.filter(|_| whole) {
                file.sync_data()?;
                state.apply(&head);
                continue;
            }
            let mut left =
                vec![
                    0;
                    if opened { length.saturating_sub(position - base) as usize } else { frame::HEAD_BYTES }
                ];
            let read = read_at(&file, &mut left, position - base)?;
            if left[..read].iter().any(|byte| *byte != 0) {
                tracing::info!(file = %path.display(), at_byte = position - base, "the rest of an unfinished append is cut away");
                file.set_len(position - base)?;
                file.sync_data()?;
            }
            return Ok(());
        }
    }

    /// Makes the segment that begins at `base`, where the log ends, and makes it durable.
    pub(super) fn begin(&self, state: &mut State, base: u64, now_ms: i64) -> io::Result<()> {
        let mut builder = FrameBuilder::default();
        for (partition, next) in state.next.iter().enumerate() {
            builder.mark(Partition::new(partition as u32), Offset::new(*next), now_ms);
        }
        let mut bytes = frame::header(self.log, base).to_vec();
        let start = builder.finish(base + HEADER_BYTES, Kind::Start, state.layout, &mut bytes);
        let file = File::options().create(true).truncate(true).write(true).open(self.path(base))?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()?;
        state.begin(segment(base, &start));
        Ok(())
    }

    /// Removes the segments whose records all lie before these offsets (exclusive), for the process that holds the lock.
    pub(super) fn remove_before(&self, low: &[u64]) -> io::Result<()> {
        let mut state = self.state();
        let is_below = |next: &Segment| {
            next.first.iter().enumerate().all(|(at, first)| *first <= low.get(at).copied().unwrap_or(0))
        };
        while state.segments.len() > 1 && is_below(&state.segments[1]) {
            match fs::remove_file(self.path(state.segments[0].base)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => state.segments.remove(0),
            };
        }
        Ok(())
    }

    pub(super) fn path(&self, base: u64) -> PathBuf {
        self.directory.join(format!("{base:020}.{EXTENSION}"))
    }

    /// The segments that there are, up to the first frame of the last one.
    fn list(&self, state: &mut State) -> io::Result<()> {
        let mut bases = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = PathBuf::from(entry?.file_name());
            if path.extension().is_some_and(|extension| extension == EXTENSION)
                && let Some(base) =
                    path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok())
            {
                bases.push(base);
            }
        }
        bases.sort_unstable();
        for base in &bases {
            match self.load(*base)? {
                Some(segment) => state.begin(segment),
                // A process died while it made it; it is made again, when the one before it is read to its end.
                None if Some(base) == bases.last() && (bases.len() > 1 || self.noted()?.0 == 0) => {
                    fs::remove_file(self.path(*base))?;
                }
                None => return Err(not_a_segment(&self.path(*base))),
            }
        }
        Ok(())
    }

    /// Reads the beginning of a segment; `None` if it is not there, or not whole.
    fn load(&self, base: u64) -> io::Result<Option<Segment>> {
        let path = self.path(base);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut header = [0; HEADER_BYTES as usize];
        let length = read_at(&file, &mut header, 0)?;
        match frame::decode_header(&header[..length]) {
            Some((log, at)) if log == self.log && at == base => {}
            Some((log, _)) if log != self.log => {
                let text =
                    format!("{} holds records of the log {log}, and this is {}", path.display(), self.log);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            _ => return Ok(None),
        }
        let head = Window::default().head(&file, base, base + HEADER_BYTES, u64::MAX)?;
        Ok(head.filter(|head| head.kind == Kind::Start).map(|start| segment(base, &start)))
    }
}

fn segment(base: u64, start: &Head) -> Segment {
    Segment {
        base,
        begun_at_ms: start.runs.first().map_or(0, |run| run.at_ms),
        first: start.runs.iter().map(|run| run.first.number()).collect(),
        layout: start.layout,
        start: start.end(),
    }
}

fn not_a_segment(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is no segment of an event log", path.display()))
}

/// The file whose lock whoever appends holds; each handle is a holder of its own.
pub(super) fn lock_file(directory: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(directory.join(LOCK))
}

/// Reads until the buffer is full or the file ends; returns how many bytes.
pub(super) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
