//! A full disk: a real limit of the kernel, which accepts a part of a write and then fails.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podmesh_logrotate::{Error, LogWriter, RotationPolicy};

const DIR: &str = "PODMESH_TEST_FULL_DIR";

/// Not a test by itself: runs in a process of its own, whose files are limited to 8 KiB.
#[test]
fn child() {
    let Some(dir) = env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let (limit, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let mut writer = LogWriter::open(dir, "stdout", RotationPolicy::default()).unwrap();
    let bytes: Vec<u8> = (0..20_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    writer.append(&bytes[..5000]).unwrap();
    let error = writer.append(&bytes[5000..]).unwrap_err();
    let taken = 5000 + error.taken;
    assert_eq!(taken as u64, limit, "the part that fits is taken");
    assert!(
        matches!(&error.source, Error::Io { source, .. } if source.kind() == ErrorKind::FileTooLarge)
    );
    assert!(
        error.to_string().contains("stdout.log") && error.to_string().contains("ulimit"),
        "{error}"
    );
    assert_eq!(writer.append(&bytes[taken..]).unwrap_err().taken, 0);
    assert_eq!(writer.offset(), limit);
    // There is room again.
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    writer.append(&bytes[taken..]).unwrap();
    assert_eq!(fs::read(dir.join("stdout.log")).unwrap(), bytes);
}

#[test]
fn the_writer_continues_when_there_is_room_again() {
    let temp = tempfile::tempdir().unwrap();
    let run = Command::new("sh")
        // In blocks of 512 bytes. Without the trap the signal would end the process before it sees
        // the error.
        .args(["-c", "trap '' XFSZ; ulimit -S -f 16; exec \"$0\" --exact child"])
        .arg(env::current_exe().unwrap())
        .env(DIR, temp.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    assert_eq!(fs::metadata(temp.path().join("stdout.log")).unwrap().len(), 20_000);
}
