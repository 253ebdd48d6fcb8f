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
    let newer = text.replacen("\"version\":2", "\"version\":3", 1);
    assert_eq!(ExitKit::from_json(&newer), Err(KitError::Version(3)));
    let extra = text.replacen("\"version\":2", "\"version\":2,\"extra\":0", 1);
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
        ("version", |k| k.version = 1),
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

/// Every place in `value`, as a JSON pointer.
fn places(value: &serde_json::Value, at: &str, all: &mut Vec<String>) {
    use serde_json::Value;
    all.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), all);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, &format!("{at}/{name}"), all);
            }
        }
        _ => {}
    }
}

/// One thing in `value` changed.
fn spoil(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Null => *value = Value::from(1),
        Value::Bool(held) => *held = !*held,
        Value::Number(held) => *value = Value::from(held.as_u64().unwrap() ^ 1),
        Value::String(text) => {
            let last = text.pop().unwrap_or('0');
            text.push(if last == '0' { '1' } else { '0' });
        }
        Value::Array(items) => drop(items.pop()),
        Value::Object(fields) => {
            let first = fields.keys().next().cloned().unwrap();
            fields.remove(&first);
        }
    }
}

/// What no transaction of this kit depends on: the join's name, the others' keys and payouts, rules
/// of payments and of sales.
fn is_free(kit: &ExitKit, at: &str) -> bool {
    const FREE: [&str; 11] = [
        "/ceremony",
        "/attempt",
        "/join_nonce",
        "/leaf_id",
        "/params/inner_arity",
        "/params/late_margin",
        "/params/p_base",
        "/params/p_step",
        "/params/route_budget",
        // One part per million more rounds to the same stock.
        "/params/stock_share_ppm",
        "/params/timeout_feerate",
    ];
    let parts: Vec<&str> = at.split('/').collect();
    match parts.as_slice() {
        ["", "keys", at] => *at != kit.position.to_string(),
        // A lock that is not there is one that is absent.
        ["", "txs", _, "timelock"] => true,
        ["", "txs", tx, "outputs", output, "clients", _] => {
            let tx = &kit.txs[tx.parse::<usize>().unwrap()];
            let clients = &tx.outputs[output.parse::<usize>().unwrap()].clients;
            tx.kind == TxKind::Timeout && !clients.contains(&kit.position)
        }
        _ => FREE.contains(&at),
    }
}

#[test]
fn whatever_is_changed_on_disk_is_found() {
    let kit = refund().kit(2);
    let honest: serde_json::Value = serde_json::from_str(&kit.to_json().unwrap()).unwrap();
    let mut all = Vec::new();
    places(&honest, "", &mut all);
    let spoiled = all.iter().filter(|at| !is_free(&kit, at));
    let accepted: Vec<&String> = spoiled
        .filter(|at| {
            let mut changed = honest.clone();
            spoil(changed.pointer_mut(at).unwrap());
            let kit = ExitKit::from_json(&changed.to_string());
            kit.is_ok_and(|kit| kit.verify().is_ok())
        })
        .collect();
    assert!(accepted.is_empty(), "{accepted:#?}");
}

/// A stock that is said to be others' needs no timeout of ours, unless the shape is asked.
#[test]
fn a_stock_and_its_timeout_are_missed() {
    let mut kit = refund().kit(2);
    kit.txs.retain(|tx| tx.spends.kind != SpentKind::Stock);
    let leaf = kit.txs.iter_mut().find(|tx| tx.kind == TxKind::Leaf);
    for output in &mut leaf.unwrap().outputs {
        if output.role == OutputRole::Stock {
            output.clients = 0..0;
        }
    }
    let error = kit.verify().unwrap_err();
    let expected = KitError::Malformed {
        txid: kit.path().last().unwrap().txid(),
        kind: TxKind::Leaf,
        what: "outputs",
    };
    assert_eq!(error, expected);
}
