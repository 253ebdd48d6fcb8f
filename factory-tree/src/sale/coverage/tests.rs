//! Coverage in numbers, and held against a chain on which everybody else works against the client.

use std::collections::BTreeMap;

use bitcoin::hashes::Hash;
use bitcoin::{Network, OutPoint, Txid};
use proptest::prelude::*;

use super::*;
use crate::exit::{ChainView, Goal, Spender, next};
use crate::expiry::deduction;
use crate::kit::KitTx;
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::sale::tests::factory;
use crate::testing::{CAPACITY, Sold, TestFactory, cases};
use crate::tx::TxKind;
use crate::units::{Blocks, Height};

fn sat(amount: u64) -> Amount {
    Amount::from_sat(amount)
}

/// Timeouts on the path that pay more than can be held.
fn above_all() -> exit::Coverage {
    exit::Coverage {
        path: Amount::MAX_MONEY,
        channel: CAPACITY,
        stock: Amount::ZERO,
        sold: Amount::ZERO,
    }
}

#[test]
fn who_bought_nothing_is_sure_of_its_channel() {
    let kit = &Sold::new(factory(2)).kits[1];
    let coverage = Coverage::of_kit(kit).unwrap();
    let fee = deduction(&kit.params, 4).to_sat();
    let path = ExitPlan::new(kit).coverage.path;
    assert_eq!(path, sat(400_000 - fee / 4));
    // The stock's unsold share may be the LSP's.
    assert_eq!((coverage.away, coverage.awake), (CAPACITY, CAPACITY));
    assert_eq!(coverage.held, CAPACITY);
    assert!(!coverage.needs_consent());
}

#[test]
fn a_kit_without_a_stock_is_covered_by_its_channel() {
    let mut params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    params.stock_share_ppm = 0;
    let kit = TestFactory::new(2, params, 2).unwrap().unsigned_kit(0);
    let coverage = Coverage::of_kit(&kit).unwrap();
    let net = CAPACITY - deduction(&kit.params, 2) / 2;
    assert_eq!((coverage.away, coverage.awake), (net, net));
}

/// The example of attacks.md A9, with the poisons of the second sale.
#[test]
fn a_later_purchase_is_covered_by_the_newest_poisons() {
    let mut sold = Sold::new(factory(2));
    sold.sell(0, 80_000, &[]);
    sold.sell(1, 280_000, &[]);
    let fee = deduction(sold.stock.params(), 2).to_sat();
    let rest = (400_000 - 360_000 - fee) / 2;
    let stock = &sold.stock;
    let of = |position| stock.coverage(position, CAPACITY, above_all()).unwrap();
    // The least is where everything is published, and the rest is the LSP's.
    assert_eq!((of(1).awake, of(1).held), (sat(480_000), sat(480_000)));
    // On each consumed stock its poison pays the purchase and half of the rest.
    let poisons = stock.poisons(&stock.sales, stock.tip()).unwrap();
    for poison in &poisons {
        assert_eq!(payout(poison, 1), sat(280_000 + rest));
    }
    assert_eq!(payout(&poisons[0], 0), sat(80_000 + rest));
    assert_eq!(payout(&poisons[1], 0), sat(rest));
    // Had the poison of the first sale stayed the newest, half of what it left.
    let first = stock.poisons(&stock.sales[..1], stock.left.get(1)).unwrap();
    assert_eq!(payout(&first[0], 1), sat((320_000 - fee) / 2));
    // Who stays away has no purchases.
    let coverage = Coverage::of_kit(&sold.kits[1]).unwrap();
    assert_eq!(coverage.away, CAPACITY);
    let path = ExitPlan::new(&sold.kits[1]).coverage.path;
    assert_eq!(coverage.awake, path);
    assert!(coverage.needs_consent());
}

#[test]
fn consent_is_needed_from_what_is_not_covered_on() {
    let factory = factory(2);
    let stock = factory.stock(0);
    let timeouts = ExitPlan::new(&factory.unsigned_kit(0)).coverage;
    let spare = (timeouts.path - CAPACITY).to_sat();
    for (amount, needed) in [(spare, false), (spare + 1, true)] {
        let sale = factory.sale(&stock, 0, amount, &[]);
        let after = stock.coverage_after(&sale, 0, CAPACITY, timeouts).unwrap();
        assert_eq!(after.needs_consent(), needed, "{amount}");
    }
    // Without anything left to bear the poison's fee the purchase does.
    let sale = factory.sale(&stock, 0, 390_000, &[(1, 10_000)]);
    let after = stock.coverage_after(&sale, 0, CAPACITY, above_all());
    let fee = deduction(stock.params(), 2).to_sat();
    assert_eq!(after.unwrap().awake, sat(200_000 + 390_000 - fee / 2));
}

#[test]
fn nothing_covers_who_stays_away_where_the_lsp_reclaims() {
    let params = crate::sale::tests::params(2, ExpiryPolicy::LspReclaim);
    let kit = TestFactory::new(2, params, 4).unwrap().unsigned_kit(0);
    let coverage = Coverage::of_kit(&kit).unwrap();
    assert_eq!(
        (coverage.away, coverage.awake),
        (Amount::ZERO, Amount::ZERO)
    );
    assert!(coverage.needs_consent());
}

/// A chain on which the LSP has published the leaf and the first sales, and nothing more; a mate
/// publishes whatever poison or timeout is final, and the LSP takes what it can.
struct Hostile<'a> {
    kit: &'a ExitKit,
    params: FactoryParams,
    view: ChainView,
    /// The client's, waiting for the next block.
    mempool: Vec<usize>,
}

impl<'a> Hostile<'a> {
    fn new(kit: &'a ExitKit, leaf: Height, published: usize, apart: u32) -> Self {
        let mut view = ChainView {
            tip: leaf,
            ..ChainView::default()
        };
        view.confirmed.insert(kit.funding().txid, kit.birth);
        view.confirmed.extend(kit.path().map(|tx| (tx.txid, leaf)));
        let mut height = leaf;
        for tx in kit.chain().take(published) {
            height = height.plus(Blocks(apart));
            view.confirmed.insert(tx.txid, height);
        }
        view.tip = height;
        Self {
            params: kit.params.clone(),
            kit,
            view,
            mempool: Vec::new(),
        }
    }

    /// Height of what `tx` spends, if that is in the chain and unspent, and `tx` is final in the
    /// next block.
    fn is_final(&self, tx: &KitTx) -> bool {
        let block = self.view.tip.plus(Blocks(1));
        let Some(parent) = self.unspent_since(tx.spends.outpoint) else {
            return false;
        };
        let delay = tx.timelock.delay.unwrap_or_default();
        let height = tx.timelock.height.unwrap_or_default();
        parent.plus(delay) <= block && height < block
    }

    fn unspent_since(&self, outpoint: OutPoint) -> Option<Height> {
        let spends = self
            .kit
            .txs
            .iter()
            .filter(|tx| tx.spends.outpoint == outpoint);
        let spent = spends
            .clone()
            .any(|tx| self.view.confirmed.contains_key(&tx.txid));
        let foreign = self.view.spent.contains_key(&outpoint);
        let since = self.view.confirmed.get(&outpoint.txid);
        since.copied().filter(|_| !spent && !foreign)
    }

    /// One block: the others come first in it.
    fn block(&mut self) {
        let block = self.view.tip.plus(Blocks(1));
        let on_stocks = self.kit.txs.iter().filter(|tx| {
            tx.spends.kind == crate::factory::SpentKind::Stock && tx.kind != TxKind::StockChain
        });
        // The oldest poison first: what it pays differs most.
        let theirs: Vec<&KitTx> = on_stocks.filter(|tx| !self.ours(tx)).collect();
        for tx in theirs {
            if self.is_final(tx) {
                self.view.confirmed.insert(tx.txid, block);
            }
        }
        for index in std::mem::take(&mut self.mempool) {
            let tx = &self.kit.txs[index];
            if self.is_final(tx) {
                self.view.confirmed.insert(tx.txid, block);
            }
        }
        self.reclaim(block);
        self.view.tip = block;
    }

    /// Only what the client itself would publish is left to it.
    fn ours(&self, tx: &KitTx) -> bool {
        self.kit.publishes(tx)
    }

    /// `L & CSV(q)`.
    fn reclaim(&mut self, block: Height) {
        let stocks: BTreeMap<OutPoint, ()> = self
            .kit
            .txs
            .iter()
            .filter(|tx| tx.spends.kind == crate::factory::SpentKind::Stock)
            .map(|tx| (tx.spends.outpoint, ()))
            .collect();
        for outpoint in stocks.into_keys() {
            let since = self.unspent_since(outpoint);
            if since.is_some_and(|since| since.plus(Blocks(self.params.q)) <= block) {
                let txid = Txid::from_byte_array([0xee; 32]);
                let height = block;
                self.view.spent.insert(outpoint, Spender { txid, height });
            }
        }
    }

    fn look(&mut self, goal: Goal) {
        self.mempool
            .extend(next(self.kit, goal, &self.view).publish);
    }

    /// What the client has been paid at the end, looking every 60 blocks.
    fn run(mut self, goal: Goal, first_look: u32) -> Amount {
        let start = self.view.tip;
        let settled = self.params.q + 120;
        loop {
            let passed = self.view.tip.since(start).0;
            if passed % 60 == first_look % 60 {
                self.look(goal);
            }
            self.block();
            if passed > 5 * settled {
                break;
            }
        }
        self.view.tip = self.view.tip.max(self.kit.expiry.plus(Blocks(1)));
        for _ in 0..3 {
            self.look(goal);
            self.block();
        }
        next(self.kit, goal, &self.view).paid()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(16)))]

    /// Wherever the LSP stops, a client that looks every 60 blocks gets its awake coverage: its
    /// newest poison comes before any that pays as if its purchase had not been.
    #[test]
    fn wherever_the_lsp_stops_the_awake_client_gets_its_coverage(
        k in 2u8..=4,
        purchases in proptest::collection::vec((0u32..4, 10_000u64..160_000), 1..5),
        first_look in 0u32..60,
        apart in 1u32..40,
        leave in any::<bool>(),
    ) {
        let mut sold = Sold::new(factory(k));
        for (buyer, amount) in purchases {
            if sold.stock.capacity_for(sat(amount), Amount::ZERO).is_ok() {
                sold.sell(buyer % u32::from(k), amount, &[]);
            }
        }
        let goal = if leave { Goal::Leave } else { Goal::TimeoutOnly };
        for kit in &sold.kits {
            let coverage = Coverage::of_kit(kit).unwrap();
            for published in 0..=kit.sales.len() {
                let leaf = kit.birth.plus(Blocks(300));
                let paid = Hostile::new(kit, leaf, published, apart).run(goal, first_look);
                prop_assert!(
                    paid >= coverage.awake,
                    "client {} of {k}, stopped after {published} of {}: {paid} of {coverage:?}",
                    kit.position, kit.sales.len(),
                );
            }
        }
    }
}
