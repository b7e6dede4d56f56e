//! Spans go to a collector by OTLP over HTTP, as protobuf: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::Full;
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use podmesh_protocol::ids::ClusterId;
use podmesh_wire::chain;
use rustls::crypto::ring;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::SpanCounts;

/// Where a collector takes spans, if its address has no path.
const PATH: &str = "/v1/traces";
/// How long the collector may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the same spans are sent again and again.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// The longest pause between two of these, if the collector asks for no longer one.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

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
    /// The exporter refuses its settings.
    #[error("traces cannot be exported: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Connects to a collector. It says in the log when spans do not get there, and why.
#[derive(Debug)]
struct Connections {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    works: AtomicBool,
}

impl Connections {
    /// Returns the means to connect to a collector. By HTTPS, only to one whose certificate is of an
    /// authority that this machine trusts.
    ///
    /// # Errors
    /// If the machine trusts none.
    fn new(collector: &Collector) -> Result<Self, CollectorError> {
        let mut roots = RootCertStore::empty();
        if collector.0.scheme_str() == Some("https") {
            let mut found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why = found.errors.pop().map(Box::new);
                return Err(CollectorError::NoAuthorities { why });
            }
        }
        Self::trusting(roots)
    }

    fn trusting(roots: RootCertStore) -> Result<Self, CollectorError> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, works: AtomicBool::new(true) })
    }
}

#[async_trait]
impl HttpClient for Connections {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let collector = request.uri().clone();
        let reply = match timeout(ANSWER_LIMIT, self.client.request(request.map(Full::new))).await {
            Ok(reply) => reply.map_err(HttpError::from),
            Err(_) => Err("it does not answer".into()),
        };
        let why = match &reply {
            Ok(reply) if reply.status().is_success() => None,
            Ok(reply) => Some(format!("it answers {}", reply.status())),
            Err(error) => Some(chain(error.as_ref())),
        };
        let worked = self.works.swap(why.is_none(), Ordering::Relaxed);
        match why {
            Some(why) if worked => tracing::warn!(
                %collector, why,
                "spans do not get to the collector; what it refuses, and what waits too long, is dropped"
            ),
            None if !worked => tracing::info!(%collector, "the collector takes spans again"),
            _ => {}
        }
        // What else it answers is not read: it may be of any length.
        Ok(reply?.map(|_| Bytes::new()))
    }
}

/// Sends spans to a collector.
pub(crate) struct Sender {
    exporter: SpanExporter,
    counts: Arc<SpanCounts>,
}

impl Sender {
    /// Connects to a collector with the first spans.
    ///
    /// # Errors
    /// If that is a collector with HTTPS, and the machine trusts no authority.
    pub(crate) fn new(
        collector: &Collector,
        cluster: ClusterId,
        counts: Arc<SpanCounts>,
    ) -> Result<Self, CollectorError> {
        let retries =
            RetryPolicy::recommended().with_max_retries(usize::MAX).with_max_delay(RETRY_PAUSE_MAX);
        // What is set here is not taken from variables such as OTEL_EXPORTER_OTLP_ENDPOINT.
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Connections::new(collector)?)
            .with_endpoint(collector.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(RETRY_LIMIT)
            .with_retry_policy(retries)
            .build()?;
        let resource = Resource::builder_empty()
            .with_detector(Box::new(EnvResourceDetector::new()))
            .with_service_name("podmesh")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("podmesh.cluster.id", cluster.to_string()));
        exporter.set_resource(&resource.build());
        Ok(Self { exporter, counts })
    }

    /// Sends what comes, at most `batch_max` spans at a time, until nothing comes any more.
    pub(super) async fn run(&self, mut waiting: mpsc::Receiver<SpanData>, batch_max: usize) {
        loop {
            let mut batch = Vec::new();
            let spans = waiting.recv_many(&mut batch, batch_max).await;
            if spans == 0 {
                return;
            }
            let counter = match self.exporter.export(batch).await {
                Ok(()) => &self.counts.exported,
                Err(error) => {
                    tracing::debug!(%error, spans, "spans are dropped");
                    &self.counts.dropped
                }
            };
            counter.fetch_add(spans as u64, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
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
            let request = Request::post(collector.to_string()).body(Bytes::new()).unwrap();
            Connections::trusting(roots).unwrap().send_bytes(request).await
        };
        let why = chain(post(RootCertStore::empty()).await.unwrap_err().as_ref());
        assert!(why.contains("UnknownIssuer"), "{why}");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        assert!(post(roots).await.unwrap().status().is_success());
    }
}
