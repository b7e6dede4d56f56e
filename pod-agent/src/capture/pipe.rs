//! Captures the output of a process from its pipe.

use std::io;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::net::unix::pipe;
use tokio::time::sleep;

use super::{DRAIN_LIMIT, OutputLog, Sink};

/// Bytes read at once: the capacity of a pipe (pipe(7)).
const BLOCK: usize = 64 << 10;
/// Bytes read at once from a pipe that is always full, because each block is handed to another
/// thread.
const LARGE_BLOCK: usize = 1 << 20;
/// How many full blocks in a row enlarge a pipe.
const FULL_BLOCKS: u32 = 16;

/// Copies a pipe into a log until the last process that holds its other end has ended.
pub(crate) async fn capture_pipe(pipe: OwnedFd, sink: Sink) {
    let (attempt, stream) = (sink.attempt, sink.stream.file_stem());
    let mut life = sink.life.clone();
    let mut log = OutputLog::new(sink);
    let copy = async {
        let capacity = |pipe: &pipe::Receiver| {
            fcntl(pipe, FcntlArg::F_GETPIPE_SZ).map_or(BLOCK, |bytes| bytes as usize)
        };
        let (mut block_bytes, mut full_blocks) = (BLOCK, 0);
        // It is known to be the reading end of a pipe. Checking that would take three more system
        // calls.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let pipe = pipe::Receiver::from_owned_fd_unchecked(pipe)?;
        // How much output can still be in the pipe when the program and all its descendants have
        // ended.
        let mut rest = None;
        let mut block = BytesMut::new();
        loop {
            let ready = tokio::select! {
                biased;
                ready = pipe.readable() => ready,
                _ = life.wait_for(|life| life.ended), if rest.is_none() => {
                    rest = Some(capacity(&pipe));
                    continue;
                }
                () = sleep(DRAIN_LIMIT), if rest.is_some() => return io::Result::Ok(false),
            };
            ready?;
            if rest.is_none() && life.borrow().ended {
                rest = Some(capacity(&pipe));
            }
            if full_blocks == 0 {
                // Most pipes are idle, and there can be many, so keep no buffer for them.
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
                // If the system has no room for larger pipes, the size stays as it is.
                let larger = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(LARGE_BLOCK as i32));
                if larger.is_ok() {
                    block_bytes = LARGE_BLOCK;
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
            let text = "a process outside the task keeps its output open; further output is lost";
            tracing::warn!(%attempt, stream, "{text}");
            log.tell(text.into());
        }
        Err(error) => {
            tracing::error!(%attempt, stream, "cannot read the output: {error}");
            log.tell(format!("the rest of {stream} was lost: cannot read it: {error}"));
        }
    }
    log.finish().await;
}
