//! The double-sign guard (protocol.md section 5): what a client may sign for one outpoint, ever.
//!
//! The purpose of a transaction is derived from the transaction itself. The first sighash signed
//! for an (outpoint, purpose) wins for ever: it is recorded in the same database transaction as
//! the partial signature that goes out, and no ceremony, restart or reorg changes it. This module
//! only decides; the store asks it inside that transaction.

use bitcoin::OutPoint;

use crate::factory::{FactoryTx, SpentKind};
use crate::musig::{AggregateNonce, Message, PublicNonce};
use crate::params::FactoryParams;
use crate::purpose::{ClassifyError, Purpose, classify};
use crate::units::Height;

/// A channel is signed by ECDSA, deterministically: where a record has nonces and a partial, it
/// has zeros, and to be asked again means to sign the same again.
pub const NO_NONCE: [u8; 66] = [0; 66];

/// What a client has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    /// The output spent.
    pub outpoint: OutPoint,
    /// What for.
    pub purpose: Purpose,
    /// The first, and only, message ever signed for it.
    pub sighash: Message,
    /// Our public nonce of the last session ([`NO_NONCE`] for a channel).
    pub own_nonce: [u8; 66],
    /// The sum of all nonces of that session ([`NO_NONCE`] for a channel).
    pub sum: [u8; 66],
    /// Our partial signature of that session (zeros for a channel).
    pub partial: [u8; 32],
}

/// What a client is asked to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The output spent.
    pub outpoint: OutPoint,
    /// What that output is.
    pub kind: SpentKind,
    /// What for, by [`classify`].
    pub purpose: Purpose,
    /// The message.
    pub sighash: Message,
    /// Our public nonce of this session.
    pub own_nonce: [u8; 66],
    /// The sum of all nonces of this session.
    pub sum: [u8; 66],
}

impl Request {
    /// The request to sign `tx` by MuSig2.
    ///
    /// # Errors
    /// [`ClassifyError`] when it has no purpose anybody may sign.
    pub fn musig(
        tx: &FactoryTx,
        params: &FactoryParams,
        expiry: Height,
        own_nonce: &PublicNonce,
        sum: &AggregateNonce,
    ) -> Result<Self, ClassifyError> {
        Ok(Self {
            outpoint: tx.spends.outpoint,
            kind: tx.spends.kind,
            purpose: classify(tx, params, expiry)?,
            sighash: tx.taproot_sighash(),
            own_nonce: own_nonce.to_bytes(),
            sum: sum.to_bytes(),
        })
    }

    /// The request to sign `tx`, which spends a channel with this witness script, by ECDSA.
    ///
    /// # Errors
    /// [`ClassifyError`] when it has no purpose anybody may sign.
    pub fn channel(
        tx: &FactoryTx,
        params: &FactoryParams,
        expiry: Height,
        witness_script: &bitcoin::Script,
    ) -> Result<Self, ClassifyError> {
        Ok(Self {
            outpoint: tx.spends.outpoint,
            kind: tx.spends.kind,
            purpose: classify(tx, params, expiry)?,
            sighash: tx.channel_sighash(witness_script),
            own_nonce: NO_NONCE,
            sum: NO_NONCE,
        })
    }

    /// What is recorded when this is signed with `partial` (zeros for a channel).
    #[must_use]
    pub const fn record(&self, partial: [u8; 32]) -> SignedRecord {
        SignedRecord {
            outpoint: self.outpoint,
            purpose: self.purpose,
            sighash: self.sighash,
            own_nonce: self.own_nonce,
            sum: self.sum,
            partial,
        }
    }
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing was signed for it: sign and record in one database transaction.
    Record,
    /// The very session that was signed: answer with the stored partial (for a channel: sign the
    /// same message again).
    Stored([u8; 32]),
    /// The recorded message in a new session: sign with these fresh nonces, and keep the record's
    /// sighash; its nonces and partial become the new session's.
    FreshSession,
    /// Not to be signed, and to be reported.
    Refuse(GuardError),
}

/// Why a signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// Outputs of this kind are never spent for that purpose.
    #[error("an output of kind {kind:?} is never spent for {purpose}")]
    NotAllowed {
        /// The output's kind.
        kind: SpentKind,
        /// The purpose asked for.
        purpose: Purpose,
    },
    /// Another message was signed for this purpose.
    #[error(
        "{outpoint} is already signed for {purpose}: recorded {}, asked {}",
        hex::encode(recorded),
        hex::encode(asked)
    )]
    AlreadySigned {
        /// The output.
        outpoint: OutPoint,
        /// The purpose.
        purpose: Purpose,
        /// The recorded message.
        recorded: Message,
        /// The message asked for.
        asked: Message,
    },
    /// A state whose slot does not override every state signed before.
    #[error("{outpoint} has a signed state in slot {lowest}; slot {asked} is not lower")]
    SlotNotLower {
        /// The kickoff's output.
        outpoint: OutPoint,
        /// The lowest slot signed.
        lowest: u32,
        /// The slot asked for.
        asked: u32,
    },
    /// A poison of a sale that was never signed.
    #[error("{outpoint} is not sold: no next transaction is recorded for it")]
    NotSold {
        /// The stock.
        outpoint: OutPoint,
    },
    /// The tree below the output and a cooperative close exclude each other.
    #[error("{outpoint} is already signed for {recorded}, which excludes {asked}")]
    Excluded {
        /// The output.
        outpoint: OutPoint,
        /// What is recorded.
        recorded: Purpose,
        /// What is asked for.
        asked: Purpose,
    },
    /// A poison of a state that nothing supersedes.
    #[error("{outpoint} belongs to the live state: no superseding state is stored complete")]
    NotSuperseded {
        /// The output.
        outpoint: OutPoint,
    },
    /// Our nonce has signed already, in another session.
    #[error("the nonce of this session has already signed for {outpoint}")]
    NonceReused {
        /// The output.
        outpoint: OutPoint,
    },
}

/// Judges `request` by what is recorded for its outpoint; `existing` is all of that.
#[must_use]
pub fn decide(existing: &[SignedRecord], request: &Request) -> Decision {
    let Request { outpoint, kind, .. } = *request;
    if !allowed(kind, request.purpose) {
        let purpose = request.purpose;
        return Decision::Refuse(GuardError::NotAllowed { kind, purpose });
    }
    let existing: Vec<&SignedRecord> = existing.iter().filter(|r| r.outpoint == outpoint).collect();
    match existing.iter().find(|r| r.purpose == request.purpose) {
        Some(record) => repeated(record, &existing, request),
        None => match first(&existing, request) {
            Ok(()) => Decision::Record,
            Err(error) => Decision::Refuse(error),
        },
    }
}

/// Which purposes an output of a kind can have.
const fn allowed(kind: SpentKind, purpose: Purpose) -> bool {
    use Purpose::{Close, DwPoison, Next, SalePoison, State, Timeout};
    match kind {
        SpentKind::Funding | SpentKind::Static | SpentKind::State => {
            matches!(purpose, Next | Timeout | Close)
        }
        SpentKind::Kickoff => matches!(purpose, State(_) | Timeout),
        SpentKind::Stock => matches!(purpose, Next | SalePoison(_) | Timeout | DwPoison),
        SpentKind::Channel => matches!(purpose, Timeout | DwPoison),
        SpentKind::FirstStage => matches!(purpose, Timeout),
    }
}

/// Something is signed for this very purpose.
fn repeated(record: &SignedRecord, existing: &[&SignedRecord], request: &Request) -> Decision {
    if record.sighash != request.sighash {
        return Decision::Refuse(GuardError::AlreadySigned {
            outpoint: request.outpoint,
            purpose: request.purpose,
            recorded: record.sighash,
            asked: request.sighash,
        });
    }
    if record.own_nonce == request.own_nonce && record.sum == request.sum {
        return Decision::Stored(record.partial);
    }
    match fresh_nonce(existing, request) {
        Ok(()) => Decision::FreshSession,
        Err(error) => Decision::Refuse(error),
    }
}

/// Nothing is signed for this purpose yet: what the other purposes say.
fn first(existing: &[&SignedRecord], request: &Request) -> Result<(), GuardError> {
    let outpoint = request.outpoint;
    let has = |purpose: Purpose| existing.iter().any(|record| record.purpose == purpose);
    let excluded = |recorded: Purpose| GuardError::Excluded {
        outpoint,
        recorded,
        asked: request.purpose,
    };
    match request.purpose {
        Purpose::Close if has(Purpose::Next) => return Err(excluded(Purpose::Next)),
        Purpose::Next if has(Purpose::Close) => return Err(excluded(Purpose::Close)),
        Purpose::SalePoison(_) if !has(Purpose::Next) => {
            return Err(GuardError::NotSold { outpoint });
        }
        // Updates are not built yet, so nothing is ever superseded.
        Purpose::DwPoison => return Err(GuardError::NotSuperseded { outpoint }),
        Purpose::State(asked) => check_slot(existing, outpoint, asked)?,
        _ => {}
    }
    fresh_nonce(existing, request)
}

fn check_slot(
    existing: &[&SignedRecord],
    outpoint: OutPoint,
    asked: u32,
) -> Result<(), GuardError> {
    let slots = existing.iter().filter_map(|record| match record.purpose {
        Purpose::State(slot) => Some(slot),
        _ => None,
    });
    match slots.min() {
        Some(lowest) if asked >= lowest => Err(GuardError::SlotNotLower {
            outpoint,
            lowest,
            asked,
        }),
        _ => Ok(()),
    }
}

/// Two signatures with one secret nonce give the key away (BIP-327), so even a nonce that the
/// types let through twice is refused.
fn fresh_nonce(existing: &[&SignedRecord], request: &Request) -> Result<(), GuardError> {
    let used = existing
        .iter()
        .any(|record| record.own_nonce == request.own_nonce);
    if used && request.own_nonce != NO_NONCE {
        return Err(GuardError::NonceReused {
            outpoint: request.outpoint,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
