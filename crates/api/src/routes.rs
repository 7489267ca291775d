//! The paths of the read side, and their handlers.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

use crate::answer::Refusal;
use crate::api::Api;
use crate::{read, stream};

const PROFILES_PATH: &str = "/api/websites/{website}/profiles";
const PROFILE_PATH: &str = "/api/websites/{website}/profiles/{person}";
const JOURNEY_PATH: &str = "/api/websites/{website}/profiles/{person}/journey";
const SESSION_PATH: &str = "/api/websites/{website}/sessions/{session}";
const STREAM_PATH: &str = "/api/websites/{website}/sessions/{session}/stream";

/// All paths of the read side; a name in braces stands for a segment.
pub const PATHS: [&str; 5] = [PROFILES_PATH, PROFILE_PATH, JOURNEY_PATH, SESSION_PATH, STREAM_PATH];

impl Api {
    /// The routes. They need a [`dashi_http::Outgoing`] among a request's extensions, as the server puts it. Pages of
    /// other origins may not read the answers.
    pub fn router(&self) -> Router {
        let router = Router::new()
            .route(PROFILES_PATH, get(read::profiles))
            .route(PROFILE_PATH, get(read::profile))
            .route(JOURNEY_PATH, get(read::journey))
            .route(SESSION_PATH, get(read::session))
            .route(STREAM_PATH, get(stream::open))
            .method_not_allowed_fallback(no_such_method);
        let router = match self.0.settings.base_path.as_str() {
            "" => router,
            base_path => Router::new().without_v07_checks().nest(base_path, router),
        };
        router.with_state(self.clone())
    }
}

async fn no_such_method(State(api): State<Api>) -> Response {
    api.finish(Err(Refusal::Method))
}
