use super::*;
use podmesh_protocol::access::{PublicKey, TokenId};
use podmesh_protocol::client::{Principal, TokenState, TokenView, UserView};
use podmesh_protocol::limits::{DURATION_MS_MAX, KEYS_MAX, TOKEN_USES_MAX, TOKENS_MAX};

const HOUR_MS: u64 = 3_600_000;

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

/// The hash of a token's secret, in these tests.
fn hash(token: u64) -> [u8; 32] {
    [token as u8; 32]
}

impl World {
    /// Token after token; each has the [`hash`] of its number.
    pub(super) fn token(&mut self, role: Role, uses: u32) -> u64 {
        let next = self.model.tokens.last_key_value().map_or(1, |(id, _)| id.0 + 1);
        let step = self.request_token(hash(next), role, HOUR_MS, uses);
        let Some(Effect::TokenAnswered { question: 8, result: Ok((id, _)) }) = step.effects.last()
        else {
            panic!("{step:?}")
        };
        assert_eq!(id.0, next);
        next
    }

    fn request_token(&mut self, secret_hash: [u8; 32], role: Role, ttl_ms: u64, uses: u32) -> Step {
        let by = name("root");
        self.give(Input::TokenRequested { question: 8, by, secret_hash, role, ttl_ms, uses })
    }

    pub(super) fn try_join(&mut self, token: u64, number: u8, called: &str) -> Step {
        self.join_with(token, hash(token), number, called)
    }

    fn join_with(&mut self, token: u64, secret: [u8; 32], number: u8, called: &str) -> Step {
        self.give(Input::JoinRequested {
            question: 5,
            key: key(number),
            token: TokenId(token),
            secret_hash: secret,
            name: name(called),
        })
    }

    /// Joins, and returns who that is from then on.
    fn enrol(&mut self, role: Role, number: u8, called: &str) -> Caller {
        let token = self.token(role, 1);
        assert_eq!(joined(&self.try_join(token, number, called)), Ok((role, name(called))));
        Caller { role, name: name(called), key: Some(key(number)) }
    }

    pub(super) fn revoke(&mut self, kind: Principal, called: &str) -> Step {
        let (peer, by) = (peer(900), name("root"));
        self.give(Input::RevokeRequested { peer, request: 4, by, kind, name: name(called) })
    }

    fn revoke_token(&mut self, id: u64) -> Step {
        let (peer, by, id) = (peer(900), name("root"), TokenId(id));
        self.give(Input::TokenRevokeRequested { peer, request: 4, by, id })
    }

    fn tokens(&mut self, before: Option<u64>, limit: u32) -> Vec<TokenView> {
        let before = before.map(TokenId);
        let input = Input::TokensListRequested { peer: peer(900), request: 4, before, limit };
        let Some(Ok(ReplyBody::Tokens(rows))) = replies(&self.give(input)).pop() else { panic!() };
        rows
    }

    fn users(&mut self, after: Option<&str>, limit: u32) -> Vec<UserView> {
        let after = after.map(name);
        let input = Input::UsersRequested { peer: peer(900), request: 4, after, limit };
        let Some(Ok(ReplyBody::Users(rows))) = replies(&self.give(input)).pop() else { panic!() };
        rows
    }
}

fn joined(step: &Step) -> Result<(Role, Name), ErrorReply> {
    match step.effects.last() {
        Some(Effect::JoinAnswered { question: 5, result }) => result.clone(),
        other => panic!("{other:?}"),
    }
}

/// The code and message of a refused join that changed nothing.
fn not_joined(step: &Step) -> (ErrorCode, String) {
    assert_eq!((step.changes.len(), step.effects.len()), (0, 1), "{step:?}");
    let error = joined(step).unwrap_err();
    (error.code, error.message)
}

fn refused(step: &Step) -> (ErrorCode, String) {
    assert!(step.changes.is_empty() && step.events.is_empty(), "{step:?}");
    let Some(Err(error)) = replies(step).pop() else { panic!("{step:?}") };
    (error.code, error.message)
}

fn states(world: &mut World) -> Vec<(u64, TokenState)> {
    world.tokens(None, 99).iter().map(|token| (token.id.0, token.state)).collect()
}

#[test]
fn a_token_lets_one_in_and_everybody_is_told() {
    let mut world = World::new();
    let step = world.request_token(hash(1), Role::Agent, HOUR_MS, 1);
    let expires = world.now.wall_ms + HOUR_MS;
    assert_eq!(step.events, [EventFact::TokenCreated(TokenId(1), Role::Agent, name("root"))]);
    let answer = Effect::TokenAnswered { question: 8, result: Ok((TokenId(1), expires)) };
    assert_eq!(step.effects, [answer]);
    assert_eq!(
        world.tokens(None, 99),
        [TokenView {
            id: TokenId(1),
            role: Role::Agent,
            state: TokenState::Usable,
            expires_wall_ms: expires,
            uses_left: 1,
            created_by: name("root"),
        }]
    );

    let step = world.try_join(1, 7, "a");
    assert_eq!(step.events, [EventFact::Enrolled(Role::Agent, name("a"), TokenId(1))]);
    let result = Ok((Role::Agent, name("a")));
    assert_eq!(
        step.effects,
        [
            Effect::KeyEnrolled { key: key(7), role: Role::Agent, name: name("a") },
            Effect::JoinAnswered { question: 5, result }
        ]
    );
    assert_eq!(states(&mut world), [(1, TokenState::Used)]);
    assert_eq!(world.users(None, 99), [], "a node is no user");
}

#[test]
fn what_is_no_good_as_a_token_is_told_apart_with_what_to_do() {
    let mut world = World::new();
    let used = world.token(Role::Agent, 1);
    world.try_join(used, 1, "a");
    let revoked = world.token(Role::Agent, 1);
    let step = world.revoke_token(revoked);
    assert_eq!(step.events, [EventFact::TokenRevoked(TokenId(revoked), name("root"))]);
    let usable = world.token(Role::Agent, 1);
    let cases = [
        (world.try_join(used, 2, "b"), "token 1 has been used already"),
        (world.try_join(revoked, 2, "b"), "token 2 was revoked"),
        (world.try_join(99, 2, "b"), "knows no such join token"),
        (world.join_with(usable, [0; 32], 2, "b"), "the secret of join token 3 is wrong"),
        // Without the secret nothing is said about the token.
        (world.join_with(used, [0; 32], 1, "a"), "the secret of join token 1 is wrong"),
    ];
    for (step, why) in &cases {
        let (code, message) = not_joined(step);
        let good = message.contains(why) && message.contains("podmesh token create");
        assert!(code == ErrorCode::InvalidToken && good, "{code:?} {message}");
        let [EventFact::JoinsRefused(said, 1)] = &step.events[..] else { panic!("{step:?}") };
        assert!(said.contains(why) && !said.contains("create"), "{said}");
    }
    // By the manager's wall clock, to the millisecond, over a restart too.
    world.pass(HOUR_MS - 1);
    world.restart();
    assert!(states(&mut world).contains(&(usable, TokenState::Usable)));
    world.pass(1);
    let (_, message) = not_joined(&world.try_join(usable, 2, "b"));
    assert!(message.contains("token 3 has expired"), "{message}");
    assert_eq!(
        states(&mut world),
        [(3, TokenState::Expired), (2, TokenState::Revoked), (1, TokenState::Used)]
    );
    let (code, message) = refused(&world.revoke_token(9));
    assert!(code == ErrorCode::NotFound && message.contains("token list"), "{message}");
    let again = world.revoke_token(revoked);
    assert!(again.events.is_empty() && again.changes.is_empty());
    assert_eq!(replies(&again), [Ok(ReplyBody::TokenRevoked)]);
}

#[test]
fn a_token_has_as_many_uses_as_it_was_given() {
    let mut world = World::new();
    let token = world.token(Role::Viewer, 2);
    joined(&world.try_join(token, 1, "a")).unwrap();
    assert_eq!(world.tokens(None, 1)[0].uses_left, 1);
    joined(&world.try_join(token, 2, "b")).unwrap();
    world.restart();
    assert_eq!(not_joined(&world.try_join(token, 3, "c")).0, ErrorCode::InvalidToken);
}

#[test]
fn who_has_joined_and_joins_again_is_who_they_were() {
    let mut world = World::new();
    world.enrol(Role::Operator, 1, "eve");
    // The answer was lost: the same token says the same again, used up or not.
    world.restart();
    let step = world.try_join(1, 1, "eve");
    assert_eq!(joined(&step), Ok((Role::Operator, name("eve"))));
    assert!(step.changes.is_empty() && step.events.is_empty(), "{step:?}");
    // Another token gives nothing more, and is used up.
    let token = world.token(Role::Admin, 1);
    let step = world.try_join(token, 1, "adam");
    assert_eq!(joined(&step), Ok((Role::Operator, name("eve"))));
    assert_eq!(step.events, [EventFact::Enrolled(Role::Operator, name("eve"), TokenId(token))]);
    assert_eq!(not_joined(&world.try_join(token, 2, "adam")).0, ErrorCode::InvalidToken);
    assert_eq!(world.users(None, 99).len(), 1);
}

#[test]
fn no_two_nodes_and_no_two_users_have_one_name() {
    let mut world = World::new();
    world.enrol(Role::Agent, 1, "a");
    world.enrol(Role::Viewer, 2, "a");
    for (role, what) in [(Role::Agent, "nodes"), (Role::Admin, "users")] {
        let token = world.token(role, 1);
        let (code, message) = not_joined(&world.try_join(token, 3, "a"));
        let hint = format!("podmesh {what} revoke a");
        assert!(code == ErrorCode::NameTaken && message.contains(&hint), "{message}");
        assert_eq!(world.tokens(None, 1)[0].uses_left, 1, "nothing is used up");
    }
    // A revoked one's name is free.
    world.revoke(Principal::User, "a");
    joined(&world.try_join(4, 3, "a")).unwrap();
    assert_eq!(world.users(None, 99)[0].key, key(3));
}

#[test]
fn a_revoked_key_never_comes_back() {
    let mut world = World::new();
    let caller = world.enrol(Role::Agent, 1, "a");
    let step = world.revoke(Principal::Node, "a");
    assert_eq!(step.events, [EventFact::KeyRevoked(Role::Agent, name("a"), name("root"))]);
    assert_eq!(step.effects[0], Effect::KeyRevoked { key: key(1) });
    assert_eq!(replies(&step), [Ok(ReplyBody::Revoked)]);
    let again = world.revoke(Principal::Node, "a");
    assert!(again.changes.is_empty() && again.events.is_empty(), "it is safe to repeat");
    assert_eq!(replies(&again), [Ok(ReplyBody::Revoked)]);
    let fresh = world.token(Role::Agent, 1);
    for _ in 0..2 {
        for token in [1, fresh] {
            let (code, message) = not_joined(&world.try_join(token, 1, "a"));
            assert!(code == ErrorCode::NotEnrolled && message.contains("--data-dir"), "{message}");
        }
        // What its connection sent before it was cut may come late.
        let (code, _) = refusal(&world.connect_as(caller.clone(), hello("a", 1), 1));
        assert_eq!(code, ErrorCode::NotEnrolled);
        world.restart();
    }
    let (code, message) = refused(&world.revoke(Principal::User, "a"));
    assert!(code == ErrorCode::NotFound && message.contains("podmesh users"), "{message}");
}

#[test]
fn a_revoked_node_is_lost_and_what_it_ran_is_tried_elsewhere_when_it_must_have_ended() {
    let mut world = World::new();
    let caller = world.enrol(Role::Agent, 1, "a");
    let epoch = welcome(&world.connect_as(caller, hello("a", 1), 1)).epoch;
    let mut requeued = spec();
    requeued.on_lost = OnLost::Requeue;
    world.submit(requeued);
    world.submit(spec());
    world.report(1, epoch, vec![started(1, at(1, 1, 1)), started(2, at(2, 1, 1))]);
    world.join("b", 2);

    let step = world.revoke(Principal::Node, "a");
    assert!(step.effects.contains(&Effect::SessionClosed { epoch }), "{step:?}");
    assert_eq!(step.events[1..], [EventFact::NodeLost(name("a"))]);
    assert_eq!(node_state(&mut world, "a"), NodeState::Lost);
    let late = world.report(1, epoch, vec![exited(3, at(1, 1, 1), 0)]);
    assert!(matches!(messages(&late)[..], [ToPeer::HelloAgain(_)]), "{late:?}");
    // The agent may believe in its lease until it ends.
    assert_eq!(ends(&world.pass(LEASE_MS + MARGIN_MS - 1)), []);
    let step = world.pass(1);
    assert_eq!(ends(&step).len(), 1, "{step:?}");
    assert_eq!(placed(&step), [(at(1, 1, 2), "b")]);
    assert_eq!(world.counts(2), [0, 1, 0, 0, 0], "what waits for its node goes on waiting");
}

#[test]
fn a_node_without_a_session_that_is_revoked_is_lost_when_its_lease_ends() {
    let mut world = World::new();
    let caller = world.enrol(Role::Agent, 1, "a");
    world.connect_as(caller, hello("a", 1), 1);
    world.restart();
    world.pass(LEASE_MS - 1);
    let step = world.revoke(Principal::Node, "a");
    assert_eq!(step.events.len(), 1, "{step:?}");
    assert_eq!(world.pass(1).events, [EventFact::NodeLost(name("a"))]);
}

#[test]
fn an_agent_is_the_node_that_it_joined_as_and_nobody_else_is() {
    let mut world = World::new();
    let agent = world.enrol(Role::Agent, 1, "a");
    let (code, message) = refusal(&world.connect_as(agent.clone(), hello("b", 1), 1));
    assert!(code == ErrorCode::Forbidden && message.contains("joined as node `a`"), "{message}");
    let admin = world.enrol(Role::Admin, 2, "a");
    for caller in [admin, local()] {
        let (code, message) = refusal(&world.connect_as(caller, hello("a", 1), 1));
        assert!(code == ErrorCode::NameTaken && message.contains("nodes revoke a"), "{message}");
    }
    let unknown = Caller { key: Some(key(9)), ..agent.clone() };
    let (code, _) = refusal(&world.connect_as(unknown, hello("a", 1), 1));
    assert_eq!(code, ErrorCode::NotEnrolled);
    welcome(&world.connect_as(agent, hello("a", 1), 1));
    assert!(world.node("a").enrolled);
    world.join("c", 3);
    assert!(!world.node("c").enrolled, "an agent on the manager's machine needs no key");
}

#[test]
fn limits_are_named() {
    let mut world = World::new();
    for (ttl_ms, uses, limit) in [
        (0, 1, "DURATION_MS_MAX"),
        (DURATION_MS_MAX + 1, 1, "DURATION_MS_MAX"),
        (1, 0, "TOKEN_USES_MAX"),
        (1, TOKEN_USES_MAX + 1, "TOKEN_USES_MAX"),
    ] {
        let step = world.request_token(hash(1), Role::Agent, ttl_ms, uses);
        let [Effect::TokenAnswered { result: Err(error), .. }] = &step.effects[..] else {
            panic!("{step:?}")
        };
        assert!(step.changes.is_empty() && error.message.contains(limit), "{error}");
        assert_eq!(error.code, ErrorCode::BadMessage);
    }
}

/// A core with this many tokens and keys, without the checks of each step.
fn full(tokens: usize, keys: usize) -> World {
    let mut world = World::new();
    let created_by = name("root");
    for id in (1..=tokens as u64).map(TokenId) {
        let token = crate::step::TokenRow {
            id,
            secret_hash: hash(id.0),
            role: Role::Viewer,
            expires_wall_ms: u64::MAX,
            uses_left: 1,
            created_by: created_by.clone(),
            revoked: false,
        };
        world.model.tokens.insert(id, token);
    }
    for number in 0..keys as u32 {
        let mut key = PublicKey([255; 32]);
        key.0[..4].copy_from_slice(&number.to_be_bytes());
        let row = crate::step::KeyRow {
            key,
            role: Role::Viewer,
            name: name(&format!("u{number:06}")),
            token: TokenId(1),
            enrolled_wall_ms: 1,
            revoked: false,
        };
        world.model.keys.insert(key, row);
    }
    world.restart();
    world
}

#[test]
fn a_full_table_drops_the_oldest_tokens_that_are_of_no_use_and_never_a_key() {
    let mut world = full(TOKENS_MAX, KEYS_MAX);
    let step = world.request_token(hash(0), Role::Agent, 1, 1);
    let [Effect::TokenAnswered { result: Err(error), .. }] = &step.effects[..] else { panic!() };
    assert!(error.message.contains("TOKENS_MAX") && error.code == ErrorCode::Overloaded);
    world.revoke_token(TOKENS_MAX as u64);
    world.revoke_token(3);
    let next = world.token(Role::Agent, 1);
    assert_eq!(next, TOKENS_MAX as u64 + 1);
    assert!(!world.model.tokens.contains_key(&TokenId(3)), "the oldest goes first");
    world.restart();
    assert_eq!(world.token(Role::Agent, 1), next + 1, "no number is given twice");
    assert!(!world.model.tokens.contains_key(&TokenId(TOKENS_MAX as u64)));

    let (code, message) = not_joined(&world.try_join(1, 1, "a"));
    assert!(code == ErrorCode::Overloaded && message.contains("KEYS_MAX"), "{message}");

    // Pages neither repeat nor leave out anybody.
    let first = world.tokens(None, u32::MAX);
    assert_eq!((first.len(), first[0].id.0), (1000, next + 1));
    assert_eq!(world.tokens(Some(first[999].id.0), 1)[0].id.0, first[999].id.0 - 1);
    let first = world.users(None, u32::MAX);
    assert_eq!((first.len(), first[0].name.as_str()), (1000, "u000000"));
    assert_eq!(world.users(Some("u000999"), 1)[0].name, name("u001000"));
}

#[test]
fn refusals_are_said_once_a_second_and_reason_with_how_many() {
    let mut world = World::new();
    let many = |world: &mut World, why: &str, count| {
        world.give(Input::ConnectionsRefused { why: why.into(), count }).events
    };
    let said = |why: &str, count| EventFact::ConnectionsRefused(why.into(), count);
    assert_eq!(many(&mut world, "no key", 2), [said("no key", 2)]);
    assert_eq!(many(&mut world, "no key", 3), []);
    world.pass(999);
    assert_eq!(many(&mut world, "no key", 4), []);
    assert_eq!(many(&mut world, "too many", 1), [said("too many", 1)]);
    // A join that is refused for the same words is another matter.
    assert_eq!(world.try_join(1, 1, "a").events.len(), 1);
    assert_eq!(world.try_join(2, 1, "a").events, []);
    assert_eq!(world.pass(1).events, [said("no key", 7)]);
    let step = world.pass(999);
    assert!(matches!(&step.events[..], [EventFact::JoinsRefused(_, 1)]), "{step:?}");
    world.pass(1_000);
    world.pass(1_000);
    assert_eq!(world.core.next_wakeup(), None, "what is over is forgotten");
    assert_eq!(many(&mut world, "no key", 1), [said("no key", 1)]);
}

#[test]
fn strangers_do_not_fill_the_events_with_reasons() {
    let mut world = World::new();
    let mut events = 0;
    for n in 0..1_000 {
        let why = format!("reason {n}");
        events += world.give(Input::ConnectionsRefused { why, count: 1 }).events.len();
    }
    assert_eq!(events, 17);
    let step = world.pass(1_000);
    assert_eq!(step.events, [EventFact::ConnectionsRefused("other reasons".into(), 983)]);
}
