//! The collector's paths: which there are, under which names, and what answers them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use dashi_domain::submission::{Submission, parse_batch};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};

use crate::answer::{Rejection, batch_json, json_response, not_found};
use crate::collector::{Alias, Collector, Now, parsing};
use crate::decide::Decision;
use crate::recording::record;
use crate::script::ScriptFile;
use crate::visit;

impl Collector {
    /// The collector's routes. They need [`crate::server::Peer`] among a request's extensions, as the server puts it.
    pub fn router(&self) -> Router {
        let posted = |route: MethodRouter<Self>| route.options(|| preflight("OPTIONS, POST"));
        let got = |route: MethodRouter<Self>| route.options(|| preflight("GET, HEAD, OPTIONS"));
        let cors = Arc::new(self.cross_origin());
        let mut router = Router::new()
            .route("/api/send", posted(post(send)))
            .route("/api/batch", posted(post(batch)))
            .route("/api/record", posted(post(record)))
            .route("/api/heartbeat", got(get(heartbeat)))
            .fallback(elsewhere)
            .layer(map_response(move |response| with_headers(response, Arc::clone(&cors))))
            .route("/p/{slug}", got(get(visit::pixel)))
            .route("/q/{slug}", got(get(visit::link)))
            .route("/script.js", got(get(script)))
            .route("/script-vitals.js", got(get(script_vitals)));
        if self.paths().force_ssl {
            let hsts = HeaderValue::from_static("max-age=63072000; includeSubDomains; preload");
            let headers = Arc::new(HeaderMap::from_iter([(header::STRICT_TRANSPORT_SECURITY, hsts)]));
            router = router.layer(map_response(move |response| with_headers(response, Arc::clone(&headers))));
        }
        if !self.paths().base.is_empty() {
            router = Router::new().nest(&self.paths().base, router);
        }
        router.with_state(self.clone())
    }

    /// The headers that every answer of `/api/*` has, whatever its status. Others that have them do no harm.
    fn cross_origin(&self) -> HeaderMap {
        let constant = HeaderValue::from_static;
        let pairs: [(HeaderName, HeaderValue); 6] = [
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, constant("*")),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, constant("*")),
            (header::ACCESS_CONTROL_ALLOW_METHODS, constant("GET, DELETE, POST, PUT")),
            (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.paths().cors_max_age_s)),
            // Ours, not Umami's: the tracker keeps what it could not send, and comes back when it is told to.
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, constant("Retry-After")),
            (header::CACHE_CONTROL, constant("no-cache")),
        ];
        HeaderMap::from_iter(pairs)
    }
}

async fn send(State(collector): State<Collector>, request: Request<Body>) -> Response {
    collector
        .bounded(async {
            let client = collector.client(&request);
            let body = collector.read(request.into_body()).await?;
            let now = Now::read();
            let claims = collector.claims(&client, now.ms);
            let submission = parsing(&body, || Submission::parse(&body.bytes)).map_err(Rejection::Schema)?;
            let decision = collector.decide(&client, claims.as_ref(), submission, None, now).await;
            let _share = body.into_share();
            match collector.carry_out(vec![decision]).await.pop() {
                Some(Ok(accepted)) => Ok(json_response(StatusCode::OK, accepted.to_json())),
                // Counted where it was carried out.
                Some(Err(rejection)) => Ok(collector.refuse(rejection)),
                None => Err(Rejection::Unavailable),
            }
        })
        .await
}

async fn batch(State(collector): State<Collector>, request: Request<Body>) -> Response {
    collector
        .bounded(async {
            let client = collector.client(&request);
            let body = collector.read(request.into_body()).await?;
            let now = Now::read();
            let claims = collector.claims(&client, now.ms);
            let elements = parsing(&body, || parse_batch(&body.bytes)).map_err(Rejection::Schema)?;
            let mut decisions = Vec::with_capacity(elements.len());
            for (index, element) in elements.into_iter().enumerate() {
                decisions.push(match Submission::from_value(element) {
                    Ok(submission) => {
                        collector.decide(&client, claims.as_ref(), submission, Some(index), now).await
                    }
                    Err(error) => Decision::Answer(Err(Rejection::Schema(error))),
                });
            }
            let _share = body.into_share();
            let outcomes = collector.carry_out(decisions).await;
            // Nothing of it is in the log and a retry may help: then the whole request says so. Otherwise each
            // element has its own answer, and the client learns which ones to send again.
            let is_away = |outcome: &Result<_, _>| matches!(outcome, Err(Rejection::Unavailable));
            if outcomes.iter().any(is_away) && !outcomes.iter().any(Result::is_ok) {
                return Ok(collector.refuse(Rejection::Unavailable));
            }
            Ok(json_response(StatusCode::OK, batch_json(&outcomes)))
        })
        .await
}

async fn heartbeat() -> Response {
    json_response(StatusCode::OK, r#"{"ok":true}"#.to_owned())
}

async fn preflight(allow: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

async fn script(State(collector): State<Collector>, headers: HeaderMap) -> Response {
    collector.paths().script.respond(ScriptFile::Tracker, &headers)
}

async fn script_vitals(State(collector): State<Collector>, headers: HeaderMap) -> Response {
    collector.paths().script.respond(ScriptFile::Vitals, &headers)
}

/// A path that is not among the routes: an alias of one, or one with a slash too many at its end.
async fn elsewhere(State(collector): State<Collector>, request: Request<Body>) -> Response {
    let path = request.uri().path();
    if let Some(alias) = collector.paths().aliases.get(path).copied() {
        return match (alias, request.method()) {
            (Alias::Send, &Method::POST) => send(State(collector), request).await,
            (Alias::Send, &Method::OPTIONS) => preflight("OPTIONS, POST").await,
            (Alias::Script(file), &Method::GET | &Method::HEAD) => {
                let mut response = collector.paths().script.respond(file, request.headers());
                if request.method() == Method::HEAD {
                    *response.body_mut() = Body::empty();
                }
                response
            }
            (Alias::Script(_), &Method::OPTIONS) => preflight("GET, HEAD, OPTIONS").await,
            _ => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                response
            }
        };
    }
    let Some(shorter) = path.strip_suffix('/').filter(|shorter| !shorter.is_empty()) else {
        return not_found();
    };
    // Two slashes, or a slash and a backslash, begin the name of another host.
    let mut location = format!("{}/{}", collector.paths().base, shorter.trim_matches(['/', '\\']));
    if let Some(query) = request.uri().query() {
        location.push('?');
        location.push_str(query);
    }
    let Ok(location) = HeaderValue::try_from(location) else { return not_found() };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Adds headers where the answer has none of the name.
async fn with_headers(mut response: Response, headers: Arc<HeaderMap>) -> Response {
    for (name, value) in &*headers {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}
