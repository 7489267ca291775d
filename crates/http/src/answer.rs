//! JSON answers, and the envelope of errors that Umami's clients read.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

/// A JSON answer with `Content-Type: application/json`, without a character set, as Umami's.
pub fn json(status: StatusCode, body: String) -> Response {
    let mut response = empty(status);
    *response.body_mut() = Body::from(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The body of an error in Umami's envelope. `message` and `code` are JSON text without quotes or backslashes.
pub fn error_json(status: StatusCode, message: &str, code: &str) -> String {
    let status = status.as_u16();
    format!(r#"{{"error":{{"message":"{message}","code":"{code}","status":{status}}}}}"#)
}
