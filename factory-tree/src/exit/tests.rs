//! Plans in numbers, every branch of what comes next, and simulated chains over random trees.

use bitcoin::Network;
use bitcoin::hashes::Hash;
use proptest::prelude::*;

use super::*;
use crate::expiry::deduction;
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::testing::{BIRTH, CAPACITY, TestFactory};

mod chain;

use chain::{Chain, Luck};

fn lite(policy: ExpiryPolicy) -> FactoryParams {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.expiry_policy = policy;
    params
}

fn kit(policy: ExpiryPolicy, clients: usize) -> ExitKit {
    TestFactory::new(7, lite(policy), clients)
        .unwrap()
        .unsigned_kit(1)
}

fn refund() -> ExitKit {
    kit(ExpiryPolicy::ClientRefund, 8)
}

/// The kit's transactions of this kind that spend an output of that kind.
fn index(kit: &ExitKit, kind: TxKind, spends: SpentKind) -> usize {
    let mut all = kit.txs.iter();
    all.position(|tx| tx.kind == kind && tx.spends.kind == spends)
        .unwrap()
}

/// A view in which the funding confirmed at [`BIRTH`].
fn funded(kit: &ExitKit, tip: u32) -> ChainView {
    let mut view = ChainView {
        tip: Height(tip),
        ..ChainView::default()
    };
    view.confirmed.insert(kit.funding().txid, BIRTH);
    view
}

fn confirm(view: &mut ChainView, kit: &ExitKit, index: usize, height: u32) {
    let txid = kit.txs[index].txid();
    view.confirmed.insert(txid, Height(height));
}

#[test]
fn lite_of_eight_costs_what_the_protocol_says() {
    let plan = ExitPlan::new(&refund());
    // Protocol section 1: 630 vB of path; three children of 153.
    assert_eq!(plan.path_vbytes, 630);
    assert_eq!(plan.cost(10).path, Amount::from_sat((630 + 3 * 153) * 10));
    assert_eq!(plan.worst_delay, Blocks(228));
    assert_eq!(plan.least_delay, Blocks(1 + 1 + 144));
    assert_eq!(plan.forced_siblings, 0);
    let kinds: Vec<TxKind> = plan.steps.iter().map(|s| s.kind).collect();
    use TxKind::{Kickoff, Leaf, Static, Timeout};
    assert_eq!(kinds, [Static, Kickoff, Leaf, Timeout, Timeout]);
    assert_eq!(plan.timeouts.len(), 3);
    // The channel's timeout pays no fee, the stock's pays 10 sat/vB.
    let channel = plan.steps.iter().find(|s| s.spends == SpentKind::Channel);
    let channel = channel.unwrap();
    let alone = Amount::from_sat((channel.vbytes + 153) * 10);
    assert_eq!(plan.cost(10).timeouts, alone);
    assert!(plan.cost(11).timeouts > Amount::from_sat((channel.vbytes + 153) * 11));
}

#[test]
fn coverage_is_net_of_the_timeouts_fees() {
    let params = lite(ExpiryPolicy::ClientRefund);
    let coverage = ExitPlan::new(&refund()).coverage;
    let share = CAPACITY.to_sat() / 2;
    let whole = CAPACITY.to_sat() + share;
    // The timeout over four clients costs each more than that over eight.
    let path = whole - deduction(&params, 4).to_sat() / 4;
    let stock = share - deduction(&params, 2).to_sat() / 2;
    assert_eq!(coverage.path.to_sat(), path);
    assert_eq!(coverage.channel, CAPACITY);
    assert_eq!(coverage.stock.to_sat(), stock);
    assert_eq!(coverage.least(), CAPACITY);
    let reclaim = ExitPlan::new(&kit(ExpiryPolicy::LspReclaim, 8)).coverage;
    assert_eq!(reclaim.least(), Amount::ZERO);
    assert_eq!(reclaim.channel, CAPACITY);
}

#[test]
fn forced_siblings_are_counted() {
    let mut params = lite(ExpiryPolicy::ClientRefund);
    params.kickoff_arity = 3;
    let factory = TestFactory::new(7, params, 12).unwrap();
    let plan = ExitPlan::new(&factory.unsigned_kit(0));
    assert_eq!(plan.forced_siblings, 2);
}

#[test]
fn earliest_heights_follow_the_locks() {
    let kit = refund();
    let plan = ExitPlan::new(&kit);
    let heights = plan.earliest(Height(2000));
    let first = kit.expiry.0 + 1;
    assert_eq!(
        heights.iter().map(|h| h.0).collect::<Vec<_>>(),
        [2001, 2002, 2002 + 144, first, first]
    );
    // A leaf that confirms late: its stock's timeout waits for the delay, not for `T`.
    let late = plan.earliest(kit.expiry);
    let leaf = kit.expiry.0 + 2 + 144;
    assert_eq!(late[2].0, leaf);
    let mut last = [late[3].0, late[4].0];
    last.sort_unstable();
    assert_eq!(last, [leaf + 1, leaf + 648]);
}

#[test]
fn leaving_goes_level_by_level() {
    let kit = refund();
    let path: Vec<usize> = (0..kit.txs.len())
        .filter(|i| kit.txs[*i].is_path())
        .collect();
    let mut view = funded(&kit, 1005);
    assert_eq!(next(&kit, Goal::Leave, &view).publish, [path[0]]);
    confirm(&mut view, &kit, path[0], 1006);
    view.tip = Height(1006);
    assert_eq!(next(&kit, Goal::Leave, &view).publish, [path[1]]);
    confirm(&mut view, &kit, path[1], 1007);
    // Slot 144: accepted when the next block is the 144th after the kickoff's.
    view.tip = Height(1007 + 142);
    let step = next(&kit, Goal::Leave, &view);
    assert!(step.publish.is_empty());
    let leaf = Waiting {
        index: path[2],
        until: Height(1007 + 144),
    };
    assert_eq!(step.waiting, [leaf]);
    view.tip = Height(1007 + 143);
    assert_eq!(next(&kit, Goal::Leave, &view).publish, [path[2]]);
    confirm(&mut view, &kit, path[2], 1007 + 144);
    view.tip = Height(1007 + 144);
    let step = next(&kit, Goal::Leave, &view);
    assert!(step.publish.is_empty() && !step.is_done());
    assert!(
        step.waiting
            .iter()
            .all(|w| w.until == kit.expiry.plus(Blocks(1)))
    );
    view.tip = kit.expiry;
    assert_eq!(next(&kit, Goal::Leave, &view).publish.len(), 2);
}

#[test]
fn passive_clients_publish_only_timeouts() {
    let kit = refund();
    let root = index(&kit, TxKind::Timeout, SpentKind::Funding);
    let kickoff_timeout = index(&kit, TxKind::Timeout, SpentKind::Kickoff);
    let path: Vec<usize> = (0..kit.txs.len())
        .filter(|i| kit.txs[*i].is_path())
        .collect();
    let mut view = funded(&kit, kit.expiry.0 - 1);
    assert!(next(&kit, Goal::TimeoutOnly, &view).publish.is_empty());
    view.tip = kit.expiry;
    assert_eq!(next(&kit, Goal::TimeoutOnly, &view).publish, [root]);
    // L publishes a kickoff just before `T`: frozen only until the kickoff's timeout.
    confirm(&mut view, &kit, path[0], kit.expiry.0 - 1);
    confirm(&mut view, &kit, path[1], kit.expiry.0);
    let step = next(&kit, Goal::TimeoutOnly, &view);
    let waits = Waiting {
        index: kickoff_timeout,
        until: kit.expiry.plus(Blocks(144 + 144)),
    };
    assert_eq!((step.publish.len(), step.waiting), (0, vec![waits]));
    let states = states(&kit, &view);
    let by = kit.txs[path[0]].txid();
    assert_eq!(states[root], TxState::Impossible { by });
}

#[test]
fn after_expiry_the_timeout_goes_first() {
    let kit = refund();
    let root = index(&kit, TxKind::Timeout, SpentKind::Funding);
    let view = funded(&kit, kit.expiry.0);
    assert_eq!(next(&kit, Goal::Leave, &view).publish, [root]);
    let mut paid = view;
    confirm(&mut paid, &kit, root, kit.expiry.0 + 1);
    let step = next(&kit, Goal::Leave, &paid);
    assert!(step.is_done());
    assert!(step.paid() > CAPACITY);
}

#[test]
fn second_stages_follow_first_stages() {
    let factory = TestFactory::new(7, lite(ExpiryPolicy::ClientRefund), 210).unwrap();
    let kit = factory.unsigned_kit(209);
    let first = index(&kit, TxKind::Timeout, SpentKind::Funding);
    let second = index(&kit, TxKind::Timeout, SpentKind::FirstStage);
    let mut view = funded(&kit, kit.expiry.0);
    assert_eq!(next(&kit, Goal::TimeoutOnly, &view).publish, [first]);
    confirm(&mut view, &kit, first, kit.expiry.0 + 1);
    view.tip = Height(kit.expiry.0 + 1);
    assert_eq!(next(&kit, Goal::TimeoutOnly, &view).publish, [second]);
    confirm(&mut view, &kit, second, kit.expiry.0 + 2);
    let step = next(&kit, Goal::TimeoutOnly, &view);
    assert!(step.is_done() && step.paid() >= ExitPlan::new(&kit).coverage.least());
}

#[test]
fn an_unfunded_factory_is_not_left() {
    let kit = refund();
    let step = next(&kit, Goal::Leave, &ChainView::default());
    assert!(!step.funded && !step.is_done() && step.publish.is_empty());
}

#[test]
fn foreign_spends_are_named() {
    let by = Txid::from_byte_array([9; 32]);
    for (policy, after, meaning) in [
        (ExpiryPolicy::ClientRefund, 0, Meaning::SpentTogether),
        (ExpiryPolicy::LspReclaim, 0, Meaning::SpentTogether),
        (ExpiryPolicy::LspReclaim, 100_000, Meaning::Reclaimed),
    ] {
        let kit = kit(policy, 8);
        let mut view = funded(&kit, 2000 + after);
        let height = Height(2000 + after);
        view.spent
            .insert(kit.funding(), Spender { txid: by, height });
        let step = next(&kit, Goal::Leave, &view);
        let found = step.ends.iter().map(|end| match end {
            End::Foreign { meaning, .. } => Some(*meaning),
            _ => None,
        });
        assert_eq!(found.collect::<Vec<_>>(), [Some(meaning)]);
        assert!(
            states(&kit, &view)
                .iter()
                .all(|s| *s == TxState::Impossible { by })
        );
    }
}

/// Everything of the path confirmed, the leaf at the height that is returned.
fn on_the_chain(kit: &ExitKit) -> (ChainView, u32) {
    let mut view = funded(kit, 1005);
    let leaf = 1007 + 144;
    for (tx, height) in kit.path().zip([1006, 1007, leaf]) {
        view.confirmed.insert(tx.txid(), Height(height));
    }
    view.tip = Height(leaf);
    (view, leaf)
}

#[test]
fn a_commitment_ends_the_channel_on_lightning() {
    let kit = refund();
    let (mut view, leaf) = on_the_chain(&kit);
    assert!(!next(&kit, Goal::Leave, &view).only_stock_left(&kit));
    let by = Txid::from_byte_array([9; 32]);
    let channel = kit.channel_outpoint().unwrap();
    let height = Height(leaf + 1);
    view.spent.insert(channel, Spender { txid: by, height });
    view.tip = height;
    for goal in [Goal::Leave, Goal::TimeoutOnly] {
        let step = next(&kit, goal, &view);
        let end = End::Lightning {
            outpoint: channel,
            by,
            height,
        };
        assert_eq!(step.ends, [end]);
        assert_eq!(step.paid(), Amount::ZERO);
        // The share in the stock is still to come.
        assert!(!step.is_done() && step.only_stock_left(&kit));
    }
    // The channel's own timeout is none of Lightning's.
    let timeout = index(&kit, TxKind::Timeout, SpentKind::Channel);
    view.tip = kit.expiry.plus(Blocks(1));
    let (txid, height) = (kit.txs[timeout].txid(), view.tip);
    view.spent.insert(channel, Spender { txid, height });
    let step = next(&kit, Goal::Leave, &view);
    assert!(
        matches!(step.ends.as_slice(), [End::Paid { .. }]),
        "{step:?}"
    );
    assert_eq!(step.paid(), CAPACITY);
    assert!(!step.only_stock_left(&kit));
}

#[test]
fn reclaim_has_nothing_to_wait_for() {
    let kit = kit(ExpiryPolicy::LspReclaim, 8);
    let view = funded(&kit, 2000);
    let step = next(&kit, Goal::TimeoutOnly, &view);
    assert!(matches!(step.ends.as_slice(), [End::NoTimeout { .. }]));
    assert_eq!(next(&kit, Goal::Leave, &view).publish.len(), 1);
}

#[test]
fn rehearsals_end_paid_and_find_what_is_broken() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        for clients in [2, 9, 210] {
            rehearse(&kit(policy, clients)).unwrap();
        }
    }
    let kit = refund();
    let broken = |change: &dyn Fn(&mut ExitKit)| {
        let mut broken = kit.clone();
        change(&mut broken);
        rehearse(&broken).unwrap_err()
    };
    // Bytes that say another lock than the kit does.
    let last = kit.txs.len() - 1;
    let later = bitcoin::absolute::LockTime::from_consensus(kit.expiry.0 + 1);
    let error = broken(&|k| k.txs[last].tx.lock_time = later);
    assert!(matches!(error, RehearsalError::NotFinal { .. }), "{error}");
    let leaf = kit
        .txs
        .iter()
        .position(|tx| tx.kind == TxKind::Leaf)
        .unwrap();
    let slower = bitcoin::Sequence::from_height(145);
    let error = broken(&|k| k.txs[leaf].tx.input[0].sequence = slower);
    assert!(matches!(error, RehearsalError::NotFinal { .. }), "{error}");
    // No timeout of the funding output: staying away is of no use.
    let root = index(&kit, TxKind::Timeout, SpentKind::Funding);
    let error = broken(&|k| drop(k.txs.remove(root)));
    assert!(matches!(error, RehearsalError::Underpaid { .. }), "{error}");
    // A funding output that nothing spends.
    let error = broken(&|k| k.funding_vout = 1);
    assert!(matches!(
        error,
        RehearsalError::Stuck { .. } | RehearsalError::Underpaid { .. }
    ));
}

/// A small factory with every time compressed.
fn quick(policy: ExpiryPolicy, k: u8, layers: u8, kickoff_arity: u8) -> FactoryParams {
    let mut params = lite(policy);
    params.k = k;
    params.layers = layers;
    params.kickoff_arity = kickoff_arity;
    params.inner_arity = 2;
    params.step = 6;
    params.active = 1;
    params.dying = 100;
    params.late_margin = 1;
    params.expiry_margin = 94;
    params.conf_margin = 2;
    params.exit_margin = 2;
    params
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(48)))]

    /// Whatever the others publish and when, and however late its own transactions confirm, a
    /// client ends with at least its coverage.
    #[test]
    fn the_client_always_ends_paid(
        clients in 2usize..40,
        k in 1u8..=4,
        layers in 1u8..=2,
        kickoff_arity in 1u8..=3,
        goal in prop_oneof![Just(Goal::Leave), Just(Goal::TimeoutOnly)],
        position in 0u32..40,
        luck in any::<u64>(),
        meddling in 0u32..40,
    ) {
        let params = quick(ExpiryPolicy::ClientRefund, k, layers, kickoff_arity);
        let factory = TestFactory::new(7, params, clients).unwrap();
        let kit = factory.unsigned_kit(position % clients as u32);
        let mut chain = Chain::new(&factory, Luck::new(luck), meddling);
        let step = chain.run(&kit, goal);
        let coverage = ExitPlan::new(&kit).coverage;
        prop_assert!(step.paid() >= coverage.least(), "{:?} of {:?}", step, coverage);
    }

    /// Under `LspReclaim` a client that leaves in time ends with its capacity.
    #[test]
    fn who_leaves_in_time_keeps_its_capacity(
        clients in 2usize..40,
        k in 1u8..=4,
        layers in 1u8..=2,
        position in 0u32..40,
        luck in any::<u64>(),
        meddling in 0u32..40,
    ) {
        let params = quick(ExpiryPolicy::LspReclaim, k, layers, 1);
        let factory = TestFactory::new(7, params, clients).unwrap();
        let kit = factory.unsigned_kit(position % clients as u32);
        let mut chain = Chain::new(&factory, Luck::new(luck), meddling);
        let step = chain.run(&kit, Goal::Leave);
        prop_assert_eq!(step.paid(), CAPACITY);
    }
}
