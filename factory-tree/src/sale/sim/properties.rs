//! What holds however a sale goes.

use super::*;
use crate::testing::cases;

fn sat(amount: u64) -> Amount {
    Amount::from_sat(amount)
}

/// What must hold at the end: every client that kept the last sale has the LSP's chain in a kit
/// that verifies, and everything sold adds up.
fn check(world: &World) {
    let stock = world.stock();
    for (position, wallet) in &world.wallets {
        let kit = wallet.kit();
        kit.verify().unwrap();
        assert_eq!(kit.sales, stock.sales(), "client {position}");
    }
    let sold = stock.sales().iter().flat_map(Sale::channels);
    let sold: u64 = sold.map(|channel| channel.capacity.to_sat()).sum();
    let all = world.factory.stock(0).amount();
    assert_eq!(sat(sold) + stock.amount(), all, "I8");
    poisons_in_order(world);
}

/// An old split never beats a later sale: of two poisons of one stock the later sale's is final
/// first, and all are before the LSP's own branch and the timeout.
fn poisons_in_order(world: &World) {
    let mut all: BTreeMap<OutPoint, Vec<(u8, u32)>> = BTreeMap::new();
    let mut stock = world.factory.stock(0);
    for sold in world.sold() {
        let txs = stock.push(sold.sale.clone()).unwrap();
        for poison in &txs.poisons {
            let delay = poison.timelock.delay.unwrap().0;
            let of = all.entry(poison.spends.outpoint).or_default();
            of.push((sold.sale.number, delay));
        }
    }
    for poisons in all.values() {
        assert!(
            poisons.is_sorted_by(|a, b| a.0 < b.0 && a.1 > b.1),
            "{poisons:?}"
        );
        let params = stock.params();
        assert!(
            poisons
                .iter()
                .all(|(_, delay)| (1..params.q).contains(delay))
        );
        assert!(params.q < params.stock_timeout_delay);
    }
}

/// What the LSP stored, in order.
fn stored(world: &World) -> Vec<&'static str> {
    let name = |record: &SaleRecord| match record {
        SaleRecord::Bound { .. } => "bound",
        SaleRecord::Chain { .. } => "chain",
        SaleRecord::Sold(_) => "sold",
        SaleRecord::Blamed { .. } => "blamed",
        SaleRecord::Failed { .. } => "failed",
    };
    world.records.iter().map(name).collect()
}

fn next_sale(world: &World, buyer: u32, amount: u64, bonus: &[(u32, u64)]) -> Sale {
    world.factory.sale(&world.stock(), buyer, amount, bonus)
}

#[test]
fn four_sales_in_a_row() {
    for k in 1..=4u8 {
        let mut world = World::new(k);
        for number in 0..4u32 {
            let buyer = number % u32::from(k);
            let mate = (buyer + 1) % u32::from(k);
            let bonus: &[_] = if mate == buyer {
                &[]
            } else {
                &[(mate, 10_000)]
            };
            let sale = next_sale(&world, buyer, 30_000, bonus);
            assert_eq!(world.attempt(sale), SellerOutcome::Sold);
            check(&world);
        }
        assert_eq!(world.acked.len(), 4 * usize::from(k));
        assert!(world.blamed.is_empty());
    }
}

#[test]
fn a_stock_without_timeouts_is_sold_like_any_other() {
    let params = crate::sale::tests::params(2, crate::params::ExpiryPolicy::LspReclaim);
    let mut world = World::of(TestFactory::new(4, params, 4).unwrap());
    for buyer in [0, 1, 0] {
        let sale = next_sale(&world, buyer, 40_000, &[]);
        assert_eq!(world.attempt(sale), SellerOutcome::Sold);
        check(&world);
    }
    // The chain transaction and the poisons of three stocks.
    assert_eq!(world.sold()[2].signatures.len(), 4);
}

#[test]
fn the_buyer_signs_first_and_the_others_see_that() {
    let mut world = World::new(2);
    let sale = next_sale(&world, 1, 30_000, &[]);
    // The buyer lies: its mate is never asked, and has nothing recorded.
    for session in 0..3 {
        world.wallets.get_mut(&1).unwrap().fault = Fault::BadPartial(session);
        let outcome = world.attempt(sale.clone());
        let by = vec![world.id(1)];
        let reason = FailReason::Guilty;
        assert_eq!(
            outcome,
            SellerOutcome::Failed {
                reason,
                by,
                bound: true
            }
        );
        assert!(world.wallets[&0].signed.is_empty());
    }
    assert_eq!(world.blamed, BTreeSet::from([1]));
    let blames = world
        .records
        .iter()
        .filter(|r| matches!(r, SaleRecord::Blamed { .. }));
    assert_eq!(blames.count(), 3);
    world.wallets.get_mut(&1).unwrap().fault = Fault::Honest;
    assert_eq!(world.attempt(sale), SellerOutcome::Sold);
    check(&world);
}

#[test]
fn a_lying_mate_is_named_whichever_session_it_spoils() {
    for session in 0..3 {
        let mut world = World::new(3);
        world.wallets.get_mut(&2).unwrap().fault = Fault::BadPartial(session);
        let sale = next_sale(&world, 1, 30_000, &[]);
        let outcome = world.attempt(sale.clone());
        let by = vec![world.id(2)];
        let reason = FailReason::Guilty;
        assert_eq!(
            outcome,
            SellerOutcome::Failed {
                reason,
                by,
                bound: true
            }
        );
        assert_eq!(world.blamed, BTreeSet::from([2]), "I6");
        // The LSP signs nothing else before the chain transaction is stored.
        let chain: &[_] = if session == 0 { &[] } else { &["chain"] };
        let order = [&["bound"], chain, &["blamed", "failed"]].concat();
        assert_eq!(stored(&world), order);
        world.wallets.get_mut(&2).unwrap().fault = Fault::Honest;
        world.sell(&sale);
        check(&world);
    }
}

#[test]
fn a_bad_signature_on_a_channels_timeout_is_blamed() {
    for liar in [0, 1] {
        let mut world = World::new(2);
        world.wallets.get_mut(&liar).unwrap().fault = Fault::BadChannelSignature;
        let sale = next_sale(&world, 1, 30_000, &[(0, 10_000)]);
        let SellerOutcome::Failed { reason, .. } = world.attempt(sale) else {
            panic!("sold")
        };
        assert_eq!(
            (reason, &world.blamed),
            (FailReason::Guilty, &BTreeSet::from([liar]))
        );
    }
}

#[test]
fn who_is_silent_or_declines_is_named_and_the_terms_stay() {
    let table = [
        (Fault::NeverJoins, FailReason::Silent, false),
        (Fault::Declines, FailReason::Declined, false),
        (Fault::NeverSigns, FailReason::Silent, true),
    ];
    for (fault, reason, bound) in table {
        let mut world = World::new(2);
        world.wallets.get_mut(&0).unwrap().fault = fault;
        let sale = next_sale(&world, 1, 30_000, &[]);
        let by = vec![world.id(0)];
        let failed = SellerOutcome::Failed { reason, by, bound };
        assert_eq!(world.attempt(sale.clone()), failed);
        assert_eq!(world.bound().is_some(), bound);
        assert!(world.blamed.is_empty(), "I6");
        world.wallets.get_mut(&0).unwrap().fault = Fault::Honest;
        world.sell(&sale);
        check(&world);
    }
}

#[test]
fn a_stock_is_not_sold_twice_even_with_a_colluding_mate() {
    let mut world = World::new(2);
    // The buyer signs; its mate, the LSP's friend, breaks it off.
    world.wallets.get_mut(&0).unwrap().fault = Fault::NeverSigns;
    let first = next_sale(&world, 1, 30_000, &[]);
    assert_ne!(world.attempt(first.clone()), SellerOutcome::Sold);
    let before = world.wallets[&1].signed.clone();
    // Now the friend is to buy all of it.
    world.wallets.get_mut(&0).unwrap().fault = Fault::Honest;
    let mut second = next_sale(&world, 0, 400_000, &[]);
    second.id = crate::ids::SaleId([9; 16]);
    // An honest LSP's own machine refuses.
    let setup = world.setup(world.stock(), second.clone());
    let error = Seller::start(setup, Zeroizing::new([1; 32])).unwrap_err();
    assert_eq!(error, StockError::Bound(1));
    world.forgets = true;
    let by = vec![world.id(1)];
    let reason = FailReason::Declined;
    let outcome = world.attempt(second);
    assert_eq!(
        outcome,
        SellerOutcome::Failed {
            reason,
            by,
            bound: true
        }
    );
    assert_eq!(world.wallets[&1].signed, before);
    let Some(DeclineReason::Refused { rule, found }) = world.wallets[&1].refused.last() else {
        panic!("not refused")
    };
    assert_eq!(rule, "double_sign");
    assert!(found.contains("already signed for next"), "{found}");
}

#[test]
fn a_poison_is_not_signed_without_its_sale() {
    // The guard decides in session order, and the chain transaction comes first.
    let stock = factory(2).stock(0);
    let sale = factory(2).sale(&stock, 0, 30_000, &[]);
    let txs = stock.draft(&sale).unwrap();
    let purposes: Vec<_> = txs
        .sessions()
        .map(|tx| crate::purpose::classify(tx, stock.params(), stock.expiry()).unwrap())
        .collect();
    let due = [Purpose::Next, Purpose::Timeout, Purpose::SalePoison(1)];
    assert_eq!(purposes, due);
}

#[test]
fn the_chain_is_stored_before_anything_else_is_complete() {
    let mut world = World::new(2);
    let sale = next_sale(&world, 1, 30_000, &[]);
    assert_eq!(world.attempt(sale.clone()), SellerOutcome::Sold);
    assert_eq!(stored(&world), ["bound", "chain", "sold"]);
    // Until it is, no poison is.
    let mut world = World::new(2);
    world.attempt = 1;
    let setup = world.setup(world.stock(), sale);
    let step = Seller::start(setup, Zeroizing::new([1; 32])).unwrap();
    world.seller = Some(step.state);
    world.seller_effects(step.effects);
    while let Some(mail) = world.mail.pop_front() {
        if matches!(mail, Mail::ChainStored) {
            break;
        }
        world.deliver(mail);
    }
    assert_eq!(world.seller.as_ref().unwrap().phase(), Phase::Completing);
    assert!(world.mail.is_empty() && world.sold().is_empty());
    world.seller_input(SellerInput::Cancel);
    assert_eq!(world.seller.as_ref().unwrap().phase(), Phase::Completing);
    world.seller_input(SellerInput::ChainStored);
    assert_eq!(world.sold().len(), 1);
}

#[test]
fn what_was_sold_transactions_are_signed_for_a_watcher() {
    let mut world = World::new(2);
    let sale = next_sale(&world, 1, 30_000, &[(0, 10_000)]);
    world.sell(&sale);
    let txs = world.factory.stock(0).draft(&sale).unwrap();
    let signed = world.sold()[0].signed(&txs);
    assert_eq!(signed.len(), txs.all().count());
    let kit = world.wallets[&1].kit();
    for (tx, plain) in signed.iter().zip(txs.all()) {
        assert_eq!(tx.compute_txid(), plain.txid);
        let held = kit.txs.iter().find(|held| held.txid == plain.txid);
        // Everything but its mate's channel.
        assert_eq!(held.is_none(), plain.spends.clients == (0..1));
        assert!(held.is_none_or(|held| held.tx == *tx));
    }
}

#[test]
fn what_is_stored_reads_back() {
    let mut world = World::new(2);
    world.wallets.get_mut(&0).unwrap().fault = Fault::BadPartial(0);
    let sale = next_sale(&world, 1, 30_000, &[(0, 10_000)]);
    world.attempt(sale.clone());
    world.wallets.get_mut(&0).unwrap().fault = Fault::Honest;
    world.sell(&sale);
    // Bound, blamed, failed; bound, chain, sold.
    assert_eq!(world.records.len(), 6);
    for record in &world.records {
        let text = serde_json::to_string(record).unwrap();
        assert_eq!(serde_json::from_str::<SaleRecord>(&text).unwrap(), *record);
    }
    for wallet in world.wallets.values() {
        let pending = wallet.pending.as_ref().unwrap();
        let text = serde_json::to_string(pending).unwrap();
        assert_eq!(
            serde_json::from_str::<PendingSale>(&text).unwrap(),
            *pending
        );
    }
}

#[test]
fn secrets_are_not_shown() {
    let world = World::new(2);
    let secrets = world.secrets(0);
    assert_eq!(format!("{secrets:?}"), "Secrets(..)");
    let setup = world.setup(world.stock(), next_sale(&world, 1, 30_000, &[]));
    let step = Seller::start(setup, Zeroizing::new([0xab; 32])).unwrap();
    let shown = format!("{:?}", step.state);
    assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
}

/// Runs a sale in which `party` crashes instead of its effect number `after`; returns whether it
/// came to that.
fn with_crash(world: &mut World, party: Option<u32>, after: usize, sale: &Sale) -> bool {
    world.crash = Some((party, after));
    world.sell(sale);
    let crashed = world.crash.is_none();
    world.crash = None;
    crashed
}

#[test]
fn a_crash_between_any_two_effects_converges() {
    for party in [None, Some(0), Some(1)] {
        let mut crashes = 0;
        for after in 0.. {
            let mut world = World::new(2);
            let sale = next_sale(&world, 1, 30_000, &[(0, 10_000)]);
            let crashed = with_crash(&mut world, party, after, &sale);
            check(&world);
            assert!(world.blamed.is_empty(), "I6");
            if !crashed {
                break;
            }
            crashes += 1;
        }
        assert!(crashes > 5, "{party:?}: {crashes}");
    }
}

/// What happens in one random sale.
#[derive(Clone, Debug)]
struct Plan {
    buyer: u32,
    amount: u64,
    bonus: bool,
    fault: Option<(u32, Fault)>,
    crash: Option<(Option<u32>, usize)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let faults = prop_oneof![
        (0usize..6).prop_map(Fault::BadPartial),
        Just(Fault::BadChannelSignature),
        Just(Fault::NeverJoins),
        Just(Fault::NeverSigns),
        Just(Fault::Declines),
    ];
    let party = proptest::option::of(0u32..4);
    (
        0u32..4,
        10_000u64..150_000,
        any::<bool>(),
        proptest::option::of((0u32..4, faults)),
        proptest::option::of((party, 0usize..20)),
    )
        .prop_map(|(buyer, amount, bonus, fault, crash)| Plan {
            buyer,
            amount,
            bonus,
            fault,
            crash,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]

    /// Several sales deep, with liars, silence and crashes: I3 and I10 are checked as it runs.
    #[test]
    fn sales_converge_and_only_the_guilty_are_blamed(
        k in 1u8..=4,
        plans in proptest::collection::vec(plan(), 1..5),
    ) {
        let mut world = World::new(k);
        let clients = u32::from(k);
        let mut liars = BTreeSet::new();
        for plan in plans {
            let buyer = plan.buyer % clients;
            let mate = (buyer + 1) % clients;
            let bonus: Vec<_> = (plan.bonus && mate != buyer).then_some((mate, 10_000)).into_iter().collect();
            let given = sat(if bonus.is_empty() { 0 } else { 10_000 });
            if world.stock().capacity_for(sat(plan.amount), given).is_err() {
                break;
            }
            let sale = next_sale(&world, buyer, plan.amount, &bonus);
            if let Some((who, fault)) = plan.fault {
                let who = who % clients;
                world.wallets.get_mut(&who).unwrap().fault = fault;
                if matches!(fault, Fault::BadPartial(_) | Fault::BadChannelSignature) {
                    liars.insert(who);
                }
                world.attempt(sale.clone());
                world.wallets.get_mut(&who).unwrap().fault = Fault::Honest;
            }
            if world.stock().next_number() == sale.number {
                let crash = plan.crash.map(|(party, after)| (party.map(|p| p % clients), after));
                world.crash = crash;
                world.sell(&sale);
                world.crash = None;
            }
            check(&world);
        }
        prop_assert!(world.blamed.is_subset(&liars), "I6");
    }
}
