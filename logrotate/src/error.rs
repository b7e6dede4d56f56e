//! What can go wrong, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of a stream cannot be a file name.
    #[error("log name {name:?} {why}; use letters, digits, '-' and '_', such as \"stdout\"")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file system refused.
    #[error("cannot {doing} {}: {source}; {}", path.display(), advice(source))]
    Io {
        /// What was tried, such as "write to".
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file of the stream does not hold what it should.
    #[error(
        "{} is damaged: {why}; its bytes are lost, the stream goes on at offset {resume_at}",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
        /// The logical offset behind the damaged file, where reading can go on.
        resume_at: u64,
    },
    /// The files of the stream changed faster than they could be looked at.
    #[error("{} is being rotated faster than it can be read; try again", path.display())]
    Busy {
        /// The live file of the stream.
        path: PathBuf,
    },
    /// [`truncate_to`](crate::LogWriter::truncate_to) asked for more bytes than there are.
    #[error(
        "cannot cut {} to offset {offset}: it ends at {end} already; bytes were lost before",
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
    /// [`truncate_to`](crate::LogWriter::truncate_to) asked for an offset that is no longer in a
    /// plain file. Nothing was changed.
    #[error(
        "cannot cut {} to offset {offset}: that byte is compressed or gone; \
         keep the {} bytes behind it and skip \
         as many of what is written next",
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
    /// The saved cursor does not hold what was saved.
    #[error("the cursor in {} is damaged: {why}; remove it to go on without", path.display())]
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
    /// Keeps the kind, so that a caller of [`std::io::Write`] can tell a full disk from the rest.
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
    /// How many bytes of the given slice are in the log, from its beginning. Give the rest again,
    /// not these.
    pub taken: usize,
    /// What stopped the rest.
    pub source: Error,
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> Self {
        error.source.into()
    }
}

/// What a person can do about it.
fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            "free space there: what was accepted is safe, and writing goes on when there is room"
        }
        Kind::FileTooLarge => "raise the file size limit (ulimit -f) or lower file_bytes_max",
        Kind::PermissionDenied => "give the user that podmesh runs as access to it",
        Kind::ReadOnlyFilesystem => "mount it writable, or move the data directory",
        Kind::NotADirectory | Kind::IsADirectory => {
            "move away what stands in the place of a log folder or file"
        }
        _ if matches!(
            nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            nix::errno::Errno::EMFILE
        ) =>
        {
            "raise the limit of open files (ulimit -n)"
        }
        _ => "check the disk and the kernel's log",
    }
}
