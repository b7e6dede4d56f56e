//! From the pipe of a process to its log.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use tokio::net::unix::pipe;
use tokio::time::sleep;

use super::{DRAIN_LIMIT, OutputLog, Sink};

/// Bytes that are read at once: as much as a pipe holds.
const BLOCK: usize = 64 << 10;

/// Copies a pipe into a log until the last process that holds its other end is gone.
pub(crate) async fn capture_pipe(pipe: OwnedFd, sink: Sink) {
    let (attempt, stream) = (sink.attempt, sink.stream.file_stem());
    let mut life = sink.life.clone();
    let mut log = OutputLog::new(sink);
    let copy = async {
        // What a pipe holds (pipe(7)), where the system does not say.
        let capacity = fcntl(&pipe, FcntlArg::F_GETPIPE_SZ).map_or(BLOCK, |bytes| bytes as usize);
        let pipe = pipe::Receiver::from_owned_fd(pipe)?;
        // Once the program and all that it started are gone: how much of theirs there can be yet.
        let mut rest = None;
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
            // Made anew each time: most pipes are idle, and there may be many.
            let mut block = Vec::with_capacity(BLOCK);
            match pipe.try_read_buf(&mut block) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            while block.len() < BLOCK && pipe.try_read_buf(&mut block).is_ok_and(|read| read > 0) {}
            if let Some(rest) = &mut rest {
                if *rest == 0 {
                    return Ok(false);
                }
                block.truncate(*rest);
                *rest -= block.len();
            }
            log.write(block.into()).await;
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
