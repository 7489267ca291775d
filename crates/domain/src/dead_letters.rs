//! Commands about dead letters: records in the log by which set-aside records are tried again or discarded.
//!
//! A command lies in the partition of the dead letters that it names, so that partition's single writer obeys it, in order
//! with everything else there. It names places and holds no content: the bytes are in the table of dead letters.
//!
//! ```json
//! {"v":1,"type":"dead-letters","id":"<command>","at":1777623630123,"session":"<key>","visit":"<nil>","payload":{
//!  "action":"retry","log":"<log id>","partition":3,"partitions":12,"offsets":[17,4711]}}
//! ```
//!
//! The key is made up so that the record lies in its partition. A command whose log or partition is another one's, as after
//! an import of a log's export or when the topic has grown meanwhile, changes nothing.

use uuid::Uuid;

use crate::json::{self, Value};
use crate::partitioner::{key, partition_for};
use crate::position::{LogId, Offset, Partition};
use crate::record::{DecodeError, Envelope, Fields};

/// How a command's value begins. Only this program writes commands, always in this form.
const COMMAND: &[u8] = br#"{"v":1,"type":"dead-letters","#;

/// Dead letters that one command names, at most; more are named by further commands.
pub const OFFSETS_MAX: usize = 1_000;

/// What becomes of the dead letters that a command names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LetterAction {
    /// They are folded again, at the place of the command, each with its own time and ids.
    Retry,
    /// They are marked: nobody has to look at them any more. They stay counted as dead.
    Discard,
}

impl LetterAction {
    /// Its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Retry, Self::Discard].into_iter().find(|action| action.name() == name)
    }
}

/// A command about dead letters of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterCommand {
    /// The record's identity.
    pub command_id: Uuid,
    /// The record's key, by which it lies in its partition.
    pub key: Uuid,
    /// When it was commanded, milliseconds since 1970.
    pub at_ms: i64,
    /// What becomes of the letters.
    pub action: LetterAction,
    /// The log that the letters lie in.
    pub log: LogId,
    /// Their partition.
    pub partition: Partition,
    /// Partitions of the log at that time.
    pub partitions: u32,
    /// Their offsets, ascending, each once; at most [`OFFSETS_MAX`].
    pub offsets: Vec<Offset>,
}

impl LetterCommand {
    /// The commands for these letters of a partition, in the order of their offsets. `id` makes the commands' ids: the same
    /// one gives the same commands.
    pub fn all(
        id: Uuid,
        at_ms: i64,
        action: LetterAction,
        (log, partition): (&LogId, Partition),
        partitions: u32,
        mut offsets: Vec<Offset>,
    ) -> Vec<Self> {
        offsets.sort_unstable();
        offsets.dedup();
        let key = key_in(id, partition, partitions);
        let commands = offsets.chunks(OFFSETS_MAX).enumerate().map(|(part, offsets)| Self {
            command_id: Uuid::new_v5(&id, format!("{partition}:{part}").as_bytes()),
            key,
            at_ms,
            action,
            log: log.clone(),
            partition,
            partitions,
            offsets: offsets.to_vec(),
        });
        commands.collect()
    }

    /// Whether a record's value is a command's, by its first bytes.
    pub fn is(value: &[u8]) -> bool {
        value.starts_with(COMMAND)
    }

    /// Whether it is about letters of this partition.
    pub fn is_about(&self, log: &LogId, partition: Partition) -> bool {
        self.log == *log && self.partition == partition
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        let Self { command_id, key, at_ms, action, log, partition, partitions, offsets } = self;
        let mut out = String::from_utf8_lossy(COMMAND).into_owned();
        out.push_str(&format!(
            r#""id":"{command_id}","at":{at_ms},"session":"{key}","visit":"{}","payload":{{"action":"{}","log":"#,
            Uuid::nil(),
            action.name(),
        ));
        json::write_string(log.as_str(), &mut out);
        let offsets: Vec<String> = offsets.iter().map(Offset::to_string).collect();
        out.push_str(&format!(
            r#","partition":{partition},"partitions":{partitions},"offsets":[{}]}}}}"#,
            offsets.join(",")
        ));
        out.into_bytes()
    }

    pub(crate) fn decode(envelope: Envelope, payload: Option<Value<'_>>) -> Result<Self, DecodeError> {
        let mut payload = match payload {
            Some(Value::Object(payload)) => Fields(payload),
            other => return Err(DecodeError::field("payload", other.as_ref(), "an object")),
        };
        let offsets = match payload.0.get("offsets") {
            Some(Value::Array(offsets)) if offsets.len() <= OFFSETS_MAX => {
                offsets.iter().map(offset).collect::<Option<Vec<Offset>>>()
            }
            _ => None,
        };
        let offsets = offsets
            .filter(|offsets| offsets.is_sorted_by(|one, next| one < next))
            .ok_or_else(|| DecodeError::field("offsets", None, "at most 1000 whole numbers, ascending"))?;
        let number = |payload: &Fields<'_>, field| {
            let number = payload.integer(field)?;
            u32::try_from(number)
                .map_err(|_| DecodeError::field(field, None, "a number that is not negative"))
        };
        let action = payload.text("action")?.and_then(|name| LetterAction::named(&name));
        let log = payload.text("log")?.filter(|log| !log.is_empty());
        Ok(Self {
            command_id: envelope.event_id,
            key: envelope.session_id,
            at_ms: envelope.received_at_ms,
            action: action.ok_or_else(|| DecodeError::field("action", None, "retry or discard"))?,
            log: LogId::new(log.ok_or_else(|| DecodeError::field("log", None, "a log's id"))?),
            partition: Partition::new(number(&payload, "partition")?),
            partitions: number(&payload, "partitions")?,
            offsets,
        })
    }
}

fn offset(value: &Value<'_>) -> Option<Offset> {
    match value {
        Value::Number(number) if number.fract() == 0.0 && (0.0..=9.007e15).contains(number) => {
            Some(Offset::new(*number as u64))
        }
        _ => None,
    }
}

/// The first key of a series that lies in the partition, which is one of these.
fn key_in(id: Uuid, partition: Partition, partitions: u32) -> Uuid {
    let mut number = 0_u64;
    loop {
        let tried = Uuid::new_v5(&id, format!("key:{number}").as_bytes());
        if partition.number() >= partitions || partition_for(key(tried).as_bytes(), partitions) == partition {
            return tried;
        }
        number += 1;
    }
}

/// Dead letters that were folded again, as a part of a batch's changes. The batch has their outcomes, and moves no
/// checkpoint: those that are still dead are among its dead letters, and the others leave the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The command. A letter that it has tried already is not tried again by it.
    pub command_id: Uuid,
    /// When it was commanded, milliseconds since 1970.
    pub at_ms: i64,
    /// All letters of the batch, ascending.
    pub offsets: Vec<Offset>,
    /// Whether no later record of their sessions was applied, because those waited: then they are folded as they would have
    /// been in time.
    pub in_order: bool,
}

/// Why a record cannot be tried again, if so: it is about the order of the records before it, which is over.
pub fn refusal(value: &[u8]) -> Option<&'static str> {
    if crate::erasure::ErasureCopy::is(value) {
        return Some(
            "an erasure covers the records before it and cannot be applied later: run `dashi erase` again",
        );
    }
    if crate::erasure::Tombstone::is(value) {
        return Some("a tombstone has the place of an erased record, of which nothing is left");
    }
    if crate::layout::Barrier::is(value) {
        return Some("a barrier of layouts is about the records before it and cannot be applied later");
    }
    LetterCommand::is(value).then_some("a command about dead letters is not applied later: give it again")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::glance::Glance;
    use crate::log_record::LogRecord;

    fn log() -> LogId {
        LogId::new("kafka:\"a\\b\"/é")
    }

    proptest! {
        #[test]
        fn commands_name_every_letter_once_lie_in_its_partition_and_are_read_back(
            offsets in proptest::collection::vec(0_u64..5_000, 0..2_500),
            partitions in 1_u32..40,
            place in 0_u32..40,
            retry: bool,
        ) {
            let partition = Partition::new(place % partitions);
            let action = if retry { LetterAction::Retry } else { LetterAction::Discard };
            let all: Vec<Offset> = offsets.iter().copied().map(Offset::new).collect();
            let commands =
                LetterCommand::all(Uuid::from_u128(7), 5, action, (&log(), partition), partitions, all.clone());
            let mut named: Vec<Offset> = Vec::new();
            for command in &commands {
                prop_assert!(command.offsets.len() <= OFFSETS_MAX && command.is_about(&log(), partition));
                prop_assert_eq!(partition_for(key(command.key).as_bytes(), partitions), partition);
                let value = command.encode();
                prop_assert!(LetterCommand::is(&value));
                let Ok(LogRecord::Letters(read)) = LogRecord::decode(&value) else { panic!("no command") };
                prop_assert_eq!(&read, command);
                let glance = Glance::of(&value);
                prop_assert_eq!((glance.received_at_ms, glance.source_id), (Some(5), None));
                named.extend(&command.offsets);
            }
            let mut expected = all;
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(named, expected);
        }
    }

    #[test]
    fn a_damaged_command_is_refused() {
        let offsets = vec![Offset::new(1), Offset::new(2)];
        let of = (&log(), Partition::new(3));
        let [command] = &LetterCommand::all(Uuid::from_u128(7), 5, LetterAction::Retry, of, 8, offsets)[..]
        else {
            panic!("one is enough")
        };
        let value = String::from_utf8(command.encode()).unwrap();
        for (from, to, reason) in [
            ("[1,2]", "[2,1]", "`offsets`"),
            ("[1,2]", "[1,1]", "`offsets`"),
            ("[1,2]", "[-1]", "`offsets`"),
            ("[1,2]", "[1.5]", "`offsets`"),
            ("[1,2]", "7", "`offsets`"),
            ("\"retry\"", "\"forget\"", "`action`"),
            ("\"partition\":3", "\"partition\":-3", "`partition`"),
            ("\"partitions\":8", "\"partitions\":\"8\"", "`partitions`"),
        ] {
            let damaged = value.replace(from, to);
            assert_ne!(damaged, value, "{from}");
            let error = LogRecord::decode(damaged.as_bytes()).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(!command.is_about(&LogId::new("other"), Partition::new(3)));
        assert!(!command.is_about(&log(), Partition::new(4)));
        assert!(refusal(&command.encode()).is_some() && refusal(b"{}").is_none());
    }
}
