//! Tests with real processes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod checks;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::spec::{OnLost, Resources, RunSpec, RuntimeSpec};
use tokio::sync::mpsc::UnboundedReceiver;

use super::mark::Stat;
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
            user: None,
        };
        let (sender, facts) = tokio::sync::mpsc::unbounded_channel();
        let runtime = ProcessRuntime::new(settings, sender).unwrap();
        Self { data, runtime, terms: Arc::new(terms), facts, notify }
    }

    fn start(&self, script: &str) {
        self.start_with(|run| run.command = ["sh", "-c", script].map(str::to_owned).to_vec());
    }

    fn start_with(&self, change: impl FnOnce(&mut RunSpec)) {
        self.runtime.start(ATTEMPT, context(change), Arc::clone(&self.terms), None);
    }

    /// Returns the facts up to and including the end.
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

    /// Removes the attempt, and waits until that is done.
    async fn remove(&self) {
        self.runtime.remove(ATTEMPT);
        let work = &self.runtime.shared.work_dir;
        while work.records().iter().any(|record| record.attempt == ATTEMPT) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn log(&self, stream: &str) -> Option<Vec<u8>> {
        fs::read(self.data.path().join(format!("logs/42/7/2/{stream}.log"))).ok()
    }

    fn stdout(&self) -> String {
        String::from_utf8(self.log("stdout").unwrap_or_default()).unwrap()
    }

    /// Waits until the program has printed `text`.
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
        replica: None,
        files: [].into(),
    };
    change(&mut run);
    Arc::new(JobContext {
        claims: Default::default(),
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

/// Parses the process id that a program wrote.
fn pid_in(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap_or_else(|_| panic!("not a process id: {text:?}")))
}

#[tokio::test]
async fn an_exit_is_reported_with_its_code() {
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
async fn a_signal_is_reported_even_without_a_name() {
    let mut node = Node::new();
    for signal in [9, 11, 40] {
        let outcome = node.run(&format!("kill -{signal} $$")).await;
        assert_eq!((outcome.kind, outcome.signal), (OutcomeKind::Failed, Some(signal)));
        assert_eq!(outcome.exit_code, None);
    }
}

#[tokio::test]
async fn files_of_the_job_are_in_the_work_folder_and_removed_with_it() {
    let mut node = Node::new();
    let files = [("app.conf", "a = 1\n"), ("conf/deep/b", "two\n")]
        .map(|(path, text)| (path.to_owned(), text.to_owned()));
    node.start_with(|run| {
        run.command = ["sh", "-c", "cat app.conf conf/deep/b && pwd"].map(String::from).into();
        run.files = files.into();
    });
    let facts = node.facts().await;
    assert!(matches!(facts.last(), Some(RuntimeFact::Ended(end)) if end.exit_code == Some(0)));
    let said = node.stdout();
    let folder = said.strip_prefix("a = 1\ntwo\n").unwrap().trim();
    assert!(Path::new(folder).join("conf/deep/b").exists());
    node.remove().await;
    assert!(!Path::new(folder).join("conf").exists());
}

#[tokio::test]
async fn a_failed_start_reports_the_reason() {
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
    let mut expected = fs::read(node.data.path().join("work/0/folder/all")).unwrap();
    expected.extend(b"end");
    assert!(node.log("stdout").unwrap() == expected);
    assert_eq!(node.log("stderr").unwrap(), b"a\xff\0b");
}

#[tokio::test]
async fn no_file_is_created_without_output() {
    let mut node = Node::new();
    node.run("true").await;
    assert!(!node.data.path().join("logs").exists());
}

#[tokio::test]
async fn output_that_cannot_be_written_does_not_stop_the_program() {
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
async fn the_environment_is_small_and_jobs_cannot_override_podmesh_variables() {
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
    // Set by cargo for this test, and not inherited.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!env.contains_key("CARGO_MANIFEST_DIR"));
}

const AGENT: &str = mark::AGENT_VARIABLE;

#[tokio::test]
async fn a_command_runs_in_its_own_folder_with_an_empty_stdin() {
    let mut node = Node::new();
    let outcome = node.run("pwd; ls -A | wc -l; cat; echo x > file").await;
    assert_eq!(outcome.exit_code, Some(0));
    let folder = node.data.path().join("work/0/folder");
    assert_eq!(node.stdout(), format!("{}\n0\n", folder.display()));
    node.runtime.remove(ATTEMPT);
    node.runtime.close().await;
    assert_eq!(fs::read_dir(node.data.path().join("work")).unwrap().count(), 1, "the records");
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
async fn the_rest_of_the_group_is_killed_with_its_process() {
    let mut node = Node::new();
    // It also holds the pipe: without the kill, the end would wait for it.
    let outcome = node.run("trap '' TERM; sleep 1000 & echo $!").await;
    assert_eq!(outcome.exit_code, Some(0));
    assert!(!is_alive(pid_in(&node.stdout())));
}

#[tokio::test]
async fn processes_that_left_the_group_are_killed_too() {
    for script in [
        // Another session.
        "setsid sh -c 'echo $$ > pid; exec sleep 1000' >/dev/null 2>&1 &",
        // A double fork into another session.
        "(setsid sh -c 'sleep 1000 & echo $! > pid; wait' >/dev/null 2>&1 &)",
        // Its parent has already ended.
        "(setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)",
        // It holds the output.
        "(setsid sh -c 'sleep 1000 & echo $! > pid' &)",
        // It hides which attempt it belongs to.
        "(env -i setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)",
    ] {
        let mut node = Node::new();
        let outcome =
            node.run(&format!("{script}\nwhile ! test -s pid; do sleep 0.01; done; exit 4")).await;
        assert_eq!(outcome.exit_code, Some(4), "{script}");
        let pid = fs::read_to_string(node.data.path().join("work/0/folder/pid")).unwrap();
        // It was killed. This takes a moment, and one that hides its attempt may also have to wait
        // for attempts of other tests.
        tokio::task::spawn_blocking(move || wait_until_gone(pid_in(&pid))).await.unwrap();
    }
}

fn wait_until_gone(pid: Pid) {
    let start = std::time::Instant::now();
    while is_alive(pid) {
        assert!(start.elapsed() < Duration::from_secs(60), "process {pid} is still running");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn processes_that_left_the_group_run_as_long_as_its_process() {
    let mut node = Node::new();
    node.start(
        "(setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)
         while ! test -s pid; do sleep 0.01; done
         true & wait $!
         kill -0 $(cat pid) && echo alive
         sleep 1000",
    );
    node.printed("alive").await;
    let pid = pid_in(&fs::read_to_string(node.data.path().join("work/0/folder/pid")).unwrap());
    assert!(is_alive(pid));
    node.runtime.stop(ATTEMPT, 0);
    assert_eq!(node.end().await.signal, Some(9));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_stop_sends_sigterm_first() {
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
async fn a_dropped_runtime_leaves_no_process() {
    let node = Node::new();
    node.start("echo $$; sleep 1000");
    node.printed("\n").await;
    let pid = pid_in(&node.stdout());
    drop(node);
    tokio::task::spawn_blocking(move || wait_until_gone(pid)).await.unwrap();
}

#[tokio::test]
async fn many_concurrent_commands_end_and_leave_no_zombie() {
    let mut node = Node::new();
    let context = context(|run| run.command = vec!["true".into()]);
    for index in 1..=300 {
        let (context, terms) = (Arc::clone(&context), Arc::clone(&node.terms));
        node.runtime.start(AttemptId::new(JobId(1), index, 1), context, terms, None);
    }
    // Children of other code are left alone.
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
async fn processes_of_a_killed_supervisor_are_killed_and_reported_as_lost() {
    let node = Node::new();
    let work = &node.runtime.shared.work_dir;
    let agent = node.runtime.shared.settings.agent_id;
    // A running process, recognised by its environment.
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
    work.take_up(ATTEMPT, OnLost::Requeue, None).unwrap();
    // A process without environment, recognised by its process id.
    let mut bare = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let bare_pid = Pid::from_raw(bare.id().cast_signed());
    let second = AttemptId::new(JobId(42), 8, 1);
    let process =
        |pid: Pid, ticks| StartedProcess { pid: pid.as_raw(), start_ticks: (ticks, ticks) };
    let ticks = Stat::of(bare_pid).unwrap().start_ticks;
    work.take_up(second, OnLost::Wait, None).unwrap();
    work.started(second, process(bare_pid, ticks)).unwrap();
    // A process that had ended, and was not acknowledged.
    let third = AttemptId::new(JobId(42), 9, 1);
    work.take_up(third, OnLost::Wait, None).unwrap();
    work.ended(third, &Outcome::exited(6)).unwrap();
    // An old process, whose process id now belongs to another one.
    let fourth = AttemptId::new(JobId(43), 1, 1);
    work.take_up(fourth, OnLost::Wait, None).unwrap();
    work.started(fourth, process(Pid::this(), 1)).unwrap();

    // Unlike in production, the survivors are children of this process, which must reap them.
    let reaper = std::thread::spawn(move || (left.wait(), bare.wait()));
    let runtime = node.runtime;
    let (abandoned, runtime) =
        tokio::task::spawn_blocking(move || (runtime.abandoned(), runtime)).await.unwrap();
    reaper.join().unwrap().0.unwrap();
    assert!(!is_alive(pid_in(&line)));
    assert!(!is_alive(bare_pid));
    let lost = Outcome::new(OutcomeKind::Lost).with_message(SUPERVISOR_DIED);
    let abandoned: Vec<_> =
        abandoned.into_iter().map(|one| (one.attempt, one.on_lost, one.ended)).collect();
    let expected = [
        (ATTEMPT, OnLost::Requeue, lost.clone()),
        (second, OnLost::Wait, lost.clone()),
        (third, OnLost::Wait, Outcome::exited(6)),
        (fourth, OnLost::Wait, lost),
    ];
    assert_eq!(abandoned, expected);
    drop(runtime);
}

#[tokio::test]
async fn an_end_is_recorded_before_it_is_reported() {
    let mut node = Node::new();
    node.start("until test -e go; do sleep 0.01; done; exit 3");
    assert_eq!(node.facts.recv().await.unwrap(), (ATTEMPT, RuntimeFact::Started));
    fs::write(node.data.path().join("work/0/folder/go"), "").unwrap();
    let outcome = node.end().await;
    let (told, is_told) = tokio::sync::oneshot::channel();
    node.runtime.keep_end(ATTEMPT, outcome.clone(), move || told.send(()).unwrap());
    is_told.await.unwrap();
    let found = WorkDir::open(node.data.path(), Uuid::nil()).unwrap().records().pop().unwrap();
    assert_eq!((found.attempt, found.on_lost), (ATTEMPT, OnLost::Requeue));
    assert_eq!(found.ended, Some(outcome));
    // Only the start time shows whether this is still the same process.
    assert!(found.process.unwrap().pid > 0);
}

#[tokio::test]
async fn a_process_is_recognised_by_its_id_and_start_time() {
    let mut node = Node::new();
    node.start("echo $$; sleep 1000");
    node.printed("\n").await;
    let stat = Stat::of(pid_in(&node.stdout())).unwrap();
    let process =
        WorkDir::open(node.data.path(), Uuid::nil()).unwrap().records()[0].process.unwrap();
    assert_eq!(process.pid, stat.group);
    assert!(process.is(stat.start_ticks), "{process:?} {stat:?}");
    assert!(!process.is(stat.start_ticks + 1000) && !process.is(stat.start_ticks - 1000));
    node.runtime.stop(ATTEMPT, 0);
    node.end().await;
}

/// Returns whether commands can run as another user here. Prints if not, which is a failure in CI.
fn may_change_user() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    assert!(root || !required, "users and cgroups are tested as root");
    if !root {
        eprintln!("SKIPPED: only root can start commands as another user");
    }
    root
}

fn somebody() -> ProcessUser {
    let home = None;
    ProcessUser {
        name: "somebody".into(),
        uid: 64_321,
        gid: 64_322,
        groups: vec![64_322, 64_323],
        home,
    }
}

const WHO_AND_WHERE: &str = "id -u; id -G; pwd; stat -c '%u %g %a' .; echo $HOME $USER; echo x >x";

#[tokio::test]
async fn a_command_of_another_user_has_its_own_folder() {
    if !may_change_user() {
        return;
    }
    let mut node = Node::new();
    let own = Arc::clone(&node.terms);
    node.terms = Arc::new(Terms { user: Some(somebody()), ..Terms::clone(&own) });
    let work = node.data.path().join("work").display().to_string();
    for _ in 0..2 {
        assert_eq!(node.run(WHO_AND_WHERE).await.exit_code, Some(0));
        let printed = node.stdout();
        let folder = printed.lines().nth(2).unwrap();
        assert!(folder.starts_with(&work), "{printed}");
        let place = Path::new(folder).parent().unwrap().file_name().unwrap().to_str().unwrap();
        let group = node.runtime.shared.work_dir.group_of(place.parse().unwrap()).unwrap();
        let expected =
            format!("64321\n{group} 64322 64323\n{folder}\n64321 {group} 700\n{folder} somebody\n");
        assert_eq!(printed, expected);
        fs::remove_file(node.data.path().join("logs/42/7/2/stdout.log")).unwrap();
        // The next user gets another folder.
        node.remove().await;
        node.terms = Arc::clone(&own);
        assert_eq!(node.run("stat -c %u .").await.exit_code, Some(0));
        assert_eq!(node.stdout(), "0\n");
        fs::remove_file(node.data.path().join("logs/42/7/2/stdout.log")).unwrap();
        node.remove().await;
        node.terms = Arc::new(Terms { user: Some(somebody()), ..Terms::clone(&own) });
    }
    // The agent does not execute or enter anything that this user may not.
    let data = node.data.path().to_owned();
    let program = data.join("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode;
    fs::set_permissions(&program, mode(0o700)).unwrap();
    fs::create_dir(data.join("closed")).unwrap();
    fs::set_permissions(data.join("closed"), mode(0o700)).unwrap();
    for (program, workdir, code) in
        [(program.to_str().unwrap(), None, 126), ("true", Some(data.join("closed")), 125)]
    {
        node.start_with(|run| {
            run.command = vec![program.to_owned()];
            run.workdir = workdir.map(|dir| dir.to_str().unwrap().to_owned());
        });
        let outcome = node.end().await;
        assert_eq!(outcome.exit_code, Some(code));
        assert!(outcome.message.unwrap().contains("somebody"), "{program}");
        node.remove().await;
    }
}

#[tokio::test]
async fn commands_of_one_user_cannot_access_each_others_folders_and_processes() {
    if !may_change_user() {
        return;
    }
    let mut node = Node::new();
    let terms = Terms { user: Some(somebody()), ..Terms::clone(&node.terms) };
    node.terms = Arc::new(terms);
    let other = AttemptId::new(JobId(42), 8, 1);
    let script = "echo secret >file; chmod 666 file; chmod 777 .; echo $$; exec sleep 1000";
    let writes = context(|run| run.command = ["sh", "-c", script].map(str::to_owned).to_vec());
    node.runtime.start(other, writes, Arc::clone(&node.terms), None);
    assert_eq!(node.facts.recv().await.unwrap(), (other, RuntimeFact::Started));
    let folder = node.data.path().join("work/0/folder");
    let log = node.data.path().join("logs/42/8/1/stdout.log");
    let printed = || fs::read_to_string(&log).unwrap_or_default();
    let waiter = node.notify.listen(other);
    while !printed().ends_with('\n') {
        waiter.news().await;
    }
    let (folder, pid) = (folder.display(), pid_in(&printed()));
    for script in [
        format!("cat {folder}/file"),
        format!("ls {folder}"),
        format!("cat /proc/{pid}/environ"),
        format!("cat /proc/{pid}/cwd/file"),
    ] {
        let outcome = node.run(&format!("exec 2>&1; {script}")).await;
        assert_ne!(outcome.exit_code, Some(0), "{script}");
        let printed = node.stdout();
        assert!(printed.contains("Permission denied") && !printed.contains("secret"), "{printed}");
        fs::remove_file(node.data.path().join("logs/42/7/2/stdout.log")).unwrap();
        node.remove().await;
    }
    // They are not in the other place's group.
    let group = node.runtime.shared.work_dir.group_of(0).unwrap();
    let outcome = node.run(&format!("touch x && chgrp {group} x")).await;
    assert_eq!(outcome.exit_code, Some(1));
    node.runtime.stop(other, 0);
}

#[tokio::test]
async fn work_folders_of_a_closed_data_directory_are_elsewhere_and_removed() {
    if !may_change_user() {
        return;
    }
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
    let above = tempfile::Builder::new().permissions(mode).tempdir().unwrap();
    let data = tempfile::tempdir_in(above.path()).unwrap();
    let logs = data.path().join("logs");
    let mut node = Node::with_logs(data, logs);
    let terms = Terms { user: Some(somebody()), ..Terms::clone(&node.terms) };
    node.terms = Arc::new(terms);
    assert_eq!(node.run(WHO_AND_WHERE).await.exit_code, Some(0));
    let agent = node.runtime.shared.settings.agent_id;
    let elsewhere = Path::new("/var/lib/podmesh-work").join(agent.to_string());
    let printed = node.stdout();
    let folder = Path::new(printed.lines().nth(2).unwrap());
    assert!(folder.starts_with(&elsewhere) && folder.join("x").exists(), "{printed}");
    node.runtime.remove(ATTEMPT);
    node.runtime.close().await;
    assert!(!elsewhere.exists());
}

#[tokio::test]
async fn a_process_that_hides_its_attempt_is_killed_with_it() {
    if !may_change_user() {
        return;
    }
    let mut node = Node::new();
    // Another running attempt: without cgroups the hidden process could belong to it.
    let other = AttemptId::new(JobId(42), 8, 1);
    let sleeps = context(|run| run.command = ["sleep", "1000"].map(str::to_owned).to_vec());
    node.runtime.start(other, sleeps, Arc::clone(&node.terms), None);
    assert_eq!(node.facts.recv().await.unwrap(), (other, RuntimeFact::Started));
    let outcome = node
        .run(
            "(env -i setsid sh -c 'sleep 1000 & echo $! > pid' >/dev/null 2>&1 &)
             while ! test -s pid; do sleep 0.01; done; cat pid",
        )
        .await;
    assert_eq!(outcome.exit_code, Some(0));
    assert!(!is_alive(pid_in(&node.stdout())));
}

#[tokio::test]
async fn running_out_of_memory_is_reported() {
    if !may_change_user() {
        return;
    }
    let mut node = Node::new();
    if let Some(why) = node.runtime.unenforced().get("memory") {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let limited = |script: &str| {
        let context = context(|run| run.command = ["sh", "-c", script].map(str::to_owned).to_vec());
        let resources = Resources { cpu_millis: 1000, memory_bytes: 32 << 20 };
        Arc::new(JobContext { resources, ..JobContext::clone(&context) })
    };
    for (script, oom_killed) in
        [("head -c 500M /dev/zero | tail >/dev/null; exit 3", true), ("exit 3", false)]
    {
        node.runtime.start(ATTEMPT, limited(script), Arc::clone(&node.terms), None);
        let outcome = node.end().await;
        assert_eq!((outcome.exit_code, outcome.oom_killed), (Some(3), oom_killed), "{outcome:?}");
        assert_eq!(outcome.message.is_some(), oom_killed);
        node.remove().await;
    }
}
