//! A mesh of this binary, and a client of its manager.

use std::time::{Duration, Instant};

use podmesh_protocol::client::{JobDetail, ReplyBody, RequestBody};
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{
    ArrayRange, JobSpec, OnLost, Resources, RetryPolicy, RunSpec, RuntimeSpec,
};
use podmesh_tests::mesh::Mesh;
use podmesh_wire::client::Client;
use tokio::runtime::Runtime;

/// A mesh with a client of its manager.
pub(crate) struct Rig {
    pub(crate) mesh: Mesh,
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
}

impl Rig {
    /// Starts a manager and agents with these flags.
    pub(crate) fn new(agents: &[&str], flags: &[&str]) -> Self {
        let mut mesh = Mesh::new(std::env::current_exe().unwrap());
        mesh.start_manager();
        for name in agents {
            mesh.start_agent(name, flags);
        }
        Self::of(mesh)
    }

    /// Wraps a mesh that is already running.
    pub(crate) fn of(mesh: Mesh) -> Self {
        let runtime = Runtime::new().unwrap();
        let client = connect(&runtime, &mesh);
        Self { mesh, client, runtime }
    }

    /// Opens a new connection after a restart of the manager.
    pub(crate) fn reconnect(&mut self) {
        self.client = connect(&self.runtime, &self.mesh);
    }

    /// Sends a request to the manager, and returns the reply.
    pub(crate) fn ask(&self, body: RequestBody) -> ReplyBody {
        self.runtime.block_on(self.client.request(body)).unwrap()
    }

    /// Submits a job.
    pub(crate) fn submit(&self, spec: JobSpec) -> JobId {
        let submission = SubmissionId(uuid::Uuid::now_v7());
        match self.ask(RequestBody::Submit { submission, spec: Box::new(spec) }) {
            ReplyBody::Submitted { job, .. } => job,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a job has ended.
    pub(crate) fn wait(&self, job: JobId) -> JobDetail {
        let mut since = None;
        loop {
            let ReplyBody::Job(detail) = self.ask(RequestBody::Job { job, since, wait_ms: 10_000 })
            else {
                panic!("no job")
            };
            if detail.view.is_end() {
                assert_eq!(detail.view.state, JobState::Succeeded, "{:?}", detail.view);
                return *detail;
            }
            since = Some(detail.revision);
            // Every commit changes a busy job, so ask at most a hundred times a second.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a job, and returns its tasks per second from the submit to the last task's end.
    pub(crate) fn rate(&self, spec: JobSpec) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "tasks are fewer than 2^52")]
        let tasks = spec.array.tasks() as f64;
        let start = Instant::now();
        let job = self.submit(spec);
        self.wait(job);
        tasks / start.elapsed().as_secs_f64()
    }
}

fn connect(runtime: &Runtime, mesh: &Mesh) -> Client {
    runtime.block_on(Client::connect(&mesh.local())).unwrap()
}

/// Returns a job whose tasks take one core each.
pub(crate) fn job(runtime: RuntimeSpec, command: &[&str], tasks: u32) -> JobSpec {
    JobSpec {
        name: "bench".parse().unwrap(),
        array: ArrayRange { first: 1, last: tasks },
        priority: 0,
        require: [].into(),
        resources: Resources { cpu_millis: 1000, memory_bytes: 0 },
        retry: RetryPolicy::default(),
        on_lost: OnLost::Wait,
        rules: Default::default(),
        place: Default::default(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run: RunSpec {
            runtime,
            command: command.iter().map(|&arg| arg.to_owned()).collect(),
            env: [].into(),
            workdir: None,
            timeout_ms: None,
            stop_grace_ms: 1_000,
            replica: None,
            files: [].into(),
        },
    }
}
