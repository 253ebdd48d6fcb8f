//! How a client leaves with what it bought.

use bitcoin::Txid;
use bitcoin::hashes::Hash;

use super::*;
use crate::exit::{ChainView, End, Goal, Spender, Step, next};
use crate::factory::SpentKind;
use crate::units::Height;

const LEAF: Height = Height(2000);

/// The leaf of `kit` is confirmed at [`LEAF`], and so are the first `published` sales, one block
/// after the other.
fn view(kit: &ExitKit, published: usize) -> ChainView {
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
    view
}

/// What of the stock is published, or waited for.
fn on_stock(kit: &ExitKit, step: &Step) -> Vec<(TxKind, Option<Height>)> {
    let now = step.publish.iter().map(|index| (*index, None));
    let later = step.waiting.iter().map(|w| (w.index, Some(w.until)));
    let all = now.chain(later);
    let stock = all.filter(|(index, _)| kit.txs[*index].spends.kind == SpentKind::Stock);
    stock
        .map(|(index, until)| (kit.txs[index].kind, until))
        .collect()
}

/// A buyer, with purchases in the first and third of three sales, and its mate.
fn kits() -> (ExitKit, ExitKit) {
    let mut kits = sold(ExpiryPolicy::ClientRefund).kits.into_iter();
    (kits.next().unwrap(), kits.next().unwrap())
}

#[test]
fn sales_are_published_at_once_and_one_after_the_other() {
    let (buyer, mate) = kits();
    for published in 0..3 {
        let step = next(&buyer, Goal::Leave, &view(&buyer, published));
        assert_eq!(on_stock(&buyer, &step), [(TxKind::StockChain, None)]);
        let chain: Vec<_> = buyer.chain().map(|tx| tx.txid).collect();
        let index = step
            .publish
            .iter()
            .find(|i| buyer.txs[**i].kind == TxKind::StockChain);
        assert_eq!(buyer.txs[*index.unwrap()].txid, chain[published]);
    }
    // All of them are: what is left has its timeout, and each channel its own.
    let step = next(&buyer, Goal::Leave, &view(&buyer, 3));
    let after = buyer.expiry.plus(Blocks(1));
    assert_eq!(on_stock(&buyer, &step), [(TxKind::Timeout, Some(after))]);
    assert_eq!(step.waiting.len(), 4);
    // The mate has no channel in the third sale, and leaves it to the others.
    let step = next(&mate, Goal::Leave, &view(&mate, 2));
    let poison = LEAF.plus(Blocks(2)).plus(mate.params.poison_delay(3));
    assert_eq!(on_stock(&mate, &step), [(TxKind::Poison, Some(poison))]);
}

#[test]
fn the_newest_poison_is_published_when_its_delay_is_over() {
    let (buyer, _) = kits();
    let mut view = view(&buyer, 0);
    let due = LEAF.plus(buyer.params.poison_delay(3));
    let step = next(&buyer, Goal::TimeoutOnly, &view);
    assert_eq!(on_stock(&buyer, &step), [(TxKind::Poison, Some(due))]);
    view.tip = due.minus(Blocks(1));
    for goal in [Goal::Leave, Goal::TimeoutOnly] {
        let step = next(&buyer, goal, &view);
        assert_eq!(
            on_stock(&buyer, &step),
            [(TxKind::Poison, None)],
            "{goal:?}"
        );
        let index = step
            .publish
            .iter()
            .find(|i| buyer.txs[**i].kind == TxKind::Poison);
        let poison = &buyer.txs[*index.unwrap()];
        assert_eq!(poison.timelock.delay, Some(buyer.params.poison_delay(3)));
    }
    // Nor does it change its mind when all poisons, and at last the timeout, are final.
    view.tip = buyer.expiry.plus(Blocks(10));
    let step = next(&buyer, Goal::Leave, &view);
    assert_eq!(on_stock(&buyer, &step), [(TxKind::Poison, None)]);
    let mut published = step.publish.iter().map(|index| &buyer.txs[*index]);
    let poison = published.find(|tx| tx.kind == TxKind::Poison).unwrap();
    assert_eq!(poison.timelock.delay, Some(buyer.params.poison_delay(3)));
}

#[test]
fn what_others_publish_of_the_stock_is_followed() {
    let (buyer, _) = kits();
    let first = buyer.params.poison_delay(1);
    let mut old = buyer.txs.iter();
    let old = old.find(|tx| tx.kind == TxKind::Poison && tx.timelock.delay == Some(first));
    let old = old.unwrap();
    let mut confirmed = view(&buyer, 0);
    confirmed.tip = LEAF.plus(first);
    confirmed.confirmed.insert(old.txid, confirmed.tip);
    let step = next(&buyer, Goal::Leave, &confirmed);
    assert_eq!(on_stock(&buyer, &step), []);
    let paid: u64 = buyer
        .own_outputs(old)
        .map(|(.., txout)| txout.value.to_sat())
        .sum();
    assert_eq!(step.paid(), sat(paid));
    // Taken by the LSP after its delay.
    let mut taken = view(&buyer, 0);
    let spender = Spender {
        txid: Txid::from_byte_array([9; 32]),
        height: LEAF.plus(Blocks(buyer.params.q)),
    };
    taken
        .spent
        .insert(sold(ExpiryPolicy::ClientRefund).stock.outpoint(), spender);
    let step = next(&buyer, Goal::Leave, &taken);
    assert!(matches!(step.ends.as_slice(), [End::Foreign { .. }]));
}

#[test]
fn a_share_is_not_all_that_is_left_while_a_sale_is_to_be_published() {
    let (buyer, _) = kits();
    let commitment = |height| Spender {
        txid: Txid::from_byte_array([8; 32]),
        height,
    };
    let leaf = buyer.channels()[0].outpoint;
    let mut none = view(&buyer, 0);
    none.spent.insert(leaf, commitment(LEAF));
    assert!(!next(&buyer, Goal::Leave, &none).only_stock_left(&buyer));
    let mut all = view(&buyer, 3);
    for channel in buyer.channels() {
        all.spent.insert(channel.outpoint, commitment(all.tip));
    }
    let step = next(&buyer, Goal::Leave, &all);
    let lightning = |end: &&End| matches!(end, End::Lightning { .. });
    assert_eq!(step.ends.iter().filter(lightning).count(), 3);
    assert!(step.only_stock_left(&buyer) && !step.is_done());
}

#[test]
fn who_sold_out_without_buying_has_nothing_to_publish() {
    let mut sold = Sold::new(factory(2));
    sold.sell(0, 400_000, &[]);
    let mate = &sold.kits[1];
    for goal in [Goal::Leave, Goal::TimeoutOnly] {
        let mut late = view(mate, 0);
        late.tip = LEAF.plus(Blocks(1000));
        let step = next(mate, goal, &late);
        assert_eq!(on_stock(mate, &step), []);
        assert!(step.ends.is_empty());
    }
    assert_eq!(ExitPlan::new(mate).coverage.stock, Amount::ZERO);
}

#[test]
fn plans_say_when_and_what_it_costs() {
    let (buyer, _) = kits();
    let plan = ExitPlan::new(&buyer);
    let before = ExitPlan::new(&Sold::new(factory(2)).kits[0]);
    // One chain transaction of two channels and a stock, two of one and a stock.
    let chain: u64 = buyer.chain().map(crate::kit::KitTx::vbytes).sum();
    assert_eq!(chain, (81 + 3 * 43) + 2 * (81 + 2 * 43));
    assert_eq!(plan.path_vbytes, before.path_vbytes + chain);
    let children = 3 * crate::tx::CHILD_VBYTES;
    let more = plan.cost(10).path - before.cost(10).path;
    assert_eq!(more, sat((chain + children) * 10));
    assert_eq!(plan.least_delay.0, before.least_delay.0 + 3);
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind).collect();
    use TxKind::{Kickoff, Leaf, StockChain, Timeout};
    let path = [Kickoff, Leaf, StockChain, StockChain, StockChain];
    assert_eq!(kinds, [&path[..], &[Timeout; 4]].concat());
    let leaf = 1 + 1 + 144 - 1;
    let heights = plan.earliest(Height(3000));
    let chain: Vec<_> = heights[2..5].iter().map(|h| h.0).collect();
    assert_eq!(chain, [3000 + leaf + 1, 3000 + leaf + 2, 3000 + leaf + 3]);
}

#[test]
fn a_withheld_sale_is_rehearsed() {
    let mut sold = Sold::new(factory(2));
    sold.sell(1, 40_000, &[]);
    sold.sell(0, 60_000, &[]);
    for kit in &sold.kits {
        crate::exit::rehearse(kit).unwrap();
    }
    // Without the newest poison the one of the first sale is all there is: it pays the second
    // buyer as if it had bought nothing.
    let mut kit = sold.kits.remove(0);
    let newest = kit.params.poison_delay(2);
    kit.txs
        .retain(|tx| tx.kind != TxKind::Poison || tx.timelock.delay != Some(newest));
    let first = kit
        .txs
        .iter_mut()
        .find(|tx| tx.kind == TxKind::Poison)
        .unwrap();
    first.tx.output[0].value = sat(10_000);
    let error = crate::exit::rehearse(&kit).unwrap_err();
    assert!(
        matches!(
            error,
            crate::exit::RehearsalError::Underpaid {
                goal: Goal::TimeoutOnly,
                ..
            }
        ),
        "{error}"
    );
}
