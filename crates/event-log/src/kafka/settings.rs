//! Checks a topic's settings against the guarantees: pure, from the settings in force to notes for the operator.

use std::collections::BTreeMap;

use crate::topic::{Concern, TopicNote};

/// The cluster's description of a topic.
#[derive(Debug, Clone)]
pub(super) struct Described {
    /// Settings in force, whether they are the topic's own or the broker's defaults; the reason, if the cluster does not
    /// let this client read them.
    pub settings: Result<BTreeMap<String, String>, String>,
    /// Number of partitions now.
    pub partitions: u32,
    /// Replicas of the partition with the fewest.
    pub replicas: u32,
}

/// Values that the notes compare with, and name in their commands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub brokers: &'a str,
    pub topic: &'a str,
    /// The largest record that the body limit allows.
    pub record_bytes_max: usize,
    /// Partitions over which records are spread; `None` if this process does not know.
    pub partitions: Option<u32>,
    /// Whether that number is about to grow: every collector knows that before the topic has new partitions.
    pub grows: bool,
}

/// A note for each property of the topic that weakens or breaks a guarantee, in the order of [`Concern`].
pub(super) fn judge(described: &Described, expected: Expected<'_>) -> Vec<TopicNote> {
    let mut notes = Vec::new();
    let topic = expected.topic;
    let alter = |setting: &str| {
        format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {topic} \
             --add-config {setting}",
            expected.brokers
        )
    };
    let mut note = |concern, text: String, remedy: Option<String>| {
        notes.push(TopicNote { concern, text, remedy });
    };
    match &described.settings {
        Err(reason) => note(
            Concern::SettingsUnreadable,
            format!(
                "the settings of the topic {topic} cannot be read ({reason}), so they are not checked: allow \
                 DescribeConfigs on the topic"
            ),
            Some(format!(
                "kafka-acls.sh --bootstrap-server {} --add --allow-principal User:… --operation DescribeConfigs \
                 --topic {topic}",
                expected.brokers
            )),
        ),
        Ok(settings) => {
            let text = |name: &str| settings.get(name).map(String::as_str).unwrap_or_default();
            let number = |name: &str| text(name).parse::<i64>().ok();
            let policy = text("cleanup.policy");
            let deletes = policy.split(',').any(|policy| policy.trim() == "delete");
            if policy.split(',').any(|policy| policy.trim() == "compact") {
                note(
                    Concern::CleanupPolicy,
                    format!(
                        "the topic {topic} has cleanup.policy={policy}: compaction keeps one event per visitor and \
                         removes the others, so nothing is accepted into it and nothing read from it"
                    ),
                    Some(alter("cleanup.policy=delete,retention.ms=-1,retention.bytes=-1")),
                );
            }
            if let Some(ms) = number("retention.ms").filter(|ms| *ms >= 0 && deletes) {
                note(
                    Concern::RetentionMs,
                    format!(
                        "the topic {topic} has retention.ms={ms} ({}): events that are older are removed, whether \
                         they were projected or not, and no replay brings them back",
                        duration(ms)
                    ),
                    Some(alter("retention.ms=-1")),
                );
            }
            if let Some(bytes) = number("retention.bytes").filter(|bytes| *bytes >= 0 && deletes) {
                note(
                    Concern::RetentionBytes,
                    format!(
                        "the topic {topic} has retention.bytes={bytes}: past that size of a partition its oldest \
                         events are removed, whether they were projected or not"
                    ),
                    Some(alter("retention.bytes=-1")),
                );
            }
            if let Some(bytes) = number("max.message.bytes")
                && bytes < expected.record_bytes_max as i64
            {
                note(
                    Concern::MaxMessageBytes,
                    format!(
                        "the topic {topic} has max.message.bytes={bytes}, less than the {} bytes of the largest \
                         request that ingest.body_bytes_max allows: larger events are answered 413",
                        expected.record_bytes_max
                    ),
                    Some(alter(&format!("max.message.bytes={}", super::MESSAGE_BYTES_MAX))),
                );
            }
            let in_sync = number("min.insync.replicas");
            if in_sync == Some(1) {
                note(
                    Concern::MinInsyncReplicas,
                    format!(
                        "the topic {topic} has min.insync.replicas=1: an event is acknowledged by one broker alone, \
                         and lost with it"
                    ),
                    (described.replicas > 1).then(|| alter("min.insync.replicas=2")),
                );
            }
            if let Some(in_sync) = in_sync.filter(|in_sync| *in_sync > i64::from(described.replicas)) {
                note(
                    Concern::TooFewReplicas,
                    format!(
                        "the topic {topic} has min.insync.replicas={in_sync} and {} replicas: no event can be \
                         acknowledged",
                        described.replicas
                    ),
                    Some(alter(&format!("min.insync.replicas={}", described.replicas))),
                );
            }
            if text("unclean.leader.election.enable") == "true" {
                note(
                    Concern::UncleanLeaderElection,
                    format!(
                        "the topic {topic} has unclean.leader.election.enable=true: a broker that lacks \
                         acknowledged events may become the leader, and they are lost"
                    ),
                    Some(alter("unclean.leader.election.enable=false")),
                );
            }
        }
    }
    if described.replicas == 1 {
        note(
            Concern::ReplicationFactor,
            format!("the topic {topic} has one replica: its events are lost with the disk of one broker"),
            Some(format!(
                "kafka-reassign-partitions.sh --bootstrap-server {} --execute --reassignment-json-file … (with \
                 three replicas for each partition)",
                expected.brokers
            )),
        );
    }
    let there = described.partitions;
    let used = expected.partitions.unwrap_or(there);
    if there > used && !expected.grows {
        note(
            Concern::Partitions,
            format!(
                "the topic {topic} has {there} partitions, and events are spread over {used} of them: other producers \
                 spread theirs over all, where the order of a session's events is not kept"
            ),
            Some(format!("dashi partitions grow --to {there}")),
        );
    } else if there < used {
        note(
            Concern::Partitions,
            format!("the topic {topic} has {there} partitions of the {used} over which events are spread"),
            None,
        );
    }
    notes
}

/// Milliseconds in a unit for people.
fn duration(ms: i64) -> String {
    match ms {
        ms if ms >= 2 * 86_400_000 => format!("{} days", ms / 86_400_000),
        ms if ms >= 2 * 3_600_000 => format!("{} hours", ms / 3_600_000),
        ms => format!("{} s", ms / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Expected<'_> = Expected {
        brokers: "k1:9092",
        topic: "events",
        record_bytes_max: 11_000_000,
        partitions: Some(8),
        grows: false,
    };

    fn described(settings: &[(&str, &str)]) -> Described {
        let good = [
            ("cleanup.policy", "delete"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("max.message.bytes", "12582912"),
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
        ];
        let all = good.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Described { settings: Ok(all.collect()), partitions: 8, replicas: 3 }
    }

    fn concerns(described: &Described) -> Vec<Concern> {
        judge(described, EXPECTED).into_iter().map(|note| note.concern).collect()
    }

    #[test]
    fn a_topic_as_it_should_be_has_no_note() {
        assert_eq!(concerns(&described(&[])), []);
    }

    #[test]
    fn each_setting_has_its_note() {
        for (name, value, concern) in [
            ("cleanup.policy", "compact", Concern::CleanupPolicy),
            ("cleanup.policy", "compact,delete", Concern::CleanupPolicy),
            ("cleanup.policy", "delete, compact", Concern::CleanupPolicy),
            ("retention.ms", "604800000", Concern::RetentionMs),
            ("retention.ms", "0", Concern::RetentionMs),
            ("retention.bytes", "1073741824", Concern::RetentionBytes),
            ("max.message.bytes", "1048588", Concern::MaxMessageBytes),
            ("min.insync.replicas", "1", Concern::MinInsyncReplicas),
            ("min.insync.replicas", "4", Concern::TooFewReplicas),
            ("unclean.leader.election.enable", "true", Concern::UncleanLeaderElection),
        ] {
            assert_eq!(concerns(&described(&[(name, value)])), [concern], "{name}={value}");
        }
    }

    #[test]
    fn replicas_partitions_and_unreadable_settings_have_theirs() {
        let one = Described { replicas: 1, ..described(&[("min.insync.replicas", "1")]) };
        assert_eq!(concerns(&one), [Concern::MinInsyncReplicas, Concern::ReplicationFactor]);
        assert_eq!(concerns(&Described { partitions: 9, ..described(&[]) }), [Concern::Partitions]);
        assert_eq!(concerns(&Described { partitions: 7, ..described(&[]) }), [Concern::Partitions]);
        let grows = Expected { grows: true, ..EXPECTED };
        assert_eq!(judge(&Described { partitions: 9, ..described(&[]) }, grows), []);
        let unknown = Expected { partitions: None, ..EXPECTED };
        assert_eq!(judge(&Described { partitions: 9, ..described(&[]) }, unknown), []);
        let shut = Described { settings: Err("not authorized".to_owned()), ..described(&[]) };
        assert_eq!(concerns(&shut), [Concern::SettingsUnreadable]);
    }

    #[test]
    fn only_compaction_is_refused_and_its_command_names_topic_and_broker() {
        let notes = judge(&described(&[("cleanup.policy", "compact"), ("retention.ms", "5")]), EXPECTED);
        // retention.ms has no effect on a compacted topic: it holds where segments are deleted.
        assert_eq!(notes.len(), 1);
        assert!(notes[0].concern.is_refusal());
        let remedy = notes[0].remedy.clone().expect("a command");
        assert!(remedy.starts_with(
            "kafka-configs.sh --bootstrap-server k1:9092 --alter --entity-type topics --entity-name events"
        ));
    }
}
