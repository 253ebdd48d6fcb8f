//! The wallet itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitcoin::Network;
use bitcoin::secp256k1::PublicKey;
use chain::{BitcoindConfig, BitcoindRpc, ChainEvent, ChainSource, Follower, RpcAuth};
use lightning::bolt11_invoice::{Bolt11Invoice, Currency, InvoiceBuilder};
use lightning::chain::{BlockLocator, Listen};
use lightning::events::{Event, EventsProvider, PaymentPurpose, ReplayEvent};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::{
    Bolt11InvoiceParameters, ChainParameters, OptionalBolt11PaymentParams, PaymentId,
    TrustedChannelFeatures,
};
use lightning::ln::outbound_payment::Retry;
use lightning::ln::peer_handler::{IgnoringMessageHandler, MessageHandler};
use lightning::routing::gossip::{NetworkGraph, RoutingFees};
use lightning::routing::router::{RouteHint, RouteHintHop};
use lightning::routing::scoring::{
    ProbabilisticScorer, ProbabilisticScoringDecayParameters, ProbabilisticScoringFeeParameters,
};
use lightning::sign::{EntropySource, KeysManager, NodeSigner, Recipient};
use lightning::util::config::UserConfig;
use lightning_liquidity::LiquidityClientConfig;
use lightning_liquidity::events::LiquidityEvent;
use lightning_liquidity::lsps0::event::LSPS0ClientEvent;
use lightning_liquidity::lsps0::ser::LSPSResponseError;
use lightning_liquidity::lsps1::client::LSPS1ClientConfig;
use lightning_liquidity::lsps2::client::LSPS2ClientConfig;
use lightning_liquidity::lsps2::event::LSPS2ClientEvent;
use lightning_liquidity::lsps2::msgs::LSPS2OpeningFeeParams;
use lightning_liquidity::lsps5::client::LSPS5ClientConfig;
use lightning_liquidity::lsps5::event::LSPS5ClientEvent;
use lightning_liquidity::lsps5::msgs::LSPS5Error;
use lightning_liquidity::utils::time::DefaultTimeProvider;
use scenarios::process::PATIENCE;
use scenarios::world::World;
use tokio::runtime::Runtime;

use super::parts::*;

const TICK: Duration = Duration::from_millis(10);
/// What it asks of the last hop, in blocks.
const FINAL_DELTA: u16 = 60;

/// What was bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// What payments name.
    pub scid: u64,
    /// Blocks the coordinator asks for.
    pub delta: u16,
}

/// A payment that was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// What arrived.
    pub msat: u64,
    /// What the coordinator kept.
    pub fee_msat: u64,
}

/// What it does with payments.
#[derive(Debug, Default)]
pub struct Habits {
    /// Takes none: sends them back.
    pub refuses: AtomicBool,
    /// Leaves them hanging.
    pub hangs: AtomicBool,
    /// Is away: neither sends nor connects.
    pub away: AtomicBool,
    /// Takes no channel: says so.
    pub declines: AtomicBool,
    /// Takes none that is to be named by an alias alone: says so.
    pub declines_aliases: AtomicBool,
    /// Says nothing to a channel.
    pub ignores: AtomicBool,
    /// Uses no channel before it has six confirmations.
    pub patient: AtomicBool,
}

#[derive(Debug, Default)]
struct Heard {
    liquidity: Vec<LiquidityEvent>,
    kept: Vec<([u8; 32], u64)>,
    hanging: Vec<PaymentPurpose>,
    refused: usize,
    received: Vec<Received>,
}

struct Inner {
    log: Arc<Log>,
    keys: Arc<KeysManager>,
    manager: Arc<Manager>,
    monitors: Arc<Monitors>,
    liquidity: Arc<Liquidity>,
    peers: Arc<Peers>,
    heard: Mutex<Heard>,
    habits: Habits,
    lsp: (PublicKey, SocketAddr),
}

/// The wallet.
pub struct Independent {
    inner: Arc<Inner>,
    // Last, so that it outlives the rest.
    _runtime: Runtime,
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
}

impl Independent {
    /// A wallet without anything, connected to the coordinator.
    pub fn start(world: &World, seed: u8) -> Result<Self> {
        let runtime = Runtime::new()?;
        let config = BitcoindConfig::new(
            world.node.rpc_url(),
            RpcAuth::CookieFile(world.node.cookie_file()),
        );
        let chain: Arc<dyn ChainSource> = Arc::new(BitcoindRpc::new(config)?);
        let lsp = world.lightning()?;
        let tip = runtime.block_on(chain.tip())?;
        let follower = Follower::new(Arc::clone(&chain), vec![tip])?;
        let at = BlockLocator::new(tip.hash, tip.height);
        let inner = {
            let _guard = runtime.enter();
            Arc::new(Inner::new(seed, at, lsp)?)
        };
        runtime.spawn(follow(Arc::clone(&inner), follower));
        runtime.spawn(run(Arc::clone(&inner)));
        runtime.spawn(stay_connected(Arc::clone(&inner)));
        let wallet = Self {
            inner,
            _runtime: runtime,
        };
        wallet.until("a connection to the coordinator", || wallet.is_connected())?;
        Ok(wallet)
    }

    /// Waits for something.
    pub fn until(&self, what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            ensure!(
                Instant::now() < deadline,
                "the independent wallet waited for {what}: {:?}",
                self.inner.heard()
            );
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Whether the coordinator is connected.
    pub fn is_connected(&self) -> bool {
        self.inner
            .peers
            .peer_by_node_id(&self.inner.lsp.0)
            .is_some()
    }

    /// Whether the coordinator announces this feature as an optional one.
    pub fn hears_of(&self, bit: usize) -> bool {
        let peer = self.inner.peers.peer_by_node_id(&self.inner.lsp.0);
        peer.is_some_and(|peer| {
            let byte = peer.init_features.le_flags().get(bit / 8).copied();
            byte.unwrap_or(0) & (1 << (bit % 8)) != 0
        })
    }

    /// What it does with payments.
    pub fn habits(&self) -> &Habits {
        &self.inner.habits
    }

    /// Goes away, or comes back.
    pub fn set_away(&self, away: bool) -> Result<()> {
        self.inner.habits.away.store(away, Ordering::SeqCst);
        self.until("the connection to change", || self.is_connected() != away)
    }

    pub(super) fn liquidity(&self) -> &Liquidity {
        &self.inner.liquidity
    }

    pub(super) fn lsp(&self) -> PublicKey {
        self.inner.lsp.0
    }

    /// An invoice that leads over its channels, as LDK writes it.
    pub fn own_invoice(&self, amount_msat: u64) -> Result<String> {
        let params = Bolt11InvoiceParameters {
            amount_msats: Some(amount_msat),
            ..Bolt11InvoiceParameters::default()
        };
        let invoice = self.inner.manager.create_bolt11_invoice(params);
        let invoice = invoice.map_err(|error| anyhow!("{error:?}"))?;
        Ok(invoice.to_string())
    }

    /// Sends what waits to be sent.
    pub(super) fn flush(&self) {
        self.inner.peers.process_events();
    }

    pub(super) fn answer<T>(
        &self,
        what: &str,
        fits: impl Fn(&LiquidityEvent) -> Option<T>,
    ) -> Result<T> {
        self.flush();
        let mut answer = None;
        self.until(what, || {
            let heard = &mut self.inner.heard().liquidity;
            let at = heard.iter().position(|event| fits(event).is_some());
            answer = at.and_then(|at| fits(&heard.remove(at)));
            answer.is_some()
        })?;
        answer.context("an answer")
    }

    /// The protocols the coordinator serves.
    pub fn protocols(&self) -> Result<Vec<u16>> {
        let lsp = self.inner.lsp.0;
        self.inner
            .liquidity
            .lsps0_client_handler()
            .list_protocols(&lsp);
        self.answer("the protocols", |event| match event {
            LiquidityEvent::LSPS0Client(LSPS0ClientEvent::ListProtocolsResponse {
                protocols,
                ..
            }) => Some(protocols.clone()),
            _ => None,
        })
    }

    /// What channels cost.
    pub fn menu(
        &self,
        token: Option<&str>,
    ) -> Result<Result<Vec<LSPS2OpeningFeeParams>, LSPSResponseError>> {
        let client = self.inner.liquidity.lsps2_client_handler();
        let client = client.context("it is a client")?;
        client.request_opening_params(self.inner.lsp.0, token.map(str::to_owned));
        self.answer("the menu", |event| match event {
            LiquidityEvent::LSPS2Client(LSPS2ClientEvent::OpeningParametersReady {
                opening_fee_params_menu,
                ..
            }) => Some(Ok(opening_fee_params_menu.clone())),
            LiquidityEvent::LSPS2Client(LSPS2ClientEvent::GetInfoFailed { error, .. }) => {
                Some(Err(error.clone()))
            }
            _ => None,
        })
    }

    /// The one offer there is.
    pub fn offer(&self) -> Result<LSPS2OpeningFeeParams> {
        let menu = self.menu(None)?;
        let menu = menu.map_err(|error| anyhow!("refused: {error:?}"))?;
        menu.into_iter().next().context("an offer")
    }

    /// Buys the promise of a channel.
    pub fn buy(
        &self,
        offer: LSPS2OpeningFeeParams,
        payment_msat: Option<u64>,
    ) -> Result<Result<Offer, LSPSResponseError>> {
        let client = self.inner.liquidity.lsps2_client_handler();
        let client = client.context("it is a client")?;
        client
            .select_opening_params(self.inner.lsp.0, payment_msat, offer)
            .map_err(|error| anyhow!("{error:?}"))?;
        self.answer("what was bought", |event| match event {
            LiquidityEvent::LSPS2Client(LSPS2ClientEvent::InvoiceParametersReady {
                intercept_scid,
                cltv_expiry_delta,
                ..
            }) => Some(Ok(Offer {
                scid: *intercept_scid,
                delta: u16::try_from(*cltv_expiry_delta).ok()?,
            })),
            LiquidityEvent::LSPS2Client(LSPS2ClientEvent::BuyRequestFailed { error, .. }) => {
                Some(Err(error.clone()))
            }
            _ => None,
        })
    }

    /// Sets its one webhook.
    pub fn set_webhook(&self, url: &str) -> Result<Result<(), LSPS5Error>> {
        let client = self.inner.liquidity.lsps5_client_handler();
        let client = client.context("it is a client")?;
        client
            .set_webhook(self.inner.lsp.0, "push".to_owned(), url.to_owned())
            .map_err(|error| anyhow!("{error:?}"))?;
        self.answer("the webhook", |event| match event {
            LiquidityEvent::LSPS5Client(LSPS5ClientEvent::WebhookRegistered { .. }) => Some(Ok(())),
            LiquidityEvent::LSPS5Client(LSPS5ClientEvent::WebhookRegistrationFailed {
                error,
                ..
            }) => Some(Err(error.clone())),
            _ => None,
        })
    }

    /// An invoice that leads over what was bought.
    pub fn invoice(&self, bought: Offer, amount_msat: Option<u64>) -> Result<String> {
        let manager = &self.inner.manager;
        let made = manager.create_inbound_payment(None, 3_600, Some(FINAL_DELTA), None);
        let (hash, secret, metadata) = made.map_err(|()| anyhow!("no payment hash"))?;
        let way = RouteHint(vec![RouteHintHop {
            src_node_id: self.inner.lsp.0,
            short_channel_id: bought.scid,
            fees: RoutingFees {
                base_msat: 0,
                proportional_millionths: 0,
            },
            cltv_expiry_delta: bought.delta,
            htlc_minimum_msat: None,
            htlc_maximum_msat: None,
        }]);
        let mut invoice = InvoiceBuilder::new(Currency::from(Network::Regtest))
            .description("a first payment".to_owned())
            .duration_since_epoch(now())
            .payee_pub_key(manager.get_our_node_id())
            .payment_hash(hash)
            .payment_secret(secret)
            .basic_mpp()
            .min_final_cltv_expiry_delta(FINAL_DELTA.into())
            .private_route(way);
        if let Some(amount) = amount_msat {
            invoice = invoice.amount_milli_satoshis(amount);
        }
        let raw = match metadata {
            Some(metadata) => invoice.payment_metadata(metadata).build_raw(),
            None => invoice.build_raw(),
        };
        let raw = raw.map_err(|error| anyhow!("{error:?}"))?;
        let signature = self.inner.keys.sign_invoice(&raw, Recipient::Node);
        let signed = raw.sign(|_| signature).map_err(|()| anyhow!("unsigned"))?;
        let invoice = Bolt11Invoice::from_signed(signed);
        Ok(invoice.map_err(|error| anyhow!("{error:?}"))?.to_string())
    }

    /// Pays an invoice in vain: who sent the payment back, and with which code, in LDK's words.
    pub fn pays_in_vain(&self, invoice: &str) -> Result<String> {
        let invoice = invoice.parse::<Bolt11Invoice>();
        let invoice = invoice.map_err(|error| anyhow!("{error:?}"))?;
        let id = PaymentId(invoice.payment_hash().0);
        let once = OptionalBolt11PaymentParams {
            retry_strategy: Retry::Attempts(0),
            ..OptionalBolt11PaymentParams::default()
        };
        let manager = &self.inner.manager;
        let sent = manager.pay_for_bolt11_invoice(&invoice, id, None, once);
        sent.map_err(|error| anyhow!("{error:?}"))?;
        let told = || {
            let all = self.inner.log.0.lock();
            all.unwrap_or_else(PoisonError::into_inner).last().cloned()
        };
        self.until("its payment to come back", || told().is_some())?;
        told().context("a reason")
    }

    /// Waits until it has claimed so many payments; the last of them.
    pub fn received(&self, count: usize) -> Result<Received> {
        self.until("a payment", || self.inner.heard().received.len() >= count)?;
        let heard = self.inner.heard();
        heard.received.last().copied().context("a payment")
    }

    /// How many payments it has sent back.
    pub fn refused(&self) -> usize {
        self.inner.heard().refused
    }

    /// Whether a payment hangs.
    pub fn has_hanging(&self) -> bool {
        !self.inner.heard().hanging.is_empty()
    }

    /// Claims what hangs.
    pub fn claim_hanging(&self) -> Result<()> {
        self.inner.habits.hangs.store(false, Ordering::SeqCst);
        let hanging = std::mem::take(&mut self.inner.heard().hanging);
        for purpose in hanging {
            let preimage = purpose.preimage().context("a preimage")?;
            self.inner.manager.claim_funds(preimage);
        }
        Ok(())
    }

    /// Closes its channels alone.
    pub fn close_all(&self) -> Result<()> {
        for channel in self.channels() {
            let (id, peer) = (channel.channel_id, channel.counterparty.node_id);
            let closed = self.inner.manager.force_close_broadcasting_latest_txn(
                &id,
                &peer,
                "enough".to_owned(),
            );
            closed.map_err(|error| anyhow!("{error:?}"))?;
        }
        Ok(())
    }

    /// Its channels.
    pub fn channels(&self) -> Vec<ChannelDetails> {
        self.inner.manager.list_channels()
    }

    /// What is its own in its channels.
    pub fn balance_msat(&self) -> u64 {
        let claimable = self.inner.monitors.get_claimable_balances(&[]);
        let sats: u64 = claimable
            .iter()
            .map(lightning::chain::channelmonitor::Balance::claimable_amount_satoshis)
            .sum();
        sats * 1000
    }
}

impl Inner {
    fn new(seed: u8, at: BlockLocator, lsp: (PublicKey, SocketAddr)) -> Result<Self> {
        let keys = Arc::new(KeysManager::new(&[seed; 32], now().as_secs(), 7, true));
        let (sent, fees) = (Arc::new(Sent::default()), Arc::new(Feerate));
        let log = Arc::new(Log::default());
        let store = Arc::new(Memory::default());
        let monitors: Arc<Monitors> = Arc::new(Monitors::new(
            None,
            Arc::clone(&sent),
            Arc::clone(&log),
            Arc::clone(&fees),
            Arc::clone(&store),
            Arc::clone(&keys),
            keys.get_peer_storage_key(),
            false,
        ));
        let graph: Graph = Arc::new(NetworkGraph::new(Network::Regtest, Arc::clone(&log)));
        let decay = ProbabilisticScoringDecayParameters::default();
        let scorer: Scorer = Arc::new(RwLock::new(ProbabilisticScorer::new(
            decay,
            Arc::clone(&graph),
            Arc::clone(&log),
        )));
        let router = Arc::new(Router::new(
            Arc::clone(&graph),
            Arc::clone(&log),
            Arc::clone(&keys),
            scorer,
            ProbabilisticScoringFeeParameters::default(),
        ));
        let message_router = Arc::new(MessageRouter::new(graph, Arc::clone(&keys)));
        let mut config = UserConfig::default();
        // What bLIP-52 asks of a client: it knows that the first payment is short by the fee.
        config.channel_config.accept_underpaying_htlcs = true;
        // It takes announced channels, too.
        config
            .channel_handshake_limits
            .force_announced_channel_preference = false;
        let manager = Arc::new(Manager::new(
            fees,
            Arc::clone(&monitors),
            Arc::clone(&sent),
            router,
            message_router,
            Arc::clone(&log),
            Arc::clone(&keys),
            Arc::clone(&keys),
            Arc::clone(&keys),
            config,
            ChainParameters {
                network: Network::Regtest,
                best_block: at,
            },
            u32::try_from(now().as_secs())?,
        ));
        let client = LiquidityClientConfig {
            lsps1_client_config: Some(LSPS1ClientConfig {
                max_channel_fees_msat: None,
            }),
            lsps2_client_config: Some(LSPS2ClientConfig::default()),
            lsps5_client_config: Some(LSPS5ClientConfig::default()),
        };
        let liquidity = Liquidity::new_with_custom_time_provider(
            Arc::clone(&keys),
            Arc::clone(&keys),
            Arc::clone(&manager),
            store,
            sent,
            None,
            Some(client),
            Arc::new(DefaultTimeProvider),
        );
        let liquidity = Arc::new(liquidity.map_err(|error| anyhow!("{error:?}"))?);
        let ignore = Arc::new(IgnoringMessageHandler {});
        let handler = MessageHandler {
            chan_handler: Arc::clone(&manager),
            route_handler: Arc::clone(&ignore),
            onion_message_handler: ignore,
            custom_message_handler: Arc::clone(&liquidity),
            send_only_message_handler: Arc::clone(&monitors),
        };
        let peers = Arc::new(Peers::new(
            handler,
            u32::try_from(now().as_secs())?,
            &keys.get_secure_random_bytes(),
            Arc::clone(&log),
            Arc::clone(&keys),
        ));
        Ok(Self {
            log,
            keys,
            manager,
            monitors,
            liquidity,
            peers,
            heard: Mutex::default(),
            habits: Habits::default(),
            lsp,
        })
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, event: Event) -> Result<(), ReplayEvent> {
        match event {
            Event::OpenChannelRequest {
                temporary_channel_id,
                counterparty_node_id,
                channel_type,
                ..
            } if counterparty_node_id == self.lsp.0 => {
                if self.habits.ignores.load(Ordering::SeqCst) {
                    return Ok(());
                }
                let declines = self.habits.declines.load(Ordering::SeqCst)
                    || (channel_type.supports_scid_privacy()
                        && self.habits.declines_aliases.load(Ordering::SeqCst));
                if declines {
                    let (id, peer) = (temporary_channel_id, counterparty_node_id);
                    let why = "no channels today".to_owned();
                    let closed = self
                        .manager
                        .force_close_broadcasting_latest_txn(&id, &peer, why);
                    if let Err(error) = closed {
                        eprintln!("independent: a channel is not declined: {error:?}");
                    }
                    return Ok(());
                }
                let (id, peer) = (temporary_channel_id, counterparty_node_id);
                let accepted = match self.habits.patient.load(Ordering::SeqCst) {
                    true => self.manager.accept_inbound_channel(&id, &peer, 0, None),
                    false => self.manager.accept_inbound_channel_from_trusted_peer(
                        &id,
                        &peer,
                        0,
                        TrustedChannelFeatures::ZeroConf,
                        None,
                    ),
                };
                if let Err(error) = accepted {
                    eprintln!("independent: a channel is not accepted: {error:?}");
                }
            }
            Event::PaymentClaimable {
                payment_hash,
                purpose,
                counterparty_skimmed_fee_msat,
                ..
            } => {
                let mut heard = self.heard();
                heard
                    .kept
                    .push((payment_hash.0, counterparty_skimmed_fee_msat));
                if self.habits.refuses.load(Ordering::SeqCst) {
                    heard.refused += 1;
                    drop(heard);
                    self.manager.fail_htlc_backwards(&payment_hash);
                } else if self.habits.hangs.load(Ordering::SeqCst) {
                    heard.hanging.push(purpose);
                } else if let Some(preimage) = purpose.preimage() {
                    drop(heard);
                    self.manager.claim_funds(preimage);
                }
            }
            Event::PaymentClaimed {
                payment_hash,
                amount_msat,
                ..
            } => {
                let mut heard = self.heard();
                let mut kept = heard.kept.iter().rev();
                let kept = kept.find(|(hash, _)| *hash == payment_hash.0);
                let fee_msat = kept.map_or(0, |(_, fee)| *fee);
                heard.received.push(Received {
                    msat: amount_msat,
                    fee_msat,
                });
            }
            _ => {}
        }
        Ok(())
    }
}

async fn run(inner: Arc<Inner>) {
    loop {
        let handler = |event| inner.handle(event);
        inner.manager.process_pending_events(&handler);
        inner.monitors.process_pending_events(&handler);
        if inner.manager.needs_pending_htlc_processing() {
            inner.manager.process_pending_htlc_forwards();
        }
        let news = inner.liquidity.get_and_clear_pending_events();
        inner.heard().liquidity.extend(news);
        inner.peers.process_events();
        tokio::time::sleep(TICK).await;
    }
}

async fn follow(inner: Arc<Inner>, mut follower: Follower) {
    loop {
        match follower.next().await {
            Ok(Some(ChainEvent::Connected { height, block })) => {
                Listen::block_connected(&*inner.monitors, &block, height);
                Listen::block_connected(&*inner.manager, &block, height);
            }
            Ok(Some(ChainEvent::Disconnected(_))) => {
                let at = follower.position();
                let at = BlockLocator::new(at.hash, at.height);
                Listen::blocks_disconnected(&*inner.monitors, at);
                Listen::blocks_disconnected(&*inner.manager, at);
            }
            Ok(None) | Err(_) => tokio::time::sleep(TICK * 5).await,
        }
    }
}

async fn stay_connected(inner: Arc<Inner>) {
    let (id, address) = inner.lsp;
    loop {
        let away = inner.habits.away.load(Ordering::SeqCst);
        if away {
            inner.peers.disconnect_by_node_id(id);
        } else if inner.peers.peer_by_node_id(&id).is_none() {
            let peers = Arc::clone(&inner.peers);
            if let Some(closed) = lightning_net_tokio::connect_outbound(peers, id, address).await {
                let there = async {
                    while inner.peers.peer_by_node_id(&id).is_none() {
                        tokio::time::sleep(TICK).await;
                    }
                };
                tokio::select! {
                    () = there => {}
                    () = closed => {}
                }
            }
        }
        tokio::time::sleep(TICK * 2).await;
    }
}

/// An error's code, or why there was none.
pub fn code<T: std::fmt::Debug>(answer: Result<T, LSPSResponseError>) -> Result<i32> {
    match answer {
        Err(error) => Ok(error.code),
        Ok(answer) => bail!("it was not refused: {answer:?}"),
    }
}
