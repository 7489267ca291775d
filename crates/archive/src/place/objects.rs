//! A prefix in a bucket of an S3-compatible object store as a place for archives.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};

use super::{Entry, Version};
use crate::error::ArchiveError;

/// A prefix in a bucket.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The URL, for messages; without an end of `/`.
    url: Arc<str>,
}

impl Objects {
    /// The prefix of a URL `s3://bucket/prefix`, with keys and endpoint of the environment.
    pub(crate) fn s3(url: &str) -> Result<Self, ArchiveError> {
        let refused = |reason: String| ArchiveError::Place { place: url.to_owned(), reason };
        let rest = url.strip_prefix("s3://").unwrap_or(url);
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(refused("it names no bucket: s3://BUCKET/PREFIX".to_owned()));
        }
        let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
        let store = store.map_err(|error| refused(error.to_string()))?;
        Self::in_store(Arc::new(store), prefix, url)
    }

    /// A prefix in any store.
    pub(crate) fn in_store(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        url: &str,
    ) -> Result<Self, ArchiveError> {
        let prefix = Path::parse(prefix.trim_end_matches('/'))
            .map_err(|error| ArchiveError::Place { place: url.to_owned(), reason: error.to_string() })?;
        Ok(Self { store, prefix, url: url.trim_end_matches('/').into() })
    }

    pub(crate) fn name_of(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, Version)>, ArchiveError> {
        let result = match self.store.get(&self.key(path)).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            result => result.map_err(self.away("reading", path))?,
        };
        let version = Version { e_tag: result.meta.e_tag.clone() };
        let bytes = result.bytes().await.map_err(self.away("reading", path))?;
        Ok(Some((bytes.into(), version)))
    }

    pub(crate) async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        self.store.put(&self.key(path), bytes.into()).await.map_err(self.away("writing", path))?;
        Ok(())
    }

    pub(crate) async fn replace(
        &self,
        path: &str,
        bytes: Vec<u8>,
        seen: Option<&Version>,
    ) -> Result<Version, ArchiveError> {
        let mode = match seen {
            None => PutMode::Create,
            Some(Version { e_tag: Some(e_tag) }) => {
                PutMode::Update(UpdateVersion { e_tag: Some(e_tag.clone()), version: None })
            }
            Some(Version { e_tag: None }) => PutMode::Overwrite,
        };
        let (key, payload) = (self.key(path), object_store::PutPayload::from(bytes));
        let mut put = self.store.put_opts(&key, payload.clone(), PutOptions::from(mode)).await;
        if let Err(Error::NotImplemented { .. }) = put {
            // A store without conditions: the documentation asks for one writer at a time.
            put = self.store.put(&key, payload).await;
        }
        match put {
            Ok(result) => Ok(Version { e_tag: result.e_tag }),
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Err(ArchiveError::Taken {
                because: format!("it has written {} meanwhile", self.name_of(path)),
            }),
            Err(error) => Err(self.away("writing", path)(error)),
        }
    }

    pub(crate) async fn remove(&self, path: &str) -> Result<(), ArchiveError> {
        match self.store.delete(&self.key(path)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.away("removing", path)(error)),
        }
    }

    pub(crate) async fn list(&self, below: &str) -> Result<Vec<Entry>, ArchiveError> {
        use futures::TryStreamExt as _;
        let prefix = self.key(below);
        let listed = self.store.list(Some(&prefix)).try_collect::<Vec<_>>().await;
        let root = self.prefix.as_ref();
        let entries = listed.map_err(self.away("listing", below))?.into_iter().map(|meta| {
            let path = meta.location.as_ref();
            let path = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/').to_owned();
            Entry { path, bytes: meta.size, put_at_ms: Some(meta.last_modified.timestamp_millis()) }
        });
        Ok(entries.collect())
    }

    fn key(&self, path: &str) -> Path {
        path.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), |key, part| key.join(part))
    }

    fn away(&self, doing: &'static str, path: &str) -> impl FnOnce(Error) -> ArchiveError + use<> {
        ArchiveError::away(doing, self.name_of(path))
    }
}
