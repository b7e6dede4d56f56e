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
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use podmesh_protocol::ids::ClusterId;
use podmesh_wire::backoff::reconnect_delays;
use podmesh_wire::chain;
use rustls::crypto::ring;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
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

/// The address of a collector: `http://HOST:4318`, or `https://HOST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Uri);

/// Why a text is not the address of a collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCollectorError {
    /// Not an address.
    #[error("this is not the address of a collector, such as http://127.0.0.1:4318")]
    NotAnAddress,
}

impl FromStr for Collector {
    type Err = ParseCollectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| ParseCollectorError::NotAnAddress)?;
        match (uri.scheme_str(), uri.authority(), uri.path()) {
            (Some(scheme @ ("http" | "https")), Some(authority), "/" | "") => {
                let uri = format!("{scheme}://{authority}{PATH}").parse();
                uri.map(Self).map_err(|_| ParseCollectorError::NotAnAddress)
            }
            (Some("http" | "https"), Some(_), _) => Ok(Self(uri)),
            _ => Err(ParseCollectorError::NotAnAddress),
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Connects to collectors.
pub(crate) type Connections = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Why no connection to a collector can be made.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The machine trusts nobody.
    #[error(
        "the collector of traces needs HTTPS, but no certificate of an authority was found on this machine{}; install the package ca-certificates, or name a file with SSL_CERT_FILE",
        why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
    )]
    NoAuthorities {
        /// Why.
        why: Option<Box<rustls_native_certs::Error>>,
    },
    /// TLS cannot be used.
    #[error("HTTPS cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Returns the means to connect to a collector. By HTTPS, only to one whose certificate is of an
/// authority that this machine trusts.
///
/// # Errors
/// If the machine trusts none.
pub(crate) fn connections(collector: &Collector) -> Result<Connections, CollectorError> {
    let mut roots = RootCertStore::empty();
    if collector.0.scheme_str() == Some("https") {
        let mut found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.pop().map(Box::new);
            return Err(CollectorError::NoAuthorities { why });
        }
    }
    trusting(roots)
}

fn trusting(roots: RootCertStore) -> Result<Connections, CollectorError> {
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// Sends spans to a collector.
pub(super) struct Sender {
    client: Connections,
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
    pub(super) fn new(
        client: Connections,
        collector: Collector,
        cluster: ClusterId,
        counts: Arc<SpanCounts>,
    ) -> Self {
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
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[test]
    fn the_address_of_a_collector_may_have_a_path() {
        let read = |text: &str| text.parse::<Collector>().map(|of| of.to_string());
        assert_eq!(read("http://10.0.0.5:4318").unwrap(), "http://10.0.0.5:4318/v1/traces");
        assert_eq!(read("http://otel.lan/").unwrap(), "http://otel.lan/v1/traces");
        assert_eq!(read("http://otel.lan:1/in/x").unwrap(), "http://otel.lan:1/in/x");
        assert_eq!(read("https://otel.lan").unwrap(), "https://otel.lan/v1/traces");
        for bad in ["", "otel.lan:4318", "ftp://otel.lan", "http://", "/v1/traces"] {
            assert_eq!(read(bad), Err(ParseCollectorError::NotAnAddress), "{bad}");
        }
    }

    /// A collector that answers by HTTPS, and its certificate.
    async fn collector() -> (Collector, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Whoever does not trust it ends the handshake.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = vec![0; 64 << 10];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"POST /v1/traces HTTP/1.1"));
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(reply).await.unwrap();
            }
        });
        (format!("https://localhost:{port}").parse().unwrap(), certificate)
    }

    #[tokio::test]
    async fn spans_go_by_https_to_a_collector_that_is_trusted_and_to_no_other() {
        let (collector, certificate) = collector().await;
        let post = async |roots: RootCertStore| {
            let client = trusting(roots).unwrap();
            let counts = Arc::default();
            let cluster = ClusterId(uuid::Uuid::nil());
            Sender::new(client, collector.clone(), cluster, counts).post(Bytes::new()).await
        };
        let refused = post(RootCertStore::empty()).await;
        let Err(Refusal::Later(why)) = refused else { panic!("it was trusted") };
        assert!(why.contains("UnknownIssuer"), "{why}");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        assert!(post(roots).await.is_ok());
    }
}
