//! Whole trees of random shapes, signed by all parties with real MuSig2 and judged by Bitcoin
//! Core's consensus code; and each client's rebuilt path against the coordinator's tree.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Network;
use proptest::prelude::*;

use super::*;
use crate::kernel::accepts;
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::path::{Path, PathError};
use crate::purpose::{Purpose, classify};
use crate::testing::{BIRTH, CAPACITY, SignedFactory, TestFactory, cases, long};

fn lite(policy: ExpiryPolicy) -> FactoryParams {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.expiry_policy = policy;
    params
}

/// Every rule that holds for every tree.
fn check_tree(signed: &SignedFactory) {
    check_signatures(signed);
    check_values(signed);
    check_purposes(signed.tree());
}

/// Every transaction spends an output of the one before, is accepted by consensus code, and is no
/// larger than planned.
fn check_signatures(signed: &SignedFactory) {
    let tree = signed.tree();
    let funding_tx = &signed.factory.funding_tx;
    let mut known: BTreeMap<OutPoint, TxOut> = BTreeMap::new();
    known.insert(tree.funding(), funding_tx.output[0].clone());
    for (tx, signed) in signed.signed_txs() {
        assert_eq!(signed.compute_txid(), tx.txid);
        let prevout = known.get(&tx.spends.outpoint).expect("parents come first");
        assert_eq!(*prevout, tx.spends.txout);
        assert!(
            accepts(&signed, std::slice::from_ref(prevout)),
            "{:?}",
            tx.kind
        );
        let size = signed.vsize() as u64;
        let slack = if tx.spends.kind == SpentKind::Channel {
            2
        } else {
            0
        };
        assert!(
            size <= tx.vbytes() && size + slack >= tx.vbytes(),
            "{size} {}",
            tx.vbytes()
        );
        assert!(size <= crate::tx::MAX_VBYTES);
        let outputs = (0u32..).zip(&signed.output);
        known.extend(outputs.map(|(vout, out)| (OutPoint::new(tx.txid, vout), out.clone())));
    }
}

/// Not a satoshi is lost or made: tree transactions pay no fee, timeouts exactly their own.
fn check_values(signed: &SignedFactory) {
    let tree = signed.tree();
    let sat = Amount::from_sat;
    let capacities: Amount = tree.spec().members.iter().map(|m| m.capacity).sum();
    let mut leaves = Amount::ZERO;
    let mut stocks = Amount::ZERO;
    for tx in tree.txs().iter().chain(tree.channel_timeouts()) {
        let fee = tx.spends.txout.value - tx.output_sum();
        let payouts = tx.outputs.len() as u64 - 1;
        let expected = match tx.kind {
            TxKind::Timeout => {
                let taken = crate::expiry::deduction(&tree.spec().params, payouts);
                taken.checked_sub(sat(240)).unwrap_or(Amount::ZERO)
            }
            _ => Amount::ZERO,
        };
        assert_eq!(fee, expected, "{:?} of {:?}", tx.kind, tx.spends.kind);
        if tx.kind == TxKind::Leaf {
            leaves += tx.output_sum();
            stocks += tx
                .outputs_of(OutputRole::Stock)
                .map(|(_, o)| o.txout.value)
                .sum();
        }
    }
    assert_eq!(leaves, capacities + stocks);
    assert_eq!(leaves, signed.factory.funding_tx.output[0].value);
}

/// No two transactions of a tree have one purpose on one output (I10), and each is what it seems.
fn check_purposes(tree: &Tree) {
    let mut seen = BTreeSet::new();
    for tx in tree.txs().iter().chain(tree.channel_timeouts()) {
        let purpose = classify(tx, &tree.spec().params, tree.schedule().expiry).unwrap();
        let fits = match (tx.kind, purpose) {
            (TxKind::Static | TxKind::Kickoff, Purpose::Next) => true,
            (TxKind::State | TxKind::Leaf, Purpose::State(slot)) => {
                slot == tree.spec().params.max_slot().0
            }
            (TxKind::Timeout, Purpose::Timeout) => true,
            _ => false,
        };
        assert!(fits, "{:?} is {purpose}", tx.kind);
        assert!(seen.insert((tx.spends.outpoint, purpose)));
    }
}

/// The client rebuilds exactly its part of the tree, in the tree's order, and its kit is good.
fn check_client(signed: &SignedFactory, position: u32) {
    let tree = signed.tree();
    let path = Path::rebuild(&signed.factory.proposal(position)).unwrap();
    let txids = |txs: &mut dyn Iterator<Item = &FactoryTx>| txs.map(|t| t.txid).collect::<Vec<_>>();
    let mine = tree.sessions_of(position);
    let theirs = txids(&mut mine.iter().map(|index| &tree.txs()[*index]));
    assert_eq!(txids(&mut path.sessions.iter()), theirs);
    let most = max_sessions(&tree.spec().params, tree.shape().clients()).unwrap();
    assert!(
        mine.len() <= most as usize,
        "{} of at most {most}",
        mine.len()
    );
    let channel = &tree.channel_timeouts()[position as usize];
    assert_eq!(path.channel_timeout.txid, channel.txid);
    assert_eq!(
        txids(&mut path.node_txs()),
        txids(&mut tree.path(position).into_iter())
    );
    assert_eq!(path.schedule, *tree.schedule());
    for (own, index) in path.sessions.iter().zip(&mine) {
        let tree_tx = &tree.txs()[*index];
        assert_eq!(own.taproot_sighash(), tree_tx.taproot_sighash());
        assert_eq!(own.outputs, tree_tx.outputs);
        assert_eq!(
            (own.kind, own.spends.kind),
            (tree_tx.kind, tree_tx.spends.kind)
        );
    }
    signed.kit(position).verify().unwrap();
}

fn policy() -> impl Strategy<Value = ExpiryPolicy> {
    prop_oneof![
        Just(ExpiryPolicy::ClientRefund),
        Just(ExpiryPolicy::LspReclaim)
    ]
}

prop_compose! {
    fn shapes()(
        policy in policy(),
        k in 1u8..=4,
        layers in 1u8..=2,
        kickoff_arity in 1u8..=3,
        inner_arity in 2u8..=5,
        states in 2u16..=4,
        static_arities in proptest::option::of(proptest::collection::vec(2u8..=6, 0..3)),
        stock_share_ppm in prop_oneof![Just(0), Just(5_000), Just(100_000), Just(500_000), Just(1_500_000)],
        timeout_feerate in 1u64..=30,
    ) -> FactoryParams {
        let mut params = lite(policy);
        params.k = k;
        params.layers = layers;
        params.kickoff_arity = kickoff_arity;
        params.inner_arity = inner_arity;
        params.states = states;
        params.step = 12;
        params.static_arities = static_arities;
        params.stock_share_ppm = stock_share_ppm;
        params.timeout_feerate = timeout_feerate;
        params.route_budget = 0;
        params
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(20)))]

    #[test]
    fn random_trees_are_valid_to_the_last_signature(
        params in shapes(),
        capacities in proptest::collection::vec(20_000u64..10_000_000, 2..40),
        seed in any::<u64>(),
    ) {
        let capacities: Vec<Amount> = capacities.into_iter().map(Amount::from_sat).collect();
        let clients = capacities.len() as u32;
        let signed = TestFactory::with_capacities(seed, params, &capacities).unwrap().sign();
        check_tree(&signed);
        for position in 0..clients {
            check_client(&signed, position);
        }
    }
}

/// Sizes at which the timeouts have two stages.
#[test]
fn two_stage_timeouts_are_valid() {
    let sizes: &[usize] = if long() { &[201, 410, 1024] } else { &[201] };
    for clients in sizes {
        let params = lite(ExpiryPolicy::ClientRefund);
        let signed = TestFactory::new(4, params, *clients).unwrap().sign();
        check_tree(&signed);
        let second = signed.tree().txs().iter();
        let second = second.filter(|tx| tx.spends.kind == SpentKind::FirstStage);
        let key = |tx: &FactoryTx| tx.spends.key.as_ref().unwrap().owners.with_lsp;
        assert!(second.clone().count() >= 2 && second.clone().all(|tx| !key(tx)));
        let last = *clients as u32 - 1;
        for position in [0, 1, last / 2, last] {
            check_client(&signed, position);
        }
    }
}

/// The named profiles at the sizes the protocol speaks of.
#[test]
fn profiles_are_valid() {
    let mut deep = FactoryParams::profile(Profile::Deep, Network::Regtest);
    deep.expiry_policy = ExpiryPolicy::LspReclaim;
    for (params, clients) in [
        (lite(ExpiryPolicy::ClientRefund), 2),
        (lite(ExpiryPolicy::ClientRefund), 64),
        (
            FactoryParams::profile(Profile::Standard, Network::Regtest),
            33,
        ),
        (deep, 20),
    ] {
        let signed = TestFactory::new(4, params, clients).unwrap().sign();
        check_tree(&signed);
        check_client(&signed, 0);
        check_client(&signed, clients as u32 - 1);
    }
}

#[test]
fn a_key_used_twice_is_refused() {
    let factory = TestFactory::new(4, lite(ExpiryPolicy::ClientRefund), 5).unwrap();
    let mut spec = factory.tree.spec().clone();
    spec.members[3].factory_key = spec.members[1].factory_key;
    let error = Draft::new(spec.clone()).unwrap_err();
    assert_eq!(error, TreeError::DuplicateKey(3));
    spec.members[3].factory_key = spec.lsp_key;
    assert_eq!(Draft::new(spec).unwrap_err(), TreeError::DuplicateKey(3));
}

#[test]
fn amounts_that_cannot_work_are_refused() {
    let build = |capacities: &[u64]| {
        let capacities: Vec<Amount> = capacities.iter().map(|c| Amount::from_sat(*c)).collect();
        let params = lite(ExpiryPolicy::ClientRefund);
        TestFactory::with_capacities(4, params, &capacities).map(|_| ())
    };
    build(&[20_000, 20_000]).unwrap();
    let dust = build(&[300, 20_000]).unwrap_err();
    assert!(
        matches!(dust, TreeError::Relay { .. } | TreeError::Expiry(_)),
        "{dust}"
    );
    let huge = build(&[Amount::MAX_MONEY.to_sat(), 20_000]).unwrap_err();
    assert!(
        matches!(huge, TreeError::Overflow | TreeError::Expiry(_)),
        "{huge}"
    );
}

/// A proposal that has not the form of a path is refused, not panicked over.
#[test]
fn malformed_proposals_are_refused() {
    let factory = TestFactory::new(4, lite(ExpiryPolicy::ClientRefund), 9).unwrap();
    let good = factory.proposal(2);
    type Change = fn(&mut crate::path::PathProposal);
    let changes: [(&str, Change); 10] = [
        ("position", |p| p.position = 9),
        ("no keys", |p| p.keys.clear()),
        ("fewer keys", |p| p.keys.truncate(4)),
        ("levels", |p| p.levels.truncate(1)),
        ("outputs", |p| p.levels[0].outputs.truncate(1)),
        ("timeouts", |p| p.timeouts.clear()),
        ("accounts", |p| p.accounts.truncate(1)),
        ("branches", |p| {
            let branch = crate::path::ProposedBranch {
                capacity: CAPACITY,
                share: CAPACITY,
                script: bitcoin::ScriptBuf::new(),
            };
            p.timeouts[0].branches.push(branch);
        }),
        ("capacity", |p| p.accounts[2].capacity = Amount::from_sat(1)),
        ("amount", |p| p.accounts[2].capacity = Amount::MAX_MONEY),
    ];
    for (name, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let error = Path::rebuild(&bad).map(|_| ()).unwrap_err();
        let _: PathError = error;
        assert_ne!(bad, good, "{name}");
    }
    assert_eq!(good.birth, BIRTH);
}
