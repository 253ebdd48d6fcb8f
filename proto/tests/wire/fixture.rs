//! A factory and the messages of its ceremony.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Keypair, Message, PublicKey, Secp256k1, SecretKey, ecdsa, schnorr};
use bitcoin::transaction::Version;
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, Txid, Witness};
use factory_tree::ceremony::message::{
    FactoryUpdate, Finals, Invitation, Join, Partials, Proposal, Round, ToClient, ToCoordinator,
};
use factory_tree::factory::{FactorySpec, Member};
use factory_tree::ids::{Attempt, CeremonyId, ClientId, FactoryId, LeafId};
use factory_tree::musig::{AggregateNonce, Bip327, Group, PartialSignature, PublicNonce};
use factory_tree::output;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::tree::{Draft, Tree};
use factory_tree::units::Height;

pub fn secret(number: u32) -> SecretKey {
    let mut bytes = [1u8; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_slice(&bytes).unwrap()
}

pub fn key(number: u32) -> PublicKey {
    secret(number).public_key(&Secp256k1::signing_only())
}

pub fn payout(number: u32) -> ScriptBuf {
    let secp = Secp256k1::verification_only();
    output::payout(&secp, key(number).x_only_public_key().0)
}

pub fn nonce(number: u32) -> PublicNonce {
    Group::nonce(secret(number).secret_bytes(), &secret(number), &[]).1
}

pub fn round() -> Round {
    Round {
        ceremony: CeremonyId([0xce; 16]),
        attempt: Attempt(2),
    }
}

pub fn params() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

/// A tree of `clients`, and its funding transaction.
pub fn factory(clients: u32) -> (Tree, Transaction) {
    let members = (0..clients).map(|number| Member {
        client: ClientId([2; 33]),
        factory_key: key(1000 + number),
        payout_script: payout(3000 + number),
        leaf_id: LeafId([5; 16]),
        channel_key: key(5000 + number),
        lsp_channel_key: key(7000 + number),
        capacity: Amount::from_sat(100_000 + u64::from(number)),
    });
    let spec = FactorySpec {
        params: params(),
        birth: Height(200),
        lsp_key: key(1),
        members: members.collect(),
    };
    let draft = Draft::new(spec).unwrap();
    let funding_tx = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array([9; 32]), 1),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![draft.funding_output()],
    };
    let outpoint = OutPoint::new(funding_tx.compute_txid(), 0);
    (draft.at(outpoint).unwrap(), funding_tx)
}

pub fn sums(count: usize) -> Vec<AggregateNonce> {
    let nonces: Vec<PublicNonce> = (0..count as u32).map(|n| nonce(50 + n)).collect();
    nonces
        .iter()
        .map(|nonce| AggregateNonce::sum([nonce]))
        .collect()
}

pub fn proposal(tree: &Tree, funding_tx: &Transaction, position: u32) -> Proposal {
    Proposal {
        round: round(),
        path: tree.proposal_for(position, funding_tx).unwrap(),
        sums: sums(tree.sessions_of(position).len()),
    }
}

pub fn ecdsa_signature() -> ecdsa::Signature {
    Secp256k1::new().sign_ecdsa(&Message::from_digest([3; 32]), &secret(4))
}

pub fn schnorr_signature(number: u32) -> schnorr::Signature {
    let secp = Secp256k1::new();
    let pair = Keypair::from_secret_key(&secp, &secret(number));
    secp.sign_schnorr_no_aux_rand(&Message::from_digest([3; 32]), &pair)
}

pub fn partial(number: u32) -> PartialSignature {
    PartialSignature::from_bytes(&secret(number).secret_bytes()).unwrap()
}

pub fn invitation() -> Invitation {
    Invitation {
        round: round(),
        params: params(),
        capacity: Amount::from_sat(200_000),
        fee: Amount::from_sat(17),
        join_seconds: 20,
        step_seconds: 21,
        max_clients: 128,
        max_sessions: 16,
        common_pin: OutPoint::new(Txid::from_byte_array([0xab; 32]), 3),
        confirmations: 3,
    }
}

pub fn join() -> Join {
    Join {
        round: round(),
        factory_key: key(10),
        payout_script: payout(11),
        leaf_id: LeafId([6; 16]),
        channel_key: key(12),
        capacity: Amount::from_sat(200_000),
        nonces: (0..5).map(nonce).collect(),
    }
}

pub fn partials() -> Partials {
    Partials {
        round: round(),
        partials: (0..5).map(partial).collect(),
        channel_signature: ecdsa_signature(),
    }
}

pub fn finals() -> Finals {
    Finals {
        round: round(),
        signatures: (0..5).map(schnorr_signature).collect(),
        channel_signature: ecdsa_signature(),
    }
}

pub fn update() -> FactoryUpdate {
    FactoryUpdate {
        factory: FactoryId([8; 32]),
        funding_txid: Txid::from_byte_array([9; 32]),
        confirmed_at: Some(Height(300)),
        usable: true,
    }
}

/// One of each kind with content.
pub fn to_client() -> Vec<ToClient> {
    let (tree, funding_tx) = factory(9);
    vec![
        ToClient::Invitation(Box::new(invitation())),
        ToClient::ConfirmPing(round()),
        ToClient::Proposal(Box::new(proposal(&tree, &funding_tx, 7))),
        ToClient::Finals(Box::new(finals())),
        ToClient::Factory(update()),
    ]
}

/// One of each kind with content.
pub fn to_coordinator() -> Vec<ToCoordinator> {
    vec![
        ToCoordinator::Join(Box::new(join())),
        ToCoordinator::Present(round()),
        ToCoordinator::Partials(Box::new(partials())),
        ToCoordinator::Ack {
            round: round(),
            factory: FactoryId([8; 32]),
        },
    ]
}
