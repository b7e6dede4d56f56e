//! Handles signals, and the end of standard input.

use std::io;
use std::pin::{Pin, pin};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::{CliError, CliResult, EXIT_INTERRUPTED};

/// Receives SIGINT and SIGTERM. From its creation on, they no longer end the process.
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
}

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// SIGINT: Ctrl-C.
    Int,
    /// SIGTERM.
    Term,
}

impl Interrupts {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub(crate) fn new() -> CliResult<Self> {
        let make = || -> io::Result<Self> {
            Ok(Self {
                int: signal(SignalKind::interrupt())?,
                term: signal(SignalKind::terminate())?,
            })
        };
        make().map_err(|why| CliError::failure("signals cannot be handled").because(why))
    }

    /// Waits for the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.int.recv() => Interrupt::Int,
            _ = self.term.recv() => Interrupt::Term,
        }
    }
}

/// The stop condition of a daemon: SIGTERM, SIGINT, or the end of standard input.
pub(crate) struct Stop {
    interrupts: Interrupts,
    /// Resolves at the end of standard input, if that stops the daemon.
    eof: Option<oneshot::Receiver<()>>,
}

impl Stop {
    /// Installs the handlers. `at_eof`: whether the end of standard input stops the daemon too.
    ///
    /// # Errors
    /// If the system refuses a handler or a thread.
    pub(crate) fn new(at_eof: bool) -> CliResult<Self> {
        Ok(Self {
            interrupts: Interrupts::new()?,
            eof: if at_eof { Some(stdin_end()?) } else { None },
        })
    }

    async fn first(&mut self) {
        let Self { interrupts, eof } = self;
        match eof {
            Some(eof) => tokio::select! {
                _ = interrupts.next() => {}
                _ = eof => {}
            },
            None => _ = interrupts.next().await,
        }
        // It has resolved and must not be polled again.
        self.eof = None;
    }

    /// Waits for the next SIGINT: the user does not want to wait any longer.
    async fn at_once(&mut self) {
        while self.interrupts.next().await != Interrupt::Int {}
    }
}

/// Reads standard input to its end on a thread of its own, which ends with the process.
fn stdin_end() -> CliResult<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("podmesh-stdin".into())
        .spawn(move || {
            _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            _ = sender.send(());
        })
        .map_err(|why| CliError::failure("standard input cannot be read").because(why))?;
    Ok(receiver)
}

/// Runs a daemon until it ends or is asked to stop. Then the shutdown future resolves, and the
/// function waits for the daemon's end. A second Ctrl-C does not wait.
///
/// # Errors
/// The daemon's error.
pub(crate) async fn run_daemon<F>(mut stop: Stop, daemon: impl FnOnce(Shutdown) -> F) -> CliResult
where
    F: Future<Output = CliResult<()>>,
{
    let (ask, asked) = oneshot::channel();
    let shutdown: Shutdown = Box::pin(async {
        _ = asked.await;
    });
    let mut running = pin!(daemon(shutdown));
    tokio::select! {
        result = &mut running => return result.map(|()| 0),
        () = stop.first() => {}
    }
    tracing::info!("asked to stop");
    _ = ask.send(());
    tokio::select! {
        result = running => result.map(|()| 0),
        () = stop.at_once() => Ok(EXIT_INTERRUPTED),
    }
}

/// Resolves when a daemon must stop.
pub(crate) type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;
