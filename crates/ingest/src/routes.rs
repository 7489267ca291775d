//! The collector's paths, their methods and handlers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use dashi_http::answer::{empty, json};
use dashi_http::headers;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};

use crate::answer::not_found;
use crate::collector::{Collector, CollectorSettings};
use crate::script::{ScriptFile, files_beside};
use crate::{events, recorder, visit};

/// The path to which events are posted.
pub const SEND_PATH: &str = "/api/send";

/// The path of the tracker script.
pub const SCRIPT_PATH: &str = "/script.js";

const BATCH_PATH: &str = "/api/batch";
const RECORD_PATH: &str = "/api/record";
const RECORDER_PATH: &str = "/api/websites/{website}/recorder";
const HEARTBEAT_PATH: &str = "/api/heartbeat";
pub(crate) const PIXEL_PATH: &str = "/p/{slug}";
pub(crate) const LINK_PATH: &str = "/q/{slug}";
const VITALS_PATH: &str = "/script-vitals.js";
const PROFILE_PATH: &str = "/script-profile.js";

/// All paths of a collector without its further ones; a name in braces stands for a segment.
pub const PATHS: [&str; 10] = [
    SEND_PATH,
    BATCH_PATH,
    RECORD_PATH,
    RECORDER_PATH,
    HEARTBEAT_PATH,
    PIXEL_PATH,
    LINK_PATH,
    SCRIPT_PATH,
    VITALS_PATH,
    PROFILE_PATH,
];

/// The settings of the paths.
pub(crate) struct Routes {
    /// The beginning of every path; empty for none.
    pub(crate) base: String,
    send: Option<String>,
    scripts: Vec<String>,
    force_ssl: bool,
    cors_max_age_s: u64,
}

impl Routes {
    pub(crate) fn new(settings: &CollectorSettings) -> Self {
        Self {
            base: settings.base_path.clone(),
            send: settings.send_path.clone(),
            scripts: settings.script_paths.clone(),
            force_ssl: settings.force_ssl,
            cors_max_age_s: settings.cors_max_age_s,
        }
    }

    /// The further paths of `/api/send` and of the files of the script, each once.
    fn aliases(&self) -> BTreeMap<String, MethodRouter<Arc<Collector>>> {
        let files = self.scripts.iter().flat_map(|path| {
            let [vitals, profile] = files_beside(path);
            [(vitals, get(script_vitals)), (profile, get(script_profile)), (path.clone(), get(script))]
        });
        let files = files.map(|(path, route)| (path, readable(route)));
        let sends = self.send.iter().map(|path| (path.clone(), postable(post(send))));
        let aliases = files.chain(sends);
        aliases.filter(|(path, _)| !PATHS.contains(&path.as_str())).collect()
    }
}

/// A route that is read, with the answer to its preflight.
fn readable(route: MethodRouter<Arc<Collector>>) -> MethodRouter<Arc<Collector>> {
    route.options(|| preflight("GET, HEAD, OPTIONS"))
}

/// A route that is posted to, with the answer to its preflight.
fn postable(route: MethodRouter<Arc<Collector>>) -> MethodRouter<Arc<Collector>> {
    route.options(|| preflight("OPTIONS, POST"))
}

impl Collector {
    /// The collector's routes. They need [`dashi_http::Peer`] and [`dashi_http::Outgoing`] among a request's
    /// extensions, as the server puts them.
    pub fn router(self: &Arc<Self>) -> Router {
        let routes = &self.routes;
        // Without its checks, axum takes a segment that begins with a colon as it is.
        let mut router = Router::new()
            .without_v07_checks()
            .route(SEND_PATH, postable(post(send)))
            .route(BATCH_PATH, postable(post(batch)))
            .route(RECORD_PATH, postable(post(record)))
            .route(RECORDER_PATH, readable(get(recorder::recorder)))
            .route(HEARTBEAT_PATH, readable(get(heartbeat)));
        for (path, route) in routes.aliases() {
            router = router.route(&path, route);
        }
        router =
            headers::add_missing(router.fallback(elsewhere), headers::cross_origin(routes.cors_max_age_s))
                .route(PIXEL_PATH, readable(get(visit::pixel)))
                .route(LINK_PATH, readable(get(visit::link)))
                .route(SCRIPT_PATH, readable(get(script)))
                .route(VITALS_PATH, readable(get(script_vitals)))
                .route(PROFILE_PATH, readable(get(script_profile)));
        if routes.force_ssl {
            router = headers::add_missing(router, headers::https_only());
        }
        if !routes.base.is_empty() {
            router = Router::new().without_v07_checks().nest(&routes.base, router);
        }
        router.with_state(Arc::clone(self))
    }
}

async fn send(State(collector): State<Arc<Collector>>, request: Request<Body>) -> Response {
    events::SEND.take(collector, request).await
}

async fn batch(State(collector): State<Arc<Collector>>, request: Request<Body>) -> Response {
    events::BATCH.take(collector, request).await
}

async fn record(State(collector): State<Arc<Collector>>, request: Request<Body>) -> Response {
    recorder::RECORD.take(collector, request).await
}

async fn heartbeat() -> Response {
    json(StatusCode::OK, r#"{"ok":true}"#.to_owned())
}

async fn script(State(collector): State<Arc<Collector>>, headers: HeaderMap) -> Response {
    collector.script.respond(ScriptFile::Tracker, &headers)
}

async fn script_vitals(State(collector): State<Arc<Collector>>, headers: HeaderMap) -> Response {
    collector.script.respond(ScriptFile::Vitals, &headers)
}

async fn script_profile(State(collector): State<Arc<Collector>>, headers: HeaderMap) -> Response {
    collector.script.respond(ScriptFile::Profile, &headers)
}

async fn preflight(allow: &'static str) -> Response {
    let mut response = empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// A path without a route. With a slash at its end, the client is sent to the path without it.
async fn elsewhere(State(collector): State<Arc<Collector>>, uri: Uri) -> Response {
    let Some(shorter) = uri.path().strip_suffix('/').filter(|shorter| !shorter.is_empty()) else {
        return not_found();
    };
    // A path that begins with two slashes, or a slash and a backslash, would begin with the name of another host.
    let mut location = format!("{}/{}", collector.routes.base, shorter.trim_matches(['/', '\\']));
    if let Some(query) = uri.query() {
        location.push('?');
        location.push_str(query);
    }
    let Ok(location) = HeaderValue::try_from(location) else { return not_found() };
    let mut response = empty(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(header::LOCATION, location);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_paths_are_routes_once_each_and_never_in_place_of_others() {
        let scripts = ["/script.js", "/a", "/a.js", "/a", "/:x", "/b%20c/t"];
        let routes = Routes {
            base: String::new(),
            send: Some(SEND_PATH.to_owned()),
            scripts: scripts.map(str::to_owned).to_vec(),
            force_ssl: false,
            cors_max_age_s: 0,
        };
        let aliases = routes.aliases();
        let paths: Vec<&str> = aliases.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "/:x",
                "/:x-profile.js",
                "/:x-vitals.js",
                "/a",
                "/a-profile.js",
                "/a-vitals.js",
                "/a.js",
                "/b%20c/t",
                "/b%20c/t-profile.js",
                "/b%20c/t-vitals.js"
            ]
        );
        // A router refuses a path that it has, or cannot have, with a panic.
        let mut router: Router<Arc<Collector>> = Router::new().without_v07_checks();
        for path in PATHS {
            router = router.route(path, get(heartbeat));
        }
        for (path, route) in aliases {
            router = router.route(&path, route);
        }
        assert!(router.has_routes());
    }
}
