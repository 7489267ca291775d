//! Headers that many answers share.

use std::sync::Arc;

use axum::Router;
use axum::middleware::map_response;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Adds `headers` to every answer of the routes that `router` has so far, its fallback included, where the answer has
/// no header of the name.
pub fn add_missing<S: Clone + Send + Sync + 'static>(router: Router<S>, headers: HeaderMap) -> Router<S> {
    let headers = Arc::new(headers);
    router.layer(map_response(move |response| with_headers(response, Arc::clone(&headers))))
}

async fn with_headers(mut response: Response, headers: Arc<HeaderMap>) -> Response {
    for (name, value) in &*headers {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

/// The headers of Umami's `/api/*`: pages of every origin may send requests and read the answers. `max_age_s` is how
/// long a browser may keep the answer to a preflight.
pub fn cross_origin(max_age_s: u64) -> HeaderMap {
    let constant = HeaderValue::from_static;
    let pairs: [(HeaderName, HeaderValue); 6] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, constant("*")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, constant("*")),
        (header::ACCESS_CONTROL_ALLOW_METHODS, constant("GET, DELETE, POST, PUT")),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(max_age_s)),
        // Ours, not Umami's: the tracker keeps an event that it could not send, and sends it again after that time.
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, constant("Retry-After")),
        (header::CACHE_CONTROL, constant("no-cache")),
    ];
    HeaderMap::from_iter(pairs)
}

/// The header by which browsers use HTTPS only for this host, for two years.
pub fn https_only() -> HeaderMap {
    let value = HeaderValue::from_static("max-age=63072000; includeSubDomains; preload");
    HeaderMap::from_iter([(header::STRICT_TRANSPORT_SECURITY, value)])
}
