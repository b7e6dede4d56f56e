//! Finds and reads the files of a project, and makes one tree of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podmesh_protocol::ids::Name;

use super::dotenv;
use super::interpolate::Variables;
use super::merge::{canonical, canonical_service, merge, merge_service};
use super::node::{Key, Node, Source, Value};
use super::parse::parse;
use super::read::Item;
use crate::bounded::{JOB_FILE, read_bounded};
use crate::env_vars::Lookup;
use crate::error::{CliError, CliResult};

/// The names of a compose file, in the order in which they are looked for.
const NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// The names of the file that overrides it.
const OVERRIDES: [&str; 4] = [
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];
/// The maximum number of files that include or extend each other.
const DEPTH_MAX: usize = 16;

/// What the command line says about a project.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The files; empty for those with the usual names.
    pub(crate) files: Vec<PathBuf>,
    /// The name of the project.
    pub(crate) project: Option<String>,
    /// The files with variables; empty for `.env`.
    pub(crate) env_files: Vec<PathBuf>,
    /// The profiles that are active, in addition to those in `COMPOSE_PROFILES`.
    pub(crate) profiles: Vec<String>,
}

/// The merged files of a project.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: Name,
    pub(super) root: Node,
    pub(super) profiles: Vec<String>,
    /// The variables of `.env`.
    pub(super) variables: BTreeMap<String, String>,
    /// Variables without a value and without a default.
    pub(super) unset: Vec<String>,
}

/// Reads the files. Without files in the options, they are looked for in `here` and the folders
/// above it.
///
/// # Errors
/// Whatever is wrong with a file, with the line.
pub(super) fn load(options: &Options, here: &Path, lookup: Lookup<'_>) -> CliResult<Model> {
    let (folder, found) = match options.files.first() {
        Some(first) if first == Path::new("-") => (here.to_owned(), Vec::new()),
        Some(first) => (parent(&here.join(first)), Vec::new()),
        None => find(here),
    };
    let mut dotenv = BTreeMap::new();
    for file in &options.env_files {
        dotenv::add_file(&mut dotenv, &here.join(file), lookup)?;
    }
    let usual = folder.join(".env");
    if options.env_files.is_empty() && usual.is_file() {
        dotenv::add_file(&mut dotenv, &usual, lookup)?;
    }
    let variables = Variables::new(lookup, dotenv.clone());
    let variable = |name: &str| variables.get(name).map_err(|why| CliError::usage(why.to_string()));
    let files = match variable("COMPOSE_FILE")? {
        _ if !options.files.is_empty() => options.files.clone(),
        Some(files) if !files.is_empty() => files.split(':').map(PathBuf::from).collect(),
        _ if found.is_empty() => {
            let error = CliError::usage("there is no compose file here or in a folder above");
            return Err(error.hint(format!("write one, such as {}, or name it with -f", NAMES[0])));
        }
        _ => found,
    };

    let mut trees = Vec::new();
    for file in &files {
        let shown = file.strip_prefix(here).unwrap_or(file);
        trees.push(read(&at(here, file), shown, folder.clone())?);
    }
    let named = trees.iter().rev().find_map(|tree| tree.get("name")).and_then(Node::text);
    let name = match (&options.project, variable("COMPOSE_PROJECT_NAME")?, named) {
        (Some(name), ..) => given_name(name)?,
        (None, Some(name), _) if !name.is_empty() => given_name(&name)?,
        (None, _, Some(text)) => {
            let text =
                variables.replace(text).map_err(|why| CliError::usage(format!("name: {why}")))?;
            given_name(&text)?
        }
        (None, _, None) => folder_name(&folder)?,
    };
    dotenv.entry("COMPOSE_PROJECT_NAME".into()).or_insert_with(|| name.to_string());
    let profiles = variable("COMPOSE_PROFILES")?.unwrap_or_default();
    let profiles = profiles.split(',').map(str::trim).filter(|name| !name.is_empty());
    let profiles = options.profiles.iter().cloned().chain(profiles.map(str::to_owned)).collect();

    let loader = Loader { variables: Variables::new(lookup, dotenv.clone()) };
    let mut root: Option<Node> = None;
    for (tree, file) in trees.into_iter().zip(&files) {
        let tree = loader.complete(tree, &[at(here, file)])?;
        root = Some(match root {
            Some(base) => merge(base, tree)?,
            None => tree,
        });
    }
    let unset = loader.variables.unset();
    // `files` is never empty: each way to it checks that.
    let root = root.ok_or_else(|| CliError::usage("there is no compose file"))?;
    Ok(Model { name, root: canonical(root), profiles, variables: dotenv, unset })
}

/// Returns the path of a file that is read; `-` is standard input.
fn at(here: &Path, file: &Path) -> PathBuf {
    if file == Path::new("-") { file.to_owned() } else { here.join(file) }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// Returns the first folder from `here` upwards with a compose file, and the files there.
fn find(here: &Path) -> (PathBuf, Vec<PathBuf>) {
    let file = |folder: &Path, names: &[&str]| {
        names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
    };
    for folder in here.ancestors() {
        if let Some(path) = file(folder, &NAMES) {
            let files = [path].into_iter().chain(file(folder, &OVERRIDES)).collect();
            return (folder.to_owned(), files);
        }
    }
    (here.to_owned(), Vec::new())
}

fn read(path: &Path, shown: &Path, folder: PathBuf) -> CliResult<Node> {
    let text = read_bounded(path, "compose file", JOB_FILE)?;
    let name = match path == Path::new("-") {
        true => "standard input".into(),
        false => shown.display().to_string(),
    };
    parse(&text, &Arc::new(Source { name, folder }))
}

/// Returns the name of a project, as the user wrote it.
pub(super) fn given_name(text: &str) -> CliResult<Name> {
    let fits = |at: usize, c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || (at > 0 && matches!(c, '-' | '_'))
    };
    let wrong = |why: String| {
        let shown = crate::output::text::clip(&crate::output::text::escape(text), 80);
        CliError::usage(format!("`{shown}` is not the name of a project")).because(why)
    };
    if text.is_empty() || !text.char_indices().all(|(at, c)| fits(at, c)) {
        return Err(wrong(
            "it has lower-case letters, digits, `-` and `_`, and begins with a letter or digit"
                .into(),
        ));
    }
    text.parse().map_err(|why| wrong(format!("{why}")))
}

/// Makes the name of a project from that of its folder.
fn folder_name(folder: &Path) -> CliResult<Name> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let text = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let text: String =
        text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    let text = text.trim_start_matches(['-', '_']);
    given_name(text).map_err(|_| {
        CliError::usage("the name of the folder is no name for a project")
            .hint("give the project a name: -p NAME, or `name: NAME` in the file")
    })
}

struct Loader<'a> {
    variables: Variables<'a>,
}

impl Loader<'_> {
    /// Replaces the variables of a file, and adds what it includes and extends. `stack`: the files
    /// that led to it, itself the last one.
    fn complete(&self, mut tree: Node, stack: &[PathBuf]) -> CliResult<Node> {
        if stack.len() > DEPTH_MAX {
            let why = format!("more than {DEPTH_MAX} files include or extend each other");
            return Err(tree.place.wrong("", why));
        }
        match &tree.value {
            Value::Map(_) | Value::Null => {}
            _ => {
                let why = format!("a compose file is a map, and this is {}", tree.describe());
                return Err(tree.place.wrong("", why));
            }
        }
        self.variables.apply(&mut tree)?;
        self.extend(&mut tree, stack)?;
        self.include(&mut tree, stack)?;
        Ok(tree)
    }

    fn include(&self, tree: &mut Node, stack: &[PathBuf]) -> CliResult<()> {
        let Value::Map(entries) = &mut tree.value else { return Ok(()) };
        let Some(index) = entries.iter().position(|(key, _)| key.text == "include") else {
            return Ok(());
        };
        let (_, list) = entries.remove(index);
        for item in Item::new(&list, "include").list()? {
            let base = &item.node.place.source.folder;
            let (paths, folder) = if item.node.text().is_some() {
                (vec![item.text()?], None)
            } else {
                let mut keys = item.keys()?;
                let Some(path) = keys.take("path") else {
                    return Err(item.wrong("`path` is missing"));
                };
                let paths: CliResult<Vec<&str>> =
                    path.one_or_many()?.iter().map(Item::text).collect();
                let folder = keys.take("project_directory");
                let folder =
                    folder.map(|folder| CliResult::Ok(base.join(folder.text()?))).transpose()?;
                keys.finish()?;
                (paths?, folder)
            };
            let mut included: Option<Node> = None;
            for path in paths {
                let full = base.join(path);
                if stack.contains(&full) {
                    return Err(item.wrong(format!("`{path}` includes itself")));
                }
                let folder = folder.clone().unwrap_or_else(|| parent(&full));
                let next = read(&full, &full, folder)?;
                let next = self.complete(next, &[stack, &[full]].concat())?;
                included = Some(match included {
                    Some(before) => merge(before, next)?,
                    None => next,
                });
            }
            if let Some(included) = included {
                add(tree, canonical(included))?;
            }
        }
        Ok(())
    }

    /// Resolves `extends` of all services of a file.
    fn extend(&self, tree: &mut Node, stack: &[PathBuf]) -> CliResult<()> {
        let names: Vec<String> = match tree.get("services") {
            Some(services) => services.entries().iter().map(|(key, _)| key.text.clone()).collect(),
            None => return Ok(()),
        };
        for name in names {
            let service = self.extended(tree, &name, stack, &mut Vec::new())?;
            let services = match &mut tree.value {
                Value::Map(entries) => entries.iter_mut().find(|(key, _)| key.text == "services"),
                _ => None,
            };
            if let Some((_, Node { value: Value::Map(services), .. })) = services
                && let Some((_, node)) = services.iter_mut().find(|(key, _)| key.text == name)
            {
                *node = service;
            }
        }
        Ok(())
    }

    /// Returns a service of a file with what it extends. `seen`: the services that led to it.
    fn extended(
        &self,
        tree: &Node,
        name: &str,
        stack: &[PathBuf],
        seen: &mut Vec<(Option<PathBuf>, String)>,
    ) -> CliResult<Node> {
        let service = tree.get("services").and_then(|services| services.get(name));
        let Some(service) = service else {
            return Err(tree.place.wrong("", format!("there is no service `{name}`")));
        };
        let mut service = service.clone();
        canonical_service(&mut service);
        let Value::Map(keys) = &mut service.value else { return Ok(service) };
        let Some(index) = keys.iter().position(|(key, _)| key.text == "extends") else {
            return Ok(service);
        };
        let (_, extends) = keys.remove(index);
        let item = Item::new(&extends, format!("services.{name}.extends"));
        let this = (stack.last().cloned(), name.to_owned());
        if seen.contains(&this) || seen.len() > DEPTH_MAX {
            return Err(item.wrong("the service extends itself"));
        }
        seen.push(this);
        let (other, file) = if item.node.text().is_some() {
            (item.text()?, None)
        } else {
            let mut keys = item.keys()?;
            let Some(other) = keys.take("service") else {
                return Err(item.wrong("`service` is missing"));
            };
            let file = keys.take("file");
            keys.finish()?;
            (other.text()?, file)
        };
        let mut base = match file {
            None => self.extended(tree, other, stack, seen)?,
            Some(file) => {
                let full = item.node.place.source.folder.join(file.text()?);
                let mut tree = read(&full, &full, parent(&full))?;
                self.variables.apply(&mut tree)?;
                self.extended(&tree, other, &[stack, &[full]].concat(), seen)?
            }
        };
        canonical_service(&mut base);
        merge_service(base, service)
    }
}

/// Adds what a file includes. What both have must be the same.
fn add(tree: &mut Node, included: Node) -> CliResult<()> {
    let Value::Map(more) = included.value else { return Ok(()) };
    let Value::Map(entries) = &mut tree.value else { return Ok(()) };
    for (key, node) in more {
        if matches!(key.text.as_str(), "name" | "version") || key.text.starts_with("x-") {
            continue;
        }
        let place = node.place.clone();
        let index = entries.iter().position(|(known, _)| *known == key);
        let index = index.unwrap_or_else(|| {
            entries.push((key.clone(), Node::new(place.clone(), Value::Null)));
            entries.len() - 1
        });
        let into = &mut entries[index].1;
        let (Value::Null | Value::Map(_), Value::Map(more)) = (&into.value, node.value) else {
            return Err(place.wrong(&key.text, "this is not a map"));
        };
        let mut all: Vec<(Key, Node)> = into.entries().to_vec();
        for (name, node) in more {
            match all.iter().find(|(known, _)| *known == name) {
                Some((_, known)) if *known == node => {}
                Some((known, _)) => {
                    let path = format!("{}.{}", key.text, name.text);
                    let why =
                        format!("an included file has it too, and {} it is different", known.place);
                    return Err(name.place.wrong(&path, why));
                }
                None => all.push((name, node)),
            }
        }
        into.value = Value::Map(all);
    }
    Ok(())
}
