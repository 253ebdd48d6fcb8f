//! The node's answers, only the fields we use.
//!
//! `bitcoincore-rpc`'s own structs refuse P2A outputs ("unknown variant anchor") and the mempool entries of new nodes, hence these.

use std::collections::BTreeMap;

use bitcoin::{Amount, BlockHash, FeeRate, Network, ScriptBuf, TxOut, Txid};
use serde::{Deserialize, Deserializer};

use super::unreadable;
use crate::{Coin, MempoolEntry, Result};

/// An amount in BTC, as the node writes all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Btc(pub Amount);

impl<'de> Deserialize<'de> for Btc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        bitcoin::amount::serde::as_btc::deserialize(deserializer).map(Self)
    }
}

impl Btc {
    /// Reads it as BTC per 1000 vB, rounded up.
    pub(super) fn per_kvb(self) -> FeeRate {
        FeeRate::from_sat_per_kwu(self.0.to_sat().div_ceil(4))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct BlockchainInfo {
    chain: String,
    pub blocks: u32,
    pub headers: u32,
    pub bestblockhash: BlockHash,
    pub initialblockdownload: bool,
}

impl BlockchainInfo {
    pub(super) fn network(&self) -> Result<Network> {
        Network::from_core_arg(&self.chain).map_err(|error| unreadable("getblockchaininfo", error))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct NetworkInfo {
    pub version: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct HeaderInfo {
    pub height: u32,
    /// -1 when stale.
    pub confirmations: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct TxOutInfo {
    pub bestblock: BlockHash,
    confirmations: u32,
    value: Btc,
    #[serde(rename = "scriptPubKey")]
    script_pubkey: Script,
    coinbase: bool,
}

#[derive(Debug, Deserialize)]
struct Script {
    hex: ScriptBuf,
}

impl TxOutInfo {
    /// `best_height` is the height of `bestblock`.
    pub(super) fn into_coin(self, best_height: u32) -> Result<Coin> {
        let height = self
            .confirmations
            .checked_sub(1)
            .and_then(|above| best_height.checked_sub(above));
        Ok(Coin {
            txout: TxOut {
                value: self.value.0,
                script_pubkey: self.script_pubkey.hex,
            },
            height: height
                .ok_or_else(|| unreadable("gettxout", "a coin deeper than the chain is high"))?,
            coinbase: self.coinbase,
        })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct MempoolEntryInfo {
    vsize: u64,
    descendantsize: u64,
    fees: EntryFees,
    depends: Vec<Txid>,
    spentby: Vec<Txid>,
}

#[derive(Debug, Deserialize)]
struct EntryFees {
    base: Btc,
    descendant: Btc,
}

impl MempoolEntryInfo {
    pub(super) fn into_entry(self) -> Result<MempoolEntry> {
        Ok(MempoolEntry {
            vsize: self.vsize,
            fee: self.fees.base.0,
            descendant_vsize: self.descendantsize,
            descendant_fee: self.fees.descendant.0,
            depends: self.depends,
            spent_by: self.spentby,
        })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Spender {
    pub spendingtxid: Option<Txid>,
}

#[derive(Debug, Deserialize)]
pub(super) struct MempoolInfo {
    pub mempoolminfee: Btc,
    pub minrelaytxfee: Btc,
}

#[derive(Debug, Deserialize)]
pub(super) struct FeeEstimate {
    pub feerate: Option<Btc>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PackageAnswer {
    pub package_msg: String,
    /// By wtxid.
    #[serde(rename = "tx-results")]
    pub tx_results: BTreeMap<String, PackageTx>,
    #[serde(rename = "replaced-transactions", default)]
    pub replaced: Vec<Txid>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PackageTx {
    pub vsize: Option<u64>,
    pub fees: Option<PackageFees>,
    pub error: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PackageFees {
    pub base: Btc,
    #[serde(rename = "effective-feerate")]
    pub effective_feerate: Option<Btc>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TestAnswer {
    pub txid: Txid,
    pub allowed: Option<bool>,
    pub vsize: Option<u64>,
    pub fees: Option<PackageFees>,
    #[serde(rename = "reject-reason")]
    pub reject_reason: Option<String>,
    #[serde(rename = "package-error")]
    pub package_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parse;
    use super::*;

    #[test]
    fn an_anchor_output_is_read() {
        let answer = json!({
            "bestblock": BlockHash::from_raw_hash(bitcoin::hashes::Hash::all_zeros()), "confirmations": 3, "value": 0.00000240,
            "scriptPubKey": {"asm": "1 29518", "hex": "51024e73", "type": "anchor"}, "coinbase": false
        });
        let coin = parse::<TxOutInfo>("gettxout", answer)
            .and_then(|found| found.into_coin(12))
            .unwrap();
        assert_eq!((coin.txout.value, coin.height), (Amount::from_sat(240), 10));
        assert!(coin.txout.script_pubkey.is_witness_program());
    }

    #[test]
    fn feerates_round_up_and_amounts_do_not_round() {
        let fee: MempoolInfo = parse(
            "getmempoolinfo",
            json!({"mempoolminfee": 0.00000101, "minrelaytxfee": 0.00001}),
        )
        .unwrap();
        assert_eq!(fee.mempoolminfee.per_kvb(), FeeRate::from_sat_per_kwu(26));
        assert_eq!(fee.minrelaytxfee.per_kvb(), FeeRate::from_sat_per_kwu(250));
        let all: Btc = parse("test", json!(20_999_999.976_9)).unwrap();
        assert_eq!(all.0, Amount::from_sat(2_099_999_997_690_000));
    }
}
