//! Moves against a node and a coordinator that do as the test says, on a real store: through crashes, refusals, reorgs.

use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Network};
use channel_host::{
    ChannelView, LeafId, LeafView, Msat, NodeError, PartState, PartView, PaymentHash, Side, Stage,
};
use factory_tree::ceremony::message::{Invitation, Round};
use factory_tree::ids::{Attempt, CeremonyId, FactoryId};
use factory_tree::keys::unmask_secret;
use factory_tree::kit::ExitKit;
use factory_tree::ladder::{Notice as Words, Warning, part_expiries};
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::testing::TestFactory;
use factory_tree::units::{Blocks, Height};
use proto::v1::ClientMessage;
use proto::wire::{FromClient, MovePart, Notice, PartTerms};
use tokio::sync::mpsc;

use super::invited::Declined;
use super::lane::Lane;
use super::mover::{Mover, part_over};
use super::{Answer, calendar, wanted};
use crate::client::{ClientParts, SignerClient};
use crate::config::Config;
use crate::connection::Outgoing;
use crate::event::Event;
use crate::lightning::{ChannelState, ChannelView as StoredView, leaf_id};
use crate::store::{
    FactoryRow, FactoryStore, Handover, JoinRow, JoinStore, PartEnd, PartProgress, SharedStore,
    SqliteStore,
};

/// 10,000.007 sat, of which a part may carry a quarter or the exit fee.
const BALANCE: u64 = 10_000_007;
const FEE: Amount = Amount::from_sat(70);

/// A node that holds two channels.
#[derive(Debug)]
struct Bank {
    old: LeafId,
    new: LeafId,
    state: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    balance: u64,
    pending: usize,
    arrived: u64,
    gate_open: bool,
    retired: bool,
    parts: Vec<PartView>,
    sent: Vec<(PaymentHash, u64, u32)>,
    hashes: u8,
    /// What comes in the moment before the gate is shut.
    last_minute: u64,
}

impl Bank {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.state.lock().unwrap()
    }
}

fn channel(leaf: LeafId, spendable: u64, receivable: u64, pending: usize) -> ChannelView {
    ChannelView {
        channel: [0; 32],
        leaf: Some(leaf),
        peer: peer(),
        outpoint: None,
        capacity: Amount::from_sat(200_000),
        spendable: Msat(spendable),
        receivable: Msat(receivable),
        usable: true,
        announced: false,
        our_reserve: None,
        their_reserve: 2_000,
        pending,
    }
}

fn peer() -> PublicKey {
    factory_tree::testing::public(&factory_tree::testing::secret(1, "peer", 0))
}

impl Lane for Bank {
    fn channels(&self) -> Vec<ChannelView> {
        let books = self.books();
        let room = 198_000_000 - books.arrived;
        vec![
            channel(self.old, books.balance, 0, books.pending),
            channel(self.new, books.arrived, room, 0),
        ]
    }

    fn leaf(&self, leaf: LeafId) -> Option<LeafView> {
        Some(LeafView {
            id: leaf,
            peer: peer(),
            side: Side::Client,
            outpoint: bitcoin::OutPoint::null(),
            capacity: Amount::from_sat(200_000),
            stage: Stage::Open,
            factory_confirmed: true,
            exiting: false,
            confirmed_at: None,
            spent: None,
        })
    }

    fn parts(&self) -> Vec<PartView> {
        self.books().parts.clone()
    }

    fn expect_part(
        &self,
        from: LeafId,
        to: LeafId,
        amount: Msat,
    ) -> Result<(PaymentHash, [u8; 32]), NodeError> {
        let mut books = self.books();
        // As the real one: one hash for one amount until it is paid.
        let same = |part: &&PartView| part.amount == amount && part.state == PartState::Agreed;
        if let Some(known) = books.parts.iter().find(same) {
            return Ok((known.hash, [3; 32]));
        }
        books.hashes += 1;
        let hash = PaymentHash([books.hashes; 32]);
        books.parts.push(PartView {
            hash,
            from,
            to,
            amount,
            fee: Msat(0),
            incoming_expiry: 0,
            state: PartState::Agreed,
        });
        Ok((hash, [3; 32]))
    }

    fn send_part(
        &self,
        hash: PaymentHash,
        amount: Msat,
        _secret: [u8; 32],
        expiry: u32,
    ) -> Result<(), NodeError> {
        let mut books = self.books();
        let part = books.parts.iter_mut().find(|part| part.hash == hash);
        let part = part.ok_or_else(|| NodeError::Refused("unknown".into()))?;
        assert_eq!(part.state, PartState::Agreed, "a part is paid once");
        part.state = PartState::Paid;
        books.balance -= amount.0;
        books.pending += 1;
        books.sent.push((hash, amount.0, expiry));
        Ok(())
    }

    fn gate(&self, leaf: LeafId, open: bool) -> Result<(), NodeError> {
        assert_eq!(leaf, self.old);
        let mut books = self.books();
        if !open {
            books.balance += std::mem::take(&mut books.last_minute);
        }
        books.gate_open = open;
        Ok(())
    }

    fn retire(&self, leaf: LeafId) -> Result<(), NodeError> {
        assert_eq!(leaf, self.old);
        self.books().retired = true;
        Ok(())
    }
}

fn kit(seed: u64) -> (ExitKit, bitcoin::secp256k1::SecretKey) {
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    let signed = TestFactory::new(seed, params, 2).unwrap().sign();
    let lsp = signed.lsp_keypair().secret_key();
    (signed.kit(0), lsp)
}

/// A wallet between two factories, in the last days of the older one.
struct World {
    client: SignerClient,
    bank: Arc<Bank>,
    mover: Mover,
    old: ExitKit,
    new: ExitKit,
    lsp: bitcoin::secp256k1::SecretKey,
    heard: mpsc::Receiver<ClientMessage>,
    events: tokio::sync::broadcast::Receiver<crate::event::Stamped>,
    _seed: tempfile::TempDir,
}

async fn hold(store: &SqliteStore, kit: &ExitKit, n: u8, expiry: Height, fee: Amount) {
    let round = Round {
        ceremony: CeremonyId([n; 16]),
        attempt: Attempt(1),
    };
    let common_pin = kit.funding_tx.input[0].previous_output;
    let join = JoinRow {
        join_nonce: kit.join_nonce,
        round,
        leaf_id: kit.leaf_id,
        factory_key: kit.factory_key,
        channel_key: kit.channel_key,
        payout_script: kit.payout_script.clone(),
        common_pin,
        capacity: kit.capacity,
    };
    store.record_join(&join).await.unwrap();
    let row = FactoryRow {
        factory: kit.factory_id,
        round,
        join_nonce: kit.join_nonce,
        funding: kit.funding(),
        common_pin,
        capacity: kit.capacity,
        birth: kit.birth,
        expiry,
        confirmations: 1,
        fee,
        acked: false,
        failed: false,
        confirmed: None,
        usable: false,
        abandoned: None,
        closed: None,
        handover: None,
    };
    let text = kit.to_json().unwrap();
    store.store_kit(&row, text.as_bytes()).await.unwrap();
}

impl World {
    async fn new(balance: u64) -> Self {
        let ((old, lsp), (new, _)) = (kit(1), kit(2));
        let store = SqliteStore::in_memory().await.unwrap();
        hold(&store, &old, 1, old.expiry, Amount::ZERO).await;
        hold(&store, &new, 2, new.expiry.plus(Blocks(1)), FEE).await;
        let at = calendar(&old).dying_from.plus(Blocks(20));
        for (kit, confirmed) in [(&old, old.birth), (&new, at.minus(Blocks(2)))] {
            let id = kit.factory_id;
            store
                .set_confirmed(id, Some(confirmed), true)
                .await
                .unwrap();
        }
        let bank = Arc::new(Bank {
            old: leaf_id(&old),
            new: leaf_id(&new),
            state: Mutex::new(Books {
                balance,
                gate_open: true,
                ..Books::default()
            }),
        });
        let (seed, keys) = crate::keys::tests::fresh();
        let client = SignerClient::open(ClientParts {
            config: Config::new(Network::Regtest),
            keys: Arc::new(keys),
            store: Arc::new(store),
            chain: Arc::new(super::standing_chain::StandingChain),
            channels: std::path::PathBuf::new(),
        })
        .await
        .unwrap();
        client.inner.set_height(at.0);
        let events = client.events();
        let mover = Mover::new(Arc::clone(&client.inner));
        let mut world = Self {
            bank,
            mover,
            old,
            new,
            lsp,
            heard: mpsc::channel(1).1,
            events,
            client,
            _seed: seed,
        };
        world.connect();
        world
    }

    fn store(&self) -> &SharedStore {
        self.client.store()
    }

    fn height(&self) -> Height {
        Height(self.client.inner.followed_height())
    }

    fn at(&self, height: Height) {
        self.client.inner.set_height(height.0);
    }

    fn connect(&mut self) {
        let (out, heard) = Outgoing::new(64);
        self.heard = heard;
        self.client.inner.migration.connected(out);
    }

    /// As after kill -9: what is not stored is gone, the session too.
    fn crash(&mut self) {
        self.mover = Mover::new(Arc::clone(&self.client.inner));
        self.connect();
    }

    async fn look(&mut self) {
        let lane: Arc<dyn Lane> = Arc::clone(&self.bank) as Arc<dyn Lane>;
        self.mover.look(Some(lane)).await.unwrap();
    }

    fn said(&mut self) -> Option<FromClient> {
        let message = self.heard.try_recv().ok()?;
        Some(FromClient::try_from(message).unwrap())
    }

    /// The question that a look makes.
    async fn asked(&mut self) -> MovePart {
        self.look().await;
        match self.said() {
            Some(FromClient::MovePart(part)) => part,
            other => panic!("{other:?}"),
        }
    }

    fn terms(&self, part: &MovePart, fee_msat: u64) -> PartTerms {
        let (old, new) = (calendar(&self.old), calendar(&self.new));
        let expiries = part_expiries(self.height(), &old, &new).unwrap();
        PartTerms {
            hash: part.hash,
            payment_secret: [4; 32],
            fee_msat,
            outgoing_expiry: expiries.outgoing,
            incoming_expiry: expiries.incoming,
        }
    }

    async fn answer(&mut self, answer: Answer) {
        self.client.inner.migration.answered(answer);
        self.look().await;
    }

    /// The node brings everything that is under way to its end.
    async fn settle(&mut self) {
        let paid: Vec<PartView> = {
            let mut books = self.bank.books();
            let (paid, left) = std::mem::take(&mut books.parts)
                .into_iter()
                .partition(|part| part.state == PartState::Paid);
            books.parts = left;
            paid
        };
        for part in paid {
            let mut books = self.bank.books();
            books.pending -= 1;
            books.arrived += part.amount.0;
            drop(books);
            let end = PartEnd::Moved;
            let done = part_over(&self.client.inner, part.hash, &end, Msat(0));
            done.await.unwrap();
        }
    }

    /// Moves until nothing is left; the parts' sizes.
    async fn move_all(&mut self, mut fee: u64) -> Vec<u64> {
        let mut sizes = Vec::new();
        while self.bank.books().balance > 0 {
            let part = self.asked().await;
            let terms = self.terms(&part, std::mem::take(&mut fee));
            self.answer(Answer::Terms(terms)).await;
            sizes.push(part.amount_msat);
            self.settle().await;
        }
        sizes
    }

    async fn deep(&mut self) {
        let confirmed = self.store().factory(self.new.factory_id).await.unwrap();
        self.at(confirmed.confirmed.unwrap().plus(Blocks(11)));
    }

    async fn handover(&self) -> Option<Handover> {
        let row = self.store().factory(self.old.factory_id).await.unwrap();
        row.handover
    }

    fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> bool {
        std::iter::from_fn(|| self.events.try_recv().ok()).any(|event| wanted(&event.event))
    }
}

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
    assert!(read(&keys.factory_key, &public.factory_key).is_ok());
    assert!(read(&keys.channel_key, &public.channel_key).is_ok());
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
        let agreed = crate::store::Agreed {
            token: crate::store::Token([4; 32]),
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
    assert_eq!(world.said(), Some(FromClient::Handover(first)));
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
        factory,
        leaf: String::new(),
        channel: None,
        state: ChannelState::Open,
        outpoint: bitcoin::OutPoint::null(),
        capacity_sat: 200_000,
        ours_msat,
        spendable_msat: ours_msat,
        receivable_msat,
        pending: 0,
        usable: true,
        factory_confirmed: true,
        leaf_height: None,
        spent: None,
        closing_sat: 0,
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
    store.set_channel(&view(old, BALANCE, 0)).await.unwrap();
    store.set_channel(&view(new, 0, 5_000_000)).await.unwrap();
    let offer = invitation(200_000, 5000);
    let dear = invitation(200_000, 5001);
    let judged = wanted(inner, &dear).await.unwrap();
    assert!(matches!(judged, Err(Declined::TooDear { .. })));
    let height = Some(world.height().0);
    let account = crate::client::account(store, height).await.unwrap();
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
