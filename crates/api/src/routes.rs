//! Which paths there are, and what answers them.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

use crate::answer::Refusal;
use crate::api::Api;
use crate::{read, stream};

impl Api {
    /// The routes. They need a [`dashi_http::Outgoing`] among a request's extensions. No other origin's pages may read the
    /// answers.
    pub fn router(&self) -> Router {
        let router = Router::new()
            .route("/api/websites/{website}/profiles", get(read::profiles))
            .route("/api/websites/{website}/profiles/{person}", get(read::profile))
            .route("/api/websites/{website}/profiles/{person}/journey", get(read::journey))
            .route("/api/websites/{website}/sessions/{session}", get(read::session))
            .route("/api/websites/{website}/sessions/{session}/stream", get(stream::open))
            .method_not_allowed_fallback(no_such_method);
        let router = match self.0.settings.base_path.as_str() {
            "" => router,
            base_path => Router::new().nest(base_path, router),
        };
        router.with_state(self.clone())
    }
}

async fn no_such_method(State(api): State<Api>) -> Response {
    api.finish(Err(Refusal::Method))
}
