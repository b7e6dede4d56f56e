//! One connection of a client: finds an endpoint, and copies in both directions.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::copy::Buffer;
use super::header::header;
use super::plane::{Lane, Plane, Visit};
use super::sockets::{break_off, connect, is_exhausted};

/// How long an endpoint may take to accept a connection. Then another one is tried.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long other endpoints are tried. Clients do not wait for longer.
const REACH_LIMIT: Duration = Duration::from_secs(10);

/// Serves a client until its connection ends.
pub(super) async fn relay(client: TcpStream, port: u16, visit: Visit) {
    let plane = visit.plane();
    match reach(port, plane).await {
        Ok((endpoint, lane)) => {
            if let Err(error) = pass_both(&client, endpoint, &lane, plane).await {
                tracing::debug!(port, endpoint = %lane.chosen.address, "a connection broke: {error}");
                break_off(client);
            } else {
                drop(client);
            }
        }
        Err(why) => {
            plane.no_endpoint(port, &why);
            break_off(client);
        }
    }
}

/// Connects to an endpoint: the best one, or the next that can be reached.
///
/// # Errors
/// Why there is none, for people.
async fn reach(port: u16, plane: &Arc<Plane>) -> Result<(TcpStream, Lane), String> {
    let began = Instant::now();
    let mut tried = Vec::new();
    let mut last = None;
    // A connection to an endpoint that was removed while it was made. It is better than none.
    let mut spare = None;
    while began.elapsed() < REACH_LIMIT
        && let Some(lane) = plane.choose(port, &tried)
    {
        tried.push(lane.chosen.id);
        let address = lane.chosen.address;
        match timeout(CONNECT_LIMIT, connect(address)).await {
            Ok(Ok(endpoint)) if lane.reached(true) => spare = Some((endpoint, lane)),
            Ok(Ok(endpoint)) => return Ok((endpoint, lane)),
            Ok(Err(error)) if is_exhausted(&error) => {
                return Err(format!("no connection to {address} can be made: {error}"));
            }
            Ok(Err(error)) => {
                lane.reached(false);
                last = Some((address, error.to_string()));
            }
            Err(_) => {
                lane.reached(false);
                last = Some((address, format!("no answer within {CONNECT_LIMIT:?}")));
            }
        }
    }
    spare.ok_or_else(|| match last {
        Some((address, why)) => {
            format!("none of {} endpoints can be reached; {address}: {why}", tried.len())
        }
        None => "the service has no ready replica".to_owned(),
    })
}

/// Copies in both directions until both have ended, or one fails.
async fn pass_both(
    client: &TcpStream,
    mut endpoint: TcpStream,
    lane: &Lane,
    plane: &Plane,
) -> io::Result<()> {
    let result = async {
        if lane.chosen.proxy_protocol {
            let addresses: (SocketAddr, SocketAddr) = (client.peer_addr()?, client.local_addr()?);
            endpoint.write_all(&header(addresses.0, addresses.1)).await?;
        }
        let (mut there, mut back) =
            (pin!(pass(client, &endpoint, plane)), pin!(pass(&endpoint, client, plane)));
        // After one direction has ended, nobody reads from its source any more, and so would not
        // notice when that breaks.
        tokio::select! {
            result = &mut there => {
                result?;
                tokio::select! {
                    result = &mut back => result,
                    error = broken(client) => Err(error),
                }
            }
            result = &mut back => {
                result?;
                tokio::select! {
                    result = &mut there => result,
                    error = broken(&endpoint) => Err(error),
                }
            }
        }
    }
    .await;
    if result.is_err() {
        break_off(endpoint);
    }
    result
}

/// Copies until the end of the stream, and passes the end on.
async fn pass(from: &TcpStream, to: &TcpStream, plane: &Plane) -> io::Result<()> {
    loop {
        from.readable().await?;
        // Idle connections hold no buffer.
        let mut buffer = Buffer::take();
        loop {
            let count = match from.try_read(&mut buffer) {
                Ok(0) => return shut_down(to),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            plane.passed(count);
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                match to.try_write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => rest = &rest[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        to.writable().await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn shut_down(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        // It has already been closed by the other side.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// Waits until a connection breaks.
async fn broken(stream: &TcpStream) -> io::Error {
    match stream.ready(Interest::ERROR).await {
        Ok(_) => {
            stream.take_error().ok().flatten().unwrap_or(io::ErrorKind::ConnectionReset.into())
        }
        Err(error) => error,
    }
}
