//! The answers that clients read: Umami's envelopes to the letter, but without its leak of exceptions.

use axum::response::Response;
use dashi_domain::json::write_string;
use dashi_domain::schema::SchemaError;
use dashi_domain::submission::{BATCH_ERRORS_MAX, BatchError};
use dashi_http::answer::{error_json, json};
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use crate::frame::PartOutcome;
use crate::metrics::Counted;

/// Bytes of a body of `/api/record`, at most, from Umami 3.2 on.
pub const RECORD_BYTES_MAX: usize = 1_000_000;

/// Why an event was not taken.
#[derive(Debug)]
pub enum Rejection {
    /// The body does not have the endpoint's schema.
    Schema(SchemaError),
    /// There is no such website.
    UnknownWebsite,
    /// A recording came without a token.
    NoToken,
    /// A recording's token is not ours, or names no session and visit.
    BadToken,
    /// The client's address is blocked.
    Blocked,
    /// The body is larger than Umami takes of a recorder, 1,000,000 bytes.
    RecordTooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The body, or the record it makes, is larger than we take.
    TooLarge,
    /// The batch has more elements than we take.
    TooMany {
        /// The most that it may have.
        max: usize,
    },
    /// The body did not arrive in time.
    TooSlow,
    /// The bytes of the body are not valid HTTP.
    Malformed,
    /// The client went away before its request was whole. Nobody reads the answer.
    ClientGone,
    /// There is no link or pixel of this name.
    NoSuchSlug,
    /// It cannot be made durable now; the client should send it again later.
    Unavailable,
    /// The block list has it.
    Listed(Listed),
    /// It exceeds a limit of its sender.
    Limited {
        /// The limit.
        limit: Limit,
        /// After how many seconds it fits.
        retry_after_s: u64,
    },
    /// The backlog of its partition is too old.
    Shed {
        /// After how many seconds the client should send it again.
        retry_after_s: u64,
    },
}

/// The kind of entry by which the block list has an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Its website, link or pixel.
    Website,
    /// Its client's address, or the one that its payload names.
    Address,
    /// Its distinct id.
    DistinctId,
}

/// A limit of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Events per second of a website, link or pixel.
    WebsiteRate,
    /// Events of a website, link or pixel by the day.
    WebsiteDay,
    /// Events per second of an address.
    AddressRate,
    /// Events of an address by the day.
    AddressDay,
}

impl Rejection {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Schema(_)
            | Self::UnknownWebsite
            | Self::NoToken
            | Self::BadToken
            | Self::Malformed
            | Self::ClientGone => StatusCode::BAD_REQUEST,
            Self::Blocked | Self::Listed(_) => StatusCode::FORBIDDEN,
            Self::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NoSuchSlug => StatusCode::NOT_FOUND,
            Self::TooLarge | Self::TooMany { .. } | Self::RecordTooLarge { .. } => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Unavailable | Self::Shed { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The whole body of the answer.
    pub fn to_json(&self) -> String {
        let too_many;
        let (message, code) = match self {
            Self::Schema(error) => return error.to_json(),
            Self::RecordTooLarge { bytes } => {
                return format!(
                    r#"{{"error":{{"message":"Payload too large","code":"payload-too-large","status":413,"reason":"payload_too_large","maxBytes":{RECORD_BYTES_MAX},"size":{bytes}}}}}"#
                );
            }
            Self::TooMany { max } => {
                too_many = format!("A batch has at most {max} elements: send several batches");
                (too_many.as_str(), "payload-too-large")
            }
            Self::Malformed | Self::ClientGone => ("The body is not valid HTTP.", "bad-request"),
            Self::NoSuchSlug => ("Not found", "not-found"),
            Self::UnknownWebsite => ("Website not found.", "bad-request"),
            Self::NoToken => ("Missing session token.", "bad-request"),
            Self::BadToken => ("Invalid session token.", "bad-request"),
            Self::Blocked | Self::Listed(_) => ("Forbidden", "forbidden"),
            Self::Limited { .. } => ("Too many requests", "too-many-requests"),
            Self::TooLarge => ("Payload too large", "payload-too-large"),
            Self::TooSlow => ("Request timeout", "request-timeout"),
            Self::Unavailable | Self::Shed { .. } => ("Service unavailable", "service-unavailable"),
        };
        error_json(self.status(), message, code)
    }

    /// The name under which it is counted.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Schema(_) => "invalid",
            Self::UnknownWebsite => "unknown_website",
            Self::NoToken | Self::BadToken => "bad_token",
            Self::Blocked => "blocked",
            Self::TooLarge | Self::RecordTooLarge { .. } => "too_large",
            Self::TooMany { .. } => "too_many",
            Self::TooSlow => "too_slow",
            Self::Malformed => "malformed",
            Self::ClientGone => "client_gone",
            Self::NoSuchSlug => "not_found",
            Self::Unavailable => "unavailable",
            Self::Listed(Listed::Website) => "listed_website",
            Self::Listed(Listed::Address) => "listed_address",
            Self::Listed(Listed::DistinctId) => "listed_distinct_id",
            Self::Limited { limit: Limit::WebsiteRate, .. } => "limited_website_rate",
            Self::Limited { limit: Limit::WebsiteDay, .. } => "limited_website_day",
            Self::Limited { limit: Limit::AddressRate, .. } => "limited_address_rate",
            Self::Limited { limit: Limit::AddressDay, .. } => "limited_address_day",
            Self::Shed { .. } => "shed",
        }
    }

    /// The time after which it may be sent again, in seconds, if this rejection has one of its own.
    pub fn own_retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Limited { retry_after_s, .. } | Self::Shed { retry_after_s } => Some(*retry_after_s),
            _ => None,
        }
    }

    /// The answer to a whole request.
    pub fn into_response(self, retry_after_s: u64) -> Response {
        let mut response = json(self.status(), self.to_json());
        let own = self.own_retry_after_s();
        if let Some(after_s) = own.or(matches!(self, Self::Unavailable).then_some(retry_after_s)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after_s));
        }
        if matches!(self, Self::TooLarge | Self::TooSlow | Self::Malformed | Self::ClientGone) {
            // The rest of the body is not read, so the connection cannot serve another request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<BatchError> for Rejection {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Schema(error) => Self::Schema(error),
            BatchError::TooMany { max } => Self::TooMany { max },
        }
    }
}

/// The answer to an event that is durable in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The token for the client's next request.
    pub cache: String,
    /// The session.
    pub session_id: Uuid,
    /// The visit.
    pub visit_id: Uuid,
}

impl Accepted {
    /// The whole body of the answer to `/api/send`.
    pub fn to_json(&self) -> String {
        let Self { cache, session_id, visit_id } = self;
        format!(r#"{{"cache":"{cache}","sessionId":"{session_id}","visitId":"{visit_id}"}}"#)
    }
}

/// A visitor who is ignored: the answer is 200 without a token, and nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// A bot.
    Bot,
    /// A visitor whose address the website blocks. As in Umami, the answer is that to a bot, so that the visitor does
    /// not notice (docs/umami-contract.md §7.6).
    BlockedByWebsite,
}

/// The whole body of the answer to an ignored visitor.
pub const IGNORED_JSON: &str = r#"{"beep":"boop"}"#;

impl Counted for Ignored {
    fn label(&self) -> &'static str {
        match self {
            Self::Bot => "bot",
            Self::BlockedByWebsite => "blocked_by_website",
        }
    }
}

/// A chunk that was not refused, and nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unstored {
    /// It held no event.
    Empty,
    /// The website has turned it off.
    Disabled(Disabled),
    /// Its visitor is ignored.
    Ignored(Ignored),
}

/// The whole body of the answer to a chunk that is durable in the log.
pub const CHUNK_JSON: &str = r#"{"ok":true}"#;

impl Unstored {
    /// The whole body of the answer.
    pub fn to_json(self) -> &'static str {
        match self {
            Self::Empty => CHUNK_JSON,
            Self::Disabled(Disabled::Recorder) => r#"{"ok":false,"reason":"recorder_disabled"}"#,
            Self::Disabled(Disabled::Recordings) => r#"{"ok":false,"reason":"replay_disabled"}"#,
            Self::Disabled(Disabled::Heatmaps) => r#"{"ok":false,"reason":"heatmap_disabled"}"#,
            Self::Ignored(_) => IGNORED_JSON,
        }
    }
}

impl Counted for Unstored {
    fn label(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Disabled(disabled) => disabled.reason(),
            Self::Ignored(ignored) => ignored.label(),
        }
    }
}

/// A feature of recorders that a website has turned off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disabled {
    /// The recorder as a whole.
    Recorder,
    /// Recordings.
    Recordings,
    /// Heatmaps.
    Heatmaps,
}

impl Disabled {
    /// The reason that the recorder reads.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Recorder => "recorder_disabled",
            Self::Recordings => "replay_disabled",
            Self::Heatmaps => "heatmap_disabled",
        }
    }
}

/// The answer to `/api/batch`: the number of elements, how many of them failed and why, and the first token. The first
/// 100 failures are spelled out; the others are counted in `detailsOmitted`, a key that Umami does not have.
pub fn batch_json(outcomes: &[PartOutcome<Accepted, Ignored>]) -> String {
    let rejected = outcomes.iter().enumerate().filter_map(|(index, outcome)| match outcome {
        PartOutcome::Refused(rejection) => Some((index, rejection)),
        _ => None,
    });
    let errors = rejected.clone().count();
    let mut out = format!(
        r#"{{"size":{},"processed":{},"errors":{errors},"details":["#,
        outcomes.len(),
        outcomes.len() - errors
    );
    for (position, (index, rejection)) in rejected.take(BATCH_ERRORS_MAX).enumerate() {
        if position > 0 {
            out.push(',');
        }
        out.push_str(&format!(r#"{{"index":{index},"response":{}}}"#, rejection.to_json()));
    }
    out.push(']');
    if errors > BATCH_ERRORS_MAX {
        out.push_str(&format!(r#","detailsOmitted":{}"#, errors - BATCH_ERRORS_MAX));
    }
    let cache = outcomes.iter().find_map(|outcome| match outcome {
        PartOutcome::Stored(accepted) => Some(&accepted.cache),
        _ => None,
    });
    match cache {
        Some(cache) => {
            out.push_str(",\"cache\":");
            write_string(cache, &mut out);
        }
        // Umami takes the first answer without an error and keeps its absent token: a bot's has none.
        None if errors < outcomes.len() => {}
        None => out.push_str(",\"cache\":null"),
    }
    out.push('}');
    out
}

/// The answer of a path that nothing is at.
pub fn not_found() -> Response {
    json(StatusCode::NOT_FOUND, error_json(StatusCode::NOT_FOUND, "Not found", "not-found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(cache: &str) -> PartOutcome<Accepted, Ignored> {
        let (session_id, visit_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        PartOutcome::Stored(Accepted { cache: cache.to_owned(), session_id, visit_id })
    }

    #[test]
    fn a_batchs_token_is_the_first_one_null_without_success_and_absent_after_bots() {
        let (bot, unknown) =
            (|| PartOutcome::Answered(Ignored::Bot), || PartOutcome::Refused(Rejection::UnknownWebsite));
        assert_eq!(batch_json(&[]), r#"{"size":0,"processed":0,"errors":0,"details":[],"cache":null}"#);
        assert_eq!(
            batch_json(&[unknown(), bot(), event("a"), event("b")]),
            concat!(
                r#"{"size":4,"processed":3,"errors":1,"details":[{"index":0,"response":"#,
                r#"{"error":{"message":"Website not found.","code":"bad-request","status":400}}}],"cache":"a"}"#
            )
        );
        assert_eq!(batch_json(&[bot()]), r#"{"size":1,"processed":1,"errors":0,"details":[]}"#);
        assert!(batch_json(&[unknown()]).ends_with(r#""cache":null}"#));
    }

    #[test]
    fn the_answer_to_a_batch_spells_out_a_hundred_failures_and_counts_the_others() {
        let failures = |count| -> Vec<_> {
            std::iter::repeat_with(|| PartOutcome::Refused(Rejection::Blocked)).take(count).collect()
        };
        assert!(!batch_json(&failures(100)).contains("detailsOmitted"));
        let answer = batch_json(&failures(5_000));
        assert_eq!(answer.matches("Forbidden").count(), 100);
        assert!(answer.contains(r#""errors":5000,"#), "{answer}");
        assert!(answer.ends_with(r#"],"detailsOmitted":4900,"cache":null}"#), "{answer}");
    }
}
