use bitcoin::{Amount, Network, OutPoint, Txid, hashes::Hash};
use factory_tree::ceremony::message::{AbortReason, DeclineReason, Round, ToClient, ToCoordinator};
use factory_tree::handover::MaskedKeys;
use factory_tree::ids::{Attempt, CeremonyId, FactoryId, LeafId};
use factory_tree::ladder::{Notice as Words, Warning};
use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
use factory_tree::units::Height;
use proptest::prelude::*;
use prost::Message;
use proto::session::SessionToken;
use proto::v1;
use proto::wire::{
    FromClient, FromServer, Handover, Interest, MovePart, Notice, PartTerms, Welcome,
    network_from_wire, network_to_wire,
};

use crate::fixture;

fn through_client(message: &FromClient) -> FromClient {
    let bytes = v1::ClientMessage::from(message).encode_to_vec();
    let wire = v1::ClientMessage::decode(bytes.as_slice()).unwrap();
    FromClient::try_from(wire).unwrap()
}

fn through_server(message: &FromServer) -> FromServer {
    let bytes = v1::ServerMessage::from(message).encode_to_vec();
    let wire = v1::ServerMessage::decode(bytes.as_slice()).unwrap();
    FromServer::parse(wire, Network::Regtest).unwrap()
}

#[test]
fn every_kind_of_message_comes_back() {
    for message in fixture::to_coordinator() {
        let message = FromClient::Ceremony(message);
        assert_eq!(through_client(&message), message);
    }
    for message in fixture::to_client() {
        let message = FromServer::Ceremony(message);
        assert_eq!(through_server(&message), message);
    }
    let interest = |capacity| Interest {
        capacity,
        has_fee_coins: true,
        once: false,
    };
    for message in [
        FromClient::Hello(v1::Hello::default()),
        FromClient::Answer(v1::Answer::default()),
        FromClient::Heartbeat,
        FromClient::InterestWithdrawn,
        FromClient::Interest(interest(None)),
        FromClient::Interest(interest(Some(Amount::from_sat(7)))),
        FromClient::MovePart(MovePart {
            from: FactoryId([1; 32]),
            to: FactoryId([2; 32]),
            from_leaf: None,
            to_leaf: Some(LeafId([9; 16])),
            hash: [3; 32],
            payment_secret: [4; 32],
            amount_msat: 5,
        }),
        FromClient::Handover(Handover {
            factory: FactoryId([1; 32]),
            keys: MaskedKeys {
                factory: [2; 32],
                payout: [3; 32],
                channel: [4; 32],
                sold: vec![[5; 32], [6; 32]],
            },
        }),
    ] {
        assert_eq!(through_client(&message), message);
    }
    for message in [
        FromServer::Challenge(v1::Challenge::default()),
        FromServer::Heartbeat,
        FromServer::Welcome(Welcome {
            token: SessionToken::new([3; 32]),
            heartbeat_seconds: 30,
            tip_height: 5,
        }),
        FromServer::PartTerms(PartTerms {
            hash: [1; 32],
            payment_secret: [2; 32],
            fee_msat: 3,
            outgoing_expiry: Height(4),
            incoming_expiry: Height(5),
        }),
        FromServer::HandoverTaken(FactoryId([6; 32])),
    ] {
        assert_eq!(through_server(&message), message);
    }
}

/// Who has one can pay in somebody's stead.
#[test]
fn payment_secrets_are_not_shown() {
    let part = MovePart {
        from: FactoryId([1; 32]),
        to: FactoryId([2; 32]),
        from_leaf: None,
        to_leaf: None,
        hash: [3; 32],
        payment_secret: [0xab; 32],
        amount_msat: 5,
    };
    let terms = PartTerms {
        hash: [1; 32],
        payment_secret: [0xab; 32],
        fee_msat: 3,
        outgoing_expiry: Height(4),
        incoming_expiry: Height(5),
    };
    let (to, from) = (FromClient::MovePart(part), FromServer::PartTerms(terms));
    let wire = (v1::ClientMessage::from(&to), v1::ServerMessage::from(&from));
    // 0xab is 171 in a list of bytes, \\xab in a string of them.
    for text in [format!("{to:?} {from:?}"), format!("{wire:?}")] {
        assert!(!text.contains("171") && !text.contains("xab"), "{text}");
    }
}

#[test]
fn notices_of_every_level_come_back() {
    for level in [
        Warning::Early,
        Warning::Dying,
        Warning::LastDay,
        Warning::Over,
    ] {
        let message = FromServer::Notice(Notice {
            factory: FactoryId([7; 32]),
            words: Words {
                level,
                what: "what".to_owned(),
                action: "action".to_owned(),
                cost: "cost".to_owned(),
                otherwise: "otherwise".to_owned(),
                by: Height(8),
            },
        });
        assert_eq!(through_server(&message), message);
    }
}

#[test]
fn networks_policies_and_profiles_come_back() {
    for network in [
        Network::Bitcoin,
        Network::Testnet,
        Network::Testnet4,
        Network::Signet,
        Network::Regtest,
    ] {
        let wire = network_to_wire(network).into();
        assert_eq!(network_from_wire("network", wire), Ok(network));
    }
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        assert_eq!(v1::ExpiryPolicy::from(policy).try_into(), Ok(policy));
    }
    for profile in [Profile::Lite, Profile::Standard, Profile::Deep] {
        assert_eq!(v1::Profile::from(profile).try_into(), Ok(profile));
        let params = FactoryParams::profile(profile, Network::Signet);
        let wire = v1::FactoryParams::from(&params);
        assert_eq!(FactoryParams::try_from(wire), Ok(params));
    }
}

#[test]
fn unknown_fields_are_ignored() {
    for message in fixture::to_client() {
        let mut bytes = v1::ServerMessage::from(&message).encode_to_vec();
        // Field 1000, varint 1; field 1001, three bytes.
        bytes.extend([0xc0, 0x3e, 1, 0xca, 0x3e, 3, 1, 2, 3]);
        let wire = v1::ServerMessage::decode(bytes.as_slice()).unwrap();
        let parsed = FromServer::parse(wire, Network::Regtest);
        assert_eq!(parsed, Ok(FromServer::Ceremony(message)));
    }
}

fn texts() -> impl Strategy<Value = String> {
    "[a-z \u{e4}\u{20ac}]{0,80}"
}

fn aborts() -> impl Strategy<Value = AbortReason> {
    prop_oneof![
        any::<u32>().prop_map(|left| AbortReason::TooFewClients { left }),
        texts().prop_map(AbortReason::Tree),
        texts().prop_map(AbortReason::NoFunds),
        prop::sample::select(vec![
            AbortReason::Silent,
            AbortReason::Guilty,
            AbortReason::Left,
            AbortReason::Restarted,
            AbortReason::Cancelled,
            AbortReason::TooManyAttempts,
        ]),
    ]
}

fn declines() -> impl Strategy<Value = DeclineReason> {
    prop_oneof![
        texts().prop_map(DeclineReason::Terms),
        texts().prop_map(DeclineReason::Unable),
        (texts(), texts()).prop_map(|(rule, found)| DeclineReason::Refused { rule, found }),
    ]
}

fn rounds() -> impl Strategy<Value = Round> {
    (any::<[u8; 16]>(), any::<u32>()).prop_map(|(ceremony, attempt)| Round {
        ceremony: CeremonyId(ceremony),
        attempt: Attempt(attempt),
    })
}

/// Every number a different one, so that no two fields can be confused.
fn params() -> impl Strategy<Value = FactoryParams> {
    let arities = prop::option::of(prop::collection::vec(any::<u8>(), 0..16));
    let small = any::<[u8; 5]>();
    (any::<[u32; 13]>(), small, any::<(u16, u64)>(), arities).prop_map(
        |(numbers, small, (states, timeout_feerate), static_arities)| {
            let [
                step,
                share,
                p_base,
                p_step,
                q,
                stock,
                kickoff,
                active,
                dying,
                e,
                l,
                c,
                x,
            ] = numbers;
            let [k, layers, inner_arity, kickoff_arity, chain_depth_max] = small;
            FactoryParams {
                k,
                layers,
                inner_arity,
                kickoff_arity,
                chain_depth_max,
                states,
                timeout_feerate,
                static_arities,
                step,
                stock_share_ppm: share,
                p_base,
                p_step,
                q,
                stock_timeout_delay: stock,
                kickoff_timeout_margin: kickoff,
                active,
                dying,
                expiry_margin: e,
                late_margin: l,
                conf_margin: c,
                exit_margin: x,
                route_budget: !x,
                ..fixture::params()
            }
        },
    )
}

proptest! {
    #[test]
    fn reasons_come_back(round in rounds(), abort in aborts(), again: bool, decline in declines()) {
        let failed = FromServer::Ceremony(ToClient::Failed { round, reason: abort, again });
        prop_assert_eq!(through_server(&failed), failed);
        let declined = FromClient::Ceremony(ToCoordinator::Decline { round, reason: decline });
        prop_assert_eq!(through_client(&declined), declined);
    }

    #[test]
    fn invitations_come_back(
        round in rounds(),
        params in params(),
        numbers: [u32; 4],
        sessions in 0u32..256,
        capacity in 330u64..=2_100_000_000_000_000,
        fee in 0u64..=2_100_000_000_000_000,
        txid: [u8; 32],
    ) {
        let [join_seconds, step_seconds, max_clients, confirmations] = numbers;
        let invitation = factory_tree::ceremony::message::Invitation {
            round,
            params,
            capacity: Amount::from_sat(capacity),
            fee: Amount::from_sat(fee),
            join_seconds,
            step_seconds,
            max_clients,
            max_sessions: sessions,
            common_pin: OutPoint::new(Txid::from_byte_array(txid), join_seconds ^ step_seconds),
            confirmations,
        };
        let message = FromServer::Ceremony(ToClient::Invitation(Box::new(invitation)));
        prop_assert_eq!(through_server(&message), message);
    }

    #[test]
    fn lists_come_back(count in 0u32..40, capacity in 330u64..=2_100_000_000_000_000) {
        let mut join = fixture::join();
        join.nonces = (0..count).map(|n| fixture::nonce(n + 1)).collect();
        join.capacity = Amount::from_sat(capacity);
        let join = FromClient::Ceremony(ToCoordinator::Join(Box::new(join)));
        prop_assert_eq!(through_client(&join), join);
        let mut partials = fixture::partials();
        partials.partials = (0..count).map(fixture::partial).collect();
        let partials = FromClient::Ceremony(ToCoordinator::Partials(Box::new(partials)));
        prop_assert_eq!(through_client(&partials), partials);
        let mut finals = fixture::finals();
        finals.signatures = (0..count).map(fixture::schnorr_signature).collect();
        let finals = FromServer::Ceremony(ToClient::Finals(Box::new(finals)));
        prop_assert_eq!(through_server(&finals), finals);
    }
}
