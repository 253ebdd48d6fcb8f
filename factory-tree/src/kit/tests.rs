use bitcoin::Network;

use super::*;
use crate::params::{ExpiryPolicy, Profile};
use crate::testing::{SignedFactory, TestFactory};

fn signed(policy: ExpiryPolicy, clients: usize) -> SignedFactory {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.expiry_policy = policy;
    TestFactory::new(1, params, clients).unwrap().sign()
}

fn refund() -> SignedFactory {
    signed(ExpiryPolicy::ClientRefund, 8)
}

#[test]
fn kits_verify_and_survive_the_disk() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let signed = signed(policy, 9);
        for position in 0..9 {
            let kit = signed.kit(position);
            let text = kit.to_json().unwrap();
            let read = ExitKit::from_json(&text).unwrap();
            assert_eq!(read, kit);
            read.verify().unwrap();
        }
    }
}

#[test]
fn a_kit_has_what_the_client_needs() {
    let kit = refund().kit(3);
    // static, kickoff, leaf; a timeout each; the stock's; the channel's.
    assert_eq!(kit.txs.len(), 8);
    assert_eq!(kit.path().count(), 3);
    assert_eq!(kit.watched().count(), 5);
    assert!(kit.channel_outpoint().is_some());
    let reclaim = signed(ExpiryPolicy::LspReclaim, 8).kit(3);
    assert_eq!(reclaim.txs.len(), 4);
}

#[test]
fn other_versions_and_fields_are_refused() {
    let text = refund().kit(0).to_json().unwrap();
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    assert_eq!(ExitKit::from_json(&newer), Err(KitError::Version(2)));
    let extra = text.replacen("\"version\":1", "\"version\":1,\"extra\":0", 1);
    assert!(matches!(
        ExitKit::from_json(&extra),
        Err(KitError::Format(_))
    ));
    assert!(matches!(ExitKit::from_json("{}"), Err(KitError::Format(_))));
}

#[test]
fn wrong_number_of_signatures_is_refused() {
    let signed = refund();
    let proposal = signed.factory.proposal(0);
    let path = Path::rebuild(&proposal).unwrap();
    let mut signatures = signed.signatures_of(0);
    signatures.pop();
    let join = signed.factory.clients[0].join_data();
    let kit = ExitKit::new(&path, &proposal, &signatures, &signed.channel[0], join);
    assert!(matches!(kit, Err(KitError::Count { .. })));
}

#[test]
fn any_exchanged_signature_is_found() {
    let signed = refund();
    let proposal = signed.factory.proposal(5);
    let path = Path::rebuild(&proposal).unwrap();
    let good = signed.signatures_of(5);
    let join = || signed.factory.clients[5].join_data();
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] = good[(index + 1) % good.len()];
        let kit = ExitKit::new(&path, &proposal, &bad, &signed.channel[5], join());
        assert!(matches!(kit, Err(KitError::BadSignature { .. })), "{index}");
    }
    let theirs = signed.channel[4];
    for channel in [
        ChannelSignatures {
            client: theirs.client,
            ..signed.channel[5]
        },
        ChannelSignatures {
            lsp: theirs.lsp,
            ..signed.channel[5]
        },
    ] {
        let kit = ExitKit::new(&path, &proposal, &good, &channel, join());
        assert!(matches!(kit, Err(KitError::BadSignature { .. })));
    }
}

fn refused(change: impl Fn(&mut ExitKit)) -> KitError {
    let mut kit = refund().kit(2);
    change(&mut kit);
    kit.verify().unwrap_err()
}

#[test]
fn what_is_missing_or_changed_on_disk_is_found() {
    let kit = refund().kit(2);
    for index in 0..kit.txs.len() {
        let mut without = kit.clone();
        without.txs.remove(index);
        without.verify().unwrap_err();
    }
    type Change = fn(&mut ExitKit);
    let fields: [(&str, Change); 8] = [
        ("version", |k| k.version = 2),
        ("expiry", |k| k.expiry = k.expiry.plus(Blocks(1))),
        ("exit_delay", |k| k.exit_delay = Blocks(1)),
        ("birth", |k| k.birth = k.birth.plus(Blocks(1))),
        ("factory_id", |k| k.factory_id = FactoryId([0; 32])),
        ("factory_key", |k| k.factory_key = k.lsp_key),
        ("position", |k| k.position = 3),
        ("funding_vout", |k| k.funding_vout = 1),
    ];
    for (name, change) in fields {
        let mut kit = kit.clone();
        change(&mut kit);
        assert!(kit.verify().is_err(), "{name}");
    }
    let order = refused(|k| k.txs.swap(0, 2));
    assert!(matches!(order, KitError::Unconnected { .. }), "{order}");
    let unpaid = refused(|k| k.payout_script = ScriptBuf::new());
    assert!(matches!(unpaid, KitError::Unpaid { .. }), "{unpaid}");
    let capacity = refused(|k| k.capacity = Amount::from_sat(1));
    assert!(matches!(capacity, KitError::Malformed { .. }), "{capacity}");
    let lock = refused(|k| k.txs[0].timelock.delay = Some(Blocks(1)));
    assert!(
        matches!(
            lock,
            KitError::Malformed {
                what: "timelock",
                ..
            }
        ),
        "{lock}"
    );
    let root = refused(|k| k.txs[0].spends.merkle_root = Some(TapNodeHash::assume_hidden([1; 32])));
    assert!(matches!(root, KitError::Malformed { .. }), "{root}");
    let amount = refused(|k| k.txs[0].spends.amount = Amount::from_sat(1));
    assert!(matches!(amount, KitError::Unconnected { .. }), "{amount}");
    let id = refused(|k| k.txs[0].txid = k.txs[1].txid);
    assert!(
        matches!(
            id,
            KitError::Unconnected { .. } | KitError::Malformed { .. }
        ),
        "{id}"
    );
    let role = refused(|k| k.txs[0].outputs.truncate(1));
    assert!(matches!(role, KitError::Malformed { .. }), "{role}");
}

#[test]
fn channel_witness_is_in_bolt3_order() {
    let signed = refund();
    for position in 0..8 {
        let kit = signed.kit(position);
        let timeout = &kit.txs.last().unwrap().tx;
        let witness: Vec<&[u8]> = timeout.input[0].witness.iter().collect();
        assert_eq!(witness.len(), 4);
        assert!(witness[0].is_empty());
        let script = channel_witness_script(&kit.channel_key, &kit.lsp_channel_key);
        assert_eq!(witness[3], script.as_bytes());
    }
}
