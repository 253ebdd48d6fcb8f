//! The exit kit: everything a client needs to take its money to the chain with nobody's help.
//!
//! It is made once, at step 6 of the ceremony, from the client's own rebuilt path and the finished
//! signatures, and stored as JSON. [`ExitKit::verify`] judges a kit by itself, so that what was
//! read back from disk is judged like what was received.

use std::collections::BTreeMap;

use bitcoin::consensus::serde::{Hex, With};
use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, ecdsa, schnorr};
use bitcoin::taproot::TapNodeHash;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid, Witness};
use serde::{Deserialize, Serialize};

use crate::factory::{FactoryTx, SpentKind};
use crate::ids::{Attempt, CeremonyId, FactoryId, LeafId};
use crate::output::{OutputRole, channel_witness_script};
use crate::params::FactoryParams;
use crate::path::{Path, PathProposal};
use crate::sale::Sale;
use crate::shape::ClientRange;
use crate::tx::{Timelock, TxKind};
use crate::units::{Blocks, Height};

mod check;
mod sales;
#[cfg(test)]
mod tests;

pub use check::KitError;
pub use sales::KitChannel;

/// The format this code writes.
pub const KIT_VERSION: u32 = 2;
/// The same without sales, which it reads as well.
const VERSION_WITHOUT_SALES: u32 = 1;

/// A client's way out of one factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitKit {
    /// [`KIT_VERSION`].
    pub version: u32,
    /// The factory.
    pub factory_id: FactoryId,
    /// The ceremony that made it.
    pub ceremony: CeremonyId,
    /// The attempt of that ceremony.
    pub attempt: Attempt,
    /// The client's place in leaf order.
    pub position: u32,
    /// What all keys of this join derive from, together with the seed.
    #[serde(with = "nonce_hex")]
    pub join_nonce: [u8; 16],
    /// The channel's leaf id.
    pub leaf_id: LeafId,
    /// The factory's parameters.
    pub params: FactoryParams,
    /// The height it was proposed at.
    pub birth: Height,
    /// `T`.
    pub expiry: Height,
    /// What a payment must leave room for.
    pub exit_delay: Blocks,
    /// The LSP's factory key.
    pub lsp_key: PublicKey,
    /// All clients' factory keys in leaf order.
    pub keys: Vec<PublicKey>,
    /// The client's own factory key.
    pub factory_key: PublicKey,
    /// The client's own channel funding key.
    pub channel_key: PublicKey,
    /// The LSP's funding key of that channel.
    pub lsp_channel_key: PublicKey,
    /// Where timeouts pay the client.
    pub payout_script: ScriptBuf,
    /// The channel's capacity.
    #[serde(rename = "capacity_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity: Amount,
    /// The funding transaction, unsigned.
    #[serde(with = "With::<Hex>")]
    pub funding_tx: Transaction,
    /// Which of its outputs is the factory.
    pub funding_vout: u32,
    /// Where the clients of the stock are paid, in leaf order; empty where the stock's timeout says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stock_payouts: Vec<ScriptBuf>,
    /// Everything that can be published, in session order, the channel's timeout last; then the
    /// same of each sale: whatever spends an output of another comes after it.
    pub txs: Vec<KitTx>,
    /// The sales from the stock so far. Only ever added to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sales: Vec<Sale>,
}

/// One finished transaction of a kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitTx {
    /// Its id, so that nothing has to hash it again ([`ExitKit::verify`] does, once).
    pub txid: Txid,
    /// What it is.
    pub kind: TxKind,
    /// The transaction, signed.
    #[serde(with = "With::<Hex>")]
    pub tx: Transaction,
    /// The output it spends.
    pub spends: KitSpent,
    /// What its outputs are for, in order.
    pub outputs: Vec<KitOutput>,
    /// Its locks.
    pub timelock: Timelock,
}

/// The output a kit's transaction spends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitSpent {
    /// Where it is.
    pub outpoint: OutPoint,
    /// What it holds.
    #[serde(rename = "amount_sat", with = "bitcoin::amount::serde::as_sat")]
    pub amount: Amount,
    /// Its script.
    pub script: ScriptBuf,
    /// What it is.
    pub kind: SpentKind,
    /// The aggregate before the tweak; `None` for a channel.
    pub internal_key: Option<XOnlyPublicKey>,
    /// The taptree's root, where there is one.
    pub merkle_root: Option<TapNodeHash>,
    /// The clients it belongs to.
    pub clients: ClientRange,
    /// Whether the LSP's key is among its keys.
    pub with_lsp: bool,
}

/// What an output of a kit's transaction is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitOutput {
    /// What it is for.
    pub role: OutputRole,
    /// The clients it belongs to; none for an anchor.
    pub clients: ClientRange,
}

/// Both signatures of a channel's timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelSignatures {
    /// By the client's funding key.
    pub client: ecdsa::Signature,
    /// By the LSP's funding key.
    pub lsp: ecdsa::Signature,
}

/// The client's own part of the join a kit belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinData {
    /// The ceremony.
    pub ceremony: CeremonyId,
    /// The attempt.
    pub attempt: Attempt,
    /// What the join's keys derive from.
    pub join_nonce: [u8; 16],
    /// The channel's leaf id.
    pub leaf_id: LeafId,
    /// Own factory key.
    pub factory_key: PublicKey,
    /// Own channel funding key.
    pub channel_key: PublicKey,
    /// Own payout script.
    pub payout_script: ScriptBuf,
}

impl ExitKit {
    /// Puts the kit together from a verified path and its finished signatures (in session order).
    ///
    /// # Errors
    /// [`KitError::Count`] when the signatures are too few or too many, and everything
    /// [`Self::verify`] finds.
    pub fn new(
        path: &Path,
        proposal: &PathProposal,
        signatures: &[schnorr::Signature],
        channel: &ChannelSignatures,
        join: JoinData,
    ) -> Result<Self, KitError> {
        let kit = Self::assemble(path, proposal, signatures, channel, join)?;
        kit.verify()?;
        Ok(kit)
    }

    /// [`Self::new`] without looking at the signatures.
    pub(crate) fn assemble(
        path: &Path,
        proposal: &PathProposal,
        signatures: &[schnorr::Signature],
        channel: &ChannelSignatures,
        join: JoinData,
    ) -> Result<Self, KitError> {
        if signatures.len() != path.sessions.len() {
            return Err(KitError::Count {
                what: "signatures",
                found: signatures.len(),
                expected: path.sessions.len(),
            });
        }
        let position = path.position;
        let claim = path.book.of(&(position..position.saturating_add(1)));
        let capacity = claim.and_then(|claims| claims.first());
        let capacity = capacity.ok_or(KitError::Position(position))?.capacity;
        let signed = path.sessions.iter().zip(signatures);
        let mut txs: Vec<KitTx> = signed
            .map(|(tx, signature)| KitTx::new(tx, tx.signed(signature)))
            .collect();
        txs.push(KitTx::new(
            &path.channel_timeout,
            sign_channel(
                &path.channel_timeout,
                (&join.channel_key, &channel.client),
                (&proposal.lsp_channel_key, &channel.lsp),
            ),
        ));
        Ok(Self {
            version: KIT_VERSION,
            factory_id: FactoryId::of(path.funding),
            ceremony: join.ceremony,
            attempt: join.attempt,
            position,
            join_nonce: join.join_nonce,
            leaf_id: join.leaf_id,
            params: proposal.params.clone(),
            birth: proposal.birth,
            expiry: path.schedule.expiry,
            exit_delay: path.schedule.exit_delay,
            lsp_key: proposal.lsp_key,
            keys: proposal.keys.clone(),
            factory_key: join.factory_key,
            channel_key: join.channel_key,
            lsp_channel_key: proposal.lsp_channel_key,
            payout_script: join.payout_script,
            capacity,
            funding_tx: proposal.funding_tx.clone(),
            funding_vout: proposal.funding_vout,
            stock_payouts: stock_payouts(path),
            txs,
            sales: Vec::new(),
        })
    }

    /// As stored.
    ///
    /// # Errors
    /// [`KitError::Format`]; a kit always has a JSON form, so never in practice.
    pub fn to_json(&self) -> Result<String, KitError> {
        serde_json::to_string(self).map_err(|e| KitError::Format(e.to_string()))
    }

    /// Reads what [`Self::to_json`] wrote. Nothing is verified yet.
    ///
    /// # Errors
    /// [`KitError::Version`] for another version, [`KitError::Format`] for anything else.
    pub fn from_json(text: &str) -> Result<Self, KitError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let format = |e: serde_json::Error| KitError::Format(e.to_string());
        let Versioned { version } = serde_json::from_str(text).map_err(format)?;
        if ![VERSION_WITHOUT_SALES, KIT_VERSION].contains(&version) {
            return Err(KitError::Version(version));
        }
        let kit: Self = serde_json::from_str(text).map_err(format)?;
        Ok(Self {
            version: KIT_VERSION,
            ..kit
        })
    }

    /// The factory's funding outpoint.
    #[must_use]
    pub fn funding(&self) -> OutPoint {
        OutPoint::new(self.funding_tx.compute_txid(), self.funding_vout)
    }

    /// The transactions from the root to the leaf.
    pub fn path(&self) -> impl Iterator<Item = &KitTx> {
        let leads = self.txs.iter().filter(|tx| tx.is_path());
        leads.filter(|tx| tx.kind != TxKind::StockChain)
    }

    /// The leaf's outpoint of the client's channel.
    #[must_use]
    pub fn channel_outpoint(&self) -> Option<OutPoint> {
        let timeout = self
            .txs
            .iter()
            .find(|tx| tx.spends.kind == SpentKind::Channel)?;
        Some(timeout.spends.outpoint)
    }

    /// Every outpoint whose spending concerns this client: the funding output and what its own
    /// transactions spend. A watcher asks the chain about these.
    pub fn watched(&self) -> impl Iterator<Item = OutPoint> + '_ {
        let mut seen = std::collections::BTreeSet::new();
        let spent = self.txs.iter().map(|tx| tx.spends.outpoint);
        core::iter::once(self.funding())
            .chain(spent)
            .filter(move |outpoint| seen.insert(*outpoint))
    }

    /// The outputs of this client in `tx`: payouts to it, and what leads on.
    pub fn own_outputs<'a>(
        &'a self,
        tx: &'a KitTx,
    ) -> impl Iterator<Item = (OutPoint, &'a KitOutput, &'a TxOut)> + 'a {
        let txid = tx.txid;
        (0u32..)
            .zip(tx.outputs.iter().zip(&tx.tx.output))
            .filter(|(_, (output, _))| output.clients.contains(&self.position))
            .map(move |(vout, (output, txout))| (OutPoint::new(txid, vout), output, txout))
    }

    /// Every output the kit knows: the funding output and those of its own transactions.
    fn known_outputs(&self) -> BTreeMap<OutPoint, &TxOut> {
        let funding = self.funding();
        let funded = self.funding_tx.output.get(self.funding_vout as usize);
        let mut known: BTreeMap<OutPoint, &TxOut> =
            funded.into_iter().map(|output| (funding, output)).collect();
        for tx in &self.txs {
            let txid = tx.txid();
            let outputs = (0u32..).zip(&tx.tx.output);
            known.extend(outputs.map(|(vout, output)| (OutPoint::new(txid, vout), output)));
        }
        known
    }
}

impl KitTx {
    fn new(unsigned: &FactoryTx, tx: Transaction) -> Self {
        let spends = &unsigned.spends;
        let key = spends.key.as_ref();
        Self {
            txid: unsigned.txid,
            kind: unsigned.kind,
            tx,
            spends: KitSpent {
                outpoint: spends.outpoint,
                amount: spends.txout.value,
                script: spends.txout.script_pubkey.clone(),
                kind: spends.kind,
                internal_key: key.map(|key| key.internal),
                merkle_root: key.and_then(|key| key.merkle_root),
                clients: spends.clients.clone(),
                with_lsp: key.is_none_or(|key| key.owners.with_lsp),
            },
            outputs: unsigned
                .outputs
                .iter()
                .map(|output| KitOutput {
                    role: output.role,
                    clients: output.clients.clone(),
                })
                .collect(),
            timelock: unsigned.timelock,
        }
    }

    /// Its id.
    #[must_use]
    pub const fn txid(&self) -> Txid {
        self.txid
    }

    /// Its size as signed.
    #[must_use]
    pub fn vbytes(&self) -> u64 {
        self.tx.vsize() as u64
    }

    /// Whether it is a step from the root to a channel: of the path to the leaf, or of a stock's
    /// sales.
    #[must_use]
    pub const fn is_path(&self) -> bool {
        !matches!(self.kind, TxKind::Timeout | TxKind::Poison)
    }

    /// What it pays in fees by itself.
    #[must_use]
    pub fn own_fee(&self) -> Amount {
        let outputs = crate::tx::checked_sum(self.tx.output.iter().map(|o| o.value));
        let fee = outputs.and_then(|outputs| self.spends.amount.checked_sub(outputs));
        fee.unwrap_or(Amount::ZERO)
    }

    /// Its anchor's outpoint, for the fee-paying child.
    #[must_use]
    pub fn anchor(&self) -> Option<OutPoint> {
        let position = self
            .outputs
            .iter()
            .position(|o| o.role == OutputRole::Anchor)?;
        Some(OutPoint::new(self.txid(), u32::try_from(position).ok()?))
    }
}

/// The payout scripts of the stock's clients, where no timeout of the stock has them.
fn stock_payouts(path: &Path) -> Vec<ScriptBuf> {
    let timeouts = path.sessions.iter().filter(|tx| tx.kind == TxKind::Timeout);
    let has_timeout = timeouts
        .filter(|tx| tx.spends.kind == SpentKind::Stock)
        .count()
        > 0;
    let key = path.stock_key.as_ref().filter(|_| !has_timeout);
    let claims = key.and_then(|key| path.book.of(&key.owners.clients()));
    let claims = claims.unwrap_or_default().iter();
    claims.map(|claim| claim.script.clone()).collect()
}

/// The channel's timeout with both signatures, in BOLT 3's order: an empty element (`OP_CHECKMULTISIG`
/// takes one too many), the signature of the lower key, that of the higher, the script.
#[must_use]
pub fn sign_channel(
    timeout: &FactoryTx,
    client: (&PublicKey, &ecdsa::Signature),
    lsp: (&PublicKey, &ecdsa::Signature),
) -> Transaction {
    let script = channel_witness_script(client.0, lsp.0);
    let (lower, higher) = if client.0.serialize() < lsp.0.serialize() {
        (client.1, lsp.1)
    } else {
        (lsp.1, client.1)
    };
    let all = |signature: &ecdsa::Signature| {
        bitcoin::ecdsa::Signature::sighash_all(*signature)
            .serialize()
            .to_vec()
    };
    let mut tx = timeout.tx.clone();
    for input in &mut tx.input {
        input.witness =
            Witness::from_slice(&[Vec::new(), all(lower), all(higher), script.to_bytes()]);
    }
    tx
}

mod nonce_hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(nonce: &[u8; 16], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(nonce))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(d)?;
        let mut nonce = [0u8; 16];
        hex::decode_to_slice(&text, &mut nonce).map_err(serde::de::Error::custom)?;
        Ok(nonce)
    }
}
