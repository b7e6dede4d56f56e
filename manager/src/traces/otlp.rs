//! Spans as OTLP over HTTP, in JSON: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use podmesh_protocol::ids::ClusterId;
use podmesh_wire::backoff::reconnect_delays;
use podmesh_wire::chain;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::SpanCounts;
use super::spans::{Span, Value};

/// Where a collector takes spans, if its address has no path.
const PATH: &str = "/v1/traces";
/// How long the collector may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the same spans are sent again and again.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// OTLP's `SPAN_KIND_INTERNAL`.
const KIND_INTERNAL: u8 = 1;
/// OTLP's `STATUS_CODE_ERROR`.
const STATUS_ERROR: u8 = 2;

/// The address of a collector: `http://HOST:4318`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Uri);

/// Why a text is not the address of a collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCollectorError {
    /// Not an address.
    #[error("this is not the address of a collector, such as http://127.0.0.1:4318")]
    NotAnAddress,
    /// HTTPS.
    #[error(
        "spans are sent by plain HTTP only: run a collector on this machine, such as http://127.0.0.1:4318, which may pass them on by HTTPS"
    )]
    Https,
}

impl FromStr for Collector {
    type Err = ParseCollectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| ParseCollectorError::NotAnAddress)?;
        match (uri.scheme_str(), uri.authority(), uri.path()) {
            (Some("https"), ..) => Err(ParseCollectorError::Https),
            (Some("http"), Some(authority), "/" | "") => format!("http://{authority}{PATH}")
                .parse()
                .map(Self)
                .map_err(|_| ParseCollectorError::NotAnAddress),
            (Some("http"), Some(_), _) => Ok(Self(uri)),
            _ => Err(ParseCollectorError::NotAnAddress),
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sends spans to a collector.
pub(super) struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    collector: Collector,
    cluster: ClusterId,
    counts: Arc<SpanCounts>,
}

/// Why spans did not get to the collector.
enum Refusal {
    /// They may later.
    Later(String),
    /// They never will.
    Never(String),
}

impl Sender {
    pub(super) fn new(collector: Collector, cluster: ClusterId, counts: Arc<SpanCounts>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, collector, cluster, counts }
    }

    /// Sends what comes, at most `batch_max` spans at a time, until nothing comes any more.
    pub(super) async fn run(self, mut waiting: mpsc::Receiver<Span>, batch_max: usize) {
        let mut batch = Vec::new();
        let mut works = true;
        while waiting.recv_many(&mut batch, batch_max).await > 0 {
            let result = self.send(&batch).await;
            let counter = match &result {
                Ok(()) => &self.counts.exported,
                Err(_) => &self.counts.dropped,
            };
            counter.fetch_add(batch.len() as u64, Ordering::Relaxed);
            match &result {
                Err(why) if works => tracing::warn!(
                    collector = %self.collector, why,
                    "spans do not get to the collector; those that do not wait any longer are dropped"
                ),
                Ok(()) if !works => tracing::info!("the collector takes spans again"),
                _ => {}
            }
            works = result.is_ok();
            batch.clear();
        }
    }

    /// Sends spans, again and again if the collector cannot take them now.
    async fn send(&self, spans: &[Span]) -> Result<(), String> {
        let body = Bytes::from(document(self.cluster, spans).to_string());
        let since = Instant::now();
        let mut delays = reconnect_delays();
        loop {
            let why = match self.post(body.clone()).await {
                Ok(()) => return Ok(()),
                Err(Refusal::Never(why)) => return Err(why),
                Err(Refusal::Later(why)) => why,
            };
            match delays.next() {
                Some(delay) if since.elapsed() + delay <= RETRY_LIMIT => sleep(delay).await,
                _ => return Err(why),
            }
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Refusal> {
        let request = Request::post(self.collector.0.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Refusal::Never(error.to_string()))?;
        let reply = match timeout(ANSWER_LIMIT, self.client.request(request)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return Err(Refusal::Later(chain(&error))),
            Err(_) => return Err(Refusal::Later("it does not answer".into())),
        };
        match reply.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => Err(Refusal::Later(format!("it answers {status}"))),
            status => Err(Refusal::Never(format!("it answers {status}"))),
        }
    }
}

/// Returns the request that exports spans.
fn document(cluster: ClusterId, spans: &[Span]) -> Json {
    let spans: Vec<Json> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", &Value::Text("podmesh".into())),
            attribute("service.version", &Value::Text(env!("CARGO_PKG_VERSION").into())),
            attribute("podmesh.cluster.id", &Value::Text(cluster.to_string())),
        ] },
        "scopeSpans": [{ "scope": { "name": "podmesh" }, "spans": spans }],
    }] })
}

fn span(span: &Span) -> Json {
    // 64-bit numbers are text in the JSON of protobuf.
    let nanos = |ms: u64| ms.saturating_mul(1_000_000).to_string();
    let attributes: Vec<Json> =
        span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let mut json = json!({
        "traceId": HEXLOWER.encode(&span.trace),
        "spanId": HEXLOWER.encode(&span.id),
        "name": span.name,
        "kind": KIND_INTERNAL,
        "startTimeUnixNano": nanos(span.start_ms),
        "endTimeUnixNano": nanos(span.end_ms),
        "attributes": attributes,
    });
    if let Some(parent) = &span.parent {
        json["parentSpanId"] = HEXLOWER.encode(parent).into();
    }
    if let Some(why) = &span.error {
        json["status"] = json!({ "code": STATUS_ERROR, "message": why });
    }
    json
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": text }),
        Value::Whole(number) => json!({ "intValue": number.to_string() }),
    };
    json!({ "key": key, "value": value })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_collector_may_have_a_path() {
        let read = |text: &str| text.parse::<Collector>().map(|of| of.to_string());
        assert_eq!(read("http://10.0.0.5:4318").unwrap(), "http://10.0.0.5:4318/v1/traces");
        assert_eq!(read("http://otel.lan/").unwrap(), "http://otel.lan/v1/traces");
        assert_eq!(read("http://otel.lan:1/in/x").unwrap(), "http://otel.lan:1/in/x");
        assert_eq!(read("https://otel.lan"), Err(ParseCollectorError::Https));
        for bad in ["", "otel.lan:4318", "ftp://otel.lan", "http://", "/v1/traces"] {
            assert_eq!(read(bad), Err(ParseCollectorError::NotAnAddress), "{bad}");
        }
    }
}
