//! Against libsecp256k1's own MuSig2: the same aggregates, and signatures made half by each.

use bitcoin::hashes::Hash;
use secp256k1_musig as other;
use secp256k1_musig::musig;

use super::*;
use crate::output::ScriptLeaf;
use crate::testing::{bytes, public, secret};
use crate::units::Blocks;

const MESSAGE: Message = [0x5a; 32];

fn theirs(key: &PublicKey) -> other::PublicKey {
    other::PublicKey::from_byte_array_compressed(key.serialize()).unwrap()
}

fn root(seed: u64) -> Option<TapNodeHash> {
    let lsp = public(&secret(seed, "lsp", 0)).x_only_public_key().0;
    ScriptLeaf::LspDelayed(Blocks(504)).merkle_root(lsp)
}

/// Their cache under the BIP-341 tweak.
fn their_group(keys: &[PublicKey], root: Option<TapNodeHash>) -> musig::KeyAggCache {
    let keys: Vec<_> = keys.iter().map(theirs).collect();
    let mut cache = musig::KeyAggCache::new(&keys.iter().collect::<Vec<_>>());
    let internal = XOnlyPublicKey::from_slice(&cache.agg_pk().to_byte_array()).unwrap();
    let tweak = bitcoin::TapTweakHash::from_key_and_tweak(internal, root);
    let tweak = other::Scalar::from_be_bytes(tweak.to_byte_array()).unwrap();
    cache.pubkey_xonly_tweak_add(&tweak).unwrap();
    cache
}

#[test]
fn aggregates_agree_from_2_to_130_keys() {
    let secrets: Vec<SecretKey> = (0..130).map(|n| secret(11, "signer", n)).collect();
    let keys: Vec<PublicKey> = secrets.iter().map(public).collect();
    for n in 2..=130usize {
        let some = &keys[..n];
        let untweaked = Group::aggregate(some).unwrap();
        for root in [None, root(n as u64)] {
            let ours = untweaked.taproot(root).unwrap().key();
            let theirs = their_group(some, root).agg_pk();
            assert_eq!(ours.serialize(), theirs.to_byte_array(), "{n} keys");
        }
    }
}

/// What one signer of a mixed session does.
enum Signer {
    Ours(SecretNonceBytes),
    Theirs(musig::SecretNonce),
}

/// A session of `n` signers, every second one by the other library.
fn mixed_session(n: usize) {
    let secrets: Vec<SecretKey> = (0..n as u64)
        .map(|i| secret(n as u64, "signer", i))
        .collect();
    let keys: Vec<PublicKey> = secrets.iter().map(public).collect();
    let root = if n.is_multiple_of(2) {
        None
    } else {
        root(n as u64)
    };
    let group = Group::aggregate(&keys).unwrap().taproot(root).unwrap();
    let cache = their_group(&keys, root);

    let mut signers = Vec::new();
    let mut nonces = Vec::new();
    for (index, secret) in secrets.iter().enumerate() {
        let seed = bytes(n as u64, "nonce", index as u64);
        if index % 2 == 0 {
            let (nonce, public) = Group::nonce(seed, secret, b"mixed");
            signers.push(Signer::Ours(nonce));
            nonces.push(public);
        } else {
            let rand = musig::SessionSecretRand::assume_uniformly_random(seed);
            let key = theirs(&keys[index]);
            let (nonce, public) = musig::new_nonce_pair(rand, None, None, key, None, None);
            signers.push(Signer::Theirs(nonce));
            nonces.push(PublicNonce::from_bytes(&public.serialize()).unwrap());
        }
    }
    let sum = AggregateNonce::sum(&nonces);
    let their_nonces: Vec<_> = nonces
        .iter()
        .map(|nonce| musig::PublicNonce::from_byte_array(&nonce.to_bytes()).unwrap())
        .collect();
    let their_sum = musig::AggregatedNonce::new(&their_nonces.iter().collect::<Vec<_>>());
    assert_eq!(sum.to_bytes(), their_sum.serialize());
    let session = musig::Session::new(&cache, their_sum, &MESSAGE);

    let mut partials = Vec::new();
    for (index, signer) in signers.into_iter().enumerate() {
        let key = keys[index];
        let partial = match signer {
            Signer::Ours(nonce) => {
                let partial = group.sign(&secrets[index], nonce, &sum, &MESSAGE).unwrap();
                let sent = musig::PartialSignature::from_byte_array(&partial.to_bytes()).unwrap();
                let nonce = &their_nonces[index];
                assert!(session.partial_verify(&cache, &sent, nonce, theirs(&key)));
                partial
            }
            Signer::Theirs(nonce) => {
                let secret = secrets[index].secret_bytes();
                let secret = other::SecretKey::from_secret_bytes(secret).unwrap();
                let pair = other::Keypair::from_secret_key(&secret);
                let partial = session.partial_sign(nonce, &pair, &cache).serialize();
                let partial = PartialSignature::from_bytes(&partial).unwrap();
                assert!(group.verify(&key, &nonces[index], &sum, &MESSAGE, &partial));
                partial
            }
        };
        partials.push(partial);
    }
    let signature = group.combine(&sum, &MESSAGE, &partials).unwrap();
    let their_partials: Vec<_> = partials
        .iter()
        .map(|p| musig::PartialSignature::from_byte_array(&p.to_bytes()).unwrap())
        .collect();
    let combined = session.partial_sig_agg(&their_partials.iter().collect::<Vec<_>>());
    let verified = combined.verify(&cache.agg_pk(), &MESSAGE).unwrap();
    assert_eq!(signature.serialize(), verified.to_byte_array());
}

#[test]
fn mixed_signatures_verify_from_2_to_130_signers() {
    use rayon::prelude::*;
    (2..=130usize).into_par_iter().for_each(mixed_session);
}

/// The last signer's shortcut makes the very signature BIP-327's Sign makes.
#[test]
fn the_last_signers_partial_is_bip327s() {
    for n in 2..20u64 {
        let secrets: Vec<SecretKey> = (0..n).map(|i| secret(n, "signer", i)).collect();
        let keys: Vec<PublicKey> = secrets.iter().map(public).collect();
        let untweaked = Group::aggregate(&keys).unwrap();
        for root in [None, root(n)] {
            let group = untweaked.taproot(root).unwrap();
            let nonce = || Group::nonce(bytes(n, "nonce", 0), &secrets[0], b"last");
            let (other_nonce, other) = Group::nonce(bytes(n, "nonce", 1), &secrets[1], b"last");
            drop(other_nonce);
            let sum = AggregateNonce::sum([&nonce().1, &other]);
            let slow = group.sign(&secrets[0], nonce().0, &sum, &MESSAGE).unwrap();
            let signer = LastSigner::new(&secrets[0]);
            let challenge = group.challenge(&sum, &MESSAGE);
            let fast = challenge.sign_last(&group, untweaked.is_odd(), &signer, nonce().0);
            assert_eq!(fast, Ok(slow));
            let stranger = LastSigner::new(&secret(n, "stranger", 0));
            let refused = challenge.sign_last(&group, false, &stranger, nonce().0);
            assert_eq!(refused, Err(MusigError::NotASigner));
        }
    }
}
