//! Single decisions, and what parameters are refused.

use std::collections::BTreeSet;

use bitcoin::{Amount, Network};
use proptest::prelude::*;

use super::*;
use crate::ids::{ClientId, FactoryId};
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::units::{Blocks, Height};

const BIRTH: Height = Height(1000);

fn lite() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

fn client(number: u8) -> ClientId {
    ClientId([number; 33])
}

fn member(number: u8, progress: Progress) -> MemberFacts {
    MemberFacts {
        client: client(number),
        capacity: Amount::from_sat(200_000),
        balance: Amount::from_sat(50_000),
        progress,
        warned: Some(Warning::Over),
    }
}

/// A confirmed factory of rung 0 with these members.
fn factory(number: u8, progress: &[Progress]) -> FactoryFacts {
    let params = lite();
    let shape = crate::shape::Shape::new(&params, progress.len() as u32).unwrap();
    FactoryFacts {
        id: FactoryId([number; 32]),
        rung: u32::from(number),
        schedule: params.schedule(BIRTH, shape.levels()).unwrap(),
        params,
        funding: Funding::Confirmed { at: BIRTH },
        root: Root::Unspent,
        stock: Amount::from_sat(400_000),
        members: (0u8..).zip(progress).map(|(n, p)| member(n, *p)).collect(),
        loss_reported: None,
    }
}

fn view(factories: Vec<FactoryFacts>) -> Ladder {
    Ladder {
        // No births: these tests are about other things.
        first: Height(u32::MAX),
        factories,
        given_up: BTreeSet::new(),
    }
}

fn at(height: Height, facts: &FactoryFacts) -> Vec<Due> {
    due(&LadderParams::default(), height, &view(vec![facts.clone()]))
}

fn published(nodes: &[usize], open: u32, latest: Height) -> Root {
    Root::Published {
        nodes: nodes.iter().copied().collect(),
        open,
        latest,
    }
}

#[test]
fn stages_follow_the_calendar_and_the_facts() {
    let mut facts = factory(1, &[Progress::In; 4]);
    let calendar = facts.schedule;
    let stage = |facts: &FactoryFacts, height| Stage::of(facts, height, 144);
    for (height, expected) in [
        (calendar.birth, Stage::Active),
        (calendar.dying_from, Stage::Dying { day: 1 }),
        (
            calendar.dying_from.plus(Blocks(144)),
            Stage::Dying { day: 2 },
        ),
        (
            calendar.publish_from.minus(Blocks(1)),
            Stage::Dying { day: 3 },
        ),
        (calendar.publish_from, Stage::Closing),
        (calendar.expiry, Stage::Expired),
    ] {
        assert_eq!(stage(&facts, height), expected, "{height}");
    }
    facts.root = Root::Reaped { at: BIRTH };
    assert_eq!(stage(&facts, calendar.birth), Stage::Ended);
    facts.root = Root::Unspent;
    facts.funding = Funding::Reorged;
    assert_eq!(stage(&facts, calendar.expiry), Stage::Unborn);
}

#[test]
fn who_is_silent_is_published_from_the_end_of_the_dying_days_on() {
    let other = FactoryId([9; 32]);
    let stay = [
        Progress::In,
        Progress::Invited { tries: 3, rung: 2 },
        Progress::NewChannel { factory: other },
        Progress::Moved { factory: other },
        Progress::HandedOver,
    ];
    let facts = factory(1, &stay);
    let end = facts.schedule.publish_from;
    assert_eq!(at(end.minus(Blocks(1)), &facts), []);
    let list = at(end, &facts);
    let published: Vec<_> = list
        .iter()
        .filter_map(|due| match due {
            Due::Publish {
                client, urgency, ..
            } => Some((client.0[0], *urgency)),
            _ => None,
        })
        .collect();
    assert_eq!(published, [0, 1, 2, 3].map(|n| (n, Urgency::OnTime)));
    assert_eq!(list.len(), 4);
}

#[test]
fn a_part_in_flight_is_published_before_it_expires() {
    let to = FactoryId([9; 32]);
    let expiry = Height(4000);
    let moving = Progress::Moving {
        factory: to,
        in_flight: Some(expiry),
    };
    let facts = factory(1, &[moving, Progress::HandedOver]);
    let by = expiry.minus(facts.schedule.exit_delay).minus(Blocks(36));
    assert_eq!(at(by.minus(Blocks(1)), &facts), []);
    assert!(matches!(at(by, &facts)[..], [Due::Publish { .. }]));
    // Without one the end of the dying days counts, as for everybody.
    assert_eq!(
        publish_by(&facts.schedule, Height(9000)),
        facts.schedule.publish_from
    );
}

#[test]
fn channels_on_the_chain_are_closed_and_keys_recover_the_rest() {
    // 8 clients: a static root over two kickoffs over two leaves of four.
    use Progress::{Gone, HandedOver, OnChain};
    let progress = [
        OnChain, HandedOver, Gone, HandedOver, HandedOver, HandedOver, HandedOver, HandedOver,
    ];
    let mut facts = factory(1, &progress);
    facts.root = published(&[0, 1, 2], 5, Height(6000));
    let end = facts.schedule.publish_from;
    let list = at(end, &facts);
    assert!(matches!(list[0], Due::CloseBeforeT { client: c, .. } if c == client(0)));
    let subtrees: Vec<_> = list
        .iter()
        .filter_map(|due| match due {
            Due::ReapSubtree { part, members, .. } => Some((*part, members.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(
        subtrees,
        [
            (Part::Branch { node: 3 }, 4..8),
            (Part::Channel, 1..2),
            (Part::Channel, 3..4)
        ]
    );
    // A working channel on the chain is left alone until then.
    let before = at(end.minus(Blocks(1)), &facts);
    assert!(
        !before
            .iter()
            .any(|due| matches!(due, Due::CloseBeforeT { .. }))
    );
}

#[test]
fn a_factory_is_reaped_when_all_keys_are_held_and_only_then() {
    let facts = factory(1, &[Progress::HandedOver; 4]);
    assert!(matches!(
        at(Height(2000), &facts)[..],
        [Due::Reap { started: false, .. }]
    ));
    let mut one_left = facts.clone();
    one_left.members[2].progress = Progress::Moved {
        factory: FactoryId([9; 32]),
    };
    assert_eq!(at(Height(2000), &one_left), []);
    let mut sent = facts.clone();
    sent.root = Root::ReapSent;
    assert!(matches!(
        at(Height(2000), &sent)[..],
        [Due::Reap { started: true, .. }]
    ));
    let mut reaped = facts;
    reaped.root = Root::Reaped { at: Height(2000) };
    let params = LadderParams::default();
    assert!(!coins_are_free(&params, Height(2004), &reaped));
    assert!(coins_are_free(&params, Height(2005), &reaped));
    assert_eq!(at(Height(2143), &reaped), []);
    let factory = reaped.id;
    assert_eq!(at(Height(2144), &reaped), [Due::Forget { factory }]);
}

#[test]
fn what_nobody_published_is_reclaimed_at_t_where_that_is_agreed() {
    let mut facts = factory(1, &[Progress::In; 4]);
    facts.params.expiry_policy = ExpiryPolicy::LspReclaim;
    let expiry = facts.schedule.expiry;
    assert_eq!(at(expiry.minus(Blocks(1)), &facts), []);
    let factory = facts.id;
    assert_eq!(at(expiry, &facts), [Due::ReclaimAtT { factory }]);
}

#[test]
fn what_is_too_late_is_reported_once_with_its_amount() {
    let mut facts = factory(1, &[Progress::In, Progress::HandedOver]);
    facts.members[1].balance = Amount::ZERO;
    let latest = facts.latest_start();
    assert!(matches!(
        at(latest, &facts)[..],
        [Due::Publish {
            urgency: Urgency::OnTime,
            ..
        }]
    ));
    let list = at(latest.plus(Blocks(1)), &facts);
    // 200,000 - 50,000, 200,000 of the one that has left, and the stock.
    let at_risk = Amount::from_sat(150_000 + 200_000 + 400_000);
    let report = Due::TooLate {
        factory: facts.id,
        at_risk,
        clients: 2,
        urgency: Urgency::Late,
    };
    assert_eq!(list[0], report);
    assert!(matches!(
        list[1],
        Due::Publish {
            urgency: Urgency::Late,
            ..
        }
    ));
    facts.loss_reported = Some(at_risk);
    let late = at(facts.schedule.expiry.plus(Blocks(500)), &facts);
    assert!(matches!(
        late[..],
        [Due::Publish {
            urgency: Urgency::Expired,
            ..
        }]
    ));
    // Once the root is published, only who is still in it can be lost.
    facts.loss_reported = None;
    facts.members[1].progress = Progress::Gone;
    facts.root = published(&[0], 1, Height(7000));
    let list = at(facts.schedule.expiry, &facts);
    assert!(
        matches!(list[0], Due::TooLate { at_risk, clients: 1, .. } if at_risk == Amount::from_sat(150_000))
    );
}

#[test]
fn a_reorged_funding_is_broadcast_again_and_nothing_is_published() {
    let mut facts = factory(1, &[Progress::In; 2]);
    facts.funding = Funding::Reorged;
    let factory = facts.id;
    for height in [
        Height(2000),
        facts.schedule.publish_from,
        facts.schedule.expiry,
    ] {
        assert_eq!(at(height, &facts), [Due::Rebroadcast { factory }]);
    }
    facts.funding = Funding::Dead { at: Height(2000) };
    assert_eq!(at(Height(2143), &facts), []);
    assert_eq!(at(Height(2144), &facts), [Due::Forget { factory }]);
}

#[test]
fn keys_are_asked_for_when_the_new_funding_is_buried() {
    let mut new = factory(2, &[Progress::In; 2]);
    new.funding = Funding::Confirmed { at: Height(2000) };
    let moved = Progress::Moved { factory: new.id };
    let mut old = factory(1, &[moved, Progress::HandedOver]);
    old.members[0].balance = Amount::ZERO;
    let params = LadderParams::default();
    let asked = |height, old: &FactoryFacts, new: &FactoryFacts| {
        let list = due(&params, height, &view(vec![old.clone(), new.clone()]));
        list.iter().any(|due| matches!(due, Due::Handover { .. }))
    };
    assert!(!asked(Height(2010), &old, &new));
    assert!(asked(Height(2011), &old, &new));
    let mut reorged = new.clone();
    reorged.funding = Funding::Reorged;
    assert!(!asked(Height(2011), &old, &reorged));
    old.members[0].balance = Amount::from_sat(1);
    assert!(!asked(Height(2011), &old, &new));
}

#[test]
fn a_balance_moves_once_the_new_channel_is_usable() {
    let mut new = factory(2, &[Progress::In; 2]);
    new.funding = Funding::Confirmed { at: Height(5400) };
    let old = factory(
        1,
        &[
            Progress::NewChannel { factory: new.id },
            Progress::HandedOver,
        ],
    );
    let params = LadderParams::default();
    let moves = |height| {
        let list = due(&params, height, &view(vec![old.clone(), new.clone()]));
        list.iter().any(|due| matches!(due, Due::Move { .. }))
    };
    assert!(!moves(Height(5401)));
    assert!(moves(Height(5402)));
    assert!(moves(old.schedule.publish_from.minus(Blocks(1))));
    assert!(!moves(old.schedule.publish_from));
}

#[test]
fn expiries_of_a_part_are_section_7_2() {
    let schedule = factory(1, &[Progress::In; 8]).schedule;
    let height = schedule.publish_from.minus(Blocks(1));
    let part = part_expiries(height, &schedule, &schedule).unwrap();
    assert_eq!(part.outgoing, height.plus(Blocks(228 + 144)));
    assert_eq!(part.incoming, part.outgoing.plus(Blocks(228 + 228 + 72)));
    assert!(part.outgoing.plus(Blocks(48)) < schedule.last_spend);
    let last = last_part(&schedule, Blocks(228));
    let edge = part_expiries(last, &schedule, &schedule).unwrap();
    assert_eq!(edge.outgoing.plus(Blocks(49)), schedule.last_spend);
    assert!(part_expiries(last.plus(Blocks(1)), &schedule, &schedule).is_err());
}

#[test]
fn parts_are_small_without_fee_coins() {
    let sat = Amount::from_sat;
    assert_eq!(
        largest_part(sat(10_000_000), sat(20_000), false),
        sat(100_000)
    );
    assert_eq!(
        largest_part(sat(1_000_000), sat(20_000), false),
        sat(20_000)
    );
    assert_eq!(largest_part(sat(5_000), sat(20_000), false), sat(5_000));
    assert_eq!(
        largest_part(sat(1_000_000), sat(20_000), true),
        sat(250_000)
    );
    assert_eq!(largest_part(sat(0), sat(20_000), true), sat(0));
}

fn with_births(facts: FactoryFacts, first: Height) -> Ladder {
    Ladder {
        first,
        ..view(vec![facts])
    }
}

fn invitations(height: Height, ladder: &Ladder) -> Vec<(u8, u32)> {
    let list = due(&LadderParams::default(), height, ladder);
    list.iter()
        .filter_map(|due| match due {
            Due::Invite { attempt, to, .. } => Some((*attempt, *to)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_client_is_invited_three_times_and_never_twice_to_one_birth() {
    let mut facts = factory(0, &[Progress::In, Progress::HandedOver]);
    let planned = |rung| LadderParams::default().planned(BIRTH, rung);
    for (rung, attempt) in [(30u32, 1u8), (31, 2), (32, 3)] {
        let ladder = with_births(facts.clone(), BIRTH);
        assert_eq!(invitations(planned(rung), &ladder), [(attempt, rung)]);
        facts.members[0].progress = Progress::Invited {
            tries: attempt,
            rung,
        };
        let ladder = with_births(facts.clone(), BIRTH);
        assert_eq!(invitations(planned(rung), &ladder), []);
        let mut born = ladder.clone();
        born.factories[0].rung = rung;
        born.factories[0].members[0].progress = Progress::In;
        assert_eq!(
            invitations(planned(rung), &born),
            [],
            "that day's is born already"
        );
    }
    // None before the dying days, none so late that the move would not end in time.
    facts.members[0].progress = Progress::In;
    let ladder = with_births(facts.clone(), BIRTH);
    assert_eq!(invitations(planned(29), &ladder), []);
    let end = facts.schedule.publish_from;
    assert_eq!(invitations(end.minus(Blocks(54)), &ladder).len(), 1);
    assert_eq!(invitations(end.minus(Blocks(53)), &ladder), []);
}

#[test]
fn births_of_days_that_have_passed_are_not_caught_up_with() {
    let params = LadderParams::default();
    let mut ladder = Ladder {
        first: BIRTH,
        ..Ladder::default()
    };
    assert_eq!(due(&params, BIRTH.minus(Blocks(1)), &ladder), []);
    let late = BIRTH.plus(Blocks(144 * 30 + 143));
    let planned = BIRTH.plus(Blocks(144 * 30));
    assert_eq!(
        due(&params, late, &ladder),
        [Due::Birth { rung: 30, planned }]
    );
    ladder.given_up.insert(30);
    assert_eq!(due(&params, late, &ladder), []);
    assert_eq!(due(&params, late.plus(Blocks(1)), &ladder).len(), 1);
}

#[test]
fn warnings_grow_louder_and_are_told_once() {
    let mut facts = factory(1, &[Progress::In, Progress::HandedOver]);
    facts.members.iter_mut().for_each(|m| m.warned = None);
    let calendar = facts.schedule;
    for (height, expected) in [
        (calendar.dying_from.minus(Blocks(1008)), Warning::Early),
        (calendar.dying_from, Warning::Dying),
        (calendar.publish_from.minus(Blocks(144)), Warning::LastDay),
        (calendar.publish_from, Warning::Over),
    ] {
        let warn = Due::Warn {
            client: client(0),
            factory: facts.id,
            level: expected,
        };
        let list = at(height, &facts);
        assert!(list.contains(&warn), "{list:?}");
        assert_eq!(list.iter().filter(|due| due.rank() == 7).count(), 1);
        facts.members[0].warned = Some(expected);
        assert!(!at(height, &facts).contains(&warn));
    }
}

#[test]
fn notices_say_when_what_cost_and_otherwise() {
    let mut facts = factory(1, &[Progress::In; 2]);
    let fee = Amount::from_sat(150);
    let calendar = facts.schedule;
    let early = notice(Warning::Early, &facts, Terms { fee });
    let from = format!("from block {}", calendar.dying_from);
    assert!(early.what.contains(&from) && early.cost.starts_with("150 sat"));
    assert!(early.otherwise.contains("your own on-chain output"));
    assert_eq!(early.by, calendar.publish_from);
    facts.params.expiry_policy = ExpiryPolicy::LspReclaim;
    let over = notice(Warning::Over, &facts, Terms::default());
    assert!(over.action.starts_with("Publish your exit at once"));
    let words = [0, 1, 5, 6, 143, 144, 4320].map(|n| blocks_in_words(Blocks(n)));
    let expected = [
        "now",
        "about 10 minutes",
        "about 50 minutes",
        "about 1 hour",
        "about 23 hours",
        "about 1 day",
        "about 30 days",
    ];
    assert_eq!(words, expected);
}

#[test]
fn defaults_hold_for_every_profile() {
    for profile in [Profile::Lite, Profile::Standard, Profile::Deep] {
        let params = FactoryParams::profile(profile, Network::Regtest);
        LadderParams::default().validate(&params, 64).unwrap();
    }
}

#[test]
fn what_cannot_hold_is_named() {
    for (name, change) in [
        (
            "rungs",
            (|p, _| p.rungs = 34) as fn(&mut LadderParams, &mut FactoryParams),
        ),
        ("dying", |p, _| p.invitations = 4),
        ("dying", |p, _| p.move_time = 91),
        ("dying", |p, _| p.birth_slip = 91),
        // Births that are not a whole number of days after each other cost one invitation.
        ("dying", |p, f| {
            f.active = 4319 - 90;
            f.dying = 432;
            p.rungs = 33;
        }),
        ("dying", |_, f| {
            f.late_margin = 210;
        }),
        ("usable_depth", |p, _| p.usable_depth = 13),
        ("spacing", |p, _| p.spacing = 0),
        ("bury_depth", |p, _| p.bury_depth = 1),
        ("early_notice", |p, _| p.early_notice = 4321),
        ("expiry_margin + exit_delay", |p, f| {
            p.reap_depth = 144;
            p.bury_depth = 144;
            f.expiry_margin = 150;
            f.late_margin = 144;
            f.step = 2;
            f.exit_margin = 0;
            f.dying = 720;
            p.rungs = 35;
        }),
    ] {
        let (mut ladder, mut factory) = (LadderParams::default(), lite());
        change(&mut ladder, &mut factory);
        let error = ladder.validate(&factory, 64).expect_err(name);
        assert!(error.to_string().starts_with(name), "{name}: {error}");
    }
}

#[test]
fn the_smallest_compressed_ladder_is_the_smallest() {
    let least = LadderParams::LEAST_SPACING;
    let network = Network::Regtest;
    assert!(LadderParams::compressed(network, 4, least).is_ok());
    assert!(LadderParams::compressed(network, 4, least - 1).is_err());
    assert!(LadderParams::compressed(network, 3, 18).is_err());
    // With one block less anywhere a rule breaks.
    let Compressed { factory, ladder } = LadderParams::compressed(network, 5, 18).unwrap();
    let life = factory.active + factory.dying;
    assert_eq!((life, ladder.rungs), (90, 5));
    for change in [(|f| f.dying -= 1) as fn(&mut FactoryParams), |f| {
        f.active -= 1
    }] {
        let mut short = factory.clone();
        change(&mut short);
        assert!(ladder.validate(&short, 8).is_err());
    }
    let mut short = factory.clone();
    short.expiry_margin = part_expiry_margin(&factory) - 1;
    assert!(ladder.validate(&short, 8).is_err());
}

/// The least margin under which a part may begin in the last block before `E`.
fn part_expiry_margin(factory: &FactoryParams) -> u32 {
    let levels = |clients| crate::shape::most_levels(factory, clients).unwrap();
    let longer = factory.exit_delay(levels(8)).0 - factory.exit_delay(levels(2)).0;
    factory.late_margin + 193 + longer
}

proptest! {
    #[test]
    fn every_compressed_ladder_is_valid(rungs in 4u32..100, spacing in 4u32..=144) {
        let made = LadderParams::compressed(Network::Regtest, rungs, spacing);
        prop_assert!(made.is_ok(), "{made:?}");
    }
}
