//! From the pipe of a process to its log.

use std::io;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::net::unix::pipe;
use tokio::time::sleep;

use super::{DRAIN_LIMIT, OutputLog, Sink};

/// Bytes that are read at once: as much as a pipe holds (pipe(7)).
const BLOCK: usize = 64 << 10;
/// The same of a pipe that is always full: each block is a hand-over to the thread that writes.
const LARGE_BLOCK: usize = 1 << 20;
/// Full blocks after which a pipe is made larger.
const FULL_BLOCKS: u32 = 16;

/// Copies a pipe into a log until the last process that holds its other end is gone.
pub(crate) async fn capture_pipe(pipe: OwnedFd, sink: Sink) {
    let (attempt, stream) = (sink.attempt, sink.stream.file_stem());
    let mut life = sink.life.clone();
    let mut log = OutputLog::new(sink);
    let copy = async {
        let mut capacity =
            fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).map_or(BLOCK, |bytes| bytes as usize);
        let (mut block_bytes, mut full_blocks) = (BLOCK, 0);
        let pipe = pipe::Receiver::from_owned_fd(pipe)?;
        // Once the program and all that it started are gone: how much of theirs there can be yet.
        let mut rest = None;
        let mut block = BytesMut::new();
        loop {
            let ready = tokio::select! {
                biased;
                ready = pipe.readable() => ready,
                _ = life.wait_for(|life| life.ended), if rest.is_none() => {
                    rest = Some(capacity);
                    continue;
                }
                () = sleep(DRAIN_LIMIT), if rest.is_some() => return io::Result::Ok(false),
            };
            ready?;
            if rest.is_none() && life.borrow().ended {
                rest = Some(capacity);
            }
            if full_blocks == 0 {
                // Most pipes are idle, and there may be many.
                block = BytesMut::new();
            }
            block.reserve(block_bytes);
            match pipe.try_read_buf(&mut block) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            while block.len() < block_bytes
                && pipe.try_read_buf(&mut block).is_ok_and(|read| read > 0)
            {}
            full_blocks = if block.len() < BLOCK { 0 } else { full_blocks + 1 };
            if full_blocks == FULL_BLOCKS {
                // A system that has no more room for pipes leaves it as it is.
                let larger = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(LARGE_BLOCK as i32));
                if let Ok(bytes) = larger {
                    (capacity, block_bytes) = (bytes as usize, LARGE_BLOCK);
                }
            }
            if let Some(rest) = &mut rest {
                if *rest == 0 {
                    return Ok(false);
                }
                block.truncate(*rest);
                *rest -= block.len();
            }
            log.write(block.split().freeze()).await;
        }
    };
    match copy.await {
        Ok(true) => {}
        Ok(false) => {
            let text =
                "a process that is not part of it keeps its output open; what comes now is lost";
            tracing::warn!(%attempt, stream, "{text}");
            log.tell(text.into());
        }
        Err(error) => {
            tracing::error!(%attempt, stream, "the output cannot be read: {error}");
            log.tell(format!("the rest of {stream} was lost: it cannot be read: {error}"));
        }
    }
    log.finish().await;
}
