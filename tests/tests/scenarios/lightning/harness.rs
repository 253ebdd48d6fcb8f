//! Lightning nodes over loopback sockets, and leaves that are not on the chain.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Network, Sequence, Transaction, TxOut, Txid};
use channel_host::{
    FeeCoins, FeePolicy, InvoiceRequest, JitGround, JitOpening, Leaf, LeafId, LeafKeys,
    LspsService, Msat, Node, NodeConfig, NodeEvent, PaymentHash, RpcError, Side, SpendKind,
    funding_redeem_script, lsp_channel_id,
};
use scenarios::bitcoind::Bitcoind;
use scenarios::coins::Coins;
use serde_json::{Map, Value};
use sqlx::Connection;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use crate::chain::support::{config as chain_config, payout_script, sat, spend};

pub const CAPACITY: Amount = Amount::from_sat(600_000);
pub const EXIT_DELAY: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// As `channel-host` stores it.
const A_CLOSE_IS_STORED: &str = r#"EXISTS (
  SELECT 1 FROM entry WHERE subspace = 'leaves' AND CAST(value AS TEXT) LIKE '%"stage":"Closed"%'
)"#;

/// Sells channels just in time to whoever has an order, and answers nothing.
#[derive(Debug)]
struct Shop;

#[async_trait]
impl LspsService for Shop {
    fn protocols(&self) -> Vec<u16> {
        Vec::new()
    }

    async fn answer(
        &self,
        _: PublicKey,
        _: &str,
        _: Map<String, Value>,
    ) -> Result<Value, RpcError> {
        Err(RpcError::unknown_method())
    }

    async fn open_jit(&self, _: JitOpening) -> Result<JitGround, String> {
        Ok(JitGround::Chain)
    }
}

/// One node, its disk and its ears. Stopped and started again it is the same.
pub struct Member {
    pub bitcoind: Arc<Bitcoind>,
    pub side: Side,
    pub number: u8,
    directory: TempDir,
    address: Option<SocketAddr>,
    node: Option<Node>,
    events: UnboundedReceiver<NodeEvent>,
    coins: Arc<dyn FeeCoins>,
}

impl Member {
    pub async fn start(bitcoind: &Arc<Bitcoind>, side: Side, number: u8) -> Result<Self> {
        let coins = Coins {
            node: Arc::clone(bitcoind),
            n: number,
            spent: Mutex::new(HashSet::new()),
        };
        Self::start_with(bitcoind, side, number, Arc::new(coins)).await
    }

    pub async fn start_with(
        bitcoind: &Arc<Bitcoind>,
        side: Side,
        number: u8,
        coins: Arc<dyn FeeCoins>,
    ) -> Result<Self> {
        let mut member = Self {
            bitcoind: Arc::clone(bitcoind),
            side,
            number,
            directory: tempfile::tempdir()?,
            address: None,
            node: None,
            events: unbounded_channel().1,
            coins,
        };
        member.launch().await?;
        Ok(member)
    }

    pub async fn launch(&mut self) -> Result<()> {
        let (sender, events) = unbounded_channel();
        self.events = events;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let chain = chain::BitcoindRpc::new(chain_config(&self.bitcoind))?;
        let node = Node::start(NodeConfig {
            network: Network::Regtest,
            side: self.side,
            store: self.directory.path().join("channels.sqlite"),
            listen: Some(self.address.unwrap_or(any)),
            fees: FeePolicy {
                base_msat: 1_000,
                proportional_millionths: 100,
            },
            to_self_delay: 144,
            poll_interval: Duration::from_millis(50),
            keys: Arc::new(self.keys()),
            chain: Arc::new(chain),
            coins: Arc::clone(&self.coins),
            events: Arc::new(sender),
            allow_unfunded: false,
            lsps: (self.side == Side::Lsp).then(|| Arc::new(Shop) as Arc<dyn LspsService>),
        })
        .await?;
        self.address = node.listen_address();
        self.node = Some(node);
        Ok(())
    }

    pub fn keys(&self) -> LeafKeys {
        LeafKeys::new(&[self.number; 32])
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }

    /// Stops in order and starts again.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(node) = self.node.take() {
            node.shutdown().await?;
        }
        self.launch().await
    }

    /// Stops without a last write and starts again.
    pub async fn crash(&mut self) -> Result<()> {
        self.abort().await;
        self.launch().await
    }

    /// A copy of its disk, while it is stopped.
    pub fn disk(&self) -> Result<TempDir> {
        let copy = tempfile::tempdir()?;
        copy_files(self.directory.path(), copy.path())?;
        Ok(copy)
    }

    /// Puts a copy back in place of the disk; returns what was there.
    pub fn exchange_disk(&mut self, copy: TempDir) -> TempDir {
        std::mem::replace(&mut self.directory, copy)
    }

    pub async fn abort(&mut self) {
        if let Some(node) = self.node.take() {
            node.abort().await;
        }
    }

    /// While it is stopped: lets its store fail for good after so many writes from the next start on, as a full disk would; `None` mends it.
    pub async fn fail_after(&self, writes: Option<u32>) -> Result<()> {
        let fuse = writes.map(|writes| {
            format!(
                "CREATE TABLE fuses (remaining INTEGER NOT NULL);
                 INSERT INTO fuses VALUES ({writes});
                 CREATE TRIGGER fuse BEFORE INSERT ON entry BEGIN
                   UPDATE fuses SET remaining = remaining - 1;
                   SELECT RAISE(ABORT, 'the fuse has blown') FROM fuses WHERE remaining < 0;
                 END"
            )
        });
        self.fuse(fuse).await
    }

    /// The same when LDK's manager is to be written once a leaf is stored as closed.
    pub async fn fail_after_close(&self) -> Result<()> {
        let fuse = format!(
            "CREATE TRIGGER fuse BEFORE INSERT ON entry
             WHEN NEW.name = 'manager' AND {A_CLOSE_IS_STORED}
             BEGIN SELECT RAISE(ABORT, 'the fuse has blown'); END"
        );
        self.fuse(Some(fuse)).await
    }

    /// Whether a leaf is stored as closed.
    pub async fn stores_a_close(&self) -> Result<bool> {
        let query = format!("SELECT {A_CLOSE_IS_STORED}");
        let mut store = self.open().await?;
        let stored: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut store)
            .await?;
        store.close().await?;
        Ok(stored == 1)
    }

    async fn open(&self) -> Result<sqlx::SqliteConnection> {
        let path = self.directory.path().join("channels.sqlite");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
        Ok(sqlx::SqliteConnection::connect_with(&options).await?)
    }

    async fn fuse(&self, fuse: Option<String>) -> Result<()> {
        let mut store = self.open().await?;
        let mend = "DROP TRIGGER IF EXISTS fuse; DROP TABLE IF EXISTS fuses";
        sqlx::raw_sql(mend).execute(&mut store).await?;
        if let Some(fuse) = fuse {
            let fuse = sqlx::AssertSqlSafe(fuse);
            sqlx::raw_sql(fuse).execute(&mut store).await?;
        }
        Ok(store.close().await?)
    }

    pub async fn connect(&self, to: &Member) -> Result<()> {
        let address = to.address.context("it listens")?;
        Ok(self.node().connect(to.node().id(), address).await?)
    }

    /// The first event that fits; those before it are dropped.
    pub async fn event<T>(&mut self, fits: impl Fn(&NodeEvent) -> Option<T>) -> Result<T> {
        let mut seen = Vec::new();
        let found = timeout(PATIENCE, async {
            while let Some(event) = self.events.recv().await {
                if let Some(found) = fits(&event) {
                    return Some(found);
                }
                seen.push(event);
            }
            None
        })
        .await;
        match found {
            Ok(Some(found)) => Ok(found),
            _ => bail!("node {} waits in vain; it told: {seen:?}", self.number),
        }
    }

    /// The next event, if there is one already.
    pub fn heard(&mut self) -> Option<NodeEvent> {
        self.events.try_recv().ok()
    }

    pub async fn paid(&mut self) -> Result<Msat> {
        self.event(|event| match event {
            NodeEvent::PaymentReceived { amount, .. } => Some(*amount),
            _ => None,
        })
        .await
    }

    pub async fn sent(&mut self) -> Result<()> {
        let failed = self
            .event(|event| match event {
                NodeEvent::PaymentSent { .. } => Some(None),
                NodeEvent::PaymentFailed { reason, .. } => Some(Some(reason.clone())),
                _ => None,
            })
            .await?;
        match failed {
            None => Ok(()),
            Some(reason) => bail!("the payment failed: {reason}"),
        }
    }

    pub async fn failed(&mut self) -> Result<String> {
        self.event(|event| match event {
            NodeEvent::PaymentFailed { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until this node has taken in the tip.
    pub async fn synced(&self) -> Result<()> {
        until("a node at the tip", || {
            Ok(self.node().height() == self.bitcoind.height()?)
        })
        .await
    }

    /// Waits until so many channels can be used.
    pub async fn usable(&self, channels: usize) -> Result<()> {
        until("usable channels", || {
            let usable = self.node().channels().into_iter().filter(|c| c.usable);
            Ok(usable.count() == channels)
        })
        .await
        .with_context(|| {
            let (all, peers) = (self.node().channels(), self.node().peers());
            format!("node {} has {all:?}, and the peers {peers:?}", self.number)
        })
    }

    pub fn invoice(&self, via: &Member, amount: u64) -> Result<String> {
        let hint = via.node().client_route(self.node().id())?;
        Ok(self.node().invoice(&InvoiceRequest {
            amount: Some(Msat(amount)),
            description: "a test".into(),
            expiry: Duration::from_secs(600),
            hints: vec![hint],
        })?)
    }

    pub fn plain_invoice(&self, amount: u64) -> Result<String> {
        Ok(self.node().invoice(&InvoiceRequest {
            amount: Some(Msat(amount)),
            description: "a test".into(),
            expiry: Duration::from_secs(600),
            hints: vec![],
        })?)
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

/// Waits for a condition.
pub async fn until(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let waited = timeout(PATIENCE, async {
        while !so()? {
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    });
    waited.await.with_context(|| format!("waited for {what}"))?
}

/// Waits until one side has taken in the tip, and has done what followed from all before.
pub async fn settled(side: &Member, leaf: LeafId) -> Result<()> {
    side.synced().await?;
    let seen = side.node().height();
    until("a settled block", || {
        let settled = side.node().settlement(leaf);
        Ok(settled.is_some_and(|settled| settled.height >= seen))
    })
    .await
}

/// A leaf as both sides verified it, its transaction signed and kept.
pub struct Unborn {
    pub id: LeafId,
    pub transaction: Transaction,
    pub lsp: Leaf,
    pub client: Leaf,
}

impl Unborn {
    /// A leaf transaction over a confirmed coin.
    pub fn new(lsp: &Member, client: &Member) -> Result<Self> {
        Self::with_delay(lsp, client, EXIT_DELAY)
    }

    pub fn with_delay(lsp: &Member, client: &Member, exit_delay: u32) -> Result<Self> {
        let id = LeafId(rand::random());
        let lsp_id = lsp_channel_id(id.0, rand::random());
        let client_id = u128::from_be_bytes(id.0);
        let redeem_script = funding_redeem_script(
            &lsp.keys().funding_pubkey(lsp_id),
            &client.keys().funding_pubkey(client_id),
        );
        let coin = lsp
            .bitcoind
            .fund(&payout_script(200), CAPACITY + sat(5_000))?;
        let outputs = [
            TxOut {
                value: sat(3_000),
                script_pubkey: payout_script(201),
            },
            TxOut {
                value: CAPACITY,
                script_pubkey: redeem_script.to_p2wsh(),
            },
        ];
        let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
        let transaction = spend(200, coin, CAPACITY + sat(5_000), &outputs, sequence)?;
        let side = |channel_id| Leaf {
            id,
            channel_id,
            transaction: transaction.clone(),
            vout: 1,
            redeem_script: redeem_script.clone(),
            exit_delay,
            last_expiry: 100_000,
            spends: vec![],
        };
        Ok(Self {
            id,
            lsp: side(lsp_id),
            client: side(client_id),
            transaction,
        })
    }

    /// Opens its channel; the gate stays shut.
    pub async fn open(&self, lsp: &mut Member, client: &mut Member) -> Result<()> {
        let (lsp_id, client_id) = (lsp.node().id(), client.node().id());
        client.node().expect_leaf(self.client.clone(), lsp_id)?;
        lsp.node().open_leaf(self.lsp.clone(), client_id)?;
        for side in [lsp, client] {
            let opened = |event: &NodeEvent| match event {
                NodeEvent::LeafOpened { leaf } if *leaf == self.id => Some(Ok(())),
                NodeEvent::LeafRefused { reason, .. } => Some(Err(reason.clone())),
                _ => None,
            };
            side.event(opened).await??;
        }
        Ok(())
    }

    /// Tells both that the factory is confirmed.
    pub fn ungate(&self, sides: [&Member; 2]) -> Result<()> {
        for side in sides {
            side.node().set_factory_confirmed(self.id, true)?;
        }
        Ok(())
    }

    /// Publishes the leaf and confirms it.
    pub fn publish(&self, node: &Bitcoind) -> Result<()> {
        node.mine_with(std::slice::from_ref(&self.transaction))?;
        Ok(())
    }
}

/// A node, the coordinator's and one wallet's, connected.
pub async fn pair() -> Result<(Arc<Bitcoind>, Member, Member)> {
    let bitcoind = Arc::new(Bitcoind::start()?);
    let lsp = Member::start(&bitcoind, Side::Lsp, 11).await?;
    let client = Member::start(&bitcoind, Side::Client, 12).await?;
    client.connect(&lsp).await?;
    Ok((bitcoind, lsp, client))
}

/// A pair with an open, confirmed-for-all-they-know leaf, and some of its money on the client's side.
pub async fn paid_pair() -> Result<(Arc<Bitcoind>, Member, Member, Unborn)> {
    let (bitcoind, mut lsp, mut client) = pair().await?;
    let leaf = paid_leaf(&mut lsp, &mut client).await?;
    Ok((bitcoind, lsp, client, leaf))
}

/// Such a leaf between two.
pub async fn paid_leaf(lsp: &mut Member, client: &mut Member) -> Result<Unborn> {
    let leaf = Unborn::new(lsp, client)?;
    lsp.synced().await?;
    client.synced().await?;
    leaf.open(lsp, client).await?;
    leaf.ungate([lsp, client])?;
    pay_client(lsp, client, 200_000_000).await?;
    Ok(leaf)
}

/// The coordinator pays its client.
pub async fn pay_client(lsp: &mut Member, client: &mut Member, amount: u64) -> Result<()> {
    let ours = lsp
        .node()
        .keysend(client.node().id(), Msat(amount), None, rand::random())?;
    // By its hash: after a crash older ones are told again.
    let paid = client
        .event(|event| match event {
            NodeEvent::PaymentReceived { hash, amount, .. } if *hash == ours => Some(*amount),
            _ => None,
        })
        .await?;
    assert_eq!(paid, Msat(amount));
    lsp.event(|event| match event {
        NodeEvent::PaymentSent { hash, .. } if *hash == ours => Some(()),
        _ => None,
    })
    .await
}

/// What spends a transaction's output in the mempool.
pub fn spender(node: &Bitcoind, parent: Txid) -> Result<Option<Transaction>> {
    for txid in node.mempool()? {
        // Replaced meanwhile, it is there no more.
        let Ok(raw) = node.rpc("getrawtransaction", serde_json::json!([txid.to_string()])) else {
            continue;
        };
        let raw = raw.as_str().context("hex")?;
        let tx: Transaction = bitcoin::consensus::encode::deserialize_hex(raw)?;
        if tx.input.iter().any(|i| i.previous_output.txid == parent) {
            return Ok(Some(tx));
        }
    }
    Ok(None)
}

/// Waits until a transaction is in the mempool that spends this one's output.
pub async fn child_in_mempool(node: &Bitcoind, parent: Txid) -> Result<Transaction> {
    let mut found = None;
    until("a spend in the mempool", || {
        found = spender(node, parent)?;
        Ok(found.is_some())
    })
    .await?;
    found.context("found")
}

/// Confirmed coins for one side's exits.
pub fn fee_coins(node: &Bitcoind, member: &Member) -> Result<()> {
    for _ in 0..3 {
        node.send_to(&payout_script(member.number), sat(50_000))?;
    }
    node.mine(1)?;
    Ok(())
}

pub async fn spent_by(member: &mut Member) -> Result<SpendKind> {
    member
        .event(|event| match event {
            NodeEvent::LeafSpent { kind, .. } => Some(*kind),
            _ => None,
        })
        .await
}

/// What the side's key holds on the chain.
pub fn holds(node: &Bitcoind, member: &Member) -> Result<Amount> {
    node.balance_of(&payout_script(member.number))
}

pub const PREIMAGE: [u8; 32] = [9; 32];

/// One side pays the other 100,000 sat, which that holds. Returns when it expires.
pub async fn held(payer: &mut Member, payee: &mut Member) -> Result<u32> {
    held_for(payer, payee, 0).await
}

/// The same, and so many blocks more are left to claim it in.
pub async fn held_for(payer: &mut Member, payee: &mut Member, blocks: u32) -> Result<u32> {
    let request = InvoiceRequest {
        amount: Some(Msat(100_000_000)),
        description: "held".into(),
        expiry: Duration::from_secs(600),
        hints: vec![],
    };
    let hash = PaymentHash(sha256::Hash::hash(&PREIMAGE).to_byte_array());
    let invoice = payee.node().hold_invoice(&request, hash, blocks)?;
    payer.node().pay(&invoice, None)?;
    payee
        .event(|event| match event {
            NodeEvent::PaymentHeld { expiry, .. } => Some(*expiry),
            _ => None,
        })
        .await
}

const OUTSIDE: Amount = Amount::from_sat(1_000_000);

/// A node of the world, with an ordinary channel to the coordinator.
pub async fn outside(lsp: &mut Member) -> Result<Member> {
    let node = &lsp.bitcoind;
    node.send_to(&payout_script(13), OUTSIDE + sat(100_000))?;
    node.mine(1)?;
    let mut outside = Member::start(node, Side::Client, 13).await?;
    outside.connect(lsp).await?;
    let peer = lsp.node().id();
    let number = outside.node().open_channel(peer, OUTSIDE, false)?;
    // Signed and broadcast: then it confirms.
    until("a funding transaction", || {
        Ok(!outside.bitcoind.mempool()?.is_empty())
    })
    .await?;
    outside.bitcoind.mine(8)?;
    let opened = |event: &NodeEvent| match event {
        NodeEvent::ChannelOpened { id, .. } => Some(*id),
        _ => None,
    };
    assert_eq!(outside.event(opened).await?, number);
    lsp.event(opened).await?;
    Ok(outside)
}
