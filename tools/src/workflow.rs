//! Reads a workflow file.

use std::path::Path;

use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::limits::WORKFLOW_BYTES_MAX;
use podmesh_protocol::workflow::{Condition, Dependency, WorkflowError, WorkflowJob, WorkflowSpec};
use serde::Deserialize;

use crate::bounded::read_bounded;
use crate::cli::workflow::{AfterArgs, SubmitWorkflowArgs};
use crate::container::OneOrMany;
use crate::env_vars::Lookup;
use crate::error::{CliError, CliResult};
use crate::job::{self, JobFile};
use crate::output::text::{clip, escape};
use crate::toml_file;
use crate::values::made_name;

/// A job that another one waits for, as files name it: in a job file by its number, in a workflow file
/// by its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Upstream {
    Job(u64),
    Name(Name),
}

/// The keys of a file for what a job waits for.
pub(crate) const AFTER_KEYS: [(&str, Condition); 4] = [
    ("after", Condition::Succeeded),
    ("after_failed", Condition::Failed),
    ("after_any", Condition::Ended),
    ("after_each", Condition::Each),
];

/// What the keys of a file say, in the order of [`AFTER_KEYS`].
pub(crate) type AfterKeys = [Option<OneOrMany<Upstream>>; 4];

fn named(keys: AfterKeys) -> impl Iterator<Item = (&'static str, Upstream, Condition)> {
    let keys = AFTER_KEYS.into_iter().zip(keys);
    keys.flat_map(|((key, when), upstream)| {
        let upstream = upstream.map(OneOrMany::into_vec).unwrap_or_default();
        upstream.into_iter().map(move |upstream| (key, upstream, when))
    })
}

/// Returns what a single job waits for. Flags replace what the file has.
pub(crate) fn after(flags: AfterArgs, file: AfterKeys) -> CliResult<Vec<Dependency>> {
    let AfterArgs { after, after_failed, after_any, after_each } = flags;
    let flags = [after, after_failed, after_any, after_each];
    if flags.iter().any(|jobs| !jobs.is_empty()) {
        let flags = AFTER_KEYS.into_iter().zip(flags);
        let all = flags.flat_map(|((_, when), jobs)| {
            jobs.into_iter().map(move |job| Dependency { job, when })
        });
        return Ok(all.collect());
    }
    let one = |(key, upstream, when)| match upstream {
        Upstream::Job(job) if job > 0 => Ok(Dependency { job: JobId(job), when }),
        Upstream::Job(job) => Err(CliError::usage(format!("`{key}`: {job} is not a job's number"))),
        Upstream::Name(name) => Err(CliError::usage(format!(
            "`{key}` names the job `{name}`, but in a job file it has numbers of jobs"
        ))
        .hint("`podmesh workflow submit` submits several jobs that name each other")),
    };
    named(file).map(one).collect()
}

/// A workflow file in TOML.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkflowFile {
    name: Option<Name>,
    job: Vec<JobFile>,
}

/// Reads a workflow file, and checks what it says.
///
/// # Errors
/// Whatever the manager would refuse, with the line, and what cannot be read.
pub(crate) fn read(args: SubmitWorkflowArgs, lookup: Lookup<'_>) -> CliResult<WorkflowSpec> {
    let path = args.file;
    let limit = (WORKFLOW_BYTES_MAX as u64, "WORKFLOW_BYTES_MAX");
    let text = read_bounded(&path, "workflow file", limit)?;
    let shown = if path == Path::new("-") {
        "the workflow file".into()
    } else {
        path.display().to_string()
    };
    parse(&text, &shown, &path, args.name, lookup)
}

fn parse(
    text: &str,
    shown: &str,
    path: &Path,
    name: Option<Name>,
    lookup: Lookup<'_>,
) -> CliResult<WorkflowSpec> {
    let keys = toml_file::keys_of::<JobFile>();
    let file: WorkflowFile = toml_file::parse(text, shown, &[("job", keys)])?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let Some(name) = name.or(file.name).or_else(|| made_name(stem.trim_matches('-'))) else {
        return Err(CliError::usage("the workflow has no name")
            .hint("give --name, or write `name` at the top of the file"));
    };
    let mut jobs = Vec::with_capacity(file.job.len());
    for (at, job) in file.job.into_iter().enumerate() {
        let number = at.to_string();
        let wrong = |key: &str, why: String| {
            let place = toml_file::place_of(text, ["job", &number, key]);
            CliError::usage(format!("{shown}{place}")).because(why)
        };
        let (spec, after) = job::of_workflow(job, path, lookup).map_err(|error| {
            let wrong = wrong("", error.to_string());
            match error.hint_text() {
                Some(hint) => wrong.hint(hint),
                None => wrong,
            }
        })?;
        let one = |(key, upstream, when)| match upstream {
            Upstream::Name(job) => Ok(Dependency { job, when }),
            Upstream::Job(job) => {
                let why = format!(
                    "`{key}` has the number {job}: jobs of a workflow wait for each other, by name"
                );
                Err(wrong(key, why))
            }
        };
        let after = named(after).map(one).collect::<CliResult<Vec<_>>>()?;
        jobs.push(WorkflowJob { spec, after });
    }
    let spec = WorkflowSpec { name, jobs };
    match spec.check() {
        Ok(_) => Ok(spec),
        Err(error) => {
            let place = place(text, &spec, &error);
            let why = clip(&escape(&error.to_string()), 600);
            Err(CliError::usage(format!("{shown}{place}")).because(why))
        }
    }
}

/// Returns the place of a mistake: that of the key which names the upstream job, or of the job.
fn place(text: &str, spec: &WorkflowSpec, error: &WorkflowError) -> String {
    let Some((at, _)) = &error.job else { return String::new() };
    let of = spec.jobs[*at].after.iter().rev();
    let mut of = of.filter(|own| Some(&own.job) == error.upstream.as_ref());
    let when = of.next().map(|own| own.when);
    let key = AFTER_KEYS.iter().find(|(_, condition)| Some(*condition) == when);
    toml_file::place_of(text, ["job", &at.to_string(), key.map_or("name", |(key, _)| key)])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<WorkflowSpec, String> {
        parse(text, "f.toml", Path::new("f.toml"), None, &|_| None).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            format!("{error} / {}", error.hint_text().unwrap_or_default())
        })
    }

    const TWO: &str = "[[job]]\nname = \"a\"\ncommand = [\"true\"]\n\n[[job]]\nname = \"b\"\ncommand = [\"true\"]\n";

    #[test]
    fn jobs_wait_for_each_other_by_name() {
        let spec = read(&format!("{TWO}after = \"a\"\n[[job]]\nname = \"c\"\narray = 3\ncommand = [\"x\"]\nafter_any = [\"b\"]\nafter_failed = \"a\"\n")).unwrap();
        assert_eq!(spec.name.as_str(), "f");
        let of = |at: usize| {
            let after = spec.jobs[at].after.iter();
            after.map(|own| (own.job.as_str(), own.when)).collect::<Vec<_>>()
        };
        assert_eq!(of(0), []);
        assert_eq!(of(1), [("a", Condition::Succeeded)]);
        assert_eq!(of(2), [("a", Condition::Failed), ("b", Condition::Ended)]);
        assert_eq!(spec.jobs[2].spec.array.last, 3);
    }

    #[test]
    fn a_mistake_has_its_line() {
        let third = "[[job]]\nname = \"c\"\ncommand = [\"true\"]\n";
        for (text, says) in [
            (String::new(), "f.toml: the workflow has no jobs"),
            (
                format!("{TWO}after = \"x\""),
                "line 8 (after = \"x\"): job `b`: waits for `x`, and no job has that name",
            ),
            (format!("{TWO}after = \"b\""), "line 8 (after = \"b\"): job `b`: waits for itself"),
            (
                format!("{TWO}after = [\"a\"]\nafter_any = [\"a\"]"),
                "line 9 (after_any = [\"a\"]): job `b`: waits for `a` twice",
            ),
            (
                format!("{TWO}array = 4\nafter_each = [\"a\"]"),
                "line 9 (after_each = [\"a\"]): job `b`: waits for each task of `a`",
            ),
            (
                format!("{TWO}after = [\"c\"]\n{third}after = \"b\""),
                "line 8 (after = [\"c\"]): job `b`: waits in a circle: for `c`, which waits for itself",
            ),
            (format!("{TWO}after = 7"), "line 8 (after = 7)"),
            (format!("{TWO}comand = []"), "line 8 (comand = [])"),
            (format!("{TWO}comand = []"), "did you mean `command`"),
            (TWO.replace("\"b\"", "\"a\""), "line 6 (name = \"a\"): job `a`: another job"),
            (TWO.replace("\"b\"", "\"a/b\""), "line 6"),
            (
                format!("{TWO}{}", "[[job]]\nname = \"c\""),
                "line 8 ([[job]]): there is no command to run",
            ),
            (format!("{TWO}priority = 5000"), "line 5 ([[job]]): the job is not valid: priority"),
            ("jobs = 1".into(), "did you mean `job`"),
        ] {
            let said = read(&text).unwrap_err();
            assert!(said.contains(says), "{text}\n{said}");
        }
    }

    #[test]
    fn a_long_circle_is_told_in_short() {
        let job = |at: u32| {
            format!(
                "[[job]]\nname = \"j{at}\"\ncommand = [\"x\"]\nafter = \"j{}\"\n",
                (at + 1) % 10_000
            )
        };
        let text: String = (0..10_000).map(job).collect();
        let said = read(&text).unwrap_err();
        assert!(said.contains("line 4 (after = \"j1\")") && said.contains("9993 others"), "{said}");
        assert!(said.len() < 1_000, "{said}");
    }
}
