//! Errors, with advice for the user.

use std::io;
use std::path::{Path, PathBuf};

/// The reason why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of a stream is not a valid file name.
    #[error("log name {name:?} {why}; use letters, digits, '-' and '_', such as \"stdout\"")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file system operation failed.
    #[error("cannot {doing} {}: {source}; {}", path.display(), advice(source))]
    Io {
        /// The operation that failed, such as "write to".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error from the system.
        source: io::Error,
    },
    /// A file of the stream is corrupt.
    #[error(
        "{} is damaged: {why}; its bytes are lost, the stream continues at offset {resume_at}",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
        /// The logical offset after the damaged file, where reading can continue.
        resume_at: u64,
    },
    /// The files of the stream changed faster than they could be scanned.
    #[error("{} is being rotated faster than it can be read; try again", path.display())]
    Busy {
        /// The live file of the stream.
        path: PathBuf,
    },
    /// [`truncate_to`](crate::LogWriter::truncate_to) was given an offset after the end.
    #[error(
        "cannot cut {} to offset {offset}: the stream ends at {end}; the bytes after it were lost",
        path.display()
    )]
    TruncateBeyondEnd {
        /// The live file of the stream.
        path: PathBuf,
        /// The offset asked for.
        offset: u64,
        /// Where the stream ends.
        end: u64,
    },
    /// [`truncate_to`](crate::LogWriter::truncate_to) was given an offset that is no longer in an
    /// uncompressed file. Nothing was changed.
    #[error(
        "cannot cut {} to offset {offset}: that byte is compressed or deleted; \
         keep the {} bytes after it and skip \
         the same number of the bytes written next",
        path.display(),
        end - offset
    )]
    TruncateCompressed {
        /// The live file of the stream.
        path: PathBuf,
        /// The offset asked for.
        offset: u64,
        /// Where the stream ends.
        end: u64,
    },
    /// A cursor is larger than [`CURSOR_BYTES_MAX`](crate::CURSOR_BYTES_MAX).
    #[error(
        "a cursor of {len} bytes is over the limit of {} (CURSOR_BYTES_MAX)",
        crate::CURSOR_BYTES_MAX
    )]
    CursorTooBig {
        /// Its length in bytes.
        len: usize,
    },
    /// The saved cursor is corrupt.
    #[error("the cursor in {} is damaged: {why}; remove it to continue without a cursor", path.display())]
    CursorDamaged {
        /// The cursor's file.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
}

impl Error {
    pub(crate) fn io<'a>(
        doing: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

impl From<Error> for io::Error {
    /// Keeps the kind, so that a caller of [`std::io::Write`] can recognize a full disk.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Name { .. } | Error::CursorTooBig { .. } => io::ErrorKind::InvalidInput,
            Error::Damaged { .. } | Error::CursorDamaged { .. } => io::ErrorKind::InvalidData,
            Error::Busy { .. } => io::ErrorKind::ResourceBusy,
            Error::TruncateBeyondEnd { .. } | Error::TruncateCompressed { .. } => {
                io::ErrorKind::InvalidInput
            }
        };
        Self::new(kind, error)
    }
}

/// Why [`LogWriter::append`](crate::LogWriter::append) did not take all bytes.
#[derive(Debug, thiserror::Error)]
#[error("{taken} bytes were written, then: {source}")]
pub struct AppendError {
    /// The number of bytes from the beginning of the given slice that are in the log. Retry only
    /// the rest.
    pub taken: usize,
    /// The error that stopped the write.
    pub source: Error,
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> Self {
        error.source.into()
    }
}

/// Returns what the user can do about it.
fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            "free space there: accepted bytes are safe, and writing continues when there is room"
        }
        Kind::FileTooLarge => "raise the file size limit (ulimit -f) or lower file_bytes_max",
        Kind::PermissionDenied => "give the user that podmesh runs as access to it",
        Kind::ReadOnlyFilesystem => "mount it writable, or move the data directory",
        Kind::NotADirectory | Kind::IsADirectory => {
            "move away the file or folder that has the name of a log folder or file"
        }
        _ if matches!(
            nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            nix::errno::Errno::EMFILE
        ) =>
        {
            "raise the limit on open files (ulimit -n)"
        }
        _ => "check the disk and the kernel's log",
    }
}
