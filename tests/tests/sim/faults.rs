//! The deliberate faults, and that each is found.

use podmesh_agent_core::faults::Fault as AgentFault;
use podmesh_manager_core::faults::Fault as ManagerFault;

/// A fault, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    Manager(ManagerFault),
    Agent(AgentFault),
    /// The manager's shell sends before the commit.
    EarlySend,
}

/// All of them, each with the number of seeds within which it must be found.
pub(crate) const ALL: &[(Planted, u64)] = &[
    (Planted::EarlySend, 20),
    (Planted::Manager(ManagerFault::AttemptsNotFenced), 200),
    (Planted::Manager(ManagerFault::SessionsNotFenced), 200),
    (Planted::Manager(ManagerFault::NoMargin), 2_000),
    (Planted::Manager(ManagerFault::WaitRequeued), 200),
    (Planted::Manager(ManagerFault::SubmissionTwice), 200),
    (Planted::Manager(ManagerFault::StraysKept), 200),
    (Planted::Manager(ManagerFault::StartsForgotten), 200),
    (Planted::Manager(ManagerFault::EpochNotSaved), 200),
    (Planted::Manager(ManagerFault::RoomNotBooked), 20),
    (Planted::Manager(ManagerFault::AckedTooEarly), 2_000),
    (Planted::Manager(ManagerFault::StallNotForgiven), 200),
    (Planted::Manager(ManagerFault::LateHelloCounts), 2_000),
    (Planted::Agent(AgentFault::OutboxLost), 200),
    (Planted::Agent(AgentFault::LeaseIgnored), 200),
    (Planted::Agent(AgentFault::FencedRunsOn), 200),
    (Planted::Agent(AgentFault::OlderNotAwaited), 2_000),
    (Planted::Agent(AgentFault::NotAdopted), 200),
    (Planted::Agent(AgentFault::ForgottenWhenSent), 200),
];
