//! Pulls from a registry that the test provides.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_protocol::spec::PullPolicy;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Runs a program with `input` on stdin, and returns its stdout.
fn through(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program}");
        output.stdout
    })
}

fn digest(bytes: &[u8]) -> String {
    let sum = String::from_utf8(through("sha256sum", &[], bytes)).unwrap();
    format!("sha256:{}", sum.split(' ').next().unwrap())
}

/// A registry with one image of one layer, which it sends slowly.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    /// How often the image was requested by its tag.
    asked: Arc<AtomicUsize>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::open_to(None).await
    }

    /// Starts a registry that requires this `Authorization` header, if there is one.
    async fn open_to(authorization: Option<&'static str>) -> Self {
        let tar = busybox_tar(&["--create", "--file=-"]);
        let layer = through("gzip", &["-1", "--no-name"], &tar);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&tar)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config.len(),
                "digest": digest(&config),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": layer.len(),
                "digest": digest(&layer),
            }],
        });
        let manifest = manifest.to_string().into_bytes();
        let files = Arc::new([
            (format!("/v2/test/image/blobs/{}", digest(&config)), config),
            (format!("/v2/test/image/blobs/{}", digest(&layer)), layer),
            (format!("/v2/test/image/manifests/{}", digest(&manifest)), manifest.clone()),
            ("/v2/test/image/manifests/latest".to_owned(), manifest),
            ("/v2/".to_owned(), b"{}".to_vec()),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (files, counter) = (Arc::clone(&files), Arc::clone(&counter));
                tokio::spawn(async move {
                    _ = answer(stream, files.as_slice(), &counter, authorization).await
                });
            }
        });
        Self { address, asked }
    }
}

/// Answers one request. Closes the connection if it is not HTTP (the engine tries TLS first).
async fn answer(
    mut stream: TcpStream,
    files: &[(String, Vec<u8>)],
    asked: &AtomicUsize,
    authorization: Option<&str>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await?;
        request.push(byte);
        if !request[0].is_ascii_uppercase() {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    if authorization.is_some_and(|wanted| !request.contains(wanted)) {
        return stream
            .write_all(
                b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"\r\n\
                  Content-Length: 0\r\nConnection: close\r\n\r\n",
            )
            .await;
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if path.ends_with("/manifests/latest") {
        asked.fetch_add(1, Ordering::SeqCst);
    }
    let Some((_, body)) = files.iter().find(|(known, _)| known == path) else {
        return stream
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    };
    let kind = if path.contains("/manifests/") { MANIFEST } else { "application/octet-stream" };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(body),
    );
    stream.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        for part in body.chunks(body.len().div_ceil(20).max(4096)) {
            stream.write_all(part).await?;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    stream.shutdown().await
}

#[tokio::test]
async fn a_missing_image_is_pulled_once_with_progress_reports() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let registry = Registry::start().await;
    // A name without a tag means `latest`, not all tags.
    let name = node.owned_image(format!("{}/test/image", registry.address));
    let mut agent = node.agent().await;
    for index in 1..=3 {
        agent.start(attempt(index), job(&name, &["sh", "-c", "echo pulled"]));
    }
    for index in 1..=3 {
        let outcome = agent.end(attempt(index)).await;
        assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
        assert_eq!(node.text(attempt(index), "stdout"), "pulled\n");
        let said = agent.heard(attempt(index));
        assert_eq!(said[0], RuntimeFact::Preparing(format!("pulling image {name}")));
        let tells = |fact: &RuntimeFact| matches!(fact, RuntimeFact::Preparing(text) if text.contains(" MB, "));
        assert!(said.iter().any(tells), "{said:?}");
        // At most once a second.
        assert!(said.len() < 12, "{said:?}");
    }
    // One pull sends one or two requests (HEAD, then GET).
    assert!((1..=2).contains(&registry.asked.load(Ordering::SeqCst)));

    let gone = agent.run(attempt(4), job(&format!("{name}:nothing"), &["true"])).await;
    assert_eq!(gone.exit_code, Some(125));
    assert!(gone.message.unwrap().contains(&format!("{name}:nothing")));
}

#[tokio::test]
async fn a_private_image_is_pulled_with_the_current_credentials_of_docker_login() {
    if !usable() {
        return;
    }
    // echo -n me:secret | base64
    let registry = Registry::open_to(Some("Authorization: Basic bWU6c2VjcmV0\r\n")).await;
    let config = tempfile::tempdir().unwrap();
    let mut node = TestNode::new();
    let name = node.owned_image(format!("{}/test/image", registry.address));
    let mut settings = node.settings();
    settings.docker_config = Some(config.path().to_owned());
    let mut agent = Agent::new(settings, node.cluster).await;

    let refused = agent.run(attempt(1), job(&name, &["true"])).await;
    assert_eq!(refused.exit_code, Some(125), "{refused:?}");

    // The agent is not restarted.
    let login = json!({"auths": {registry.address.to_string(): {"auth": "bWU6c2VjcmV0"}}});
    std::fs::write(config.path().join("config.json"), login.to_string()).unwrap();
    let pulled = agent.run(attempt(2), job(&name, &["true"])).await;
    assert_eq!(pulled.exit_code, Some(0), "{pulled:?}");
}

#[tokio::test]
async fn an_image_of_another_platform_is_not_used_instead_of_the_requested_one() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let mut other = node.job(&["true"]);
    docker_spec(&mut other).platform = Some("linux/s390x".into());
    docker_spec(&mut other).pull = PullPolicy::Never;
    let outcome = agent.run(attempt(1), other).await;
    assert_eq!(outcome.exit_code, Some(125), "{outcome:?}");
    let mut own = node.job(&["true"]);
    docker_spec(&mut own).platform = Some("linux".into());
    assert_eq!(agent.run(attempt(2), own).await.exit_code, Some(0));
}
