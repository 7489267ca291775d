//! The read side, in every process that has API keys or an identity key, or that only this machine can reach.

use std::time::Duration;

use axum::Router;
use dashi_api::{Api, ApiMetrics, ApiSettings, Keys};
use dashi_domain::identity::IdentityKey;
use dashi_store::Store;
use prometheus_client::registry::Registry;

use crate::serve::Base;
use crate::serve::helpers::Helpers;

/// How often streams look for changes of which the store does not notify this process.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The read side that runs.
pub struct ReadingProfiles(Api);

impl ReadingProfiles {
    /// Starts the read side and the task that marks its streams; `None` if neither an API key nor an identity key is set and
    /// others than this machine can connect.
    pub fn start(base: &Base<'_>, helpers: &mut Helpers, registry: &mut Registry) -> Option<Self> {
        let settings = settings(base)?;
        let metrics = ApiMetrics::new(registry);
        let (draining, stop) = (base.draining.clone(), helpers.stop_token());
        let (api, marking) = Api::new(base.store.clone(), settings, metrics, draining, stop);
        helpers.spawn("the marking of streams", |_| marking);
        Some(Self(api))
    }

    pub fn router(&self) -> Router {
        self.0.router()
    }

    /// Waits until every stream has ended. To be called after the last connection has closed.
    pub async fn drain(self) {
        self.0.drain().await;
    }
}

fn settings(base: &Base<'_>) -> Option<ApiSettings> {
    let (ingest, api) = (&base.settings.ingest, &base.settings.api);
    // A SQLite store notifies of the changes of its own process only.
    let notifies = base.roles.projects() || matches!(base.store, Store::Postgres(_));
    let keys = Keys::parse(api.keys.expose());
    let listens_on_loopback = base.address.ip().to_canonical().is_loopback();
    let identity_key = IdentityKey::new(base.settings.profiles.identity_key.expose());
    (keys.is_some() || identity_key.is_some() || listens_on_loopback).then(|| ApiSettings {
        keys,
        listens_on_loopback,
        identity_key,
        cors_max_age_s: ingest.cors_max_age_s,
        questions_max: api.questions_max,
        question_timeout: Duration::from_millis(api.question_timeout_ms),
        base_path: ingest.base_path.clone(),
        request_timeout: Duration::from_millis(ingest.request_timeout_ms),
        retry_after_s: ingest.retry_after_s,
        reads_max: api.reads_max,
        streams_max: api.streams_max,
        person_streams_max: api.person_streams_max,
        stream_heartbeat: Duration::from_millis(api.stream_heartbeat_ms),
        stream_write_timeout: Duration::from_millis(api.stream_write_timeout_ms),
        live: Duration::from_secs(base.settings.profiles.live_s),
        look_again: (!notifies).then_some(LOOK_AGAIN),
    })
}
