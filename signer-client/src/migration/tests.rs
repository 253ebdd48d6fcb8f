//! Moves against a node and a coordinator that do as the test says, on a real store: through crashes, refusals, reorgs.

// The same chain as for sessions.
#[path = "../../tests/session/chain.rs"]
pub(crate) mod chain;
mod world;

use std::sync::Arc;

use bitcoin::{Amount, Network};
use channel_host::{LeafId as Leaf, Msat, PaymentHash};
use factory_tree::ceremony::message::{Invitation, Round};
use factory_tree::ids::{Attempt, CeremonyId, FactoryId, LeafId};
use factory_tree::keys::unmask_secret;
use factory_tree::ladder::{Notice as Words, Warning};
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::units::{Blocks, Height};
use proto::wire::{FromClient, Notice, PartTerms};

use super::invited::Declined;
use super::mover::part_over;
use super::{Answer, calendar, wanted};
use crate::event::Event;
use crate::lightning::{ChannelView as StoredView, factory_of, leaf_id};
use crate::store::{Agreed, Handover, PartEnd, PartProgress, SharedStore, Token};
use world::{BALANCE, FEE, World, kit};

#[tokio::test]
async fn a_balance_moves_to_the_last_thousandth_and_the_keys_follow() {
    let mut world = World::new(BALANCE).await;
    let sizes = world.move_all(FEE.to_sat() * 1000).await;
    assert!(sizes.len() > 1, "{sizes:?}");
    assert_eq!(sizes.iter().sum::<u64>() + 70_000, BALANCE);
    assert_eq!(world.bank.books().arrived, BALANCE - 70_000);
    // Not before the younger factory is safe.
    world.look().await;
    assert_eq!((world.said(), world.handover().await), (None, None));
    assert!(world.bank.books().gate_open);
    world.deep().await;
    world.look().await;
    let Some(FromClient::Handover(keys)) = world.said() else {
        panic!("no keys");
    };
    assert!(!world.bank.books().gate_open);
    let public = world.client.inner.keys.join_public(world.old.join_nonce);
    let read = |masked, expected| unmask_secret(masked, expected, &world.lsp);
    assert!(read(&keys.keys.factory, &public.factory_key).is_ok());
    assert!(read(&keys.keys.channel, &public.channel_key).is_ok());
    assert_eq!(world.handover().await, Some(Handover::Sent));
    let (factory, height) = (world.old.factory_id, world.height());
    world.answer(Answer::Taken(factory)).await;
    assert_eq!(world.handover().await, Some(Handover::Taken(height)));
    assert!(world.bank.books().retired);
    assert!(world.event(|event| matches!(event, Event::HandedOver { .. })));
    // It is over: nothing is said any more.
    world.crash();
    world.look().await;
    assert_eq!(world.said(), None);
}

#[tokio::test]
async fn what_was_bought_moves_as_well_and_its_keys_follow() {
    const BOUGHT: u64 = 7_000_000;
    let mut world = World::with_bought(BALANCE, BOUGHT).await;
    let (old, new) = world.bank.bought.unwrap();
    let named = |leaf: Leaf| Some(LeafId(leaf.0));
    // The one with the most goes first, and into the one with the most room.
    let first = world.asked().await;
    assert_eq!((first.from_leaf, first.to_leaf), (None, None));
    let terms = world.terms(&first, FEE.to_sat() * 1000);
    world.crash();
    world.answer(Answer::Terms(terms)).await;
    world.settle().await;
    {
        let mut books = world.bank.books();
        books.balance = 1;
        books.room = 1_000_000 + books.arrived;
    }
    let part = world.asked().await;
    assert_eq!((part.from_leaf, part.to_leaf), (named(old), named(new)));
    let stored = world.store().part(PaymentHash(part.hash)).await.unwrap();
    let stored = stored.unwrap();
    assert_eq!((stored.from_leaf, stored.to_leaf), (old, new));
    // No more than that one holds is paid for it, whatever the other holds.
    world.bank.books().balance = BALANCE;
    world.bank.books().bought = part.amount_msat - 1;
    let terms = world.terms(&part, 0);
    world.answer(Answer::Terms(terms)).await;
    let parts = world.store().parts(world.old.factory_id).await.unwrap();
    assert_eq!(parts.last().unwrap().progress, PartProgress::Failed);
    world.crash();
    world.bank.books().room = world::ROOM;
    world.move_all(0).await;
    // One thousandth of a satoshi in any of them keeps the keys.
    world.deep().await;
    world.bank.books().bought = 1;
    world.look().await;
    assert_eq!(world.handover().await, None);
    let last = world.said();
    assert!(matches!(last, Some(FromClient::MovePart(part)) if part.from_leaf == named(old)));
    world.bank.books().bought = 0;
    let factory = world.old.factory_id;
    let why = "the test".to_owned();
    world.answer(Answer::Refused { factory, why }).await;
    world.crash();
    world.look().await;
    let Some(FromClient::Handover(keys)) = world.said() else {
        panic!("no keys");
    };
    let leaves = [world.bank.old, old];
    assert!(world.bank.books().shut.ends_with(&leaves));
    let public = world.client.inner.keys.leaf_keys();
    let public = public.funding_pubkey(LeafId(old.0).as_u128());
    assert_eq!(keys.keys.sold.len(), 1);
    assert!(unmask_secret(&keys.keys.sold[0], &public, &world.lsp).is_ok());
    world.answer(Answer::Taken(factory)).await;
    assert_eq!(world.bank.books().all_retired, leaves);
}

#[tokio::test]
async fn every_channel_of_a_kit_has_its_factory() {
    let world = World::with_bought(BALANCE, 1).await;
    let (old, new) = world.bank.bought.unwrap();
    let inner = &world.client.inner;
    for (leaf, kit) in [
        (world.bank.old, &world.old),
        (old, &world.old),
        (world.bank.new, &world.new),
        (new, &world.new),
    ] {
        let found = factory_of(inner, leaf).await.unwrap();
        assert_eq!(found, Some(kit.factory_id));
    }
    assert_eq!(factory_of(inner, Leaf([0; 16])).await.unwrap(), None);
    // What is shown of them is kept for each.
    let factory = world.old.factory_id;
    let mut shown = Vec::new();
    for (leaf, ours) in [(world.bank.old, 2_000), (old, 3_000)] {
        let view = StoredView {
            leaf: leaf.to_string(),
            // Nobody runs.
            usable: false,
            ..view(factory, ours, 0)
        };
        world.store().set_channel(leaf, &view).await.unwrap();
        shown.push(view);
    }
    let factories = crate::client::factories(world.store()).await.unwrap();
    let own = factories.into_iter().find(|own| own.factory == factory);
    let own = own.unwrap();
    assert_eq!(own.channels, shown);
    assert_eq!(own.capacity_sat, 250_000);
    let quote = crate::client::quote(world.store(), factory, &[1], None);
    let quote = quote.await.unwrap();
    assert_eq!((quote.channels, quote.lightning_msat), (2, 5_000));
    let path = world.old.path().count();
    assert_eq!(quote.path_transactions, path + 1);
    let account = world.client.account().await.unwrap();
    assert_eq!(account.balance_msat, 5_000);
    world.store().forget_channel(old).await.unwrap();
    let left = crate::lightning::stored(world.store(), true).await.unwrap();
    assert_eq!(left, shown[..1]);
}

#[tokio::test]
async fn a_crash_in_every_gap_neither_loses_nor_repeats_a_part() {
    let mut world = World::new(BALANCE).await;
    let mut fee = FEE.to_sat() * 1000;
    while world.bank.books().balance > 0 {
        // Stored, and perhaps asked.
        let first = world.asked().await;
        world.crash();
        let again = world.asked().await;
        assert_eq!(again, first);
        // Agreed, and paid; the answer comes twice.
        let terms = world.terms(&again, std::mem::take(&mut fee));
        world.answer(Answer::Terms(terms)).await;
        world.crash();
        world.answer(Answer::Terms(terms)).await;
        assert_eq!(world.said(), None, "no other part while one is under way");
        world.settle().await;
        world.crash();
    }
    let books = world.bank.books();
    let paid: u64 = books.sent.iter().map(|(_, amount, _)| amount).sum();
    assert_eq!(paid, BALANCE);
    assert_eq!(books.arrived, BALANCE - 70_000);
}

#[tokio::test]
async fn agreed_and_not_paid_is_paid_after_a_crash_while_its_terms_are_good() {
    for (later, paid) in [(0, 1), (7, 0)] {
        let mut world = World::new(BALANCE).await;
        let part = world.asked().await;
        let terms = world.terms(&part, 0);
        let agreed = Agreed {
            token: Token([4; 32]),
            fee: Msat(0),
            incoming: terms.incoming_expiry,
            outgoing: terms.outgoing_expiry,
        };
        let hash = PaymentHash(part.hash);
        assert!(world.store().agree_part(hash, &agreed).await.unwrap());
        world.crash();
        world.at(world.height().plus(Blocks(later)));
        world.look().await;
        assert_eq!(world.bank.books().sent.len(), paid, "{later}");
        let known = world.store().part(hash).await.unwrap().unwrap();
        let failed = known.progress == PartProgress::Failed;
        assert_eq!(failed, paid == 0);
    }
}

#[tokio::test]
async fn nothing_is_paid_on_bad_terms_and_the_next_part_is_another() {
    let mut world = World::new(BALANCE).await;
    type Wrong = fn(&mut PartTerms);
    let wrong: [Wrong; 4] = [
        |terms| terms.fee_msat = 70_001,
        |terms| terms.outgoing_expiry = terms.outgoing_expiry.minus(Blocks(7)),
        |terms| terms.incoming_expiry = terms.incoming_expiry.plus(Blocks(7)),
        |terms| terms.fee_msat = u64::MAX,
    ];
    let mut hashes = Vec::new();
    for wrong in wrong {
        let part = world.asked().await;
        assert!(!hashes.contains(&part.hash), "an old hash has old terms");
        hashes.push(part.hash);
        let mut terms = world.terms(&part, 0);
        wrong(&mut terms);
        world.answer(Answer::Terms(terms)).await;
        assert!(world.bank.books().sent.is_empty());
        assert!(world.event(|event| matches!(event, Event::PartFailed { .. })));
        // Not at once again.
        world.look().await;
        assert_eq!(world.said(), None);
        world.crash();
    }
    // Unknown, and late.
    let part = world.asked().await;
    let mut unknown = world.terms(&part, 0);
    unknown.hash = [99; 32];
    world.answer(Answer::Terms(unknown)).await;
    let mut late = world.terms(&part, 0);
    late.hash = hashes[0];
    world.answer(Answer::Terms(late)).await;
    assert!(world.bank.books().sent.is_empty());
    let good = world.terms(&part, 0);
    world.answer(Answer::Terms(good)).await;
    assert_eq!(world.bank.books().sent.len(), 1);
}

#[tokio::test]
async fn a_part_that_came_back_is_made_anew_and_its_fee_with_it() {
    let mut world = World::new(BALANCE).await;
    let part = world.asked().await;
    let terms = world.terms(&part, 70_000);
    world.answer(Answer::Terms(terms)).await;
    {
        let mut books = world.bank.books();
        books.parts.clear();
        books.pending = 0;
        books.balance = BALANCE;
    }
    let end = PartEnd::Failed {
        why: "the test".to_owned(),
    };
    let hash = PaymentHash(part.hash);
    let inner = Arc::clone(&world.client.inner);
    part_over(&inner, hash, &end, Msat(0)).await.unwrap();
    let again = world.asked().await;
    assert_ne!(again.hash, part.hash);
    let terms = world.terms(&again, 70_000);
    world.answer(Answer::Terms(terms)).await;
    assert_eq!(world.bank.books().sent.len(), 2);
    // Once only.
    world.settle().await;
    let third = world.asked().await;
    let dear = world.terms(&third, 1);
    world.answer(Answer::Terms(dear)).await;
    assert_eq!(world.bank.books().sent.len(), 2);
}

#[tokio::test]
async fn who_does_not_answer_is_asked_in_the_next_session_and_in_time_for_another_part() {
    let mut world = World::new(BALANCE).await;
    let part = world.asked().await;
    world.look().await;
    assert_eq!(world.said(), None);
    world.connect();
    assert_eq!(world.asked().await, part);
    let factory = world.old.factory_id;
    let why = "busy".to_owned();
    world.answer(Answer::Refused { factory, why }).await;
    let hash = PaymentHash(part.hash);
    let known = world.store().part(hash).await.unwrap().unwrap();
    assert_eq!(known.failure.as_deref(), Some("busy"));
    world.crash();
    let next = world.asked().await;
    world.at(world.height().plus(Blocks(7)));
    world.look().await;
    let hash = PaymentHash(next.hash);
    let known = world.store().part(hash).await.unwrap().unwrap();
    assert_eq!(known.progress, PartProgress::Failed);
}

/// Everything has moved, and the younger factory is deep.
async fn moved() -> World {
    let mut world = World::new(0).await;
    world.deep().await;
    world
}

#[tokio::test]
async fn what_comes_in_while_the_gate_is_shut_keeps_the_keys() {
    let mut world = moved().await;
    world.bank.books().last_minute = 5;
    world.look().await;
    assert_eq!((world.said(), world.handover().await), (None, None));
    assert!(world.bank.books().gate_open);
    // It moves first.
    let part = world.asked().await;
    assert_eq!(part.amount_msat, 5);
}

#[tokio::test]
async fn keys_stay_while_anything_is_pending_or_the_younger_factory_is_shallow() {
    let mut world = moved().await;
    world.bank.books().pending = 1;
    world.look().await;
    assert_eq!((world.said(), world.handover().await), (None, None));
    world.bank.books().pending = 0;
    // A reorg takes the younger funding, and brings it back.
    let new = world.new.factory_id;
    let confirmed = world.store().factory(new).await.unwrap().confirmed;
    let store = SharedStore::clone(world.store());
    store.set_confirmed(new, None, false).await.unwrap();
    world.look().await;
    assert_eq!((world.said(), world.handover().await), (None, None));
    let later = confirmed.map(|height| height.plus(Blocks(1)));
    store.set_confirmed(new, later, true).await.unwrap();
    world.look().await;
    assert_eq!((world.said(), world.handover().await), (None, None));
    store.set_confirmed(new, confirmed, true).await.unwrap();
    world.look().await;
    assert!(matches!(world.said(), Some(FromClient::Handover(_))));
}

#[tokio::test]
async fn a_handover_goes_on_after_a_crash_at_each_step() {
    // Begun, nothing sent.
    let mut world = moved().await;
    let old = world.old.factory_id;
    let begin = Some(Handover::Begun);
    world.store().set_handover(old, begin).await.unwrap();
    world.crash();
    world.look().await;
    let Some(FromClient::Handover(first)) = world.said() else {
        panic!("no keys");
    };
    // Sent, no answer.
    world.crash();
    world.look().await;
    assert_eq!(world.said(), Some(FromClient::Handover(first.clone())));
    // Not twice in one session.
    world.look().await;
    assert_eq!(world.said(), None);
    // Refused: again at another block.
    let why = "too early".to_owned();
    world.answer(Answer::Refused { factory: old, why }).await;
    assert!(world.event(|event| matches!(event, Event::HandoverRefused { .. })));
    assert_eq!(world.said(), None);
    world.at(world.height().plus(Blocks(1)));
    world.look().await;
    assert_eq!(world.said(), Some(FromClient::Handover(first)));
}

#[tokio::test]
async fn an_answer_that_was_lost_is_asked_for_again_though_the_channel_is_gone() {
    let mut world = moved().await;
    world.look().await;
    assert!(world.said().is_some());
    world.bank.books().closed = true;
    world.crash();
    world.look().await;
    assert!(matches!(world.said(), Some(FromClient::Handover(_))));
    let factory = world.old.factory_id;
    world.answer(Answer::Taken(factory)).await;
    assert!(matches!(world.handover().await, Some(Handover::Taken(_))));
}

#[tokio::test]
async fn keys_that_are_out_do_not_come_back() {
    let mut world = moved().await;
    world.look().await;
    assert!(world.said().is_some());
    let new = world.new.factory_id;
    let store = SharedStore::clone(world.store());
    store.set_confirmed(new, None, false).await.unwrap();
    world.crash();
    world.look().await;
    assert_eq!(world.handover().await, Some(Handover::Sent));
    assert!(!world.bank.books().gate_open);
    assert_eq!(world.said(), None);
}

#[tokio::test]
async fn a_word_of_the_coordinator_ends_nothing_that_was_not_sent() {
    let mut world = World::new(BALANCE).await;
    let old = world.old.factory_id;
    world.answer(Answer::Taken(old)).await;
    assert_eq!(world.handover().await, None);
    assert!(!world.bank.books().retired);
}

#[tokio::test]
async fn without_a_session_nothing_begins() {
    let mut world = moved().await;
    world.client.inner.migration.disconnected();
    world.look().await;
    assert_eq!(world.handover().await, None);
    assert!(world.bank.books().gate_open);
}

fn view(factory: FactoryId, ours_msat: u64, receivable_msat: u64) -> StoredView {
    StoredView {
        channel: None,
        capacity_sat: 200_000,
        ..StoredView::sample(factory, ours_msat, receivable_msat)
    }
}

fn invitation(capacity: u64, fee: u64) -> Invitation {
    Invitation {
        round: Round {
            ceremony: CeremonyId([5; 16]),
            attempt: Attempt(1),
        },
        params: FactoryParams::profile(Profile::Lite, Network::Regtest),
        capacity: Amount::from_sat(capacity),
        fee: Amount::from_sat(fee),
        join_seconds: 20,
        step_seconds: 20,
        max_clients: 8,
        max_sessions: 64,
        common_pin: bitcoin::OutPoint::null(),
        confirmations: 1,
    }
}

#[tokio::test]
async fn an_invitation_is_taken_unasked_only_for_what_ends_and_on_good_terms() {
    let world = World::new(BALANCE).await;
    let (inner, store) = (&world.client.inner, world.store());
    let (old, new) = (world.old.factory_id, world.new.factory_id);
    let (from, to) = (leaf_id(&world.old), leaf_id(&world.new));
    let views = [(from, view(old, BALANCE, 0)), (to, view(new, 0, 5_000_000))];
    for (leaf, view) in views {
        store.set_channel(leaf, &view).await.unwrap();
    }
    let offer = invitation(200_000, 5000);
    let dear = invitation(200_000, 5001);
    let judged = wanted(inner, &dear).await.unwrap();
    assert!(matches!(judged, Err(Declined::TooDear { .. })));
    let account = world.client.account().await.unwrap();
    let words = &account.notices[0].words[0];
    assert!(words.contains("migration.max_fee_sat"), "{words}");
    let judged = wanted(inner, &offer).await.unwrap().unwrap();
    // Both factories are in their last days here.
    assert_eq!(judged.ending, [old, new]);
    assert_eq!(store.declines().await.unwrap(), []);
}

#[tokio::test]
async fn a_notice_is_kept_and_told_once() {
    let mut world = World::new(0).await;
    let (factory, inner) = (world.old.factory_id, Arc::clone(&world.client.inner));
    let words = |level| Words {
        level,
        what: "It ends.".to_owned(),
        action: "Open the wallet.".to_owned(),
        cost: "Nothing.".to_owned(),
        otherwise: "Nothing.".to_owned(),
        by: Height(9),
    };
    let told = |event: &Event| matches!(event, Event::Notice { .. });
    for (level, news) in [
        (Warning::Dying, true),
        (Warning::Dying, false),
        (Warning::LastDay, true),
    ] {
        let notice = Notice {
            factory,
            words: words(level),
        };
        super::notice(&inner, notice).await.unwrap();
        assert_eq!(world.event(told), news, "{level:?}");
    }
    let kept = world.store().notices().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].notice, words(Warning::LastDay));
    // Of somebody else's, and of what is given away, nothing is told.
    let foreign = Notice {
        factory: FactoryId([9; 32]),
        words: words(Warning::Over),
    };
    super::notice(&inner, foreign).await.unwrap();
    let given = Some(Handover::Sent);
    world.store().set_handover(factory, given).await.unwrap();
    let late = Notice {
        factory,
        words: words(Warning::Over),
    };
    super::notice(&inner, late).await.unwrap();
    assert!(!world.event(told));
}

#[tokio::test]
async fn what_is_given_away_is_not_fetched_and_covers_nothing() {
    let world = World::new(0).await;
    let (old, store) = (world.old.factory_id, world.store());
    let covered = || async {
        let factories = crate::client::factories(store).await.unwrap();
        let own = factories.into_iter().find(|view| view.factory == old);
        let own = own.unwrap();
        (own.state, own.coverage_sat > 0)
    };
    assert_eq!(covered().await, ("usable", true));
    for (step, expected) in [
        (Handover::Sent, ("handing_over", false)),
        (Handover::Taken(Height(9)), ("handed_over", false)),
    ] {
        store.set_handover(old, Some(step)).await.unwrap();
        assert_eq!(covered().await, expected);
        // At T its timeouts are valid.
        let tip = world.old.expiry.plus(Blocks(1));
        crate::exit::drive(&world.client.inner, tip).await.unwrap();
        let exits = store.exits().await.unwrap();
        assert!(exits.iter().all(|exit| exit.factory != old), "{exits:?}");
        let asked = world.client.request_exit(old, None, None).await;
        assert!(matches!(asked, Err(crate::Error::NothingToLeave { .. })));
    }
    // What was taken stays taken.
    store.set_handover(old, None).await.unwrap();
    assert!(store.factory(old).await.unwrap().is_handed_over());
}

#[test]
fn a_kit_has_the_calendar_that_its_parameters_make() {
    let (kit, _) = kit(4);
    let levels = u32::try_from(kit.path().count()).unwrap();
    let made = kit.params.schedule(kit.birth, levels).unwrap();
    assert_eq!(calendar(&kit), made);
}
