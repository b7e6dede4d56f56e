//! How much of a stream is kept.

use std::time::Duration;

/// The highest number that a rotated file can have; higher ones belong to somebody else (a date).
pub(crate) const NUMBER_MAX: u32 = 9999;

/// How much of a stream is kept: size of a file, number of files, bytes in all, and age.
///
/// The bounds hold together; whichever is reached first drops the oldest file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationPolicy {
    /// Bytes in the live file at most, before compression. The file is cut after its last whole
    /// line that fits; only a line longer than a file is cut inside. At least 1, and taken as at
    /// most half of `total_bytes_max`, so that there is always room for the newest rotated file
    /// beside the live one.
    pub file_bytes_max: u64,
    /// Rotated files at most, the live file not counted; taken as at most 9999. With 0 only the
    /// live file is kept.
    pub files_max: u32,
    /// Bytes on disk at most for the stream: rotated files (as large as they are on disk, so most
    /// of them compressed) plus a full live file. While a file is being compressed its unfinished
    /// copy comes on top.
    pub total_bytes_max: u64,
    /// A rotated file whose last byte is older than this is removed by [`prune`](crate::prune()).
    pub age_max: Duration,
}

impl Default for RotationPolicy {
    /// 10 MiB a file, 5 rotated files, 64 MiB in all, 30 days.
    fn default() -> Self {
        Self {
            file_bytes_max: 10 << 20,
            files_max: 5,
            total_bytes_max: 64 << 20,
            age_max: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

impl RotationPolicy {
    /// The policy as it is applied: with the limits that the fields' documentation states.
    pub(crate) fn normalised(mut self) -> Self {
        self.file_bytes_max = self.file_bytes_max.min(self.total_bytes_max / 2).max(1);
        self.files_max = self.files_max.min(NUMBER_MAX);
        self
    }

    /// What rotated files may take: the rest is reserved for a full live file.
    pub(crate) fn rotated_bytes_max(&self) -> u64 {
        self.total_bytes_max.saturating_sub(self.file_bytes_max)
    }
}
