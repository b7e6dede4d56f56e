//! The router, made from the table of routes.

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::PREFIX;
use crate::app::App;
use crate::console;
use crate::extract::Session;
use crate::guard::guard;
use crate::problem::{Problem, no_route};
use crate::routes::routes;

/// Where the metrics are.
const METRICS: &str = "/metrics";

/// Returns the router.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new();
    for route in routes() {
        router = router.route(&format!("{PREFIX}{}", route.path), route.handler);
    }
    console::add(router)
        .route(METRICS, get(metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// GET /metrics, where Prometheus looks for them: not a part of the API.
async fn metrics(session: Session) -> Result<Response, Problem> {
    let text = session.asker.metrics().await?;
    Ok(([(CONTENT_TYPE, podmesh_metrics::CONTENT_TYPE)], text).into_response())
}

async fn no_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "The route has other methods",
        format!("the route does not have this method; all routes are in {PREFIX}/openapi.json"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::is_public;

    #[test]
    fn the_routes_without_a_token_are_those_that_say_so() {
        for route in routes() {
            let path = format!("{PREFIX}{}", route.path);
            assert_eq!(is_public(&path), route.role.is_none(), "{path}");
        }
    }
}
