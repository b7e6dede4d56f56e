//! The table of all routes.

use axum::routing::put;
use podmesh_protocol::access::Role;
use podmesh_views::access::{TokenOutput, TokensOutput, UsersOutput};
use podmesh_views::again::{FailedOutput, RequeueOutput};
use podmesh_views::http::{
    BatchOutput, CallerView, EventsOutput, ForgottenNode, HealthView, InfoView, KeyView, PlanView,
    RemovedVolume, SearchOutput, TaskOutput,
};
use podmesh_views::input::{
    ForgetInput, JobInput, KeyRotateInput, RequeueInput, RollbackInput, ScaleInput, ScheduleInput,
    ServiceSpecInput, TokenInput, WorkflowInput,
};
use podmesh_views::json::{
    CancelledJob, ForgetOutput, JobOutput, JobsOutput, SubmitOutput, TasksOutput,
};
use podmesh_views::node::{
    DrainInput, LabelledNode, LabelsInput, MaintenanceInput, NodeMaintenanceOutput, NodesOutput,
    ScheduledNode,
};
use podmesh_views::queue::{
    QueueChangedOutput, QueueInput, QueueOutput, QueueSavedOutput, QueuesOutput,
};
use podmesh_views::schedule::{
    ScheduleChangedOutput, ScheduleHistoryOutput, ScheduleOutput, ScheduleRanOutput,
    ScheduleSavedOutput, SchedulesOutput,
};
use podmesh_views::service::{
    EndpointsOutput, HistoryOutput, ServiceChangedOutput, ServiceOutput, ServicesOutput,
};
use podmesh_views::volume::VolumesOutput;
use podmesh_views::workflow::{
    WorkflowCancelOutput, WorkflowOutput, WorkflowSubmitOutput, WorkflowsOutput,
};
use schemars::JsonSchema;

use crate::route::{Route, on_delete, on_get, on_post, schema_of};
use crate::{
    access, events, jobs, logs, merged, nodes, openapi, queues, schedules, search, services,
    volumes, workflows,
};

const IF_NONE_MATCH: (&str, &str) =
    ("If-None-Match", "The `ETag` of an earlier reply: 304 if nothing has changed since.");
const IDEMPOTENCY_KEY: (&str, &str) = (
    "Idempotency-Key",
    "A key that is new for each job, best a UUID. The same request again with the same key returns the same job.",
);
const TRACE: (&str, &str) = (
    "traceparent",
    "The trace that the job is a part of (W3C Trace Context). Its tasks get it as `TRACEPARENT`.",
);
const LAST_EVENT_ID: (&str, &str) =
    ("Last-Event-ID", "The `id` of the last event that the client has: the stream resumes there.");
const RANGE: (&str, &str) =
    ("Range", "`bytes=FIRST-LAST` or `bytes=FIRST-`, without `follow`. A reply has at most 1 MiB.");

/// Returns all routes.
pub(crate) fn routes() -> Vec<Route> {
    let (operator, admin) = (Role::Operator, Role::Admin);
    let all = [
        the_manager(),
        job_routes(),
        node_routes(),
        service_routes(operator),
        schedule_routes(operator),
        queue_routes(),
        workflow_routes(operator),
        volume_routes(operator),
        access_routes(admin),
    ];
    all.into_iter().flatten().collect()
}

fn the_manager() -> Vec<Route> {
    let page = schema_of::<EventsOutput>();
    vec![
        on_get("/health", "health", "Whether the server answers.", access::health)
            .public()
            .reply::<HealthView>(200, "It does."),
        on_get("/ready", "ready", "Whether jobs can be submitted.", access::ready)
            .public()
            .reply::<HealthView>(200, "They can."),
        on_get("/openapi.json", "openapi", "This document.", openapi::document)
            .public()
            .reply::<serde_json::Map<String, serde_json::Value>>(200, "The document."),
        on_get("/info", "info", "The manager.", access::info)
            .reply::<InfoView>(200, "The manager."),
        on_get("/me", "me", "Who asks.", access::me).reply::<CallerView>(200, "The caller."),
        on_get(
            "/events",
            "events",
            "Every change, in order. With `Accept: text/event-stream` as a stream, of which each event has its revision as `id` and the same JSON as a page; comments come while nothing happens, and an event `problem` ends it before its time.",
            events::events,
        )
        .query::<events::EventsQuery>()
        .header(&[LAST_EVENT_ID])
        .reply_as(200, "The events.", vec![("application/json", Some(page)), ("text/event-stream", None)]),
    ]
}

fn job_routes() -> Vec<Route> {
    let (operator, admin) = (Role::Operator, Role::Admin);
    vec![
        on_get("/jobs", "list_jobs", "The jobs, newest first. The header `Link` has the next page.", jobs::list)
            .query::<jobs::JobsQuery>()
            .reply::<JobsOutput>(200, "A page of jobs."),
        on_post("/jobs", "submit_job", "Submits a job. The reply comes when the job is on disk.", jobs::submit)
            .needs(operator)
            .header(&[IDEMPOTENCY_KEY, TRACE])
            .body::<JobInput>()
            .reply::<SubmitOutput>(201, "The job was submitted.")
            .reply::<SubmitOutput>(200, "It was submitted before, with the same key."),
        on_post("/jobs/batch", "submit_jobs", "Submits many jobs. Each is accepted or refused by itself.", jobs::submit_batch)
            .needs(operator)
            .header(&[TRACE])
            .body::<jobs::BatchInput>()
            .reply::<BatchOutput>(200, "What became of each job."),
        on_post("/jobs/forget", "forget_jobs", "Removes the ended jobs of a range.", jobs::forget_many)
            .needs(admin)
            .body::<ForgetInput>()
            .reply::<ForgetOutput>(200, "How many were removed."),
        on_get("/jobs/{job}", "show_job", "A job, now or once it has changed.", jobs::show)
            .query::<jobs::WaitQuery>()
            .header(&[IF_NONE_MATCH])
            .reply::<JobOutput>(200, "The job.")
            .no_content(304, "It has not changed."),
        on_delete("/jobs/{job}", "forget_job", "Removes a job that has ended.", jobs::forget_one)
            .needs(admin)
            .reply::<ForgetOutput>(200, "Whether it was removed."),
        on_post("/jobs/{job}/cancel", "cancel_job", "Cancels a job.", jobs::cancel)
            .needs(operator)
            .query::<jobs::CancelQuery>()
            .reply::<CancelledJob>(200, "The state of the job."),
        on_post(
            "/jobs/{job}/requeue",
            "requeue_tasks",
            "Runs failed, lost or cancelled tasks of a job again, in the same job.",
            jobs::requeue,
        )
        .needs(operator)
        .optional_body::<RequeueInput>()
        .reply::<RequeueOutput>(200, "How many tasks are queued again."),
        on_get("/failed", "list_failed", "Failed tasks over all jobs, by job and reason.", jobs::failed)
            .query::<jobs::FailedQuery>()
            .reply::<FailedOutput>(200, "The failed tasks."),
        on_get("/jobs/{job}/tasks", "list_tasks", "The tasks of a job, by index. The header `Link` has the next page.", jobs::tasks)
            .query::<jobs::TasksQuery>()
            .reply::<TasksOutput>(200, "A page of tasks."),
        on_get("/jobs/{job}/tasks/{index}", "show_task", "A task with its attempts.", jobs::task)
            .reply::<TaskOutput>(200, "The task."),
        on_get(
            "/jobs/{job}/tasks/{index}/log",
            "read_log",
            "The output of a task. With `Accept: text/event-stream` as events, of which each has the offset after its text as `id`, and JSON with `offset` and `text`; an event `end` comes after the last byte.",
            logs::log,
        )
        .query::<logs::LogQuery>()
        .header(&[RANGE, LAST_EVENT_ID])
        .reply_as(200, "The output.", vec![("text/plain", None), ("text/event-stream", None)])
        .reply_as(206, "The range.", vec![("text/plain", None)])
        .reply_as(416, "There is no output there.", vec![("application/problem+json", None)]),
        on_get(
            "/jobs/{job}/tasks/{index}/log/search",
            "search_log",
            "Finds the next line of a task's output with a text. A request looks for about 2 s at most; then ask again with `next`.",
            search::search,
        )
        .query::<search::SearchQuery>()
        .reply::<SearchOutput>(200, "The line, or how far the search has come."),
        merged_log(on_get(
            "/jobs/{job}/log",
            "read_job_log",
            "The output of the last attempts of a job's tasks, merged line by line. Only of jobs with at most 1000 tasks.",
            merged::of_job,
        )),
    ]
}

/// Adds what all routes of merged output have in common.
fn merged_log(route: Route) -> Route {
    let kinds = vec![("text/plain", None), ("text/event-stream", None)];
    let about = "The output. As text, each line begins with its task or replica. As events: JSON with `attempt`, `label`, `text` (whole lines) and `problem`; an event `end` comes last.";
    route.query::<merged::MergedQuery>().reply_as(200, about, kinds)
}

fn node_routes() -> Vec<Route> {
    let admin = Role::Admin;
    vec![
        on_get("/nodes", "list_nodes", "The nodes, by name.", nodes::list)
            .reply::<NodesOutput>(200, "All nodes."),
        on_delete(
            "/nodes/{node}",
            "forget_node",
            "Removes a lost node from the list.",
            nodes::forget,
        )
        .needs(admin)
        .query::<nodes::ForgetNodeQuery>()
        .reply::<ForgottenNode>(200, "The node was removed."),
        on_post(
            "/nodes/{node}/cordon",
            "cordon_node",
            "Gives a node no new work. What it has stays.",
            nodes::cordon,
        )
        .needs(admin)
        .reply::<ScheduledNode>(200, "What the node may get."),
        on_post(
            "/nodes/{node}/uncordon",
            "uncordon_node",
            "Gives a node new work again.",
            nodes::uncordon,
        )
        .needs(admin)
        .reply::<ScheduledNode>(200, "What the node may get."),
        on_post(
            "/nodes/{node}/drain",
            "drain_node",
            "Gives a node no new work, moves its replicas away, and waits for its tasks, up to a deadline.",
            nodes::drain,
        )
        .needs(admin)
        .optional_body::<DrainInput>()
        .reply::<ScheduledNode>(200, "What the node may get."),
        on_post(
            "/nodes/{node}/labels",
            "label_node",
            "Sets labels of a node over those of its agent, or takes them back.",
            nodes::label,
        )
        .needs(admin)
        .body::<LabelsInput>()
        .reply::<LabelledNode>(200, "All labels of the node."),
        Route::new(
            "put",
            "/nodes/{node}/maintenance",
            "plan_maintenance",
            "Plans a maintenance of a node: it is drained from a time on, and may get new work again afterwards.",
            put(nodes::plan_maintenance),
        )
        .needs(admin)
        .body::<MaintenanceInput>()
        .reply::<NodeMaintenanceOutput>(200, "Whether anything has changed."),
        on_delete(
            "/nodes/{node}/maintenance",
            "remove_maintenance",
            "Takes back the planned maintenance of a node. If it has begun, it ends.",
            nodes::remove_maintenance,
        )
        .needs(admin)
        .reply::<NodeMaintenanceOutput>(200, "Whether anything has changed."),
        on_post(
            "/nodes/{node}/revoke",
            "revoke_node",
            "Disconnects a node and revokes its key.",
            nodes::revoke_key,
        )
        .needs(admin)
        .no_content(204, "The key was revoked."),
    ]
}

fn service_routes(operator: Role) -> Vec<Route> {
    let changed = |route: Route| {
        route.needs(operator).reply::<ServiceChangedOutput>(200, "Whether it has changed anything.")
    };
    let endpoints = schema_of::<EndpointsOrTargets>();
    let put_service = Route::new(
        "put",
        "/services/{service}",
        "apply_service",
        "Creates a service, or changes it to this spec.",
        put(services::apply),
    );
    vec![
        on_get("/services", "list_services", "The services, by name.", services::list)
            .reply::<ServicesOutput>(200, "All services."),
        on_get(
            "/services/{service}",
            "show_service",
            "A service, now or once it has changed.",
            services::show,
        )
        .query::<jobs::WaitQuery>()
        .header(&[IF_NONE_MATCH])
        .reply::<ServiceOutput>(200, "The service.")
        .no_content(304, "It has not changed."),
        merged_log(on_get(
            "/services/{service}/log",
            "read_service_log",
            "The output of the replicas of a service, merged line by line.",
            merged::of_service,
        )),
        changed(put_service.body::<ServiceSpecInput>()),
        changed(on_delete(
            "/services/{service}",
            "remove_service",
            "Stops a service and removes it.",
            services::remove,
        )),
        on_post(
            "/services/{service}/plan",
            "plan_service",
            "Says what applying this spec would do, and changes nothing.",
            services::plan,
        )
        .body::<ServiceSpecInput>()
        .reply::<PlanView>(200, "The plan."),
        changed(
            on_post(
                "/services/{service}/scale",
                "scale_service",
                "Sets the number of replicas.",
                services::scale,
            )
            .body::<ScaleInput>(),
        ),
        changed(on_post(
            "/services/{service}/restart",
            "restart_service",
            "Replaces all replicas, as an update does.",
            services::restart,
        )),
        changed(
            on_post(
                "/services/{service}/rollback",
                "rollback_service",
                "Goes back to an earlier revision.",
                services::rollback,
            )
            .optional_body::<RollbackInput>(),
        ),
        changed(on_post(
            "/services/{service}/stop",
            "stop_service",
            "Stops all replicas, and keeps the service.",
            services::stop,
        )),
        changed(on_post(
            "/services/{service}/start",
            "start_service",
            "Starts a stopped service.",
            services::start,
        )),
        on_get(
            "/services/{service}/history",
            "service_history",
            "The revisions of a service, newest first.",
            services::history,
        )
        .reply::<HistoryOutput>(200, "The revisions."),
        on_get(
            "/services/{service}/endpoints",
            "service_endpoints",
            "Where healthy replicas listen.",
            services::endpoints,
        )
        .query::<services::EndpointsQuery>()
        .reply_as(
            200,
            "The endpoints.",
            vec![("application/json", Some(endpoints)), ("text/plain", None)],
        ),
    ]
}

fn schedule_routes(operator: Role) -> Vec<Route> {
    let changed = |route: Route| {
        route.needs(operator).reply::<ScheduleChangedOutput>(200, "Whether anything has changed.")
    };
    let put_schedule = Route::new(
        "put",
        "/schedules/{schedule}",
        "save_schedule",
        "Adds a schedule, or changes it to this.",
        put(schedules::save),
    );
    vec![
        on_get("/schedules", "list_schedules", "The schedules, by name.", schedules::list)
            .reply::<SchedulesOutput>(200, "All schedules."),
        on_get(
            "/schedules/{schedule}",
            "show_schedule",
            "A schedule, with its next instants.",
            schedules::show,
        )
        .reply::<ScheduleOutput>(200, "The schedule."),
        put_schedule
            .needs(operator)
            .body::<ScheduleInput>()
            .reply::<ScheduleSavedOutput>(200, "What was changed, and the next instants."),
        changed(on_delete(
            "/schedules/{schedule}",
            "remove_schedule",
            "Removes a schedule with its history; its jobs stay.",
            schedules::remove,
        )),
        changed(on_post(
            "/schedules/{schedule}/pause",
            "pause_schedule",
            "Lets a schedule start no runs.",
            schedules::pause,
        )),
        changed(on_post(
            "/schedules/{schedule}/resume",
            "resume_schedule",
            "Ends the pause of a schedule.",
            schedules::resume,
        )),
        on_post("/schedules/{schedule}/run", "run_schedule", "Starts a run now.", schedules::run)
            .needs(operator)
            .header(&[IDEMPOTENCY_KEY])
            .reply::<ScheduleRanOutput>(202, "The job, or that it starts after the last run."),
        on_get(
            "/schedules/{schedule}/history",
            "schedule_history",
            "What became of the last instants of a schedule, newest first.",
            schedules::history,
        )
        .query::<schedules::RunsQuery>()
        .reply::<ScheduleHistoryOutput>(200, "The rows."),
    ]
}

fn queue_routes() -> Vec<Route> {
    let changed = |route: Route| {
        route.needs(Role::Admin).reply::<QueueChangedOutput>(200, "Whether anything has changed.")
    };
    let put_queue = Route::new(
        "put",
        "/queues/{queue}",
        "set_queue",
        "Adds a queue, or changes its settings; what is not given stays as it is.",
        put(queues::set),
    );
    vec![
        on_get("/queues", "list_queues", "The queues, by name.", queues::list)
            .reply::<QueuesOutput>(200, "All queues."),
        on_get(
            "/queues/{queue}",
            "show_queue",
            "A queue, and what each caller has in it.",
            queues::show,
        )
        .reply::<QueueOutput>(200, "The queue."),
        put_queue
            .needs(Role::Admin)
            .body::<QueueInput>()
            .reply::<QueueSavedOutput>(200, "What was changed."),
        changed(on_delete(
            "/queues/{queue}",
            "remove_queue",
            "Removes a queue without jobs that have not ended.",
            queues::remove,
        )),
        changed(on_post(
            "/queues/{queue}/pause",
            "pause_queue",
            "Lets no more tasks of a queue start.",
            queues::pause,
        )),
        changed(on_post(
            "/queues/{queue}/resume",
            "resume_queue",
            "Ends the pause of a queue.",
            queues::resume,
        )),
    ]
}

fn workflow_routes(operator: Role) -> Vec<Route> {
    vec![
        on_get("/workflows", "list_workflows", "The workflows, newest first.", workflows::list)
            .query::<workflows::WorkflowsQuery>()
            .reply::<WorkflowsOutput>(200, "The rows."),
        on_post(
            "/workflows",
            "submit_workflow",
            "Submits jobs that wait for each other: all of them, or none.",
            workflows::submit,
        )
        .needs(operator)
        .header(&[IDEMPOTENCY_KEY])
        .body::<WorkflowInput>()
        .reply::<WorkflowSubmitOutput>(201, "The workflow, whose jobs are on disk."),
        on_get(
            "/workflows/{workflow}",
            "show_workflow",
            "A workflow, by its number or that of one of its jobs, with its jobs and what they wait for.",
            workflows::show,
        )
        .query::<workflows::WorkflowQuery>()
        .reply::<WorkflowOutput>(200, "The workflow."),
        on_post(
            "/workflows/{workflow}/cancel",
            "cancel_workflow",
            "Cancels the jobs of a workflow that have not ended.",
            workflows::cancel,
        )
        .needs(operator)
        .reply::<WorkflowCancelOutput>(200, "How many jobs were cancelled."),
    ]
}

fn volume_routes(operator: Role) -> Vec<Route> {
    vec![
        on_get("/volumes", "list_volumes", "The named volumes, by name.", volumes::list)
            .reply::<VolumesOutput>(200, "All volumes."),
        on_delete(
            "/volumes/{volume}",
            "remove_volume",
            "Removes a volume with its data, which nothing may use.",
            volumes::remove,
        )
        .needs(operator)
        .query::<volumes::RemoveVolumeQuery>()
        .reply::<RemovedVolume>(202, "Its node removes it, now or when it is back."),
    ]
}

/// Endpoints as JSON.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum EndpointsOrTargets {
    /// The format `json`.
    Endpoints(EndpointsOutput),
    /// The format `prometheus-sd`.
    Targets(Vec<podmesh_views::endpoints::PrometheusGroup>),
}

fn access_routes(admin: Role) -> Vec<Route> {
    vec![
        on_get("/tokens", "list_tokens", "The tokens, without their secrets.", access::tokens)
            .needs(admin)
            .reply::<TokensOutput>(200, "All tokens."),
        on_post(
            "/tokens",
            "create_token",
            "Creates a token. It is shown only once.",
            access::create_token,
        )
        .needs(admin)
        .body::<TokenInput>()
        .reply::<TokenOutput>(201, "The token."),
        on_delete("/tokens/{id}", "revoke_token", "Revokes a token.", access::revoke_token)
            .needs(admin)
            .no_content(204, "The token was revoked."),
        on_get("/users", "list_users", "The users who joined, by name.", access::users)
            .needs(admin)
            .reply::<UsersOutput>(200, "All users."),
        on_delete(
            "/users/{user}",
            "revoke_user",
            "Disconnects a user and revokes their key.",
            access::revoke_user,
        )
        .needs(admin)
        .no_content(204, "The key was revoked."),
        on_post(
            "/key/rotate",
            "rotate_key",
            "Replaces the manager's key by its next one.",
            access::rotate_key,
        )
        .needs(admin)
        .body::<KeyRotateInput>()
        .reply::<KeyView>(200, "The manager's keys."),
    ]
}
