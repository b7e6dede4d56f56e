//! The schemas of `--output json`, compared with the files in `tools/schema`.

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use schemars::{Schema, schema_for};

    use crate::output::access::{TokenOutput, TokensOutput, UsersOutput};
    use crate::output::again::{FailedOutput, RequeueOutput};
    use crate::output::events::EventOutput;
    use crate::output::json::{
        CancelOutput, ForgetOutput, JobOutput, JobsOutput, SubmitOutput, TasksOutput,
    };
    use crate::output::node::{
        LabelledNode, NodeMaintenanceOutput, NodeSchedulingOutput, NodesOutput,
    };
    use crate::output::queue::{QueueOutput, QueueSavedOutput, QueuesOutput};
    use crate::output::schedule::{
        ScheduleHistoryOutput, ScheduleOutput, ScheduleRanOutput, ScheduleSavedOutput,
        SchedulesOutput,
    };
    use crate::output::service::{
        EndpointsOutput, HistoryOutput, ServiceChangedOutput, ServiceOutput, ServicePlanOutput,
        ServicesOutput, ServicesRemovedOutput,
    };
    use crate::output::volume::VolumesOutput;
    use crate::output::why::JobWhyOutput;
    use crate::output::workflow::{
        WorkflowCancelOutput, WorkflowOutput, WorkflowSubmitOutput, WorkflowsOutput,
    };
    use crate::verbs::compose::ps::ComposePsOutput;
    use crate::verbs::doctor::DoctorOutput;

    fn schemas() -> [(&'static str, Schema); 39] {
        [
            ("cancel", schema_for!(CancelOutput)),
            ("compose_ps", schema_for!(ComposePsOutput)),
            ("doctor", schema_for!(DoctorOutput)),
            ("event", schema_for!(EventOutput)),
            ("failed", schema_for!(FailedOutput)),
            ("forget", schema_for!(ForgetOutput)),
            ("job", schema_for!(JobOutput)),
            ("job_why", schema_for!(JobWhyOutput)),
            ("jobs", schema_for!(JobsOutput)),
            ("node_labels", schema_for!(LabelledNode)),
            ("node_maintenance", schema_for!(NodeMaintenanceOutput)),
            ("node_scheduling", schema_for!(NodeSchedulingOutput)),
            ("nodes", schema_for!(NodesOutput)),
            ("queue", schema_for!(QueueOutput)),
            ("queue_saved", schema_for!(QueueSavedOutput)),
            ("queues", schema_for!(QueuesOutput)),
            ("requeue", schema_for!(RequeueOutput)),
            ("schedule", schema_for!(ScheduleOutput)),
            ("schedule_history", schema_for!(ScheduleHistoryOutput)),
            ("schedule_ran", schema_for!(ScheduleRanOutput)),
            ("schedule_saved", schema_for!(ScheduleSavedOutput)),
            ("schedules", schema_for!(SchedulesOutput)),
            ("service", schema_for!(ServiceOutput)),
            ("service_changed", schema_for!(ServiceChangedOutput)),
            ("service_endpoints", schema_for!(EndpointsOutput)),
            ("service_history", schema_for!(HistoryOutput)),
            ("service_plan", schema_for!(ServicePlanOutput)),
            ("services", schema_for!(ServicesOutput)),
            ("services_removed", schema_for!(ServicesRemovedOutput)),
            ("submit", schema_for!(SubmitOutput)),
            ("tasks", schema_for!(TasksOutput)),
            ("token", schema_for!(TokenOutput)),
            ("tokens", schema_for!(TokensOutput)),
            ("users", schema_for!(UsersOutput)),
            ("volumes", schema_for!(VolumesOutput)),
            ("workflow", schema_for!(WorkflowOutput)),
            ("workflow_cancel", schema_for!(WorkflowCancelOutput)),
            ("workflow_submit", schema_for!(WorkflowSubmitOutput)),
            ("workflows", schema_for!(WorkflowsOutput)),
        ]
    }

    /// Fails if the output has changed and the files have not. Check the difference: a field that
    /// is removed or changes its meaning breaks the promise in tools/schema/README.md.
    #[test]
    fn schema_files_match_the_code() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        for (name, schema) in schemas() {
            let path = folder.join(format!("{name}.json"));
            let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
            if std::env::var_os("PODMESH_UPDATE_SCHEMA").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                checked_in == text,
                "{} differs from the code; if that is intended, run PODMESH_UPDATE_SCHEMA=1 cargo test -p podmesh-tools schema",
                path.display()
            );
        }
    }

    #[test]
    fn every_schema_file_belongs_to_an_output() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect();
        found.sort();
        assert_eq!(found, schemas().map(|(name, _)| name.to_owned()));
    }
}
