//! A factory as JSON, for people, tests and other tools: the coordinator's whole tree, or a
//! client's own path. The shape of the document is stable; `version` changes when it does.

use bitcoin::consensus::serde::{Hex, With};
use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, schnorr};
use bitcoin::taproot::TapNodeHash;
use bitcoin::{Amount, ScriptBuf, Transaction, Txid};
use serde::{Deserialize, Serialize};

use crate::factory::{FactoryTx, SpentKind};
use crate::ids::{ClientId, FactoryId};
use crate::keys::{KeyRing, Owners};
use crate::kit::{ChannelSignatures, ExitKit, KitTx, sign_channel};
use crate::output::OutputRole;
use crate::params::{ExpiryPolicy, FactoryParams};
use crate::shape::ClientRange;
use crate::tree::Tree;
use crate::tx::TxKind;
use crate::units::Height;

mod check;
#[cfg(test)]
mod tests;

pub use check::{CheckError, check};

/// The document's version.
pub const EXPORT_VERSION: u32 = 1;

/// A factory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// [`EXPORT_VERSION`].
    pub version: u32,
    /// The chain: `bitcoin`, `testnet`, `testnet4`, `signet` or `regtest`.
    pub network: bitcoin::Network,
    /// The factory's id.
    pub factory_id: FactoryId,
    /// Who is favoured at expiry.
    pub expiry_policy: ExpiryPolicy,
    /// The height it was proposed at.
    pub birth_height: Height,
    /// `T`.
    pub expiry_height: Height,
    /// Every parameter.
    pub params: FactoryParams,
    /// The funding output.
    pub funding: Funding,
    /// The LSP, then the clients in leaf order.
    pub participants: Vec<Participant>,
    /// Every transaction, fully signed; whatever spends an output of another comes after it.
    pub transactions: Vec<ExportTx>,
}

/// The funding output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Funding {
    /// The funding transaction.
    pub txid: Txid,
    /// Which of its outputs.
    pub vout: u32,
    /// What it holds.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub amount_sat: Amount,
    /// Its script.
    pub script_pubkey: ScriptBuf,
}

/// What a participant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParticipantRole {
    /// The coordinator.
    Lsp,
    /// A client.
    Client,
}

/// A participant. A client knows of the others only their factory keys, so its document has no
/// more of them, and names them by these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// What it is.
    pub role: ParticipantRole,
    /// Its node's public key, or in a client's document another client's factory key.
    pub id: ClientId,
    /// Its factory key.
    pub factory_pubkey: PublicKey,
    /// Where timeouts pay it.
    pub payout_script_pubkey: Option<ScriptBuf>,
    /// Its funding key of its channel.
    pub channel_funding_pubkey: Option<PublicKey>,
    /// The LSP's funding key of its channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsp_channel_funding_pubkey: Option<PublicKey>,
    /// Its channel's capacity.
    #[serde(with = "bitcoin::amount::serde::as_sat::opt")]
    pub capacity_sat: Option<Amount>,
    /// The transactions from the root to its leaf; in a client's document only its own.
    pub path: Vec<Txid>,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportTx {
    /// Its id.
    pub txid: Txid,
    /// What it is.
    pub kind: TxKind,
    /// The transaction, fully signed.
    #[serde(with = "With::<Hex>")]
    pub raw: Transaction,
    /// Its one input.
    pub inputs: Vec<ExportInput>,
    /// Its outputs.
    pub outputs: Vec<ExportOutput>,
    /// nLockTime.
    pub locktime: u32,
}

/// An input, with the output it spends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportInput {
    /// The transaction it spends an output of.
    pub txid: Txid,
    /// Which output.
    pub vout: u32,
    /// What it holds.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub amount_sat: Amount,
    /// Its script.
    pub script_pubkey: ScriptBuf,
    /// nSequence.
    pub sequence: u32,
    /// The aggregate before the tweak; none for a channel.
    pub internal_key: Option<XOnlyPublicKey>,
    /// The taptree's root; none where there is no script.
    pub merkle_root: Option<TapNodeHash>,
    /// The keys that sign, in key-aggregation order; of a channel the LSP's and the client's
    /// funding keys.
    pub signers: Vec<PublicKey>,
}

/// An output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportOutput {
    /// Its number.
    pub vout: u32,
    /// What it is for.
    pub role: OutputRole,
    /// What it holds.
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    pub amount_sat: Amount,
    /// Its script.
    pub script_pubkey: ScriptBuf,
    /// Ids of the clients it belongs to.
    pub clients: Vec<ClientId>,
}

impl Export {
    /// The whole tree. `lsp` is the coordinator's node key; signatures are in the tree's session
    /// order, those of the channels' timeouts in leaf order. A signature that is missing leaves
    /// its transaction out.
    #[must_use]
    pub fn of_tree(
        tree: &Tree,
        lsp: ClientId,
        signatures: &[schnorr::Signature],
        channel: &[ChannelSignatures],
    ) -> Self {
        let spec = tree.spec();
        let ids: Vec<ClientId> = spec.members.iter().map(|m| m.client).collect();
        let funding = tree.txs().first().map(|root| root.spends.txout.clone());
        let funding = funding.unwrap_or(bitcoin::TxOut::NULL);
        let mut participants = vec![Participant::lsp(lsp, spec.lsp_key)];
        participants.extend(
            (0u32..)
                .zip(&spec.members)
                .map(|(position, member)| Participant {
                    role: ParticipantRole::Client,
                    id: member.client,
                    factory_pubkey: member.factory_key,
                    payout_script_pubkey: Some(member.payout_script.clone()),
                    channel_funding_pubkey: Some(member.channel_key),
                    lsp_channel_funding_pubkey: Some(member.lsp_channel_key),
                    capacity_sat: Some(member.capacity),
                    path: tree.path(position).iter().map(|tx| tx.txid).collect(),
                }),
        );
        let musig = tree.txs().iter().zip(signatures).map(|(tx, signature)| {
            let signers = tx.spends.key.as_ref();
            let signers = signers.map(|key| tree.keys().signers(&key.owners));
            ExportTx::of(tx, tx.signed(signature), signers.unwrap_or_default(), &ids)
        });
        let channels = tree.channel_timeouts().iter().zip(channel);
        let channels = channels.zip(&spec.members).map(|((tx, signed), member)| {
            let (own, lsp) = (&member.channel_key, &member.lsp_channel_key);
            let signed = sign_channel(tx, (own, &signed.client), (lsp, &signed.lsp));
            ExportTx::of(tx, signed, vec![*lsp, *own], &ids)
        });
        Self {
            version: EXPORT_VERSION,
            network: spec.params.network,
            factory_id: tree.id(),
            expiry_policy: spec.params.expiry_policy,
            birth_height: spec.birth,
            expiry_height: tree.schedule().expiry,
            params: spec.params.clone(),
            funding: Funding {
                txid: tree.funding().txid,
                vout: tree.funding().vout,
                amount_sat: funding.value,
                script_pubkey: funding.script_pubkey,
            },
            participants,
            transactions: musig.chain(channels).collect(),
        }
    }

    /// A client's own path, from its exit kit. `lsp` and `own` are the two node keys.
    #[must_use]
    pub fn of_kit(kit: &ExitKit, lsp: ClientId, own: ClientId) -> Self {
        let ids: Vec<ClientId> = (0u32..)
            .zip(&kit.keys)
            .map(|(position, key)| {
                if position == kit.position {
                    own
                } else {
                    ClientId(key.serialize())
                }
            })
            .collect();
        let ring = KeyRing::new(kit.lsp_key, kit.keys.clone());
        let mut participants = vec![Participant::lsp(lsp, kit.lsp_key)];
        for ((position, key), id) in (0u32..).zip(&kit.keys).zip(&ids) {
            let me = position == kit.position;
            let path = kit.path().filter(|_| me);
            participants.push(Participant {
                role: ParticipantRole::Client,
                id: *id,
                factory_pubkey: *key,
                payout_script_pubkey: me.then(|| kit.payout_script.clone()),
                channel_funding_pubkey: me.then_some(kit.channel_key),
                lsp_channel_funding_pubkey: me.then_some(kit.lsp_channel_key),
                capacity_sat: me.then_some(kit.capacity),
                path: path.map(KitTx::txid).collect(),
            });
        }
        let funding = kit.funding();
        let funded = kit.funding_tx.output.get(kit.funding_vout as usize);
        let funded = funded.cloned().unwrap_or(bitcoin::TxOut::NULL);
        let transactions = kit
            .txs
            .iter()
            .map(|tx| ExportTx::of_kit(kit, &ring, tx, &ids));
        Self {
            version: EXPORT_VERSION,
            network: kit.params.network,
            factory_id: kit.factory_id,
            expiry_policy: kit.params.expiry_policy,
            birth_height: kit.birth,
            expiry_height: kit.expiry,
            params: kit.params.clone(),
            funding: Funding {
                txid: funding.txid,
                vout: funding.vout,
                amount_sat: funded.value,
                script_pubkey: funded.script_pubkey,
            },
            participants,
            transactions: transactions.collect(),
        }
    }
}

impl Participant {
    const fn lsp(id: ClientId, factory_pubkey: PublicKey) -> Self {
        Self {
            role: ParticipantRole::Lsp,
            id,
            factory_pubkey,
            payout_script_pubkey: None,
            channel_funding_pubkey: None,
            lsp_channel_funding_pubkey: None,
            capacity_sat: None,
            path: Vec::new(),
        }
    }
}

impl ExportTx {
    fn of(tx: &FactoryTx, raw: Transaction, signers: Vec<PublicKey>, ids: &[ClientId]) -> Self {
        let key = tx.spends.key.as_ref();
        let outputs = tx
            .outputs
            .iter()
            .map(|output| (output.role, &output.clients));
        Self {
            txid: tx.txid,
            kind: tx.kind,
            inputs: vec![ExportInput {
                txid: tx.spends.outpoint.txid,
                vout: tx.spends.outpoint.vout,
                amount_sat: tx.spends.txout.value,
                script_pubkey: tx.spends.txout.script_pubkey.clone(),
                sequence: tx.timelock.sequence().to_consensus_u32(),
                internal_key: key.map(|key| key.internal),
                merkle_root: key.and_then(|key| key.merkle_root),
                signers,
            }],
            outputs: export_outputs(outputs, &raw, ids),
            locktime: raw.lock_time.to_consensus_u32(),
            raw,
        }
    }

    fn of_kit(kit: &ExitKit, ring: &KeyRing, tx: &KitTx, ids: &[ClientId]) -> Self {
        let spends = &tx.spends;
        let signers = match spends.kind {
            SpentKind::Channel => {
                let channels = kit.channels().into_iter();
                let own = channels.filter(|channel| channel.outpoint == spends.outpoint);
                own.flat_map(|channel| [channel.lsp_channel_key, channel.channel_key])
                    .collect()
            }
            _ if spends.with_lsp => ring.signers(&Owners::with_lsp(&spends.clients)),
            _ => ring.signers(&Owners::clients_only(&spends.clients)),
        };
        let outputs = tx
            .outputs
            .iter()
            .map(|output| (output.role, &output.clients));
        Self {
            txid: tx.txid(),
            kind: tx.kind,
            inputs: vec![ExportInput {
                txid: spends.outpoint.txid,
                vout: spends.outpoint.vout,
                amount_sat: spends.amount,
                script_pubkey: spends.script.clone(),
                sequence: tx.timelock.sequence().to_consensus_u32(),
                internal_key: spends.internal_key,
                merkle_root: spends.merkle_root,
                signers,
            }],
            outputs: export_outputs(outputs, &tx.tx, ids),
            locktime: tx.tx.lock_time.to_consensus_u32(),
            raw: tx.tx.clone(),
        }
    }
}

fn export_outputs<'a>(
    roles: impl Iterator<Item = (OutputRole, &'a ClientRange)>,
    tx: &Transaction,
    ids: &[ClientId],
) -> Vec<ExportOutput> {
    let outputs = (0u32..).zip(roles).zip(&tx.output);
    outputs
        .map(|((vout, (role, clients)), txout)| ExportOutput {
            vout,
            role,
            amount_sat: txout.value,
            script_pubkey: txout.script_pubkey.clone(),
            clients: ids
                .get(clients.start as usize..clients.end as usize)
                .unwrap_or_default()
                .to_vec(),
        })
        .collect()
}
