//! What the user and the system ask of the process.

use std::io;
use std::pin::{Pin, pin};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::{CliError, EXIT_INTERRUPTED, Outcome};

/// SIGINT and SIGTERM, from the moment this is made: they end the process no more.
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
}

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// SIGINT: Ctrl-C.
    Int,
    /// SIGTERM.
    Term,
}

impl Interrupts {
    /// Takes the signals over.
    ///
    /// # Errors
    /// When the system gives no handler.
    pub(crate) fn new() -> Outcome<Self> {
        let make = || -> io::Result<Self> {
            Ok(Self {
                int: signal(SignalKind::interrupt())?,
                term: signal(SignalKind::terminate())?,
            })
        };
        make().map_err(|why| CliError::failure("signals cannot be handled").because(why))
    }

    /// The next of them. Can be dropped without loss.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.int.recv() => Interrupt::Int,
            _ = self.term.recv() => Interrupt::Term,
        }
    }
}

/// When a daemon is to stop: at SIGTERM or SIGINT, or when standard input ends.
pub(crate) struct Stop {
    interrupts: Interrupts,
    /// Resolves when standard input ends, where that counts.
    eof: Option<oneshot::Receiver<()>>,
}

impl Stop {
    /// Takes the signals over. `at_eof`: whether the end of standard input counts, too.
    ///
    /// # Errors
    /// When the system gives no handler or no thread.
    pub(crate) fn new(at_eof: bool) -> Outcome<Self> {
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
        // Resolved once; it is not to be polled again.
        self.eof = None;
    }

    /// The next SIGINT: whoever waits at a terminal has had enough.
    async fn at_once(&mut self) {
        while self.interrupts.next().await != Interrupt::Int {}
    }
}

/// Reads standard input to its end on a thread of its own, which dies with the process.
fn stdin_end() -> Outcome<oneshot::Receiver<()>> {
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

/// Runs a daemon until it ends, or is asked to: then its shutdown future is done, and its end is
/// waited for. A second Ctrl-C ends it at once.
///
/// # Errors
/// What the daemon ends with.
pub(crate) async fn run_daemon<F>(mut stop: Stop, daemon: impl FnOnce(Shutdown) -> F) -> Outcome
where
    F: Future<Output = Outcome<()>>,
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

/// Done when a daemon is to stop.
pub(crate) type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;
