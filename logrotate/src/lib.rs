//! The log files of podmesh: a writer that rotates, compresses and deletes by a policy, and a
//! reader that finds any byte of a stream by its logical offset.
//!
//! A *stream* is one name in one folder, such as `stdout` in `<logs>/<job>/<task>/<attempt>/`. Its
//! live file is always `<name>.log`, so `tail -F` works; older bytes are in `<name>.log.1.gz`
//! (newest), `<name>.log.2.gz` and so on. Bytes are kept exactly as they were written. The *logical
//! offset* of a byte counts from the first byte ever written to the stream and never changes,
//! whatever is rotated, deleted or restarted.
//!
//! Where to look:
//! - [`LogWriter`] (`writer.rs`) writes, `rotate.rs` renumbers the rotated files and deletes old
//!   ones, `compress.rs` makes the `.gz` files on one background thread for the whole process;
//! - [`LogReader`] (`reader.rs`) reads, `layout.rs` finds which file holds which offsets;
//! - [`prune`] sweeps a whole tree of task logs by age and size;
//! - `names.rs`, `index.rs`, `gzip.rs` and `cursor.rs` define the files on disk.
//!
//! A stream has one writer at a time. Any number of readers, in any process, can read it meanwhile.

mod compress;
mod cursor;
mod error;
mod failpoint;
mod gzip;
mod index;
mod layout;
mod names;
mod policy;
mod prune;
mod reader;
mod rotate;
mod stream;
mod writer;

#[cfg(test)]
mod tests;

pub use compress::wait_for_compression;
pub use cursor::{CURSOR_BYTES_MAX, Cursor};
pub use error::{AppendError, Error};
pub use policy::RotationPolicy;
pub use prune::{PruneLimits, PruneReport, prune};
pub use reader::{CHUNK_BYTES_MAX, Chunk, LogReader};
pub use writer::{CHECK_INTERVAL, LogWriter};
