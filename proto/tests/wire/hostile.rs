//! Nothing that arrives makes a side panic.

use bitcoin::Network;
use proptest::prelude::*;
use prost::Message;
use proto::v1;
use proto::wire::{FromClient, FromServer};
use std::sync::LazyLock;

use crate::{fixture, sales};

static CLIENT_MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let ceremony = fixture::to_coordinator();
    let sale = sales::to_seller();
    let ceremony = ceremony.iter().map(v1::ClientMessage::from);
    let all = ceremony.chain(sale.iter().map(v1::ClientMessage::from));
    all.map(|message| message.encode_to_vec()).collect()
});

static SERVER_MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let ceremony = fixture::to_client();
    let sale = sales::to_cosigner();
    let ceremony = ceremony.iter().map(v1::ServerMessage::from);
    let all = ceremony.chain(sale.iter().map(v1::ServerMessage::from));
    all.map(|message| message.encode_to_vec()).collect()
});

/// Parses bytes as both sides would; what is accepted can be sent again, and is accepted again.
fn receive(bytes: &[u8]) {
    if let Ok(wire) = v1::ClientMessage::decode(bytes)
        && let Ok(message) = FromClient::try_from(wire)
    {
        let again = v1::ClientMessage::from(&message);
        assert_eq!(FromClient::try_from(again), Ok(message));
    }
    if let Ok(wire) = v1::ServerMessage::decode(bytes)
        && let Ok(message) = FromServer::parse(wire, Network::Regtest)
    {
        let again = v1::ServerMessage::from(&message);
        assert_eq!(FromServer::parse(again, Network::Regtest), Ok(message));
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), any::<Vec<u8>>()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (at(), 1u8..).prop_map(|(at, count)| Damage::Remove(at, count)),
    ]
}

fn damaged(mut bytes: Vec<u8>, all: &[Damage]) -> Vec<u8> {
    for one in all {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match one {
            Damage::Flip(at, bits) => bytes[at.index(len)] ^= bits,
            Damage::Cut(at) => bytes.truncate(at.index(len)),
            Damage::Insert(at, new) => {
                let at = at.index(len);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + usize::from(*count)));
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>) {
        receive(&bytes);
    }

    #[test]
    fn random_content_of_each_kind_never_panics(field in 1u8..16, content: Vec<u8>) {
        let mut bytes = vec![field << 3 | 2, content.len() as u8];
        bytes.extend(content);
        receive(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        which: prop::sample::Index,
        damage in prop::collection::vec(damage(), 1..4),
    ) {
        receive(&damaged(which.get(&CLIENT_MESSAGES).clone(), &damage));
        receive(&damaged(which.get(&SERVER_MESSAGES).clone(), &damage));
    }
}
