//! The archive of one log: manifests and files below the log's directory.

use async_recursion::async_recursion as boxed;
use dashi_domain::position::{LogId, Offset, Partition};

use crate::error::ArchiveError;
use crate::manifest::{MANIFEST, Manifest, Segment, log_directory, partition_directory};
use crate::place::{Place, Version, WriteLock};
use crate::segment::{Damage, SegmentReader};

/// The archive of one log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    place: Place,
    log: LogId,
}

/// A manifest, and its version in the place.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    /// `None`: there is none yet.
    pub(crate) version: Option<Version>,
}

impl Archive {
    /// The archive of the log `log` in this place. Nothing is read yet, and nothing made.
    pub fn new(place: Place, log: LogId) -> Self {
        Self { place, log }
    }

    /// All archives in a place.
    ///
    /// # Errors
    /// [`ArchiveError::Away`], [`ArchiveError::Manifest`].
    #[boxed]
    pub async fn all(place: &Place) -> Result<Vec<Self>, ArchiveError> {
        let mut logs: Vec<LogId> = Vec::new();
        for entry in place.list("").await? {
            let is_manifest = entry.path.rsplit('/').next() == Some(MANIFEST);
            let (true, Some((bytes, _))) = (is_manifest, place.get(&entry.path).await?) else { continue };
            let log = LogId::new(Manifest::decode(&bytes, &place.name_of(&entry.path))?.log);
            if !logs.contains(&log) {
                logs.push(log);
            }
        }
        Ok(logs.into_iter().map(|log| Self::new(place.clone(), log)).collect())
    }

    /// The log.
    pub fn log(&self) -> &LogId {
        &self.log
    }

    /// The place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The partitions that have a manifest, in order.
    ///
    /// # Errors
    /// [`ArchiveError::Away`].
    #[boxed]
    pub async fn partitions(&self) -> Result<Vec<Partition>, ArchiveError> {
        let directory = log_directory(&self.log);
        let mut partitions: Vec<_> = self
            .place
            .list(&directory)
            .await?
            .iter()
            .filter_map(|entry| {
                let below = entry.path.strip_prefix(&directory)?.strip_prefix('/')?;
                below.strip_suffix(MANIFEST)?.strip_suffix('/')?.parse().ok().map(Partition::new)
            })
            .collect();
        partitions.sort();
        Ok(partitions)
    }

    /// The manifest of a partition; an empty one if nothing of it is archived.
    ///
    /// # Errors
    /// [`ArchiveError::Away`], [`ArchiveError::Manifest`].
    #[boxed]
    pub async fn manifest(&self, partition: Partition) -> Result<Manifest, ArchiveError> {
        Ok(self.load(partition).await?.manifest)
    }

    pub(crate) async fn load(&self, partition: Partition) -> Result<Loaded, ArchiveError> {
        let path = self.path(partition, MANIFEST);
        let Some((bytes, version)) = self.place.get(&path).await? else {
            return Ok(Loaded { manifest: Manifest::empty(&self.log, partition), version: None });
        };
        let file = self.place.name_of(&path);
        let manifest = Manifest::decode(&bytes, &file)?;
        if manifest.log != self.log.as_str() || manifest.partition != partition.number() {
            let reason = format!("it is of partition {} of the log {}", manifest.partition, manifest.log);
            return Err(ArchiveError::Manifest { file, reason });
        }
        Ok(Loaded { manifest, version: Some(version) })
    }

    /// Puts a manifest in place of the one that was loaded.
    pub(crate) async fn save(&self, partition: Partition, loaded: &mut Loaded) -> Result<(), ArchiveError> {
        let path = self.path(partition, MANIFEST);
        let bytes =
            loaded.manifest.encode().map_err(ArchiveError::away("writing", self.place.name_of(&path)))?;
        loaded.version = Some(self.place.replace(&path, bytes, loaded.version.as_ref()).await?);
        Ok(())
    }

    pub(crate) async fn put(
        &self,
        partition: Partition,
        segment: &Segment,
        bytes: Vec<u8>,
    ) -> Result<(), ArchiveError> {
        self.place.put(&self.path(partition, &segment.file), bytes).await
    }

    pub(crate) async fn remove(&self, partition: Partition, segment: &Segment) -> Result<(), ArchiveError> {
        self.place.remove(&self.path(partition, &segment.file)).await
    }

    /// Takes the right to write this archive.
    pub(crate) async fn lock(&self) -> Result<WriteLock, ArchiveError> {
        self.place.lock(&log_directory(&self.log)).await
    }

    /// Removes files of a partition that its manifest does not list: they were left by a process that was killed, or
    /// others have taken their place. In an object store, which has no lock, only those that were put before
    /// `before_ms`.
    pub(crate) async fn remove_unlisted(
        &self,
        partition: Partition,
        manifest: &Manifest,
        before_ms: i64,
    ) -> Result<(), ArchiveError> {
        for (path, put_at_ms) in self.unlisted(partition, manifest).await? {
            if put_at_ms.is_none_or(|at| at < before_ms) {
                self.place.remove(&path).await?;
            }
        }
        Ok(())
    }

    /// Paths of a partition's files that its manifest does not list, and when they were put.
    pub(crate) async fn unlisted(
        &self,
        partition: Partition,
        manifest: &Manifest,
    ) -> Result<Vec<(String, Option<i64>)>, ArchiveError> {
        let listed = |path: &str| {
            let name = path.rsplit('/').next().unwrap_or_default();
            name == MANIFEST || manifest.segments.iter().any(|segment| segment.file == name)
        };
        let entries = self.place.list(&partition_directory(&self.log, partition)).await?;
        let unlisted = entries.into_iter().filter(|entry| !listed(&entry.path));
        Ok(unlisted.map(|entry| (entry.path, entry.put_at_ms)).collect())
    }

    /// Opens the file of a range; `None` if it is not there.
    ///
    /// # Errors
    /// [`ArchiveError::Damaged`]: it is not the file that was written.
    pub(crate) async fn open(
        &self,
        partition: Partition,
        segment: &Segment,
    ) -> Result<Option<SegmentReader>, ArchiveError> {
        let path = self.path(partition, &segment.file);
        let Some((bytes, _)) = self.place.get(&path).await? else { return Ok(None) };
        let (entry, opened) = (segment.clone(), self.clone());
        let reader = tokio::task::spawn_blocking(move || SegmentReader::new(&entry, partition, bytes)).await;
        let reader = reader.map_err(ArchiveError::away("reading", self.place.name_of(&path)))?;
        Ok(Some(reader.map_err(|damage| opened.damaged(partition, segment, damage))?))
    }

    /// The error of a file that a manifest lists and that is not there.
    pub(crate) fn absent(&self, partition: Partition, segment: &Segment, offset: Offset) -> ArchiveError {
        self.damaged(partition, segment, Damage { offset, reason: "it is not there".to_owned() })
    }

    pub(crate) fn damaged(&self, partition: Partition, segment: &Segment, damage: Damage) -> ArchiveError {
        let Damage { offset, reason } = damage;
        let file = self.name_of(partition, segment);
        ArchiveError::Damaged { file, partition, offset, reason }
    }

    /// The name of a range's file with its place, for messages.
    pub(crate) fn name_of(&self, partition: Partition, segment: &Segment) -> String {
        self.place.name_of(&self.path(partition, &segment.file))
    }

    fn path(&self, partition: Partition, file: &str) -> String {
        format!("{}/{file}", partition_directory(&self.log, partition))
    }
}
