//! The paths of the read side, and their handlers.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

use dashi_http::headers;

use crate::answer::Refusal;
use crate::api::Api;
use crate::{me, read, stream, umami};

const PROFILES_PATH: &str = "/api/websites/{website}/profiles";
const PROFILE_PATH: &str = "/api/websites/{website}/profiles/{person}";
const JOURNEY_PATH: &str = "/api/websites/{website}/profiles/{person}/journey";
const STREAM_PATH: &str = "/api/websites/{website}/sessions/{session}/stream";

const ME_PATH: &str = "/api/me";
const FOLLOW_PATH: &str = "/api/me/stream";

/// The paths of profiles, which need a key or a signature; a name in braces stands for a segment.
const PROFILE_PATHS: [&str; 6] =
    [PROFILES_PATH, PROFILE_PATH, JOURNEY_PATH, STREAM_PATH, ME_PATH, FOLLOW_PATH];

/// All paths of the read side.
pub const PATHS: [&str; PROFILE_PATHS.len() + umami::ROUTES.len()] = {
    let mut paths = [""; PROFILE_PATHS.len() + umami::ROUTES.len()];
    let mut at = 0;
    while at < paths.len() {
        paths[at] = match at.checked_sub(PROFILE_PATHS.len()) {
            Some(of_umami) => umami::ROUTES[of_umami].path,
            None => PROFILE_PATHS[at],
        };
        at += 1;
    }
    paths
};

impl Api {
    /// The routes. They need a [`dashi_http::Outgoing`] among a request's extensions, as the server puts it. Pages of
    /// other origins may not read the answers, but those to a signature.
    pub fn router(&self) -> Router {
        let settings = &self.0.settings;
        let mut router = Router::new();
        if settings.keys.is_some() || settings.listens_on_loopback {
            router = umami::router();
        }
        if settings.keys.is_some() {
            router = router
                .route(PROFILES_PATH, get(read::profiles))
                .route(PROFILE_PATH, get(read::profile))
                .route(JOURNEY_PATH, get(read::journey))
                .route(STREAM_PATH, get(stream::open));
        }
        router = router.method_not_allowed_fallback(no_such_method);
        if settings.identity_key.is_some() {
            let me = Router::new()
                .route(ME_PATH, get(me::traits).options(me::preflight))
                .route(FOLLOW_PATH, get(me::follow).options(me::preflight))
                .method_not_allowed_fallback(no_such_method);
            router = router.merge(headers::add_missing(me, me::cross_origin(settings.cors_max_age_s)));
        }
        let router = match settings.base_path.as_str() {
            "" => router,
            base_path => Router::new().without_v07_checks().nest(base_path, router),
        };
        router.with_state(self.clone())
    }
}

async fn no_such_method(State(api): State<Api>) -> Response {
    api.finish(Err(Refusal::Method))
}
