use bitcoin::Network;

use super::*;
use crate::params::Profile;
use crate::testing::{SignedFactory, TestFactory, public};

fn signed(policy: ExpiryPolicy, clients: usize) -> SignedFactory {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.expiry_policy = policy;
    TestFactory::new(3, params, clients).unwrap().sign()
}

fn lsp(signed: &SignedFactory) -> ClientId {
    ClientId(public(&signed.factory.lsp_node).serialize())
}

fn whole(signed: &SignedFactory) -> Export {
    Export::of_tree(
        signed.tree(),
        lsp(signed),
        &signed.signatures,
        &signed.channel,
    )
}

fn own(signed: &SignedFactory, position: u32) -> Export {
    let me = signed.factory.clients[position as usize].id();
    Export::of_kit(&signed.kit(position), lsp(signed), me)
}

#[test]
fn both_documents_are_consistent_and_read_back() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let signed = signed(policy, 9);
        let mut all = vec![whole(&signed)];
        all.extend((0..9).map(|position| own(&signed, position)));
        for export in all {
            check(&export).unwrap();
            let text = serde_json::to_string(&export).unwrap();
            assert_eq!(serde_json::from_str::<Export>(&text).unwrap(), export);
        }
    }
}

#[test]
fn a_clients_transactions_are_those_of_the_tree() {
    let signed = signed(ExpiryPolicy::ClientRefund, 9);
    let tree = whole(&signed);
    for position in 0..9u32 {
        let mine = own(&signed, position);
        for tx in &mine.transactions {
            let found = tree
                .transactions
                .iter()
                .find(|t| t.txid == tx.txid)
                .unwrap();
            assert_eq!(
                (found.kind, &found.raw, &found.inputs),
                (tx.kind, &tx.raw, &tx.inputs)
            );
        }
        let at = position as usize + 1;
        assert_eq!(mine.participants[at], tree.participants[at]);
        assert_eq!(mine.funding, tree.funding);
    }
}

/// The document as the issue describes it, name by name.
#[test]
fn the_json_is_as_specified() {
    let signed = signed(ExpiryPolicy::ClientRefund, 8);
    let json = serde_json::to_value(whole(&signed)).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    let mut top = vec![
        "version",
        "network",
        "factory_id",
        "expiry_policy",
        "birth_height",
        "expiry_height",
        "params",
        "funding",
        "participants",
        "transactions",
    ];
    top.sort_unstable();
    assert_eq!(keys(&json), top);
    assert_eq!(json["version"], 1);
    assert_eq!(json["network"], "regtest");
    assert_eq!(json["expiry_policy"], "client_refund");
    assert_eq!(json["factory_id"].as_str().unwrap().len(), 64);
    assert!(json["birth_height"].is_u64() && json["expiry_height"].is_u64());
    for name in [
        "p_base",
        "p_step",
        "q",
        "step",
        "states",
        "layers",
        "k",
        "active",
        "dying",
        "exit_margin",
        "expiry_margin",
        "late_margin",
        "conf_margin",
        "chain_depth_max",
        "stock_timeout_delay",
        "kickoff_timeout_margin",
        "timeout_feerate",
        "stock_share_ppm",
        "route_budget",
    ] {
        assert!(json["params"][name].is_u64(), "{name}");
    }
    assert_eq!(
        keys(&json["funding"]),
        ["amount_sat", "script_pubkey", "txid", "vout"]
    );
    let lsp = &json["participants"][0];
    assert_eq!(lsp["role"], "lsp");
    for absent in [
        "payout_script_pubkey",
        "channel_funding_pubkey",
        "capacity_sat",
    ] {
        assert!(lsp[absent].is_null() && lsp.as_object().unwrap().contains_key(absent));
    }
    let client = &json["participants"][1];
    assert_eq!(client["role"], "client");
    assert_eq!(client["id"].as_str().unwrap().len(), 66);
    assert_eq!(client["factory_pubkey"].as_str().unwrap().len(), 66);
    assert_eq!(client["path"].as_array().unwrap().len(), 3);
    assert_eq!(client["capacity_sat"], 200_000);
    let txs = json["transactions"].as_array().unwrap();
    let mut kinds: Vec<&str> = txs.iter().map(|tx| tx["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, ["kickoff", "leaf", "static", "timeout"]);
    let root = &txs[0];
    assert_eq!(
        keys(root),
        ["inputs", "kind", "locktime", "outputs", "raw", "txid"]
    );
    let input = &root["inputs"][0];
    assert_eq!(input["internal_key"].as_str().unwrap().len(), 64);
    assert!(input["merkle_root"].is_null());
    assert_eq!(input["signers"].as_array().unwrap().len(), 9);
    let outputs = root["outputs"].as_array().unwrap();
    assert_eq!(outputs.last().unwrap()["role"], "anchor");
    assert_eq!(
        keys(&outputs[0]),
        ["amount_sat", "clients", "role", "script_pubkey", "vout"]
    );
    let kinds = [TxKind::StockChain, TxKind::Poison].map(|k| serde_json::to_value(k).unwrap());
    assert_eq!(kinds, ["stock_chain", "poison"]);
    let text = serde_json::to_string(&json).unwrap();
    let hex = text
        .split('"')
        .filter(|part| part.len() >= 64 && hex::decode(part).is_ok());
    assert!(hex.into_iter().all(|part| part == part.to_lowercase()));
}

#[test]
fn every_role_and_lock_is_there() {
    let signed = signed(ExpiryPolicy::LspReclaim, 8);
    let export = whole(&signed);
    let root = &export.transactions[0];
    assert!(root.inputs[0].merkle_root.is_some());
    let channel = export.transactions.last().unwrap();
    assert_eq!(channel.inputs[0].internal_key, None);
    assert_eq!(channel.inputs[0].signers.len(), 2);
    assert_eq!(channel.locktime, export.expiry_height.0);
    let leaf = export
        .transactions
        .iter()
        .find(|tx| tx.kind == TxKind::Leaf)
        .unwrap();
    assert_eq!(leaf.inputs[0].sequence, 144);
    let roles: Vec<OutputRole> = leaf.outputs.iter().map(|o| o.role).collect();
    use OutputRole::{Anchor, Channel, Stock};
    assert_eq!(
        roles,
        [Channel, Channel, Channel, Channel, Stock, Stock, Anchor]
    );
}

#[test]
fn inconsistencies_are_found() {
    let signed = signed(ExpiryPolicy::ClientRefund, 8);
    let good = whole(&signed);
    type Change = fn(&mut Export);
    let changes: [(&str, Change); 20] = [
        ("version", |e| e.version = 2),
        ("factory_id", |e| e.funding.vout = 1),
        ("network", |e| e.network = Network::Bitcoin),
        ("policy", |e| e.expiry_policy = ExpiryPolicy::LspReclaim),
        ("expiry", |e| e.expiry_height = Height(0)),
        ("no lsp", |e| drop(e.participants.remove(0))),
        ("client twice", |e| {
            e.participants[2] = e.participants[1].clone()
        }),
        ("path", |e| e.participants[1].path.swap(0, 1)),
        ("funding amount", |e| {
            e.funding.amount_sat = Amount::from_sat(1)
        }),
        ("txid", |e| e.transactions[0].txid = e.transactions[1].txid),
        ("locktime", |e| e.transactions[1].locktime = 0),
        ("inputs", |e| e.transactions[0].inputs.clear()),
        ("sequence", |e| e.transactions[0].inputs[0].sequence = 0),
        ("order", |e| e.transactions.swap(0, 2)),
        ("unsigned", |e| {
            e.transactions[0].raw.input[0].witness.clear()
        }),
        ("signers", |e| {
            e.transactions[0].inputs[0].signers.swap(0, 1)
        }),
        ("internal key", |e| {
            e.transactions[0].inputs[0].internal_key = None
        }),
        ("amount", |e| {
            e.transactions[0].outputs[0].amount_sat = Amount::from_sat(1)
        }),
        ("role", |e| {
            e.transactions[0].outputs[0].role = OutputRole::Anchor
        }),
        ("clients", |e| {
            e.transactions[0].outputs[0].clients[0] = ClientId([2; 33])
        }),
    ];
    for (name, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(check(&bad).is_err(), "{name}");
    }
}

#[test]
fn money_from_nothing_is_found() {
    let mut export = whole(&signed(ExpiryPolicy::ClientRefund, 8));
    let last = export.transactions.last_mut().unwrap();
    let more = last.raw.output[0].value + Amount::from_sat(1);
    last.raw.output[0].value = more;
    last.outputs[0].amount_sat = more;
    last.txid = last.raw.compute_txid();
    let what = "pays more than it spends";
    let txid = last.txid;
    assert_eq!(check(&export), Err(CheckError::Transaction { txid, what }));
}

/// The signatures in the document are good: consensus code accepts every transaction.
#[test]
fn exported_transactions_are_valid() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let signed = signed(policy, 9);
        for export in [whole(&signed), own(&signed, 4)] {
            for tx in &export.transactions {
                let spent = bitcoin::TxOut {
                    value: tx.inputs[0].amount_sat,
                    script_pubkey: tx.inputs[0].script_pubkey.clone(),
                };
                assert!(crate::kernel::accepts(&tx.raw, &[spent]), "{:?}", tx.kind);
            }
        }
    }
}
