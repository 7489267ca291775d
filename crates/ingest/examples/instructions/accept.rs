//! The load `accept`: events through the collector's router, without a socket.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use dashi_domain::calendar::SaltRotation;
use dashi_domain::client_address::{BlockedAddresses, TrustedProxies};
use dashi_domain::ids::{IdRules, IdentifiedSessions, Secret};
use dashi_domain::liveness::Liveness;
use dashi_domain::spans::Tracer;
use dashi_domain::umami::Release;
use dashi_event_log::{EmbeddedLog, EmbeddedSettings, EventLog};
use dashi_http::Peer;
use dashi_ingest::{
    Collector, CollectorSettings, GeoDatabase, IngestMetrics, Limiter, SEND_PATH, ScriptSettings, SessionIds,
    SourceRegistry, SourceRegistrySettings,
};
use dashi_store::{NewWebsite, SqliteSettings, SqliteStore, Store};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use jiff::tz::TimeZone;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::{Outcome, WEBSITE, bodies};

/// Events that are counted.
const EVENTS: usize = 1_000;

/// Events before them: they fill pools and caches.
const WARM_UP: usize = 100;

/// A visitor sends ten events; all but the first have the token of the answer before.
const VISITORS: usize = 100;

const HOUR: Duration = Duration::from_secs(3_600);

/// Accepts 1,000 events one after the other; returns their number.
pub fn run() -> Outcome<usize> {
    let directory = std::env::temp_dir().join(format!("dashi-instructions-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let accepted = accept_in(&directory);
    std::fs::remove_dir_all(&directory)?;
    accepted
}

fn accept_in(directory: &Path) -> Outcome<usize> {
    // The log and the list of websites have threads of their own, which are not counted.
    let helpers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let stop = CancellationToken::new();
    let mut router = helpers.block_on(router(directory, &stop))?;
    let counted = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut tokens: HashMap<String, String> = HashMap::new();
    for n in 0..WARM_UP + EVENTS {
        let bodies::Event { address, device, body } = bodies::event(n, VISITORS);
        let mut request = Request::post(SEND_PATH)
            .header(header::HOST, "collect.example.com")
            .header("x-forwarded-for", &address)
            .header(header::USER_AGENT, device.user_agent)
            .header(header::ACCEPT, "*/*")
            .header(header::ACCEPT_LANGUAGE, "en-US,en;q=0.9")
            .header(header::ACCEPT_ENCODING, "gzip, deflate, br, zstd")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, body.len())
            .header(header::ORIGIN, "https://shop.example.com")
            .header(header::REFERER, "https://shop.example.com/")
            .extension(Peer(SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000))));
        if let Some(token) = tokens.get(&address) {
            request = request.header("x-umami-cache", token);
        }
        let request = request.body(Body::from(body))?;
        let answer = match n {
            ..WARM_UP => accept(&counted, &mut router, request),
            _ => counted_accept(&counted, &mut router, request),
        };
        let (status, body) = answer?;
        let answered = || format!("event {n} was answered {status}: {}", String::from_utf8_lossy(&body));
        let json: serde_json::Value = serde_json::from_slice(&body).map_err(|_| answered())?;
        let token = json["cache"].as_str().filter(|_| status == StatusCode::OK).ok_or_else(answered)?;
        tokens.insert(address, token.to_owned());
    }
    stop.cancel();
    Ok(EVENTS)
}

/// Accepts one event.
#[inline(never)]
fn counted_accept(
    runtime: &Runtime,
    router: &mut Router,
    request: Request<Body>,
) -> Outcome<(StatusCode, Bytes)> {
    accept(runtime, router, request)
}

fn accept(runtime: &Runtime, router: &mut Router, request: Request<Body>) -> Outcome<(StatusCode, Bytes)> {
    runtime.block_on(async {
        let response = router.call(request).await?;
        Ok((response.status(), response.into_body().collect().await?.to_bytes()))
    })
}

/// A collector with the settings of `config/default.toml`, whose list of websites is read.
async fn router(directory: &Path, stop: &CancellationToken) -> Outcome<Router> {
    let store = Store::Sqlite(SqliteStore::open(&SqliteSettings { path: directory.join("store.db") }).await?);
    store.migrate().await?;
    let website = NewWebsite { id: WEBSITE.parse()?, name: "Example Shop".to_owned(), domain: None };
    store.add_website(&website, 0).await?;
    let log = EmbeddedSettings {
        path: directory.join("log.db"),
        partitions: 8,
        queue_max: 8_192,
        batch_max: 1_024,
    };
    let log = EventLog::Embedded(EmbeddedLog::open(log).await?);
    let sources = SourceRegistry::new(store, SourceRegistrySettings { refresh: HOUR, recheck: HOUR });
    tokio::spawn(sources.clone().keep(stop.clone()));
    let asked = std::time::Instant::now();
    sources.website(website.id, asked).await;
    if !sources.is_loaded() {
        return Err("the list of websites was not read".into());
    }
    let metrics = IngestMetrics::new(&mut Registry::default());
    Ok(Collector::new(log, None, sources, settings(), metrics).router())
}

fn settings() -> CollectorSettings {
    let secret = Secret::from_text("secret");
    let ids = SessionIds::decided(IdRules {
        secret: secret.clone(),
        rotation: SaltRotation::Month,
        zone: TimeZone::UTC,
        identified: IdentifiedSessions::Shared,
    });
    ids.decide_release(Release::V3_1);
    CollectorSettings {
        ids,
        cut_long_fields: false,
        secret,
        blocked: BlockedAddresses::default(),
        bots_welcome: false,
        address_header: None,
        skip_location_headers: false,
        trusted_proxies: TrustedProxies::default(),
        geo: GeoDatabase::default(),
        body_bytes_max: 10_485_760,
        bodies_bytes_max: 268_435_456,
        batch_elements_max: 10_000,
        in_flight_max: 4_096,
        request_timeout: Duration::from_secs(300),
        body_pause: Duration::from_secs(300),
        body_rate_min_bytes_per_s: 1,
        retry_after_s: 5,
        cors_max_age_s: 86_400,
        redirect_wait: Duration::from_millis(500),
        history_age: Some(HOUR),
        keep_unknown_types: false,
        base_path: String::new(),
        send_path: None,
        script_paths: vec![dashi_ingest::SCRIPT_PATH.to_owned()],
        script: ScriptSettings {
            send_path: None,
            collect_host: None,
            url: None,
            modified: SystemTime::UNIX_EPOCH,
        },
        force_ssl: false,
        limiter: Limiter::default(),
        liveness: Liveness::default(),
        tracer: Tracer::default(),
    }
}
