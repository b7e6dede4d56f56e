//! Tasks that must run on one node: because a volume of theirs is there, or their project.
//!
//! A volume belongs to the node where it was first used, and this is part of the state. Where a
//! project runs is derived: the node of a volume of one of its services, else the node of its oldest
//! replica. A task is [bound](Core::bonds_of) as long as that holds. When it changes, the tasks that
//! wait for a node get new [`Needs`] before anything else is placed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use podmesh_protocol::ids::{JobId, Name};
use podmesh_protocol::node::{NodeState, Scheduling};
use podmesh_protocol::service::{Project, ServiceSpec};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::wait::Bond;

use crate::Core;
use crate::faults::planted;
use crate::placement::Needs;
use crate::services::replica_of;

/// What is derived from the state about bonds.
#[derive(Debug, Default)]
pub(crate) struct Bonds {
    /// The jobs that use each volume and have not ended.
    users: BTreeMap<Name, BTreeSet<JobId>>,
    /// The services of each project that run together.
    projects: BTreeMap<Name, BTreeSet<Name>>,
    /// What may have moved, so that its tasks must be looked at.
    moved: BTreeSet<Bond>,
    /// The services that have left a project.
    left: BTreeSet<Name>,
}

impl Bonds {
    pub(crate) fn add_job(&mut self, id: JobId, spec: &JobSpec) {
        for mount in spec.run.volumes() {
            self.users.entry(mount.volume.clone()).or_default().insert(id);
        }
    }

    pub(crate) fn remove_job(&mut self, id: JobId, spec: &JobSpec) {
        for mount in spec.run.volumes() {
            if let Some(users) = self.users.get_mut(&mount.volume) {
                users.remove(&id);
                if users.is_empty() {
                    self.users.remove(&mount.volume);
                }
            }
        }
    }

    /// Returns the jobs that use a volume and have not ended.
    pub(crate) fn users(&self, volume: &Name) -> impl Iterator<Item = JobId> {
        self.users.get(volume).into_iter().flatten().copied()
    }

    /// Notes the spec of a service, in place of an earlier one.
    pub(crate) fn change_service(
        &mut self,
        before: Option<&ServiceSpec>,
        after: Option<&ServiceSpec>,
    ) {
        let together = |spec: Option<&ServiceSpec>| {
            let spec = spec?;
            let project = spec.project.as_ref().filter(|project| project.together)?;
            Some((project.name.clone(), spec.name.clone()))
        };
        if let Some((project, service)) = together(before) {
            if let Some(services) = self.projects.get_mut(&project) {
                services.remove(&service);
                self.left.insert(service);
                if services.is_empty() {
                    self.projects.remove(&project);
                }
            }
            self.moved.insert(Bond::Project(project));
        }
        if let Some((project, service)) = together(after) {
            self.projects.entry(project.clone()).or_default().insert(service);
            self.moved.insert(Bond::Project(project));
        }
    }
}

impl Core {
    /// Returns what a task needs, including the nodes that it is bound to.
    pub(crate) fn needs_of(&self, spec: &JobSpec) -> Needs {
        let bonds = self.bonds_of(spec);
        let mut needs = Needs::of(spec, bonds.into_iter().map(|(node, _)| node).collect());
        if needs.replica.is_some() && planted!(self, ExclusiveIgnored) {
            needs.place.exclusive = false;
        }
        needs
    }

    /// Returns the nodes that a task is bound to, and why. There is more than one only if its
    /// volumes are on several nodes: it can then run on none.
    pub(crate) fn bonds_of(&self, spec: &JobSpec) -> Vec<(Name, Bond)> {
        let service = spec
            .run
            .replica
            .as_ref()
            .and_then(|replica| Some(&self.state.services.get(&replica.service)?.spec));
        self.bonds(spec.run.volumes(), service.and_then(|spec| spec.project.as_ref()))
    }

    /// Returns the same for the replicas of a service.
    pub(crate) fn bonds_of_service(&self, spec: &ServiceSpec) -> Vec<(Name, Bond)> {
        self.bonds(spec.volumes(), spec.project.as_ref())
    }

    fn bonds(
        &self,
        volumes: &[podmesh_protocol::spec::VolumeMount],
        project: Option<&Project>,
    ) -> Vec<(Name, Bond)> {
        let mut bonds: Vec<(Name, Bond)> = Vec::new();
        for mount in volumes {
            if let Some(found) = self.state.volumes.get(&mount.volume)
                && !bonds.iter().any(|(node, _)| *node == found.node)
            {
                bonds.push((found.node.clone(), Bond::Volume(mount.volume.clone())));
            }
        }
        if bonds.is_empty()
            && let Some(project) = project.filter(|project| project.together)
            && let Some(home) = self.home_of(&project.name)
        {
            bonds.push((home, Bond::Project(project.name.clone())));
        }
        bonds
    }

    /// Returns the node on which the services of a project run together; `None` if the next replica
    /// of one of them decides it.
    pub(crate) fn home_of(&self, project: &Name) -> Option<Name> {
        let services = self.bonds.projects.get(project)?;
        let specs = services.iter().filter_map(|name| self.state.services.get(name));
        let mut volumes = specs.flat_map(|service| service.spec.volumes());
        if let Some(node) =
            volumes.find_map(|mount| Some(&self.state.volumes.get(&mount.volume)?.node))
        {
            return Some(node.clone());
        }
        let jobs = services.iter().flat_map(|service| self.services.staying(service));
        let nodes = jobs.filter_map(|id| {
            let job = self.state.jobs.get(&id).filter(|job| !job.is_stopping())?;
            let node = &job.active.values().next()?.node;
            let found = self.nodes.get(self.nodes.by_name(node)?);
            let stays =
                found.state != NodeState::Lost && found.row.scheduling != Scheduling::Draining;
            stays.then_some((id, node))
        });
        nodes.min().map(|(_, node)| node.clone())
    }

    /// Notes that something has changed which the node of a project may depend on.
    pub(crate) fn mark_project_of(&mut self, id: JobId) {
        let Some(spec) = self.state.jobs.get(&id).and_then(|job| replica_of(job)) else { return };
        self.mark_project(&spec.service.clone());
    }

    pub(crate) fn mark_project(&mut self, service: &Name) {
        let project =
            self.state.services.get(service).and_then(|service| {
                service.spec.project.as_ref().filter(|project| project.together)
            });
        if let Some(project) = project {
            self.bonds.moved.insert(Bond::Project(project.name.clone()));
        }
    }

    /// Notes that a volume is on a node from now on, or no longer.
    pub(crate) fn mark_volume(&mut self, volume: &Name) {
        self.bonds.moved.insert(Bond::Volume(volume.clone()));
        let uses = |service: &Name| {
            let found = self.state.services.get(service);
            found.is_some_and(|found| found.spec.volumes().iter().any(|of| of.volume == *volume))
        };
        let projects = self.bonds.projects.iter();
        let moved = projects.filter(|(_, services)| services.iter().any(uses));
        let moved: Vec<Name> = moved.map(|(project, _)| project.clone()).collect();
        self.bonds.moved.extend(moved.into_iter().map(Bond::Project));
    }

    /// Gives the tasks whose bonds may have changed their present needs.
    pub(crate) fn settle_bonds(&mut self) {
        while let Some(service) = self.bonds.left.pop_first() {
            let jobs: Vec<JobId> = self.services.jobs_of(&service).collect();
            jobs.into_iter().for_each(|id| self.rebind(id));
        }
        while let Some(bond) = self.bonds.moved.pop_first() {
            let jobs: Vec<JobId> = match &bond {
                Bond::Volume(volume) => self.bonds.users(volume).collect(),
                Bond::Project(project) => {
                    let services = self.bonds.projects.get(project).into_iter().flatten();
                    services.flat_map(|service| self.services.jobs_of(service)).collect()
                }
            };
            for id in jobs {
                self.rebind(id);
            }
        }
    }

    fn rebind(&mut self, id: JobId) {
        let Some(spec) = self.state.jobs.get(&id).map(|job| &job.spec) else { return };
        let needs = self.needs_of(spec);
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        if self.queue.needs(dispatch.shape) == Some(&needs) {
            return;
        }
        let shape = self.queue.intern(job, needs, &self.nodes);
        let before = core::mem::replace(&mut dispatch.shape, shape);
        self.queue.remove(before, job.key());
        self.queue.release(before);
        if dispatch.has_ready(job) {
            self.queue.add(dispatch.shape, job.key());
        }
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Core {
    pub(crate) fn check_bonds(&self) {
        let mut users = BTreeMap::<Name, BTreeSet<JobId>>::new();
        for (id, job) in &self.state.jobs {
            for mount in job.spec.run.volumes() {
                users.entry(mount.volume.clone()).or_default().insert(*id);
            }
            let shape = self.dispatch[id].shape;
            assert_eq!(
                self.queue.needs(shape),
                Some(&self.needs_of(&job.spec)),
                "job {id}: what it is bound to"
            );
            self.check_volumes_of(job);
        }
        assert_eq!(self.bonds.users, users, "the users of volumes");
        assert!(self.bonds.moved.is_empty(), "every bond is settled");
    }

    /// Checks that everything that uses a volume is where the volume is.
    fn check_volumes_of(&self, job: &crate::state::Job) {
        for (active, mount) in job
            .active
            .values()
            .flat_map(|active| job.spec.run.volumes().iter().map(move |mount| (active, mount)))
        {
            let node = self.state.volumes.get(&mount.volume).map(|volume| &volume.node);
            assert_eq!(node, Some(&active.node), "volume {}: its node", mount.volume);
        }
    }
}
