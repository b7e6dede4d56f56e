//! A manager that gives the answers of a test, on the socket where the program looks for one.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use podmesh_protocol::client::{Reply, ReplyBody, RequestBody};
use podmesh_protocol::codec;
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::session::{ToManager, ToPeer};
use tempfile::TempDir;
use tokio::sync::oneshot;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// The answer to a request; `None` leaves it without one.
pub(crate) type Answer = Option<Result<ReplyBody, ErrorReply>>;

/// The manager. It ends when it is dropped.
pub(crate) struct FakeManager {
    home: TempDir,
    asked: Arc<Mutex<Vec<RequestBody>>>,
    peak: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeManager {
    /// Answers each request after `delay`.
    pub(crate) fn start(
        delay: Duration,
        answer: impl Fn(&RequestBody) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("run")).unwrap();
        let address = format!("ipc://{}/run/control.sock", home.path().display());
        let asked: Arc<Mutex<Vec<RequestBody>>> = Arc::default();
        let peak: Arc<AtomicUsize> = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let (ready, bound) = mpsc::channel();
        let (seen, most, answer) = (Arc::clone(&asked), Arc::clone(&peak), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut socket = RouterSocket::new();
                socket.bind(&address).await.unwrap();
                ready.send(()).unwrap();
                let (sender, mut receiver) = socket.split();
                let in_progress: Arc<AtomicUsize> = Arc::default();
                let work = async {
                    loop {
                        let frames = receiver.recv().await.unwrap().into_vec();
                        let [peer, frame] = &frames[..] else { continue };
                        let ToManager::Request(request) = codec::decode(frame).unwrap() else {
                            continue;
                        };
                        seen.lock().unwrap().push(request.body.clone());
                        let now = in_progress.fetch_add(1, Ordering::Relaxed) + 1;
                        most.fetch_max(now, Ordering::Relaxed);
                        let Some(result) = answer(&request.body) else { continue };
                        let (peer, mut sender) = (peer.clone(), sender.clone());
                        let in_progress = Arc::clone(&in_progress);
                        tokio::spawn(async move {
                            tokio::time::sleep(delay).await;
                            in_progress.fetch_sub(1, Ordering::Relaxed);
                            let reply = ToPeer::Reply(Reply { id: request.id, result });
                            let bytes = codec::encode(&reply).unwrap();
                            let mut message = ZmqMessage::from(bytes);
                            message.push_front(peer);
                            // The program may be gone.
                            _ = sender.send(message).await;
                        });
                    }
                };
                tokio::select! {
                    () = work => {}
                    _ = stopped => {}
                }
            });
        });
        bound.recv().unwrap();
        Self { home, asked, peak, stop: Some(stop), thread: Some(thread) }
    }

    /// Returns the program with this manager.
    pub(crate) fn podmesh(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podmesh"));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PODMESH_") {
                command.env_remove(name);
            }
        }
        command.env("PODMESH_DATA_DIR", self.home.path()).stdin(Stdio::null()).args(arguments);
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.podmesh(arguments).output().unwrap()
    }

    /// Returns the requests so far.
    pub(crate) fn asked(&self) -> Vec<RequestBody> {
        self.asked.lock().unwrap().clone()
    }

    /// Returns how many requests were in progress at most at a time.
    pub(crate) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Writes a file into the folder of the test, and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for FakeManager {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
