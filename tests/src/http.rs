//! A small HTTP client that asks again and again, and counts.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks for `/` on a new connection, and returns the body.
///
/// # Errors
/// If the connection fails, or the answer is not `200`.
pub fn get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").filter(|_| answer.starts_with("HTTP/1.1 200"));
    let Some((_, body)) = body else { return Err(io::Error::other(answer)) };
    Ok(body.to_owned())
}

/// Clients that ask without pause until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(u64, Vec<String>)>>,
}

impl Load {
    /// Starts one client for each address.
    pub fn start(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |address: SocketAddr| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut answers, mut failures) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match get(address) {
                        Ok(_) => answers += 1,
                        Err(error) => failures.push(format!("{address}: {error}")),
                    }
                    // Load leaves some of the processor to what it asks.
                    std::thread::sleep(Duration::from_millis(1));
                }
                (answers, failures)
            })
        };
        let clients = addresses.into_iter().map(client).collect();
        Self { stop, clients }
    }

    /// Stops the clients. Returns how many requests were answered, and what failed.
    pub fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = (0, Vec::new());
        for client in self.clients {
            let (answers, failures) = client.join().unwrap_or_default();
            all.0 += answers;
            all.1.extend(failures);
        }
        all
    }
}
