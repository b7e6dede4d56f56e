//! Services that wait for others before their first replica starts.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::Name;
use podmesh_protocol::report::AttemptState;
use podmesh_protocol::service::{DependsOn, ServiceSpec};

use crate::Core;
use crate::state::{Service, ServicePhase};

/// The services that wait for each service.
#[derive(Debug, Default)]
pub(super) struct Dependents(BTreeMap<Name, BTreeSet<Name>>);

impl Dependents {
    /// Notes the spec of a service, in place of an earlier one.
    pub(super) fn change(&mut self, before: Option<&ServiceSpec>, after: Option<&ServiceSpec>) {
        if let Some(spec) = before {
            for needed in spec.depends_on.keys() {
                if let Some(dependents) = self.0.get_mut(needed) {
                    dependents.remove(&spec.name);
                    if dependents.is_empty() {
                        self.0.remove(needed);
                    }
                }
            }
        }
        if let Some(spec) = after {
            for needed in spec.depends_on.keys() {
                self.0.entry(needed.clone()).or_default().insert(spec.name.clone());
            }
        }
    }

    pub(super) fn of(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.0.get(service).into_iter().flatten()
    }
}

impl Core {
    /// Returns what the first replica of a service waits for, for people; nothing if it has had one
    /// since it was last started.
    pub(super) fn waits_for_services(&self, service: &Service) -> Vec<String> {
        let has_replicas = self.services.jobs_of(&service.spec.name).next().is_some();
        if has_replicas || !service.failures.is_empty() || service.wanted() == 0 {
            return Vec::new();
        }
        let needed = service.spec.depends_on.iter();
        needed.filter_map(|(name, needs)| self.is_missing(name, *needs)).collect()
    }

    /// Returns why a service has not come so far.
    fn is_missing(&self, name: &Name, needs: DependsOn) -> Option<String> {
        let Some(service) = self.state.services.get(name) else {
            return Some(format!("waits for service `{name}`, which does not exist"));
        };
        if service.phase != ServicePhase::Running {
            return Some(format!("waits for service `{name}`, which is stopped"));
        }
        let wanted = service.wanted() as usize;
        let replicas = self.replicas_of(name);
        let current = || replicas.iter().filter(|found| found.revision == service.revision);
        let done = service.done() as usize;
        let (so_far, what) = match needs {
            DependsOn::Started => {
                let runs = |id| {
                    let job = self.state.jobs.get(id)?;
                    let active = job.active.values().next()?;
                    (active.state == AttemptState::Running).then_some(())
                };
                (current().filter_map(|found| runs(&found.job)).count() + done, "started")
            }
            DependsOn::Healthy => {
                (current().filter(|found| found.is_serving()).count() + done, "healthy")
            }
            DependsOn::Completed => {
                let failed = |(number, ended): (&u32, &crate::state::Failures)| {
                    let over = ended.after_ms.is_none() && !ended.succeeded;
                    over.then(|| {
                        let message = &ended.message;
                        let label = super::label(name, *number);
                        format!("waits for service `{name}` to succeed, but {label} has ended: {message}")
                    })
                };
                if let Some(why) = service.failures.iter().find_map(failed) {
                    return Some(why);
                }
                (done, "done")
            }
        };
        if so_far >= wanted {
            return None;
        }
        let left = wanted - so_far;
        Some(match wanted {
            1 => format!("waits for service `{name}`, which is not {what} yet"),
            _ => format!(
                "waits for service `{name}`: {left} of {wanted} replicas are not {what} yet"
            ),
        })
    }

    /// Looks again at the services that wait for one and can start now. The others stay as they are:
    /// a rollback can make services wait for each other, and they would be looked at for ever.
    pub(super) fn mark_dependents(&mut self, name: &Name) {
        let can_start = |dependent: &&Name| {
            self.services.jobs_of(dependent).next().is_none()
                && self.state.services.get(*dependent).is_some_and(|service| {
                    service.wanted() > 0
                        && service.failures.is_empty()
                        && self.waits_for_services(service).is_empty()
                })
        };
        let waiting = self.services.dependents.of(name).filter(can_start);
        let waiting: Vec<Name> = waiting.cloned().collect();
        self.services.dirty.extend(waiting);
    }

    /// Checks that services would not wait for each other in a circle.
    pub(super) fn check_circle(&self, spec: &ServiceSpec) -> Result<(), ErrorReply> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&Name> = spec.depends_on.keys().collect();
        while let Some(name) = open.pop() {
            if *name == spec.name {
                let message = format!(
                    "depends_on: service `{name}` would wait for itself, through other services; remove one of these dependencies"
                );
                return Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
            }
            if seen.insert(name)
                && let Some(service) = self.state.services.get(name)
            {
                open.extend(service.spec.depends_on.keys());
            }
        }
        Ok(())
    }
}
