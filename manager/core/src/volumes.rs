//! Named volumes: where they are, and how they are removed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Bound;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{Epoch, JobId, Name};
use podmesh_protocol::limits::{FRAME_BYTES_MAX, PAGE_ROWS_MAX, VOLUME_JOBS_SHOWN, VOLUMES_MAX};
use podmesh_protocol::spec::VolumeMount;
use podmesh_protocol::time::Now;
use podmesh_protocol::volume::VolumeView;

use crate::Core;
use crate::ids::ConnectionId;
use crate::ids::NodeIx;
use crate::input::Input;
use crate::reports::cut;
use crate::state::{Change, VolumeRow};
use crate::step::{Answer, Step};

impl Core {
    /// Returns the volumes whose names sort after `after`: at most `limit`, and only as many as fit
    /// into one frame.
    pub fn list_volumes(&self, after: Option<&Name>, limit: u32) -> Vec<VolumeView> {
        let mut services = BTreeMap::<&Name, BTreeSet<Name>>::new();
        for (name, service) in &self.state.services {
            for mount in service.spec.volumes() {
                services.entry(&mount.volume).or_default().insert(name.clone());
            }
        }
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.state.volumes.range::<Name, _>((start, Bound::Unbounded));
        let mut bytes = 0;
        rows.map(|(volume, row)| VolumeView {
            volume: volume.clone(),
            node: row.node.clone(),
            created_wall_ms: row.created_wall_ms,
            removing: row.removed_by.is_some(),
            failed: self.volume_failures.get(volume).cloned(),
            services: services.remove(volume).unwrap_or_default(),
            jobs: self.jobs_that_use(volume).take(VOLUME_JOBS_SHOWN).collect(),
        })
        .take_while(|view| {
            let first = bytes == 0;
            let names: usize = view.services.iter().map(|name| name.as_str().len() + 8).sum();
            bytes += 512 + names + view.failed.as_ref().map_or(0, String::len);
            first || bytes <= FRAME_BYTES_MAX / 2
        })
        .take(limit.min(PAGE_ROWS_MAX) as usize)
        .collect()
    }

    /// Returns the jobs that use a volume and are no replicas.
    fn jobs_that_use(&self, volume: &Name) -> impl Iterator<Item = JobId> {
        let is_replica =
            |id: &JobId| self.state.jobs.get(id).is_some_and(|job| job.spec.run.replica.is_some());
        self.bonds.users(volume).filter(move |id| !is_replica(id))
    }

    /// Checks that a spec with these volumes can be accepted.
    pub(crate) fn may_use(&self, volumes: &[VolumeMount]) -> Result<(), ErrorReply> {
        for VolumeMount { volume, .. } in volumes {
            match self.state.volumes.get(volume) {
                Some(row) if row.removed_by.is_some() => {
                    let message = format!(
                        "volume `{volume}` is being removed from node `{}`: try again when it is gone (`podmesh volumes`)",
                        row.node
                    );
                    return Err(ErrorReply::new(ErrorCode::Conflict, message));
                }
                None if self.state.volumes.len() >= VOLUMES_MAX => {
                    let message = format!(
                        "there are {VOLUMES_MAX} volumes, which is the limit (VOLUMES_MAX): remove some (`podmesh volume remove NAME`)"
                    );
                    return Err(ErrorReply::new(ErrorCode::Overloaded, message));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes that a task is given to a node: volumes of its that no node had are there from now on.
    pub(crate) fn place_volumes(&mut self, now: Now, id: JobId, ix: NodeIx, out: &mut Step) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let mounts = job.spec.run.volumes().iter().map(|mount| &mount.volume);
        let new = mounts.filter(|volume| !self.state.volumes.contains_key(*volume));
        let new: BTreeSet<Name> = new.cloned().collect();
        if new.is_empty() {
            return;
        }
        let node = self.nodes.get(ix).row.node.clone();
        let volumes = new.iter().cloned().collect();
        out.events.push(EventFact::VolumesPlaced { volumes, node: node.clone() });
        for volume in new {
            let row =
                VolumeRow { node: node.clone(), created_wall_ms: now.wall_ms, removed_by: None };
            self.mark_volume(&volume);
            self.state.record(out, Change::VolumeSaved { volume, row });
        }
    }

    /// Removes a volume, unless something uses it.
    pub(crate) fn remove_volume(
        &mut self,
        by: Name,
        volume: Name,
        force: bool,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let Some(row) = self.state.volumes.get(&volume).cloned() else {
            let message = format!("there is no volume `{volume}`; `podmesh volumes` shows all");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        if let Some(user) = self.user_of(&volume) {
            let message = format!("volume `{volume}` is used by {user}");
            return Err(ErrorReply::new(ErrorCode::Conflict, message));
        }
        let node = row.node.clone();
        if force {
            self.volume_gone(volume, by, out);
            return Ok(Answer::VolumeRemoving { node });
        }
        self.volume_failures.remove(&volume);
        if let Some(ix) = self.nodes.by_name(&node)
            && let Some(session) = &mut self.nodes.get_mut(ix).session
        {
            session.outgoing.remove_volumes.push(volume.clone());
            self.touched.insert(ix);
        }
        if row.removed_by.is_none() {
            let row = VolumeRow { removed_by: Some(by), ..row };
            self.state.record(out, Change::VolumeSaved { volume, row });
        }
        Ok(Answer::VolumeRemoving { node })
    }

    /// Returns what uses a volume, and how to end that, for people.
    fn user_of(&self, volume: &Name) -> Option<String> {
        let uses = |mount: &VolumeMount| mount.volume == *volume;
        let mut services = self.state.services.iter();
        if let Some((name, _)) =
            services.find(|(_, service)| service.spec.volumes().iter().any(uses))
        {
            return Some(format!(
                "service `{name}`: remove it first (`podmesh service remove {name}`)"
            ));
        }
        let job = self.bonds.users(volume).next()?;
        Some(format!("job {job}: wait until it has ended, or cancel it (`podmesh cancel {job}`)"))
    }

    /// Asks the node of a new session for the volumes that it has to remove.
    pub(crate) fn ask_for_removals(&mut self, ix: NodeIx) {
        let node = self.nodes.get_mut(ix);
        let Some(session) = &mut node.session else { return };
        let removals = self
            .state
            .volumes
            .iter()
            .filter(|(_, row)| row.node == node.row.node && row.removed_by.is_some());
        session.outgoing.remove_volumes = removals.map(|(volume, _)| volume.clone()).collect();
    }

    /// Notes what a node says about volumes that it had to remove.
    pub(crate) fn on_volumes_removed(
        &mut self,
        connection: ConnectionId,
        epoch: Epoch,
        removed: Vec<Name>,
        failed: BTreeMap<Name, String>,
        out: &mut Step,
    ) {
        let Some(ix) = self.nodes.by_session(connection, epoch) else { return };
        let node = self.nodes.get(ix).row.node.clone();
        let asked = |core: &Self, volume: &Name| {
            let row = core.state.volumes.get(volume).filter(|row| row.node == node)?;
            row.removed_by.clone()
        };
        let mut removed = removed;
        while let Some(volume) = removed.pop() {
            if !self.has_room(out) {
                removed.push(volume);
                let rest = Input::VolumesRemoved { connection, epoch, removed, failed };
                return self.backlog.push_front(rest);
            }
            if let Some(by) = asked(self, &volume) {
                self.volume_gone(volume, by, out);
            }
        }
        for (volume, why) in failed {
            if asked(self, &volume).is_some() {
                self.volume_failures.insert(volume, cut(why));
            }
        }
    }

    /// Returns the volumes that a node has.
    pub(crate) fn volumes_of(&self, node: &Name) -> Vec<Name> {
        let rows = self.state.volumes.iter().filter(|(_, row)| row.node == *node);
        rows.map(|(volume, _)| volume.clone()).collect()
    }

    /// Forgets a volume that is no longer there.
    pub(crate) fn volume_gone(&mut self, volume: Name, by: Name, out: &mut Step) {
        let Some(row) = self.state.volumes.get(&volume) else { return };
        let (node, name) = (row.node.clone(), volume.clone());
        out.events.push(EventFact::VolumeRemoved { volume: name, node, by });
        self.volume_failures.remove(&volume);
        self.mark_volume(&volume);
        self.state.record(out, Change::VolumeRemoved(volume));
    }
}
