//! A wallet between two factories, with a node and a coordinator that do as the test says.

use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::secp256k1::{PublicKey, SecretKey as Secret};
use bitcoin::{Amount, Network};
use channel_host::{
    ChannelView, LeafId, LeafView, Msat, NodeError, PartState, PartView, PaymentHash, Side, Stage,
};
use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, CeremonyId};
use factory_tree::kit::ExitKit;
use factory_tree::ladder::part_expiries;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::testing::{Sold, TestFactory};
use factory_tree::units::{Blocks, Height};
use proto::v1::ClientMessage;
use proto::wire::{FromClient, MovePart, PartTerms};
use tokio::sync::mpsc;

use crate::client::{ClientParts, SignerClient};
use crate::config::Config;
use crate::connection::Outgoing;
use crate::event::Event;
use crate::lightning::{leaf_id, name_of};
use crate::migration::lane::Lane;
use crate::migration::mover::{Mover, part_over};
use crate::migration::{Answer, calendar};
use crate::store::{
    FactoryRow, FactoryStore, Handover, JoinRow, JoinStore, PartEnd, SharedStore, SqliteStore,
};

/// 10,000.007 sat, of which a part may carry a quarter or the exit fee.
pub(super) const BALANCE: u64 = 10_000_007;
pub(super) const FEE: Amount = Amount::from_sat(70);

/// What a channel with nothing in it can receive.
pub(super) const ROOM: u64 = 198_000_000;

/// A node that holds two channels, and perhaps one that was bought in the older factory and one in the younger.
#[derive(Debug)]
pub(super) struct Bank {
    pub(super) old: LeafId,
    pub(super) new: LeafId,
    pub(super) bought: Option<(LeafId, LeafId)>,
    pub(super) state: Mutex<Books>,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) balance: u64,
    /// In the one that was bought in the older factory.
    pub(super) bought: u64,
    pub(super) pending: usize,
    pub(super) arrived: u64,
    /// What can be received over the one that was born with the younger factory.
    pub(super) room: u64,
    pub(super) gate_open: bool,
    pub(super) shut: Vec<LeafId>,
    pub(super) retired: bool,
    pub(super) all_retired: Vec<LeafId>,
    /// The coordinator has closed the old channel.
    pub(super) closed: bool,
    pub(super) parts: Vec<PartView>,
    pub(super) sent: Vec<(PaymentHash, u64, u32)>,
    pub(super) hashes: u8,
    /// What comes in the moment before the gate is shut.
    pub(super) last_minute: u64,
}

impl Bank {
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
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
        balance: Msat(spendable),
        spendable: Msat(spendable),
        receivable: Msat(receivable),
        usable: true,
        confirmations: 6,
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
        let room = books.room - books.arrived;
        let mut all = vec![channel(self.new, books.arrived, room, 0)];
        if !books.closed {
            all.push(channel(self.old, books.balance, 0, books.pending));
        }
        if let Some((old, new)) = self.bought {
            all.push(channel(old, books.bought, 0, 0));
            all.push(channel(new, 0, ROOM / 2, 0));
        }
        all
    }

    fn leaf(&self, leaf: LeafId) -> Option<LeafView> {
        Some(LeafView {
            id: leaf,
            peer: peer(),
            side: Side::Client,
            outpoint: bitcoin::OutPoint::null(),
            capacity: Amount::from_sat(200_000),
            stage: match leaf == self.old && self.books().closed {
                true => Stage::Closed,
                false => Stage::Open,
            },
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
        // As the real one: what was never paid makes room.
        books.parts.retain(|part| part.state != PartState::Agreed);
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
        let books = &mut *books;
        let part = books.parts.iter_mut().find(|part| part.hash == hash);
        let part = part.ok_or_else(|| NodeError::Refused("unknown".into()))?;
        assert_eq!(part.state, PartState::Agreed, "a part is paid once");
        part.state = PartState::Paid;
        match part.from == self.old {
            true => books.balance -= amount.0,
            false => books.bought -= amount.0,
        }
        books.pending += 1;
        books.sent.push((hash, amount.0, expiry));
        Ok(())
    }

    fn gate(&self, leaf: LeafId, open: bool) -> Result<(), NodeError> {
        let mut books = self.books();
        if !open {
            books.shut.push(leaf);
        }
        if leaf != self.old {
            return Ok(());
        }
        if !open {
            books.balance += std::mem::take(&mut books.last_minute);
        }
        books.gate_open = open;
        Ok(())
    }

    fn retire(&self, leaf: LeafId) -> Result<(), NodeError> {
        let mut books = self.books();
        books.all_retired.push(leaf);
        books.retired |= leaf == self.old;
        Ok(())
    }
}

/// A factory in which the first client bought a channel.
fn sold_kit(seed: u64) -> (ExitKit, Secret) {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.k = 2;
    let mut sold = Sold::new(TestFactory::new(seed, params, 4).unwrap());
    sold.sell(0, 50_000, &[]);
    (sold.kits.remove(0), sold.signed.lsp_keypair().secret_key())
}

/// The leaf of what was bought in it.
fn bought(kit: &ExitKit) -> Option<LeafId> {
    kit.channels().get(1).map(name_of)
}

pub(super) fn kit(seed: u64) -> (ExitKit, Secret) {
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    let signed = TestFactory::new(seed, params, 2).unwrap().sign();
    let lsp = signed.lsp_keypair().secret_key();
    (signed.kit(0), lsp)
}

/// A wallet between two factories, in the last days of the older one.
pub(super) struct World {
    pub(super) client: SignerClient,
    pub(super) bank: Arc<Bank>,
    pub(super) mover: Mover,
    pub(super) old: ExitKit,
    pub(super) new: ExitKit,
    pub(super) lsp: Secret,
    pub(super) heard: mpsc::Receiver<ClientMessage>,
    pub(super) events: tokio::sync::broadcast::Receiver<crate::event::Stamped>,
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
    pub(super) async fn new(balance: u64) -> Self {
        Self::between(balance, kit(1), kit(2)).await
    }

    /// With a channel that was bought in each factory.
    pub(super) async fn with_bought(balance: u64, bought: u64) -> Self {
        let world = Self::between(balance, sold_kit(1), sold_kit(2)).await;
        world.bank.books().bought = bought;
        world
    }

    async fn between(balance: u64, old: (ExitKit, Secret), new: (ExitKit, Secret)) -> Self {
        let ((old, lsp), (new, _)) = (old, new);
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
            bought: bought(&old).zip(bought(&new)),
            state: Mutex::new(Books {
                balance,
                room: ROOM,
                gate_open: true,
                ..Books::default()
            }),
        });
        let (seed, keys) = crate::keys::tests::fresh();
        let client = SignerClient::open(ClientParts {
            config: Config::new(Network::Regtest),
            keys: Arc::new(keys),
            store: Arc::new(store),
            chain: Arc::new(super::chain::StandingChain),
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

    pub(super) fn store(&self) -> &SharedStore {
        self.client.store()
    }

    pub(super) fn height(&self) -> Height {
        Height(self.client.inner.followed_height())
    }

    pub(super) fn at(&self, height: Height) {
        self.client.inner.set_height(height.0);
    }

    pub(super) fn connect(&mut self) {
        let (out, heard) = Outgoing::new(64);
        self.heard = heard;
        self.client.inner.migration.connected(out);
    }

    /// As after kill -9: what is not stored is gone, the session too.
    pub(super) fn crash(&mut self) {
        self.mover = Mover::new(Arc::clone(&self.client.inner));
        self.connect();
    }

    pub(super) async fn look(&mut self) {
        let lane: Arc<dyn Lane> = Arc::clone(&self.bank) as Arc<dyn Lane>;
        self.mover.look(Some(lane)).await.unwrap();
    }

    pub(super) fn said(&mut self) -> Option<FromClient> {
        let message = self.heard.try_recv().ok()?;
        Some(FromClient::try_from(message).unwrap())
    }

    /// The question that a look makes.
    pub(super) async fn asked(&mut self) -> MovePart {
        self.look().await;
        match self.said() {
            Some(FromClient::MovePart(part)) => part,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn terms(&self, part: &MovePart, fee_msat: u64) -> PartTerms {
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

    pub(super) async fn answer(&mut self, answer: Answer) {
        self.client.inner.migration.answered(answer);
        self.look().await;
    }

    /// The node brings everything that is under way to its end.
    pub(super) async fn settle(&mut self) {
        let paid: Vec<PartView> = {
            let mut books = self.bank.books();
            let (paid, left) = std::mem::take(&mut books.parts)
                .into_iter()
                .partition(|part| part.state == PartState::Paid);
            books.parts = left;
            paid
        };
        for part in paid {
            {
                let mut books = self.bank.books();
                books.pending -= 1;
                books.arrived += part.amount.0;
            }
            let end = PartEnd::Moved;
            let done = part_over(&self.client.inner, part.hash, &end, Msat(0));
            done.await.unwrap();
        }
    }

    /// Moves until nothing is left; the parts' sizes.
    pub(super) async fn move_all(&mut self, mut fee: u64) -> Vec<u64> {
        let mut sizes = Vec::new();
        while self.left() > 0 {
            let part = self.asked().await;
            let terms = self.terms(&part, std::mem::take(&mut fee));
            self.answer(Answer::Terms(terms)).await;
            sizes.push(part.amount_msat);
            self.settle().await;
        }
        sizes
    }

    fn left(&self) -> u64 {
        let books = self.bank.books();
        books.balance + books.bought
    }

    pub(super) async fn deep(&mut self) {
        let confirmed = self.store().factory(self.new.factory_id).await.unwrap();
        self.at(confirmed.confirmed.unwrap().plus(Blocks(11)));
    }

    pub(super) async fn handover(&self) -> Option<Handover> {
        let row = self.store().factory(self.old.factory_id).await.unwrap();
        row.handover
    }

    pub(super) fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> bool {
        std::iter::from_fn(|| self.events.try_recv().ok()).any(|event| wanted(&event.event))
    }
}
