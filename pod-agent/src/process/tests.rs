//! Real processes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::spec::{OnLost, Resources, RunSpec, RuntimeSpec};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

const ATTEMPT: AttemptId = AttemptId::new(JobId(42), 7, 2);

struct Node {
    data: tempfile::TempDir,
    runtime: ProcessRuntime,
    terms: Arc<Terms>,
    facts: UnboundedReceiver<(AttemptId, RuntimeFact)>,
    notify: LogNotify,
}

impl Node {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let logs = data.path().join("logs");
        Self::with_logs(data, logs)
    }

    fn with_logs(data: tempfile::TempDir, logs_dir: PathBuf) -> Self {
        let notify = LogNotify::default();
        let settings = ProcessSettings {
            agent_id: Uuid::new_v4(),
            data_dir: data.path().to_owned(),
            log_notify: notify.clone(),
        };
        let terms = Terms {
            node: "here".parse().unwrap(),
            logs_dir,
            rotation: RotationPolicy { file_bytes_max: 1 << 40, ..whole() },
            base_env: BaseEnv::of_this_process(),
        };
        let (sender, facts) = tokio::sync::mpsc::unbounded_channel();
        let runtime = ProcessRuntime::new(settings, sender).unwrap();
        Self { data, runtime, terms: Arc::new(terms), facts, notify }
    }

    fn start(&self, script: &str) {
        self.start_with(|run| run.command = ["sh", "-c", script].map(str::to_owned).to_vec());
    }

    fn start_with(&self, change: impl FnOnce(&mut RunSpec)) {
        self.runtime.start(ATTEMPT, context(change), Arc::clone(&self.terms));
    }

    /// The facts up to and with the end.
    async fn facts(&mut self) -> Vec<RuntimeFact> {
        let mut facts = Vec::new();
        loop {
            let (attempt, fact) = self.facts.recv().await.unwrap();
            assert_eq!(attempt, ATTEMPT);
            facts.push(fact);
            if matches!(facts.last(), Some(RuntimeFact::Ended(_))) {
                return facts;
            }
        }
    }

    async fn end(&mut self) -> Outcome {
        match self.facts().await.pop() {
            Some(RuntimeFact::Ended(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    async fn run(&mut self, script: &str) -> Outcome {
        self.start(script);
        self.end().await
    }

    fn log(&self, stream: &str) -> Option<Vec<u8>> {
        fs::read(self.data.path().join(format!("logs/42/7/2/{stream}.log"))).ok()
    }

    fn stdout(&self) -> String {
        String::from_utf8(self.log("stdout").unwrap_or_default()).unwrap()
    }

    /// Waits until the program has printed this.
    async fn printed(&self, text: &str) {
        let waiter = self.notify.listen(ATTEMPT);
        while !self.stdout().contains(text) {
            waiter.news().await;
        }
    }
}

fn whole() -> RotationPolicy {
    RotationPolicy { total_bytes_max: 1 << 41, ..RotationPolicy::default() }
}

fn context(change: impl FnOnce(&mut RunSpec)) -> Arc<JobContext> {
    let mut run = RunSpec {
        runtime: RuntimeSpec::Process,
        command: Vec::new(),
        env: BTreeMap::new(),
        workdir: None,
        timeout_ms: None,
        stop_grace_ms: 10_000,
    };
    change(&mut run);
    Arc::new(JobContext {
        job: JobId(42),
        name: "name-of-job".parse().unwrap(),
        on_lost: OnLost::Requeue,
        resources: Resources::default(),
        run,
    })
}

fn is_alive(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH) && Stat::of(pid).is_some_and(|stat| !stat.is_zombie)
}

/// The process that a program wrote the number of.
fn pid_in(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap_or_else(|_| panic!("no number: {text:?}")))
}

#[tokio::test]
async fn an_exit_is_told_with_its_code() {
    let mut node = Node::new();
    node.start("exit 3");
    let facts = node.facts().await;
    let [RuntimeFact::Started, RuntimeFact::Ended(outcome)] = facts.as_slice() else {
        panic!("{facts:?}")
    };
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, Some(3)));
    assert!(outcome.ran_ms >= 1);
    let outcome = node.run("exit 0").await;
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Succeeded, Some(0)));
}

#[tokio::test]
async fn a_signal_is_told_also_one_without_a_name() {
    let mut node = Node::new();
    for signal in [9, 11, 40] {
        let outcome = node.run(&format!("kill -{signal} $$")).await;
        assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::Failed, Some(signal)));
        assert_eq!(outcome.exit_code, None);
    }
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let mut node = Node::new();
    let not_a_program = node.data.path().join("text");
    fs::write(&not_a_program, "no program\n").unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(&not_a_program, mode).unwrap();
    let not_a_program = not_a_program.to_str().unwrap();
    for (program, workdir, code, says) in [
        ("no-such-program", None, 127, "command not found"),
        ("/etc/passwd", None, 126, "not executable"),
        (not_a_program, None, 126, "#!"),
        ("true", Some("/no/such/folder"), 125, "/no/such/folder"),
    ] {
        node.start_with(|run| {
            run.command = vec![program.into()];
            run.workdir = workdir.map(str::to_owned);
        });
        let facts = node.facts().await;
        let [RuntimeFact::Ended(outcome)] = facts.as_slice() else { panic!("{facts:?}") };
        assert_eq!((outcome.exit_code, outcome.ran_ms), (Some(code), 0), "{outcome:?}");
        let message = outcome.message.as_deref().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn output_is_kept_byte_for_byte() {
    let mut node = Node::new();
    let outcome = node
        .run("head -c 20000000 /dev/urandom | tee all; printf 'a\\377\\000b' >&2; printf end")
        .await;
    assert_eq!(outcome.exit_code, Some(0));
    let mut expected = fs::read(node.data.path().join("work/42.7.2/all")).unwrap();
    expected.extend(b"end");
    assert!(node.log("stdout").unwrap() == expected);
    assert_eq!(node.log("stderr").unwrap(), b"a\xff\0b");
}

#[tokio::test]
async fn nothing_printed_is_nothing_created() {
    let mut node = Node::new();
    node.run("true").await;
    assert!(!node.data.path().join("logs").exists());
}

#[tokio::test]
async fn output_that_cannot_be_written_stops_nobody() {
    let data = tempfile::tempdir().unwrap();
    let logs = data.path().join("file");
    fs::write(&logs, "").unwrap();
    let mut node = Node::with_logs(data, logs);
    node.start("head -c 1000000 /dev/zero; exit 5");
    let facts = node.facts().await;
    let gap = |fact: &RuntimeFact| matches!(fact, RuntimeFact::LogGap(text) if text.contains("1000000 bytes"));
    assert!(facts.iter().any(gap), "{facts:?}");
    let Some(RuntimeFact::Ended(outcome)) = facts.last() else { panic!("{facts:?}") };
    assert_eq!(outcome.exit_code, Some(5));
}

#[tokio::test]
async fn the_environment_is_small_and_podmesh_has_the_last_word() {
    let mut node = Node::new();
    node.start_with(|run| {
        run.command = vec!["env".into()];
        run.env.insert("A".into(), "1 2".into());
        run.env.insert("PODMESH_TASK".into(), "mine".into());
    });
    node.end().await;
    let stdout = node.stdout();
    let env: BTreeMap<_, _> = stdout.lines().filter_map(|line| line.split_once('=')).collect();
    for (name, value) in [
        ("A", "1 2"),
        ("PODMESH_JOB", "42"),
        ("PODMESH_JOB_NAME", "name-of-job"),
        ("PODMESH_TASK", "42.7"),
        ("PODMESH_TASK_INDEX", "7"),
        ("PODMESH_ATTEMPT", "2"),
        ("PODMESH_NODE", "here"),
    ] {
        assert_eq!(env.get(name), Some(&value), "{name}");
    }
    assert!(env.contains_key("PATH"));
    assert!(env.contains_key(AGENT));
    // Set by cargo for this test, and nobody's business.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!env.contains_key("CARGO_MANIFEST_DIR"));
}

const AGENT: &str = mark::AGENT_VARIABLE;

#[tokio::test]
async fn it_runs_in_a_folder_of_its_own_with_a_closed_stdin() {
    let mut node = Node::new();
    let outcome = node.run("pwd; ls -A | wc -l; cat; echo x > file").await;
    assert_eq!(outcome.exit_code, Some(0));
    let folder = node.data.path().join("work/42.7.2");
    assert_eq!(node.stdout(), format!("{}\n0\n", folder.display()));
    node.runtime.remove(ATTEMPT);
    node.runtime.close().await;
    assert_eq!(fs::read_dir(node.data.path().join("work")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_workdir_is_used() {
    let mut node = Node::new();
    node.start_with(|run| {
        run.command = vec!["pwd".into()];
        run.workdir = Some("/usr".into());
    });
    node.end().await;
    assert_eq!(node.stdout(), "/usr\n");
}

#[tokio::test]
async fn the_rest_of_the_group_goes_with_its_process() {
    let mut node = Node::new();
    // It holds the pipe, too: without the kill the end would wait for it.
    let outcome = node.run("trap '' TERM; sleep 1000 & echo $!").await;
    assert_eq!(outcome.exit_code, Some(0));
    assert!(!is_alive(pid_in(&node.stdout())));
}

#[tokio::test]
async fn what_left_the_group_goes_too() {
    for script in [
        // Another session.
        "setsid sh -c 'echo $$ > pid; exec sleep 1000' >/dev/null 2>&1 &",
        // A double fork, into another session.
        "(setsid sh -c 'sleep 1000 & echo $! > pid; wait' >/dev/null 2>&1 &)",
        // Its parent is gone already.
        "(setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)",
        // It holds the output.
        "(setsid sh -c 'sleep 1000 & echo $! > pid' &)",
        // It hides whose it is.
        "(env -i setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)",
    ] {
        let mut node = Node::new();
        let outcome =
            node.run(&format!("{script}\nwhile ! test -s pid; do sleep 0.01; done; exit 4")).await;
        assert_eq!(outcome.exit_code, Some(4), "{script}");
        let pid = fs::read_to_string(node.data.path().join("work/42.7.2/pid")).unwrap();
        // It has been killed. To be gone takes a moment; one that hides whose it is may have to
        // wait for the attempts of other tests, too.
        tokio::task::spawn_blocking(move || wait_until_gone(pid_in(&pid))).await.unwrap();
    }
}

fn wait_until_gone(pid: Pid) {
    let start = std::time::Instant::now();
    while is_alive(pid) {
        assert!(start.elapsed() < Duration::from_secs(60), "process {pid} is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn what_left_the_group_lives_as_long_as_its_process() {
    let mut node = Node::new();
    node.start(
        "(setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)
         while ! test -s pid; do sleep 0.01; done
         true & wait $!
         kill -0 $(cat pid) && echo alive
         sleep 1000",
    );
    node.printed("alive").await;
    let pid = pid_in(&fs::read_to_string(node.data.path().join("work/42.7.2/pid")).unwrap());
    assert!(is_alive(pid));
    node.runtime.stop(ATTEMPT, 0);
    assert_eq!(node.end().await.signal, Some(9));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_stop_asks_first() {
    let mut node = Node::new();
    node.start("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    node.printed("ready").await;
    node.runtime.stop(ATTEMPT, 60_000);
    assert_eq!(node.end().await.exit_code, Some(7));
    assert_eq!(node.stdout(), "ready\nbye\n");
}

#[tokio::test]
async fn a_stop_kills_after_the_grace() {
    let mut node = Node::new();
    node.start("trap '' TERM; sleep 1000 & echo $!; wait");
    node.printed("\n").await;
    node.runtime.stop(ATTEMPT, 30);
    assert_eq!(node.end().await.signal, Some(9));
    assert!(!is_alive(pid_in(&node.stdout())));
}

#[tokio::test]
async fn a_stop_right_after_the_start_is_not_lost() {
    let mut node = Node::new();
    for _ in 0..20 {
        node.start("sleep 1000");
        node.runtime.stop(ATTEMPT, 0);
        let outcome = node.end().await;
        let was_killed = outcome.signal == Some(9);
        let was_not_started = outcome.message.as_deref() == Some("stopped before its start");
        assert!(was_killed || was_not_started, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_dropped_runtime_leaves_nothing() {
    let node = Node::new();
    node.start("echo $$; sleep 1000");
    node.printed("\n").await;
    let pid = pid_in(&node.stdout());
    drop(node);
    tokio::task::spawn_blocking(move || wait_until_gone(pid)).await.unwrap();
}

#[tokio::test]
async fn many_at_a_time_all_end_and_leave_no_zombie() {
    let mut node = Node::new();
    let context = context(|run| run.command = vec!["true".into()]);
    for index in 1..=300 {
        let (context, terms) = (Arc::clone(&context), Arc::clone(&node.terms));
        node.runtime.start(AttemptId::new(JobId(1), index, 1), context, terms);
    }
    // Children of other code are left to it.
    for code in 0..20 {
        let status = Command::new("sh").args(["-c", &format!("exit {code}")]).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
    let mut ended = 0;
    while ended < 300 {
        let (_, fact) = node.facts.recv().await.unwrap();
        if let RuntimeFact::Ended(outcome) = fact {
            assert_eq!(outcome.exit_code, Some(0));
            ended += 1;
        }
    }
}

#[tokio::test]
async fn what_a_killed_supervisor_left_is_killed_and_lost() {
    let node = Node::new();
    let work = &node.runtime.shared.work_dir;
    let agent = node.runtime.shared.settings.agent_id;
    // One whose process goes on, as its environment tells; one that had ended.
    let mut left = Command::new("sh");
    left.args(["-c", "setsid sleep 1000 & echo $!; wait"])
        .env(AGENT, agent.to_string())
        .env("PODMESH_TASK", "42.7")
        .env("PODMESH_ATTEMPT", "2")
        .stdout(Stdio::piped());
    let mut left = left.spawn().unwrap();
    let mut line = String::new();
    let stdout = left.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).unwrap();
    drop(work.take_up(ATTEMPT, OnLost::Requeue).unwrap());
    // One that cleaned its environment, and is known by its number.
    let mut bare = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let bare_pid = Pid::from_raw(bare.id().cast_signed());
    let second = AttemptId::new(JobId(42), 8, 1);
    let ticks = Stat::of(bare_pid).unwrap().start_ticks;
    work.take_up(second, OnLost::Wait).unwrap().started(bare_pid, ticks).unwrap();
    // One that had ended, and was not acknowledged.
    let third = AttemptId::new(JobId(42), 9, 1);
    drop(work.take_up(third, OnLost::Wait).unwrap());
    work.ended(third, &Outcome::exited(6)).unwrap();
    // One of another time: the number is somebody else's by now.
    let fourth = AttemptId::new(JobId(43), 1, 1);
    work.take_up(fourth, OnLost::Wait).unwrap().started(Pid::this(), 1).unwrap();

    // The survivors are children of this process, unlike in life: their ends are taken.
    let reaper = std::thread::spawn(move || (left.wait(), bare.wait()));
    let runtime = node.runtime;
    let (found, runtime) =
        tokio::task::spawn_blocking(move || (runtime.left().unwrap(), runtime)).await.unwrap();
    reaper.join().unwrap().0.unwrap();
    assert!(!is_alive(pid_in(&line)));
    assert!(!is_alive(bare_pid));
    let lost = Outcome::new(OutcomeKind::Lost).with_message(SUPERVISOR_DIED);
    let found: Vec<_> = found.into_iter().map(|f| (f.attempt, f.on_lost, f.ended)).collect();
    let expected = [
        (ATTEMPT, OnLost::Requeue, lost.clone()),
        (second, OnLost::Wait, lost.clone()),
        (third, OnLost::Wait, Outcome::exited(6)),
        (fourth, OnLost::Wait, lost),
    ];
    assert_eq!(found, expected);
    drop(runtime);
}

#[tokio::test]
async fn an_end_is_written_down_until_it_is_removed() {
    let mut node = Node::new();
    node.start("until test -e go; do sleep 0.01; done; exit 3");
    assert_eq!(node.facts.recv().await.unwrap(), (ATTEMPT, RuntimeFact::Started));
    fs::write(node.data.path().join("work/42.7.2/go"), "").unwrap();
    node.end().await;
    let mut found = node.runtime.shared.work_dir.found().unwrap();
    let found = found.pop().unwrap();
    assert_eq!((found.attempt, found.on_lost), (ATTEMPT, OnLost::Requeue));
    assert_eq!(found.ended.unwrap().exit_code, Some(3));
    assert!(found.process.is_some());
    assert!(Path::new("/proc/self").exists());
}
