//! Output: how fast it gets into files, what it costs, and whether it is complete.
//!
//! `PODMESH_LINES` sets how many lines a container prints, and `PODMESH_KILLS` how often its agent
//! is killed while it prints.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use podmesh_protocol::ids::JobId;
use podmesh_protocol::spec::{DockerSpec, JobSpec, PullPolicy, RuntimeSpec};
use podmesh_tests::docker;

use crate::churn::{cpu_seconds, setting};
use crate::rig::{Rig, job};
use crate::table::{Table, median};

/// No rotation, because what it is compared with does not rotate either.
const FLAGS: [&str; 8] =
    ["--cpus", "16", "--docker", "on", "--log-file-size", "4GiB", "--log-total-size", "16GiB"];
const LINE_BYTES: u64 = 86;
const LABEL: &str = "podmesh.bench=logs";

pub(crate) fn measure(table: &mut Table) {
    processes(table);
    let Some(image) = docker::image() else {
        table.figure("output of containers", "skipped: no Docker engine".into(), "");
        return;
    };
    let lines = setting("PODMESH_LINES", 4_000_000);
    let script = printer(lines);
    let rig = Rig::new(&["a"], &FLAGS);
    let (mut ours, mut nobody, mut follow, mut cpu, mut missing) =
        (vec![], vec![], vec![], vec![], 0);
    for _ in 0..3 {
        let before = cpu_of_ours(&rig);
        let began = Instant::now();
        let number = rig.submit(container(image, &script));
        rig.wait(number);
        ours.push(began.elapsed().as_secs_f64());
        let megabytes = (lines * LINE_BYTES) as f64 / 1e6;
        cpu.push((cpu_of_ours(&rig) - before) * 1000.0 / megabytes);
        missing += missing_lines(&log_of(&rig, number, 1), lines);
        nobody.push(engine(image, &script, "none", None));
        let file = rig.mesh.folder().join("followed");
        follow.push(engine(image, &script, "local", Some(&file)));
    }
    let name = format!("lines missing or duplicated of 3 × {lines} ({LINE_BYTES} bytes)");
    table.figure(&name, missing.to_string(), "0");
    let rate = |took: Vec<f64>| (lines * LINE_BYTES) as f64 / 1e6 / median(took);
    let (ours, nobody, follow) = (rate(ours), rate(nobody), rate(follow));
    table.ratio(
        "start to file complete, against `docker logs -f >file`",
        ours,
        follow,
        " MB/s",
        "3",
    );
    table.ratio("the same, against `--log-driver none`, unread", ours, nobody, " MB/s", "0.7");
    table.figure("CPU of podmesh per MB", format!("{:.1} ms", median(cpu)), "8 ms");
    many(table, &rig, image);
    drop(rig);
    kills(table, image, lines);
}

/// Returns a script that prints numbered lines as fast as it can.
fn printer(lines: u64) -> String {
    // 8 digits, a space, and the rest.
    let pad = "x".repeat(LINE_BYTES as usize - 10);
    format!("awk 'BEGIN {{ for (n = 1; n <= {lines}; n++) printf \"%08d {pad}\\n\", n }}'")
}

fn container(image: &str, script: &str) -> JobSpec {
    let docker =
        DockerSpec { image: image.to_owned(), pull: PullPolicy::Never, ..DockerSpec::default() };
    job(docker.into(), &["sh", "-c", script], 1)
}

fn log_of(rig: &Rig, job: JobId, task: u32) -> PathBuf {
    rig.mesh.logs("a", job.0, task, 1).join("stdout.log")
}

/// Returns the CPU time of the manager, the agent and its supervisor.
fn cpu_of_ours(rig: &Rig) -> f64 {
    let supervisor = rig.mesh.supervisor("a");
    let (manager, agent) = rig.mesh.pids("a");
    [manager, agent, supervisor].into_iter().map(cpu_seconds).sum()
}

/// Returns how many lines of a file are missing, duplicated or wrong.
fn missing_lines(file: &Path, lines: u64) -> u64 {
    let mut wrong = 0;
    let mut next = 1;
    for line in BufReader::new(File::open(file).unwrap()).split(b'\n') {
        let line = line.unwrap();
        let number =
            line.get(..8).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        match number {
            Some(number) if line.len() as u64 == LINE_BYTES - 1 => {
                wrong += u64::abs_diff(number, next);
                next = number + 1;
            }
            _ => wrong += 1,
        }
    }
    wrong + (lines + 1).abs_diff(next)
}

/// Runs the same container without podmesh. Returns the seconds from its start to its end or, if
/// its output is followed, until all output is in the file.
fn engine(image: &str, script: &str, driver: &str, follow: Option<&Path>) -> f64 {
    let began = Instant::now();
    let args = ["run", "--detach", "--label", LABEL, "--log-driver", driver, image, "sh", "-c"];
    let output = Command::new("docker").args(args).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let quiet = |args: &[&str], stdout: Stdio| {
        let status = Command::new("docker")
            .args(args)
            .stdout(stdout)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}");
    };
    match follow {
        Some(file) => quiet(&["logs", "--follow", &id], File::create(file).unwrap().into()),
        None => quiet(&["wait", &id], Stdio::null()),
    }
    let took = began.elapsed().as_secs_f64();
    quiet(&["rm", "--force", &id], Stdio::null());
    took
}

/// Measures ten containers that print at a fixed rate.
fn many(table: &mut Table, rig: &Rig, image: &str) {
    const SECONDS: u32 = 10;
    const CONTAINERS: u32 = 10;
    // 50 blocks of 100 kB a second.
    let script = format!(
        "block=$(yes 012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678 | head -n 1000);
         i=0; while [ $i -lt {} ]; do echo \"$block\"; usleep 17000; i=$((i+1)); done",
        SECONDS * 50
    );
    let mut spec = container(image, &script);
    spec.array.last = CONTAINERS;
    let began = Instant::now();
    let number = rig.submit(spec);
    rig.wait(number);
    let took = began.elapsed().as_secs_f64();
    let bytes: u64 =
        (1..=CONTAINERS).map(|task| fs::metadata(log_of(rig, number, task)).unwrap().len()).sum();
    let expected = u64::from(CONTAINERS * SECONDS * 50) * 100_000;
    let name = format!("{CONTAINERS} containers at about 5 MB/s each: bytes missing");
    table.figure(&name, (expected - bytes).to_string(), "0");
    let rate = bytes as f64 / 1e6 / took;
    table.figure("their total rate", format!("{rate:.0} MB/s"), "");
}

/// Kills the agent repeatedly while a container prints as fast as it can.
fn kills(table: &mut Table, image: &str, lines: u64) {
    let kills = setting("PODMESH_KILLS", 100);
    if kills == 0 {
        return;
    }
    let mut rig = Rig::new(&["a"], &FLAGS);
    // Prints long enough for all of the kills.
    let script = format!("for round in $(seq 1 {}); do {}; done", 1 + kills / 4, printer(lines));
    let number = rig.submit(container(image, &script));
    let log = log_of(&rig, number, 1);
    let size = || fs::metadata(&log).map_or(0, |file| file.len());
    let (mut done, mut last) = (0, 0);
    while done < kills {
        // Wait until more was printed since the last kill.
        podmesh_tests::wait::until_true("more is printed", || size() > last);
        last = size() + (1 << 20);
        rig.mesh.kill_agent("a");
        rig.mesh.spawn_agent("a", &FLAGS);
        std::thread::sleep(Duration::from_millis(100));
        done += 1;
    }
    rig.mesh.wait_for_node("a", "alive");
    rig.ask(podmesh_protocol::client::RequestBody::Cancel { job: number, downstream: false });
    rig.mesh.wait_for_job(number.0, "cancelled");
    let name = format!("lines missing or duplicated, agent killed {kills} times at full rate");
    table.figure(&name, out_of_order(&log, lines).to_string(), "0");
    table.figure("lines printed during that", (size() / LINE_BYTES).to_string(), "");
}

/// Returns how many lines do not follow the previous one, with numbers that restart after `lines`.
/// The last line may be incomplete.
fn out_of_order(file: &Path, lines: u64) -> u64 {
    let mut last = lines;
    let mut wrong = 0;
    let mut reader = BufReader::new(File::open(file).unwrap());
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).unwrap() > 0 {
        if line.ends_with(b"\n") {
            let digits = line.get(..8).and_then(|digits| std::str::from_utf8(digits).ok());
            let number = digits.and_then(|digits| digits.parse::<u64>().ok());
            wrong += u64::from(number != Some(last % lines + 1));
            last = number.unwrap_or(last);
        }
        line.clear();
    }
    wrong
}

/// Measures a process that prints 1 GB, compared with a shell that writes it to a file.
fn processes(table: &mut Table) {
    const BYTES: u64 = 1_000_000_000;
    let rig = Rig::new(&["a"], &FLAGS);
    let script = format!("head -c {BYTES} /dev/zero");
    let (mut ours, mut bare) = (vec![], vec![]);
    for _ in 0..3 {
        let began = Instant::now();
        let number = rig.submit(job(RuntimeSpec::Process, &["sh", "-c", &script], 1));
        rig.wait(number);
        ours.push(1000.0 / began.elapsed().as_secs_f64());
        let log = log_of(&rig, number, 1);
        assert_eq!(fs::metadata(&log).unwrap().len(), BYTES);
        fs::remove_file(&log).unwrap();
        let file = rig.mesh.folder().join("bare");
        let began = Instant::now();
        let bare_script = format!("{script} >{}", file.display());
        assert!(Command::new("sh").args(["-c", &bare_script]).status().unwrap().success());
        bare.push(1000.0 / began.elapsed().as_secs_f64());
        fs::remove_file(&file).unwrap();
    }
    let name = "a process prints 1 GB, against `>file` in a shell";
    table.ratio(name, median(ours), median(bare), " MB/s", "0.8");
}
