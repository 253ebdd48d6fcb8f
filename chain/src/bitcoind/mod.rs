//! [`ChainSource`] over Bitcoin Core's JSON-RPC.

mod answer;
mod fees;
mod rpc;
mod submit;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{Block, BlockHash, FeeRate, OutPoint, Transaction, Txid};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    BlockHeader, BlockId, ChainError, ChainSource, Coin, MempoolEntry, NodeInfo, PackageOutcome,
    Result, TestAccept,
};
use rpc::RpcPool;

/// RPC_INVALID_ADDRESS_OR_KEY: an unknown block or transaction.
const NOT_FOUND: i32 = -5;
/// RPC_INVALID_PARAMETER: here, a height above the tip.
const BAD_PARAMETER: i32 = -8;
/// RPC_MISC_ERROR: here, a block whose data is not there.
const MISC: i32 = -1;

/// How to reach a node.
#[derive(Clone, Debug)]
pub struct BitcoindConfig {
    /// Address of the RPC server, like `http://127.0.0.1:8332`.
    pub url: String,
    /// Credentials.
    pub auth: RpcAuth,
    /// How long one answer may take.
    pub timeout: Duration,
    /// How long to wait for a node that says that it is starting or too busy.
    pub warmup: Duration,
    /// How many calls may be under way at once.
    pub connections: usize,
    /// The feerate to use when the node has no estimate (it never has one on regtest).
    pub fallback_fee: FeeRate,
}

impl BitcoindConfig {
    /// With the usual limits: 30 s for an answer, 30 s for a start, four calls at once, 5 sat/vB without an estimate.
    #[must_use]
    pub fn new(url: impl Into<String>, auth: RpcAuth) -> Self {
        Self {
            url: url.into(),
            auth,
            timeout: Duration::from_secs(30),
            warmup: Duration::from_secs(30),
            connections: 4,
            fallback_fee: FeeRate::from_sat_per_vb_u32(5),
        }
    }
}

/// Credentials of the RPC server.
#[derive(Clone)]
pub enum RpcAuth {
    /// The cookie file in the node's data directory; read again after the node has restarted.
    CookieFile(PathBuf),
    /// A configured user.
    UserPass {
        /// Name.
        user: String,
        /// Password.
        password: Zeroizing<String>,
    },
}

impl std::fmt::Debug for RpcAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CookieFile(path) => f.debug_tuple("CookieFile").field(path).finish(),
            Self::UserPass { user, .. } => f
                .debug_struct("UserPass")
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// A Bitcoin Core node.
#[derive(Debug)]
pub struct BitcoindRpc {
    rpc: RpcPool,
    fallback_fee: FeeRate,
}

impl BitcoindRpc {
    /// Does not connect yet: see [`NodeInfo::require_ready`].
    ///
    /// # Errors
    /// [`ChainError::BadUrl`].
    pub fn new(config: BitcoindConfig) -> Result<Self> {
        let fallback_fee = config.fallback_fee;
        Ok(Self {
            rpc: RpcPool::new(config)?,
            fallback_fee,
        })
    }
}

#[async_trait]
impl ChainSource for BitcoindRpc {
    async fn node_info(&self) -> Result<NodeInfo> {
        let chain: answer::BlockchainInfo = self.rpc.call("getblockchaininfo", vec![]).await?;
        let network: answer::NetworkInfo = self.rpc.call("getnetworkinfo", vec![]).await?;
        Ok(NodeInfo {
            network: chain.network()?,
            version: network.version,
            blocks: chain.blocks,
            headers: chain.headers,
            initial_block_download: chain.initialblockdownload,
        })
    }

    async fn tip(&self) -> Result<BlockId> {
        let chain: answer::BlockchainInfo = self.rpc.call("getblockchaininfo", vec![]).await?;
        Ok(BlockId {
            height: chain.blocks,
            hash: chain.bestblockhash,
        })
    }

    async fn block_hash(&self, height: u32) -> Result<Option<BlockHash>> {
        absent_if(
            BAD_PARAMETER,
            self.rpc.call("getblockhash", vec![json!(height)]).await,
        )
    }

    async fn header(&self, hash: BlockHash) -> Result<Option<BlockHeader>> {
        let info: Result<answer::HeaderInfo> = self
            .rpc
            .call("getblockheader", vec![json!(hash), json!(true)])
            .await;
        let Some(info) = absent_if(NOT_FOUND, info)? else {
            return Ok(None);
        };
        let raw: String = self
            .rpc
            .call("getblockheader", vec![json!(hash), json!(false)])
            .await?;
        let header = deserialize_hex(&raw).map_err(|error| unreadable("getblockheader", error))?;
        Ok(Some(BlockHeader {
            header,
            height: info.height,
            active: info.confirmations >= 0,
        }))
    }

    async fn block(&self, hash: BlockHash) -> Result<Arc<Block>> {
        let raw: Result<String> = self.rpc.call("getblock", vec![json!(hash), json!(0)]).await;
        let raw = raw.map_err(|error| match error {
            ChainError::Rpc {
                code: NOT_FOUND | MISC,
                ..
            } => ChainError::NoBlock { hash },
            other => other,
        })?;
        let block: Block = deserialize_hex(&raw).map_err(|error| unreadable("getblock", error))?;
        if block.block_hash() != hash {
            return Err(unreadable(
                "getblock",
                format!("block {} came for {hash}", block.block_hash()),
            ));
        }
        Ok(Arc::new(block))
    }

    async fn fee_rate(&self, target_blocks: u16) -> Result<FeeRate> {
        fees::fee_rate(&self.rpc, target_blocks, self.fallback_fee).await
    }

    async fn broadcast(&self, transaction: &Transaction) -> Result<Txid> {
        submit::broadcast(self, transaction).await
    }

    async fn submit_package(&self, transactions: &[Transaction]) -> Result<PackageOutcome> {
        submit::submit_package(self, transactions).await
    }

    async fn test_accept(&self, transactions: &[Transaction]) -> Result<Vec<TestAccept>> {
        submit::test_accept(&self.rpc, transactions).await
    }

    async fn coin(&self, outpoint: OutPoint) -> Result<Option<Coin>> {
        let params = vec![json!(outpoint.txid), json!(outpoint.vout), json!(false)];
        let Some(found): Option<answer::TxOutInfo> = self.rpc.call("gettxout", params).await?
        else {
            return Ok(None);
        };
        let best: answer::HeaderInfo = self
            .rpc
            .call("getblockheader", vec![json!(found.bestblock), json!(true)])
            .await?;
        found.into_coin(best.height).map(Some)
    }

    async fn mempool_entry(&self, txid: Txid) -> Result<Option<MempoolEntry>> {
        let entry: Result<answer::MempoolEntryInfo> =
            self.rpc.call("getmempoolentry", vec![json!(txid)]).await;
        absent_if(NOT_FOUND, entry)?
            .map(answer::MempoolEntryInfo::into_entry)
            .transpose()
    }

    async fn mempool_spender(&self, outpoint: OutPoint) -> Result<Option<Txid>> {
        let asked = json!([{"txid": outpoint.txid, "vout": outpoint.vout}]);
        let spenders: Vec<answer::Spender> =
            self.rpc.call("gettxspendingprevout", vec![asked]).await?;
        Ok(spenders
            .into_iter()
            .find_map(|spender| spender.spendingtxid))
    }

    async fn raw_mempool_transaction(&self, txid: Txid) -> Result<Option<Transaction>> {
        // A node with a transaction index answers for confirmed ones too; the mempool itself must be asked first.
        if self.mempool_entry(txid).await?.is_none() {
            return Ok(None);
        }
        let raw: Result<String> = self
            .rpc
            .call("getrawtransaction", vec![json!(txid), json!(false)])
            .await;
        let Some(raw) = absent_if(NOT_FOUND, raw)? else {
            return Ok(None);
        };
        deserialize_hex(&raw)
            .map(Some)
            .map_err(|error| unreadable("getrawtransaction", error))
    }
}

/// Turns one RPC error code into "there is none".
fn absent_if<T>(code: i32, answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(ChainError::Rpc { code: found, .. }) if found == code => Ok(None),
        other => other.map(Some),
    }
}

fn unreadable(method: &'static str, what: impl ToString) -> ChainError {
    ChainError::UnexpectedAnswer {
        method,
        what: what.to_string(),
    }
}

fn parse<T: serde::de::DeserializeOwned>(method: &'static str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| unreadable(method, error))
}
