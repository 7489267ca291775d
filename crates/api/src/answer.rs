//! Answers: JSON with a validator, and refusals in Umami's envelope.

use std::borrow::Cow;

use axum::response::Response;
use dashi_domain::json::write_string;
use dashi_http::answer::{self, error_json};
use dashi_http::conditional::if_none_match;
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// The reason why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A part of the path or the query is invalid; the text names it.
    Bad(Cow<'static, str>),
    /// No key, or an unknown one.
    NoKey,
    /// There is no such website, person or session.
    NotFound,
    /// The method is neither GET nor HEAD.
    Method,
    /// The store does not answer, or no slot is free; the client should ask again later.
    Unavailable,
    /// The store was stopped, since a question took longer than it may: ask for less.
    TooLong,
}

impl Refusal {
    /// A part of the path or the query is invalid.
    pub const fn bad(text: &'static str) -> Self {
        Self::Bad(Cow::Borrowed(text))
    }

    /// The answer. `retry_after_s` goes with [`Refusal::Unavailable`].
    pub fn into_response(self, retry_after_s: u64) -> Response {
        let (status, message, code) = match &self {
            Self::Bad(message) => (StatusCode::BAD_REQUEST, &**message, "bad-request"),
            Self::NoKey => (StatusCode::UNAUTHORIZED, "Unauthorized", "unauthorized"),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found", "not-found"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", "method-not-allowed"),
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", "service-unavailable")
            }
            Self::TooLong => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the answer took longer than api.question_timeout_ms: ask for a shorter time",
                "service-unavailable",
            ),
        };
        // In quotes, which the envelope has already.
        let mut escaped = String::new();
        write_string(message, &mut escaped);
        let mut response = json(status, error_json(status, &escaped[1..escaped.len() - 1], code));
        let headers = response.headers_mut();
        match self {
            Self::NoKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Unavailable | Self::TooLong => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
            }
            Self::Bad(_) | Self::NotFound | Self::Method => {}
        }
        response
    }
}

/// A JSON answer. It is about people, so only the client itself may keep it, and must ask each time whether it still
/// holds.
pub fn json(status: StatusCode, body: String) -> Response {
    let mut response = answer::json(status, body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}

/// 200 with a validator, or 304 to a client that has this version. `tag` is printable ASCII without quotes.
pub fn validated(request: &HeaderMap, tag: &str, body: String) -> Response {
    let tag = format!("\"{tag}\"");
    let mut response = if if_none_match(request, &tag) == Some(true) {
        let mut response = json(StatusCode::NOT_MODIFIED, String::new());
        response.headers_mut().remove(header::CONTENT_TYPE);
        response
    } else {
        json(StatusCode::OK, body)
    };
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_tag_gets_no_body() {
        for (known, status) in [
            (None, 200),
            (Some("\"1-a+b\""), 304),
            (Some("W/\"1-a+b\""), 304),
            (Some("\"x\", \"1-a+b\""), 304),
            (Some("*"), 304),
            (Some("1-a+b"), 200),
            (Some("\"1-a\""), 200),
            (Some(""), 200),
        ] {
            let mut request = HeaderMap::new();
            if let Some(known) = known {
                request.insert(header::IF_NONE_MATCH, HeaderValue::from_static(known));
            }
            let response = validated(&request, "1-a+b", "{}".to_owned());
            assert_eq!(response.status(), status, "{known:?}");
            assert_eq!(response.headers()[header::ETAG], "\"1-a+b\"");
            assert_eq!(response.headers().contains_key(header::CONTENT_TYPE), status == 200, "{known:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do_next() {
        let refused = |refusal: Refusal| {
            let response = refusal.into_response(7);
            let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            (response.status().as_u16(), header(header::WWW_AUTHENTICATE), header(header::RETRY_AFTER))
        };
        assert_eq!(refused(Refusal::bad("x")), (400, None, None));
        assert_eq!(refused(Refusal::TooLong), (503, None, Some("7".to_owned())));
        assert_eq!(refused(Refusal::NoKey), (401, Some("Bearer".to_owned()), None));
        assert_eq!(refused(Refusal::NotFound), (404, None, None));
        assert_eq!(refused(Refusal::Method), (405, None, None));
        assert_eq!(refused(Refusal::Unavailable), (503, None, Some("7".to_owned())));
    }
}
