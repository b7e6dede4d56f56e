//! Ends a daemon that hangs, so that a restart can recover it.
//!
//! Each part of a daemon that others wait for has a [`Pulse`]. It beats at every step, and every
//! [`BEAT_EVERY`] while it has nothing to do. A separate thread counts the seconds without a beat.
//! It counts its own rounds instead of measuring time: a process that was stopped, or a machine
//! that was suspended, did not hang.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How often a part beats while it has nothing to do.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);
/// How often the watchdog checks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The number of checks without a beat after which a part counts as hanging.
const LOOKS_MAX: u32 = 30;

/// The parts of a daemon to watch.
#[derive(Debug, Default)]
pub struct Watchdog {
    pulses: Vec<Pulse>,
    excused: Arc<AtomicBool>,
}

/// The sign of life of a part.
#[derive(Clone, Debug)]
pub struct Pulse {
    part: &'static str,
    beats: Arc<AtomicU64>,
    excused: Arc<AtomicBool>,
}

impl Pulse {
    /// Records that the part has made a step, or has nothing to do.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets whether this part waits for something external that can take any time, such as disk
    /// space. Other parts may be waiting for it, so no part is ended meanwhile.
    pub fn excuse(&self, excused: bool) {
        self.excused.store(excused, Ordering::Relaxed);
    }
}

impl Watchdog {
    /// Creates a pulse for a part; its name is logged if it hangs.
    pub fn pulse(&mut self, part: &'static str) -> Pulse {
        let excused = Arc::clone(&self.excused);
        let pulse = Pulse { part, beats: Arc::default(), excused };
        self.pulses.push(pulse.clone());
        pulse
    }

    /// Watches until the guard is dropped. If a part has not beaten for 30 s, this is logged with
    /// the state of each thread, and the process is aborted.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(self) -> io::Result<Watching> {
        self.start_with(LOOK_EVERY, |part| {
            tracing::error!(
                "the part `{part}` of this daemon has made no progress for {LOOKS_MAX} s, which is a bug in podmesh: \
                 the daemon exits now and can be restarted; nothing that was acknowledged is lost. Its threads:{}",
                threads()
            );
            // Another thread writes the log.
            thread::sleep(LOOK_EVERY);
            // A core dump, if the system keeps them, contains the stacks.
            std::process::abort();
        })
    }

    fn start_with(
        self,
        look_every: Duration,
        hangs: impl Fn(&'static str) + Send + 'static,
    ) -> io::Result<Watching> {
        let stopped = Arc::new(AtomicBool::new(false));
        let watching = Watching { stopped: Arc::clone(&stopped) };
        let watch = move || {
            let mut last: Vec<_> = self.pulses.iter().map(|_| (0, 0)).collect();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(look_every);
                for (pulse, (beats, looks)) in self.pulses.iter().zip(&mut last) {
                    let now = pulse.beats.load(Ordering::Relaxed);
                    if now != *beats || self.excused.load(Ordering::Relaxed) {
                        (*beats, *looks) = (now, 0);
                        continue;
                    }
                    *looks += 1;
                    if *looks == LOOKS_MAX {
                        hangs(pulse.part);
                    }
                }
            }
        };
        thread::Builder::new().name("podmesh-watch".into()).spawn(watch)?;
        Ok(watching)
    }
}

/// Stops watching when it is dropped: a daemon may take its time to stop.
#[derive(Debug)]
pub struct Watching {
    stopped: Arc<AtomicBool>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Returns what each thread of this process does, as far as the system tells (proc(5)).
fn threads() -> String {
    let mut text = String::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let of = |name: &str| read(&task.path().join(name));
        let (name, waits_in, call) = (of("comm"), of("wchan"), of("syscall"));
        text.push_str(&format!("\n{name}: waits in {waits_in}, system call {call}"));
    }
    text
}

fn read(path: &Path) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) => format!("({error})"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_hanging_part_is_reported_once_unless_it_is_excused() {
        let mut watchdog = Watchdog::default();
        let (well, hanging) = (watchdog.pulse("well"), watchdog.pulse("hanging"));
        let (sender, hung) = mpsc::channel();
        // A busy machine may not run this test's thread for a while.
        let look_every = Duration::from_millis(20);
        hanging.excuse(true);
        let beating = {
            let well = well.clone();
            move || well.beat()
        };
        let watching = watchdog.start_with(look_every, move |part| {
            // The test may have ended.
            _ = sender.send(part);
        });
        let watching = watching.unwrap();
        let wait = |limit: u64| {
            for _ in 0..limit * 10 {
                beating();
                if let Ok(part) = hung.recv_timeout(look_every / 10) {
                    return Some(part);
                }
            }
            None
        };
        assert_eq!(wait(60), None);
        hanging.excuse(false);
        assert_eq!(wait(6_000), Some("hanging"));
        assert_eq!(wait(60), None);
        drop(watching);
    }

    #[test]
    fn all_threads_are_listed() {
        let (sender, receiver) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("some-thread".into());
        let thread = thread.spawn(move || receiver.recv()).unwrap();
        while !threads().contains("some-thread: waits in") {
            thread::yield_now();
        }
        drop(sender);
        thread.join().unwrap().unwrap_err();
    }
}
