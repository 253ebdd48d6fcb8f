//! A nonce signs only what it was made for, and only the guilty are blamed (I6).

use std::collections::BTreeSet;

use bitcoin::Network;
use proptest::prelude::*;

use super::*;
use crate::params::{FactoryParams, Profile};
use crate::testing::{ATTEMPT, CEREMONY, TestFactory, bytes, public, secret};

fn factory(clients: usize) -> TestFactory {
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    TestFactory::new(21, params, clients).unwrap()
}

fn at(session: u32) -> NonceUse {
    NonceUse {
        ceremony: CEREMONY,
        attempt: ATTEMPT,
        session,
    }
}

/// The nonces of every signer of a session, in key-aggregation order.
fn nonces(factory: &TestFactory, session: u32) -> Vec<(SecretNonce, PublicNonce)> {
    let secrets = factory.secrets(&factory.tree.txs()[session as usize]);
    let numbered = (0u64..).zip(&secrets);
    let label = format!("session {session}");
    numbered
        .map(|(n, secret)| SecretNonce::generate(bytes(21, &label, n), secret, at(session)))
        .collect()
}

/// How a client cheats.
#[derive(Clone, Copy, Debug)]
enum Cheat {
    /// A random scalar.
    Garbage,
    /// A signature on another transaction.
    OtherMessage,
    /// A signature with another key.
    OtherKey,
    /// A signature with another nonce than it announced.
    OtherNonce,
}

/// Runs all sessions; `cheats` says who spoils which.
fn run(
    factory: &TestFactory,
    cheats: &[(usize, usize, Cheat)],
) -> Result<Vec<schnorr::Signature>, SessionError> {
    let txs = factory.tree.txs();
    let mut all = Vec::new();
    for session in 0..txs.len() as u32 {
        let (secret, public): (Vec<_>, Vec<_>) = nonces(factory, session).into_iter().unzip();
        let sum = AggregateNonce::sum(&public);
        all.push((secret, public, sum));
    }
    let mut aggregations = Vec::new();
    for (index, (secret_nonces, public_nonces, sum)) in all.iter_mut().enumerate() {
        let tx = &txs[index];
        let keys = factory.secrets(tx);
        let mut secret_nonces = core::mem::take(secret_nonces);
        let own = Some(secret_nonces.remove(0));
        let nonce_use = at(index as u32);
        let mut shares = Vec::new();
        for (signer, nonce) in secret_nonces.into_iter().enumerate() {
            let key = &keys[signer + 1];
            let cheat = cheats.iter().find(|(s, c, _)| (*s, *c) == (index, signer));
            let other = &txs[(index + 1) % txs.len()];
            let sum: &AggregateNonce = sum;
            let key_of = &tx.spends.key.as_ref().unwrap().group;
            let partial = match cheat.map(|(_, _, cheat)| cheat) {
                None => nonce.sign(nonce_use, key, tx, sum).unwrap(),
                Some(Cheat::Garbage) => PartialSignature::from_bytes(&[7; 32]).unwrap(),
                Some(Cheat::OtherMessage) => key_of
                    .sign(key, nonce.bytes, sum, &other.taproot_sighash())
                    .unwrap(),
                Some(Cheat::OtherKey) => {
                    // Another signer of the group signs, with a nonce of its own.
                    let lsp = &keys[0];
                    let (nonce, _) = SecretNonce::generate(bytes(21, "x", 1), lsp, nonce_use);
                    nonce.sign(nonce_use, lsp, tx, sum).unwrap()
                }
                Some(Cheat::OtherNonce) => {
                    let (nonce, _) = SecretNonce::generate(bytes(21, "x", 2), key, nonce_use);
                    nonce.sign(nonce_use, key, tx, sum).unwrap()
                }
            };
            shares.push(Share {
                signer: public(key),
                nonce: &public_nonces[signer + 1],
                partial,
            });
        }
        aggregations.push(Aggregation {
            tx,
            shares,
            sum,
            own,
            nonce_use,
        });
    }
    complete_all(&factory.lsp, aggregations)
}

#[test]
fn honest_sessions_complete_against_the_output_key() {
    let factory = factory(9);
    let signatures = run(&factory, &[]).unwrap();
    let secp = Secp256k1::verification_only();
    for (tx, signature) in factory.tree.txs().iter().zip(&signatures) {
        let key = tx.spends.key.as_ref().unwrap();
        assert!(verify(&secp, key, &tx.taproot_sighash(), signature));
        // The aggregate before the tweak is not the key in the output.
        let internal = OutputKey {
            output: key.internal,
            ..(**key).clone()
        };
        assert!(!verify(&secp, &internal, &tx.taproot_sighash(), signature));
    }
}

#[test]
fn a_nonce_signs_only_what_it_was_made_for() {
    let factory = factory(4);
    let tx = &factory.tree.txs()[0];
    let key = &factory.clients[0].factory;
    let elsewhere = [
        NonceUse {
            ceremony: CeremonyId([1; 16]),
            ..at(0)
        },
        NonceUse {
            attempt: Attempt(2),
            ..at(0)
        },
        at(1),
    ];
    for asked in elsewhere {
        let (nonce, public) = SecretNonce::generate([9; 32], key, at(0));
        let sum = AggregateNonce::sum([&public]);
        let refused = nonce.sign(asked, key, tx, &sum);
        let expected = SessionError::ForeignNonce {
            made_for: at(0),
            asked,
        };
        assert_eq!(refused, Err(expected.clone()));
        let (nonce, _) = SecretNonce::generate([9; 32], &factory.lsp, at(0));
        let aggregation = Aggregation {
            tx,
            shares: Vec::new(),
            sum: &sum,
            own: Some(nonce),
            nonce_use: asked,
        };
        assert_eq!(complete_all(&factory.lsp, vec![aggregation]), Err(expected));
    }
}

#[test]
fn a_nonce_signs_only_with_its_own_key() {
    let factory = factory(4);
    let tx = &factory.tree.txs()[0];
    let (nonce, public) = SecretNonce::generate([9; 32], &factory.clients[0].factory, at(0));
    let sum = AggregateNonce::sum([&public]);
    let refused = nonce.sign(at(0), &factory.clients[1].factory, tx, &sum);
    assert_eq!(refused, Err(SessionError::Musig(MusigError::NotASigner)));
    let (nonce, _) = SecretNonce::generate([9; 32], &secret(1, "stranger", 0), at(0));
    let refused = nonce.sign(at(0), &secret(1, "stranger", 0), tx, &sum);
    assert_eq!(refused, Err(SessionError::Musig(MusigError::NotASigner)));
}

/// The same seed gives another nonce for another ceremony, attempt or session.
#[test]
fn nonces_are_bound_to_their_use() {
    let key = secret(1, "key", 0);
    let mut seen = BTreeSet::new();
    for ceremony in 0..3u8 {
        for attempt in 0..3 {
            for session in 0..3 {
                let made_for = NonceUse {
                    ceremony: CeremonyId([ceremony; 16]),
                    attempt: Attempt(attempt),
                    session,
                };
                let (_, public) = SecretNonce::generate([9; 32], &key, made_for);
                assert!(seen.insert(public.to_bytes()));
            }
        }
    }
}

#[test]
fn debug_shows_nothing_of_the_nonce() {
    let (nonce, _) = SecretNonce::generate([9; 32], &secret(1, "key", 0), at(3));
    let shown = format!("{nonce:?}");
    for part in nonce.bytes.chunks(4) {
        assert!(!shown.contains(&hex::encode(part)));
    }
    assert_eq!(shown, format!("SecretNonce({:?})", at(3)));
}

#[test]
fn channels_are_not_signed_by_musig() {
    let factory = factory(4);
    let timeout = &factory.tree.channel_timeouts()[0];
    let key = &factory.clients[0].factory;
    let (nonce, public) = SecretNonce::generate([9; 32], key, at(0));
    let sum = AggregateNonce::sum([&public]);
    assert_eq!(
        nonce.sign(at(0), key, timeout, &sum),
        Err(SessionError::NotMusig)
    );
}

/// The nonces of `others` and one more, of `last`, that cancels them.
fn cancelling(others: &[SecretKey], last: &SecretKey) -> Vec<(SecretNonce, PublicNonce)> {
    let numbered = (0u64..).zip(others);
    let mut all: Vec<_> = numbered
        .map(|(n, key)| SecretNonce::generate(bytes(21, "cancel", n), key, at(0)))
        .collect();
    let mut last_bytes = [0; 97];
    let mut last_public = Vec::new();
    for part in [0..32, 32..64] {
        let scalars = all
            .iter()
            .map(|(nonce, _)| SecretKey::from_slice(&nonce.bytes[part.clone()]).unwrap());
        let sum = scalars.reduce(|sum, scalar| sum.add_tweak(&scalar.into()).unwrap());
        let negated = sum.unwrap().negate();
        last_bytes[part].copy_from_slice(&negated.secret_bytes());
        last_public.extend(public(&negated).serialize());
    }
    last_bytes[64..].copy_from_slice(&public(last).serialize());
    let nonce = SecretNonce {
        bytes: zeroize::Zeroizing::new(last_bytes),
        made_for: at(0),
    };
    all.push((nonce, PublicNonce::from_bytes(&last_public).unwrap()));
    all
}

/// A second stage whose signers all conspire: their nonces cancel, so that every partial is valid
/// and the aggregate is not. Nobody innocent can be among them, as nobody knows another's nonce.
#[test]
fn signers_whose_nonces_cancel_are_all_blamed() {
    let factory = factory(205);
    let second = |tx: &&FactoryTx| tx.spends.kind == crate::factory::SpentKind::FirstStage;
    let tx = factory.tree.txs().iter().find(second).unwrap();
    let keys = factory.secrets(tx);
    let (last, others) = keys.split_last().unwrap();
    let (secrets, publics): (Vec<_>, Vec<_>) = cancelling(others, last).into_iter().unzip();
    let sum = AggregateNonce::sum(&publics);
    assert_eq!(sum.to_bytes(), [0; 66]);
    let signed = secrets.into_iter().zip(&keys).zip(&publics);
    let shares: Vec<Share<'_>> = signed
        .map(|((secret, key), nonce)| Share {
            signer: public(key),
            nonce,
            partial: secret.sign(at(0), key, tx, &sum).unwrap(),
        })
        .collect();
    let expected = shares.iter().map(|share| Fault {
        signer: share.signer,
        txid: tx.txid,
    });
    let expected = SessionError::Guilty(expected.collect());
    let aggregation = Aggregation {
        tx,
        shares,
        sum: &sum,
        own: None,
        nonce_use: at(0),
    };
    assert_eq!(complete_all(&factory.lsp, vec![aggregation]), Err(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(12)))]

    /// I6: exactly the invalid partials are named, with who made them and of what.
    #[test]
    fn exactly_the_guilty_are_blamed(
        clients in 2usize..10,
        cheats in proptest::collection::vec(
            (
                0usize..100,
                0usize..100,
                prop_oneof![
                    Just(Cheat::Garbage),
                    Just(Cheat::OtherMessage),
                    Just(Cheat::OtherKey),
                    Just(Cheat::OtherNonce),
                ],
            ),
            0..5,
        ),
    ) {
        let factory = factory(clients);
        let txs = factory.tree.txs();
        let cheats: Vec<_> = cheats
            .into_iter()
            .map(|(session, signer, cheat)| {
                let session = session % txs.len();
                let signers = txs[session].spends.clients.len();
                (session, signer % signers, cheat)
            })
            .collect();
        let expected: BTreeSet<Fault> = cheats
            .iter()
            .map(|(session, signer, _)| Fault {
                signer: public(&factory.secrets(&txs[*session])[signer + 1]),
                txid: txs[*session].txid,
            })
            .collect();
        match run(&factory, &cheats) {
            Ok(_) => prop_assert!(expected.is_empty()),
            Err(SessionError::Guilty(faults)) => {
                let count = faults.len();
                let found: BTreeSet<Fault> = faults.into_iter().collect();
                prop_assert_eq!(found.len(), count, "named twice");
                prop_assert_eq!(found, expected);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
