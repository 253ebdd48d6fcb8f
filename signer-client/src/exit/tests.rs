//! What a wallet does about a stock from which was sold, when somebody publishes its leaf.

use std::collections::HashSet;

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Network, OutPoint, Txid};
use factory_tree::ceremony::message::Round;
use factory_tree::factory::SpentKind;
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::testing::{Sold, TestFactory};

use super::*;

const LEAF: Height = Height(2000);

/// The kits of a buyer and its mate: two purchases and one between them.
pub(crate) fn sold(policy: ExpiryPolicy) -> [ExitKit; 2] {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    (params.k, params.expiry_policy) = (2, policy);
    params.stock_share_ppm = 1_000_000;
    let mut sold = Sold::new(TestFactory::new(7, params, 4).unwrap());
    sold.sell(0, 100_000, &[]);
    sold.sell(1, 50_000, &[]);
    sold.sell(0, 30_000, &[]);
    sold.kits.try_into().unwrap()
}

pub(crate) fn row(kit: &ExitKit) -> FactoryRow {
    FactoryRow {
        factory: kit.factory_id,
        round: Round {
            ceremony: kit.ceremony,
            attempt: kit.attempt,
        },
        join_nonce: kit.join_nonce,
        funding: kit.funding(),
        common_pin: OutPoint::null(),
        capacity: kit.capacity,
        birth: kit.birth,
        expiry: kit.expiry,
        confirmations: 1,
        fee: Amount::ZERO,
        acked: true,
        failed: false,
        confirmed: Some(kit.birth),
        usable: true,
        abandoned: None,
        closed: None,
        handover: None,
    }
}

/// The leaf is confirmed at [`LEAF`], the first `published` sales in the blocks after it; the tip is `later` after the last of them.
pub(crate) fn chain(kit: &ExitKit, published: usize, later: u32) -> ChainView {
    let mut view = ChainView {
        tip: LEAF,
        ..ChainView::default()
    };
    view.confirmed.insert(kit.funding().txid, kit.birth);
    view.confirmed.extend(kit.path().map(|tx| (tx.txid, LEAF)));
    for tx in kit.chain().take(published) {
        view.tip = view.tip.plus(Blocks(1));
        view.confirmed.insert(tx.txid, view.tip);
    }
    view.tip = view.tip.plus(Blocks(later));
    view
}

fn kinds(kit: &ExitKit, step: &Step) -> Vec<TxKind> {
    let publish = step.publish.iter();
    publish.map(|index| kit.txs[*index].kind).collect()
}

fn never() -> ExitConfig {
    ExitConfig {
        auto_timeout: false,
        auto_leave: false,
        ..ExitConfig::default()
    }
}

/// The poison of what the first `published` sales left that is final first.
fn poison(kit: &ExitKit, published: usize) -> &KitTx {
    let stock = kit.chain().nth(published).unwrap().spends.outpoint;
    let on_stock = |tx: &&KitTx| tx.kind == TxKind::Poison && tx.spends.outpoint == stock;
    let poisons = kit.txs.iter().filter(on_stock);
    poisons.min_by_key(|tx| tx.timelock.delay).unwrap()
}

#[test]
fn a_withheld_sale_is_published_and_then_its_poison_though_nobody_asked() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let [buyer, _] = sold(policy);
        // The third sale's poison is final first.
        let final_after = buyer.params.poison_delay(3).0;
        assert_eq!(final_after, 216);
        let config = &never();
        let at = |later| {
            let view = chain(&buyer, 0, later);
            let goal = unasked(config, &row(&buyer), &buyer, &view);
            let step = stock::due(&buyer, Goal::Timeout, &view);
            (goal, kinds(&buyer, &step))
        };
        // It is the coordinator's turn.
        assert_eq!(at(53), (None, vec![]), "{policy:?}");
        let sale = (Some(Goal::Timeout), vec![TxKind::StockChain]);
        assert_eq!(at(54), sale, "{policy:?}");
        assert_eq!(at(final_after - 2), sale, "{policy:?}");
        let poison = (Some(Goal::Timeout), vec![TxKind::Poison]);
        assert_eq!(at(final_after - 1), poison, "{policy:?}");
        assert_eq!(at(final_after + 60), poison, "{policy:?}");
    }
}

#[test]
fn what_was_begun_for_the_stock_is_left_in_time_all_the_same() {
    let [buyer, _] = sold(ExpiryPolicy::LspReclaim);
    let mut view = chain(&buyer, 0, 60);
    let config = ExitConfig::default();
    let goal = |view: &ChainView| unasked(&config, &row(&buyer), &buyer, view);
    assert_eq!(goal(&view), Some(Goal::Timeout));
    view.tip = leave_by(&buyer);
    assert_eq!(goal(&view), Some(Goal::Leave));
}

#[test]
fn a_mate_publishes_what_leads_to_its_channel_and_leaves_the_rest_to_the_poison() {
    let [_, mate] = sold(ExpiryPolicy::ClientRefund);
    let at = |published, later| {
        let view = chain(&mate, published, later);
        kinds(&mate, &stock::due(&mate, Goal::Timeout, &view))
    };
    assert_eq!(at(0, 60), [TxKind::StockChain]);
    assert_eq!(at(1, 60), [TxKind::StockChain]);
    assert_eq!(at(2, 60), []);
    assert_eq!(at(2, 216), [TxKind::Poison]);
}

#[test]
fn who_leaves_waits_for_nobody() {
    let [buyer, _] = sold(ExpiryPolicy::ClientRefund);
    let step = stock::due(&buyer, Goal::Leave, &chain(&buyer, 1, 0));
    assert_eq!(kinds(&buyer, &step), [TxKind::StockChain]);
}

#[test]
fn defending_the_stock_leaves_the_rest_as_it_was() {
    let [buyer, _] = sold(ExpiryPolicy::ClientRefund);
    let step = stock::due(&buyer, Goal::Timeout, &chain(&buyer, 0, 60));
    let waiting = step.waiting.iter().map(|waiting| &buyer.txs[waiting.index]);
    let waiting: Vec<_> = waiting.map(|tx| (tx.kind, tx.spends.kind)).collect();
    assert_eq!(waiting, [(TxKind::Timeout, SpentKind::Channel)]);
    // Without sales nothing is done before T.
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    let unsold = TestFactory::new(7, params, 2).unwrap().sign().kit(0);
    let view = chain(&unsold, 0, 600);
    assert_eq!(unasked(&never(), &row(&unsold), &unsold, &view), None);
}

#[test]
fn a_payout_of_a_poison_that_somebody_else_published_is_followed() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let [buyer, _] = sold(policy);
        let mut view = chain(&buyer, 0, 300);
        let at = view.tip;
        view.confirmed.insert(poison(&buyer, 0).txid(), at);
        let goal = unasked(&never(), &row(&buyer), &buyer, &view);
        assert_eq!(goal, Some(Goal::Timeout), "{policy:?}");
    }
}

#[test]
fn sales_and_poisons_have_the_deadlines_of_their_stock() {
    let [buyer, _] = sold(ExpiryPolicy::ClientRefund);
    let target = |tx: &KitTx, published, later| {
        let view = chain(&buyer, published, later);
        (
            stock::deadline(&buyer, tx, &view).0,
            fees::target(&buyer, tx, &view),
        )
    };
    let sales: Vec<&KitTx> = buyer.chain().collect();
    // The first poison of what it spends takes it at 216.
    assert_eq!(target(sales[0], 0, 0), (LEAF.0 + 216, 6));
    assert_eq!(target(sales[0], 0, 208), (LEAF.0 + 216, 2));
    assert_eq!(target(sales[0], 0, 400), (LEAF.0 + 216, 1));
    // Each stock has its own clock.
    assert_eq!(target(sales[1], 1, 0), (LEAF.0 + 1 + 216, 6));
    // The poison of the sale before pays as if the last had not been, 72 blocks later.
    assert_eq!(target(poison(&buyer, 0), 0, 276), (LEAF.0 + 288, 3));
    // On what only the last sale consumed there is no other: the coordinator takes it at q.
    let q = buyer.params.q;
    assert_eq!(target(poison(&buyer, 2), 2, 0), (LEAF.0 + 2 + q, 6));
    // Timeouts have none, the path has T.
    let timeout = buyer
        .txs
        .iter()
        .find(|tx| tx.kind == TxKind::Timeout)
        .unwrap();
    assert_eq!(target(timeout, 0, 5_000).1, 6);
}

#[test]
fn a_poison_pays_for_what_was_sold_from_its_stock_and_later() {
    let [buyer, _] = sold(ExpiryPolicy::ClientRefund);
    let [leaf, first, third] = buyer.channels().try_into().unwrap();
    let whereabouts = |published: usize, confirmed: bool| {
        let mut view = chain(&buyer, published, 250);
        let taken = poison(&buyer, published);
        let mut sent = HashSet::new();
        match confirmed {
            true => _ = view.confirmed.insert(taken.txid(), view.tip),
            false => _ = sent.insert(taken.txid()),
        }
        Whereabouts::of(&buyer, &view, &sent)
    };
    for confirmed in [false, true] {
        let all = whereabouts(0, confirmed);
        assert_eq!(all.out, [first.outpoint, third.outpoint]);
        assert_eq!(all.inside, leaf.capacity);
        assert_eq!(all.coming.is_empty(), confirmed);
        let last = whereabouts(2, confirmed);
        assert_eq!(last.out, [third.outpoint]);
        assert_eq!(last.inside, leaf.capacity + first.capacity);
    }
    let paid: u64 = whereabouts(0, false)
        .coming
        .iter()
        .map(|(_, sat)| sat.to_sat())
        .sum();
    assert!(paid >= 130_000, "{paid}");
    // What nobody sent is not coming.
    let quiet = Whereabouts::of(&buyer, &chain(&buyer, 0, 250), &HashSet::new());
    assert_eq!((quiet.coming.len(), quiet.out.len()), (0, 0));
    assert_eq!(quiet.inside.to_sat(), 330_000);
}

#[test]
fn ends_of_several_channels_are_told_in_one_line() {
    let [buyer, _] = sold(ExpiryPolicy::ClientRefund);
    let mut view = chain(&buyer, 3, 0);
    for channel in buyer.channels() {
        let spender = Spender {
            txid: Txid::from_byte_array([8; 32]),
            height: view.tip,
        };
        view.spent.insert(channel.outpoint, spender);
    }
    let step = stock::due(&buyer, Goal::Leave, &view);
    assert_eq!(
        outcome(&buyer, &step),
        "done: the balances of 3 channels were paid out"
    );
    let told = progress(&buyer, &step, &[], &Ending::Done(None), view.tip);
    assert!(
        told.text.ends_with("a share in the stock may follow"),
        "{}",
        told.text
    );
    assert_eq!(told.done, Some(view.tip));
    // A sale that is withheld has a name.
    let withheld = chain(&buyer, 0, 60);
    let step = stock::due(&buyer, Goal::Leave, &withheld);
    let told = progress(&buyer, &step, &[], &Ending::Nothing, withheld.tip);
    assert_eq!(
        told.text,
        "waiting for the next sale from the stock to be confirmed"
    );
}

#[test]
fn a_factory_is_over_when_its_channels_are_though_its_stock_is_not() {
    let [buyer, _] = sold(ExpiryPolicy::ClientRefund);
    let mut view = chain(&buyer, 3, 0);
    assert_eq!(Unrolled::of(&buyer, &view), None);
    let by = |txid| Spender { txid, height: LEAF };
    let root = buyer.path().next().unwrap().txid();
    view.spent.insert(buyer.funding(), by(root));
    // Its channels stand.
    let standing = Unrolled::of(&buyer, &view).unwrap();
    assert_eq!((standing, standing.is_over()), (Unrolled::Unrolling, false));
    let foreign = by(Txid::from_byte_array([8; 32]));
    for channel in buyer.channels() {
        view.spent.insert(channel.outpoint, foreign);
    }
    let closed = Unrolled::of(&buyer, &view).unwrap();
    assert_eq!((closed, closed.is_over()), (Unrolled::Left, true));
    // The stock paid a share later: that is not all there was.
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    (params.k, params.expiry_policy) = (2, ExpiryPolicy::ClientRefund);
    params.stock_share_ppm = 1_000_000;
    let shares = TestFactory::new(7, params, 4).unwrap().sign().kit(0);
    let mut paid = chain(&shares, 0, 0);
    paid.tip = shares.expiry.plus(Blocks(1));
    let root = shares.path().next().unwrap().txid();
    paid.spent.insert(shares.funding(), by(root));
    paid.spent.insert(shares.channels()[0].outpoint, foreign);
    assert_eq!(Unrolled::of(&shares, &paid), Some(Unrolled::Left));
    let mut ends = shares.txs.iter().filter(|tx| tx.kind == TxKind::Timeout);
    let share = ends.find(|tx| tx.spends.kind == SpentKind::Stock).unwrap();
    paid.confirmed.insert(share.txid(), paid.tip);
    let spender = Spender {
        txid: share.txid(),
        height: paid.tip,
    };
    paid.spent.insert(share.spends.outpoint, spender);
    let beside = Unrolled::Paid {
        beside_channels: true,
    };
    assert_eq!(Unrolled::of(&shares, &paid), Some(beside));
    // Everybody together, or who has their keys, took the root.
    view.spent = [(buyer.funding(), foreign)].into();
    view.confirmed.clear();
    assert_eq!(Unrolled::of(&buyer, &view), Some(Unrolled::Ended));
}
