use podmesh_protocol::access::PublicKey;
use podmesh_protocol::client::PrincipalKind;

use super::*;

const OLD: PublicKey = PublicKey([1; 32]);
const NEW: PublicKey = PublicKey([2; 32]);

impl World {
    fn renew(&mut self, old: PublicKey, new: PublicKey) -> (Step, Result<Answer, ErrorReply>) {
        let asked = Command::RenewKey { old, new };
        let step = self.give(Input::Command(TICKET, asked));
        let reply = replies(&step).pop().unwrap();
        (step, reply)
    }

    fn used(&mut self, key: PublicKey) -> Step {
        self.give(Input::RenewedKeyUsed { key })
    }
}

/// Returns a world with a node `a` that has the old key.
fn world() -> World {
    let mut world = World::new();
    let token = world.token(Role::Agent, 1);
    world.try_join(1, token, "a").unwrap();
    world
}

fn may_say_hello(world: &mut World, key: PublicKey) -> bool {
    let caller = Caller { role: Role::Agent, name: name("a"), key: Some(key) };
    let step = world.connect_as(caller, hello("a", 1), 9);
    messages(&step).iter().any(|message| matches!(message, ToPeer::Welcome(_)))
}

#[test]
fn both_keys_are_valid_until_the_new_one_is_used() {
    let mut world = world();
    let (step, reply) = world.renew(OLD, NEW);
    assert_eq!(reply, Ok(Answer::KeyRenewed));
    let enrolled =
        Effect::KeyEnrolled { key: NEW, role: Role::Agent, name: name("a"), renews: true };
    assert!(step.effects.contains(&enrolled), "{step:?}");
    // The answer was lost, the manager has restarted, and the agent asks again.
    world.restart();
    let (step, reply) = world.renew(OLD, NEW);
    assert_eq!((reply, step.changes.len()), (Ok(Answer::KeyRenewed), 0));
    assert!(may_say_hello(&mut world, OLD) && may_say_hello(&mut world, NEW));

    let step = world.used(NEW);
    assert_eq!(step.events, [EventFact::KeyRenewed { role: Role::Agent.into(), name: name("a") }]);
    assert_eq!(step.effects, [Effect::KeyRevoked { key: OLD }]);
    world.restart();
    assert!(!may_say_hello(&mut world, OLD) && may_say_hello(&mut world, NEW));
    assert!(world.used(NEW).changes.is_empty(), "the first use is reported once");
    assert_eq!(world.renew(OLD, PublicKey([3; 32])).1.unwrap_err().code, ErrorCode::NotEnrolled);
    assert_eq!(world.renew(NEW, PublicKey([3; 32])).1, Ok(Answer::KeyRenewed));
}

#[test]
fn a_second_renewal_replaces_the_first() {
    let mut world = world();
    world.renew(OLD, NEW).1.unwrap();
    let step = world.renew(OLD, PublicKey([3; 32])).0;
    assert!(step.effects.contains(&Effect::KeyRevoked { key: NEW }), "{step:?}");
    assert!(world.used(NEW).changes.is_empty());
    assert!(may_say_hello(&mut world, OLD));
    // A key that has not been used yet cannot be renewed.
    let refused = world.renew(PublicKey([3; 32]), PublicKey([4; 32])).1.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotEnrolled);
    // A key that is already known cannot be added again.
    assert_eq!(world.renew(OLD, NEW).1.unwrap_err().code, ErrorCode::InvalidSpec);
    assert_eq!(world.renew(OLD, OLD).1.unwrap_err().code, ErrorCode::InvalidSpec);
}

#[test]
fn a_revoked_node_cannot_return_with_a_renewed_key() {
    let mut world = world();
    world.renew(OLD, NEW).1.unwrap();
    let step = world.revoke(PrincipalKind::Node, "a");
    for key in [OLD, NEW] {
        assert!(step.effects.contains(&Effect::KeyRevoked { key }), "{step:?}");
    }
    world.restart();
    assert!(world.used(NEW).changes.is_empty());
    assert!(!may_say_hello(&mut world, OLD) && !may_say_hello(&mut world, NEW));
    assert_eq!(world.renew(OLD, NEW).1.unwrap_err().code, ErrorCode::NotEnrolled);
    // The refusal of a key that was never used gives the real reason.
    let token = world.token(Role::Agent, 1);
    let refused = world.try_join(2, token, "a").unwrap_err();
    assert!(refused.message.contains("was revoked"), "{refused:?}");
}
