//! Verifying an archive: every file is read, and compared with its entry in the manifest.

use async_recursion::async_recursion as boxed;
use dashi_domain::missing::fingerprint;
use dashi_domain::position::Partition;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::error::ArchiveError;
use crate::manifest::Segment;
use crate::segment::{Damage, SegmentReader};

/// Result of a verification.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verification {
    /// The log.
    pub log: String,
    /// Partitions with a manifest.
    pub partitions: u64,
    /// Files that were read.
    pub files: u64,
    /// Size of these files.
    pub bytes: u64,
    /// Records in them.
    pub records: u64,
    /// Those in whose place an erasure put a tombstone.
    pub erased: u64,
    /// Offsets before the last archived one of each partition that retention had removed before they were archived.
    pub not_archived: u64,
    /// Each damaged file; none if the archive is sound.
    pub damaged: Vec<String>,
    /// Files that no manifest lists: the rest of a run that was killed. The next run removes them.
    pub unlisted: Vec<String>,
    /// Whether all files were read; `false` if it was stopped.
    pub complete: bool,
}

/// Progress of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct VerifyProgress {
    /// Bytes of files that were read.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

impl Archive {
    /// Reads all files. `report` is called after each.
    ///
    /// # Errors
    /// [`ArchiveError::Away`]: the place does not answer; call again later. Damage is no error: the result has it.
    #[boxed]
    pub async fn verify(
        &self,
        stop: &CancellationToken,
        report: &(dyn Fn(VerifyProgress) + Send + Sync),
    ) -> Result<Verification, ArchiveError> {
        let mut result = Verification { log: self.log().to_string(), ..Verification::default() };
        let mut manifests = Vec::new();
        for partition in self.partitions().await? {
            result.partitions += 1;
            match self.manifest(partition).await {
                Ok(manifest) => manifests.push((partition, manifest)),
                Err(error @ ArchiveError::Manifest { .. }) => result.damaged.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let segments = manifests.iter().flat_map(|(_, manifest)| &manifest.segments);
        let total = segments.map(|segment| segment.bytes).sum();
        let mut done = 0;
        report(VerifyProgress { done, total });
        for (partition, manifest) in &manifests {
            let gaps = manifest.gaps();
            result.not_archived += gaps.iter().map(|gap| gap.end.number() - gap.start.number()).sum::<u64>();
            for segment in &manifest.segments {
                if stop.is_cancelled() {
                    return Ok(result);
                }
                match self.check(*partition, segment).await {
                    Ok(()) => {
                        result.records += segment.records;
                        result.erased += segment.erased;
                    }
                    Err(error @ ArchiveError::Damaged { .. }) => result.damaged.push(error.to_string()),
                    Err(error) => return Err(error),
                }
                result.files += 1;
                result.bytes += segment.bytes;
                done += segment.bytes;
                report(VerifyProgress { done, total });
            }
            let unlisted = self.unlisted(*partition, manifest).await?;
            result.unlisted.extend(unlisted.into_iter().map(|(path, _)| self.place().name_of(&path)));
        }
        result.complete = true;
        Ok(result)
    }

    async fn check(&self, partition: Partition, segment: &Segment) -> Result<(), ArchiveError> {
        let Some(reader) = self.open(partition, segment).await? else {
            return Err(self.absent(partition, segment, segment.start()));
        };
        let entry = segment.clone();
        let checked = tokio::task::spawn_blocking(move || compare(reader, &entry)).await;
        let checked = checked.map_err(ArchiveError::away("reading", self.name_of(partition, segment)))?;
        checked.map_err(|damage| self.damaged(partition, segment, damage))
    }
}

/// Compares a file's lines with its entry in the manifest.
fn compare(mut reader: SegmentReader, segment: &Segment) -> Result<(), Damage> {
    let mut records = 0;
    let (mut min, mut max) = (i64::MAX, i64::MIN);
    let mut last = None;
    while let Some(record) = reader.next()? {
        records += 1;
        min = min.min(record.appended_at_ms);
        max = max.max(record.appended_at_ms);
        last = (record.offset.number() == segment.last).then(|| fingerprint(&record.value));
    }
    if records == 0 {
        (min, max) = (0, 0);
    }
    let found = (records, min, max, last);
    let Segment { appended_at_ms_min, appended_at_ms_max, .. } = *segment;
    let stated = (segment.records, appended_at_ms_min, appended_at_ms_max, segment.fingerprint);
    if found == stated {
        return Ok(());
    }
    let reason = format!(
        "records, least and greatest time and last fingerprint are {found:?}, the manifest states {stated:?}"
    );
    Err(Damage { offset: segment.start(), reason })
}
