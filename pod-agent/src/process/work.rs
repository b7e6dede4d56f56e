//! The files of an attempt while it is held: its work folder, and a record of its progress for the
//! next supervisor in case this one is killed.
//!
//! Both belong to numbered places: `<data>/work/3/folder` is the work folder of place 3, and the
//! fourth part of `<data>/work/records` is its record, see `records.rs`. Later attempts reuse
//! places: creating, renaming and deleting files thousands of times a second costs more than
//! starting the processes.
//!
//! Each place has its own group id, which the commands of other places do not have. Only that group
//! can pass through `work/3`. So commands cannot access each other's work folders, although they
//! run as the same user. The kernel also shows a process's memory, environment and open files only
//! to processes with the same user and the same group.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::limits::ATTEMPTS_PER_NODE_MAX;
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::OnLost;
use uuid::Uuid;

use super::records::{Record, Records, StartedProcess};
use crate::user::ProcessUser;

/// The folder in the agent's data directory.
const DIR: &str = "work";
/// Maximum number of empty work folders that are kept.
const SPARES_MAX: usize = 64;
/// The name of the work folder in its place.
const FOLDER: &str = "folder";
/// Mode of a work folder: only the user of the command has access.
const FOLDER_MODE: u32 = 0o700;
/// Mode of a place: its group can pass through it.
const PLACE_MODE: u32 = 0o710;
/// Mode of a place if places have no groups.
const PLACE_MODE_OPEN: u32 = 0o711;
/// Mode bits with which other users can pass through a folder.
const PASSAGE_BITS: u32 = 0o011;
/// The first of the group ids of all places. Linux distributions do not use these numbers (see
/// "Users, Groups, UIDs and GIDs on systemd Systems").
const FIRST_GROUP: u32 = 2_000_000_000;
/// How many groups each agent of a machine has.
const GROUPS: u32 = ATTEMPTS_PER_NODE_MAX as u32;
/// How many agents of a machine get separate groups.
const RANGES: u128 = 14_000;
/// The folder for work folders if other users cannot reach the agent's data directory.
const ELSEWHERE: &str = "/var/lib/podmesh-work";

/// Returns whether there are records of attempts that nobody has removed.
pub(crate) fn has_records(data_dir: &Path) -> bool {
    Records::read(&data_dir.join(DIR)).is_ok_and(|records| !records.is_empty())
}

/// The folder with all places.
#[derive(Debug)]
pub(super) struct WorkDir {
    /// The folder in the data directory.
    path: PathBuf,
    /// The parent of the places.
    folders: PathBuf,
    /// The group of place 0. The group of place 1 is the next number, and so on. `None` if places
    /// have no groups.
    first_group: Option<u32>,
    records: Records,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    held: HashMap<AttemptId, Arc<Place>>,
    /// Places with an empty folder and no attempt, with the user id of the folder.
    spares: Vec<(u32, u32)>,
    /// Places without a folder or an attempt.
    unused: Vec<u32>,
    /// The number of places.
    count: u32,
}

/// The place of an attempt.
#[derive(Debug)]
struct Place {
    number: u32,
    /// `None` once the attempt is removed.
    record: Mutex<Option<Record>>,
}

/// The work folder of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WorkFolder {
    pub(super) path: PathBuf,
    /// The group that its processes need.
    pub(super) group: Option<u32>,
}

impl WorkDir {
    /// Creates the folder, or opens the one of an earlier supervisor. The users of commands can
    /// pass through it to their work folders, but cannot list it.
    pub(super) fn open(data_dir: &Path, agent: Uuid) -> io::Result<Self> {
        let path = data_dir.join(DIR);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let mut folders = path.clone();
        let mut first_group = None;
        if nix::unistd::geteuid().is_root() {
            for dir in [data_dir, &path] {
                open_passage(dir)?;
            }
            if !is_open_to_all(data_dir)? {
                folders = Path::new(ELSEWHERE).join(agent.to_string());
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&folders)?;
                for dir in [Path::new(ELSEWHERE), &folders] {
                    open_passage(dir)?;
                }
            }
            let first = first_group_of(agent);
            first_group =
                are_groups(first, &fs::read_to_string("/proc/self/gid_map")?).then_some(first);
            if first_group.is_none() {
                tracing::warn!(
                    "this container has no group ids from {first} on, so commands of the same user \
                     can access each other's work folders"
                );
            }
        }
        let written = Records::read(&path)?;
        let count = written.last_key_value().map_or(0, |(number, _)| number + 1);
        let records = Records::open(&path, count)?;
        let unused = (0..count).filter(|number| !written.contains_key(number)).collect();
        let held = written.into_iter().map(|(number, record)| {
            (record.attempt, Arc::new(Place { number, record: Mutex::new(Some(record)) }))
        });
        let places = Places { held: held.collect(), spares: Vec::new(), unused, count };
        let this = Self { path, folders, first_group, records, places: Mutex::new(places) };
        this.remove_spares()?;
        Ok(this)
    }

    /// Removes the folders without an attempt, including those of an earlier supervisor.
    fn remove_spares(&self) -> io::Result<()> {
        let mut places = self.places.lock();
        let spares = std::mem::take(&mut places.spares);
        places.unused.extend(spares.into_iter().map(|(number, _)| number));
        let held: Vec<u32> = places.held.values().map(|place| place.number).collect();
        for entry in fs::read_dir(&self.folders)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if number.is_some_and(|number| !held.contains(&number)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes empty folders, when the supervisor ends.
    pub(super) fn close(&self) -> io::Result<()> {
        self.remove_spares()?;
        if self.folders != self.path {
            // This fails if there still are attempts in them.
            _ = fs::remove_dir(&self.folders);
            _ = fs::remove_dir(ELSEWHERE);
        }
        Ok(())
    }

    fn dir_of(&self, number: u32) -> PathBuf {
        self.folders.join(number.to_string())
    }

    /// Returns the group of a place.
    pub(super) fn group_of(&self, number: u32) -> Option<u32> {
        self.first_group.map(|first| first + number)
    }

    /// Creates a place and its work folder, which belongs to these user and group ids.
    fn create(&self, number: u32, uid: u32, gid: u32) -> io::Result<()> {
        let dir = self.dir_of(number);
        let folder = dir.join(FOLDER);
        let dir_mode = if self.first_group.is_some() { PLACE_MODE } else { PLACE_MODE_OPEN };
        for (path, mode) in [(&dir, dir_mode), (&folder, FOLDER_MODE)] {
            fs::create_dir(path)?;
            // Set the mode again, because the umask may have reduced it.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        if nix::unistd::geteuid().is_root() {
            lchown(&dir, None, self.group_of(number))?;
            lchown(&folder, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    fn place(&self, attempt: AttemptId) -> Option<Arc<Place>> {
        self.places.lock().held.get(&attempt).cloned()
    }

    /// Records that an attempt is about to start, and creates its work folder. The folder belongs
    /// to `user`, or to the agent's user if there is none.
    pub(super) fn take_up(
        &self,
        attempt: AttemptId,
        on_lost: OnLost,
        user: Option<&ProcessUser>,
    ) -> io::Result<WorkFolder> {
        let record = Record { attempt, on_lost, process: None, ended: None };
        let own = || (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let (uid, gid) = user.map_or_else(own, |user| (user.uid, user.gid));
        let mut places = self.places.lock();
        let alike = places.spares.iter().rposition(|(_, of)| *of == uid);
        let spare = alike.map(|at| places.spares.swap_remove(at).0);
        let number = spare.or_else(|| places.unused.pop()).unwrap_or(places.count);
        places.count = places.count.max(number + 1);
        let place = Arc::new(Place { number, record: Mutex::new(Some(record.clone())) });
        places.held.insert(attempt, place);
        drop(places);
        self.records.write(number, &record)?;
        let group = user.and_then(|_| self.group_of(number));
        if spare.is_none() {
            self.create(number, uid, group.unwrap_or(gid))?;
        }
        Ok(WorkFolder { path: self.dir_of(number).join(FOLDER), group })
    }

    /// Records that the process of an attempt is running.
    pub(super) fn started(&self, attempt: AttemptId, process: StartedProcess) -> io::Result<()> {
        self.change(attempt, |record| record.process = Some(process))
    }

    /// Records how an attempt ended. Does nothing if the attempt was never taken up.
    pub(super) fn ended(&self, attempt: AttemptId, outcome: &Outcome) -> io::Result<()> {
        self.change(attempt, |record| record.ended = Some(outcome.clone()))
    }

    fn change(&self, attempt: AttemptId, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let Some(place) = self.place(attempt) else { return Ok(()) };
        // The lock is held until the record is written, because after its removal another attempt
        // may use the place.
        let mut record = place.record.lock();
        let Some(record) = record.as_mut() else { return Ok(()) };
        change(record);
        self.records.write(place.number, record)
    }

    /// Removes all files of an attempt.
    pub(super) fn remove(&self, attempt: AttemptId) -> io::Result<()> {
        let Some(place) = self.place(attempt) else { return Ok(()) };
        let dir = self.dir_of(place.number);
        let has_few = self.places.lock().spares.len() < SPARES_MAX;
        let owner = if has_few { owner_if_new(&dir.join(FOLDER)) } else { None };
        if owner.is_none() {
            unless_missing(fs::remove_dir_all(&dir))?;
        }
        // The record goes last, because it leads to what is left of the folder.
        let mut record = place.record.lock();
        self.records.clear(place.number)?;
        *record = None;
        let mut places = self.places.lock();
        places.held.remove(&attempt);
        match owner {
            Some(owner) => places.spares.push((place.number, owner)),
            None => places.unused.push(place.number),
        }
        Ok(())
    }

    /// Returns the records of all held attempts, sorted by attempt.
    pub(super) fn records(&self) -> Vec<Record> {
        let places: Vec<_> = self.places.lock().held.values().cloned().collect();
        let mut all: Vec<_> =
            places.iter().filter_map(|place| place.record.lock().clone()).collect();
        all.sort_by_key(|record| record.attempt);
        all
    }
}

/// Returns the user of a work folder if the next attempt can use it, which means that it is
/// unchanged since its creation.
fn owner_if_new(folder: &Path) -> Option<u32> {
    let metadata = fs::symlink_metadata(folder).ok()?;
    let is_new = metadata.is_dir()
        && metadata.mode() & 0o7777 == FOLDER_MODE
        && fs::read_dir(folder).ok()?.next().is_none();
    is_new.then(|| metadata.uid())
}

/// Lets all users pass through a folder.
fn open_passage(dir: &Path) -> io::Result<()> {
    let mode = fs::metadata(dir)?.mode() | PASSAGE_BITS;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

/// Returns the first group of an agent. Two agents of a machine hardly ever get the same one.
const fn first_group_of(agent: Uuid) -> u32 {
    FIRST_GROUP + (agent.as_u128() % RANGES) as u32 * GROUPS
}

/// Returns whether the groups of places exist here, according to a `/proc/PID/gid_map`. Containers
/// with a user namespace may have only a part of all ids.
fn are_groups(first_group: u32, gid_map: &str) -> bool {
    gid_map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        let first = first.unwrap_or(u64::MAX);
        let wanted = u64::from(first_group);
        first <= wanted && wanted + u64::from(GROUPS) <= first.saturating_add(count.unwrap_or(0))
    })
}

/// Returns whether all users can pass through a folder and its ancestors.
fn is_open_to_all(dir: &Path) -> io::Result<bool> {
    let mut open = true;
    for dir in dir.ancestors() {
        open &= fs::metadata(dir)?.mode() & 0o001 != 0;
    }
    Ok(open)
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(
        |error| {
            if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
        },
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use podmesh_protocol::ids::JobId;

    use super::*;

    const ATTEMPT: AttemptId = AttemptId::new(JobId(42), 7, 2);

    fn opened(data: &tempfile::TempDir) -> WorkDir {
        WorkDir::open(data.path(), Uuid::nil()).unwrap()
    }

    fn entries(data: &tempfile::TempDir) -> usize {
        fs::read_dir(data.path().join("work")).unwrap().count()
    }

    #[test]
    fn the_next_supervisor_reads_all_records() {
        let data = tempfile::tempdir().unwrap();
        let work = opened(&data);
        assert!(!has_records(data.path()));
        let folder = work.take_up(ATTEMPT, OnLost::Requeue, None).unwrap();
        let mut expected =
            Record { attempt: ATTEMPT, on_lost: OnLost::Requeue, process: None, ended: None };
        assert_eq!(opened(&data).records(), [expected.clone()]);

        let process = StartedProcess { pid: 77, start_ticks: (123, 124) };
        work.started(ATTEMPT, process).unwrap();
        expected.process = Some(process);
        assert_eq!(opened(&data).records(), [expected.clone()]);

        let outcome = Outcome::exited(3);
        work.ended(ATTEMPT, &outcome).unwrap();
        expected.ended = Some(outcome);
        assert_eq!(opened(&data).records(), [expected.clone()]);
        assert_eq!(work.records(), [expected]);
        assert!(has_records(data.path()));

        fs::write(folder.path.join("result"), "x").unwrap();
        work.remove(ATTEMPT).unwrap();
        work.remove(ATTEMPT).unwrap();
        work.ended(ATTEMPT, &Outcome::exited(4)).unwrap();
        assert_eq!((work.records(), opened(&data).records()), (vec![], vec![]));
        assert!(!has_records(data.path()));
    }

    #[test]
    fn a_place_is_reused_and_the_next_attempt_finds_nothing_of_the_previous_one() {
        let data = tempfile::tempdir().unwrap();
        let work = opened(&data);
        let next = AttemptId { number: 3, ..ATTEMPT };
        let folder = work.take_up(ATTEMPT, OnLost::Wait, None).unwrap();
        work.ended(ATTEMPT, &Outcome::exited(0).with_message("x".repeat(2000))).unwrap();
        work.remove(ATTEMPT).unwrap();
        assert_eq!(work.take_up(next, OnLost::Wait, None).unwrap(), folder);
        let fresh = Record { attempt: next, on_lost: OnLost::Wait, process: None, ended: None };
        assert_eq!(opened(&data).records(), [fresh]);
        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 0);
        work.remove(next).unwrap();
        assert_eq!(entries(&data), 2, "the records and a folder");
        // The next supervisor keeps no folder.
        assert_eq!(opened(&data).records(), []);
        assert_eq!(entries(&data), 1);
    }

    #[test]
    fn a_changed_or_filled_folder_is_not_reused() {
        let data = tempfile::tempdir().unwrap();
        let work = opened(&data);
        for spoil in
            [(|folder| fs::write(folder.join("x"), "")) as fn(&Path) -> io::Result<()>, |folder| {
                fs::set_permissions(folder, fs::Permissions::from_mode(0o500))
            }]
        {
            let folder = work.take_up(ATTEMPT, OnLost::Wait, None).unwrap().path;
            spoil(&folder).unwrap();
            work.remove(ATTEMPT).unwrap();
            assert!(work.places.lock().spares.is_empty() && !folder.exists());
        }
    }

    #[test]
    fn leftovers_of_a_crashed_machine_do_no_harm() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("work");
        fs::create_dir(&path).unwrap();
        // An incomplete record, and folders without a record.
        fs::write(path.join("records"), "{\"attempt\":[42,7,2],\"on_lo").unwrap();
        for name in ["0", "7", "other"] {
            fs::create_dir(path.join(name)).unwrap();
            fs::write(path.join(name).join("file"), "").unwrap();
        }
        let work = opened(&data);
        assert_eq!(work.records(), []);
        assert_eq!(entries(&data), 2);
        let folder = work.take_up(ATTEMPT, OnLost::Wait, None).unwrap();
        assert_eq!(fs::read_dir(folder.path).unwrap().count(), 0);
    }

    #[test]
    fn many_attempts_have_separate_places_and_few_folders_are_kept() {
        let data = tempfile::tempdir().unwrap();
        let work = opened(&data);
        let attempts: Vec<_> = (1..=200).map(|n| AttemptId::new(JobId(n), 1, 1)).collect();
        let folders: std::collections::HashSet<_> = attempts
            .iter()
            .map(|attempt| work.take_up(*attempt, OnLost::Wait, None).unwrap().path)
            .collect();
        assert_eq!(folders.len(), attempts.len());
        for attempt in attempts {
            work.ended(attempt, &Outcome::exited(1)).unwrap();
            work.remove(attempt).unwrap();
        }
        assert_eq!(entries(&data), SPARES_MAX + 1);
        assert_eq!(work.places.lock().count, 200);
    }

    #[test]
    fn a_container_may_lack_the_groups() {
        let are_groups = |gid_map| are_groups(first_group_of(Uuid::nil()), gid_map);
        assert!(are_groups("         0          0 4294967295\n"));
        assert!(are_groups("0 100000 1000\n2000000000 7 10000\n"));
        // The numbers above all groups are not valid ids.
        assert!(first_group_of(Uuid::max()) < i32::MAX.unsigned_abs() - 2 * GROUPS);
        for lacking in ["", "0 100000 65536\n", "2000000000 7 9999\n", "2000000001 7 10000\n"] {
            assert!(!are_groups(lacking), "{lacking}");
        }
    }
}
