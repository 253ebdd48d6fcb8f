//! A factory's export, read as any other tool would: by the published format alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, Txid, relative};
use serde::Deserialize;
use serde_json::Value;

/// The version of the format that this reads.
const VERSION: u32 = 1;

/// An exported factory, or one client's path of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Export {
    /// Version of the format.
    pub version: u32,
    /// The network's name.
    pub network: String,
    /// The factory's id, hex.
    pub factory_id: String,
    /// `client_refund` or `lsp_reclaim`.
    pub expiry_policy: String,
    /// The height it was proposed at.
    pub birth_height: u32,
    /// `T`.
    pub expiry_height: u32,
    /// Every parameter.
    pub params: BTreeMap<String, Value>,
    /// The funding output.
    pub funding: Funding,
    /// The LSP and the clients.
    pub participants: Vec<Participant>,
    /// Every transaction, fully signed.
    pub transactions: Vec<Exported>,
}

/// The funding output.
#[derive(Clone, Debug, Deserialize)]
pub struct Funding {
    /// Its transaction.
    pub txid: Txid,
    /// Which output.
    pub vout: u32,
    /// How much it is.
    pub amount_sat: u64,
    /// Its script.
    pub script_pubkey: ScriptBuf,
}

/// One party.
#[derive(Clone, Debug, Deserialize)]
pub struct Participant {
    /// `lsp` or `client`.
    pub role: String,
    /// Its id, hex.
    pub id: String,
    /// Its factory key, hex.
    pub factory_pubkey: String,
    /// Where timeouts pay it.
    pub payout_script_pubkey: Option<ScriptBuf>,
    /// Its channel's funding key, hex.
    pub channel_funding_pubkey: Option<String>,
    /// Its channel's capacity.
    pub capacity_sat: Option<u64>,
    /// Transactions from the root to its leaf.
    #[serde(default)]
    pub path: Vec<Txid>,
}

/// One transaction.
#[derive(Clone, Debug, Deserialize)]
pub struct Exported {
    /// Its id.
    pub txid: Txid,
    /// `static`, `kickoff`, `state`, `leaf`, `stock_chain`, `timeout`, `poison`.
    pub kind: String,
    /// Hex of the signed transaction.
    pub raw: String,
    /// What it spends.
    pub inputs: Vec<Input>,
    /// What it pays.
    pub outputs: Vec<Output>,
    /// nLockTime.
    pub locktime: u32,
}

/// One input.
#[derive(Clone, Debug, Deserialize)]
pub struct Input {
    /// Transaction it spends.
    pub txid: Txid,
    /// Which output of that.
    pub vout: u32,
    /// How much that is.
    pub amount_sat: u64,
    /// Its script.
    pub script_pubkey: ScriptBuf,
    /// nSequence.
    pub sequence: u32,
}

/// One output.
#[derive(Clone, Debug, Deserialize)]
pub struct Output {
    /// Which.
    pub vout: u32,
    /// `branch`, `channel`, `stock`, `anchor`, `payout`.
    pub role: String,
    /// How much it is.
    pub amount_sat: u64,
    /// Its script.
    pub script_pubkey: ScriptBuf,
    /// Ids of its clients.
    #[serde(default)]
    pub clients: Vec<String>,
}

impl Export {
    /// Reads what a program printed.
    pub fn parse(printed: &Value) -> Result<Self> {
        let export: Self = serde_json::from_value(printed.clone()).context("not an export")?;
        anyhow::ensure!(
            export.version == VERSION,
            "export version {}",
            export.version
        );
        Ok(export)
    }

    /// The funding outpoint.
    pub fn funding_outpoint(&self) -> OutPoint {
        OutPoint::new(self.funding.txid, self.funding.vout)
    }

    /// The clients in leaf order.
    pub fn clients(&self) -> impl Iterator<Item = &Participant> {
        self.participants
            .iter()
            .filter(|party| party.role == "client")
    }

    /// The transaction with this id.
    pub fn transaction(&self, txid: &Txid) -> Option<&Exported> {
        self.transactions.iter().find(|tx| tx.txid == *txid)
    }

    /// The transaction of the tree proper (no timeout) that spends this output.
    pub fn child(&self, outpoint: OutPoint) -> Option<&Exported> {
        self.transactions
            .iter()
            .filter(|tx| tx.is_node())
            .find(|tx| tx.spends() == Some(outpoint))
    }

    /// The timeout of this output.
    pub fn timeout(&self, outpoint: OutPoint) -> Option<&Exported> {
        self.transactions
            .iter()
            .filter(|tx| tx.kind == "timeout")
            .find(|tx| tx.spends() == Some(outpoint))
    }
}

impl Exported {
    /// Whether it is a node of the tree.
    pub fn is_node(&self) -> bool {
        matches!(self.kind.as_str(), "static" | "kickoff" | "state" | "leaf")
    }

    /// Its one input's outpoint.
    pub fn spends(&self) -> Option<OutPoint> {
        match self.inputs.as_slice() {
            [only] => Some(OutPoint::new(only.txid, only.vout)),
            _ => None,
        }
    }

    /// Its outputs of a role, with outpoints.
    pub fn outputs_of<'a>(&'a self, role: &'a str) -> impl Iterator<Item = (OutPoint, &'a Output)> {
        self.outputs
            .iter()
            .filter(move |output| output.role == role)
            .map(|output| (OutPoint::new(self.txid, output.vout), output))
    }

    /// Its relative lock in blocks, if it has one.
    pub fn delay(&self) -> Option<u32> {
        let input = self.inputs.first()?;
        match Sequence::from_consensus(input.sequence).to_relative_lock_time()? {
            relative::LockTime::Blocks(blocks) if blocks.value() > 0 => Some(blocks.value().into()),
            _ => None,
        }
    }

    /// The signed transaction.
    pub fn transaction(&self) -> Result<Transaction> {
        let tx: Transaction = bitcoin::consensus::encode::deserialize_hex(&self.raw)?;
        anyhow::ensure!(
            tx.compute_txid() == self.txid,
            "raw transaction of {} is another one",
            self.txid
        );
        Ok(tx)
    }
}
