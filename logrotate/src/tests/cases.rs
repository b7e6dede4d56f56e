//! One test per guarantee.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use super::*;
use crate::failpoint::CrashPoint;
use crate::{AppendError, CURSOR_BYTES_MAX, Error, PruneLimits, prune, wait_for_compression};

const HOUR: Duration = Duration::from_secs(3600);

fn age(path: &Path, by: Duration) {
    File::options().append(true).open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

fn by_age(age_max: Duration) -> PruneLimits {
    PruneLimits { age_max, bytes_max: u64::MAX }
}

fn files(dir: &Path) -> Vec<String> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    files
}

#[test]
fn no_output_creates_no_file() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("1");
    let mut writer = open(&dir, &RotationPolicy::default());
    writer.append(b"").unwrap();
    writer.flush().unwrap();
    writer.sync().unwrap();
    writer.save_cursor(b"begun").unwrap();
    writer.truncate_to(0).unwrap();
    assert_eq!(writer.load_cursor().unwrap(), None);
    drop(writer);
    assert!(!dir.exists());
    assert_eq!(read_all(&dir), (0, Vec::new()));
    assert_eq!(LogReader::open(&dir, "stdout").unwrap().tail_offset(5).unwrap(), 0);
}

#[test]
fn a_short_log_is_one_file_with_restrictive_modes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("1/2/3");
    open(&dir, &RotationPolicy::default()).append(b"\xff\x00\n").unwrap();
    open(&dir, &RotationPolicy::default()).append(b"more").unwrap();
    assert_eq!(files(&dir), ["stdout.log"]);
    assert_eq!(fs::read(dir.join("stdout.log")).unwrap(), b"\xff\x00\nmore");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.join("stdout.log")) & !0o640, 0);
    for dir in [dir.as_path(), dir.parent().unwrap()] {
        assert_eq!(mode(dir) & !0o750, 0);
    }
}

#[test]
fn rotated_files_are_ordinary_gzip_of_whole_lines() {
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(10));
    writer.append(b"one\ntwo\nthree\nfour\n").unwrap();
    assert!(wait_for_compression(Duration::from_secs(60)));
    let mut text = String::new();
    flate2::read::GzDecoder::new(File::open(temp.path().join("stdout.log.1.gz")).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "three\n");
    assert_eq!(fs::read(temp.path().join("stdout.log")).unwrap(), b"four\n");
    let mode = fs::metadata(temp.path().join("stdout.log.1.gz")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777 & !0o640, 0);
    let cut: Vec<_> =
        files(temp.path()).into_iter().filter(|file| !file.starts_with('.')).collect();
    assert_eq!(cut, ["stdout.log", "stdout.log.1.gz", "stdout.log.2.gz"]);
}

#[test]
fn offsets_continue_after_all_files_are_removed() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let policy = RotationPolicy { files_max: 1, ..keep_all(10) };
    let mut writer = open(temp.path(), &policy);
    writer.append(&[b'x'; 45]).unwrap();
    drop(writer);
    for file in files(temp.path()).iter().filter(|file| file.starts_with("stdout")) {
        fs::remove_file(temp.path().join(file)).unwrap();
    }
    let mut writer = open(temp.path(), &policy);
    assert_eq!(writer.offset(), 40);
    writer.append(b"y").unwrap();
    assert_eq!(read_all(temp.path()), (40, b"y".to_vec()));

    // Never rotated: the cursor still has the offset.
    let mut writer = LogWriter::open(temp.path(), "stderr", policy.clone()).unwrap();
    writer.append(b"1234").unwrap();
    writer.save_cursor(b"at 4").unwrap();
    drop(writer);
    fs::remove_file(temp.path().join("stderr.log")).unwrap();
    assert_eq!(LogWriter::open(temp.path(), "stderr", policy).unwrap().offset(), 4);
}

#[test]
fn a_gap_marker_is_on_a_line_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(1000));
    writer.gap("first").unwrap();
    writer.append(b"half a").unwrap();
    writer.gap("two\nlines").unwrap();
    writer.append(b"half a").unwrap();
    drop(writer);
    open(temp.path(), &keep_all(1000)).gap("after a restart").unwrap();
    let text =
        "[podmesh: first]\nhalf a\n[podmesh: two lines]\nhalf a\n[podmesh: after a restart]\n";
    assert_eq!(read_all(temp.path()).1, text.as_bytes());
}

#[test]
fn a_stream_can_be_cut_back_to_the_cursor_across_plain_files() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(10));
    writer.append(&bytes(0, 7)).unwrap();
    writer.save_cursor(b"seven").unwrap();
    writer.append(&bytes(7, 40)).unwrap();
    drop(writer);
    let mut writer = open(temp.path(), &keep_all(10));
    let cursor = writer.load_cursor().unwrap().unwrap();
    assert_eq!((cursor.offset, cursor.data.as_slice()), (7, b"seven".as_slice()));
    writer.truncate_to(cursor.offset).unwrap();
    assert_eq!(writer.offset(), 7);
    writer.append(&bytes(7, 3)).unwrap();
    assert_eq!(read_all(temp.path()), (0, bytes(0, 10)));
    assert!(matches!(
        writer.truncate_to(11),
        Err(Error::TruncateBeyondEnd { offset: 11, end: 10, .. })
    ));

    writer.append(&bytes(10, 30)).unwrap();
    assert!(compress_one(temp.path()).unwrap());
    let error = writer.truncate_to(1).unwrap_err();
    assert!(matches!(error, Error::TruncateCompressed { offset: 1, end: 40, .. }));
    assert!(error.to_string().contains("keep the 39 bytes"), "{error}");
    assert_eq!(read_all(temp.path()), (0, bytes(0, 40)));
}

#[test]
fn invalid_cursors_and_names_are_rejected() {
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(10));
    writer.append(b"x").unwrap();
    writer.save_cursor(&[7; CURSOR_BYTES_MAX]).unwrap();
    let too_big = writer.save_cursor(&[7; CURSOR_BYTES_MAX + 1]);
    assert!(matches!(too_big, Err(Error::CursorTooBig { len: 4097 })));
    assert_eq!(writer.load_cursor().unwrap().unwrap().data.len(), CURSOR_BYTES_MAX);
    let path = temp.path().join(".stdout.cursor");
    let mut damaged = fs::read(&path).unwrap();
    damaged[8] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(matches!(writer.load_cursor(), Err(Error::CursorDamaged { .. })));
    fs::write(&path, "").unwrap();
    assert!(matches!(writer.load_cursor(), Err(Error::CursorDamaged { .. })));

    for name in ["", "a/b", ".hidden", "a\nb", &"x".repeat(201)] {
        let error = LogWriter::open(temp.path(), name, keep_all(10)).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name:?}");
    }
}

#[test]
fn a_damaged_file_is_reported_and_can_be_skipped() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(500));
    writer.append(&bytes(0, 1200)).unwrap();
    while compress_one(temp.path()).unwrap() {}
    let gz = temp.path().join("stdout.log.2.gz");
    let mut content = fs::read(&gz).unwrap();
    let middle = content.len() / 2;
    content[middle..middle + 9].fill(0x55);
    fs::write(&gz, content).unwrap();
    let mut reader = LogReader::open(temp.path(), "stdout").unwrap();
    let error = reader.read_at(0, 4096).unwrap_err();
    let Error::Damaged { resume_at, .. } = error else { panic!("{error}") };
    let chunk = reader.read_at(resume_at, 10).unwrap();
    assert_eq!(chunk.bytes, bytes(resume_at, 10));
}

#[test]
fn a_full_disk_is_an_error_with_advice_and_loses_nothing() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(10));
    crate::failpoint::disk_full_at(Some(CrashPoint::ReplaceTmpWritten));
    let AppendError { taken, source } = writer.append(&[b'x'; 35]).unwrap_err();
    assert_eq!((taken, writer.offset()), (10, 10));
    let text = source.to_string();
    assert!(text.contains(".stdout.index") && text.contains("free space"), "{text}");
    assert_eq!(std::io::Error::from(source).kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(writer.append(b"y").unwrap_err().taken, 0);
    crate::failpoint::disk_full_at(None);
    writer.append(&[b'x'; 25]).unwrap();
    assert_eq!(read_all(temp.path()), (0, vec![b'x'; 35]));
}

#[test]
fn a_sweep_removes_old_attempts_that_are_not_live() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let logs = temp.path().join("logs");
    let [old, live, young, odd] =
        ["1/0/1", "2/0/1", "2/1/1", "3/0/1"].map(|attempt| logs.join(attempt));
    for dir in [&old, &live, &young, &odd] {
        let mut writer = open(dir, &keep_all(10));
        writer.append(&bytes(0, 30)).unwrap();
        writer.save_cursor(b"c").unwrap();
    }
    fs::create_dir(odd.join("folder")).unwrap();
    fs::create_dir_all(logs.join("4/0/1")).unwrap();
    fs::write(logs.join("note"), "not a job").unwrap();
    for dir in [&old, &live, &odd] {
        for file in files(dir).iter().filter(|file| *file != "folder") {
            age(&dir.join(file), HOUR * 2);
        }
    }
    age(&young.join("stdout.log"), HOUR * 2);
    // A rotated file of another program, and one with a similar name.
    for name in ["stdout.log-20200101.gz", "stdout.login"] {
        fs::write(live.join(name), "x").unwrap();
        age(&live.join(name), HOUR * 2);
    }
    let report = prune(&logs, by_age(HOUR), SystemTime::now(), |dir| dir == live);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(!logs.join("1").exists());
    let kept: Vec<_> = files(&live).into_iter().filter(|file| !file.starts_with('.')).collect();
    assert_eq!(kept, ["stdout.log", "stdout.login"]);
    // Its offsets continue.
    assert_eq!(open(&live, &keep_all(10)).offset(), 30);
    assert_eq!(read_all(&young), (0, bytes(0, 30)));
    // It contains a folder: only the rotated files were removed.
    assert!(
        odd.join("folder").exists() && odd.join("stdout.log").exists() && numbered(&odd).is_empty()
    );
    assert!(logs.join("4/0/1").exists(), "a new folder may be about to be used");
    // Attempt, task and job.
    assert_eq!(report.dirs_removed, 3);
    assert!(report.files_removed > 6 && report.bytes_removed > 60);
    // Nothing more to do. Later the empty folders are removed too.
    assert_eq!(prune(&logs, by_age(HOUR), SystemTime::now(), |dir| dir == live).files_removed, 0);
    prune(&logs, by_age(HOUR), SystemTime::now() + HOUR * 3, |dir| dir == live);
    assert!(!logs.join("4").exists() && !young.exists() && live.exists());
}

#[test]
fn a_tree_that_is_too_large_loses_the_attempts_that_ended_first() {
    let temp = tempfile::tempdir().unwrap();
    let logs = temp.path();
    // Attempts of 64 KiB. Jobs 1 to 4 ended one hour after another, the tasks of job 5 in one minute.
    let attempt = |job: u32, task: u32, hours: u32| {
        let dir = logs.join(format!("{job}/{task}/1"));
        open(&dir, &RotationPolicy::default()).append(&[b'x'; 65_536]).unwrap();
        age(&dir.join("stdout.log"), HOUR * hours);
        File::open(&dir).unwrap().set_modified(SystemTime::now() - HOUR * hours).unwrap();
        dir
    };
    let ended: Vec<_> = [(1, 9), (2, 8), (3, 7), (4, 6)].map(|(job, h)| attempt(job, 0, h)).into();
    let same_minute: Vec<_> = (0..20).map(|task| attempt(5, task, 5)).collect();
    let live = attempt(6, 0, 20);
    // It printed long ago and has just ended, as its folder shows.
    let quiet = attempt(7, 0, 30);
    File::open(&quiet).unwrap().set_modified(SystemTime::now() - Duration::from_secs(5)).unwrap();
    let just_begun = logs.join("8/0/1");
    open(&just_begun, &RotationPolicy::default()).append(b"first").unwrap();

    let sweep = |bytes_max| {
        let limits = PruneLimits { age_max: HOUR * 1000, bytes_max };
        prune(logs, limits, SystemTime::now(), |dir| dir == live)
    };
    let all = sweep(u64::MAX);
    assert_eq!((all.files_removed, all.attempts_removed_for_size), (0, 0));
    assert!(all.bytes_kept > 26 * 65_536 && all.bytes_kept < 27 * 80_000, "{}", all.bytes_kept);
    // Just too large: a tenth is removed, which is less than three attempts.
    let report = sweep(all.bytes_kept - 1);
    assert_eq!((report.attempts_removed_for_size, report.job_removed_max), (3, Some(3)));
    assert!(ended[..3].iter().all(|dir| !dir.exists()) && ended[3].exists());
    assert!(!logs.join("1").exists(), "the folders of its job and task are removed with it");
    assert_eq!(report.bytes_kept, sweep(u64::MAX).bytes_kept);
    // Only as many attempts of the same minute as needed are removed.
    let report = sweep(20 * 65_536);
    assert!(!ended[3].exists());
    let left = same_minute.iter().filter(|dir| dir.exists()).count();
    assert!((10..20).contains(&left), "{left} are left");
    assert!(report.bytes_kept <= 20 * 65_536, "{}", report.bytes_kept);
    // Attempts that are live, or have just started, are never removed.
    let report = sweep(1);
    assert_eq!(report.job_removed_max, Some(7));
    let stays: Vec<_> = fs::read_dir(logs).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(stays.len(), 2, "{stays:?}");
    assert!(live.exists() && just_begun.exists());
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

#[test]
fn a_removed_folder_is_created_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("1/2/3");
    let mut writer = open(&dir, &keep_all(100));
    writer.append(b"gone\n").unwrap();
    fs::remove_dir_all(temp.path().join("1")).unwrap();
    writer.look_at_next_write();
    writer.append(b"here\n").unwrap();
    assert_eq!((writer.offset(), read_all(&dir)), (10, (5, b"here\n".to_vec())));
}

#[test]
fn a_numbered_file_is_not_compressed_while_the_writer_has_it_open() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(20));
    writer.append(&bytes(0, 30)).unwrap();
    while compress_one(temp.path()).unwrap() {}
    fs::rename(temp.path().join("stdout.log"), temp.path().join("stdout.log.1")).unwrap();
    assert!(!compress_one(temp.path()).unwrap());
    writer.append(&bytes(30, 2)).unwrap();
    writer.look_at_next_write();
    writer.append(&bytes(32, 2)).unwrap();
    assert!(compress_one(temp.path()).unwrap());
    assert_eq!(read_all(temp.path()), (0, bytes(0, 34)));
}

#[test]
fn a_copy_that_another_process_is_writing_is_left_alone() {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let mut writer = open(temp.path(), &keep_all(20));
    writer.append(&bytes(0, 50)).unwrap();
    let copy = File::create(temp.path().join(".stdout.gz.tmp")).unwrap();
    copy.lock().unwrap();
    assert!(!compress_one(temp.path()).unwrap());
    drop(writer);
    drop(open(temp.path(), &keep_all(20)));
    assert!(temp.path().join(".stdout.gz.tmp").exists());
    // That process exits before the copy is complete.
    drop(copy);
    drop(open(temp.path(), &keep_all(20)));
    assert!(!temp.path().join(".stdout.gz.tmp").exists());
    assert!(compress_one(temp.path()).unwrap());
    assert_eq!(read_all(temp.path()), (0, bytes(0, 50)));
}

#[test]
fn one_thread_compresses_for_all_writers() {
    let temp = tempfile::tempdir().unwrap();
    let mut writers: Vec<_> =
        (0..200).map(|n| open(&temp.path().join(n.to_string()), &keep_all(50))).collect();
    for round in 0..5 {
        for writer in &mut writers {
            writer.append(&bytes(round * 40, 40)).unwrap();
        }
    }
    let is_ours = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm"))
            .is_ok_and(|name| name.trim() == "podmesh-log-gz")
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    assert_eq!(tasks.map(Result::unwrap).filter(is_ours).count(), 1);
    drop(writers);
    assert!(wait_for_compression(Duration::from_secs(60)));
    for n in 0..200 {
        let dir = temp.path().join(n.to_string());
        assert_eq!(read_all(&dir), (0, bytes(0, 200)));
        assert!(numbered(&dir).iter().all(|(name, _)| name.ends_with(".gz")));
    }
}

#[test]
fn a_writer_works_as_a_daemons_log() {
    let temp = tempfile::tempdir().unwrap();
    let writer = LogWriter::open(temp.path(), "manager", keep_all(100)).unwrap();
    let (mut sink, guard) = tracing_appender::non_blocking(writer);
    for n in 0..50 {
        writeln!(sink, "line {n}").unwrap();
    }
    drop(guard);
    let mut reader = LogReader::open(temp.path(), "manager").unwrap();
    let expected: String = (0..50).map(|n| format!("line {n}\n")).collect();
    assert_eq!(reader.end_offset().unwrap(), expected.len() as u64);
    let at = reader.tail_offset(3).unwrap();
    assert_eq!(reader.read_at(at, 100).unwrap().bytes, b"line 47\nline 48\nline 49\n");
}
