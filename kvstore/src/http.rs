//! HTTP for operators and their tools: `/livez`, `/readyz`, `/metrics`, `/status`.

use std::{
    fmt::Write as _,
    sync::{Arc, Weak},
};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use paxos::Node;
use tokio::{net::TcpListener, sync::watch};

use crate::server::{Shared, obstacles};

#[derive(Clone)]
struct Context {
    shared: Arc<Shared>,
    /// The node's owner alone can stop it; open connections must not hold it.
    node: Weak<Node>,
}

/// Serves HTTP on `listener` until `stop` becomes true or its sender is gone.
pub async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    node: Weak<Node>,
    mut stop: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(Context { shared, node });
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(stopped)
        .await
    {
        tracing::error!(%error, "the HTTP server failed");
    }
}

/// The process answers.
async fn livez() -> &'static str {
    "ok\n"
}

/// 200 if every group knows a leader and keeps up; else 503. `?verbose` says why not.
async fn readyz(State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    let report = context.shared.report().await;
    let obstacles = obstacles(&report);
    let code = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut text = String::from(if report.ready { "ready\n" } else { "not ready\n" });
    if query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "verbose" || part.starts_with("verbose="))
    }) {
        for group in &report.groups {
            let leader = group
                .leader
                .map_or_else(|| "none".to_owned(), |leader| format!("node {leader}"));
            let _ = writeln!(
                text,
                "group {}: leader {leader}, {} slots to apply",
                group.group, group.lag
            );
        }
        for obstacle in obstacles {
            let _ = writeln!(text, "obstacle: {obstacle}");
        }
    }
    (code, text).into_response()
}

async fn status(State(context): State<Context>) -> Response {
    Json(context.shared.report().await).into_response()
}

async fn metrics(State(context): State<Context>) -> Response {
    let engine = context
        .node
        .upgrade()
        .map(|node| node.prometheus())
        .unwrap_or_default();
    let text = engine + &context.shared.prometheus().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
