//! Processes beside clients that read all the time.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use podmesh_protocol::client::RequestBody;
use podmesh_protocol::ids::JobId;
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_wire::client::Client;

use crate::rig::{Rig, job};
use crate::table::Table;

const FOLLOWERS: usize = 50;
const POLLERS: u32 = 20;
const FLAGS: [&str; 4] = ["--cpus", "32", "--docker", "off"];

/// Commands that run until this is dropped.
struct Commands(Vec<Child>);

impl Drop for Commands {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // An error means that it has ended.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

fn followers(rig: &Rig, args: &[&str]) -> Commands {
    let start = |_| {
        let mut command = rig.mesh.podmesh(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    Commands((0..FOLLOWERS).map(start).collect())
}

pub(super) fn measure(tasks: u64, table: &mut Table) {
    let tasks = u32::try_from(tasks).unwrap();
    let rig = Rig::new(&["a", "b"], &FLAGS);
    rig.rate(job(RuntimeSpec::Process, &["true"], tasks / 10));
    // Returns the tasks a second beside the readers that `start` makes for the job.
    let rate = |start: &dyn Fn(JobId) -> Option<Commands>| {
        let began = Instant::now();
        let job = rig.submit(job(RuntimeSpec::Process, &["true"], tasks));
        let _commands = start(job);
        rig.wait(job);
        f64::from(tasks) / began.elapsed().as_secs_f64()
    };
    let mut alone = rate(&|_| None);
    let mut row = |name: &str, floor: &str, start: &dyn Fn(JobId) -> Option<Commands>| {
        let beside = rate(start);
        let again = rate(&|_| None);
        let name = format!("array of {tasks} `true` beside {name}, against none");
        table.ratio(&name, beside, f64::midpoint(alone, again), "/s", floor);
        alone = again;
    };

    let events = |_| Some(followers(&rig, &["events", "--follow"]));
    row(&format!("{FOLLOWERS} `events -f`"), "0.7", &events);

    let (stopped, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let poll = |job: JobId| {
        for _ in 0..POLLERS {
            let (route, stopped, answers) =
                (rig.mesh.local(), Arc::clone(&stopped), Arc::clone(&answers));
            rig.runtime.spawn(async move {
                let client = Client::connect(&route).await.unwrap();
                let polls = [
                    RequestBody::Jobs {
                        before: None,
                        active: false,
                        by: None,
                        service: None,
                        replica: None,
                        limit: 100,
                    },
                    RequestBody::Job { job, since: None, wait_ms: 0 },
                    RequestBody::Tasks { job, from: 1, state: None, limit: 100 },
                    RequestBody::Nodes { after: None, limit: 100 },
                ];
                for poll in polls.iter().cycle() {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    client.request(poll.clone()).await.unwrap();
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        None
    };
    row(&format!("{POLLERS} clients that poll without pause"), "0.5", &|job| {
        let commands = poll(job);
        let stopped = Arc::clone(&stopped);
        // They end with the job.
        let (client, runtime) = (rig.client.clone(), rig.runtime.handle().clone());
        runtime.spawn(async move {
            let mut since = None;
            loop {
                let wait = RequestBody::Job { job, since, wait_ms: 10_000 };
                let podmesh_protocol::client::ReplyBody::Job(detail) =
                    client.request(wait).await.unwrap()
                else {
                    return;
                };
                if detail.view.is_end() {
                    return stopped.store(true, Ordering::Relaxed);
                }
                since = Some(detail.revision);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        commands
    });
    eprintln!("  they got {} answers", answers.load(Ordering::Relaxed));

    let of_the_array = |job: JobId| Some(followers(&rig, &["logs", "-f", &job.to_string()]));
    row(&format!("{FOLLOWERS} `logs -f` of it"), "0.9", &of_the_array);

    let script = "while :; do echo a line of output; sleep 0.1; done";
    let mut talker = job(RuntimeSpec::Process, &["sh", "-c", script], 1);
    talker.resources.cpu_millis = 1;
    let talker = rig.submit(talker);
    let of_another = |_| Some(followers(&rig, &["logs", "-f", &talker.to_string()]));
    row(&format!("{FOLLOWERS} `logs -f` of a task with 10 lines/s"), "0.9", &of_another);
    rig.ask(RequestBody::Cancel { job: talker, downstream: false });
}
