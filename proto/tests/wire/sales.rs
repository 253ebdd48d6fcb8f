//! The messages of a sale: there and back, and what is not well-formed.

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Network, OutPoint, Txid};
use bytes::Bytes;
use factory_tree::ceremony::message::DeclineReason;
use factory_tree::ids::{Attempt, LeafId, SaleId};
use factory_tree::sale::message::{
    FailReason, Finals, Join, Offer, Partials, SaleRound, Sign, ToCoSigner, ToSeller,
};
use factory_tree::sale::{Sale, SoldChannel};
use factory_tree::units::Height;
use prost::Message;
use proto::v1::{self, client_message, server_message};
use proto::wire::{FromClient, FromServer};

use crate::fixture::{ecdsa_signature, key, nonce, partial, schnorr_signature};

fn round() -> SaleRound {
    SaleRound {
        sale: SaleId([0x5a; 16]),
        attempt: Attempt(3),
    }
}

fn channel(position: u32) -> SoldChannel {
    SoldChannel {
        position,
        leaf_id: LeafId([position as u8; 16]),
        channel_key: key(10 + position),
        lsp_channel_key: key(20 + position),
        capacity: Amount::from_sat(50_000),
    }
}

fn offer() -> Offer {
    Offer {
        round: round(),
        sale: Sale {
            id: round().sale,
            stock: OutPoint::new(Txid::from_byte_array([9; 32]), 2),
            number: 4,
            bought: channel(5),
            bonus: vec![channel(6)],
        },
        until: Height(800_000),
    }
}

/// One of each kind with content.
pub fn to_cosigner() -> Vec<ToCoSigner> {
    let sign = |buyer| Sign {
        round: round(),
        nonces: vec![vec![nonce(1), nonce(2)], vec![nonce(3), nonce(4)]],
        buyer,
    };
    let finals = |channel_signature| Finals {
        round: round(),
        signatures: vec![schnorr_signature(1), schnorr_signature(2)],
        channel_signature,
    };
    vec![
        ToCoSigner::Offer(Box::new(offer())),
        ToCoSigner::Sign(Box::new(sign(None))),
        ToCoSigner::Sign(Box::new(sign(Some(vec![partial(1), partial(2)])))),
        ToCoSigner::Finals(Box::new(finals(None))),
        ToCoSigner::Finals(Box::new(finals(Some(ecdsa_signature())))),
    ]
}

/// One of each kind with content.
pub fn to_seller() -> Vec<ToSeller> {
    let partials = |channel_signature| Partials {
        round: round(),
        partials: vec![partial(1), partial(2), partial(3)],
        channel_signature,
    };
    vec![
        ToSeller::Join(Box::new(Join {
            round: round(),
            nonces: vec![nonce(1), nonce(2)],
        })),
        ToSeller::Partials(Box::new(partials(None))),
        ToSeller::Partials(Box::new(partials(Some(ecdsa_signature())))),
        ToSeller::Ack(round()),
    ]
}

fn from_client(body: client_message::Body) -> Result<FromClient, String> {
    let bytes = v1::ClientMessage::from(body).encode_to_vec();
    let wire = v1::ClientMessage::decode(bytes.as_slice()).unwrap();
    FromClient::try_from(wire).map_err(|error| error.to_string())
}

fn from_server(body: server_message::Body) -> Result<FromServer, String> {
    let bytes = v1::ServerMessage::from(body).encode_to_vec();
    let wire = v1::ServerMessage::decode(bytes.as_slice()).unwrap();
    FromServer::parse(wire, Network::Regtest).map_err(|error| error.to_string())
}

#[test]
fn every_message_of_a_sale_comes_back() {
    for message in to_seller() {
        let body = v1::ClientMessage::from(&message).body.unwrap();
        assert_eq!(from_client(body), Ok(FromClient::Sale(message)));
    }
    for message in to_cosigner() {
        let body = v1::ServerMessage::from(&message).body.unwrap();
        assert_eq!(from_server(body), Ok(FromServer::Sale(message)));
    }
}

#[test]
fn every_reason_comes_back() {
    let text = || "why".to_owned();
    for reason in [
        DeclineReason::Terms(text()),
        DeclineReason::Unable(text()),
        DeclineReason::Refused {
            rule: "sale_capacity".to_owned(),
            found: text(),
        },
    ] {
        let round = round();
        let message = ToSeller::Decline { round, reason };
        let body = v1::ClientMessage::from(&message).body.unwrap();
        assert_eq!(from_client(body), Ok(FromClient::Sale(message)));
    }
    for reason in [
        FailReason::Silent,
        FailReason::Guilty,
        FailReason::Declined,
        FailReason::Restarted,
        FailReason::Cancelled,
        FailReason::Unable(text()),
    ] {
        let round = round();
        let message = ToCoSigner::Failed { round, reason };
        let body = v1::ServerMessage::from(&message).body.unwrap();
        assert_eq!(from_server(body), Ok(FromServer::Sale(message)));
    }
}

fn wire_offer(change: fn(&mut v1::SaleOffer)) -> String {
    let message = ToCoSigner::Offer(Box::new(offer()));
    let Some(server_message::Body::SaleOffer(mut wire)) = v1::ServerMessage::from(&message).body
    else {
        panic!("an offer")
    };
    change(&mut wire);
    from_server(server_message::Body::SaleOffer(wire)).unwrap_err()
}

#[test]
fn malformed_offers_are_refused() {
    type Case = (fn(&mut v1::SaleOffer), &'static str);
    let cases: [Case; 7] = [
        (
            |o| o.round = None,
            "sale_round is missing or unknown to this version",
        ),
        (
            |o| o.number = 256,
            "sale_offer.number is 256, allowed are at most 255",
        ),
        (
            |o| o.stock = None,
            "sale_offer.stock is missing or unknown to this version",
        ),
        (
            |o| o.bought = None,
            "sale_offer.bought is missing or unknown to this version",
        ),
        (
            |o| o.bought.as_mut().unwrap().leaf_id = Bytes::from_static(&[1; 15]),
            "sold_channel.leaf_id has 15 bytes, expected 16",
        ),
        (
            |o| o.bought.as_mut().unwrap().capacity_sat = 329,
            "sold_channel.capacity_sat is 329 sat, an output holds at least 330 sat",
        ),
        (
            |o| o.bonus = vec![o.bonus[0].clone(); 257],
            "sale_offer.bonus has 257 entries, allowed are at most 256",
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(wire_offer(change), expected);
    }
}

#[test]
fn more_than_any_sale_has_is_refused() {
    let nonce = Bytes::copy_from_slice(&nonce(1).to_bytes());
    let sign = |nonces: Vec<Bytes>| {
        let round = Some(v1::SaleRound {
            sale: Bytes::from_static(&[1; 16]),
            attempt: 1,
        });
        let sign = v1::SaleSign {
            round,
            nonces,
            buyer: None,
        };
        from_server(server_message::Body::SaleSign(sign))
    };
    assert!(sign(vec![nonce.clone(); 256]).is_ok());
    let error = sign(vec![nonce.clone(); 257]).unwrap_err();
    assert_eq!(
        error,
        "sale_sign.nonces has 257 entries, allowed are at most 256"
    );
    let error = sign(vec![vec![2; 66 * 257].into()]).unwrap_err();
    assert_eq!(
        error,
        "sale_sign.nonces has 257 entries, allowed are at most 256"
    );
    for kind in [0, 77] {
        let failed = v1::SaleFailed {
            kind,
            ..v1::SaleFailed::default()
        };
        let error = from_server(server_message::Body::SaleFailed(failed)).unwrap_err();
        assert_eq!(
            error,
            format!("sale_failed.kind has the unknown value {kind}")
        );
    }
}
