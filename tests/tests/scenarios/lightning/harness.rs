//! Lightning nodes over loopback sockets, and leaves that are not on the chain.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bitcoin::{Amount, Network, Sequence, Transaction, TxOut, Txid};
use channel_host::{
    FeePolicy, InvoiceRequest, Leaf, LeafId, LeafKeys, Msat, Node, NodeConfig, NodeEvent, Side,
    funding_redeem_script, lsp_channel_id,
};
use scenarios::bitcoind::Bitcoind;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::coins::Coins;
use crate::chain::support::{config as chain_config, payout_script, sat, spend};

pub const CAPACITY: Amount = Amount::from_sat(600_000);
pub const EXIT_DELAY: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One node, its disk and its ears. Stopped and started again it is the same.
pub struct Member {
    pub bitcoind: Arc<Bitcoind>,
    pub side: Side,
    pub number: u8,
    directory: TempDir,
    address: Option<SocketAddr>,
    node: Option<Node>,
    events: UnboundedReceiver<NodeEvent>,
}

impl Member {
    pub async fn start(bitcoind: &Arc<Bitcoind>, side: Side, number: u8) -> Result<Self> {
        let mut member = Self {
            bitcoind: Arc::clone(bitcoind),
            side,
            number,
            directory: tempfile::tempdir()?,
            address: None,
            node: None,
            events: unbounded_channel().1,
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
            coins: Arc::new(Coins {
                node: Arc::clone(&self.bitcoind),
                n: self.number,
                spent: Mutex::new(HashSet::new()),
            }),
            events: Arc::new(sender),
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

    pub async fn abort(&mut self) {
        if let Some(node) = self.node.take() {
            node.abort().await;
        }
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
            exit_delay: EXIT_DELAY,
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
    let leaf = Unborn::new(&lsp, &client)?;
    lsp.synced().await?;
    client.synced().await?;
    leaf.open(&mut lsp, &mut client).await?;
    leaf.ungate([&lsp, &client])?;
    pay_client(&mut lsp, &mut client, 200_000_000).await?;
    Ok((bitcoind, lsp, client, leaf))
}

/// The coordinator pays its client.
pub async fn pay_client(lsp: &mut Member, client: &mut Member, amount: u64) -> Result<()> {
    let ours = lsp.node().keysend(client.node().id(), Msat(amount), None)?;
    // By its hash: after a crash older ones are told again.
    let paid = client
        .event(|event| match event {
            NodeEvent::PaymentReceived { hash, amount } if *hash == ours => Some(*amount),
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

/// Waits until a transaction is in the mempool that spends this one's output.
pub async fn child_in_mempool(node: &Bitcoind, parent: Txid) -> Result<Txid> {
    let mut found = None;
    until("a spend in the mempool", || {
        for txid in node.mempool()? {
            let raw = node.rpc("getrawtransaction", serde_json::json!([txid.to_string()]))?;
            let raw = raw.as_str().context("hex")?;
            let tx: Transaction = bitcoin::consensus::encode::deserialize_hex(raw)?;
            if tx.input.iter().any(|i| i.previous_output.txid == parent) {
                found = Some(txid);
            }
        }
        Ok(found.is_some())
    })
    .await?;
    found.context("found")
}
