//! Whether one failure can lose keys.

use super::*;

fn is(world: &mut World, status: &str, reason: &str) {
    world.look();
    world.is(condition::REDUNDANT, status, reason);
}

fn on(world: &mut World, ordinal: usize, machine: &str) {
    world.pods[ordinal].spec.as_mut().unwrap().node_name = Some(machine.to_owned());
}

#[test]
fn two_machines_that_hold_the_same_are_redundant() {
    let mut world = World::serving("{}");
    is(&mut world, "True", "Redundant");
    world.pods[2] = pod(2, false);
    is(&mut world, "True", "Redundant");
    world.pods[1] = pod(1, false);
    is(&mut world, "False", "OneMemberReady");
    assert!(world.message(condition::REDUNDANT).contains("only demo-0"));
    world.pods.clear();
    is(&mut world, "False", "NoMemberReady");
}

#[test]
fn redundant_is_false_for_a_single_member() {
    let mut world = World::serving("{replicas: 1}");
    is(&mut world, "False", "SingleMember");
    world.is(condition::DEGRADED, "False", "AllWell");
}

#[test]
fn members_on_one_machine_are_not_redundant() {
    let mut world = World::serving("{}");
    for ordinal in 0..3 {
        on(&mut world, ordinal, "node7");
    }
    is(&mut world, "False", "OneMachine");
    assert!(world.message(condition::REDUNDANT).contains("node7"));
    on(&mut world, 2, "node8");
    is(&mut world, "True", "Redundant");
    // The other machine must hold everything.
    world.tell(2, |status| (status.lag_ms, status.fingerprint) = (Some(60_000), "other".to_owned()));
    is(&mut world, "False", "NotConverged");
}

#[test]
fn members_that_differ_are_not_redundant() {
    let mut world = World::serving("{replicas: 2}");
    world.tell(0, |status| (status.lag_ms, status.fingerprint) = (Some(9_000), "a".to_owned()));
    world.tell(1, |status| (status.lag_ms, status.fingerprint) = (None, "b".to_owned()));
    is(&mut world, "False", "NotConverged");
    world.tell(0, |status| status.lag_ms = Some(5));
    world.tell(1, |status| status.lag_ms = Some(5));
    is(&mut world, "True", "Redundant");
    world.tell(1, |status| status.founding = Some(FoundingStatus { at_ms: 7_000 }));
    is(&mut world, "False", "NotConverged");
}

#[test]
fn redundant_is_unknown_without_answers() {
    let mut world = World::serving("{replicas: 2}");
    world.answers.insert("demo-1".to_owned(), Err(PollError::Timeout));
    is(&mut world, "Unknown", "NotSeen");
    let mut world = World::serving("{}");
    world.answers.insert("demo-1".to_owned(), Err(PollError::Timeout));
    is(&mut world, "True", "Redundant");
}
