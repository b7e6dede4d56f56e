//! Paths of an attempt's files.

use std::path::{Path, PathBuf};
use std::{fs, io};

use podmesh_protocol::ids::AttemptId;

/// Returns the folder with the output of an attempt: `<logs>/<job>/<task>/<attempt>`. It is created
/// when the attempt prints its first byte.
pub(crate) fn attempt_log_dir(logs_dir: &Path, attempt: AttemptId) -> PathBuf {
    logs_dir
        .join(attempt.task.job.to_string())
        .join(attempt.task.index.to_string())
        .join(attempt.number.to_string())
}

/// Makes room for the output of an attempt that is about to start. What is in its folder is of
/// another one, which had its number before the manager was restored from a backup. It is kept
/// beside it, as `<attempt>.old`.
pub(crate) fn set_output_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.with_extension("old");
    match fs::rename(dir, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            fs::remove_dir_all(&aside)?;
            fs::rename(dir, &aside)
        }
        done => done,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::ids::JobId;

    use super::*;

    #[test]
    fn an_attempt_begins_with_an_empty_folder() {
        let logs = tempfile::tempdir().unwrap();
        let dir = attempt_log_dir(logs.path(), AttemptId::new(JobId(42), 7, 2));
        set_output_aside(&dir).unwrap();
        for text in ["first", "second"] {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("stdout.log"), text).unwrap();
            set_output_aside(&dir).unwrap();
            assert!(!dir.exists());
            let kept = logs.path().join("42/7/2.old/stdout.log");
            assert_eq!(fs::read_to_string(kept).unwrap(), text);
        }
    }
}
