//! What is known of one leaf.

use std::fmt;

use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxIn, Txid};
use lightning::ln::types::ChannelId;
use serde::{Deserialize, Serialize};

/// 16 bytes that name a leaf's channel to both sides, made by its client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeafId(pub [u8; 16]);

impl fmt::Display for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeafId({self})")
    }
}

impl LeafId {
    /// `open_channel`'s temporary id, which tells the client which leaf is meant.
    pub(crate) fn temporary_id(self) -> ChannelId {
        // BIP-340's tagged hash.
        let tag = sha256::Hash::hash(b"superscalar/leaf/temporary").to_byte_array();
        let mut engine = sha256::Hash::engine();
        engine.input(&tag);
        engine.input(&tag);
        engine.input(&self.0);
        ChannelId(sha256::Hash::from_engine(engine).to_byte_array())
    }
}

/// A leaf as its side verified it.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its id, made by the client.
    pub id: LeafId,
    /// Our own channel id of it: [`crate::lsp_channel_id`] on the coordinator's side, the leaf id as a number on the client's.
    pub channel_id: u128,
    /// The transaction that carries the channel output.
    pub transaction: Transaction,
    /// Which of its outputs that is.
    pub vout: u32,
    /// The witness script behind the output ([`crate::funding_redeem_script`]).
    pub redeem_script: ScriptBuf,
    /// The factory's exit delay in blocks.
    pub exit_delay: u32,
    /// The height that no payment's expiry may reach: `T - late_margin`.
    pub last_expiry: u32,
    /// Transactions that may spend the channel output and are no commitments.
    pub spends: Vec<KnownSpend>,
}

/// A transaction that may end a leaf's channel instead of a commitment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownSpend {
    /// The transaction.
    pub txid: Txid,
    /// What it is.
    pub kind: SpendKind,
}

/// What spent a channel output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SpendKind {
    /// A commitment of either side, the latest or a revoked one.
    Commitment,
    /// Both sides' closing transaction.
    Cooperative,
    /// The factory's expiry paid the client.
    Timeout,
    /// A superseded state was punished.
    Poison,
    /// The coordinator took what was handed over.
    Reap,
}

/// Which side of a leaf we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The coordinator's, who funds.
    Lsp,
    /// The wallet's.
    Client,
}

/// How far a leaf's channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Verified; no channel yet.
    Expected,
    /// Being opened; nothing signed yet.
    Opening,
    /// Signed for, or about to be: the leaf id is used up.
    Funded,
    /// Stands, as verified.
    Open,
    /// Closed.
    Closed,
    /// Given up with its factory or its attempt, or handed over.
    Abandoned,
}

impl Stage {
    /// Whether the leaf id may still get its one channel.
    pub(crate) fn is_unused(self) -> bool {
        matches!(self, Self::Expected | Self::Opening)
    }
}

/// Why a leaf's channel is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafRefusal {
    /// Another output than the verified one.
    #[error("the channel is on {found}, verified was {verified}")]
    Outpoint {
        /// As verified.
        verified: OutPoint,
        /// As opened.
        found: OutPoint,
    },
    /// Other funding keys.
    #[error("the channel has another witness script than the verified leaf")]
    Script,
    /// Another capacity.
    #[error("the channel holds {} sat, verified was {} sat", .found.to_sat(), .verified.to_sat())]
    Capacity {
        /// As verified.
        verified: Amount,
        /// As opened.
        found: Amount,
    },
    /// Not version 3 with zero-fee commitments and private aliases.
    #[error("the channel is not of the type of leaf channels")]
    ChannelType,
    /// A part of it could not be spent.
    #[error("{asked} sat of the channel would have to stay in it")]
    Reserve {
        /// In satoshi.
        asked: u64,
    },
    /// Announced to the world.
    #[error("the channel would be announced")]
    Announced,
    /// The leaf id has had its channel.
    #[error("the leaf has had its channel")]
    Used,
    /// The handshake broke off.
    #[error("the handshake broke off: {0}")]
    BrokenOff(String),
}

/// What the host may know of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafView {
    /// Its id.
    pub id: LeafId,
    /// With whom.
    pub peer: PublicKey,
    /// Which side we are.
    pub side: Side,
    /// The channel output.
    pub outpoint: OutPoint,
    /// Its amount.
    pub capacity: Amount,
    /// How far the channel is.
    pub stage: Stage,
    /// Whether the factory is confirmed to the agreed depth.
    pub factory_confirmed: bool,
    /// Whether it is on its way to the chain.
    pub exiting: bool,
    /// Height of the leaf transaction's block.
    pub confirmed_at: Option<u32>,
    /// What spent it, and at which height.
    pub spent: Option<(SpendKind, Txid, u32)>,
}

/// What is stored of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: LeafId,
    /// As two halves: JSON numbers end at 2^64.
    pub channel_id: (u64, u64),
    pub peer: PublicKey,
    pub side: Side,
    pub outpoint: OutPoint,
    pub capacity: Amount,
    pub redeem_script: ScriptBuf,
    pub exit_delay: u32,
    pub last_expiry: u32,
    pub spends: Vec<KnownSpend>,
    pub stage: Stage,
    pub ldk_id: Option<[u8; 32]>,
    pub factory_confirmed: bool,
    pub exiting: bool,
    pub confirmed_at: Option<u32>,
    pub spent: Option<(SpendKind, Txid, u32)>,
    /// Whether payments were pending when it was spent.
    pub pending_at_end: bool,
    /// Whether a stop of ours broke the handshake off, and the host does not know yet.
    #[serde(default)]
    pub interrupted: bool,
    /// How the channel was closed.
    #[serde(default)]
    pub closed: Option<Closing>,
    /// Whether the host has yet to take in that it is closed.
    #[serde(default)]
    pub close_untold: bool,
    /// Until this height somebody may still be owed for a payment that went over it, whether or not LDK counts it among those pending.
    #[serde(default)]
    pub at_risk_until: u32,
    /// Whether its keys were handed over: nothing of it is for us to publish.
    #[serde(default)]
    pub retired: bool,
}

/// How a channel was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Closing {
    /// Both agreed.
    Cooperative,
    /// The peer said that it failed.
    ByPeer,
    /// By us, or because something went wrong on our side.
    Forced,
    /// By Lightning, as a part of a move that we paid on over it had expired.
    PartExpired,
}

/// [`Record::at_risk_until`] is rounded up to this, so that not every payment is a write.
const RISK_STEP: u32 = 144;

impl Record {
    pub(crate) fn new(leaf: Leaf, capacity: Amount, peer: PublicKey, side: Side) -> Self {
        Self {
            id: leaf.id,
            channel_id: split(leaf.channel_id),
            peer,
            side,
            outpoint: OutPoint {
                txid: leaf.transaction.compute_txid(),
                vout: leaf.vout,
            },
            capacity,
            redeem_script: leaf.redeem_script,
            exit_delay: leaf.exit_delay,
            last_expiry: leaf.last_expiry,
            spends: leaf.spends,
            stage: Stage::Expected,
            ldk_id: None,
            factory_confirmed: false,
            exiting: false,
            confirmed_at: None,
            spent: None,
            pending_at_end: false,
            interrupted: false,
            closed: None,
            close_untold: false,
            at_risk_until: 0,
            retired: false,
        }
    }

    /// A payment that expires then goes over it.
    pub(crate) fn carries(&mut self, expiry: u32) {
        let rounded = expiry.checked_next_multiple_of(RISK_STEP);
        self.at_risk_until = self.at_risk_until.max(rounded.unwrap_or(u32::MAX));
    }

    /// Whether its closed channel has to be brought to the chain now. One closed by the peer's error with nothing at risk waits: for the user,
    /// or the factory's end.
    pub(crate) fn must_exit(&self, height: u32, has_htlcs: bool) -> bool {
        let wanted = match self.closed {
            Some(Closing::Forced | Closing::PartExpired) => true,
            Some(Closing::ByPeer) => has_htlcs || self.at_risk_until > height,
            Some(Closing::Cooperative) | None => false,
        };
        let stands = self.stage == Stage::Closed && self.factory_confirmed;
        wanted && stands && self.spent.is_none() && !self.exiting
    }

    /// Whether a commitment of ours has to go out: the leaf is in the chain, is not spent there yet, and was not handed over.
    pub(crate) const fn takes_commitment(&self) -> bool {
        self.confirmed_at.is_some() && self.spent.is_none() && !self.retired
    }

    pub(crate) fn channel_id(&self) -> u128 {
        (u128::from(self.channel_id.0) << 64) | u128::from(self.channel_id.1)
    }

    /// Whether nothing may be forwarded into it or claimed from it now.
    pub(crate) fn is_gated(&self) -> bool {
        !self.factory_confirmed || self.stage != Stage::Open || self.spent.is_some()
    }

    /// The class of a transaction that spends the channel output. A closing transaction that the peer published before we had its last word is
    /// told by what it is not: a commitment hides its number in sequence and lock time (BOLT 3).
    pub(crate) fn kind_of(&self, transaction: &Transaction) -> SpendKind {
        let txid = transaction.compute_txid();
        if let Some(known) = self.spends.iter().find(|spend| spend.txid == txid) {
            return known.kind;
        }
        let marked = |input: &TxIn| input.sequence.to_consensus_u32() >> 24 == 0x80;
        let locked = transaction.lock_time.to_consensus_u32() >> 24 == 0x20;
        if locked && transaction.input.iter().all(marked) {
            SpendKind::Commitment
        } else {
            SpendKind::Cooperative
        }
    }

    pub(crate) fn view(&self) -> LeafView {
        LeafView {
            id: self.id,
            peer: self.peer,
            side: self.side,
            outpoint: self.outpoint,
            capacity: self.capacity,
            stage: self.stage,
            factory_confirmed: self.factory_confirmed,
            exiting: self.exiting,
            confirmed_at: self.confirmed_at,
            spent: self.spent,
        }
    }
}

const fn split(id: u128) -> (u64, u64) {
    ((id >> 64) as u64, id as u64)
}

#[cfg(test)]
mod tests {
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{Sequence, TxOut};

    use super::*;

    fn spend(sequence: u32, lock_time: u32) -> Transaction {
        Transaction {
            version: Version(3),
            lock_time: LockTime::from_consensus(lock_time),
            input: vec![TxIn {
                sequence: Sequence(sequence),
                ..TxIn::default()
            }],
            output: vec![],
        }
    }

    fn record(timeout: &Transaction) -> Record {
        let leaf = Leaf {
            id: LeafId([1; 16]),
            channel_id: 1 << 64,
            transaction: Transaction {
                output: vec![TxOut::NULL],
                ..timeout.clone()
            },
            vout: 0,
            redeem_script: ScriptBuf::new(),
            exit_delay: 150,
            last_expiry: 100_000,
            spends: vec![KnownSpend {
                txid: timeout.compute_txid(),
                kind: SpendKind::Timeout,
            }],
        };
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        Record::new(leaf, Amount::ONE_SAT, key.parse().unwrap(), Side::Client)
    }

    #[test]
    fn what_the_peer_closed_waits_only_with_nothing_at_risk() {
        let mut leaf = record(&spend(0xffff_fffd, 900_000));
        leaf.stage = Stage::Closed;
        leaf.factory_confirmed = true;
        leaf.closed = Some(Closing::ByPeer);
        assert!(!leaf.must_exit(1_000, false));
        assert!(leaf.must_exit(1_000, true));
        leaf.carries(1_100);
        assert_eq!(leaf.at_risk_until, 1_152);
        assert!(leaf.must_exit(1_151, false));
        assert!(!leaf.must_exit(1_152, false));
        leaf.carries(900);
        assert_eq!(leaf.at_risk_until, 1_152, "an earlier one changes nothing");
    }

    #[test]
    fn a_commitment_goes_out_between_the_leafs_block_and_its_spend() {
        let mut leaf = record(&spend(0xffff_fffd, 900_000));
        assert!(!leaf.takes_commitment());
        leaf.confirmed_at = Some(1_000);
        assert!(leaf.takes_commitment());
        let handed_over = Record {
            retired: true,
            ..leaf.clone()
        };
        assert!(!handed_over.takes_commitment());
        let txid = spend(0, 0).compute_txid();
        leaf.spent = Some((SpendKind::Commitment, txid, 1_001));
        assert!(!leaf.takes_commitment(), "it is there");
    }

    #[test]
    fn a_closed_channel_exits_once_its_factory_stands() {
        let mut leaf = record(&spend(0xffff_fffd, 900_000));
        leaf.stage = Stage::Closed;
        leaf.closed = Some(Closing::Forced);
        assert!(!leaf.must_exit(1_000, true), "the factory may never come");
        leaf.factory_confirmed = true;
        assert!(leaf.must_exit(1_000, false));
        let agreed = Record {
            closed: Some(Closing::Cooperative),
            ..leaf.clone()
        };
        assert!(!agreed.must_exit(1_000, false));
        let known = Record {
            exiting: true,
            ..leaf
        };
        assert!(!known.must_exit(1_000, false), "it is on its way");
    }

    #[test]
    fn a_commitment_is_told_by_its_number_and_a_known_spend_by_its_id() {
        let timeout = spend(0xffff_fffd, 900_000);
        let record = record(&timeout);
        let kind = |sequence, lock_time| record.kind_of(&spend(sequence, lock_time));
        assert_eq!(record.kind_of(&timeout), SpendKind::Timeout);
        assert_eq!(kind(0x80ab_cdef, 0x2012_3456), SpendKind::Commitment);
        assert_eq!(kind(0xffff_ffff, 0), SpendKind::Cooperative);
        assert_eq!(kind(0xffff_fffd, 900_001), SpendKind::Cooperative);
    }
}
