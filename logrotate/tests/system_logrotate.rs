//! The drop-in `podmesh.logrotate` with the real logrotate, while writers write.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use podmesh_logrotate::{LogReader, LogWriter, RotationPolicy, wait_for_compression};

const ROUNDS: usize = 4;

/// Returns the drop-in with the task logs enabled and another data folder, as an administrator
/// would set it up.
fn config(data: &Path) -> String {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/podmesh.logrotate")).unwrap();
    let switched_on = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(['/', '\t', '}']) => rest.to_owned(),
        _ => line.to_owned(),
    };
    let lines: Vec<_> = text.lines().map(switched_on).collect();
    let text =
        lines.join("\n").replace("/var/lib/podmesh/", &format!("{}/", data.display())) + "\n";
    assert_eq!(
        text.matches(&format!("{}/log", data.display())).count(),
        2,
        "both sections: {text}"
    );
    text
}

struct Rotator {
    config: PathBuf,
    state: PathBuf,
    /// When it last rotated, in seconds since 1970.
    last: Cell<u64>,
}

impl Rotator {
    /// Rotates all. Waits for a second without rotation: the names of rotated files have that
    /// resolution, and logrotate skips a file whose new name exists.
    fn run(&self) {
        let second = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let last = self.last.get();
        await_that("the last rotation's second is over", || second() > last);
        let binary = ["/usr/sbin/logrotate", "/usr/bin/logrotate", "/sbin/logrotate"];
        let binary = binary.iter().find(|path| Path::new(path).exists()).expect(
            "this test needs the system's logrotate; \
             install it (Debian: apt-get install logrotate) and run again",
        );
        let run = Command::new(binary)
            .args(["--verbose", "--force", "--state"])
            .args([&self.state, &self.config])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && !said.contains("error:"), "{said}");
        self.last.set(second());
    }
}

/// Writes lines with odd bytes until told to stop. Returns all that it wrote.
fn write(
    dir: PathBuf,
    name: &'static str,
    policy: RotationPolicy,
    stop: Arc<AtomicBool>,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut writer = LogWriter::open(dir, name, policy).unwrap();
        let mut written = Vec::new();
        let mut n = 0u32;
        while !stop.load(Ordering::Relaxed) {
            let line = [b"line \xff\x00 ", n.to_string().as_bytes(), b"\n"].concat();
            writer.append(&line).unwrap();
            written.extend(line);
            n += 1;
            if n.is_multiple_of(64) {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(writer.offset(), written.len() as u64);
        written
    })
}

fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn dated(dir: &Path, name: &str) -> Vec<PathBuf> {
    let prefix = format!("{name}.log-");
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
        .collect();
    paths.sort();
    paths
}

/// Returns the content of the dated files in order, then of the live one, as `zcat -f` prints them.
fn concatenated(dir: &Path, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in dated(dir, name) {
        let mut file = File::open(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "gz") {
            flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        } else {
            file.read_to_end(&mut bytes).unwrap();
        }
    }
    if let Ok(live) = fs::read(dir.join(format!("{name}.log"))) {
        bytes.extend(live);
    }
    bytes
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    let mut reader = LogReader::open(dir, name).unwrap();
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.read_at(bytes.len() as u64, usize::MAX).unwrap();
        assert_eq!(chunk.offset, bytes.len() as u64, "a gap in {}", dir.display());
        if chunk.bytes.is_empty() {
            return bytes;
        }
        bytes.extend(chunk.bytes);
    }
}

#[test]
fn system_logrotate_and_a_writer_lose_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("podmesh");
    let rotator = Rotator {
        config: temp.path().join("config"),
        state: temp.path().join("state"),
        last: Cell::new(0),
    };
    fs::create_dir(&data).unwrap();
    fs::write(&rotator.config, config(&data)).unwrap();

    let daemon = (data.join("log"), "manager", RotationPolicy::default());
    let task = (data.join("logs/7/0/1"), "stdout", RotationPolicy::default());
    // This one also rotates by itself all the time.
    let small = RotationPolicy {
        file_bytes_max: 20_000,
        files_max: 9999,
        total_bytes_max: 1 << 30,
        ..RotationPolicy::default()
    };
    let busy = (data.join("logs/7/1/1"), "stderr", small);
    let streams = [daemon, task, busy];
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = streams
        .iter()
        .cloned()
        .map(|(dir, name, policy)| write(dir, name, policy, Arc::clone(&stop)))
        .collect();

    let all_live = || {
        let live = |dir: &Path, name: &str| dir.join(format!("{name}.log"));
        streams
            .iter()
            .all(|(dir, name, _)| fs::metadata(live(dir, name)).is_ok_and(|meta| meta.len() > 0))
    };
    for round in 0..ROUNDS {
        await_that("every writer has a new live file", all_live);
        rotator.run();
        for (dir, name, _) in &streams {
            let rotated = dated(dir, name).len();
            // The busy one may just have rotated by itself, and then has no live file.
            let expected = if *name == "stderr" { rotated.min(round + 1) } else { round + 1 };
            assert_eq!(rotated, expected, "{name}");
        }
    }
    await_that("every writer has a new live file", all_live);
    stop.store(true, Ordering::Relaxed);
    let written: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert!(wait_for_compression(Duration::from_secs(60)));

    for ((dir, name, _), written) in streams.iter().zip(&written) {
        let compressed =
            dated(dir, name).iter().filter(|path| path.to_str().unwrap().ends_with(".gz")).count();
        // The busy one had no live file in a round where it had just rotated by itself.
        let most = ROUNDS - 1;
        assert!(
            if *name == "stderr" { compressed <= most } else { compressed == most },
            "{name}: {compressed}"
        );
        if *name != "stderr" {
            assert!(concatenated(dir, name) == *written, "{name}: not what was written");
        }
        assert!(read(dir, name) == *written, "{name}: not what was written, by offsets");
    }
    assert!(streams[2].0.join("stderr.log.1.gz").exists(), "it did not rotate by itself");

    // After the end of the task logrotate still works, and the log can still be read and continued.
    rotator.run();
    for ((dir, name, policy), written) in streams.iter().zip(&written) {
        assert!(!dir.join(format!("{name}.log")).exists());
        assert!(read(dir, name) == *written, "{name}: after the end");
        let mut writer = LogWriter::open(dir, name, policy.clone()).unwrap();
        assert_eq!(writer.offset(), written.len() as u64);
        writer.append(b"again\n").unwrap();
        assert!(read(dir, name).ends_with(b"again\n"));
    }
}
