//! Sales signed by the clients' own machines, over streams that come and go, and crashes.

mod bonus;

use std::collections::{BTreeMap, VecDeque};

use bitcoin::Script;
use bitcoin::secp256k1::{Secp256k1, ecdsa};
use factory_tree::ceremony::message::DeclineReason;
use factory_tree::ceremony::signer::ChannelSigner;
use factory_tree::factory::FactoryTx;
use factory_tree::guard::SignedRecord;
use factory_tree::kit::ExitKit;
use factory_tree::sale::Sale;
use factory_tree::sale::cosigner::{
    CoSigner, CoSignerEffect, CoSignerInput, CoSignerStep, PendingSale, Secrets,
};
use factory_tree::sale::message::ToCoSigner;
use factory_tree::sale::rules::{Agreed, Place, Role};
use factory_tree::testing::TestFactory;
use factory_tree::units::Height;
use proto::session::SessionToken;
use proto::v1::server_message::Body;
use proto::wire::FromServer;

use super::*;
use crate::sessions::Outgoing;
use crate::testing::{FRESH, ROUND};

const PATIENCE: Duration = Duration::from_secs(20);
/// The channel secret of the mate's bonus.
const BONUS: u64 = 5;

/// Signs with one key.
#[derive(Debug)]
struct Channel(SecretKey);

impl ChannelSigner for Channel {
    fn sign_channel_timeout(
        &self,
        _: LeafId,
        tx: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        let message = bitcoin::secp256k1::Message::from_digest(tx.channel_sighash(script));
        Some(Secp256k1::new().sign_ecdsa(&message, &self.0))
    }
}

/// How a wallet of these tests behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Says no to offers.
    Declines,
    /// Joins and never signs.
    Silent,
    /// Signs, and hears nothing of the end.
    Deaf,
}

/// A client's wallet: its disk is in it.
struct Wallet {
    client: TestClient,
    kit: ExitKit,
    order: Option<Order>,
    /// Where it wants its bonus, and the least that it signs for.
    bonus: (Option<Place>, Amount),
    signed: Vec<SignedRecord>,
    pending: Option<PendingSale>,
    machine: Option<CoSigner>,
    manner: Manner,
}

/// What it sends, in order.
type Sent = VecDeque<ToSeller>;

impl Wallet {
    fn secrets(&self) -> Secrets {
        Secrets {
            factory_secret: self.client.factory,
            channel_signer: Arc::new(Channel(channel_secret(match self.order {
                Some(_) => 1,
                None => BONUS,
            }))),
        }
    }

    fn take(&mut self, message: ToCoSigner) -> Sent {
        let mut sent = Sent::new();
        let machine = self.machine.take();
        let step = match message {
            ToCoSigner::Offer(offer) if self.manner == Manner::Declines => {
                let reason = DeclineReason::Terms("no".into());
                sent.push_back(ToSeller::Decline {
                    round: offer.round,
                    reason,
                });
                return sent;
            }
            ToCoSigner::Offer(offer) => {
                let place = match &self.order {
                    Some(order) => Some(Place {
                        leaf_id: order.leaf_id,
                        channel_key: order.channel_key,
                    }),
                    None => self.bonus.0,
                };
                let role = match &self.order {
                    Some(order) => Role::Buyer {
                        ordered: read(&order.quote).asked,
                    },
                    None => Role::Mate {
                        least_bonus: self.bonus.1,
                    },
                };
                let agreed = Agreed {
                    role,
                    consent: true,
                    place,
                    place_used: false,
                    tip: Height(10),
                };
                let (kit, secrets) = (self.kit.clone(), self.secrets());
                CoSigner::offered(*offer, kit, agreed, secrets, &mut crate::keys::random)
            }
            ToCoSigner::Sign(_) if self.manner == Manner::Silent => return sent,
            ToCoSigner::Sign(sign) => machine.unwrap().step(CoSignerInput::Sign(sign)),
            ToCoSigner::Finals(_) if self.manner == Manner::Deaf => {
                self.machine = machine;
                return sent;
            }
            ToCoSigner::Finals(finals) => {
                let (kit, secrets) = (self.kit.clone(), self.secrets());
                let resumed = || CoSigner::resume(self.pending.clone().unwrap(), kit, secrets);
                let machine = machine.unwrap_or_else(|| resumed().unwrap());
                machine.step(CoSignerInput::Finals(finals))
            }
            ToCoSigner::Failed { round, reason } => match machine {
                Some(machine) => machine.step(CoSignerInput::Failed { round, reason }),
                None => return sent,
            },
        };
        self.moved(step, &mut sent);
        sent
    }

    fn moved(&mut self, step: CoSignerStep, sent: &mut Sent) {
        self.machine = Some(step.state);
        for effect in step.effects {
            let next = match effect {
                CoSignerEffect::LoadSigned(_) => CoSignerInput::Signed(self.signed.clone()),
                CoSignerEffect::StoreSigned { records, pending } => {
                    self.signed.extend(records);
                    self.pending = Some(*pending);
                    continue;
                }
                CoSignerEffect::StoreKit(kit) => {
                    self.kit = *kit;
                    continue;
                }
                CoSignerEffect::Rehearse(_) => {
                    let verified = self.kit.verify();
                    CoSignerInput::Rehearsed(verified.map_err(|error| error.to_string()))
                }
                CoSignerEffect::Send(message) => {
                    sent.push_back(message);
                    continue;
                }
                CoSignerEffect::Emit(_) | CoSignerEffect::Finished(_) => continue,
            };
            let step = self.machine.take().unwrap().step(next);
            self.moved(step, sent);
        }
    }
}

/// The exit kits of the clients that share the first stock.
async fn wallets(world: &TestWorld, tree: &Tree) -> BTreeMap<ClientId, Wallet> {
    let factory = TestFactory {
        seed: 1,
        lsp_node: world.ctx.keys.node_secret(),
        lsp: world.ctx.keys.factory_secret(ROUND, FRESH),
        clients: (0..4).map(member).collect(),
        funding_tx: world.funding(tree).await,
        tree: tree.clone(),
    };
    let signed = factory.sign();
    let all = (0..2).map(|position| {
        let client = member(position.into());
        let wallet = Wallet {
            kit: signed.kit(position),
            order: None,
            bonus: (None, Amount::ZERO),
            signed: Vec::new(),
            pending: None,
            machine: None,
            manner: Manner::Honest,
            client,
        };
        (wallet.client.id(), wallet)
    });
    all.collect()
}

/// A running shop with the clients of one stock.
struct Market {
    world: TestWorld,
    wallets: BTreeMap<ClientId, Wallet>,
    streams: BTreeMap<ClientId, mpsc::Receiver<Outgoing>>,
    stop: watch::Sender<bool>,
    sale: SaleId,
}

impl Market {
    /// Client 0 has ordered and paid; nobody is connected.
    async fn paid(change: impl FnOnce(&mut SalesConfig)) -> Self {
        Self::paid_in(shop(change).await).await
    }

    async fn paid_in((world, tree): (TestWorld, Tree)) -> Self {
        let mut wallets = wallets(&world, &tree).await;
        let (order, sale) = ordered(&world).await;
        wallets.get_mut(&member(0).id()).unwrap().order = Some(order);
        Self::of(world, wallets, sale).await
    }

    /// The order is paid, and its sale begins.
    async fn of(world: TestWorld, wallets: BTreeMap<ClientId, Wallet>, sale: SaleId) -> Self {
        pay(&world, sale).await;
        let mut market = Self {
            world,
            wallets,
            streams: BTreeMap::new(),
            stop: watch::Sender::new(false),
            sale,
        };
        market.start();
        market
    }

    fn start(&mut self) {
        self.stop = watch::Sender::new(false);
        let ctx = Arc::clone(&self.world.ctx);
        tokio::spawn(run(ctx, self.stop.subscribe()));
    }

    async fn come(&mut self, number: u64) {
        let client = member(number).id();
        let (out, mut reader) = mpsc::channel(64);
        let token = SessionToken::new(crate::keys::random());
        let welcome = Body::Heartbeat(proto::v1::Heartbeat {}).into();
        let sessions = &self.world.ctx.sessions;
        sessions
            .start(client, token, String::new(), out, welcome, 9)
            .unwrap();
        reader.recv().await;
        self.streams.insert(client, reader);
        self.world.ctx.sales.connected(client).await;
    }

    /// One message to anybody, answered.
    async fn serve_one(&mut self) {
        let mut next: Vec<_> = self
            .streams
            .iter_mut()
            .map(|(client, stream)| Box::pin(async { (*client, stream.recv().await) }))
            .collect();
        if next.is_empty() {
            return std::future::pending().await;
        }
        let ((client, message), ..) = futures::future::select_all(next.drain(..)).await;
        drop(next);
        let message =
            FromServer::parse(message.unwrap().unwrap(), bitcoin::Network::Regtest).unwrap();
        let FromServer::Sale(message) = message else {
            return;
        };
        let sent = self.wallets.get_mut(&client).unwrap().take(message);
        for message in sent {
            // What comes when the sale is over is refused, and that is all.
            let _ = deliver(&self.world.ctx, client, message).await;
        }
    }

    /// Serves until the order is as wanted.
    async fn until(&mut self, wanted: impl Fn(&SaleRow) -> bool) -> SaleRow {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = row(&self.world, self.sale).await;
            if wanted(&found) {
                return found;
            }
            let look = Duration::from_millis(20);
            let _ = tokio::time::timeout(look, self.serve_one()).await;
            assert!(tokio::time::Instant::now() < deadline, "{found:?}");
        }
    }

    /// The node tells that it has taken the payment.
    async fn taken(&self) {
        let order = row(&self.world, self.sale).await.order;
        received(&self.world.ctx, order.hash, order.fee_msat)
            .await
            .unwrap();
    }

    /// A crash: nothing in memory is left, neither ours nor the wallets'.
    async fn crash(mut self) -> Self {
        self.stop.send_replace(true);
        self.world.ctx.sales.idle().await;
        for wallet in self.wallets.values_mut() {
            wallet.machine = None;
        }
        self.streams.clear();
        let mut world = self.world.crash().await;
        world.ctx.lightning.pretend();
        let ctx = Arc::get_mut(&mut world.ctx).unwrap();
        ctx.config.sales.enabled = true;
        ctx.config.sales.step_seconds = 1;
        at(&world, 10);
        let mut market = Self { world, ..self };
        market.start();
        market
    }

    /// By which it was ordered first.
    fn quote(&self) -> &str {
        let order = self.wallets[&member(0).id()].order.as_ref();
        &order.unwrap().quote.text
    }

    fn claims(&self) -> usize {
        let keys = &self.world.ctx.keys;
        let claim = Asked::Claim(*keys.sale_preimage(self.sale, self.quote()));
        asked(&self.world)
            .iter()
            .filter(|one| **one == claim)
            .count()
    }

    /// Until the node is asked to take the payment.
    async fn claimed(&mut self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.claims() == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.serve_one()).await;
            assert!(tokio::time::Instant::now() < deadline, "not claimed");
        }
    }

    fn sent_back(&self) -> bool {
        let hash = self.world.ctx.keys.sale_hash(self.sale, self.quote());
        asked(&self.world).contains(&Asked::SendBack(hash))
    }
}

#[tokio::test]
async fn a_sale_is_signed_delivered_opened_and_taken_once() {
    let mut market = Market::paid(|_| {}).await;
    market.come(0).await;
    market.come(1).await;
    let sold = market.until(|row| row.delivered).await;
    assert_eq!(sold.state, PurchaseState::Sold);
    for wallet in market.wallets.values() {
        assert_eq!(wallet.kit.sales, [sold.bound.clone().unwrap()]);
    }
    market.claimed().await;
    assert_eq!(market.claims(), 1);
    for _ in 0..2 {
        market.taken().await;
    }
    let settled = market
        .until(|row| row.state == PurchaseState::Settled)
        .await;
    assert_eq!(settled.taken_msat, settled.order.fee_msat);
    market.world.ctx.sales.over(market.sale).await;
    assert!(!market.sent_back());
    // The next sale of the stock is the second.
    let next = quote(&market.world, member(1).id(), 30_000).await.unwrap();
    assert_eq!(read(&next).number, 2);
}

#[tokio::test]
async fn no_channel_and_no_payment_before_the_buyer_holds_the_sale() {
    let mut market = Market::paid(|_| {}).await;
    let buyer = member(0).id();
    market.wallets.get_mut(&buyer).unwrap().manner = Manner::Deaf;
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.sold.is_some()).await;
    let mate = member(1).id();
    while market.wallets[&mate].kit.sales.is_empty() {
        market.serve_one().await;
    }
    market
        .world
        .ctx
        .sales
        .deliver(market.sale, Mail::Look)
        .await;
    market.until(|row| !row.delivered).await;
    assert_eq!(market.claims(), 0);
    market.wallets.get_mut(&buyer).unwrap().manner = Manner::Honest;
    market.come(0).await;
    market.until(|row| row.delivered).await;
    market.claimed().await;
}

#[tokio::test]
async fn a_crash_at_any_step_changes_nothing_but_the_attempt() {
    let mut market = Market::paid(|_| {}).await;
    market = market.crash().await;
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.bound.is_some()).await;
    market = market.crash().await;
    market.come(1).await;
    market.come(0).await;
    let sold = market.until(|row| row.sold.is_some()).await;
    assert!(sold.attempts.0 >= 2);
    market = market.crash().await;
    market.come(0).await;
    assert!(!row(&market.world, market.sale).await.delivered);
    market.come(1).await;
    market.until(|row| row.delivered).await;
    market = market.crash().await;
    market.claimed().await;
    market.taken().await;
    market
        .until(|row| row.state == PurchaseState::Settled)
        .await;
    for wallet in market.wallets.values() {
        assert_eq!(wallet.kit.sales.len(), 1);
    }
}

#[tokio::test]
async fn a_mate_who_never_comes_costs_nobody_anything() {
    let mut market = Market::paid(|sales| sales.wake_seconds = 1).await;
    market.come(0).await;
    let cancelled = market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    assert!(
        cancelled.note.contains("came in time"),
        "{}",
        cancelled.note
    );
    market.world.ctx.sales.over(market.sale).await;
    assert!(market.sent_back() && cancelled.bound.is_none());
    // Nothing was signed: the stock is anybody's.
    assert!(quote(&market.world, member(1).id(), 30_000).await.is_ok());
}

#[tokio::test]
async fn a_buyer_who_takes_it_back_is_paid_back_until_it_is_complete() {
    let mut market = Market::paid(|_| {}).await;
    market.come(0).await;
    let params = json!({ "sale": market.sale });
    let client = member(0).id();
    let answer = ask(&market.world, client, method::CANCEL, params.clone()).await;
    assert_eq!(answer.unwrap()["state"], "cancelled");
    assert!(market.sent_back());

    let mut market = Market::paid(|_| {}).await;
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.sold.is_some()).await;
    let params = json!({ "sale": market.sale });
    let answer = ask(&market.world, client, method::CANCEL, params).await;
    assert_eq!(answer.unwrap()["state"], "sold");
    assert!(!market.sent_back());
}

#[tokio::test]
async fn nothing_is_complete_while_the_payment_is_not_here() {
    let mut market = Market::paid(|sales| sales.step_seconds = 30).await;
    let order = row(&market.world, market.sale).await.order;
    let ctx = Arc::clone(&market.world.ctx);
    let pretended = || ctx.lightning.pretended.lock().unwrap();
    pretended().missing = vec![channel_host::LeafId(order.leaf_id.0)];
    market.come(0).await;
    market.come(1).await;
    // Until all that is waited for is the channel.
    let waits = async || {
        let query = "SELECT chain IS NOT NULL FROM sale";
        let read = ctx.store.read(async |tx| {
            let found = sqlx::query_scalar::<_, bool>(query);
            Ok(found.fetch_one(tx).await?)
        });
        read.await.unwrap()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !waits().await {
        assert!(tokio::time::Instant::now() < deadline, "not signed");
        let look = Duration::from_millis(20);
        let _ = tokio::time::timeout(look, market.serve_one()).await;
    }
    {
        let mut now = pretended();
        (now.missing, now.gone) = (Vec::new(), vec![order.hash]);
    }
    let gone = |row: &SaleRow| row.note.contains("not here any more");
    let found = market.until(gone).await;
    assert_eq!((found.state, found.sold), (PurchaseState::Paid, None));
    pretended().gone = Vec::new();
    market.until(|row| row.sold.is_some()).await;
}

#[tokio::test]
async fn a_sale_whose_payment_never_comes_again_is_given_up() {
    let (world, tree) = shop(|sales| sales.wake_seconds = 1).await;
    let keys = &world.ctx.keys;
    let all_gone = |hash| world.ctx.lightning.pretended.lock().unwrap().gone = vec![hash];
    let (order, sale) = ordered(&world).await;
    all_gone(keys.sale_hash(sale, &order.quote.text));
    let mut wallets = wallets(&world, &tree).await;
    wallets.get_mut(&member(0).id()).unwrap().order = Some(order);
    let mut market = Market::of(world, wallets, sale).await;
    market.come(0).await;
    market.come(1).await;
    let given_up = |row: &SaleRow| row.state == PurchaseState::Cancelled;
    let found = market.until(given_up).await;
    assert!(found.note.contains("not here any more"), "{}", found.note);
    assert_eq!(found.bound, None, "nobody was asked to sign");
}

/// The mate is silent when terms are bound, and the buyer takes it back.
async fn abandoned() -> (Market, Sale) {
    let mut market = Market::paid(|_| {}).await;
    market.wallets.get_mut(&member(1).id()).unwrap().manner = Manner::Silent;
    market.come(0).await;
    market.come(1).await;
    let bound = market.until(|row| row.bound.is_some()).await.bound.unwrap();
    let params = json!({ "sale": market.sale });
    let answer = ask(&market.world, member(0).id(), method::CANCEL, params).await;
    assert_eq!(answer.unwrap()["state"], "cancelled");
    (market, bound)
}

#[tokio::test]
async fn bound_terms_that_were_abandoned_are_the_buyers_and_nobody_elses() {
    let (mut market, bound) = abandoned().await;
    let (buyer, mate) = (member(0).id(), member(1).id());
    assert_eq!(
        quote(&market.world, mate, 30_000).await.unwrap_err(),
        "reserved"
    );
    // Exactly these terms, whatever is asked for.
    let again = quote(&market.world, buyer, 30_000).await.unwrap();
    assert_eq!(read(&again).sale, market.sale);
    assert_eq!(read(&again).capacity, bound.bought.capacity);
    let other = order(&again, 2);
    assert_eq!(
        buy(&market.world, buyer, &other).await.unwrap_err(),
        "taken"
    );
    let same = order(&again, 1);
    let bought = buy(&market.world, buyer, &same).await.unwrap();
    assert_eq!(bought.state, PurchaseState::Ordered);
    pay(&market.world, market.sale).await;
    market.wallets.get_mut(&mate).unwrap().manner = Manner::Honest;
    let sold = market.until(|row| row.sold.is_some()).await;
    assert_eq!(sold.sold.unwrap().sale, bound);
}

#[tokio::test]
async fn an_order_that_is_begun_anew_is_not_paid_by_an_old_invoice_nor_by_an_older_quote() {
    let (market, _) = abandoned().await;
    let (world, buyer) = (&market.world, member(0).id());
    let cancel = async || {
        let params = json!({ "sale": market.sale });
        let answer = ask(world, buyer, method::CANCEL, params).await;
        assert_eq!(answer.unwrap()["state"], "cancelled");
    };
    let older = order(&quote(world, buyer, 30_000).await.unwrap(), 1);
    buy(world, buyer, &older).await.unwrap();
    let old = row(world, market.sale).await.order;
    cancel().await;
    // It is held, and nothing but this order knows its hash.
    let newer = order(&quote(world, buyer, 30_000).await.unwrap(), 1);
    buy(world, buyer, &newer).await.unwrap();
    let new = row(world, market.sale).await.order;
    assert_ne!((&new.quote, new.hash), (&old.quote, old.hash));
    assert!(asked(world).contains(&Asked::SendBack(old.hash)));
    world.ctx.lightning.asked.lock().unwrap().clear();
    assert_eq!(new.hash, world.ctx.keys.sale_hash(market.sale, &new.quote));
    held(&world.ctx, old.hash, old.fee_msat, UNTIL)
        .await
        .unwrap();
    let state = row(world, market.sale).await.state;
    assert_eq!(state, PurchaseState::Ordered);
    assert!(asked(world).contains(&Asked::SendBack(old.hash)));
    cancel().await;
    assert_eq!(buy(world, buyer, &older).await.unwrap_err(), "expired");
}

#[tokio::test]
async fn bound_terms_whose_channel_ended_are_quoted_to_nobody() {
    let (market, bound) = abandoned().await;
    let (buyer, mate) = (member(0).id(), member(1).id());
    let again = quote(&market.world, buyer, 30_000).await.unwrap();
    let pretended = &market.world.ctx.lightning.pretended;
    let leaf = channel_host::LeafId(bound.bought.leaf_id.0);
    pretended.lock().unwrap().over = vec![leaf];
    let refused = buy(&market.world, buyer, &order(&again, 1)).await;
    assert_eq!(refused.unwrap_err(), "stuck");
    for client in [buyer, mate] {
        let refused = quote(&market.world, client, 30_000).await;
        assert_eq!(refused.unwrap_err(), "stuck");
    }
}

#[tokio::test]
async fn who_signs_for_nothing_any_more_costs_one_attempt_and_nobody_is_quoted() {
    let mut market = Market::paid(|_| {}).await;
    let (buyer, mate) = (member(0).id(), member(1).id());
    market.wallets.get_mut(&mate).unwrap().manner = Manner::Declines;
    market.come(0).await;
    market.come(1).await;
    let cancelled = market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    assert_eq!(cancelled.attempts.0, 1);
    market.world.ctx.sales.over(market.sale).await;
    assert!(market.sent_back());
    for client in [buyer, mate] {
        let refused = quote(&market.world, client, 30_000).await;
        assert_eq!(refused.unwrap_err(), "declined");
    }
}

#[tokio::test]
async fn a_silent_mate_is_counted_once_and_a_buyer_who_declines_is_not() {
    let mut market = Market::paid(|_| {}).await;
    let (buyer, mate) = (member(0).id(), member(1).id());
    market.wallets.get_mut(&mate).unwrap().manner = Manner::Silent;
    market.come(0).await;
    market.come(1).await;
    market.until(|row| row.attempts.0 == 3).await;
    market.wallets.get_mut(&buyer).unwrap().manner = Manner::Declines;
    market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    let scores = market
        .world
        .ctx
        .store
        .read(async |tx| store::clients::scores(tx).await)
        .await
        .unwrap();
    assert_eq!(scores.get(&mate).map(|score| score.points), Some(1.0));
    assert_eq!(scores.get(&buyer), None);
}

#[tokio::test]
async fn a_payment_that_can_be_held_no_longer_goes_back() {
    let mut market = Market::paid(|_| {}).await;
    market.come(0).await;
    let exit_delay = {
        let order = row(&market.world, market.sale).await.order;
        let known = known(&market.world.ctx, order.factory, 0).await.unwrap();
        known.unwrap().stock.schedule().exit_delay.0
    };
    let last = UNTIL - exit_delay - channel_host::CLAIM_BUFFER - MARGIN;
    // Signing would be too late by then anyway, in this factory: the sale's own time does not count here.
    let long = market.world.ctx.store.write(async |tx| {
        sqlx::query("UPDATE sale SET held_until = 10 + ? - ?")
            .bind(UNTIL)
            .bind(last)
            .execute(&mut *tx)
            .await?;
        Ok(())
    });
    long.await.unwrap();
    market = market.crash().await;
    let cancelled = market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    assert!(
        cancelled.note.contains("held any longer"),
        "{}",
        cancelled.note
    );
    market.world.ctx.sales.over(market.sale).await;
    assert!(market.sent_back());
}

#[tokio::test]
async fn what_was_to_go_back_before_a_crash_goes_back_after_it() {
    let mut market = Market::paid(|sales| sales.wake_seconds = 1).await;
    market
        .until(|row| row.state == PurchaseState::Cancelled)
        .await;
    let market = market.crash().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !market.sent_back() {
        tokio::task::yield_now().await;
        assert!(tokio::time::Instant::now() < deadline, "not sent back");
    }
}
