//! A factory's keys: who owns what, aggregated once per group; and the masked handover.
//!
//! Key order is normative (protocol.md section 2): the LSP first, then the clients in leaf order,
//! unsorted; groups without the LSP exist only below a first-stage timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::secp256k1::{PublicKey, SecretKey, XOnlyPublicKey};
use bitcoin::taproot::TapNodeHash;
use bitcoin::{ScriptBuf, secp256k1};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::musig::{Bip327, Group, MusigError};
use crate::output;
use crate::shape::ClientRange;

/// Which keys own an output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owners {
    /// First client, in leaf order.
    pub start: u32,
    /// One past the last client.
    pub end: u32,
    /// Whether the LSP's key comes first.
    pub with_lsp: bool,
}

impl Owners {
    /// The clients of `range` and the LSP.
    #[must_use]
    pub const fn with_lsp(range: &ClientRange) -> Self {
        Self {
            start: range.start,
            end: range.end,
            with_lsp: true,
        }
    }

    /// The clients of `range` alone.
    #[must_use]
    pub const fn clients_only(range: &ClientRange) -> Self {
        Self {
            start: range.start,
            end: range.end,
            with_lsp: false,
        }
    }

    /// The clients.
    #[must_use]
    pub const fn clients(&self) -> ClientRange {
        self.start..self.end
    }
}

/// An aggregated and tweaked taproot output key.
#[derive(Clone, Debug)]
pub struct OutputKey {
    /// Whose it is.
    pub owners: Owners,
    /// The aggregate before the tweak (BIP-341's internal key).
    pub internal: XOnlyPublicKey,
    /// The taptree's root; `None`: key path only (BIP-86).
    pub merkle_root: Option<TapNodeHash>,
    /// The key in the output.
    pub output: XOnlyPublicKey,
    pub(crate) group: Group,
    pub(crate) odd_internal: bool,
}

impl OutputKey {
    /// The P2TR script.
    #[must_use]
    pub fn script(&self) -> ScriptBuf {
        output::taproot(self.output)
    }
}

/// The keys of one factory, and the groups aggregated so far.
#[derive(Clone, Debug)]
pub struct KeyRing {
    lsp: PublicKey,
    clients: Arc<[PublicKey]>,
    groups: BTreeMap<Owners, Group>,
    outputs: BTreeMap<(Owners, Option<TapNodeHash>), Arc<OutputKey>>,
}

impl KeyRing {
    /// A ring over the LSP's key and the clients' keys in leaf order.
    #[must_use]
    pub fn new(lsp: PublicKey, clients: impl Into<Arc<[PublicKey]>>) -> Self {
        Self {
            lsp,
            clients: clients.into(),
            groups: BTreeMap::new(),
            outputs: BTreeMap::new(),
        }
    }

    /// The LSP's factory key.
    #[must_use]
    pub const fn lsp(&self) -> PublicKey {
        self.lsp
    }

    /// The LSP's key as script leaves name it.
    #[must_use]
    pub fn lsp_x_only(&self) -> XOnlyPublicKey {
        self.lsp.x_only_public_key().0
    }

    /// The clients' factory keys in leaf order.
    #[must_use]
    pub fn clients(&self) -> &[PublicKey] {
        &self.clients
    }

    /// The keys of `owners`, in key-aggregation order.
    #[must_use]
    pub fn signers(&self, owners: &Owners) -> Vec<PublicKey> {
        let range = owners.start as usize..owners.end as usize;
        let clients = self.clients.get(range).unwrap_or_default();
        let lsp = owners.with_lsp.then_some(self.lsp);
        lsp.into_iter().chain(clients.iter().copied()).collect()
    }

    /// Aggregates `wanted` groups that are not cached yet, in parallel.
    ///
    /// # Errors
    /// [`MusigError::NoAggregate`].
    pub fn aggregate(&mut self, wanted: &BTreeSet<Owners>) -> Result<(), MusigError> {
        let missing: Vec<&Owners> = wanted
            .iter()
            .filter(|owners| !self.groups.contains_key(*owners))
            .collect();
        let made: Result<Vec<_>, MusigError> = missing
            .into_par_iter()
            .map(|owners| Ok((owners.clone(), Group::aggregate(&self.signers(owners))?)))
            .collect();
        self.groups.extend(made?);
        Ok(())
    }

    /// The output key of `owners` under `merkle_root`; aggregated once, however often asked.
    ///
    /// # Errors
    /// [`MusigError::NoAggregate`].
    pub fn output(
        &mut self,
        owners: &Owners,
        merkle_root: Option<TapNodeHash>,
    ) -> Result<Arc<OutputKey>, MusigError> {
        let cached = (owners.clone(), merkle_root);
        if let Some(key) = self.outputs.get(&cached) {
            return Ok(Arc::clone(key));
        }
        if !self.groups.contains_key(owners) {
            let group = Group::aggregate(&self.signers(owners))?;
            self.groups.insert(owners.clone(), group);
        }
        let untweaked = self.groups.get(owners).ok_or(MusigError::NoAggregate)?;
        let key = Arc::new(output_key(owners, untweaked, merkle_root)?);
        self.outputs.insert(cached, Arc::clone(&key));
        Ok(key)
    }
}

impl OutputKey {
    /// The key pair of the output itself, from the secret of every owner in key-aggregation order:
    /// what the last of them to leave has handed over makes the output its holder's alone.
    ///
    /// # Errors
    /// [`MusigError::NotASigner`] when they are not the owners' secrets.
    pub fn keypair<C: secp256k1::Signing>(
        &self,
        secp: &secp256k1::Secp256k1<C>,
        secrets: &[SecretKey],
    ) -> Result<secp256k1::Keypair, MusigError> {
        let mut secret = self.group.secret(secrets)?;
        let pair = secp256k1::Keypair::from_secret_key(secp, &secret);
        secret.non_secure_erase();
        // The x-only key is what counts (BIP-340): a signer negates where needed.
        match pair.x_only_public_key().0 == self.output {
            true => Ok(pair),
            false => Err(MusigError::NotASigner),
        }
    }
}

fn output_key(
    owners: &Owners,
    untweaked: &Group,
    merkle_root: Option<TapNodeHash>,
) -> Result<OutputKey, MusigError> {
    let group = untweaked.taproot(merkle_root)?;
    Ok(OutputKey {
        owners: owners.clone(),
        internal: untweaked.key(),
        merkle_root,
        output: group.key(),
        odd_internal: untweaked.is_odd(),
        group,
    })
}

/// A masked secret that is not the key it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the handed-over secret is not the secret key of {expected}")]
pub struct HandoverError {
    /// The public key whose secret was expected.
    pub expected: PublicKey,
}

/// `x XOR SHA256(x * P)`: a client's old secret `x`, readable only by the holder of `P`'s secret
/// (protocol.md section 7.3).
///
/// # Errors
/// Never for a valid key and point; the error names the recipient.
pub fn mask_secret(secret: &SecretKey, recipient: &PublicKey) -> Result<[u8; 32], HandoverError> {
    let pad = shared_pad(recipient, secret).ok_or(HandoverError {
        expected: *recipient,
    })?;
    Ok(xor(&secret.secret_bytes(), &pad))
}

/// Unmasks what [`mask_secret`] made for `recipient`, and checks that it is the secret of
/// `expected` before it is returned.
///
/// # Errors
/// [`HandoverError`] when it is another secret, or none.
pub fn unmask_secret(
    masked: &[u8; 32],
    expected: &PublicKey,
    recipient: &SecretKey,
) -> Result<SecretKey, HandoverError> {
    let error = HandoverError {
        expected: *expected,
    };
    let pad = shared_pad(expected, recipient).ok_or(error)?;
    let bytes = Zeroizing::new(xor(masked, &pad));
    let secret = SecretKey::from_slice(bytes.as_slice()).map_err(|_| error)?;
    let secp = secp256k1::Secp256k1::signing_only();
    if secret.public_key(&secp) != *expected {
        return Err(error);
    }
    Ok(secret)
}

fn shared_pad(point: &PublicKey, scalar: &SecretKey) -> Option<Zeroizing<[u8; 32]>> {
    let secp = secp256k1::Secp256k1::verification_only();
    let shared = point.mul_tweak(&secp, &(*scalar).into()).ok()?;
    Some(Zeroizing::new(Sha256::digest(shared.serialize()).into()))
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    let mut out = [0u8; 32];
    for ((to, x), y) in out.iter_mut().zip(a).zip(b) {
        *to = x ^ y;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::secp256k1::Secp256k1;

    fn pair(byte: u8) -> (SecretKey, PublicKey) {
        let secret = SecretKey::from_slice(&[byte; 32]).unwrap();
        (secret, secret.public_key(&Secp256k1::new()))
    }

    #[test]
    fn order_is_lsp_then_clients_unsorted() {
        let keys: Vec<PublicKey> = (2..6).map(|b| pair(b).1).collect();
        let ring = KeyRing::new(pair(1).1, keys.clone());
        let all = ring.signers(&Owners::with_lsp(&(1..3)));
        assert_eq!(all, [pair(1).1, keys[1], keys[2]]);
        assert_eq!(ring.signers(&Owners::clients_only(&(1..3))), keys[1..3]);
    }

    #[test]
    fn output_key_is_the_bip341_tweak_of_the_internal_key() {
        use bitcoin::key::TapTweak;
        let secp = Secp256k1::new();
        let keys: Vec<PublicKey> = (2..6).map(|b| pair(b).1).collect();
        let mut ring = KeyRing::new(pair(1).1, keys);
        let leaf = output::ScriptLeaf::LspDelayed(crate::units::Blocks(504));
        for root in [None, leaf.merkle_root(ring.lsp_x_only())] {
            let key = ring.output(&Owners::with_lsp(&(0..4)), root).unwrap();
            let expected = key.internal.tap_tweak(&secp, root).0;
            assert_eq!(expected.to_x_only_public_key(), key.output);
        }
    }

    #[test]
    fn handover_round_trips_and_checks_the_key() {
        let (client, client_key) = pair(7);
        let (lsp, lsp_key) = pair(8);
        let masked = mask_secret(&client, &lsp_key).unwrap();
        assert_ne!(masked, client.secret_bytes());
        assert_eq!(unmask_secret(&masked, &client_key, &lsp).unwrap(), client);
        let mut wrong = masked;
        wrong[31] ^= 1;
        assert!(unmask_secret(&wrong, &client_key, &lsp).is_err());
        assert!(unmask_secret(&masked, &pair(9).1, &lsp).is_err());
        assert!(unmask_secret(&masked, &client_key, &pair(9).0).is_err());
    }
}
