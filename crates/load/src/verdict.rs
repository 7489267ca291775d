//! Acknowledgements: which events of a request its answer acknowledges.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;

/// The events of a request that its answer acknowledges, and the cache token in it.
#[derive(Debug)]
pub(crate) enum Verdict<'a> {
    Refused,
    Single { token: Option<Cow<'a, str>> },
    Batch { refused: HashSet<usize>, token: Cow<'a, str> },
}

#[derive(Deserialize)]
struct SingleAnswer<'a> {
    #[serde(borrow, rename = "sessionId")]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cache: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct BatchAnswer<'a> {
    size: usize,
    errors: usize,
    details: Vec<Refusal>,
    #[serde(borrow)]
    cache: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Refusal {
    index: usize,
}

impl<'a> Verdict<'a> {
    /// `events` is the number of events in the request; one means that it was no batch. An answer whose numbers do
    /// not add up acknowledges nothing, nor does one to a batch that has no token: each event that is taken gives one, and
    /// robots, whose events are dropped, count as processed.
    pub(crate) fn read(status: u16, body: &'a [u8], events: usize) -> Self {
        if status != 200 {
            return Self::Refused;
        }
        if events == 1 {
            return match serde_json::from_slice(body) {
                Ok(SingleAnswer { session_id: Some(_), cache }) => Self::Single { token: cache },
                _ => Self::Refused,
            };
        }
        match serde_json::from_slice(body) {
            Ok(BatchAnswer { size, errors, details, cache: Some(token) })
                if size == events && errors == details.len() =>
            {
                Self::Batch { refused: details.into_iter().map(|refusal| refusal.index).collect(), token }
            }
            _ => Self::Refused,
        }
    }

    pub(crate) fn acknowledges(&self, at: usize) -> bool {
        match self {
            Self::Refused => false,
            Self::Single { .. } => true,
            Self::Batch { refused, .. } => !refused.contains(&at),
        }
    }

    /// The token, if it can stand in a header as it is.
    pub(crate) fn token(&self) -> Option<&str> {
        let token = match self {
            Self::Refused => None,
            Self::Single { token } => token.as_deref(),
            Self::Batch { token, .. } => Some(token.as_ref()),
        };
        token.filter(|token| {
            (1..=4_096).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(status: u16, body: &str, events: usize) -> Vec<usize> {
        let verdict = Verdict::read(status, body.as_bytes(), events);
        (0..events).filter(|at| verdict.acknowledges(*at)).collect()
    }

    const NONE: [usize; 0] = [];

    #[test]
    fn only_a_200_with_a_session_acknowledges_an_event() {
        let answer = r#"{"cache":"a.b.c","sessionId":"s","visitId":"v"}"#;
        assert_eq!(acknowledged(200, answer, 1), [0]);
        assert_eq!(acknowledged(503, answer, 1), NONE);
        assert_eq!(acknowledged(202, answer, 1), NONE);
        assert_eq!(acknowledged(200, r#"{"beep":"boop"}"#, 1), NONE);
        assert_eq!(acknowledged(200, &answer[..30], 1), NONE);
        assert_eq!(acknowledged(200, r#"{"sessionId":null}"#, 1), NONE);
    }

    #[test]
    fn a_batch_acknowledges_the_elements_without_errors() {
        let answer = r#"{"size":3,"processed":2,"errors":1,"details":[{"index":1,"response":{"error":{}}}],"cache":"a.b.c"}"#;
        assert_eq!(acknowledged(200, answer, 3), [0, 2]);
        assert_eq!(acknowledged(200, answer, 4), NONE);
        assert_eq!(acknowledged(200, &answer.replace("\"errors\":1", "\"errors\":2"), 3), NONE);
        assert_eq!(acknowledged(400, answer, 3), NONE);
        let without_token = r#"{"size":2,"processed":2,"errors":0,"details":[]}"#;
        assert_eq!(acknowledged(200, without_token, 2), NONE, "two robots");
    }

    #[test]
    fn a_token_that_would_break_the_header_is_not_used() {
        let token = |cache: &str| {
            let body = format!(r#"{{"sessionId":"s","cache":{cache}}}"#);
            Verdict::read(200, body.as_bytes(), 1).token().map(str::to_owned)
        };
        assert_eq!(token("\"a.b-c_d\"").as_deref(), Some("a.b-c_d"));
        assert_eq!(token(r#""a\r\nx: y""#), None);
        assert_eq!(token("\"\""), None);
        assert_eq!(token("null"), None);
    }
}
