//! What users ask of services.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::SERVICES_MAX;
use podmesh_protocol::service::ServiceSpec;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::input::ServiceChange;
use crate::state::Change;
use crate::state::{Service, ServicePhase, Update};
use crate::step::{Answer, Step};

impl Core {
    /// Creates a service, or brings it to another spec: the next revision, or an earlier one.
    pub(crate) fn apply_service(
        &mut self,
        now: Now,
        by: Name,
        spec: Arc<ServiceSpec>,
        back_to: Option<u32>,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        self.may_apply(&spec)?;
        self.may_use(spec.volumes())?;
        self.check_circle(&spec)?;
        let Some(before) = self.state.services.get(&spec.name).cloned() else {
            let update = Some(Update::begin(now, None));
            let service = Service {
                revision: 1,
                last_revision: 1,
                by,
                phase: ServicePhase::Running,
                update,
                failed_update: None,
                failures: BTreeMap::new(),
                spec,
            };
            return Ok(self.save_revision(now, service, out));
        };
        if before.phase == ServicePhase::Removing {
            return Err(is_being_removed(&spec.name));
        }
        if *spec == *before.spec && before.phase == ServicePhase::Running {
            return Ok(Answer::ServiceChanged { revision: before.revision, changed: false });
        }
        let mut service = Service { by: by.clone(), ..Service::clone(&before) };
        service.phase = ServicePhase::Running;
        if !spec.replaces(&before.spec) {
            // The replicas notice nothing of the change.
            let what = match (before.phase, spec.replicas == before.spec.replicas) {
                (ServicePhase::Stopped, _) => "started".into(),
                (_, false) => scaled(spec.replicas),
                (_, true) => "changed".into(),
            };
            service.spec = spec;
            self.save_spec(now, &service, out);
            return Ok(self.save_change(service, &by, what, out));
        }
        // Until a revision is reached, the one before it is what an update goes back to.
        let from = match before.update.as_ref() {
            None => Some((before.revision, Arc::clone(&before.spec))),
            Some(update) if update.rolls_back => Some((before.revision, Arc::clone(&before.spec))),
            Some(update) => update.from.clone(),
        };
        let same_as_from =
            from.as_ref().filter(|(_, from)| !spec.replaces(from)).map(|(revision, _)| *revision);
        service.revision = back_to.or(same_as_from).unwrap_or(before.last_revision + 1);
        service.last_revision = before.last_revision.max(service.revision);
        let from = from.filter(|(revision, _)| *revision != service.revision);
        service.update = Some(Update::begin(now, from));
        service.failed_update = None;
        service.failures.clear();
        service.spec = spec;
        Ok(self.save_revision(now, service, out))
    }

    /// Changes a service without another spec.
    pub(crate) fn change_service(
        &mut self,
        now: Now,
        by: Name,
        name: &Name,
        change: ServiceChange,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let Some(before) = self.state.services.get(name).cloned() else {
            let message = format!("there is no service `{name}`; `podmesh services` shows all");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        let same = Answer::ServiceChanged { revision: before.revision, changed: false };
        let mut service = Service { by: by.clone(), ..Service::clone(&before) };
        match (change, before.phase) {
            (ServiceChange::Remove, ServicePhase::Removing) => Ok(same),
            (_, ServicePhase::Removing) => Err(is_being_removed(name)),
            (ServiceChange::Remove, _) => {
                service.phase = ServicePhase::Removing;
                Ok(self.save_change(service, &by, "is being removed".into(), out))
            }
            (ServiceChange::Stop, ServicePhase::Stopped)
            | (ServiceChange::Start, ServicePhase::Running) => Ok(same),
            (ServiceChange::Stop, ServicePhase::Running) => {
                service.phase = ServicePhase::Stopped;
                Ok(self.save_change(service, &by, "stopped".into(), out))
            }
            (ServiceChange::Start, ServicePhase::Stopped) => {
                service.phase = ServicePhase::Running;
                service.failures.clear();
                Ok(self.save_change(service, &by, "started".into(), out))
            }
            (ServiceChange::Scale(replicas), _) if replicas == before.spec.replicas => Ok(same),
            (ServiceChange::Scale(replicas), _) => {
                let spec = ServiceSpec { replicas, ..ServiceSpec::clone(&before.spec) };
                spec.validate()
                    .map_err(|error| ErrorReply::new(ErrorCode::InvalidSpec, format!("{error}")))?;
                service.spec = Arc::new(spec);
                self.save_spec(now, &service, out);
                Ok(self.save_change(service, &by, scaled(replicas), out))
            }
            (ServiceChange::Restart, ServicePhase::Stopped) => {
                let message = format!(
                    "service `{name}` is stopped: `podmesh service start {name}` starts it"
                );
                Err(ErrorReply::new(ErrorCode::Conflict, message))
            }
            (ServiceChange::Restart, ServicePhase::Running) => {
                let from = match before.update.as_ref() {
                    Some(update) if !update.rolls_back => update.from.clone(),
                    _ => Some((before.revision, Arc::clone(&before.spec))),
                };
                service.revision = before.last_revision + 1;
                service.last_revision = service.revision;
                service.update = Some(Update::begin(now, from));
                service.failed_update = None;
                service.failures.clear();
                Ok(self.save_revision(now, service, out))
            }
        }
    }

    fn may_apply(&self, spec: &ServiceSpec) -> Result<(), ErrorReply> {
        let refuse = |code, message: String| Err(ErrorReply::new(code, message));
        let name = &spec.name;
        if !self.state.services.contains_key(name) && self.state.services.len() >= SERVICES_MAX {
            return refuse(
                ErrorCode::Overloaded,
                format!(
                    "there are {SERVICES_MAX} services, which is the limit (SERVICES_MAX): remove some (`podmesh service remove NAME`)"
                ),
            );
        }
        for (other, service) in &self.state.services {
            if other == name {
                continue;
            }
            if other.as_str().eq_ignore_ascii_case(name.as_str()) {
                return refuse(
                    ErrorCode::InvalidSpec,
                    format!(
                        "there is a service `{other}`: a name that differs only in case would be taken for it; choose another name"
                    ),
                );
            }
            let theirs = || service.spec.ports.values().filter_map(|port| port.publish);
            for publish in spec.ports.values().filter_map(|port| port.publish) {
                if theirs().any(|taken| taken == publish) {
                    return refuse(
                        ErrorCode::InvalidSpec,
                        format!(
                            "port {publish} is published by service `{other}`: choose another port, or remove that service"
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    /// Saves a service with a revision that its replicas are brought to.
    fn save_revision(&mut self, now: Now, service: Service, out: &mut Step) -> Answer {
        let answer = Answer::ServiceChanged { revision: service.revision, changed: true };
        let name = service.spec.name.clone();
        out.events.push(EventFact::ServiceApplied {
            service: name,
            revision: service.revision,
            replicas: service.spec.replicas,
            by: service.by.clone(),
        });
        self.save_spec(now, &service, out);
        self.save_service(service, out);
        answer
    }

    fn save_spec(&mut self, now: Now, service: &Service, out: &mut Step) {
        let change = Change::RevisionSaved {
            service: service.spec.name.clone(),
            revision: service.revision,
            spec: Arc::clone(&service.spec),
            by: service.by.clone(),
            wall_ms: now.wall_ms,
        };
        self.state.record(out, change);
    }

    fn save_change(
        &mut self,
        mut service: Service,
        by: &Name,
        message: String,
        out: &mut Step,
    ) -> Answer {
        if let Some(update) = &mut service.update {
            // With other replicas, or after a stop, the update gets its time anew.
            (update.healthy, update.progress_wall_ms) = (0, self.now.wall_ms);
        }
        let answer = Answer::ServiceChanged { revision: service.revision, changed: true };
        let name = service.spec.name.clone();
        out.events.push(EventFact::ServiceChanged { service: name, message, by: by.clone() });
        self.save_service(service, out);
        answer
    }

    pub(super) fn save_service(&mut self, service: Service, out: &mut Step) {
        let name = service.spec.name.clone();
        let before = self.state.services.get(&name).map(|before| &*before.spec);
        if before != Some(&*service.spec) {
            self.bonds.change_service(before, Some(&service.spec));
            self.services.dependents.change(before, Some(&service.spec));
        }
        self.services.by_name.entry(name.clone()).or_default();
        self.services.mark(&name);
        let saved = Arc::new(service);
        self.state.record(out, Change::ServiceSaved { service: name, saved });
    }
}

impl Update {
    fn begin(now: Now, from: Option<(u32, Arc<ServiceSpec>)>) -> Self {
        Self { from, rolls_back: false, healthy: 0, progress_wall_ms: now.wall_ms }
    }
}

fn scaled(replicas: u32) -> String {
    match replicas {
        1 => "scaled to 1 replica".into(),
        _ => format!("scaled to {replicas} replicas"),
    }
}

fn is_being_removed(name: &Name) -> ErrorReply {
    let message = format!("service `{name}` is being removed: try again when it is gone");
    ErrorReply::new(ErrorCode::Conflict, message)
}
