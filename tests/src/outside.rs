//! A Lightning node of the world outside: an ordinary LDK node with ordinary channels, in the test's own process.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use async_trait::async_trait;
use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use chain::{BitcoindConfig, BitcoindRpc, RpcAuth};
use channel_host::{
    EventSink, FeePolicy, InvoiceRequest, LeafKeys, Msat, Node, NodeConfig, NodeEvent, NotTakenIn,
    PaymentHash, Side,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::coins::{Coins, payout_script};
use crate::process::PATIENCE;
use crate::world::World;

/// Which of the test's keys its coins are of.
const KEY: u8 = 77;
/// Its name on the balance sheet.
pub const NAME: &str = "outside";
/// What its channel to the coordinator holds at first, all on its side.
pub const CHANNEL: Amount = Amount::from_sat(5_000_000);

/// What it heard, in order.
#[derive(Debug, Default)]
struct Heard {
    events: Mutex<Vec<NodeEvent>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Ears(Arc<Heard>);

#[async_trait]
impl EventSink for Ears {
    async fn take(&self, event: NodeEvent) -> Result<(), NotTakenIn> {
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
        self.0.changed.notify_all();
        Ok(())
    }
}

/// The node.
#[derive(Debug)]
pub struct Outside {
    node: Node,
    heard: Arc<Heard>,
    runtime: Runtime,
    _directory: TempDir,
}

impl Outside {
    /// A node with a confirmed channel to the coordinator, all of it on its own side.
    pub fn start(world: &mut World) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let runtime = Runtime::new()?;
        let heard = Arc::new(Heard::default());
        let config = BitcoindConfig::new(
            world.node.rpc_url(),
            RpcAuth::CookieFile(world.node.cookie_file()),
        );
        let node = runtime.block_on(Node::start(NodeConfig {
            network: bitcoin::Network::Regtest,
            side: Side::Lsp,
            store: directory.path().join("channels.sqlite"),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            fees: FeePolicy {
                base_msat: 0,
                proportional_millionths: 0,
            },
            to_self_delay: 144,
            poll_interval: Duration::from_millis(50),
            keys: Arc::new(LeafKeys::new(&[KEY; 32])),
            chain: Arc::new(BitcoindRpc::new(config)?),
            coins: Arc::new(Coins {
                node: Arc::clone(&world.node),
                n: KEY,
                spent: Mutex::default(),
            }),
            events: Arc::new(Ears(Arc::clone(&heard))),
            allow_unfunded: false,
            lsps: None,
        }))?;
        let outside = Self {
            node,
            heard,
            runtime,
            _directory: directory,
        };
        world.give(NAME, payout_script(KEY), CHANNEL * 2)?;
        outside.until("a node at the tip", || {
            Ok(outside.node.height() == world.node.height()?)
        })?;
        outside.open(world)?;
        Ok(outside)
    }

    fn open(&self, world: &World) -> Result<()> {
        let (id, address) = world.lightning()?;
        self.connect(id, address)?;
        {
            let _guard = self.runtime.enter();
            self.node.open_channel(id, CHANNEL, false)?;
        }
        self.until("the funding of the outside channel", || {
            Ok(!world.node.mempool()?.is_empty())
        })?;
        world.mine(6)?;
        self.usable()?;
        let height = world.node.height()?;
        world.coordinator_sees(height)
    }

    fn usable(&self) -> Result<()> {
        self.until("a usable outside channel", || {
            Ok(self.node.channels().iter().any(|channel| channel.usable))
        })
    }

    /// Connects to a peer, again and again.
    pub fn connect(&self, id: PublicKey, address: SocketAddr) -> Result<()> {
        Ok(self.runtime.block_on(self.node.connect(id, address))?)
    }

    /// Its Lightning id, and where it listens.
    pub fn address(&self) -> Result<String> {
        let listen = self.node.listen_address().context("it listens")?;
        Ok(format!("{}@{listen}", self.node.id()))
    }

    /// An invoice that is reached over its channel with the coordinator.
    pub fn invoice(&self, amount: Msat) -> Result<String> {
        let _guard = self.runtime.enter();
        Ok(self.node.invoice(&request(amount))?)
    }

    /// The same; what is paid waits for [`Self::claim`].
    pub fn hold_invoice(&self, amount: Msat, hash: PaymentHash) -> Result<String> {
        let _guard = self.runtime.enter();
        Ok(self.node.hold_invoice(&request(amount), hash, 0)?)
    }

    /// Waits until this payment waits, and says at which height it expires.
    pub fn holds(&self, ours: PaymentHash) -> Result<u32> {
        self.event("a payment that waits", |event| match event {
            NodeEvent::PaymentHeld { hash, expiry, .. } if *hash == ours => Some(*expiry),
            _ => None,
        })
    }

    /// Takes the payment that waits for this preimage.
    pub fn claim(&self, preimage: [u8; 32]) -> Result<()> {
        let _guard = self.runtime.enter();
        Ok(self.node.claim(preimage)?)
    }

    /// Begins to pay, once its channel can be used: the coordinator may have come back just now.
    pub fn send(&self, invoice: &str) -> Result<PaymentHash> {
        self.usable()?;
        let _guard = self.runtime.enter();
        let sent = self.node.pay(invoice, None);
        sent.with_context(|| format!("its channels are {:?}", self.node.channels()))
    }

    /// Pays, and waits until it is paid.
    pub fn pay(&self, invoice: &str) -> Result<PaymentHash> {
        let hash = self.send(invoice)?;
        match self.outcome(hash)? {
            Ok(()) => Ok(hash),
            Err(reason) => bail!("the payment failed: {reason}"),
        }
    }

    /// How a payment ends.
    pub fn outcome(&self, ours: PaymentHash) -> Result<Result<(), String>> {
        self.event("the end of a payment", |event| match event {
            NodeEvent::PaymentSent { hash, .. } if *hash == ours => Some(Ok(())),
            NodeEvent::PaymentFailed { hash, reason } if *hash == ours => Some(Err(reason.clone())),
            _ => None,
        })
    }

    /// Waits for a payment to it.
    pub fn paid(&self, ours: PaymentHash) -> Result<Msat> {
        self.event("a payment", |event| match event {
            NodeEvent::PaymentReceived { hash, amount, .. } if *hash == ours => Some(*amount),
            _ => None,
        })
    }

    /// Waits for an event, past ones included.
    pub fn event<T>(&self, what: &str, fits: impl Fn(&NodeEvent) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let heard = &self.heard;
        let mut events = heard.events.lock().map_err(|_| anyhow!("poisoned"))?;
        loop {
            if let Some(found) = events.iter().find_map(&fits) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "waited for {what}; it heard {events:?}");
            let waited = heard.changed.wait_timeout(events, left);
            (events, _) = waited.map_err(|_| anyhow!("poisoned"))?;
        }
    }

    /// What it could send over its channels.
    pub fn spendable(&self) -> Msat {
        let channels = self.node.channels();
        Msat(channels.iter().map(|channel| channel.spendable.0).sum())
    }

    /// The node itself.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Closes its channels together with the coordinator, and waits until that is in a block.
    pub fn close(&self, world: &World) -> Result<()> {
        for channel in self.node.channels() {
            let closing = self.node.close_channel(channel.channel, false);
            self.runtime.block_on(closing)?;
        }
        self.until("the closing transaction", || {
            Ok(!world.node.mempool()?.is_empty())
        })?;
        world.mine(6)?;
        // What each got goes into its wallet in one more transaction.
        world.mine_until_quiet()
    }

    fn until(&self, what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !so()? {
            ensure!(Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn request(amount: Msat) -> InvoiceRequest {
    InvoiceRequest {
        amount: Some(amount),
        description: "from outside".into(),
        expiry: Duration::from_secs(3600),
        hints: vec![],
    }
}
