//! What a factory consists of: its members, and its transactions with what they spend and pay.

use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::sighash::{EcdsaSighashType, Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid, Witness};
use serde::{Deserialize, Serialize};

use crate::ids::{ClientId, LeafId};
use crate::keys::OutputKey;
use crate::musig::Message;
use crate::output::{self, OutputRole, RoledOutput};
use crate::params::FactoryParams;
use crate::shape::{ClientRange, NodeKind};
use crate::tx::{self, Timelock, TxKind};
use crate::units::Height;

/// One client of a factory, as the coordinator knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its account.
    pub client: ClientId,
    /// Its factory key of this attempt.
    pub factory_key: PublicKey,
    /// Where timeouts and poisons pay it: a P2TR script of its own key.
    pub payout_script: ScriptBuf,
    /// Its channel's leaf id.
    pub leaf_id: LeafId,
    /// Its channel funding key.
    pub channel_key: PublicKey,
    /// The LSP's channel funding key for this channel.
    pub lsp_channel_key: PublicKey,
    /// Channel capacity.
    pub capacity: Amount,
}

/// Everything a factory is made from but its funding outpoint. The tree is a pure function of
/// the two, so this is what the coordinator stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactorySpec {
    /// Its parameters.
    pub params: FactoryParams,
    /// The height it was proposed at.
    pub birth: Height,
    /// The LSP's factory key.
    pub lsp_key: PublicKey,
    /// The clients in leaf order.
    pub members: Vec<Member>,
}

/// What kind of output a transaction spends; decides which spends of it may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpentKind {
    /// The factory's funding output.
    Funding,
    /// A branch of a static node.
    Static,
    /// A branch of a kickoff.
    Kickoff,
    /// A branch of an inner state.
    State,
    /// A branch of a first-stage timeout.
    FirstStage,
    /// A liquidity stock.
    Stock,
    /// A channel.
    Channel,
}

impl SpentKind {
    /// What the branches of a node of `kind` are.
    #[must_use]
    pub const fn branch_of(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Static => Self::Static,
            NodeKind::Kickoff => Self::Kickoff,
            NodeKind::State | NodeKind::Leaf => Self::State,
        }
    }
}

/// The output a factory transaction spends.
#[derive(Clone, Debug)]
pub struct Spent {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it is.
    pub kind: SpentKind,
    /// Amount and script.
    pub txout: TxOut,
    /// The MuSig2 key; `None` for a channel, which is a P2WSH 2-of-2.
    pub key: Option<Arc<OutputKey>>,
    /// The clients it belongs to.
    pub clients: ClientRange,
}

/// One transaction of a factory, unsigned.
#[derive(Clone, Debug)]
pub struct FactoryTx {
    /// What it is.
    pub kind: TxKind,
    /// Its locks.
    pub timelock: Timelock,
    /// Its one input.
    pub spends: Spent,
    /// Its outputs, anchor last.
    pub outputs: Vec<RoledOutput>,
    /// The transaction without its witness.
    pub tx: Transaction,
    /// Cached.
    pub txid: Txid,
}

impl FactoryTx {
    /// Builds the transaction that spends `spends` to `outputs`.
    #[must_use]
    pub fn new(kind: TxKind, timelock: Timelock, spends: Spent, outputs: Vec<RoledOutput>) -> Self {
        let plain = outputs.iter().map(|o| o.txout.clone()).collect();
        let tx = tx::build(spends.outpoint, timelock, plain);
        let txid = tx.compute_txid();
        Self {
            kind,
            timelock,
            spends,
            outputs,
            tx,
            txid,
        }
    }

    /// The outpoint and output at `vout`, as something to spend.
    #[must_use]
    pub fn output(&self, vout: u32) -> Option<(OutPoint, &RoledOutput)> {
        let output = self.outputs.get(usize::try_from(vout).ok()?)?;
        Some((OutPoint::new(self.txid, vout), output))
    }

    /// Every output of `role` with its outpoint.
    pub fn outputs_of(&self, role: OutputRole) -> impl Iterator<Item = (OutPoint, &RoledOutput)> {
        (0u32..)
            .zip(&self.outputs)
            .filter(move |(_, output)| output.role == role)
            .map(|(vout, output)| (OutPoint::new(self.txid, vout), output))
    }

    /// BIP-341 key-path sighash (`SIGHASH_DEFAULT`).
    #[must_use]
    pub fn taproot_sighash(&self) -> Message {
        let mut cache = SighashCache::new(&self.tx);
        let prevouts = [&self.spends.txout];
        let sighash = cache.taproot_key_spend_signature_hash(
            0,
            &Prevouts::All(&prevouts),
            TapSighashType::Default,
        );
        // Fails only for an input index or prevout count that one input cannot have.
        sighash.map_or([0; 32], |hash| hash.to_byte_array())
    }

    /// BIP-143 sighash (`SIGHASH_ALL`) for a channel with this witness script.
    #[must_use]
    pub fn channel_sighash(&self, witness_script: &bitcoin::Script) -> Message {
        let mut cache = SighashCache::new(&self.tx);
        let amount = self.spends.txout.value;
        let sighash = cache.p2wsh_signature_hash(0, witness_script, amount, EcdsaSighashType::All);
        // As above.
        sighash.map_or([0; 32], |hash| hash.to_byte_array())
    }

    /// The transaction with its key-path signature.
    #[must_use]
    pub fn signed(&self, signature: &schnorr::Signature) -> Transaction {
        let mut tx = self.tx.clone();
        for input in &mut tx.input {
            input.witness = Witness::from_slice(&[signature.serialize()]);
        }
        tx
    }

    /// Sum of the outputs.
    #[must_use]
    pub fn output_sum(&self) -> Amount {
        tx::checked_sum(self.outputs.iter().map(|o| o.txout.value)).unwrap_or(Amount::MAX)
    }

    /// Size when signed by key path (for a channel's timeout: by two ECDSA signatures).
    #[must_use]
    pub fn vbytes(&self) -> u64 {
        let outputs = self.outputs.len().saturating_sub(1) as u64;
        let size = tx::tree_tx_vbytes(outputs);
        match self.spends.kind {
            SpentKind::Channel => size.saturating_add(CHANNEL_SPEND_EXTRA),
            _ => size,
        }
    }
}

/// A 2-of-2 P2WSH witness (up to 222 WU) beside a key-path witness (66 WU).
const CHANNEL_SPEND_EXTRA: u64 = 39;

/// The 2-of-2 output of a channel.
#[must_use]
pub fn channel_output(client: &PublicKey, lsp: &PublicKey, capacity: Amount) -> TxOut {
    TxOut {
        value: capacity,
        script_pubkey: output::channel(client, lsp),
    }
}
