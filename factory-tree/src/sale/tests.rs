//! What a sale's transactions are, in numbers and over random sales.

use bitcoin::{Amount, Network, OutPoint};
use proptest::prelude::*;

use super::*;
use crate::exit::ExitPlan;
use crate::expiry::{deduction, least_stock};
use crate::kit::{ExitKit, KitError};
use crate::output::{MIN_OUTPUT, OutputRole};
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::purpose::{Purpose, classify};
use crate::testing::{Sold, TestFactory};
use crate::tx::TxKind;
use crate::units::Blocks;

pub(super) fn params(k: u8, policy: ExpiryPolicy) -> FactoryParams {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    (params.k, params.expiry_policy) = (k, policy);
    // A share of 100 %: room for several sales.
    params.stock_share_ppm = 1_000_000;
    params
}

pub(super) fn factory(k: u8) -> TestFactory {
    let params = params(k, ExpiryPolicy::ClientRefund);
    TestFactory::new(11, params, usize::from(k) * 2).unwrap()
}

mod exit;

fn sat(amount: u64) -> Amount {
    Amount::from_sat(amount)
}

/// What `tx` pays the client at `position`.
pub(super) fn paid(tx: &crate::factory::FactoryTx, position: u32) -> u64 {
    let own = tx.outputs.iter().filter(|o| o.clients.contains(&position));
    own.map(|o| o.txout.value.to_sat()).sum()
}

#[test]
fn a_sale_splits_the_stock() {
    let factory = factory(2);
    let mut stock = factory.stock(1);
    assert_eq!(stock.clients(), 0..2);
    assert_eq!(stock.amount(), sat(400_000));
    let first = stock
        .push(factory.sale(&stock, 1, 100_000, &[(0, 10_000)]))
        .unwrap();
    let roles: Vec<_> = first
        .chain
        .outputs
        .iter()
        .map(|o| (o.role, o.txout.value.to_sat()))
        .collect();
    use OutputRole::{Anchor, Channel, Stock};
    assert_eq!(
        roles,
        [
            (Channel, 100_000),
            (Channel, 10_000),
            (Stock, 290_000),
            (Anchor, 0)
        ]
    );
    // The same key group under the same script leaf.
    assert_eq!(
        first.chain.outputs[2].txout.script_pubkey,
        first.chain.spends.txout.script_pubkey
    );
    assert_eq!(first.chain.timelock, crate::tx::Timelock::NONE);
    assert_eq!(first.sessions().count(), 3);
    assert_eq!(first.channel_timeouts.len(), 2);
    let second = stock.push(factory.sale(&stock, 0, 50_000, &[])).unwrap();
    assert_eq!(
        second.chain.spends.outpoint,
        OutPoint::new(first.chain.txid, 2)
    );
    let spent: Vec<_> = second
        .sessions()
        .map(|tx| (tx.kind, tx.spends.outpoint))
        .collect();
    let (s0, s1) = (stock.outpoint(), second.chain.spends.outpoint);
    let s2 = OutPoint::new(second.chain.txid, 1);
    use TxKind::{Poison, StockChain, Timeout};
    assert_eq!(
        spent,
        [(StockChain, s1), (Timeout, s2), (Poison, s0), (Poison, s1)]
    );
    assert_eq!(stock.amount(), sat(240_000));
}

#[test]
fn poisons_pay_what_was_sold_since_and_the_rest_in_even_parts() {
    let factory = factory(2);
    let mut stock = factory.stock(0);
    stock
        .push(factory.sale(&stock, 0, 100_000, &[(1, 10_000)]))
        .unwrap();
    let second = stock.push(factory.sale(&stock, 1, 50_000, &[])).unwrap();
    let fee = deduction(stock.params(), 2).to_sat();
    let rest = (400_000 - 160_000 - fee) / 2;
    let [on_s0, on_s1] = second.poisons.as_slice() else {
        panic!("two poisons")
    };
    assert_eq!(
        (paid(on_s0, 0), paid(on_s0, 1)),
        (100_000 + rest, 60_000 + rest)
    );
    assert_eq!((paid(on_s1, 0), paid(on_s1, 1)), (rest, 50_000 + rest));
    for poison in &second.poisons {
        assert_eq!(poison.timelock.delay, Some(Blocks(288)));
    }
}

#[test]
fn what_would_be_no_stock_goes_to_the_buyer() {
    let factory = factory(2);
    let mut stock = factory.stock(0);
    let least = least_stock(stock.params(), 2);
    let all = sat(400_000);
    let most = all - least;
    assert_eq!(stock.capacity_for(most, Amount::ZERO), Ok(most));
    assert_eq!(stock.capacity_for(most + sat(1), Amount::ZERO), Ok(all));
    let mut sale = factory.sale(&stock, 0, 399_999, &[]);
    assert_eq!(sale.bought.capacity, all);
    let txs = stock.push(sale.clone()).unwrap();
    assert!(txs.timeout.is_none());
    // One payout: the buyer's, whole, without a fee. Its mate has nothing to claim.
    assert_eq!(txs.poisons[0].outputs.len(), 2);
    assert_eq!(paid(&txs.poisons[0], 0), 400_000);
    assert_eq!(stock.amount(), Amount::ZERO);
    assert!(stock.tip().is_none());
    sale.number = 2;
    assert_eq!(stock.draft(&sale).unwrap_err(), StockError::SoldOut);
    assert_eq!(
        stock.capacity_for(sat(20_000), Amount::ZERO),
        Err(StockError::SoldOut)
    );
}

#[test]
fn sales_that_cannot_be_are_named() {
    let factory = factory(2);
    let stock = factory.stock(0);
    let good = factory.sale(&stock, 0, 100_000, &[(1, 10_000)]);
    let refused = |change: fn(&mut Sale)| {
        let mut sale = good.clone();
        change(&mut sale);
        stock.draft(&sale).unwrap_err()
    };
    use StockError as E;
    assert!(matches!(
        refused(|s| s.stock.vout += 1),
        E::OtherStock { .. }
    ));
    assert_eq!(
        refused(|s| s.number = 2),
        E::OutOfOrder { asked: 2, next: 1 }
    );
    assert_eq!(
        refused(|s| s.number = 0),
        E::OutOfOrder { asked: 0, next: 1 }
    );
    assert_eq!(refused(|s| s.bought.position = 2), E::Channel(2));
    assert_eq!(
        refused(|s| s.bought.position = u32::MAX),
        E::Channel(u32::MAX)
    );
    assert_eq!(refused(|s| s.bonus[0].position = 0), E::Channel(0));
    assert!(matches!(
        refused(|s| s.bought.capacity = sat(9_999)),
        E::Amount { .. }
    ));
    assert!(matches!(
        refused(|s| s.bonus[0].capacity = sat(0)),
        E::Amount { .. }
    ));
    assert!(matches!(
        refused(|s| s.bought.capacity = sat(400_001)),
        E::Amount { .. }
    ));
    assert!(matches!(
        refused(|s| s.bought.capacity = sat(389_000)),
        E::Remainder { .. }
    ));
    assert!(matches!(
        refused(|s| s.bought.capacity = Amount::MAX_MONEY),
        E::Amount { .. }
    ));
}

#[test]
fn a_stock_carries_no_more_sales_than_agreed() {
    let factory = factory(2);
    let mut stock = factory.stock(0);
    for _ in 0..4 {
        stock.push(factory.sale(&stock, 1, 10_000, &[])).unwrap();
    }
    let mut sale = factory.sale(&factory.stock(0), 1, 10_000, &[]);
    sale.number = 5;
    assert_eq!(stock.draft(&sale).unwrap_err(), StockError::Depth(4));
    assert_eq!(
        stock.capacity_for(sat(10_000), sat(0)),
        Err(StockError::Depth(4))
    );
}

fn sold(policy: ExpiryPolicy) -> Sold {
    let factory = TestFactory::new(3, params(2, policy), 4).unwrap();
    let mut sold = Sold::new(factory);
    sold.sell(0, 100_000, &[(1, 10_000)]);
    sold.sell(1, 50_000, &[]);
    sold.sell(0, 30_000, &[]);
    sold
}

#[test]
fn kits_with_sales_survive_the_disk_under_both_policies() {
    for policy in [ExpiryPolicy::ClientRefund, ExpiryPolicy::LspReclaim] {
        let sold = sold(policy);
        for kit in &sold.kits {
            let read = ExitKit::from_json(&kit.to_json().unwrap()).unwrap();
            assert_eq!(read, *kit);
            read.verify().unwrap();
            let stock = Stock::of_kit(&read).unwrap();
            assert_eq!(stock.sales(), sold.stock.sales());
            assert_eq!(
                stock.tip().map(|t| t.outpoint),
                sold.stock.tip().map(|t| t.outpoint)
            );
        }
        let channels = sold.kits[0].channels();
        let sales: Vec<_> = channels
            .iter()
            .map(|c| (c.sale, c.capacity.to_sat()))
            .collect();
        assert_eq!(
            sales,
            [(None, 200_000), (Some(1), 100_000), (Some(3), 30_000)]
        );
    }
}

/// I7, as far as consensus goes; relay rules are part of [`ExitKit::verify`].
#[test]
fn every_transaction_of_a_sale_is_accepted_by_consensus_code() {
    for kit in &sold(ExpiryPolicy::ClientRefund).kits {
        for tx in &kit.txs {
            let spent = bitcoin::TxOut {
                value: tx.spends.amount,
                script_pubkey: tx.spends.script.clone(),
            };
            assert!(crate::kernel::accepts(&tx.tx, &[spent]), "{:?}", tx.kind);
        }
    }
}

#[test]
fn exports_of_kits_with_sales_are_consistent() {
    let sold = sold(ExpiryPolicy::ClientRefund);
    let clients = &sold.signed.factory.clients;
    let lsp = crate::ids::ClientId([2; 33]);
    for kit in &sold.kits {
        let own = clients[kit.position as usize].id();
        let export = crate::export::Export::of_kit(kit, lsp, own);
        crate::export::check(&export).unwrap();
        assert_eq!(export.transactions.len(), kit.txs.len());
    }
}

#[test]
fn a_kit_of_version_1_still_reads() {
    let kit = &Sold::new(factory(2)).kits[0];
    let text = kit.to_json().unwrap();
    assert!(!text.contains("sales") && !text.contains("stock_payouts"));
    let old = text.replacen("\"version\":2", "\"version\":1", 1);
    let read = ExitKit::from_json(&old).unwrap();
    assert_eq!(read, *kit);
    read.verify().unwrap();
}

#[test]
fn a_sale_that_is_changed_or_incomplete_on_disk_is_found() {
    let kit = sold(ExpiryPolicy::ClientRefund).kits.remove(0);
    let before = Sold::new(factory(2)).kits[0].txs.len();
    for index in before..kit.txs.len() {
        let mut without = kit.clone();
        without.txs.remove(index);
        without.verify().unwrap_err();
    }
    type Change = fn(&mut ExitKit);
    let changes: [Change; 13] = [
        |k| _ = k.sales.pop(),
        |k| k.sales.clear(),
        |k| k.sales.swap(0, 1),
        |k| k.sales[0].bought.capacity -= Amount::from_sat(1),
        |k| k.sales[0].bought.position = 1,
        |k| k.sales[2].bought.channel_key = k.channel_key,
        |k| k.sales[2].bought.leaf_id = k.leaf_id,
        |k| k.sales[2].bought.leaf_id = k.sales[0].bought.leaf_id,
        |k| k.stock_payouts.push(k.payout_script.clone()),
        // What a transaction is said to be.
        |k| {
            k.txs
                .iter_mut()
                .for_each(|tx| swap_kind(tx, TxKind::Poison, TxKind::Timeout))
        },
        |k| k.txs.last_mut().unwrap().outputs[0].clients = 1..2,
        |k| k.txs.last_mut().unwrap().timelock.delay = Some(Blocks(1)),
        |k| k.txs.extend_from_within(k.txs.len() - 1..),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = kit.clone();
        change(&mut changed);
        assert!(changed.verify().is_err(), "{number}");
    }
}

#[test]
fn payout_scripts_that_are_changed_on_disk_are_found() {
    let params = params(2, ExpiryPolicy::LspReclaim);
    let sold = Sold::new(TestFactory::new(3, params, 4).unwrap());
    let kit = &sold.kits[1];
    assert_eq!(kit.stock_payouts.len(), 2);
    type Change = fn(&mut ExitKit);
    let changes: [Change; 3] = [
        |k| k.stock_payouts.swap(0, 1),
        |k| _ = k.stock_payouts.pop(),
        |k| k.stock_payouts.push(k.payout_script.clone()),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = kit.clone();
        change(&mut changed);
        assert!(changed.verify().is_err(), "{number}");
    }
    // A kit that was made before sales were has none: it is good, and sells nothing.
    let mut old = kit.clone();
    old.stock_payouts.clear();
    old.verify().unwrap();
    assert_eq!(Stock::of_kit(&old).unwrap_err(), StockError::NoPayouts);
}

fn swap_kind(tx: &mut crate::kit::KitTx, from: TxKind, to: TxKind) {
    if tx.kind == from {
        tx.kind = to;
    }
}

#[test]
fn a_sale_with_a_wrong_signature_is_no_kit() {
    let sold = Sold::new(factory(2));
    let factory = &sold.signed.factory;
    let txs = sold
        .stock
        .draft(&factory.sale(&sold.stock, 0, 100_000, &[]))
        .unwrap();
    let good = factory.sign_sale(&txs);
    let channel = factory.sign_sold_channel(&txs, 0).unwrap();
    let kit = &sold.kits[0];
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] = good[(index + 1) % good.len()];
        let error = kit.with_sale(&txs, &bad, Some(&channel)).unwrap_err();
        assert!(
            matches!(error, KitError::BadSignature { .. }),
            "{index}: {error}"
        );
    }
    let mut bad = channel;
    bad.lsp = bad.client;
    let error = kit.with_sale(&txs, &good, Some(&bad)).unwrap_err();
    assert!(matches!(error, KitError::BadSignature { .. }));
    for (signatures, channel) in [(&good[1..], Some(&channel)), (&good[..], None)] {
        let error = kit.with_sale(&txs, signatures, channel).unwrap_err();
        assert!(matches!(error, KitError::Count { .. }));
    }
    assert!(sold.kits[1].with_sale(&txs, &good, Some(&channel)).is_err());
}

#[test]
fn a_plan_counts_the_sales_that_lead_to_a_channel() {
    let sold = sold(ExpiryPolicy::ClientRefund);
    let [buyer, mate] = sold.kits.as_slice() else {
        panic!("two clients")
    };
    let chain = |kit| {
        let steps = ExitPlan::new(kit).steps.into_iter();
        steps.filter(|step| step.kind == TxKind::StockChain).count()
    };
    // The mate has nothing in the third sale.
    assert_eq!((chain(buyer), chain(mate)), (3, 2));
    let coverage = ExitPlan::new(buyer).coverage;
    let fee = deduction(&buyer.params, 2).to_sat();
    assert_eq!(coverage.sold, sat(130_000));
    assert_eq!(coverage.channel, sat(200_000));
    assert_eq!(coverage.stock, sat((400_000 - 190_000 - fee) / 2));
    let coverage = ExitPlan::new(mate).coverage;
    assert_eq!(coverage.sold, sat(60_000));
    // The poison of the sale it does not publish.
    let end = mate.stock_end().unwrap();
    assert_eq!(
        (end.kind, end.timelock.delay),
        (TxKind::Poison, Some(Blocks(216)))
    );
    assert_eq!(coverage.stock, sat((210_000 - fee) / 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(48)))]

    /// I8 and section 1's limits, for whatever can be sold; and the purposes, that the guard will
    /// tell apart.
    #[test]
    fn value_is_conserved_and_everything_relays(
        k in 1u8..=4,
        feerate in 1u64..60,
        sales in proptest::collection::vec((0u32..4, 1u64..400_000, proptest::option::of(10_000u64..30_000)), 1..5),
    ) {
        let mut params = params(k, ExpiryPolicy::ClientRefund);
        params.timeout_feerate = feerate;
        let factory = TestFactory::new(5, params, usize::from(k) * 2).unwrap();
        let mut stock = factory.stock(0);
        let clients = stock.clients();
        for (buyer, asked, bonus) in sales {
            let buyer = buyer % clients.end;
            let mate = (buyer + 1) % clients.end;
            let bonus: Vec<_> = bonus.filter(|_| mate != buyer).map(|sat| (mate, sat)).into_iter().collect();
            let least = least_channel(stock.params()).to_sat();
            if bonus.iter().any(|(_, sat)| *sat < least) {
                continue;
            }
            let given = sat(bonus.iter().map(|(_, sat)| sat).sum());
            if stock.capacity_for(sat(asked), given).is_err() {
                continue;
            }
            let before = stock.clone();
            let txs = stock.push(factory.sale(&before, buyer, asked, &bonus)).unwrap();
            let (params, expiry) = (before.params(), before.expiry());
            prop_assert_eq!(classify(&txs.chain, params, expiry), Ok(Purpose::Next));
            prop_assert_eq!(txs.chain.output_sum(), before.amount());
            prop_assert!(stock.amount() == Amount::ZERO || stock.amount() >= least_stock(params, clients.end));
            for timeout in txs.timeout.iter().chain(&txs.channel_timeouts) {
                prop_assert_eq!(classify(timeout, params, expiry), Ok(Purpose::Timeout));
            }
            prop_assert_eq!(txs.poisons.len(), usize::from(txs.sale.number));
            for (m, poison) in txs.poisons.iter().enumerate() {
                prop_assert_eq!(classify(poison, params, expiry), Ok(Purpose::SalePoison(txs.sale.number)));
                let payouts = poison.outputs.iter().filter(|o| o.role == OutputRole::Payout);
                prop_assert!(payouts.clone().all(|o| o.txout.value >= MIN_OUTPUT));
                let fee = deduction(params, payouts.count() as u64);
                let anchor = poison.outputs.last().unwrap().txout.value;
                let spent = poison.spends.txout.value;
                prop_assert_eq!(poison.output_sum() - anchor + fee, spent);
                // Whoever bought gets its channels in full, if what is left bears the fee.
                for position in clients.clone() {
                    let bought = stock.sold_to(position, &stock.sales()[m..]).to_sat();
                    let borne = if stock.amount() > Amount::ZERO { 0 } else { fee.to_sat() };
                    prop_assert!(paid(poison, position) + borne >= bought);
                }
            }
        }
    }
}
