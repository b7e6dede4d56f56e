//! Which events are wanted.

use serde::Deserialize;

use crate::events::EventOutput;

/// The wanted events: those that fit everything that is given. By default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The kind, such as `job_ended`.
    pub kind: Option<String>,
    /// The job, of which or of whose tasks the event tells.
    pub job: Option<u64>,
    /// The node.
    pub node: Option<String>,
    /// The service.
    pub service: Option<String>,
    /// Who did it.
    pub user: Option<String>,
}

/// What an event says of them.
#[derive(Debug, Deserialize)]
struct Facts {
    event: String,
    job: Option<u64>,
    /// Jobs that were removed.
    first: Option<u64>,
    last: Option<u64>,
    node: Option<String>,
    service: Option<String>,
    replica: Option<String>,
    by: Option<String>,
}

impl EventFilter {
    /// Returns whether all events are wanted.
    pub fn takes_all(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether an event is wanted.
    pub fn takes(&self, event: &EventOutput) -> bool {
        self.takes_all() || serde_json::to_string(event).is_ok_and(|text| self.takes_text(&text))
    }

    /// The same for an event as JSON. What cannot be read is not wanted.
    pub fn takes_text(&self, event: &str) -> bool {
        fn fits<T: PartialEq>(wanted: &Option<T>, found: &Option<T>) -> bool {
            wanted.is_none() || wanted == found
        }
        self.takes_all()
            || serde_json::from_str(event).is_ok_and(|facts: Facts| {
                // `web.3` is a replica of `web`.
                let replica = facts.replica.as_deref().and_then(|name| name.rsplit_once('.'));
                let service = facts.service.or(replica.map(|(service, _)| service.to_owned()));
                let range = facts.first.zip(facts.last);
                let in_range = self
                    .job
                    .zip(range)
                    .is_some_and(|(job, (first, last))| (first..=last).contains(&job));
                fits(&self.kind, &Some(facts.event))
                    && (in_range || fits(&self.job, &facts.job))
                    && fits(&self.node, &facts.node)
                    && fits(&self.service, &service)
                    && fits(&self.user, &facts.by)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_must_fit_everything_that_is_given() {
        let assigned = r#"{"revision":1,"event":"attempt_assigned","job":4,"node":"a"}"#;
        let applied = r#"{"revision":2,"event":"service_applied","service":"web","by":"ann"}"#;
        let health = r#"{"revision":3,"event":"replica_health","job":5,"replica":"web.3"}"#;
        let taken = |filter: EventFilter| {
            [assigned, applied, health].map(|event| u8::from(filter.takes_text(event)))
        };
        let text = |text: &str| Some(text.to_owned());
        let all = EventFilter::default();
        assert_eq!(taken(all.clone()), [1, 1, 1]);
        assert_eq!(taken(EventFilter { kind: text("service_applied"), ..all.clone() }), [0, 1, 0]);
        assert_eq!(taken(EventFilter { job: Some(4), ..all.clone() }), [1, 0, 0]);
        assert_eq!(taken(EventFilter { node: text("a"), ..all.clone() }), [1, 0, 0]);
        assert_eq!(taken(EventFilter { service: text("web"), ..all.clone() }), [0, 1, 1]);
        assert_eq!(taken(EventFilter { user: text("ann"), ..all.clone() }), [0, 1, 0]);
        let both = EventFilter { service: text("web"), user: text("bob"), ..all };
        assert_eq!(taken(both), [0, 0, 0]);
        let removed = r#"{"revision":4,"event":"jobs_forgotten","first":2,"last":4,"by":"ann"}"#;
        let of = |job| EventFilter { job: Some(job), ..EventFilter::default() };
        let kept = [1, 2, 4, 5].map(|job| of(job).takes_text(removed));
        assert_eq!(kept, [false, true, true, false]);
    }

    #[test]
    fn a_replica_is_of_the_service_whose_name_it_begins_with() {
        let health = r#"{"revision":3,"event":"replica_health","job":5,"replica":"web.eu.3"}"#;
        let of =
            |service: &str| EventFilter { service: Some(service.into()), ..EventFilter::default() };
        let taken = ["web.eu", "web", "web.eu.3"].map(|service| of(service).takes_text(health));
        assert_eq!(taken, [true, false, false]);
    }

    #[test]
    fn what_cannot_be_read_is_not_wanted() {
        for text in ["", "{", "[]", r#"{"revision":1}"#, r#"{"event":7}"#] {
            let job = EventFilter { job: Some(1), ..EventFilter::default() };
            assert!(!job.takes_text(text), "{text}");
        }
    }
}
