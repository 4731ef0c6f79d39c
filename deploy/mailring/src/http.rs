//! Health pages and metrics over plain HTTP, for machines: is the process alive, is it ready, its figures. They name no
//! account, no address and no peer.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::error;

use crate::metrics;
use crate::roles::Running;

/// Prometheus' name for the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub async fn serve(listener: TcpListener, running: Arc<Running>) {
    let pages = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(running);
    if let Err(error) = axum::serve(listener, pages).await {
        error!(%error, "health pages ended");
    }
}

async fn readyz(State(running): State<Arc<Running>>) -> Response {
    if running.ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn metrics_page(State(running): State<Arc<Running>>) -> Response {
    match metrics::text(&running).await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            error!(error = format!("{error:#}"), "metrics cannot be had");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
