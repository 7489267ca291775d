//! The records that may lie in the log: the one place that knows every type of record.

use uuid::Uuid;

use crate::chunk::Chunk;
use crate::dead_letters::LetterCommand;
use crate::erasure::{ErasureCopy, Tombstone};
use crate::heatmap::HeatmapPost;
use crate::imported::Imported;
use crate::json::Value;
use crate::layout::Barrier;
use crate::profile;
use crate::record::{DecodeError, Envelope, Event};

/// A record, by its type.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "almost all are events, and there is one of it at a time")]
pub enum LogRecord<'a> {
    /// An event, an identify or web vitals.
    Event(Event<'a>),
    /// A chunk of a recording.
    Chunk(Chunk),
    /// Clicks and scrolls of a page.
    Heatmap(HeatmapPost<'a>),
    /// Rows of another store.
    Imported(Imported),
    /// An erasure, which covers the records before it.
    Erasure(ErasureCopy),
    /// A command about dead letters.
    Letters(LetterCommand),
    /// The number of partitions grows.
    Layout(Barrier),
    /// The place of a record that an erasure covered.
    Erased(Tombstone),
}

impl<'a> LogRecord<'a> {
    /// Reads back a record's value of any type.
    ///
    /// # Errors
    /// Each is final for this record: make it a dead letter with the error's text as reason.
    pub fn decode(value: &'a [u8]) -> Result<Self, DecodeError> {
        let (envelope, mut fields) = Envelope::decode(value)?;
        let kept = fields.is_kept()?;
        match fields.0.get("type").and_then(Value::as_str).filter(|_| !kept) {
            Some("record") => Chunk::decode(envelope, fields.0.remove("payload")).map(Self::Chunk),
            Some("heatmap") => HeatmapPost::decode(envelope, fields.0.remove("payload")).map(Self::Heatmap),
            Some("imported") => Imported::decode(envelope, fields).map(Self::Imported),
            Some("erase") => ErasureCopy::decode(envelope, fields.0.remove("payload")).map(Self::Erasure),
            Some("dead-letters") => {
                LetterCommand::decode(envelope, fields.0.remove("payload")).map(Self::Letters)
            }
            Some("layout") => Barrier::decode(envelope, fields.0.remove("payload")).map(Self::Layout),
            Some("erased") => Tombstone::decode(envelope, fields.0.remove("payload")).map(Self::Erased),
            _ => Event::from_fields(envelope, fields).map(Self::Event),
        }
    }

    /// The identity of the event, chunk, post, imported rows, copy, command or barrier; of a tombstone, that of the record that was there.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Event(event) => event.event_id,
            Self::Chunk(chunk) => chunk.chunk_id,
            Self::Heatmap(post) => post.post_id,
            Self::Imported(imported) => imported.record_id,
            Self::Erasure(copy) => copy.copy_id,
            Self::Letters(command) => command.command_id,
            Self::Layout(barrier) => barrier.id(),
            Self::Erased(tombstone) => tombstone.record_id,
        }
    }

    /// The people that it names for its session, in the form of [`profile::distinct_id`].
    pub fn people(&self) -> Vec<String> {
        match self {
            Self::Event(event) if event.submission.kept.is_none() => {
                profile::person_of_payload(&event.submission.payload).into_iter().collect()
            }
            Self::Imported(imported) => imported.people().map(|(person, _)| person).collect(),
            _ => Vec::new(),
        }
    }

    /// The website, link or pixel that it is of; nil for a command about dead letters and a barrier.
    pub fn source_id(&self) -> Uuid {
        match self {
            Self::Event(event) => event.submission.payload.source.id,
            Self::Chunk(chunk) => chunk.website_id,
            Self::Heatmap(post) => post.submission.website_id,
            Self::Imported(imported) => imported.website_id,
            Self::Erasure(copy) => copy.erasure.website_id,
            Self::Letters(_) | Self::Layout(_) => Uuid::nil(),
            Self::Erased(tombstone) => tombstone.website_id,
        }
    }
}
