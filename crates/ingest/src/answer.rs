//! What clients read: Umami's envelopes to the letter, less its leak of exceptions.

use axum::body::Body;
use axum::response::Response;
use dashi_domain::json;
use dashi_domain::schema::SchemaError;
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

/// Why an event was not taken.
#[derive(Debug)]
pub enum Rejection {
    /// The body is not what the endpoint takes.
    Schema(SchemaError),
    /// There is no such website.
    UnknownWebsite,
    /// A recording came without a token.
    NoToken,
    /// A recording's token is not ours, or names no session and visit.
    BadToken,
    /// The client's address is blocked.
    Blocked,
    /// The body, or the record it makes, is larger than we take.
    TooLarge,
    /// The body did not arrive in time.
    TooSlow,
    /// It cannot be made durable now; the client should come back.
    Unavailable,
}

impl Rejection {
    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Schema(_) | Self::UnknownWebsite | Self::NoToken | Self::BadToken => {
                StatusCode::BAD_REQUEST
            }
            Self::Blocked => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The whole body of the answer.
    pub fn to_json(&self) -> String {
        let (message, code) = match self {
            Self::Schema(error) => return error.to_json(),
            Self::UnknownWebsite => ("Website not found.", "bad-request"),
            Self::NoToken => ("Missing session token.", "bad-request"),
            Self::BadToken => ("Invalid session token.", "bad-request"),
            Self::Blocked => ("Forbidden", "forbidden"),
            Self::TooLarge => ("Payload too large", "payload-too-large"),
            Self::TooSlow => ("Request timeout", "request-timeout"),
            Self::Unavailable => ("Service unavailable", "service-unavailable"),
        };
        let status = self.status().as_u16();
        format!(r#"{{"error":{{"message":"{message}","code":"{code}","status":{status}}}}}"#)
    }

    /// The answer to a whole request.
    pub fn into_response(self, retry_after_s: u64) -> Response {
        let mut response = json_response(self.status(), self.to_json());
        if matches!(self, Self::Unavailable) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        if matches!(self, Self::TooLarge | Self::TooSlow) {
            // What may be left of the body is not read, so the connection cannot serve another request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An event that was taken, or a bot's that was not wanted: answered 200 both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Durable in the log.
    Event {
        /// The token for the client's next request.
        cache: String,
        /// The session.
        session_id: Uuid,
        /// The visit.
        visit_id: Uuid,
    },
    /// Nothing was stored.
    Bot,
}

impl Accepted {
    /// The whole body of the answer to `/api/send`.
    pub fn to_json(&self) -> String {
        match self {
            Self::Event { cache, session_id, visit_id } => {
                format!(r#"{{"cache":"{cache}","sessionId":"{session_id}","visitId":"{visit_id}"}}"#)
            }
            Self::Bot => r#"{"beep":"boop"}"#.to_owned(),
        }
    }
}

/// What became of a chunk that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Durable in the log.
    Stored,
    /// It held no event.
    Empty,
    /// The website takes no recordings.
    Disabled,
    /// A bot's, which is not wanted.
    Bot,
}

impl Taken {
    /// The whole body of the answer.
    pub fn to_json(self) -> &'static str {
        match self {
            Self::Stored | Self::Empty => r#"{"ok":true}"#,
            Self::Disabled => r#"{"ok":false,"reason":"replay_disabled"}"#,
            Self::Bot => r#"{"beep":"boop"}"#,
        }
    }
}

/// The answer to `/api/batch`: how many, how many failed and why, and the first token.
pub fn batch_json(outcomes: &[Result<Accepted, Rejection>]) -> String {
    let errors = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let mut out = format!(
        r#"{{"size":{},"processed":{},"errors":{errors},"details":["#,
        outcomes.len(),
        outcomes.len() - errors
    );
    let rejected =
        outcomes.iter().enumerate().filter_map(|(index, outcome)| Some((index, outcome.as_ref().err()?)));
    for (place, (index, rejection)) in rejected.enumerate() {
        if place > 0 {
            out.push(',');
        }
        out.push_str(&format!(r#"{{"index":{index},"response":{}}}"#, rejection.to_json()));
    }
    out.push(']');
    let cache = outcomes.iter().find_map(|outcome| match outcome {
        Ok(Accepted::Event { cache, .. }) => Some(cache),
        _ => None,
    });
    match cache {
        Some(cache) => {
            out.push_str(",\"cache\":");
            json::write_string(cache, &mut out);
        }
        // Umami takes the first answer without an error and keeps its absent token: a bot's has none.
        None if outcomes.iter().any(Result::is_ok) => {}
        None => out.push_str(",\"cache\":null"),
    }
    out.push('}');
    out
}

/// A JSON answer with `Content-Type: application/json`, without a character set, as Umami's.
pub fn json_response(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// There is nothing at this path.
pub fn not_found() -> Response {
    let body = r#"{"error":{"message":"Not found","code":"not-found","status":404}}"#;
    json_response(StatusCode::NOT_FOUND, body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(cache: &str) -> Result<Accepted, Rejection> {
        let (session_id, visit_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        Ok(Accepted::Event { cache: cache.to_owned(), session_id, visit_id })
    }

    #[test]
    fn a_batchs_token_is_the_first_one_null_without_success_and_absent_after_bots() {
        assert_eq!(batch_json(&[]), r#"{"size":0,"processed":0,"errors":0,"details":[],"cache":null}"#);
        assert_eq!(
            batch_json(&[Err(Rejection::UnknownWebsite), Ok(Accepted::Bot), event("a"), event("b")]),
            concat!(
                r#"{"size":4,"processed":3,"errors":1,"details":[{"index":0,"response":"#,
                r#"{"error":{"message":"Website not found.","code":"bad-request","status":400}}}],"cache":"a"}"#
            )
        );
        assert_eq!(batch_json(&[Ok(Accepted::Bot)]), r#"{"size":1,"processed":1,"errors":0,"details":[]}"#);
        assert!(batch_json(&[Err(Rejection::Blocked)]).ends_with(r#""cache":null}"#));
    }
}
