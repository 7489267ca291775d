//! What an operator is to know of the topic behind a log.

/// What a note is about; the label of its metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Concern {
    /// The topic was deleted and created again: it is another log.
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
    /// The settings are not for this client to read.
    SettingsUnreadable,
    /// The number of partitions has changed under this process.
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

    /// Whether the log takes and gives nothing while it lasts. All others are warnings.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::CleanupPolicy)
    }
}

/// Something about the topic that is not as the guarantees need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNote {
    /// What it is about; there is at most one note of each.
    pub concern: Concern,
    /// What is so and what follows from it.
    pub text: String,
    /// The command that mends it, if one does.
    pub remedy: Option<String>,
}

impl std::fmt::Display for TopicNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.remedy {
            Some(remedy) => write!(f, "{}; to mend it: {remedy}", self.text),
            None => f.write_str(&self.text),
        }
    }
}
