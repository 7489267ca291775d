//! An archiver on an embedded log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use dashi_domain::erasure::{Erasure, ErasureCopy, Subject};
use dashi_domain::missing::{MissingCause, fingerprint};
use dashi_event_log::{EmbeddedLog, EmbeddedSettings, NewRecord};
use uuid::Uuid;

use super::*;
use crate::place::Directory;
use crate::{Archived, Place, rewrite};

/// A directory that is removed with its content.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("dashi-archive-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PARTITIONS: u32 = 3;

async fn open(path: &Path) -> EventLog {
    let settings = EmbeddedSettings {
        path: path.to_owned(),
        partitions: PARTITIONS,
        queue_max: 1_000,
        batch_max: 1_000,
    };
    EventLog::Embedded(EmbeddedLog::open(settings).await.unwrap())
}

/// Appends so many records; every seventh is no JSON.
async fn append(log: &EventLog, records: u64, mark: &str) {
    let record = |n: u64| NewRecord {
        session_id: Uuid::from_u128(u128::from(n) * 0x9e37_79b9_7f4a_7c15),
        value: match n % 7 {
            0 => format!("\u{0}{mark} {n}\n").into_bytes(),
            _ => format!("{{\"n\":{n},\"mark\":\"{mark}\",\"fill\":\"{}\"}}", "x".repeat(40)).into_bytes(),
        },
    };
    for appended in log.append((0..records).map(record).collect()).await {
        appended.unwrap();
    }
}

fn settings(file_bytes_max: u64) -> ArchiveSettings {
    ArchiveSettings { until_ms: None, file_bytes_max, hold: false, read_limit: limit(5), now_ms: || 1_000 }
}

fn limit(records_max: usize) -> ReadLimit {
    ReadLimit { records_max, bytes_max: 1 << 20, wait: Duration::from_millis(200) }
}

async fn run(log: &EventLog, to: &Archive, settings: ArchiveSettings) -> Result<ArchiveReport, ArchiveError> {
    archive(log, to, settings, &CancellationToken::new(), &|_| {}).await
}

/// All records of a partition in the log.
async fn in_log(log: &EventLog, partition: Partition) -> Vec<Record> {
    let Extent { low, high } = log.extent(partition).await.unwrap();
    let mut reader = log.reader(partition, low).await.unwrap();
    let mut records = Vec::new();
    while reader.passed() < high {
        records.extend(reader.next(limit(1_000)).await.unwrap());
    }
    records
}

/// All records of a partition in its archive, read in parts of this size.
async fn in_archive(archive: &Archive, partition: Partition, records_max: usize) -> Vec<Record> {
    let (mut reader, mut at, mut records) = (archive.reader(partition), Offset::ZERO, Vec::new());
    while let Some(part) = reader.next(at, Offset::new(u64::MAX), limit(records_max)).await.unwrap() {
        assert!(part.to > at && part.records.len() <= records_max, "{part:?}");
        assert_eq!(part.missing, []);
        at = part.to;
        records.extend(part.records);
    }
    records
}

/// Asserts that the archive has every record of the log once, and nothing else.
async fn assert_whole(log: &EventLog, archive: &Archive) {
    for partition in log.partitions().await.unwrap() {
        assert_eq!(in_archive(archive, partition, 4).await, in_log(log, partition).await);
        assert_eq!(archive.manifest(partition).await.unwrap().gaps(), []);
    }
    let found = archive.verify(&CancellationToken::new(), &|_| {}).await.unwrap();
    assert!(found.complete && found.damaged.is_empty() && found.unlisted.is_empty(), "{found:?}");
}

fn in_directory(path: PathBuf, log: &EventLog) -> Archive {
    Archive::new(Place::parse(path.to_str().unwrap()).unwrap(), log.id().clone())
}

#[tokio::test]
async fn an_archive_has_every_record_once_and_a_second_run_adds_only_new_ones() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 100, "first").await;
    let archive = in_directory(scratch.path("archive"), &log);
    let report = run(&log, &archive, settings(600)).await.unwrap();
    assert!(report.complete);
    assert_eq!(report.partitions.iter().map(|part| part.records).sum::<u64>(), 100);
    assert!(
        report.partitions.iter().all(|part| part.files > 2 && part.not_archived.is_empty()),
        "{report:?}"
    );
    assert_whole(&log, &archive).await;

    let again = run(&log, &archive, settings(600)).await.unwrap();
    assert!(again.partitions.iter().all(|part| part.records == 0 && part.files == 0), "{again:?}");
    append(&log, 60, "second").await;
    let more = run(&log, &archive, settings(600)).await.unwrap();
    assert_eq!(more.partitions.iter().map(|part| part.records).sum::<u64>(), 60);
    assert_whole(&log, &archive).await;
    log.close().await;
}

#[tokio::test]
async fn files_grow_until_they_are_full_so_frequent_runs_make_few_files() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    let archive = in_directory(scratch.path("archive"), &log);
    for turn in 0..20 {
        append(&log, 6, &turn.to_string()).await;
        run(&log, &archive, settings(1_500)).await.unwrap();
    }
    assert_whole(&log, &archive).await;
    for partition in log.partitions().await.unwrap() {
        let manifest = archive.manifest(partition).await.unwrap();
        let plain: u64 = manifest.segments.iter().map(|segment| segment.plain_bytes).sum();
        assert!(manifest.segments.len() as u64 <= plain / 1_500 + 1, "{manifest:?}");
    }
    log.close().await;
}

/// Runs the archiver again and again, each time killed after this many steps at most, with appends in between.
async fn with_kills(mut steps: impl FnMut() -> i64) {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    let whole = in_directory(scratch.path("archive"), &log);
    let mut killed = 0;
    for turn in 0..8 {
        append(&log, 12, &turn.to_string()).await;
        let mut directory = Directory::new(scratch.path("archive"));
        directory.steps_left = Some(Arc::new(AtomicI64::new(steps())));
        let killable = Archive::new(Place::Directory(directory), log.id().clone());
        match run(&log, &killable, settings(700)).await {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, ArchiveError::Away { .. }), "{error}");
                killed += 1;
            }
        }
        // Whatever is listed is sound after each kill.
        let found = whole.verify(&CancellationToken::new(), &|_| {}).await.unwrap();
        assert_eq!(found.damaged, [""; 0]);
    }
    assert!(killed > 0);
    run(&log, &whole, settings(700)).await.unwrap();
    assert_whole(&log, &whole).await;
    log.close().await;
}

#[tokio::test]
async fn killed_at_every_step_it_goes_on_without_gap_or_overlap() {
    for steps in 0..40 {
        with_kills(|| steps).await;
    }
}

#[tokio::test]
async fn killed_at_random_steps_it_goes_on_without_gap_or_overlap() {
    let mut seed = 13_u64;
    for _ in 0..20 {
        with_kills(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as i64 % 60
        })
        .await;
    }
}

#[tokio::test]
async fn only_one_process_writes_an_archive() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 10, "first").await;
    let archive = in_directory(scratch.path("archive"), &log);
    let held = archive.lock().await.unwrap();
    let refused = run(&log, &archive, settings(600)).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::Taken { .. }), "{refused}");
    drop(held);
    run(&log, &archive, settings(600)).await.unwrap();
    log.close().await;
}

#[tokio::test]
async fn a_held_log_keeps_what_is_not_archived() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 30, "first").await;
    let archive = in_directory(scratch.path("archive"), &log);
    let first = run(&log, &archive, ArchiveSettings { hold: true, ..settings(600) }).await.unwrap();
    assert!(first.is_held);
    append(&log, 30, "second").await;
    // Nothing but the hold keeps records here: no projection has read this log.
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 30);
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    // A later run moves the hold, also when it is not asked for one again.
    let second = run(&log, &archive, settings(600)).await.unwrap();
    assert!(
        second.is_held && second.partitions.iter().all(|part| part.not_archived.is_empty()),
        "{second:?}"
    );
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 30);
    append(&log, 30, "third").await;
    assert!(log.release(&holder(&archive)).await.unwrap());
    assert!(!log.release(&holder(&archive)).await.unwrap());
    // Without a hold and without a projection, a log keeps everything.
    assert_eq!(log.trim(i64::MAX).await.unwrap(), 0);
    log.close().await;
}

#[tokio::test]
async fn a_log_that_is_an_older_copy_is_not_archived_over_its_newer_records() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 12, "first").await;
    log.close().await;
    std::fs::copy(scratch.path("log.db"), scratch.path("older.db")).unwrap();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 12, "second").await;
    let archive = in_directory(scratch.path("archive"), &log);
    run(&log, &archive, settings(1 << 20)).await.unwrap();
    log.close().await;

    let older = open(&scratch.path("older.db")).await;
    let refused = run(&older, &archive, settings(1 << 20)).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::Parted { source: LogError::Beyond { .. }, .. }), "{refused}");
    append(&older, 60, "other").await;
    let refused = run(&older, &archive, settings(1 << 20)).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::Parted { source: LogError::Rewritten { .. }, .. }), "{refused}");
    older.close().await;
}

#[tokio::test]
async fn a_reader_gives_the_log_its_offsets_and_names_what_neither_has() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 90, "first").await;
    let archive = in_directory(scratch.path("archive"), &log);
    run(&log, &archive, settings(600)).await.unwrap();
    let partition = Partition::new(1);
    let records = in_log(&log, partition).await;
    let mut loaded = archive.load(partition).await.unwrap();
    assert!(loaded.manifest.segments.len() > 3);
    // The first file is lost together with its entry: retention was faster than the archiver.
    let lost = loaded.manifest.segments.remove(0);
    archive.save(partition, &mut loaded).await.unwrap();

    let mut reader = archive.reader(partition);
    let low = loaded.manifest.segments[1].start().next();
    let gap = reader.next(Offset::ZERO, low, limit(3)).await.unwrap().unwrap();
    let missing = vec![(Offset::ZERO..lost.end(), MissingCause::Retention)];
    assert_eq!(gap, Archived { records: Vec::new(), to: lost.end(), missing });
    let (mut at, mut read) = (gap.to, Vec::new());
    while let Some(part) = reader.next(at, low, limit(3)).await.unwrap() {
        at = part.to;
        read.extend(part.records);
    }
    // The file in which the log begins is read to its end.
    assert_eq!(at, loaded.manifest.segments[1].end());
    assert_eq!(read, records[lost.end().number() as usize..at.number() as usize]);
    // A log that has everything is read from its beginning, and any offset of the archive can be the first one.
    assert_eq!(reader.next(Offset::ZERO, Offset::ZERO, limit(3)).await.unwrap(), None);
    let from = lost.end().next().next();
    let part = reader.next(from, low, limit(2)).await.unwrap().unwrap();
    assert_eq!(part.records, records[from.number() as usize..][..2]);
    log.close().await;
}

#[tokio::test]
async fn damage_is_found_by_verify_and_before_a_record_is_read() {
    let scratch = Scratch::new();
    let log = open(&scratch.path("log.db")).await;
    append(&log, 60, "first").await;
    let archive = in_directory(scratch.path("archive"), &log);
    run(&log, &archive, settings(600)).await.unwrap();
    let partition = Partition::new(2);
    let segment = archive.manifest(partition).await.unwrap().segments[1].clone();
    let file = archive.name_of(partition, &segment);
    let good = std::fs::read(&file).unwrap();
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 0x10;
    for bytes in [Some(changed), Some(good[..good.len() - 3].to_vec()), None] {
        match &bytes {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let found = archive.verify(&CancellationToken::new(), &|_| {}).await.unwrap();
        let [text] = &found.damaged[..] else { panic!("{found:?}") };
        let error = archive.reader(partition).next(segment.start(), Offset::new(u64::MAX), limit(3)).await;
        let error = error.unwrap_err();
        for text in [text.clone(), error.to_string()] {
            assert!(text.contains(&file), "{text}");
            assert!(text.contains(&format!("offset {} of partition 2", segment.first)), "{text}");
        }
    }
    std::fs::write(&file, &good).unwrap();
    assert_whole(&log, &archive).await;
    log.close().await;
}

/// A rewriting that is killed at each of its steps leaves a sound archive, and the next one goes on to the same end.
#[tokio::test]
async fn a_rewriting_that_is_killed_at_every_step_goes_on() {
    let website_id = Uuid::from_u128(0x11);
    let event = |n: u128| {
        let (id, session) = (Uuid::from_u128(1_000 + n), Uuid::from_u128(n % 9));
        let value = format!(
            r#"{{"v":1,"id":"{id}","at":5,"session":"{session}","visit":"{session}","type":"event","payload":{{"website":"{website_id}","url":"/secret{}"}}}}"#,
            n % 9
        );
        NewRecord { session_id: session, value: value.into_bytes() }
    };
    let erased = Uuid::from_u128(4);
    let mut killed = 0;
    for steps in 0.. {
        let scratch = Scratch::new();
        let log = open(&scratch.path("log.db")).await;
        for appended in log.append((0..90).map(event).collect()).await {
            appended.unwrap();
        }
        let archive = in_directory(scratch.path("archive"), &log);
        run(&log, &archive, settings(900)).await.unwrap();
        let erasure = Erasure {
            erasure_id: Uuid::from_u128(7),
            erased_at_ms: 9,
            website_id,
            subject: Subject::Session(erased),
            partitions: PARTITIONS,
        };
        let copy = |copy: ErasureCopy| NewRecord { session_id: copy.key, value: copy.encode() };
        for appended in log.append(erasure.copies(&[], &[]).into_iter().map(copy).collect()).await {
            appended.unwrap();
        }
        let mut directory = Directory::new(scratch.path("archive"));
        directory.steps_left = Some(Arc::new(AtomicI64::new(steps)));
        let killable = Archive::new(Place::Directory(directory), log.id().clone());
        let stop = CancellationToken::new();
        let first = rewrite(&log, &killable, settings(900), &stop, &|_| {}).await;
        let found = archive.verify(&stop, &|_| {}).await.unwrap();
        assert_eq!(found.damaged, [""; 0]);
        assert_eq!(found.records, 90);
        let second = rewrite(&log, &archive, settings(900), &stop, &|_| {}).await.unwrap();
        let found = archive.verify(&stop, &|_| {}).await.unwrap();
        assert_eq!((found.erased, &found.damaged[..], &found.unlisted[..]), (10, &[][..], &[][..]));
        for partition in log.partitions().await.unwrap() {
            let logged = in_log(&log, partition).await;
            let archived = in_archive(&archive, partition, 7).await;
            for (kept, original) in archived.iter().zip(&logged) {
                let is_erased = String::from_utf8_lossy(&original.value).contains("/secret4");
                assert_eq!(kept.value == original.value, !is_erased);
                assert_eq!(fingerprint(&kept.value), fingerprint(&original.value));
                assert_eq!((kept.offset, kept.appended_at_ms), (original.offset, original.appended_at_ms));
            }
        }
        log.close().await;
        match first {
            Ok(first) => {
                assert_eq!((first.erased, second.erased, second.erasures), (10, 0, 1));
                break;
            }
            Err(_) => killed += 1,
        }
    }
    assert!(killed > 5, "{killed}");
}

#[cfg(feature = "s3")]
mod objects {
    use object_store::memory::InMemory;

    use super::*;
    use crate::place::Objects;

    #[tokio::test]
    async fn an_object_store_is_a_place_as_a_directory_is() {
        let scratch = Scratch::new();
        let log = open(&scratch.path("log.db")).await;
        let objects = Objects::in_store(Arc::new(InMemory::new()), "some/prefix/", "s3://b/some/prefix/");
        let archive = Archive::new(Place::Objects(objects.unwrap()), log.id().clone());
        for turn in 0..5 {
            append(&log, 30, &turn.to_string()).await;
            run(&log, &archive, settings(600)).await.unwrap();
            assert_whole(&log, &archive).await;
        }
        let all = Archive::all(archive.place()).await.unwrap();
        assert_eq!(all.iter().map(Archive::log).collect::<Vec<_>>(), [log.id()]);
        assert_eq!(archive.place().to_string(), "s3://b/some/prefix");
        log.close().await;
    }

    #[tokio::test]
    async fn of_two_writers_of_a_manifest_one_is_refused() {
        let scratch = Scratch::new();
        let log = open(&scratch.path("log.db")).await;
        append(&log, 30, "first").await;
        let objects = Objects::in_store(Arc::new(InMemory::new()), "", "s3://b").unwrap();
        let archive = Archive::new(Place::Objects(objects), log.id().clone());
        let partition = Partition::new(0);
        // Both have read the manifest before either writes it: at first there is none, then there is one.
        for _ in 0..2 {
            let (mut one, mut other) =
                (archive.load(partition).await.unwrap(), archive.load(partition).await.unwrap());
            archive.save(partition, &mut one).await.unwrap();
            let refused = archive.save(partition, &mut other).await.unwrap_err();
            assert!(matches!(refused, ArchiveError::Taken { .. }), "{refused}");
            archive.save(partition, &mut one).await.unwrap();
        }
        log.close().await;
    }
}
