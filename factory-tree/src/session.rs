//! Signing sessions: nonces that can be used once, partial signatures, aggregation and blame.
//!
//! A [`SecretNonce`] cannot be cloned, printed or written down; signing consumes it, and it signs
//! only for the ceremony, attempt and session it was made for. The aggregate is verified against
//! the *output key*; only when that fails are the partials verified, which names the guilty.

use core::fmt;

use bitcoin::Txid;
use bitcoin::secp256k1::{self, PublicKey, Secp256k1, SecretKey, VerifyOnly, schnorr};
use rayon::prelude::*;

use crate::factory::FactoryTx;
use crate::ids::{Attempt, CeremonyId};
use crate::keys::OutputKey;
use crate::musig::{
    AggregateNonce, Bip327, Group, LastSigner, Message, MusigError, PartialSignature, PublicNonce,
    SecretNonceBytes,
};

/// What a nonce was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonceUse {
    /// The ceremony.
    pub ceremony: CeremonyId,
    /// The attempt.
    pub attempt: Attempt,
    /// The session, counted in the signer's own session order.
    pub session: u32,
}

/// A nonce that signs once, for one session. Memory only.
///
/// It cannot be copied:
/// ```compile_fail,E0277
/// fn cloned<T: Clone>() {}
/// cloned::<factory_tree::session::SecretNonce>();
/// ```
/// nor written down:
/// ```compile_fail,E0277
/// fn written<T: serde::Serialize>() {}
/// written::<factory_tree::session::SecretNonce>();
/// ```
/// and to sign uses it up:
/// ```compile_fail,E0382
/// # use factory_tree::{factory::FactoryTx, musig::AggregateNonce, session::{NonceUse, SecretNonce}};
/// # use bitcoin::secp256k1::SecretKey;
/// fn twice(nonce: SecretNonce, at: NonceUse, key: &SecretKey, tx: &FactoryTx, sum: &AggregateNonce) {
///     nonce.sign(at, key, tx, sum);
///     nonce.sign(at, key, tx, sum);
/// }
/// ```
pub struct SecretNonce {
    bytes: SecretNonceBytes,
    made_for: NonceUse,
}

impl fmt::Debug for SecretNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretNonce({:?})", self.made_for)
    }
}

/// Why a session could not be signed or completed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The nonce belongs to another ceremony, attempt or session.
    #[error("nonce made for {made_for:?} used for {asked:?}")]
    ForeignNonce {
        /// What it was made for.
        made_for: NonceUse,
        /// What it was asked to sign.
        asked: NonceUse,
    },
    /// The transaction is not signed by MuSig2.
    #[error("a channel is not spent by MuSig2")]
    NotMusig,
    /// Arithmetic.
    #[error(transparent)]
    Musig(#[from] MusigError),
    /// Partial signatures that are invalid, and whose.
    #[error("invalid partial signatures: {0:?}")]
    Guilty(Vec<Fault>),
}

/// An invalid partial signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Who made it.
    pub signer: PublicKey,
    /// Which transaction it should have signed.
    pub txid: Txid,
}

impl SecretNonce {
    /// Makes a nonce for `made_for`. `seed` must be 32 fresh bytes from a cryptographic source.
    #[must_use]
    pub fn generate(seed: [u8; 32], secret: &SecretKey, made_for: NonceUse) -> (Self, PublicNonce) {
        let mut extra = [0u8; 24];
        let (ceremony, rest) = extra.split_at_mut(16);
        let (attempt, session) = rest.split_at_mut(4);
        ceremony.copy_from_slice(&made_for.ceremony.0);
        attempt.copy_from_slice(&made_for.attempt.0.to_be_bytes());
        session.copy_from_slice(&made_for.session.to_be_bytes());
        let (bytes, public) = Group::nonce(seed, secret, &extra);
        (Self { bytes, made_for }, public)
    }

    /// Signs `tx`, using the nonce up.
    ///
    /// # Errors
    /// [`SessionError`]; the nonce is gone either way.
    pub fn sign(
        self,
        asked: NonceUse,
        secret: &SecretKey,
        tx: &FactoryTx,
        sum: &AggregateNonce,
    ) -> Result<PartialSignature, SessionError> {
        if self.made_for != asked {
            return Err(SessionError::ForeignNonce {
                made_for: self.made_for,
                asked,
            });
        }
        let key = tx.spends.key.as_ref().ok_or(SessionError::NotMusig)?;
        Ok(key
            .group
            .sign(secret, self.bytes, sum, &tx.taproot_sighash())?)
    }
}

/// One session as the party that aggregates sees it.
#[derive(Debug)]
pub struct Aggregation<'a> {
    /// What is signed.
    pub tx: &'a FactoryTx,
    /// Signers other than the aggregator, in key-aggregation order, with nonce and partial.
    pub shares: Vec<Share<'a>>,
    /// The sum of all nonces, the aggregator's own included.
    pub sum: &'a AggregateNonce,
    /// The aggregator's own nonce; `None` where it is no signer (second stages).
    pub own: Option<SecretNonce>,
    /// What the own nonce is for.
    pub nonce_use: NonceUse,
}

/// One signer's part of a session.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// Whose.
    pub signer: PublicKey,
    /// Its public nonce.
    pub nonce: &'a PublicNonce,
    /// Its partial signature.
    pub partial: PartialSignature,
}

/// Completes many sessions in parallel: the aggregator signs last, and every aggregate is
/// verified against its output key before it is returned.
///
/// # Errors
/// [`SessionError::Guilty`] with every invalid partial of every session, and every signer of one
/// whose nonces cancel each other.
pub fn complete_all(
    secret: &SecretKey,
    sessions: Vec<Aggregation<'_>>,
) -> Result<Vec<schnorr::Signature>, SessionError> {
    let secp = Secp256k1::verification_only();
    let signer = LastSigner::new(secret);
    let results: Vec<_> = sessions
        .into_par_iter()
        .map(|session| complete(&secp, &signer, session))
        .collect();
    let mut guilty = Vec::new();
    let mut signatures = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(signature) => signatures.push(signature),
            Err(SessionError::Guilty(more)) => guilty.extend(more),
            Err(other) => return Err(other),
        }
    }
    if guilty.is_empty() {
        return Ok(signatures);
    }
    Err(SessionError::Guilty(guilty))
}

fn complete(
    secp: &Secp256k1<VerifyOnly>,
    signer: &LastSigner,
    session: Aggregation<'_>,
) -> Result<schnorr::Signature, SessionError> {
    let Aggregation {
        tx,
        shares,
        sum,
        own,
        nonce_use,
    } = session;
    let key = tx.spends.key.as_ref().ok_or(SessionError::NotMusig)?;
    let message = tx.taproot_sighash();
    let challenge = key.group.challenge(sum, &message);
    let mut partials: Vec<_> = shares.iter().map(|share| share.partial).collect();
    let aggregator_signs = own.is_some();
    if let Some(nonce) = own {
        if nonce.made_for != nonce_use {
            let made_for = nonce.made_for;
            return Err(SessionError::ForeignNonce {
                made_for,
                asked: nonce_use,
            });
        }
        partials.push(challenge.sign_last(&key.group, key.odd_internal, signer, nonce.bytes)?);
    }
    let signature = challenge.combine(&key.group, &partials)?;
    if verify(secp, key, &message, &signature) {
        return Ok(signature);
    }
    let invalid = |share: &&Share<'_>| {
        let Share {
            signer,
            nonce,
            partial,
        } = share;
        !key.group.verify(signer, nonce, sum, &message, partial)
    };
    let mut guilty: Vec<&Share<'_>> = shares.iter().filter(invalid).collect();
    // Valid partials make no valid aggregate where the nonces cancel each other (BIP-327 goes on
    // with G then). Nobody knows another's nonce in time, so all the signers conspired.
    if guilty.is_empty() && !aggregator_signs {
        guilty = shares.iter().collect();
    }
    if guilty.is_empty() {
        return Err(MusigError::BadAggregate.into());
    }
    let faults = guilty.into_iter().map(|share| Fault {
        signer: share.signer,
        txid: tx.txid,
    });
    Err(SessionError::Guilty(faults.collect()))
}

/// Whether `signature` is valid for `message` under the output key (BIP-340).
#[must_use]
pub fn verify<C: secp256k1::Verification>(
    secp: &Secp256k1<C>,
    key: &OutputKey,
    message: &Message,
    signature: &schnorr::Signature,
) -> bool {
    let message = secp256k1::Message::from_digest(*message);
    secp.verify_schnorr(signature, &message, &key.output)
        .is_ok()
}

#[cfg(test)]
mod tests;
