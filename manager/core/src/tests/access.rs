use podmesh_protocol::access::{PublicKey, TokenId};
use podmesh_protocol::client::{PrincipalKind, TokenState, TokenView, UserView};
use podmesh_protocol::limits::{TOKEN_USES_MAX, TOKENS_MAX};

use super::*;
use crate::state::KeyRow;

const HOUR_MS: u64 = 3_600_000;
const HASH: [u8; 32] = [5; 32];

type JoinResult = Result<(Role, Name), ErrorReply>;

impl World {
    fn access(&mut self, command: Command) -> Step {
        self.give(Input::Command(TICKET, command))
    }

    fn ask_token(&mut self, role: Role, ttl_ms: u64, uses: u32) -> Step {
        let by = name("root");
        self.access(Command::CreateToken { by, secret_hash: HASH, role, ttl_ms, uses })
    }

    pub(super) fn token(&mut self, role: Role, uses: u32) -> TokenId {
        let step = self.ask_token(role, HOUR_MS, uses);
        let Some(Ok(Answer::TokenCreated { id, .. })) = replies(&step).pop() else {
            panic!("{step:?}")
        };
        id
    }

    fn ask_to_join(&mut self, key: u8, token: TokenId, secret_hash: [u8; 32], who: &str) -> Step {
        let (key, name) = (PublicKey([key; 32]), name(who));
        self.access(Command::Join { key, token, secret_hash, name })
    }

    pub(super) fn try_join(&mut self, key: u8, token: TokenId, who: &str) -> JoinResult {
        let step = self.ask_to_join(key, token, HASH, who);
        let answer = match replies(&step).pop().unwrap() {
            Ok(Answer::Joined { role, name }) => Ok((role, name)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        let enrolled =
            step.effects.iter().any(|effect| matches!(effect, Effect::KeyEnrolled { .. }));
        assert_eq!(enrolled, answer.is_ok());
        answer
    }

    pub(super) fn revoke(&mut self, kind: PrincipalKind, who: &str) -> Step {
        let (by, name) = (name("root"), name(who));
        self.access(Command::RevokeKey { by, kind, name })
    }

    fn tokens(&mut self) -> Vec<TokenView> {
        let rows = self.core.state().tokens.values();
        rows.map(|row| row.view(self.now.wall_ms)).collect()
    }

    fn users(&self) -> Vec<UserView> {
        self.core.state().keys.values().filter_map(KeyRow::user).collect()
    }

    fn hello_from(&mut self, caller: Caller, node: &str, number: u64) -> Step {
        self.connect_as(caller, hello(node, number), number)
    }
}

fn agent(key: u8, node: &str) -> Caller {
    Caller { role: Role::Agent, name: name(node), key: Some(PublicKey([key; 32])) }
}

fn said(result: JoinResult, code: ErrorCode) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    error.message
}

#[test]
fn a_token_can_be_used_as_often_as_it_allows_and_each_join_is_an_event() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 2);
    assert_eq!(world.try_join(1, token, "a"), Ok((Role::Agent, name("a"))));
    world.restart();
    let step = world.ask_to_join(2, token, HASH, "b");
    assert_eq!(
        step.events,
        [EventFact::Enrolled { role: Role::Agent.into(), name: name("b"), token }]
    );
    let why = said(world.try_join(3, token, "c"), ErrorCode::InvalidToken);
    assert!(why.contains("used up") && why.contains("podmesh token create"), "{why}");
    world.restart();
    assert_eq!(world.tokens()[0].state, TokenState::UsedUp);
    said(world.try_join(3, token, "c"), ErrorCode::InvalidToken);
}

#[test]
fn the_error_says_whether_a_token_is_unknown_expired_or_revoked() {
    let mut world = World::new();
    let token = world.token(Role::Viewer, 1);
    let why = said(world.try_join(1, TokenId(99), "a"), ErrorCode::InvalidToken);
    assert!(why.contains("no such"), "{why}");
    let step = world.ask_to_join(1, token, [6; 32], "a");
    let text = format!("{:?}", step.effects);
    assert!(text.contains("no such"), "a wrong secret reveals nothing about the token: {text}");

    world.now.wall_ms += HOUR_MS;
    world.restart();
    let why = said(world.try_join(1, token, "a"), ErrorCode::InvalidToken);
    assert!(why.contains("expired"), "{why}");

    let token = world.token(Role::Viewer, 1);
    let by = name("root");
    let step = world.access(Command::RevokeToken { by, id: token });
    assert_eq!(step.events, [EventFact::TokenRevoked { token, by: name("root") }]);
    let why = said(world.try_join(1, token, "a"), ErrorCode::InvalidToken);
    assert!(why.contains("revoked"), "{why}");
}

#[test]
fn a_revoked_key_is_never_valid_again_and_its_name_is_free() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 10);
    world.try_join(1, token, "a").unwrap();
    let why = said(world.try_join(2, token, "a"), ErrorCode::NameTaken);
    assert!(why.contains("podmesh nodes revoke a"), "{why}");
    let step = world.revoke(PrincipalKind::Node, "a");
    assert!(step.effects.contains(&Effect::KeyRevoked { key: PublicKey([1; 32]) }));
    assert_eq!(
        step.events,
        [EventFact::KeyRevoked { role: Role::Agent.into(), name: name("a"), by: name("root") }]
    );
    world.restart();
    said(world.try_join(1, token, "a"), ErrorCode::NotEnrolled);
    said(world.try_join(1, token, "other"), ErrorCode::NotEnrolled);
    world.try_join(2, token, "a").unwrap();
    let step = world.revoke(PrincipalKind::User, "a");
    assert!(matches!(&replies(&step)[..], [Err(error)] if error.code == ErrorCode::NotFound));
}

#[test]
fn a_key_that_joins_again_gets_the_new_name_and_role() {
    let mut world = World::new();
    let (viewer, operator) = (world.token(Role::Viewer, 9), world.token(Role::Operator, 9));
    world.try_join(1, viewer, "ann").unwrap();
    world.try_join(1, viewer, "ann").unwrap();
    world.try_join(1, operator, "bob").unwrap();
    let users: Vec<_> = world.users().into_iter().map(|row| (row.name, row.role)).collect();
    assert_eq!(users, [(name("bob"), Role::Operator.into())]);
    // A node may have the same name as a user.
    let token = world.token(Role::Agent, 1);
    world.try_join(2, token, "bob").unwrap();
    world.try_join(3, viewer, "ann").unwrap();
    let names: Vec<_> = world.users().into_iter().map(|row| row.name).collect();
    assert_eq!(names, [name("bob"), name("ann")]);
}

#[test]
fn an_agent_can_only_be_the_node_that_it_joined_as() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 1);
    world.try_join(1, token, "a").unwrap();
    let (code, why) = refusal(&world.hello_from(agent(1, "a"), "b", 1));
    assert_eq!(code, ErrorCode::Forbidden);
    assert!(why.contains("`a`") && why.contains("`b`"), "{why}");
    // No other agent can be that node, not even on the manager's machine.
    let (code, _) = refusal(&world.hello_from(local(), "a", 2));
    assert_eq!(code, ErrorCode::Forbidden);
    for role in [Role::Viewer, Role::Operator, Role::Admin] {
        let caller = Caller { role, ..agent(4, "ann") };
        assert_eq!(refusal(&world.hello_from(caller, "ann", 3)).0, ErrorCode::Forbidden);
    }
    welcome(&world.hello_from(agent(1, "a"), "a", 1));
    assert!(world.node("a").enrolled);
    world.join("c", 5);
    assert!(!world.node("c").enrolled);
}

#[test]
fn a_revoked_node_loses_its_session_and_its_lease_runs_out() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 1);
    world.try_join(1, token, "a").unwrap();
    let epoch = welcome(&world.hello_from(agent(1, "a"), "a", 1)).epoch;
    let mut job = spec();
    job.on_lost = OnLost::Requeue;
    world.submit(job);
    let step = world.revoke(PrincipalKind::Node, "a");
    assert!(step.effects.contains(&Effect::SessionClosed { epoch }));
    assert_eq!(node_state(&mut world, "a"), NodeState::Suspect);
    let step = world.report(1, epoch, vec![started(1, at(1, 1, 1))]);
    assert!(step.changes.is_empty(), "its reports change nothing: {step:?}");
    // Until then its attempts may still run there.
    world.join("b", 2);
    assert_eq!(placed(&world.pass(LEASE_MS - 1)), []);
    assert_eq!(placed(&world.pass(1)), []);
    let placed = [world.pass(MARGIN_MS), world.pass(10_000)].map(|step| placed(&step).len());
    assert_eq!(placed.iter().sum::<usize>(), 1);
}

#[test]
fn refused_joins_are_reported_once_a_second_with_their_number() {
    let mut world = World::new();
    let told = |step: &Step| match step.events.as_slice() {
        [EventFact::JoinsRefused { count, .. }] => *count,
        [] => 0,
        other => panic!("{other:?}"),
    };
    let mut counts = Vec::new();
    for _ in 0..100 {
        counts.push(told(&world.ask_to_join(1, TokenId(9), HASH, "a")));
    }
    world.pass(1_000);
    counts.push(told(&world.ask_to_join(1, TokenId(9), HASH, "a")));
    assert_eq!(counts.iter().filter(|count| **count > 0).count(), 2);
    assert_eq!(counts.iter().sum::<u32>(), 101);
}

#[test]
fn tokens_beyond_the_limits_are_refused_and_unusable_ones_make_room() {
    let mut world = World::new();
    for (ttl_ms, uses) in [(0, 1), (u64::MAX, 1), (1, 0), (1, TOKEN_USES_MAX + 1)] {
        let step = world.ask_token(Role::Agent, ttl_ms, uses);
        assert!(step.changes.is_empty());
        assert!(
            matches!(&replies(&step)[..], [Err(error)] if error.code == ErrorCode::InvalidSpec)
        );
    }
    for _ in 0..TOKENS_MAX {
        world.token(Role::Agent, 1);
    }
    let step = world.ask_token(Role::Agent, HOUR_MS, 1);
    assert!(matches!(&replies(&step)[..], [Err(error)] if error.message.contains("TOKENS_MAX")));
    world.try_join(1, TokenId(5), "a").unwrap();
    let token = world.token(Role::Agent, 1);
    assert_eq!(token, TokenId(TOKENS_MAX as u64 + 1));
    let tokens = world.tokens();
    assert_eq!(tokens.len(), TOKENS_MAX);
    assert!(tokens.iter().all(|row| row.id != TokenId(5)));
}

#[test]
fn a_hello_that_arrives_after_its_key_was_revoked_opens_no_session() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 1);
    world.try_join(1, token, "a").unwrap();
    world.revoke(PrincipalKind::Node, "a");
    for _ in 0..2 {
        let (code, _) = refusal(&world.hello_from(agent(1, "a"), "a", 1));
        assert_eq!(code, ErrorCode::NotEnrolled);
        world.restart();
    }
}

#[test]
fn a_repeated_join_or_revocation_gets_the_same_answer() {
    let mut world = World::new();
    let token = world.token(Role::Agent, 1);
    world.try_join(1, token, "a").unwrap();
    world.restart();
    assert_eq!(world.try_join(1, token, "a"), Ok((Role::Agent, name("a"))));
    let step = world.ask_to_join(1, token, HASH, "a");
    assert!(step.changes.is_empty() && step.events.is_empty(), "{step:?}");
    // With another secret, key or name it is refused.
    for (key, hash, who) in [(1, [6; 32], "a"), (2, HASH, "a"), (1, HASH, "b")] {
        let step = world.ask_to_join(key, token, hash, who);
        let refused = step
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Answered { result: Err(_), .. }));
        assert!(refused, "{step:?}");
    }
    for _ in 0..2 {
        let step = world.revoke(PrincipalKind::Node, "a");
        assert_eq!(replies(&step), [Ok(Answer::KeyRevoked)]);
    }
    said(world.try_join(1, token, "a"), ErrorCode::InvalidToken);
    let fresh = world.token(Role::Agent, 1);
    said(world.try_join(1, fresh, "a"), ErrorCode::NotEnrolled);
}
