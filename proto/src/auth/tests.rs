use bitcoin::secp256k1::SecretKey;

use super::*;
use crate::v1;
use crate::wire::{FromClient, FromServer};

const NETWORK: Network = Network::Regtest;
const CERT: CertHash = CertHash([0xcc; 32]);
const AUX: Fresh = [0x55; 32];

fn secret(byte: u8) -> SecretKey {
    SecretKey::from_slice(&[byte; 32]).unwrap()
}

fn coordinator() -> ServerHandshake {
    ServerHandshake {
        network: NETWORK,
        cert: CERT,
        node_id: NodeId::of(&secret(1)),
    }
}

fn wallet() -> ClientHandshake {
    ClientHandshake {
        network: NETWORK,
        cert: CERT,
        server: NodeId::of(&secret(1)),
        client: NodeId::of(&secret(2)),
    }
}

fn challenge(
    server: ServerHandshake,
    hello: v1::Hello,
    fresh: Fresh,
) -> Result<(FromServer, AwaitAnswer), AuthError> {
    let (message, awaiting) =
        server.challenge(FromClient::Hello(hello), &secret(1), fresh, &AUX)?;
    Ok((FromServer::Challenge(message), awaiting))
}

/// A whole handshake: the client's answer and what the coordinator makes of it.
fn shake(
    server: ServerHandshake,
    client: ClientHandshake,
) -> Result<(v1::Answer, NodeId), AuthError> {
    let (hello, waiting) = client.hello([3; 32], "wallet 1.0");
    let (first, awaiting) = challenge(server, hello, [4; 32])?;
    let answer = waiting.answer(first, &secret(2), &AUX)?;
    let (id, software) = awaiting.verify(FromClient::Answer(answer.clone()))?;
    assert_eq!(software, "wallet 1.0");
    Ok((answer, id))
}

fn transcript() -> Transcript {
    Transcript {
        version: 1,
        network: NETWORK,
        cert: CERT,
        client: NodeId::of(&secret(2)),
        server: NodeId::of(&secret(1)),
        client_nonce: [3; 32],
        challenge: [4; 32],
    }
}

#[test]
fn both_sides_know_each_other() {
    let (_, id) = shake(coordinator(), wallet()).unwrap();
    assert_eq!(id, NodeId::of(&secret(2)));
}

#[test]
fn wrong_answers_are_refused() {
    let mut wrong = shake(coordinator(), wallet()).unwrap().0.signature.to_vec();
    wrong[40] ^= 1;
    for (bytes, malformed) in [(wrong, false), (Vec::new(), true), (vec![1; 63], true)] {
        let (hello, _) = wallet().hello([3; 32], "");
        let (_, awaiting) = challenge(coordinator(), hello, [4; 32]).unwrap();
        let answer = v1::Answer {
            signature: bytes.into(),
        };
        let error = awaiting.verify(FromClient::Answer(answer)).unwrap_err();
        assert_eq!(matches!(error, AuthError::Wire(_)), malformed, "{error}");
    }
}

#[test]
fn another_keys_answer_is_refused() {
    let (hello, waiting) = wallet().hello([3; 32], "");
    let (first, awaiting) = challenge(coordinator(), hello, [4; 32]).unwrap();
    let answer = waiting.answer(first, &secret(9), &AUX).unwrap();
    let error = awaiting.verify(FromClient::Answer(answer)).unwrap_err();
    let signer = NodeId::of(&secret(2));
    assert_eq!(error, AuthError::Signature { signer });
    let service = ServiceError::from(error);
    assert_eq!(service.code, ErrorCode::AuthFailed);
    assert_eq!(service.about.client, Some(signer.into()));
}

#[test]
fn missing_steps_are_refused() {
    let first = coordinator().challenge(FromClient::Heartbeat, &secret(1), [4; 32], &AUX);
    let expected = "Hello";
    assert_eq!(first.unwrap_err(), AuthError::Missing { expected });

    let (hello, waiting) = wallet().hello([3; 32], "");
    let (_, awaiting) = challenge(coordinator(), hello.clone(), [4; 32]).unwrap();
    let again = awaiting.verify(FromClient::Hello(hello));
    let expected = "Answer";
    assert_eq!(again.unwrap_err(), AuthError::Missing { expected });

    let early = waiting.answer(FromServer::Heartbeat, &secret(2), &AUX);
    let expected = "Challenge";
    assert_eq!(early.unwrap_err(), AuthError::Missing { expected });
    assert!(ClientHello::welcome(FromServer::Heartbeat).is_err());
}

#[test]
fn a_replayed_answer_is_refused() {
    let (recorded, _) = shake(coordinator(), wallet()).unwrap();
    // The attacker repeats the client's hello to the letter; the challenge is another.
    let (hello, _) = wallet().hello([3; 32], "");
    let (_, awaiting) = challenge(coordinator(), hello, [5; 32]).unwrap();
    let error = awaiting.verify(FromClient::Answer(recorded)).unwrap_err();
    assert!(matches!(error, AuthError::Signature { .. }));
}

#[test]
fn a_replayed_challenge_is_refused() {
    let (hello, _) = wallet().hello([3; 32], "");
    let (recorded, _) = challenge(coordinator(), hello, [4; 32]).unwrap();
    let (_, waiting) = wallet().hello([6; 32], "");
    let error = waiting.answer(recorded, &secret(2), &AUX).unwrap_err();
    assert!(matches!(error, AuthError::Signature { .. }));
}

#[test]
fn roles_cannot_be_swapped() {
    let transcript = transcript();
    let as_server = transcript.sign_as_server(&secret(2), &AUX);
    assert!(transcript.verify_client(&as_server).is_err());
    let as_client = transcript.sign_as_client(&secret(1), &AUX);
    assert!(transcript.verify_server(&as_client).is_err());
}

#[test]
fn another_certificate_is_noticed_by_both() {
    let mut client = wallet();
    client.cert = CertHash::PLAIN;
    let error = shake(coordinator(), client).unwrap_err();
    assert_eq!(
        error,
        AuthError::Signature {
            signer: client.server
        }
    );
    // And by the coordinator, were the client careless.
    let mut seen_by_client = transcript();
    seen_by_client.cert = CertHash::PLAIN;
    let signature = seen_by_client.sign_as_client(&secret(2), &AUX);
    assert!(transcript().verify_client(&signature).is_err());
}

#[test]
fn every_field_is_signed() {
    let original = transcript();
    let server = original.sign_as_server(&secret(1), &AUX);
    let client = original.sign_as_client(&secret(2), &AUX);
    original.verify_server(&server).unwrap();
    original.verify_client(&client).unwrap();
    let changes: [fn(&mut Transcript); 5] = [
        |t| t.version = 2,
        |t| t.network = Network::Signet,
        |t| t.cert = CertHash::PLAIN,
        |t| t.client_nonce = [0; 32],
        |t| t.challenge = [0; 32],
    ];
    for change in changes {
        let mut changed = original;
        change(&mut changed);
        assert!(changed.verify_server(&server).is_err());
        assert!(changed.verify_client(&client).is_err());
    }
    let mut other_server = original;
    other_server.server = NodeId::of(&secret(7));
    assert!(other_server.verify_client(&client).is_err());
    let mut other_client = original;
    other_client.client = NodeId::of(&secret(7));
    assert!(other_client.verify_server(&server).is_err());
    // BIP-340 alone would take the key of the other parity for the same.
    let negated = original.client.public_key().negate(&SECP);
    other_client.client = NodeId::from(negated);
    assert!(other_client.verify_client(&client).is_err());
}

#[test]
fn other_networks_versions_and_coordinators_are_named() {
    let mut client = wallet();
    client.network = Network::Bitcoin;
    let error = shake(coordinator(), client).unwrap_err();
    assert!(matches!(error, AuthError::Network { .. }), "{error}");
    assert_eq!(ServiceError::from(error).code, ErrorCode::WrongNetwork);

    let (mut hello, _) = wallet().hello([3; 32], "");
    hello.protocol_version = 2;
    let error = challenge(coordinator(), hello, [4; 32]).unwrap_err();
    assert!(matches!(error, AuthError::Version { found: 2, .. }));

    let mut client = wallet();
    client.server = NodeId::of(&secret(8));
    let error = shake(coordinator(), client).unwrap_err();
    assert!(matches!(error, AuthError::OtherCoordinator { .. }));
}

#[test]
fn malformed_hellos_are_refused() {
    let changes: [fn(&mut v1::Hello); 4] = [
        |h| h.network = 77,
        |h| h.node_id = vec![5; 33].into(),
        |h| h.client_nonce = vec![0; 31].into(),
        |h| h.software = "x".repeat(2000),
    ];
    for change in changes {
        let (mut hello, _) = wallet().hello([3; 32], "");
        change(&mut hello);
        let error = challenge(coordinator(), hello, [4; 32]).unwrap_err();
        assert!(matches!(error, AuthError::Wire(_)), "{error}");
    }
}
