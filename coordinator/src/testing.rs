//! For unit tests: a chain of our own making, and a coordinator's context on it.

mod sales;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::Secp256k1;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, FeeRate, Network, OutPoint, ScriptBuf, Sequence,
    Transaction, TxIn, TxMerkleNode, TxOut, Txid, Witness, absolute, constants, transaction,
};
use chain::wallet::OnchainWallet;
use chain::{
    BlockHeader, BlockId, ChainError, ChainSource, Coin, MempoolEntry, NodeInfo, PackageOutcome,
    Reject, RejectKind, Result, TestAccept,
};
use factory_tree::ceremony::coordinator::Invitee;
use factory_tree::ceremony::message::Round;
use factory_tree::factory::{FactorySpec, Member};
use factory_tree::ids::{Attempt, CeremonyId, ClientId};
use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
use factory_tree::testing::{TestClient, funding_tx};
use factory_tree::tree::{Draft, Tree};
use factory_tree::units::Height;
use keystore::{KdfCost, Passphrase, Seed};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use tokio::sync::{broadcast, watch};

use crate::ceremony::Ceremonies;
use crate::config::Config;
use crate::context::{ChainState, Context};
use crate::event::{Event, Events};
use crate::keys::{FreshSeed, NodeKeys};
use crate::ladder::LadderState;
use crate::lightning::Lightning;
use crate::limits::Feerates;
use crate::lsps1::Lsps1;
use crate::sales::Sales;
use crate::sessions::Sessions;
use crate::store::ceremonies::{self, Wish};
use crate::store::factories::{self, NewFactory};
use crate::store::webhooks::{self, WebhookRow};
use crate::store::{Store, attempts};
use crate::trees::Trees;
use crate::webhooks::Webhooks;

pub use sales::TestSale;

/// A chain in memory. Scripts and locks are not judged.
#[derive(Debug, Default)]
pub struct FakeChain(Mutex<Blocks>);

#[derive(Debug, Default)]
struct Blocks {
    active: Vec<Block>,
    all: HashMap<BlockHash, Block>,
    mempool: HashMap<Txid, Transaction>,
    refused: Vec<OutPoint>,
    packages: Vec<Vec<Transaction>>,
    feerate: Option<FeeRate>,
    made: u32,
}

impl FakeChain {
    /// A regtest chain of its genesis block alone.
    pub fn new() -> Arc<Self> {
        let chain = Self::default();
        let genesis = constants::genesis_block(Network::Regtest);
        chain
            .blocks()
            .all
            .insert(genesis.block_hash(), genesis.clone());
        chain.blocks().active.push(genesis);
        Arc::new(chain)
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.0.lock().unwrap()
    }

    /// Height of the tip.
    pub fn height(&self) -> u32 {
        u32::try_from(self.blocks().active.len()).unwrap() - 1
    }

    /// A block with these transactions, and its height.
    pub fn mine(&self, txs: &[Transaction]) -> u32 {
        let height = self.height() + 1;
        let mut blocks = self.blocks();
        blocks.made += 1;
        let coinbase = Transaction {
            version: transaction::Version::ONE,
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn {
                script_sig: ScriptBuf::builder()
                    .push_int(height.into())
                    .push_int(blocks.made.into())
                    .into_script(),
                sequence: Sequence::MAX,
                witness: Witness::new(),
                ..TxIn::default()
            }],
            output: vec![TxOut {
                value: Amount::from_sat(1),
                script_pubkey: ScriptBuf::new(),
            }],
        };
        let header = Header {
            version: Version::TWO,
            prev_blockhash: blocks.active.last().unwrap().block_hash(),
            merkle_root: TxMerkleNode::all_zeros(),
            time: height,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: blocks.made,
        };
        let txdata = std::iter::once(coinbase)
            .chain(txs.iter().cloned())
            .collect();
        let block = Block { header, txdata };
        for tx in txs {
            blocks.mempool.remove(&tx.compute_txid());
        }
        blocks.all.insert(block.block_hash(), block.clone());
        blocks.active.push(block);
        height
    }

    /// Empty blocks up to `height`.
    pub fn mine_to(&self, height: u32) {
        while self.height() < height {
            self.mine(&[]);
        }
    }

    /// The newest `depth` blocks leave the chain.
    pub fn undo(&self, depth: usize) {
        let mut blocks = self.blocks();
        let left = blocks.active.len() - depth;
        blocks.active.truncate(left);
    }

    /// What was broadcast and is not in a block.
    pub fn mempool(&self) -> Vec<Transaction> {
        self.blocks().mempool.values().cloned().collect()
    }

    /// Every package that was submitted.
    pub fn packages(&self) -> Vec<Vec<Transaction>> {
        self.blocks().packages.clone()
    }

    /// The node forgets its mempool.
    pub fn clear_mempool(&self) {
        self.blocks().mempool.clear();
    }

    /// What the node estimates from now on; 2 sat/vB until then.
    pub fn set_feerate(&self, rate: FeeRate) {
        self.blocks().feerate = Some(rate);
    }

    /// From now on no spend of `outpoint` is taken.
    pub fn refuse(&self, outpoint: OutPoint) {
        self.blocks().refused.push(outpoint);
    }
}

#[async_trait]
impl ChainSource for FakeChain {
    async fn node_info(&self) -> Result<NodeInfo> {
        Ok(NodeInfo {
            network: Network::Regtest,
            version: 300_000,
            blocks: self.height(),
            headers: self.height(),
            initial_block_download: false,
        })
    }

    async fn tip(&self) -> Result<BlockId> {
        let hash = self.blocks().active.last().unwrap().block_hash();
        Ok(BlockId {
            height: self.height(),
            hash,
        })
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>> {
        Ok(self
            .blocks()
            .active
            .get(height as usize)
            .map(Block::block_hash))
    }

    async fn header(&self, hash: BlockHash) -> Result<Option<BlockHeader>> {
        let blocks = self.blocks();
        let height = blocks
            .active
            .iter()
            .position(|block| block.block_hash() == hash);
        Ok(blocks.all.get(&hash).map(|block| BlockHeader {
            header: block.header,
            height: u32::try_from(height.unwrap_or(0)).unwrap(),
            active: height.is_some(),
        }))
    }

    async fn block(&self, hash: BlockHash) -> Result<Arc<Block>> {
        let found = self.blocks().all.get(&hash).cloned();
        found.map(Arc::new).ok_or(ChainError::NoBlock { hash })
    }

    async fn fee_rate(&self, _: u16) -> Result<FeeRate> {
        let set = self.blocks().feerate;
        Ok(set.unwrap_or(FeeRate::from_sat_per_vb_u32(2)))
    }

    async fn broadcast(&self, tx: &Transaction) -> Result<Txid> {
        let txid = tx.compute_txid();
        let mut blocks = self.blocks();
        if tx
            .input
            .iter()
            .any(|input| blocks.refused.contains(&input.previous_output))
        {
            let reason = Reject {
                kind: RejectKind::MissingInputs,
                message: "missing-inputs".into(),
            };
            return Err(ChainError::Rejected { txid, reason });
        }
        blocks.mempool.insert(txid, tx.clone());
        Ok(txid)
    }

    async fn submit_package(&self, package: &[Transaction]) -> Result<PackageOutcome> {
        let mut blocks = self.blocks();
        blocks.packages.push(package.to_vec());
        for tx in package {
            blocks.mempool.insert(tx.compute_txid(), tx.clone());
        }
        Ok(PackageOutcome {
            transactions: Vec::new(),
            replaced: Vec::new(),
            message: "success".into(),
        })
    }

    async fn test_accept(&self, _: &[Transaction]) -> Result<Vec<TestAccept>> {
        Err(not_here("testmempoolaccept"))
    }

    async fn coin(&self, outpoint: OutPoint) -> Result<Option<Coin>> {
        let blocks = self.blocks();
        let mut all = (0u32..).zip(&blocks.active);
        Ok(all.find_map(|(height, block)| {
            let mut txs = block.txdata.iter();
            let tx = txs.find(|tx| tx.compute_txid() == outpoint.txid)?;
            Some(Coin {
                txout: tx.output.get(outpoint.vout as usize)?.clone(),
                height,
                coinbase: tx.is_coinbase(),
            })
        }))
    }

    async fn mempool_entry(&self, txid: Txid) -> Result<Option<MempoolEntry>> {
        let known = self.blocks().mempool.contains_key(&txid);
        Ok(known.then_some(MempoolEntry {
            vsize: 100,
            fee: Amount::from_sat(200),
            descendant_vsize: 100,
            descendant_fee: Amount::from_sat(200),
            depends: vec![],
            spent_by: vec![],
        }))
    }

    async fn mempool_spender(&self, outpoint: OutPoint) -> Result<Option<Txid>> {
        let blocks = self.blocks();
        let mut all = blocks.mempool.iter();
        let spends = |tx: &Transaction| {
            let mut inputs = tx.input.iter();
            inputs.any(|input| input.previous_output == outpoint)
        };
        Ok(all.find(|(_, tx)| spends(tx)).map(|(txid, _)| *txid))
    }

    async fn raw_mempool_transaction(&self, _: Txid) -> Result<Option<Transaction>> {
        Err(not_here("getrawtransaction"))
    }
}

fn not_here(method: &'static str) -> ChainError {
    ChainError::Rpc {
        method,
        code: -32601,
        message: "not in this test".into(),
    }
}

/// The attempt of [`TestWorld::factory`].
pub const ROUND: Round = Round {
    ceremony: CeremonyId([1; 16]),
    attempt: Attempt(1),
};
/// Its randomness.
pub const FRESH: FreshSeed = [7; 16];

/// A coordinator's context on a chain of our own.
pub struct TestWorld {
    pub ctx: Arc<Context>,
    pub chain: Arc<FakeChain>,
    pub events: broadcast::Receiver<Event>,
    pub dir: tempfile::TempDir,
}

impl TestWorld {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = FakeChain::new();
        let passphrase = Passphrase::new("correct horse".into()).unwrap();
        Seed::create(dir.path().join("seed.json"), &passphrase, KdfCost::Light).unwrap();
        let (ctx, events) = context(&dir, Arc::clone(&chain)).await;
        Self {
            ctx,
            chain,
            events,
            dir,
        }
    }

    /// The same data after a crash: nothing in memory is left.
    pub async fn crash(self) -> Self {
        let Self {
            ctx, chain, dir, ..
        } = self;
        ctx.store.close().await;
        let (ctx, events) = context(&dir, Arc::clone(&chain)).await;
        Self {
            ctx,
            chain,
            events,
            dir,
        }
    }

    /// What happened since the last call, blocks left out.
    pub fn happened(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if !matches!(
                event,
                Event::BlockConnected { .. } | Event::BlockDisconnected { .. }
            ) {
                all.push(event);
            }
        }
        all
    }

    /// A factory whose funding is signed, and its tree.
    pub async fn factory(&self, expiry_policy: ExpiryPolicy, clients: u64) -> Tree {
        let clients = (0..clients).map(|n| TestClient::new(1, n, Amount::from_sat(200_000)));
        let members = clients.map(|client| client.member());
        self.factory_of(expiry_policy, members.collect()).await
    }

    /// The same of these members.
    pub async fn factory_of(&self, expiry_policy: ExpiryPolicy, members: Vec<Member>) -> Tree {
        let (round, fresh) = (ROUND, FRESH);
        let params = FactoryParams {
            expiry_policy,
            ..FactoryParams::profile(Profile::Lite, Network::Regtest)
        };
        let spec = FactorySpec {
            params: params.clone(),
            birth: Height(self.chain.height()),
            lsp_key: self
                .ctx
                .keys
                .factory_secret(round, fresh)
                .public_key(&Secp256k1::new()),
            members,
        };
        let draft = Draft::new(spec.clone()).unwrap();
        let tx = funding_tx(1, draft.funding_output());
        let vout = tx
            .output
            .iter()
            .position(|output| *output == draft.funding_output())
            .unwrap();
        let vout = u32::try_from(vout).unwrap();
        let tree = draft.at(OutPoint::new(tx.compute_txid(), vout)).unwrap();
        let wish = Wish {
            params,
            clients: None,
            min_clients: 2,
            capacity: None,
            feerate_sat_per_kwu: None,
            rung: None,
            invited: None,
        };
        self.ctx
            .store
            .write(async |conn| {
                ceremonies::insert(conn, round.ceremony, 0, &wish).await?;
                let invited: Vec<Invitee> = Vec::new();
                attempts::begin(conn, round, &fresh, &invited).await?;
                let new = NewFactory {
                    id: tree.id(),
                    round,
                    spec: &spec,
                    funding_tx: &tx,
                    vout,
                    expiry_height: tree.schedule().expiry.0,
                    confirmations: 2,
                };
                factories::propose(conn, new).await?;
                factories::funding_signed(conn, round, tree.id()).await?;
                ceremonies::complete(conn, round.ceremony).await?;
                // As if it had been signed.
                factories::set_signed_tx(conn, tree.id(), &tx).await
            })
            .await
            .unwrap();
        tree
    }

    /// Gives a client a webhook.
    pub async fn set_webhook(&self, client: ClientId) {
        let row = WebhookRow {
            app_name: "a".to_owned(),
            url: "https://127.0.0.1/".to_owned(),
        };
        let set = self
            .ctx
            .store
            .write(async |tx| webhooks::set(tx, client, &row).await);
        set.await.unwrap();
    }

    /// What webhooks are told, or were: the causes, in order, and the notifications.
    pub async fn woken(&self) -> Vec<(String, String)> {
        crate::webhooks::queue(&self.ctx).await.unwrap();
        let read = self.ctx.store.read(async |tx| {
            let rows = sqlx::query("SELECT cause, body FROM wake ORDER BY cause")
                .fetch_all(tx)
                .await?;
            let row = |row: &SqliteRow| Ok((row.try_get("cause")?, row.try_get("body")?));
            let rows = rows.iter().map(row);
            rows.collect::<crate::store::Result<Vec<(String, String)>>>()
        });
        read.await.unwrap()
    }

    /// The funding transaction of [`Self::factory`].
    pub async fn funding(&self, tree: &Tree) -> Transaction {
        let id = tree.id();
        let read = self
            .ctx
            .store
            .read(async |tx| factories::funding_tx(tx, id).await)
            .await;
        read.unwrap().unwrap().0
    }
}

async fn context(
    dir: &tempfile::TempDir,
    chain: Arc<FakeChain>,
) -> (Arc<Context>, broadcast::Receiver<Event>) {
    let passphrase = Passphrase::new("correct horse".into()).unwrap();
    let seed = Seed::open(dir.path().join("seed.json"), &passphrase).unwrap();
    let keys = Arc::new(NodeKeys::new(&seed, Network::Regtest).unwrap());
    let store = Store::open(&dir.path().join("coordinator.sqlite"))
        .await
        .unwrap();
    let genesis = BlockId {
        height: 0,
        hash: constants::genesis_block(Network::Regtest).block_hash(),
    };
    let changes = Arc::new(store.clone());
    let wallet = OnchainWallet::open(
        Network::Regtest,
        &keys.wallet_master(),
        changes,
        Some(genesis),
    )
    .await;
    let mut config = Config::defaults().unwrap();
    config.network = Network::Regtest;
    config.chain.poll_ms = 1;
    let events = Events::new(None);
    let reader = events.subscribe();
    let ctx = Context {
        config,
        store,
        events,
        keys,
        source: chain,
        wallet: Arc::new(wallet.unwrap()),
        chain: watch::Sender::new(ChainState::Away("not asked yet".into())),
        sessions: Sessions::default(),
        ceremonies: Ceremonies::default(),
        trees: Trees::default(),
        lightning: Lightning::default(),
        ladder: LadderState::default(),
        webhooks: Webhooks::default(),
        lsps1: Lsps1::default(),
        sales: Sales::default(),
        feerates: Feerates::default(),
        alarms: crate::alarms::Alarms::default(),
    };
    (Arc::new(ctx), reader)
}
