//! BIP-327's official test vectors, through [`Bip327`] wherever the trait reaches: it knows only
//! 32-byte messages and taproot tweaks, so other messages go to the `musig2` crate directly.

use musig2::secp::MaybeScalar;
use serde_json::Value;

use super::*;

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

/// The entries of `vectors[pool]` that `case[indices]` names.
fn picked<'a>(vectors: &'a Value, pool: &str, case: &Value, indices: &str) -> Vec<&'a Value> {
    let pool = list(vectors, pool);
    let indices = list(case, indices).iter();
    indices
        .map(|index| &pool[index.as_u64().unwrap() as usize])
        .collect()
}

fn number(case: &Value, name: &str) -> usize {
    case[name].as_u64().unwrap() as usize
}

fn keys(vectors: &Value, case: &Value) -> Option<Vec<PublicKey>> {
    let keys = picked(vectors, "pubkeys", case, "key_indices");
    keys.into_iter()
        .map(|key| PublicKey::from_slice(&bytes(key)).ok())
        .collect()
}

fn nonces(vectors: &Value, case: &Value) -> Option<Vec<PublicNonce>> {
    let nonces = picked(vectors, "pnonces", case, "nonce_indices");
    nonces
        .into_iter()
        .map(|nonce| PublicNonce::from_bytes(&bytes(nonce)).ok())
        .collect()
}

/// The group of a case under its tweaks.
fn tweaked(vectors: &Value, case: &Value) -> Option<Group> {
    let mut context = Group::aggregate(&keys(vectors, case)?).ok()?.context;
    let tweaks = picked(vectors, "tweaks", case, "tweak_indices");
    for (tweak, x_only) in tweaks.into_iter().zip(list(case, "is_xonly")) {
        let tweak = MaybeScalar::from_slice(&bytes(tweak)).ok()?;
        context = context.with_tweak(tweak, x_only.as_bool().unwrap()).ok()?;
    }
    Group::new(context).ok()
}

fn secret_nonce(value: &Value) -> SecretNonceBytes {
    Zeroizing::new(array(value))
}

fn secret_key(value: &Value) -> SecretKey {
    SecretKey::from_slice(&bytes(value)).unwrap()
}

#[test]
fn key_aggregation() {
    let vectors = load(include_str!("../../tests/vectors/key_agg_vectors.json"));
    let valid = list(&vectors, "valid_test_cases");
    assert_eq!(valid.len(), 4);
    for case in valid {
        let group = Group::aggregate(&keys(&vectors, case).unwrap()).unwrap();
        assert_eq!(group.key().serialize(), array(&case["expected"]));
    }
    let errors = list(&vectors, "error_test_cases");
    assert_eq!(errors.len(), 5);
    for case in errors {
        assert!(tweaked(&vectors, case).is_none(), "{}", case["comment"]);
    }
    assert!(Group::aggregate(&[]).is_err());
}

#[test]
fn nonce_generation() {
    let vectors = load(include_str!("../../tests/vectors/nonce_gen_vectors.json"));
    let cases = list(&vectors, "test_cases");
    assert_eq!(cases.len(), 4);
    for case in cases {
        let text = |name: &str| case[name].as_str().map(|text| hex::decode(text).unwrap());
        let (message, extra) = (text("msg"), text("extra_in"));
        let seed: [u8; 32] = array(&case["rand_"]);
        let mut builder = match text("sk") {
            Some(sk) => SecNonce::build_with_seckey(seed, Scalar::from_slice(&sk).unwrap()),
            None => {
                SecNonce::build_with_pubkey(seed, Point::from_slice(&bytes(&case["pk"])).unwrap())
            }
        };
        if let Some(key) = text("aggpk") {
            builder =
                builder.with_aggregated_pubkey(Point::lift_x(key.try_into().unwrap()).unwrap());
        }
        if let Some(message) = &message {
            builder = builder.with_message(message);
        }
        if let Some(extra) = &extra {
            builder = builder.with_extra_input(extra);
        }
        let nonce = builder.build();
        assert_eq!(nonce.to_bytes(), array::<97>(&case["expected_secnonce"]));
        let public = PublicNonce(nonce.public_nonce());
        assert_eq!(public.to_bytes(), array::<66>(&case["expected_pubnonce"]));
    }
}

/// The trait's NonceGen is BIP-327's with secret key and extra input, without key and message.
#[test]
fn nonces_of_the_trait_are_bip327s() {
    let secret = SecretKey::from_slice(&[2; 32]).unwrap();
    let (nonce, public) = Group::nonce([0x0f; 32], &secret, &[8; 24]);
    let expected = SecNonce::build_with_seckey([0x0f; 32], scalar(&secret))
        .with_extra_input(&[8u8; 24])
        .build();
    assert_eq!(*nonce, expected.to_bytes());
    assert_eq!(public.to_bytes(), expected.public_nonce().to_bytes());
    let (other, _) = Group::nonce([0x0f; 32], &secret, &[9; 24]);
    assert_ne!(*other, *nonce);
}

#[test]
fn nonce_aggregation() {
    let vectors = load(include_str!("../../tests/vectors/nonce_agg_vectors.json"));
    let parsed = |case: &Value| -> Option<Vec<PublicNonce>> {
        let nonces = picked(&vectors, "pnonces", case, "pnonce_indices");
        nonces
            .into_iter()
            .map(|n| PublicNonce::from_bytes(&bytes(n)).ok())
            .collect()
    };
    for case in list(&vectors, "valid_test_cases") {
        let sum = AggregateNonce::sum(&parsed(case).unwrap());
        assert_eq!(sum.to_bytes(), array::<66>(&case["expected"]));
        assert_eq!(AggregateNonce::from_bytes(&sum.to_bytes()), Ok(sum));
    }
    for case in list(&vectors, "error_test_cases") {
        assert!(parsed(case).is_none(), "{}", case["comment"]);
    }
}

#[test]
fn signing() {
    let vectors = load(include_str!("../../tests/vectors/sign_verify_vectors.json"));
    let secret = secret_key(&vectors["sk"]);
    let own_nonce = || secret_nonce(&list(&vectors, "secnonces")[0]);
    for case in list(&vectors, "valid_test_cases") {
        let group = Group::aggregate(&keys(&vectors, case).unwrap()).unwrap();
        let nonces = nonces(&vectors, case).unwrap();
        let sum = AggregateNonce::sum(&nonces);
        let given = &list(&vectors, "aggnonces")[number(case, "aggnonce_index")];
        assert_eq!(sum.to_bytes(), array::<66>(given));
        let message = bytes(&list(&vectors, "msgs")[number(case, "msg_index")]);
        let expected: [u8; 32] = array(&case["expected"]);
        let Ok(message) = <[u8; 32]>::try_from(message.clone()) else {
            let nonce = SecNonce::from_bytes(own_nonce().as_slice()).unwrap();
            let partial: MaybeScalar =
                musig2::sign_partial(&group.context, scalar(&secret), nonce, &sum.0, &message)
                    .unwrap();
            assert_eq!(partial.serialize(), expected);
            continue;
        };
        let partial = group.sign(&secret, own_nonce(), &sum, &message).unwrap();
        assert_eq!(partial.to_bytes(), expected);
        let signer = number(case, "signer_index");
        let key = keys(&vectors, case).unwrap()[signer];
        assert!(group.verify(&key, &nonces[signer], &sum, &message, &partial));
    }
}

#[test]
fn signing_errors() {
    let vectors = load(include_str!("../../tests/vectors/sign_verify_vectors.json"));
    let secret = secret_key(&vectors["sk"]);
    let cases = list(&vectors, "sign_error_test_cases");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let attempt = || {
            let group = Group::aggregate(&keys(&vectors, case)?).ok()?;
            let given = &list(&vectors, "aggnonces")[number(case, "aggnonce_index")];
            let sum = AggregateNonce::from_bytes(&bytes(given)).ok()?;
            let nonce = secret_nonce(&list(&vectors, "secnonces")[number(case, "secnonce_index")]);
            let message = array(&list(&vectors, "msgs")[number(case, "msg_index")]);
            group.sign(&secret, nonce, &sum, &message).ok()
        };
        assert!(attempt().is_none(), "{}", case["comment"]);
    }
}

#[test]
fn partial_verification_errors() {
    let vectors = load(include_str!("../../tests/vectors/sign_verify_vectors.json"));
    let fail = list(&vectors, "verify_fail_test_cases");
    let error = list(&vectors, "verify_error_test_cases");
    assert_eq!((fail.len(), error.len()), (3, 2));
    for case in fail.iter().chain(error) {
        let attempt = || {
            let keys = keys(&vectors, case)?;
            let group = Group::aggregate(&keys).ok()?;
            let nonces = nonces(&vectors, case)?;
            let partial = PartialSignature::from_bytes(&bytes(&case["sig"])).ok()?;
            let message = array(&list(&vectors, "msgs")[number(case, "msg_index")]);
            let signer = number(case, "signer_index");
            let sum = AggregateNonce::sum(&nonces);
            let good = group.verify(&keys[signer], &nonces[signer], &sum, &message, &partial);
            good.then_some(())
        };
        assert!(attempt().is_none(), "{}", case["comment"]);
    }
}

#[test]
fn tweaks() {
    let vectors = load(include_str!("../../tests/vectors/tweak_vectors.json"));
    let secret = secret_key(&vectors["sk"]);
    let message = array(&vectors["msg"]);
    let cases = list(&vectors, "valid_test_cases");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let group = tweaked(&vectors, case).unwrap();
        let nonces = nonces(&vectors, case).unwrap();
        let sum = AggregateNonce::sum(&nonces);
        assert_eq!(sum.to_bytes(), array::<66>(&vectors["aggnonce"]));
        let nonce = secret_nonce(&vectors["secnonce"]);
        let partial = group.sign(&secret, nonce, &sum, &message).unwrap();
        assert_eq!(
            partial.to_bytes(),
            array::<32>(&case["expected"]),
            "{}",
            case["comment"]
        );
        let signer = number(case, "signer_index");
        let key = keys(&vectors, case).unwrap()[signer];
        assert!(group.verify(&key, &nonces[signer], &sum, &message, &partial));
    }
    for case in list(&vectors, "error_test_cases") {
        assert!(tweaked(&vectors, case).is_none(), "{}", case["comment"]);
    }
}

#[test]
fn signature_aggregation() {
    let vectors = load(include_str!("../../tests/vectors/sig_agg_vectors.json"));
    let message: Message = array(&vectors["msg"]);
    let partials = |case: &Value| -> Option<Vec<PartialSignature>> {
        let partials = picked(&vectors, "psigs", case, "psig_indices");
        partials
            .into_iter()
            .map(|p| PartialSignature::from_bytes(&bytes(p)).ok())
            .collect()
    };
    let cases = list(&vectors, "valid_test_cases");
    assert_eq!(cases.len(), 4);
    let secp = bitcoin::secp256k1::Secp256k1::verification_only();
    for case in cases {
        let group = tweaked(&vectors, case).unwrap();
        let sum = AggregateNonce::sum(&nonces(&vectors, case).unwrap());
        assert_eq!(sum.to_bytes(), array::<66>(&case["aggnonce"]));
        let signature = group
            .combine(&sum, &message, &partials(case).unwrap())
            .unwrap();
        assert_eq!(signature.serialize(), array::<64>(&case["expected"]));
        let message = bitcoin::secp256k1::Message::from_digest(message);
        secp.verify_schnorr(&signature, &message, &group.key())
            .unwrap();
    }
    for case in list(&vectors, "error_test_cases") {
        assert!(partials(case).is_none(), "{}", case["comment"]);
    }
}
