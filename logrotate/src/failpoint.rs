//! Points at which tests stop a rotation, as `kill -9` would. Outside tests these functions do
//! nothing.

use std::path::Path;

use crate::error::Error;

/// A point between two changes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// Before each rename of a numbered file to the next number.
    Shifting,
    /// The live file was renamed to `.1`; there is no live file.
    LiveMoved,
    /// The new live file exists; the index does not contain it yet.
    LiveCreated,
    /// The new index or cursor is complete under its temporary name.
    ReplaceTmpWritten,
    /// Before the policy removes a file.
    Removing,
    /// The unfinished `.gz` has its first bytes.
    GzBegun,
    /// The unfinished `.gz` is complete, under its temporary name.
    GzWritten,
    /// The `.gz` has its final name; the plain file still exists.
    GzNamed,
    /// Before each change while the stream is cut back.
    Cutting,
}

#[cfg(test)]
pub(crate) use imp::{arm, disk_full_at, restart, set_background};
pub(crate) use imp::{background, crashed, hit};

#[cfg(not(test))]
mod imp {
    use super::{CrashPoint, Error, Path};

    #[inline]
    pub(crate) fn hit(_: CrashPoint, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    pub(crate) fn crashed() -> bool {
        false
    }

    #[inline]
    pub(crate) fn background() -> bool {
        true
    }
}

#[cfg(test)]
mod imp {
    use std::cell::Cell;
    use std::io;

    use super::{CrashPoint, Error, Path};

    thread_local! {
        static ARMED: Cell<Option<(CrashPoint, u32)>> = const { Cell::new(None) };
        static CRASHED: Cell<bool> = const { Cell::new(false) };
        static FULL: Cell<Option<CrashPoint>> = const { Cell::new(None) };
        static BACKGROUND: Cell<bool> = const { Cell::new(true) };
    }

    /// Crashes at `step`, after passing it `passes` times.
    pub(crate) fn arm(step: CrashPoint, passes: u32) {
        ARMED.set(Some((step, passes)));
    }

    /// Restarts after a crash. Returns whether there was one.
    pub(crate) fn restart() -> bool {
        ARMED.set(None);
        CRASHED.replace(false)
    }

    /// Makes `step` fail with a full disk until set to `None`.
    pub(crate) fn disk_full_at(step: Option<CrashPoint>) {
        FULL.set(step);
    }

    /// Sets whether the background thread compresses the streams of this thread.
    pub(crate) fn set_background(on: bool) {
        BACKGROUND.set(on);
    }

    pub(crate) fn background() -> bool {
        BACKGROUND.get()
    }

    pub(crate) fn crashed() -> bool {
        CRASHED.get()
    }

    pub(crate) fn hit(step: CrashPoint, path: &Path) -> Result<(), Error> {
        if FULL.get() == Some(step) {
            return Err(Error::io("write", path)(io::ErrorKind::StorageFull.into()));
        }
        match ARMED.get() {
            Some((armed, 0)) if armed == step => {
                ARMED.set(None);
                CRASHED.set(true);
            }
            Some((armed, passes)) if armed == step => ARMED.set(Some((armed, passes - 1))),
            _ => {}
        }
        // After a crash the process changes nothing more.
        if CRASHED.get() {
            Err(Error::io("crash at", path)(io::Error::other("test")))
        } else {
            Ok(())
        }
    }
}
