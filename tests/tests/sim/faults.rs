//! The planted faults, each of which the simulator must find.

use podmesh_agent_core::faults::Fault as AgentFault;
use podmesh_manager_core::faults::Fault as ManagerFault;

/// A fault and its location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Manager(ManagerFault),
    Agent(AgentFault),
    /// The manager's shell sends messages before the commit.
    EarlySend,
    /// The epoch of a session is not saved.
    EpochNotSaved,
    /// The first endpoints of a session are not sent.
    EndpointsNotSent,
    /// The health and the ports of replicas are not stored.
    HealthNotStored,
    /// How far a dependency has come is not stored.
    DependencyNotStored,
    /// The job of a schedule's run is stored without the run.
    RunNotStored,
    /// That runs of a schedule were missed is not stored.
    MissedNotStored,
    /// A manager that starts does not know the deadlines of drains.
    DeadlineForgotten,
    /// The update of a service is not stored.
    UpdateForgotten,
    /// The agent acknowledges endpoints before its proxy has applied them.
    AckedUnapplied,
    /// The agent takes what its proxy says about an earlier session for an answer in this one.
    OldAckCounts,
    /// The manager's shell acknowledges a report before it has arrived.
    AckedTooEarly,
    /// Reports that are not acknowledged are lost with the session.
    OutboxLost,
    /// The end of an attempt is forgotten when it is sent, not when it is acknowledged.
    ForgottenWhenSent,
    /// Attempts keep running when the lease has ended.
    LeaseIgnored,
    /// The supervisor lets processes run when the lease ends without an agent.
    SupervisorIdle,
}

/// Number of seeds within which each fault must be found.
pub(crate) const WITHIN: u64 = 3_000;

/// All faults.
pub(crate) const ALL: &[Planted] = &[
    Planted::Manager(ManagerFault::PauseIgnored),
    Planted::Manager(ManagerFault::TurnsIgnored),
    Planted::Manager(ManagerFault::QueueEndNotCounted),
    Planted::Manager(ManagerFault::StopUsesRetry),
    Planted::Manager(ManagerFault::PreemptsAny),
    Planted::Manager(ManagerFault::ClaimsNotBooked),
    Planted::Manager(ManagerFault::ExclusiveIgnored),
    Planted::Manager(ManagerFault::MaintenanceIgnored),
    Planted::EarlySend,
    Planted::Manager(ManagerFault::AttemptsNotFenced),
    Planted::Manager(ManagerFault::SessionsNotFenced),
    Planted::Manager(ManagerFault::NoMargin),
    Planted::Manager(ManagerFault::WaitRequeued),
    Planted::Manager(ManagerFault::SubmissionTwice),
    Planted::Manager(ManagerFault::StraysKept),
    Planted::Manager(ManagerFault::StartsForgotten),
    Planted::EpochNotSaved,
    Planted::Manager(ManagerFault::RoomNotBooked),
    Planted::AckedTooEarly,
    Planted::Manager(ManagerFault::StallNotForgiven),
    Planted::Manager(ManagerFault::LateHelloCounts),
    Planted::Manager(ManagerFault::NamesNotKept),
    Planted::Manager(ManagerFault::ActiveJobRemoved),
    Planted::Manager(ManagerFault::ActiveTaskRequeued),
    Planted::Manager(ManagerFault::FailuresNotLimited),
    Planted::Manager(ManagerFault::UpstreamIgnored),
    Planted::Manager(ManagerFault::FailureIsSuccess),
    Planted::Manager(ManagerFault::EachIsAny),
    Planted::Manager(ManagerFault::EndNotPassedOn),
    Planted::Manager(ManagerFault::NotWaitedAgain),
    Planted::DependencyNotStored,
    Planted::SupervisorIdle,
    Planted::OutboxLost,
    Planted::LeaseIgnored,
    Planted::Agent(AgentFault::FencedRunsOn),
    Planted::Agent(AgentFault::OlderNotAwaited),
    Planted::Agent(AgentFault::NotAdopted),
    Planted::ForgottenWhenSent,
    Planted::Manager(ManagerFault::ProxiesNotAwaited),
    Planted::Manager(ManagerFault::DrainNotAwaited),
    Planted::Manager(ManagerFault::SurgeNotLimited),
    Planted::Manager(ManagerFault::MinHealthyIgnored),
    Planted::Manager(ManagerFault::LostNodeServes),
    Planted::EndpointsNotSent,
    Planted::HealthNotStored,
    Planted::UpdateForgotten,
    Planted::RunNotStored,
    Planted::MissedNotStored,
    Planted::DeadlineForgotten,
    Planted::AckedUnapplied,
    Planted::OldAckCounts,
];
