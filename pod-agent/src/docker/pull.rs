//! Pulls images and reports progress. Attempts that need the same image share one pull.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{CreateImageInfo, ProgressDetail};
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::engine::Engine;
use super::error::CallError;
use super::registry;

/// How long the engine may be silent during a pull. It reports little while it unpacks a large
/// layer.
const PULL_SILENCE: Duration = Duration::from_secs(600);
/// Minimum interval between progress reports.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The state of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// In progress; the text is for people.
    Going(String),
    Done(Result<(), String>),
}

/// An image to pull.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ImageKey {
    /// With a tag or digest.
    reference: String,
    /// As in the job's spec.
    platform: Option<String>,
}

/// The pulls in progress.
#[derive(Debug)]
pub(super) struct Pulls {
    docker_config: Option<PathBuf>,
    going: Mutex<HashMap<ImageKey, watch::Sender<State>>>,
}

impl Pulls {
    /// Creates an empty set. `docker_config` is the folder of Docker's client configuration.
    pub(super) fn new(docker_config: Option<PathBuf>) -> Self {
        Self { docker_config, going: Mutex::default() }
    }

    /// Returns when the image is present, or why it cannot be pulled. A pull that nobody waits for
    /// any more is cancelled.
    pub(super) async fn pull(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        image: &str,
        platform: Option<&str>,
        mut tell: impl FnMut(String),
    ) -> Result<(), String> {
        let key = ImageKey { reference: with_tag(image), platform: platform.map(str::to_owned) };
        let mut state = self.join(engine, key);
        tell(format!("pulling image {image}"));
        let mut told = Instant::now();
        loop {
            if state.changed().await.is_err() {
                return Err("the pull was cancelled".into());
            }
            match state.borrow_and_update().clone() {
                State::Done(result) => return result,
                State::Going(progress) if told.elapsed() >= TELL_EVERY => {
                    told = Instant::now();
                    tell(format!("pulling image {image}: {progress}"));
                }
                State::Going(_) => {}
            }
        }
    }

    /// Subscribes to the pull of the image, starting it if necessary.
    fn join(self: &Arc<Self>, engine: &Arc<Engine>, key: ImageKey) -> watch::Receiver<State> {
        let mut going = self.going.lock();
        if let Some(sender) = going.get(&key) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(State::Going(String::new()));
        going.insert(key.clone(), sender.clone());
        let (pulls, engine) = (Arc::clone(self), Arc::clone(engine));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    result = pulls.run(&engine, &key, &sender) => {
                        pulls.going.lock().remove(&key);
                        sender.send_replace(State::Done(result));
                        return;
                    }
                    () = sender.closed() => {
                        let mut going = pulls.going.lock();
                        // If somebody has just subscribed, the pull starts again for them.
                        if sender.is_closed() {
                            going.remove(&key);
                            return;
                        }
                    }
                }
            }
        });
        receiver
    }

    /// Pulls an image. If the credentials for its registry cannot be read, the image may still be
    /// public, so that error is reported only if the pull fails.
    async fn run(
        &self,
        engine: &Engine,
        key: &ImageKey,
        sender: &watch::Sender<State>,
    ) -> Result<(), String> {
        let ImageKey { reference, platform } = key;
        let (credentials, unreadable) =
            match registry::credentials(self.docker_config.as_deref(), reference).await {
                Ok(credentials) => (credentials, None),
                Err(why) => (None, Some(why)),
            };
        let news = engine.pull(reference, platform.as_deref(), credentials);
        watch_pull(news, sender).await.map_err(|why| match unreadable {
            Some(unreadable) => format!("{why} ({unreadable})"),
            None => why,
        })
    }
}

async fn watch_pull(
    mut news: impl Stream<Item = Result<CreateImageInfo, CallError>> + Unpin,
    sender: &watch::Sender<State>,
) -> Result<(), String> {
    let mut layers = Layers::default();
    loop {
        match timeout(PULL_SILENCE, news.next()).await {
            Err(_) => return Err(CallError::late(PULL_SILENCE).to_string()),
            Ok(None) => return Ok(()),
            Ok(Some(Err(error))) => return Err(error.to_string()),
            Ok(Some(Ok(info))) => {
                layers.update(info);
                sender.send_replace(State::Going(layers.progress()));
            }
        }
    }
}

/// Adds the default tag to an image without a tag or digest, for which the engine would pull all
/// tags.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// The progress of an image's layers.
#[derive(Debug, Default)]
struct Layers {
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    got: u64,
    size: u64,
    done: bool,
}

impl Layers {
    fn update(&mut self, info: CreateImageInfo) {
        let (Some(id), Some(status)) = (info.id, info.status) else { return };
        // Other lines have a tag instead of a layer id, and other statuses.
        let layer = match status.as_str() {
            "Pulling fs layer" | "Waiting" | "Downloading" | "Verifying Checksum"
            | "Download complete" | "Extracting" | "Pull complete" | "Already exists" => {
                self.layers.entry(id).or_default()
            }
            _ => return,
        };
        let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        if status == "Downloading" {
            let ProgressDetail { current, total } = info.progress_detail.unwrap_or_default();
            layer.got = bytes(current).unwrap_or(layer.got);
            layer.size = bytes(total).unwrap_or(layer.size);
        } else if status != "Pulling fs layer" && status != "Waiting" {
            layer.got = layer.size;
        }
        layer.done |= status == "Pull complete" || status == "Already exists";
    }

    fn progress(&self) -> String {
        let sum = |of: fn(&Layer) -> u64| self.layers.values().map(of).sum::<u64>();
        let (got, size) = (sum(|layer| layer.got), sum(|layer| layer.size));
        let done = self.layers.values().filter(|layer| layer.done).count();
        let tenths = |bytes: u64| format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10);
        format!(
            "{} of {} MB, {done} of {} layers ready",
            tenths(got),
            tenths(size),
            self.layers.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_means_latest() {
        for (image, reference) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            ("host:5000/a/b:1", "host:5000/a/b:1"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_tag(image), reference);
        }
    }

    #[test]
    fn progress_counts_layers_and_bytes() {
        let mut layers = Layers::default();
        let mut say = |id: &str, status: &str, progress: Option<(i64, i64)>| {
            layers.update(CreateImageInfo {
                id: Some(id.into()),
                status: Some(status.into()),
                progress_detail: progress.map(|(current, total)| ProgressDetail {
                    current: Some(current),
                    total: Some(total),
                }),
                ..CreateImageInfo::default()
            });
            layers.progress()
        };
        say("latest", "Pulling from library/busybox", None);
        say("a", "Pulling fs layer", None);
        say("b", "Already exists", None);
        let said = say("a", "Downloading", Some((1_250_000, 4_000_000)));
        assert_eq!(said, "1.2 of 4.0 MB, 1 of 2 layers ready");
        say("a", "Download complete", None);
        let said = say("a", "Pull complete", None);
        assert_eq!(said, "4.0 of 4.0 MB, 2 of 2 layers ready");
    }
}
