//! How much of a stream is kept.

use std::time::Duration;

/// The highest number that a rotated file can have; a higher number is another program's date.
pub(crate) const NUMBER_MAX: u32 = 9999;

/// How much of a stream is kept: bytes per file, number of files, total bytes, and age.
///
/// All limits apply; the first one reached drops the oldest file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationPolicy {
    /// The maximum size of the live file in bytes, before compression. The file ends after the last
    /// whole line that fits; only a line longer than a file is split. At least 1, and at most half
    /// of `total_bytes_max`, so that there is always room for the newest rotated file beside the
    /// live one.
    pub file_bytes_max: u64,
    /// The maximum number of rotated files, without the live file; at most 9999. With 0 only the
    /// live file is kept.
    pub files_max: u32,
    /// The maximum number of bytes on disk for the stream: rotated files (their size on disk, so
    /// mostly compressed) plus a full live file. While a file is being compressed, its unfinished
    /// copy is not counted.
    pub total_bytes_max: u64,
    /// A rotated file whose last byte is older than this is removed by [`prune`](crate::prune()).
    pub age_max: Duration,
}

impl Default for RotationPolicy {
    /// 10 MiB per file, 5 rotated files, 64 MiB in total, 30 days.
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
    /// Applies the limits that the documentation of the fields states.
    pub(crate) fn normalised(mut self) -> Self {
        self.file_bytes_max = self.file_bytes_max.min(self.total_bytes_max / 2).max(1);
        self.files_max = self.files_max.min(NUMBER_MAX);
        self
    }

    /// Returns the maximum size of the rotated files: the rest is reserved for a full live file.
    pub(crate) fn rotated_bytes_max(&self) -> u64 {
        self.total_bytes_max.saturating_sub(self.file_bytes_max)
    }
}
