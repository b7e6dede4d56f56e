//! Where tests stop a rotation, as `kill -9` would. Outside tests nothing of it exists.

use std::path::Path;

use crate::error::Error;

/// The points between two changes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Before each rename of a numbered file to the next number.
    Shifting,
    /// The live file has become `.1`; there is no live file.
    LiveMoved,
    /// The new live file exists; the index does not know it.
    LiveCreated,
    /// The index or cursor is written beside its name.
    ReplaceTmpWritten,
    /// Before each removal by the policy.
    Forgetting,
    /// The unfinished `.gz` has some bytes.
    GzBegun,
    /// The unfinished `.gz` is whole, under its temporary name.
    GzWritten,
    /// The `.gz` has its name; the plain file is still there.
    GzNamed,
    /// Before each change on the way to cut the stream.
    Cutting,
}

#[cfg(test)]
pub(crate) use imp::{arm, disk_full_at, restart, set_background};
pub(crate) use imp::{background, crashed, hit};

#[cfg(not(test))]
mod imp {
    use super::{Error, Path, Step};

    #[inline]
    pub(crate) fn hit(_: Step, _: &Path) -> Result<(), Error> {
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

    use super::{Error, Path, Step};

    thread_local! {
        static ARMED: Cell<Option<(Step, u32)>> = const { Cell::new(None) };
        static CRASHED: Cell<bool> = const { Cell::new(false) };
        static FULL: Cell<Option<Step>> = const { Cell::new(None) };
        static BACKGROUND: Cell<bool> = const { Cell::new(true) };
    }

    /// Dies at `step`, the time after `passes` more of them.
    pub(crate) fn arm(step: Step, passes: u32) {
        ARMED.set(Some((step, passes)));
    }

    /// The process starts again; says whether it had died.
    pub(crate) fn restart() -> bool {
        ARMED.set(None);
        CRASHED.replace(false)
    }

    /// Lets `step` fail with a full disk until set to `None`.
    pub(crate) fn disk_full_at(step: Option<Step>) {
        FULL.set(step);
    }

    /// Whether this thread's streams are compressed by the background thread.
    pub(crate) fn set_background(on: bool) {
        BACKGROUND.set(on);
    }

    pub(crate) fn background() -> bool {
        BACKGROUND.get()
    }

    pub(crate) fn crashed() -> bool {
        CRASHED.get()
    }

    pub(crate) fn hit(step: Step, path: &Path) -> Result<(), Error> {
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
        // After its death a process changes nothing more.
        if CRASHED.get() {
            Err(Error::io("crash at", path)(io::Error::other("test")))
        } else {
            Ok(())
        }
    }
}
