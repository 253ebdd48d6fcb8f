//! One malformed thing at a time, and the refusal that names it.

use bitcoin::Network;
use bytes::Bytes;
use factory_tree::ceremony::message::{Finals, Join, Partials, Proposal};
use factory_tree::params::FactoryParams;
use proto::session::ServiceError;
use proto::v1::{self, ErrorCode};
use proto::wire::{FromClient, FromServer, MAX_CLIENTS, MAX_SESSIONS, WireError};

use crate::fixture;

const TOO_MUCH: u64 = 2_100_000_000_000_001;

fn wire_proposal() -> v1::Proposal {
    let (tree, funding_tx) = fixture::factory(9);
    (&fixture::proposal(&tree, &funding_tx, 4)).into()
}

/// A change, and the refusal it leads to.
type Case<W> = (fn(&mut W), &'static str);

fn refused<W: Clone, T: TryFrom<W, Error = WireError> + std::fmt::Debug>(
    good: &W,
    cases: &[Case<W>],
) {
    T::try_from(good.clone()).unwrap();
    for (change, expected) in cases {
        let mut wire = good.clone();
        change(&mut wire);
        let error = T::try_from(wire).unwrap_err();
        assert_eq!(error.to_string(), *expected);
    }
}

fn without_last(bytes: &Bytes) -> Bytes {
    bytes.slice(..bytes.len() - 1)
}

#[test]
fn malformed_joins() {
    refused::<_, Join>(
        &v1::Join::from(&fixture::join()),
        &[
            (
                |j| j.round = None,
                "round is missing or unknown to this version",
            ),
            (
                |j| j.round.as_mut().unwrap().ceremony = Bytes::from_static(&[1; 15]),
                "round.ceremony has 15 bytes, expected 16",
            ),
            (
                |j| j.factory_key = Bytes::from_static(&[2; 32]),
                "join.factory_key has 32 bytes, expected 33",
            ),
            (
                |j| {
                    j.factory_key =
                        Bytes::copy_from_slice(&fixture::key(1).serialize_uncompressed())
                },
                "join.factory_key has 65 bytes, expected 33",
            ),
            (
                |j| j.channel_key = Bytes::from_static(&[5; 33]),
                "join.channel_key: entry 0 is not a point on the curve",
            ),
            (
                |j| j.payout_script = Bytes::from_static(&[0x6a; 34]),
                "join.payout_script: entry 0 is not a P2TR script",
            ),
            (
                |j| j.leaf_id = Bytes::new(),
                "join.leaf_id has 0 bytes, expected 16",
            ),
            (
                |j| j.capacity_sat = TOO_MUCH,
                "join.capacity_sat is 2100000000000001 sat, more than the 21 million bitcoin there can be",
            ),
            (
                |j| j.capacity_sat = 329,
                "join.capacity_sat is 329 sat, an output holds at least 330 sat",
            ),
            (
                |j| j.nonces = without_last(&j.nonces),
                "join.nonces has 329 bytes, which is no multiple of 66",
            ),
            (
                |j| j.nonces = Bytes::from_static(&[5; 132]),
                "join.nonces: entry 0 is not well-formed",
            ),
            (
                |j| j.nonces = vec![2; 66 * (MAX_SESSIONS + 1)].into(),
                "join.nonces has 257 entries, allowed are at most 256",
            ),
        ],
    );
}

#[test]
fn malformed_signatures() {
    refused::<_, Partials>(
        &v1::Partials::from(&fixture::partials()),
        &[
            (
                |p| p.partials = without_last(&p.partials),
                "partials.partials has 159 bytes, which is no multiple of 32",
            ),
            (
                |p| p.partials = Bytes::from_static(&[0xff; 64]),
                "partials.partials: entry 0 is not well-formed",
            ),
            (
                |p| p.channel_signature = Bytes::from_static(&[0xff; 64]),
                "partials.channel_signature: entry 0 is not well-formed",
            ),
        ],
    );
    refused::<_, Finals>(
        &v1::Finals::from(&fixture::finals()),
        &[
            (
                |f| f.signatures = without_last(&f.signatures),
                "finals.signatures has 319 bytes, which is no multiple of 64",
            ),
            (
                |f| f.channel_signature = Bytes::from_static(&[1; 63]),
                "finals.channel_signature has 63 bytes, expected 64",
            ),
        ],
    );
}

#[test]
fn malformed_proposals() {
    refused::<_, Proposal>(
        &wire_proposal(),
        &[
            (
                |p| p.params = None,
                "proposal.params is missing or unknown to this version",
            ),
            (
                |p| p.keys = without_last(&p.keys),
                "proposal.keys has 296 bytes, which is no multiple of 33",
            ),
            (
                |p| p.keys = vec![5; 33 * 3].into(),
                "proposal.keys: entry 0 is not a point on the curve",
            ),
            (
                |p| p.keys = vec![5; 33 * (MAX_CLIENTS + 1)].into(),
                "proposal.keys has 65537 entries, allowed are at most 65536",
            ),
            (
                |p| p.capacities_sat.truncate(8),
                "proposal.payout_scripts has 9 entries, expected 8",
            ),
            (
                |p| p.capacities_sat[8] = TOO_MUCH,
                "proposal.capacities_sat is 2100000000000001 sat, more than the 21 million bitcoin there can be",
            ),
            (
                |p| p.capacities_sat[8] = 0,
                "proposal.capacities_sat is 0 sat, an output holds at least 330 sat",
            ),
            (
                |p| p.payout_scripts = vec![0; 34 * 9].into(),
                "proposal.payout_scripts: entry 0 is not a P2TR script",
            ),
            (
                |p| p.levels = vec![v1::Level::default(); 65],
                "proposal.levels has 65 entries, allowed are at most 64",
            ),
            (
                |p| p.levels[0].outputs = vec![v1::Output::default(); 1025],
                "level.outputs has 1025 entries, allowed are at most 1024",
            ),
            (
                |p| p.levels[0].outputs[0].script = Bytes::from_static(&[1; 43]),
                "output.script has 43 bytes, allowed are at most 42",
            ),
            (
                |p| p.levels[0].outputs[0].amount_sat = u64::MAX,
                "output.amount_sat is 18446744073709551615 sat, more than the 21 million bitcoin there can be",
            ),
            (
                |p| p.levels[0].txid.clear(),
                "level.txid has 0 bytes, expected 32",
            ),
            (
                |p| p.timeouts[0].branches = vec![v1::Branch::default(); 1025],
                "timeout.branches has 1025 entries, allowed are at most 1024",
            ),
            (
                |p| p.stock_timeout = Some(Bytes::new()),
                "proposal.stock_timeout has 0 bytes, expected 32",
            ),
            (
                |p| p.sums = vec![7; 66].into(),
                "proposal.sums: entry 0 is not well-formed",
            ),
            (
                |p| p.funding_tx = vec![0; 100_001].into(),
                "proposal.funding_tx has 100001 bytes, allowed are at most 100000",
            ),
        ],
    );
    let mut wire = wire_proposal();
    wire.funding_tx = [&wire.funding_tx[..], &[0]].concat().into();
    let error = Proposal::try_from(wire).unwrap_err();
    assert!(matches!(error, WireError::Transaction { .. }), "{error}");
}

#[test]
fn malformed_parameters() {
    refused::<_, FactoryParams>(
        &v1::FactoryParams::from(&fixture::params()),
        &[
            (|p| p.network = 0, "params.network has the unknown value 0"),
            (
                |p| p.network = 99,
                "params.network has the unknown value 99",
            ),
            (
                |p| p.expiry_policy = 99,
                "params.expiry_policy has the unknown value 99",
            ),
            (
                |p| p.expiry_policy = 0,
                "expiry_policy has the unknown value 0",
            ),
            (|p| p.k = 256, "params.k is 256, allowed are at most 255"),
            (
                |p| p.states = 65536,
                "params.states is 65536, allowed are at most 65535",
            ),
            (
                |p| {
                    p.static_arities = Some(v1::Arities {
                        arities: vec![2; 65],
                    })
                },
                "params.static_arities has 65 entries, allowed are at most 64",
            ),
            (
                |p| p.static_arities = Some(v1::Arities { arities: vec![300] }),
                "params.static_arities is 300, allowed are at most 255",
            ),
        ],
    );
}

#[test]
fn other_networks_are_refused() {
    for message in fixture::to_client() {
        let wire = v1::ServerMessage::from(&message);
        let about_a_network = matches!(
            wire.body,
            Some(v1::server_message::Body::Invitation(_) | v1::server_message::Body::Proposal(_))
        );
        let parsed = FromServer::parse(wire, Network::Bitcoin);
        assert_eq!(parsed.is_err(), about_a_network);
        if let Err(error) = parsed {
            assert_eq!(ServiceError::from(error).code, ErrorCode::WrongNetwork);
        }
    }
}

#[test]
fn empty_and_unknown_kinds_are_refused() {
    let empty = FromClient::try_from(v1::ClientMessage::default());
    assert!(matches!(empty, Err(WireError::Missing { .. })));
    let decline = v1::Decline {
        round: Some(fixture::round().into()),
        kind: 77,
        ..v1::Decline::default()
    };
    let body = v1::client_message::Body::Decline(decline);
    let error = FromClient::try_from(v1::ClientMessage::from(body)).unwrap_err();
    assert_eq!(error.to_string(), "decline.kind has the unknown value 77");
    let failed = v1::Failed {
        round: Some(fixture::round().into()),
        ..v1::Failed::default()
    };
    let body = v1::server_message::Body::Failed(failed);
    let error = FromServer::parse(body.into(), Network::Regtest).unwrap_err();
    assert_eq!(error.to_string(), "failed.kind has the unknown value 0");
}

#[test]
fn invitations_for_more_nonces_than_can_be_sent_are_refused() {
    let mut wire = v1::Invitation::from(&fixture::invitation());
    wire.max_sessions = 257;
    let body = v1::server_message::Body::Invitation(wire);
    let error = FromServer::parse(body.into(), Network::Regtest).unwrap_err();
    assert!(matches!(error, WireError::TooMany { found: 257, .. }));
}
