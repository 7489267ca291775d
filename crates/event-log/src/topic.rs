//! Notes for the operator about the topic behind a log.

/// Subject of a note; the label of its metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Concern {
    /// The topic was deleted and created again: it holds another log.
    Replaced,
    /// The topic is not there.
    Absent,
    /// The topic is compacted: refused.
    CleanupPolicy,
    /// Events are removed by age.
    RetentionMs,
    /// Events are removed by size.
    RetentionBytes,
    /// The topic takes less than the largest request.
    MaxMessageBytes,
    /// One broker's acknowledgement is enough.
    MinInsyncReplicas,
    /// No event can be acknowledged.
    TooFewReplicas,
    /// A broker that lacks events may become leader.
    UncleanLeaderElection,
    /// There is one copy.
    ReplicationFactor,
    /// The cluster does not let this client read the topic's settings.
    SettingsUnreadable,
    /// The topic has more partitions, or fewer, than those over which records are spread.
    Partitions,
}

impl Concern {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Replaced,
        Self::Absent,
        Self::CleanupPolicy,
        Self::RetentionMs,
        Self::RetentionBytes,
        Self::MaxMessageBytes,
        Self::MinInsyncReplicas,
        Self::TooFewReplicas,
        Self::UncleanLeaderElection,
        Self::ReplicationFactor,
        Self::SettingsUnreadable,
        Self::Partitions,
    ];

    /// Its name in metrics and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Absent => "absent",
            Self::CleanupPolicy => "cleanup_policy",
            Self::RetentionMs => "retention_ms",
            Self::RetentionBytes => "retention_bytes",
            Self::MaxMessageBytes => "max_message_bytes",
            Self::MinInsyncReplicas => "min_insync_replicas",
            Self::TooFewReplicas => "too_few_replicas",
            Self::UncleanLeaderElection => "unclean_leader_election",
            Self::ReplicationFactor => "replication_factor",
            Self::SettingsUnreadable => "settings_unreadable",
            Self::Partitions => "partitions",
        }
    }

    /// Whether the log refuses appends and reads while this lasts. All other concerns are warnings.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::CleanupPolicy)
    }
}

/// A property of the topic that weakens or breaks a guarantee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNote {
    /// Its subject; there is at most one note per subject.
    pub concern: Concern,
    /// The state of the topic and its consequence.
    pub text: String,
    /// The command that corrects it, if there is one.
    pub remedy: Option<String>,
}

impl std::fmt::Display for TopicNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{}; to correct it: {remedy}", self.text),
            None => f.write_str(&self.text),
        }
    }
}
