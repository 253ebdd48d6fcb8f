//! Purchases and sales on real stores, against the coordinator's machine: through refusals and crashes.

mod bonus;
mod shop;
mod top_up;
mod wallet;
mod world;

use bitcoin::Amount;
use bitcoin::hashes::Hash;
use channel_host::{LeafKeys, Msat};
use factory_tree::ceremony::message::DeclineReason;
use factory_tree::ids::{Attempt, ClientId, FactoryId, SaleId};
use factory_tree::sale::message::{ToCoSigner, ToSeller};
use factory_tree::sale::order::{PurchaseState, Quote, QuoteError, SignedQuote, method};
use factory_tree::sale::seller::SellerOutcome;
use factory_tree::units::{Blocks, Height};

use super::api::quote_from;
use super::{CoverageView, LimitView, QuoteRefusal, SaleError, UpgradeOptions};
use crate::error::Error;
use crate::lightning::{ChannelState, ChannelView, LightningBalance};
use crate::migration::calendar;
use crate::store::{
    BlockFacts, ExitRow, Goal, Handover, PaymentEnd, PaymentState, Progress, PurchaseTerms,
};
use shop::{FEE, SALE, coordinator};
use world::{ASKED, World, sale_error};

const YES: UpgradeOptions = UpgradeOptions {
    consent: true,
    max_fee: None,
};

/// What is said about a quote that differs like this.
async fn refusal(world: &World, twist: impl FnOnce(&mut Quote)) -> QuoteRefusal {
    let mut quote = world.quote();
    twist(&mut quote);
    let signed = world.signed(&quote);
    match sale_error(world.buy_with(&signed, YES, Msat(FEE)).await) {
        SaleError::Quote(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_quote_is_judged_by_the_own_kit() {
    let world = World::new().await;
    let stock = refusal(&world, |quote| quote.stock.vout += 1).await;
    assert_eq!(stock, QuoteRefusal::Stock);
    let number = refusal(&world, |quote| quote.number = 2).await;
    assert_eq!(number, QuoteRefusal::Number { asked: 2, next: 1 });
    let less = refusal(&world, |quote| quote.capacity -= Amount::ONE_SAT).await;
    assert!(matches!(less, QuoteRefusal::Capacity { .. }), "{less:?}");
    let much = refusal(&world, |quote| quote.asked = Amount::ONE_BTC).await;
    assert!(matches!(much, QuoteRefusal::Unsellable(_)), "{much:?}");
    let late = refusal(&world, |quote| quote.sign_until = world.kit.birth).await;
    assert!(matches!(late, QuoteRefusal::Late { .. }), "{late:?}");
    let other = refusal(&world, |quote| quote.client = ClientId([2; 33])).await;
    assert_eq!(other, QuoteRefusal::Client(ClientId([2; 33])));
    let old = refusal(&world, |quote| quote.valid_until = 1).await;
    assert_eq!(old, QuoteRefusal::Expired(1));
    // The dying days have begun, whatever the coordinator says.
    world.tip(calendar(&world.kit).dying_from);
    let dying = refusal(&world, |quote| quote.sign_until = Height(u32::MAX)).await;
    assert!(matches!(dying, QuoteRefusal::Late { .. }), "{dying:?}");
    assert_eq!(world.buyer.purchase().await, None);
    assert!(world.shop.counter().asked.is_empty());
}

#[tokio::test]
async fn a_quote_is_the_coordinators_and_what_was_asked_for() {
    let world = World::new().await;
    let signed = world.signed(&world.quote());
    let factory = world.kit.factory_id;
    let ask = async |factory, amount| {
        let (inner, shop) = (&world.buyer.client.inner, &*world.shop);
        quote_from(inner, shop, factory, Amount::from_sat(amount)).await
    };
    let quoted = ask(Some(factory), ASKED).await.unwrap();
    assert_eq!(quoted.quote, world.quote());
    assert!(quoted.needs_consent, "{quoted:?}");
    assert_eq!(quoted.after.held_sat, 200_000 + ASKED);
    let refusal = |found| match found {
        Err(Error::Sale(SaleError::Quote(refusal))) => refusal,
        other => panic!("{other:?}"),
    };
    let more = refusal(ask(None, ASKED + 1).await);
    assert_eq!(more, QuoteRefusal::Amount(Amount::from_sat(ASKED)));
    // Somebody else's signature, and one on another text.
    let somebody = LeafKeys::new(&[2; 32]).sign(&SignedQuote::message(&signed.text));
    let plain = coordinator().sign(&signed.text);
    for signature in [somebody, plain, String::new()] {
        world.shop.counter().quote = Some(SignedQuote {
            text: signed.text.clone(),
            signature,
        });
        let wrong = refusal(ask(None, ASKED).await);
        assert_eq!(wrong, QuoteRefusal::Signature(coordinator().node_id()));
    }
    let text = "{}".to_owned();
    let signature = coordinator().sign(&SignedQuote::message(&text));
    world.shop.counter().quote = Some(SignedQuote { text, signature });
    let none = refusal(ask(None, ASKED).await);
    assert!(
        matches!(none, QuoteRefusal::Text(QuoteError { .. })),
        "{none:?}"
    );
    // For another factory than the one that was asked about.
    let mut other = world.quote();
    other.factory = FactoryId([3; 32]);
    world.signed(&other);
    let wrong = refusal(ask(Some(factory), ASKED).await);
    assert_eq!(wrong, QuoteRefusal::Factory(other.factory));
}

#[tokio::test]
async fn nothing_is_bought_that_costs_or_risks_too_much() {
    let world = World::new().await;
    let signed = world.signed(&world.quote());
    let dear = UpgradeOptions {
        max_fee: Some(Msat(FEE - 1)),
        ..YES
    };
    let error = sale_error(world.buy_with(&signed, dear, Msat(FEE)).await);
    assert!(matches!(error, SaleError::Fee { .. }), "{error:?}");
    let error = sale_error(world.buy_with(&signed, YES, Msat(FEE - 1)).await);
    assert!(matches!(error, SaleError::Balance { .. }), "{error:?}");
    let error = sale_error(world.buy(false).await);
    assert!(matches!(error, SaleError::Uncovered { .. }), "{error:?}");
    assert_eq!(world.buyer.purchase().await, None);
}

#[tokio::test]
async fn the_same_quote_is_one_purchase() {
    let world = World::new().await;
    let first = world.buy(true).await.unwrap();
    assert_eq!(first.state, PurchaseState::Paid);
    let again = world.buy(true).await.unwrap();
    assert_eq!((again.state, again.leaf), (first.state, first.leaf));
    let counter = world.shop.counter();
    assert_eq!((counter.paid, counter.orders.len()), (1, 1));
}

#[tokio::test]
async fn an_interrupted_purchase_goes_on_with_the_place_it_drew() {
    let world = World::new().await;
    world.shop.counter().away = true;
    let begun = world.buy(true).await.unwrap();
    assert_eq!((begun.state, begun.invoice), (PurchaseState::Ordered, None));
    world.shop.counter().away = false;
    world.bring().await.unwrap();
    let on = world.buyer.purchase().await.unwrap();
    assert_eq!((on.state, on.leaf), (PurchaseState::Paid, begun.leaf));
    // Killed after the payment was stored as begun, and before it was.
    let orders = world.shop.counter().orders.clone();
    assert_eq!(orders[0].leaf_id, begun.leaf);
    world.bring().await.unwrap();
    assert_eq!(world.shop.counter().paid, 1);
}

#[tokio::test]
async fn a_wrong_invoice_is_not_paid() {
    for wrong in 0..3 {
        let world = World::new().await;
        let quote = world.signed(&world.quote());
        {
            let invoice = &mut world.shop.counter().invoice;
            match wrong {
                0 => invoice.amount = Some(Msat(FEE + 1)),
                1 => invoice.payee = LeafKeys::new(&[2; 32]).node_id(),
                _ => invoice.description_hash = Some([0; 32]),
            }
        }
        let error = sale_error(world.buy_with(&quote, YES, Msat(FEE)).await);
        assert!(matches!(error, SaleError::Answer(_)), "{error:?}");
        assert_eq!(world.shop.counter().paid, 0);
        let purchase = world.buyer.purchase().await.unwrap();
        assert_eq!(purchase.state, PurchaseState::Cancelled);
    }
}

#[tokio::test]
async fn what_is_refused_is_over_and_may_be_bought_again() {
    let world = World::new().await;
    world.shop.counter().refuses = true;
    assert!(matches!(world.buy(true).await, Err(Error::Asked(_))));
    let refused = world.buyer.purchase().await.unwrap();
    assert_eq!(refused.state, PurchaseState::Cancelled);
    assert!(refused.note.contains("reserved"), "{}", refused.note);
    {
        let mut counter = world.shop.counter();
        (counter.refuses, counter.poor) = (false, true);
    }
    assert!(matches!(
        world.buy(true).await,
        Err(Error::PaymentRefused(_))
    ));
    world.shop.counter().poor = false;
    world.shop.counter().state = PurchaseState::Ordered;
    // The place stays: somebody may have signed for it.
    let again = world.buy(true).await.unwrap();
    assert_eq!(
        (again.state, again.leaf),
        (PurchaseState::Paid, refused.leaf)
    );
}

/// Why the buyer declines an offer.
async fn declines(world: &mut World) -> DeclineReason {
    world.mail.clear();
    world.start(1);
    let (client, offer) = world.mail.pop_front().unwrap();
    assert_eq!(client, world.buyer.client.node_id());
    world.buyer.tell(offer).await;
    match world.buyer.said() {
        Some(ToSeller::Decline { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// What the buyer answers to an offer.
async fn answer(world: &mut World) -> String {
    match declines(world).await {
        DeclineReason::Refused { rule, .. } => rule,
        DeclineReason::Unable(text) | DeclineReason::Terms(text) => text,
    }
}

#[tokio::test]
async fn only_what_is_paid_for_is_signed() {
    // Nothing was ordered.
    let mut world = World::new().await;
    assert_eq!(answer(&mut world).await, "sale_members");
    // Ordered, and not paid.
    let mut world = World::new().await;
    world.shop.counter().away = true;
    world.buy(true).await.unwrap();
    assert_eq!(answer(&mut world).await, "sale_members");
    // Paid, and it came back.
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    let why = "no way".to_owned();
    world.end_payment(PaymentEnd::Failed { why }).await;
    assert_eq!(answer(&mut world).await, "sale_members");
}

#[tokio::test]
async fn an_offer_is_for_our_stock_and_in_time() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    let until = world.quote().sign_until;
    world.tip(until.plus(Blocks(1)));
    assert_eq!(answer(&mut world).await, "sale_deadline");
    world.tip(world.kit.expiry);
    assert_eq!(answer(&mut world).await, "sale_deadline");
    world.start(1);
    let Some((_, ToCoSigner::Offer(mut offer))) = world.mail.pop_front() else {
        panic!("no offer");
    };
    offer.sale.stock.vout += 1;
    world.buyer.tell(ToCoSigner::Offer(offer)).await;
    let Some(ToSeller::Decline { reason, .. }) = world.buyer.said() else {
        panic!("signed for another stock");
    };
    assert!(matches!(reason, DeclineReason::Refused { rule, .. } if rule == "sale_stock"));
}

#[tokio::test]
async fn nothing_is_signed_in_a_factory_that_is_left_or_given_away() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    let factory = world.kit.factory_id;
    let exit = ExitRow {
        factory,
        goal: Goal::Leave,
        feerate: None,
        max_fee: None,
        requested: world.kit.birth,
        progress: Progress::default(),
    };
    world.buyer.store().request_exit(&exit).await.unwrap();
    // It stays so, and the coordinator need not ask again; of the other it need not be so.
    let left = declines(&mut world).await;
    assert!(matches!(left, DeclineReason::Terms(why) if why.contains("being left")));
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    let begun = Some(Handover::Begun);
    let factory = world.kit.factory_id;
    world
        .buyer
        .store()
        .set_handover(factory, begun)
        .await
        .unwrap();
    let given = declines(&mut world).await;
    assert!(matches!(given, DeclineReason::Unable(why) if why.contains("handing_over")));
}

#[tokio::test]
async fn a_leaf_id_that_served_is_not_signed_for() {
    let mut world = World::new().await;
    let leaf_id = world.buy(true).await.unwrap().leaf;
    let store = world.buyer.store();
    let mut join = store.joins().await.unwrap().remove(0);
    let other = crate::keys::tests::fresh().1.join_public([9; 16]);
    (join.join_nonce, join.leaf_id) = ([9; 16], leaf_id);
    (join.factory_key, join.channel_key) = (other.factory_key, other.channel_key);
    join.payout_script = other.payout_script;
    store.record_join(&join).await.unwrap();
    assert_eq!(answer(&mut world).await, "sale_leaf_id");
}

/// The same coins on other terms, whether what was signed first is in the kit or not: the user is to know. The same terms once more are no offence.
#[tokio::test]
async fn who_sells_twice_what_was_signed_is_remembered() {
    for complete in [false, true] {
        let mut world = World::new().await;
        world.buy(true).await.unwrap();
        world.start(1);
        let Some((_, ToCoSigner::Offer(mut offer))) = world.mail.front().cloned() else {
            panic!("no offer");
        };
        match complete {
            true => world.run().await,
            false => {
                let finals = |message: &ToCoSigner| matches!(message, ToCoSigner::Finals(_));
                world.run_until(finals).await;
            }
        }
        let kit = world.mate.kit(&world).await;
        assert_eq!(!kit.sales.is_empty(), complete);
        offer.round.attempt = Attempt(2);
        world.mate.tell(ToCoSigner::Offer(offer.clone())).await;
        let store = world.mate.store().clone();
        assert!(store.refused_sales().await.unwrap().is_empty());
        offer.round.sale = SaleId([9; 16]);
        offer.sale.id = SaleId([9; 16]);
        // The chain is not followed yet: it is the node's height that counts.
        world.mate.client.inner.set_height(0);
        world.mate.tell(ToCoSigner::Offer(offer)).await;
        let refused = store.refused_sales().await.unwrap();
        assert_eq!(refused[0].height, Height(100));
        let factories: Vec<FactoryId> = refused.iter().map(|row| row.factory).collect();
        assert_eq!(factories, [world.kit.factory_id]);
    }
}

/// Whoever has the keys has the sale as well.
#[tokio::test]
async fn the_kit_of_a_factory_that_was_given_away_stays_as_it_is() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world
        .run_until(|message| matches!(message, ToCoSigner::Finals(_)))
        .await;
    let (factory, sent) = (world.kit.factory_id, Some(Handover::Sent));
    world
        .buyer
        .store()
        .set_handover(factory, sent)
        .await
        .unwrap();
    let (_, finals) = world.mail.pop_front().unwrap();
    world.buyer.tell(finals.clone()).await;
    world.buyer.crash();
    world.buyer.tell(finals).await;
    assert_eq!(world.buyer.said(), None);
    assert!(world.buyer.kit(&world).await.sales.is_empty());
}

/// The user's decision to leave.
fn leaves(world: &World) -> ExitRow {
    ExitRow {
        factory: world.kit.factory_id,
        goal: Goal::Leave,
        feerate: None,
        max_fee: None,
        requested: world.kit.birth,
        progress: Progress::default(),
    }
}

/// The user leaves between the offer and the signature.
#[tokio::test]
async fn the_factory_is_looked_at_again_before_anything_is_signed() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world
        .run_until(|message| matches!(message, ToCoSigner::Sign(_)))
        .await;
    let exit = leaves(&world);
    world.buyer.store().request_exit(&exit).await.unwrap();
    let (_, sign) = world.mail.pop_front().unwrap();
    world.buyer.tell(sign).await;
    let said = world.buyer.said();
    assert!(matches!(said, Some(ToSeller::Decline { .. })), "{said:?}");
    assert!(
        world
            .buyer
            .store()
            .pending_sales()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_sale_ends_in_both_kits_and_the_purchase_settles() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world.run().await;
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
    let sale = world.terms();
    for wallet in [&world.buyer, &world.mate] {
        let kit = wallet.kit(&world).await;
        assert_eq!(kit.sales, std::slice::from_ref(&sale));
        // What is in memory is the new kit as well.
        let kits = &wallet.client.inner.kits;
        assert_eq!(*kits.get(kit.factory_id).await.unwrap(), kit);
        assert!(wallet.store().pending_sales().await.unwrap().is_empty());
    }
    // The node was told of the one new channel: before anything was signed, and before that it is in the kit.
    let kit = world.buyer.kit(&world).await;
    let expected = world.buyer.ground.expected.lock().unwrap().clone();
    assert_eq!(expected.len(), 2);
    assert_eq!(expected[0].id.0, sale.bought.leaf_id.0);
    assert_eq!(expected[0].spends, expected[1].spends);
    let outpoint = kit.channels()[1].outpoint;
    assert_eq!(expected[0].transaction.compute_txid(), outpoint.txid);
    assert!(world.mate.ground.expected.lock().unwrap().is_empty());
    assert_eq!(world.acked.len(), 2);
    let state = async |world: &World| world.buyer.purchase().await.unwrap().state;
    assert_eq!(state(&world).await, PurchaseState::Sold);
    let late = world.cancel().await;
    assert!(matches!(late, Err(Error::Sale(SaleError::TooLate { .. }))));
    world.bring().await.unwrap();
    assert_eq!(state(&world).await, PurchaseState::Sold);
    world
        .end_payment(PaymentEnd::Succeeded { fee: Msat(0) })
        .await;
    world.bring().await.unwrap();
    assert_eq!(state(&world).await, PurchaseState::Settled);
    // The next quote is from what is left.
    let limit = world.buyer.client.limit().await.unwrap();
    assert_eq!(
        (limit.stocks[0].sales, limit.limit_sat),
        (1, 200_000 + ASKED)
    );
    assert!(limit.stocks[0].needs_consent);
}

/// What the user reads before a purchase is what every view says after it.
#[tokio::test]
async fn what_a_quote_promises_for_afterwards_is_what_is_covered_then() {
    let mut world = World::new().await;
    world.signed(&world.quote());
    let (inner, shop) = (&world.buyer.client.inner, &*world.shop);
    let quoted = quote_from(inner, shop, None, Amount::from_sat(ASKED)).await;
    let after = quoted.unwrap().after;
    // Once the leaf is published, who stays away has its channel's timeout, and of the stock nothing is sure.
    assert_eq!(after.away_sat, 200_000);
    assert!(after.awake_sat > after.away_sat, "{after:?}");
    world.buy(true).await.unwrap();
    world.start(1);
    world.run().await;
    let limit = world.buyer.client.limit().await.unwrap();
    assert_eq!((limit.coverage, limit.stocks[0].coverage), (after, after));
    let account = world.buyer.client.account().await.unwrap();
    assert_eq!(
        (account.coverage_sat, account.coverage_awake_sat),
        (after.away_sat, after.awake_sat)
    );
    let quote = crate::client::quote(
        &world.buyer.client.inner.store,
        world.kit.factory_id,
        &[],
        None,
    );
    assert_eq!(quote.await.unwrap().coverage_sat, after.away_sat);
}

/// What was opened just in time, or came from the chain, is part of the one limit, and covered by nothing.
#[tokio::test]
async fn what_is_outside_of_factories_is_part_of_the_limit() {
    let world = World::new().await;
    let client = &world.buyer.client.inner;
    let open = ChannelView {
        factory: None,
        ..ChannelView::sample(world.kit.factory_id, 20_000_000, 30_000_000)
    };
    let closed = ChannelView {
        state: ChannelState::Closed,
        ..open.clone()
    };
    let of = async |channels: &[ChannelView]| {
        let limit = super::limit(&client.store, &client.kits, channels);
        limit.await.unwrap()
    };
    let (without, with) = (of(&[]).await, of(&[open, closed]).await);
    let counted = |limit: &LimitView| (limit.limit_sat, limit.receivable_msat);
    assert_eq!(counted(&without), (200_000, 0));
    assert_eq!(counted(&with), (250_000, 30_000_000));
    let [only] = with.channels.as_slice() else {
        panic!("{:?}", with.channels);
    };
    assert_eq!((only.factory, only.capacity_sat), (None, 50_000));
    assert_eq!(
        (with.coverage, &with.stocks),
        (without.coverage, &without.stocks)
    );
}

/// What a process said that is gone can be received by nobody, whichever view shows it.
#[tokio::test]
async fn with_no_process_running_nothing_can_be_received() {
    let world = World::new().await;
    let (inner, factory) = (&world.buyer.client.inner, world.kit.factory_id);
    let inside = ChannelView {
        leaf: world.kit.leaf_id.to_string(),
        outpoint: world.kit.channels()[0].outpoint,
        ..ChannelView::sample(factory, 0, 200_000_000)
    };
    let outside = ChannelView {
        factory: None,
        ..ChannelView::sample(factory, 0, 30_000_000)
    };
    for (leaf, view) in [(1, inside), (2, outside)] {
        let leaf = channel_host::LeafId([leaf; 16]);
        inner.store.set_channel(leaf, &view).await.unwrap();
    }
    for (running, due) in [(true, 230_000_000), (false, 0)] {
        let channels = crate::lightning::stored(&inner.store, running).await;
        let channels = channels.unwrap();
        let limit = super::limit(&inner.store, &inner.kits, &channels).await;
        let account = crate::client::account(&inner.store, &channels, None).await;
        let sums = [
            limit.unwrap().receivable_msat,
            account.unwrap().inbound_msat,
            LightningBalance::of(&channels).lightning_receivable_msat,
        ];
        assert_eq!(sums, [due; 3], "{running}");
    }
}

/// What somebody left is not sold from, and what is over holds nothing: neither is shown as if it were of use.
#[tokio::test]
async fn what_is_over_is_no_part_of_the_limit() {
    let world = World::new().await;
    let (kit, client) = (&world.kit, &world.buyer.client.inner);
    let of = async |channels: &[ChannelView]| {
        let limit = super::limit(&client.store, &client.kits, channels);
        limit.await.unwrap()
    };
    let taken_by = async |spender| {
        let facts = BlockFacts {
            spends: vec![(kit.funding(), spender)],
            ..BlockFacts::default()
        };
        let height = kit.birth.plus(Blocks(1));
        client.store.connect_block(height, &facts).await.unwrap();
    };
    let closed = ChannelView {
        state: ChannelState::Closed,
        outpoint: kit.channels()[0].outpoint,
        ..ChannelView::sample(kit.factory_id, 0, 200_000_000)
    };
    assert_eq!(of(&[]).await.stocks.len(), 1);
    assert_eq!(of(&[closed]).await, LimitView::default());
    taken_by(kit.path().next().unwrap().txid()).await;
    let published = of(&[]).await;
    assert_eq!((published.limit_sat, published.stocks.len()), (200_000, 0));
    taken_by(bitcoin::Txid::from_byte_array([8; 32])).await;
    assert_eq!(of(&[]).await, LimitView::default());
    let account = world.buyer.client.account().await.unwrap();
    assert_eq!((account.limit_sat, account.coverage_sat), (0, 0));
}

/// From the decision on, before anything is on the chain: no view counts what is left as of use, and what the exit does is told.
#[tokio::test]
async fn what_is_being_left_is_of_no_use_in_any_view() {
    let world = World::new().await;
    let (client, store) = (&world.buyer.client, world.buyer.store());
    let view = async || {
        let limit = super::limit(&client.inner.store, &client.inner.kits, &[]).await;
        let factories = client.factories().await.unwrap();
        let inside = client.balance().await.unwrap().in_factories_sat;
        let account = client.account().await.unwrap();
        let sums = [factories[0].capacity_sat, inside, account.limit_sat];
        (sums, limit.unwrap(), account)
    };
    let (sums, limit, account) = view().await;
    assert_eq!(sums, [200_000; 3]);
    assert_eq!(limit.stocks.len(), 1);
    assert!(account.leaving.is_empty() && account.window.is_some());
    let exit = leaves(&world);
    store.request_exit(&exit).await.unwrap();
    let progress = Progress {
        text: "the state has to wait".to_owned(),
        until: Some(Height(9)),
        done: None,
    };
    store.set_progress(exit.factory, &progress).await.unwrap();
    let (sums, limit, account) = view().await;
    assert_eq!(sums, [0; 3]);
    // It is covered until it is out, in all views.
    let covered = CoverageView {
        away_sat: account.coverage_sat,
        awake_sat: account.coverage_awake_sat,
        held_sat: 0,
    };
    assert!(covered.away_sat > 0);
    let nothing = LimitView {
        coverage: covered,
        ..LimitView::default()
    };
    assert_eq!(limit, nothing);
    assert_eq!(account.window, None);
    let words: Vec<&str> = account
        .leaving
        .iter()
        .map(|left| left.words.as_str())
        .collect();
    assert_eq!(words, ["the state has to wait until height 9"]);
    let done = Progress {
        done: Some(Height(10)),
        ..progress
    };
    store.set_progress(exit.factory, &done).await.unwrap();
    assert!(view().await.2.leaving.is_empty());
}

/// Timeouts and poisons pay for several channels at once: beside one that is closed, nothing is promised for the others, and each purchase is asked about.
#[tokio::test]
async fn beside_a_closed_channel_nothing_is_covered_and_consent_is_needed() {
    let mut world = World::new().await;
    let closed = |kit: &factory_tree::kit::ExitKit, at: usize| ChannelView {
        state: ChannelState::Closed,
        outpoint: kit.channels()[at].outpoint,
        ..ChannelView::sample(kit.factory_id, 0, 0)
    };
    world.buy(true).await.unwrap();
    world.start(1);
    world.run().await;
    let kit = world.buyer.kit(&world).await;
    let client = &world.buyer.client.inner;
    for (at, held_sat) in [(0, ASKED), (1, 200_000)] {
        let channels = [closed(&kit, at)];
        let limit = super::limit(&client.store, &client.kits, &channels);
        let limit = limit.await.unwrap();
        let nothing = CoverageView {
            held_sat,
            ..CoverageView::default()
        };
        assert_eq!((limit.coverage, limit.limit_sat), (nothing, held_sat));
        assert_eq!(limit.stocks[0].coverage, nothing);
        assert!(limit.stocks[0].needs_consent);
    }
    // What is quoted is judged by the same.
    let world = World::new().await;
    let (store, leaf) = (world.buyer.store(), channel_host::LeafId([1; 16]));
    let closed = closed(&world.kit, 0);
    store.set_channel(leaf, &closed).await.unwrap();
    world.signed(&world.quote());
    let (inner, shop) = (&world.buyer.client.inner, &*world.shop);
    let quoted = quote_from(inner, shop, None, Amount::from_sat(ASKED)).await;
    let quoted = quoted.unwrap();
    let after = (quoted.after.away_sat, quoted.after.awake_sat);
    assert_eq!((after, quoted.after.held_sat), ((0, 0), ASKED));
    assert!(quoted.needs_consent);
}

/// The coordinator closed it, and it is not on the chain yet.
#[tokio::test]
async fn what_lies_in_a_closed_channel_is_what_leaving_brings() {
    let world = World::new().await;
    let store = &world.buyer.client.inner.store;
    let closed = ChannelView {
        state: ChannelState::Closed,
        outpoint: world.kit.channels()[0].outpoint,
        closing_sat: 100_000,
        pending: 1,
        ..ChannelView::sample(world.kit.factory_id, 0, 0)
    };
    let leaf = channel_host::LeafId([1; 16]);
    store.set_channel(leaf, &closed).await.unwrap();
    let quote = crate::client::quote(store, world.kit.factory_id, &[], None);
    let quote = quote.await.unwrap();
    assert_eq!((quote.lightning_msat, quote.pending), (100_000_000, 1));
    // Its commitment is on the chain: on its way is all that `balance` counts.
    let spent = ChannelView {
        state: ChannelState::Spent,
        ..closed
    };
    store.set_channel(leaf, &spent).await.unwrap();
    let quote = crate::client::quote(store, world.kit.factory_id, &[], None);
    let closing = LightningBalance::of(&[spent]).lightning_closing_sat;
    assert_eq!(quote.await.unwrap().lightning_msat, closing * 1_000);
}

/// Whoever did not accept the risk does not sign, whatever the coordinator offers.
#[tokio::test]
async fn without_consent_nothing_uncovered_is_signed() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    let store = world.buyer.store();
    let mut row = store.purchase(SALE).await.unwrap().unwrap();
    row.consent = false;
    let renewed = store.set_purchase(SALE, PurchaseState::Cancelled, "", None);
    renewed.await.unwrap();
    let renewed = store.renew_purchase(SALE, &row.quote, PurchaseTerms::default());
    assert!(renewed.await.unwrap());
    let (hash, invoice) = (row.hash.unwrap(), row.invoice.unwrap());
    store.set_invoice(SALE, hash, &invoice).await.unwrap();
    let paid = PurchaseState::Paid;
    store.set_purchase(SALE, paid, "", None).await.unwrap();
    assert_eq!(answer(&mut world).await, "sale_coverage");
}

#[tokio::test]
async fn finals_are_taken_after_a_restart() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world
        .run_until(|message| matches!(message, ToCoSigner::Finals(_)))
        .await;
    assert!(world.sold.is_some());
    for wallet in [&mut world.buyer, &mut world.mate] {
        assert_eq!(wallet.store().pending_sales().await.unwrap().len(), 1);
        wallet.crash();
    }
    world.run().await;
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
    assert_eq!(world.buyer.kit(&world).await.sales.len(), 1);
    assert_eq!(world.mate.kit(&world).await.sales.len(), 1);
}

/// Killed after the kit was stored, or the acknowledgement was lost.
#[tokio::test]
async fn a_sale_that_is_kept_is_acknowledged_again() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world.run().await;
    world.buyer.crash();
    world.mate.crash();
    (world.outcome, world.mail) = (None, Default::default());
    world.resume();
    world.run().await;
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
    // Each time the node is told first.
    assert_eq!(world.buyer.ground.expected.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn nothing_is_signed_for_a_channel_that_cannot_be_opened() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    *world.buyer.ground.down.lock().unwrap() = true;
    world.start(1);
    world.run().await;
    let Some(SellerOutcome::Failed { reason, bound, .. }) = world.outcome.take() else {
        panic!("it did not fail")
    };
    assert_eq!(
        (reason, bound),
        (factory_tree::sale::message::FailReason::Declined, false)
    );
    *world.buyer.ground.down.lock().unwrap() = false;
    world.start(2);
    world.run().await;
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
}

#[tokio::test]
async fn a_channel_is_expected_before_it_is_acknowledged() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    while world.sold.is_none() {
        assert!(world.deliver().await);
    }
    *world.buyer.ground.down.lock().unwrap() = true;
    world.run().await;
    let buyer = world.buyer.client.node_id();
    assert!(world.outcome.is_none() && !world.acked.contains(&buyer));
    world.buyer.look().await;
    assert_eq!(world.buyer.said(), None);
    *world.buyer.ground.down.lock().unwrap() = false;
    world.buyer.look().await;
    world.collect();
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
    assert!(world.acked.contains(&buyer));
}

/// Secret nonces are nowhere but in memory: the attempt is left at once, and the same terms are signed in the next.
#[tokio::test]
async fn a_restart_before_the_signature_costs_an_attempt() {
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world
        .run_until(|message| matches!(message, ToCoSigner::Sign(_)))
        .await;
    world.buyer.crash();
    world.run().await;
    let failed = world.outcome.clone();
    assert!(
        matches!(failed, Some(SellerOutcome::Failed { .. })),
        "{failed:?}"
    );
    world.start(2);
    world.run().await;
    assert_eq!(world.outcome, Some(SellerOutcome::Sold));
}

#[tokio::test]
async fn a_payment_that_came_back_ends_the_purchase_unless_it_is_sold() {
    let back = || PaymentEnd::Failed {
        why: "sent back".to_owned(),
    };
    let world = World::new().await;
    world.buy(true).await.unwrap();
    world.end_payment(back()).await;
    // Until the coordinator says so, something may come of it.
    for state in [PurchaseState::Paid, PurchaseState::Sold] {
        world.shop.counter().state = state;
        world.bring().await.unwrap();
        let purchase = world.buyer.purchase().await.unwrap();
        assert_eq!(purchase.state, PurchaseState::Paid);
    }
    world.shop.counter().state = PurchaseState::Cancelled;
    world.bring().await.unwrap();
    let purchase = world.buyer.purchase().await.unwrap();
    assert_eq!(purchase.state, PurchaseState::Cancelled);
    assert_eq!(world.buyer.payment().await, Some(PaymentState::Failed));
    // Sold all the same: it is over when the channel stands.
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world.run().await;
    world.end_payment(back()).await;
    world.bring().await.unwrap();
    let purchase = world.buyer.purchase().await.unwrap();
    assert_eq!(purchase.state, PurchaseState::Sold);
    // It never came for its channel.
    let (store, factory) = (world.buyer.store(), world.kit.factory_id);
    store
        .set_closed(factory, Some(world.kit.expiry))
        .await
        .unwrap();
    world.bring().await.unwrap();
    let purchase = world.buyer.purchase().await.unwrap();
    assert_eq!(purchase.state, PurchaseState::Settled);
    assert!(purchase.note.contains("over"), "{}", purchase.note);
    let mut world = World::new().await;
    world.buy(true).await.unwrap();
    world.start(1);
    world.run().await;
    world.end_payment(back()).await;
    world.shop.counter().stands = true;
    world.bring().await.unwrap();
    let purchase = world.buyer.purchase().await.unwrap();
    assert_eq!(purchase.state, PurchaseState::Settled);
}

#[tokio::test]
async fn a_purchase_is_cancelled_while_that_is_possible() {
    // Not paid: at once, whether the coordinator is there or not.
    let world = World::new().await;
    world.shop.counter().away = true;
    world.buy(true).await.unwrap();
    world.cancel().await.unwrap();
    let purchase = world.buyer.purchase().await.unwrap();
    assert_eq!(purchase.state, PurchaseState::Cancelled);
    world.bring().await.unwrap();
    assert_eq!(world.shop.counter().paid, 0);
    // Paid: when the coordinator agrees, and the payment has come back.
    let world = World::new().await;
    world.buy(true).await.unwrap();
    world.shop.counter().state = PurchaseState::Paid;
    let late = world.cancel().await;
    assert!(matches!(late, Err(Error::Sale(SaleError::TooLate { .. }))));
    world.shop.counter().state = PurchaseState::Ordered;
    world.cancel().await.unwrap();
    let purchase = world.buyer.purchase().await.unwrap();
    assert_eq!(purchase.state, PurchaseState::Paid);
    let last = world.shop.counter().asked.last().unwrap().0.clone();
    assert_eq!(last, method::CANCEL);
}
