//! The schemas of what `--output json` prints, as they are checked in at `tools/schema`.

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use schemars::{Schema, schema_for};

    use crate::output::access::{TokenOutput, TokensOutput, UsersOutput};
    use crate::output::events::EventOutput;
    use crate::output::json::{
        CancelOutput, JobOutput, JobsOutput, NodesOutput, SubmitOutput, TasksOutput,
    };
    use crate::verbs::doctor::DoctorOutput;

    fn schemas() -> [(&'static str, Schema); 11] {
        [
            ("cancel", schema_for!(CancelOutput)),
            ("doctor", schema_for!(DoctorOutput)),
            ("event", schema_for!(EventOutput)),
            ("job", schema_for!(JobOutput)),
            ("jobs", schema_for!(JobsOutput)),
            ("nodes", schema_for!(NodesOutput)),
            ("submit", schema_for!(SubmitOutput)),
            ("tasks", schema_for!(TasksOutput)),
            ("token", schema_for!(TokenOutput)),
            ("tokens", schema_for!(TokensOutput)),
            ("users", schema_for!(UsersOutput)),
        ]
    }

    /// Fails when the output has changed and the files have not. Look at the difference: a field
    /// that is gone or means something else breaks the promise of tools/schema/README.md.
    #[test]
    fn schema_files_are_those_of_the_code() {
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
                "{} differs from the code; if that is meant, run PODMESH_UPDATE_SCHEMA=1 cargo test -p podmesh-tools schema",
                path.display()
            );
        }
    }

    #[test]
    fn there_is_no_schema_too_many() {
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
