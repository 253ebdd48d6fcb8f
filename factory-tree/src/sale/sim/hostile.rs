//! An LSP that lies: for each rule an offer, a request or a result that breaks exactly it, and is
//! refused for exactly it.

use super::*;
use crate::sale::rules::SaleRule;
use crate::units::{Blocks, Height};

/// Who is lied to.
const BUYER: u32 = 1;
const MATE: u32 = 0;

/// A sale to [`BUYER`] with a bonus to [`MATE`].
fn honest(world: &World) -> Sale {
    world
        .factory
        .sale(&world.stock(), BUYER, 30_000, &[(MATE, 10_000)])
}

/// The rule for which `to` refuses, if it does: what it is sent is changed by `lie`, what it
/// agreed to by `other`.
fn refused(to: u32, lie: Lie, other: Other) -> Option<String> {
    let mut world = World::new(2);
    world.lie = Some((to, lie, other));
    let sale = honest(&world);
    let outcome = world.attempt(sale);
    let refused = world.wallets[&to].refused.first();
    // Who refuses has signed nothing new, and is not blamed.
    assert!(world.blamed.is_empty());
    match refused {
        Some(DeclineReason::Refused { rule, .. }) => Some(rule.clone()),
        Some(other) => panic!("{other:?}"),
        None => {
            assert_eq!(outcome, SellerOutcome::Sold);
            None
        }
    }
}

fn sale(message: &mut ToCoSigner, change: impl Fn(&mut Sale)) {
    if let ToCoSigner::Offer(offer) = message {
        change(&mut offer.sale);
    }
}

const SAME: Lie = |_| {};
const AGREED: Other = |_| {};

#[test]
fn the_truth_is_signed() {
    assert_eq!(refused(BUYER, SAME, AGREED), None);
    assert_eq!(refused(MATE, SAME, AGREED), None);
}

#[test]
fn each_rule_of_an_offer_is_checked() {
    use SaleRule as R;
    let table: &[(R, u32, Lie, Other)] = &[
        (R::Stock, MATE, |m| sale(m, |s| s.stock.vout += 1), AGREED),
        (R::Stock, MATE, |m| sale(m, |s| s.id.0[0] ^= 1), AGREED),
        (R::Number, MATE, |m| sale(m, |s| s.number = 2), AGREED),
        (R::Deadline, MATE, SAME, |a| a.tip = BIRTH.plus(Blocks(1))),
        (
            R::Deadline,
            BUYER,
            |m| {
                if let ToCoSigner::Offer(offer) = m {
                    offer.until = Height(u32::MAX);
                }
            },
            |a| a.tip = BIRTH.plus(Blocks(4320 + 432 + 1)),
        ),
        (
            R::Members,
            MATE,
            |m| sale(m, |s| s.bonus[0].position = 2),
            AGREED,
        ),
        (
            R::Members,
            MATE,
            |m| sale(m, |s| s.bonus[0].position = 1),
            AGREED,
        ),
        (
            R::Members,
            MATE,
            |m| sale(m, |s| core::mem::swap(&mut s.bonus[0], &mut s.bought)),
            |a| {
                a.role = Role::Mate {
                    least_bonus: Amount::ZERO,
                }
            },
        ),
        (
            R::Amount,
            MATE,
            |m| sale(m, |s| s.bonus[0].capacity = Amount::from_sat(9_999)),
            AGREED,
        ),
        (
            R::Amount,
            BUYER,
            |m| sale(m, |s| s.bought.capacity = Amount::from_sat(400_001)),
            AGREED,
        ),
        (
            R::Remaining,
            BUYER,
            |m| sale(m, |s| s.bought.capacity = Amount::from_sat(389_999)),
            AGREED,
        ),
        (
            R::Keys,
            BUYER,
            |m| sale(m, |s| s.bought.channel_key = s.bought.lsp_channel_key),
            AGREED,
        ),
        (
            R::Keys,
            MATE,
            |m| sale(m, |s| s.bonus[0].channel_key = s.bought.channel_key),
            AGREED,
        ),
        (R::Keys, MATE, SAME, |a| a.place = None),
        (
            R::LeafId,
            BUYER,
            |m| sale(m, |s| s.bought.leaf_id.0[0] ^= 1),
            AGREED,
        ),
        (R::LeafId, BUYER, SAME, |a| a.place_used = true),
        (
            R::Capacity,
            BUYER,
            |m| sale(m, |s| s.bought.capacity -= Amount::from_sat(1)),
            ordered,
        ),
        (
            R::Capacity,
            BUYER,
            |m| sale(m, |s| s.bought.capacity += Amount::from_sat(1)),
            ordered,
        ),
        (R::Bonus, MATE, SAME, |a| {
            a.role = Role::Mate {
                least_bonus: Amount::from_sat(10_001),
            };
        }),
        (
            R::Bonus,
            MATE,
            |m| sale(m, |s| s.bonus.clear()),
            |a| {
                a.role = Role::Mate {
                    least_bonus: Amount::from_sat(1),
                };
            },
        ),
    ];
    for (number, (rule, to, lie, other)) in table.iter().enumerate() {
        let found = refused(*to, *lie, *other);
        assert_eq!(found.as_deref(), Some(rule.name()), "{number}");
    }
}

fn ordered(agreed: &mut Agreed) {
    agreed.role = Role::Buyer {
        ordered: Amount::from_sat(30_000),
    };
}

#[test]
fn a_used_leaf_id_or_key_of_the_own_kit_is_found() {
    for (rule, change) in [
        (
            SaleRule::Keys,
            (|s, k| s.channel_key = k.channel_key) as fn(&mut SoldChannel, &ExitKit),
        ),
        (SaleRule::LeafId, |s, k| s.leaf_id = k.leaf_id),
    ] {
        let world = World::new(2);
        let kit = world.wallets[&BUYER].kit();
        let mut sale = honest(&world);
        change(&mut sale.bought, &kit);
        let mut agreed = world.agreed(BUYER, &sale);
        agreed.place = Some(Place {
            leaf_id: sale.bought.leaf_id,
            channel_key: sale.bought.channel_key,
        });
        let offer = offer_of(sale);
        let refusal = super::super::rules::check_offer(&kit, &offer, &agreed).unwrap_err();
        assert_eq!(refusal.rule, rule);
    }
}

fn offer_of(sale: Sale) -> Offer {
    let round = SaleRound {
        sale: sale.id,
        attempt: Attempt(1),
    };
    Offer {
        round,
        sale,
        until: BIRTH,
    }
}

#[test]
fn what_is_not_covered_needs_consent() {
    let world = World::new(2);
    let kit = world.wallets[&BUYER].kit();
    let path = crate::exit::ExitPlan::new(&kit).coverage.path;
    let spare = (path - kit.capacity).to_sat();
    let check = |amount, consent| {
        let sale = world.factory.sale(&world.stock(), BUYER, amount, &[]);
        let mut agreed = world.agreed(BUYER, &sale);
        let ordered = Amount::from_sat(amount);
        (agreed.role, agreed.consent) = (Role::Buyer { ordered }, consent);
        let checked = super::super::rules::check_offer(&kit, &offer_of(sale), &agreed);
        checked.err().map(|refusal| refusal.rule)
    };
    assert_eq!(check(spare, false), None);
    assert_eq!(check(spare + 1, false), Some(SaleRule::Coverage));
    assert_eq!(check(spare + 1, true), None);
}

#[test]
fn a_bonus_that_is_not_covered_needs_consent() {
    let world = World::new(2);
    let kit = world.wallets[&MATE].kit();
    let path = crate::exit::ExitPlan::new(&kit).coverage.path;
    let spare = (path - kit.capacity).to_sat();
    let check = |bonus: &[(u32, u64)], consent| {
        let sale = world.factory.sale(&world.stock(), BUYER, 30_000, bonus);
        let mut agreed = world.agreed(MATE, &sale);
        agreed.consent = consent;
        let checked = super::super::rules::check_offer(&kit, &offer_of(sale), &agreed);
        checked.err().map(|refusal| refusal.rule)
    };
    assert_eq!(check(&[], false), None);
    assert_eq!(check(&[(MATE, 10_000)], false), None);
    assert_eq!(check(&[(MATE, spare + 1)], false), Some(SaleRule::Coverage));
    assert_eq!(check(&[(MATE, spare + 1)], true), None);
}

#[test]
fn a_stock_that_is_sold_out_or_not_ours_is_refused() {
    let mut world = World::new(2);
    let all = world.factory.sale(&world.stock(), BUYER, 400_000, &[]);
    world.sell(&all);
    let kit = world.wallets[&BUYER].kit();
    let mut again = all;
    again.number = 2;
    let agreed = world.agreed(BUYER, &again);
    let check = |sale: &Sale| {
        let checked = super::super::rules::check_offer(&kit, &offer_of(sale.clone()), &agreed);
        checked.unwrap_err().rule
    };
    assert_eq!(check(&again), SaleRule::Amount);
    again.stock = world.factory.stock(2).outpoint();
    assert_eq!(check(&again), SaleRule::Stock);
}

fn sign(message: &mut ToCoSigner, change: impl Fn(&mut Sign)) {
    if let ToCoSigner::Sign(sign) = message {
        change(sign);
    }
}

#[test]
fn each_rule_of_signing_is_checked() {
    use SaleRule as R;
    let table: &[(R, u32, Lie)] = &[
        (R::Nonces, BUYER, |m| sign(m, |s| _ = s.nonces.pop())),
        (R::Nonces, BUYER, |m| sign(m, |s| _ = s.nonces[0].pop())),
        (R::Nonces, BUYER, |m| sign(m, |s| s.nonces.swap(1, 2))),
        (R::Nonces, MATE, |m| sign(m, |s| s.nonces[1].swap(0, 1))),
        (R::BuyerFirst, MATE, |m| sign(m, |s| s.buyer = None)),
        (R::BuyerFirst, MATE, |m| {
            sign(m, |s| s.buyer = Some(Vec::new()))
        }),
        (R::BuyerFirst, MATE, |m| {
            sign(m, |s| {
                s.buyer.as_mut().unwrap()[2] = PartialSignature::from_bytes(&[7; 32]).unwrap()
            });
        }),
        (R::BuyerFirst, MATE, |m| {
            sign(m, |s| {
                let buyer = s.buyer.as_mut().unwrap();
                buyer.push(buyer[0]);
            });
        }),
        // Other nonces of the buyer's than it signed with.
        (R::BuyerFirst, MATE, |m| sign(m, |s| s.nonces[2].swap(0, 1))),
    ];
    for (number, (rule, to, lie)) in table.iter().enumerate() {
        let found = refused(*to, *lie, AGREED);
        assert_eq!(found.as_deref(), Some(rule.name()), "{number}");
    }
}

/// What reaches a client in place of the finished signatures.
fn finals(message: &mut ToCoSigner, change: impl Fn(&mut Finals)) {
    if let ToCoSigner::Finals(finals) = message {
        change(finals);
    }
}

#[test]
fn a_mate_that_is_lied_to_about_the_buyer_records_nothing() {
    let mut world = World::new(2);
    let lie: Lie = |m| sign(m, |s| s.buyer = None);
    world.lie = Some((MATE, lie, AGREED));
    let sale = honest(&world);
    assert_ne!(world.attempt(sale), SellerOutcome::Sold);
    assert!(world.wallets[&MATE].signed.is_empty());
    assert!(world.wallets[&MATE].pending.is_none());
    assert!(!world.wallets[&BUYER].signed.is_empty());
}

#[test]
fn finals_that_are_not_good_are_not_kept() {
    let table: &[Lie] = &[
        |m| finals(m, |f| _ = f.signatures.pop()),
        |m| finals(m, |f| f.signatures.swap(0, 1)),
        |m| finals(m, |f| f.signatures.swap(1, 2)),
        |m| finals(m, |f| f.channel_signature = None),
        |m| {
            finals(m, |f| {
                f.channel_signature = ecdsa::Signature::from_compact(&[5; 64]).ok()
            })
        },
    ];
    for (number, lie) in table.iter().enumerate() {
        let mut world = World::new(2);
        world.lie = Some((BUYER, *lie, AGREED));
        let sale = honest(&world);
        let before = world.wallets[&BUYER].kit.clone();
        world.attempts_end = true;
        world.attempt(sale.clone());
        let wallet = &world.wallets[&BUYER];
        assert_eq!(wallet.kit, before, "{number}");
        let Some(DeclineReason::Refused { rule, .. }) = wallet.refused.first() else {
            panic!("{number}: not refused")
        };
        assert_eq!(rule, SaleRule::Signatures.name(), "{number}");
        assert!(!world.acked.contains(&BUYER));
        // The true ones are still accepted.
        world.lie = None;
        let client = world.id(BUYER);
        world.seller_input(SellerInput::Connected(client));
        while let Some(mail) = world.mail.pop_front() {
            world.deliver(mail);
        }
        assert_eq!(world.wallets[&BUYER].kit().sales, [sale]);
        assert!(world.acked.contains(&BUYER));
    }
}

#[test]
fn a_kit_that_cannot_be_rehearsed_from_disk_is_not_acknowledged() {
    let mut world = World::new(2);
    world.broken_disk = Some(BUYER);
    world.attempts_end = true;
    let sale = honest(&world);
    world.attempt(sale);
    let Some(DeclineReason::Refused { rule, .. }) = world.wallets[&BUYER].refused.first() else {
        panic!("not refused")
    };
    assert_eq!(rule, SaleRule::Rehearsal.name());
    assert!(!world.acked.contains(&BUYER));
}

#[test]
fn another_request_for_the_same_nonces_is_never_signed() {
    let mut world = World::new(2);
    let sale = honest(&world);
    world.attempt += 1;
    let setup = world.setup(world.stock(), sale);
    let step = Seller::start(setup, Zeroizing::new([3; 32])).unwrap();
    world.seller = Some(step.state);
    world.seller_effects(step.effects);
    // Until the buyer has signed.
    let mut asked = None;
    while world.wallets[&BUYER].signed.is_empty() {
        let mail = world.mail.pop_front().unwrap();
        if let Mail::ToClient(BUYER, ToCoSigner::Sign(sign)) = &mail {
            asked = Some(sign.clone());
        }
        world.deliver(mail);
    }
    let first = world.wallets[&BUYER].signed.clone();
    world.mail.clear();
    // The same message gets the same answer, another gets none.
    let same = asked.unwrap();
    world.tell(BUYER, ToCoSigner::Sign(same.clone()));
    assert!(matches!(
        world.mail.pop_front(),
        Some(Mail::ToSeller(BUYER, ToSeller::Partials(_)))
    ));
    let mut other = same;
    other.nonces[0].swap(0, 1);
    world.tell(BUYER, ToCoSigner::Sign(other));
    assert!(world.mail.is_empty());
    assert_eq!(world.wallets[&BUYER].signed, first);
}

#[test]
fn messages_out_of_turn_get_a_typed_error() {
    use crate::ceremony::coordinator::RefuseReason;
    let world = World::new(2);
    let setup = world.setup(world.stock(), honest(&world));
    let round = setup.round;
    let seller = Seller::start(setup, Zeroizing::new([3; 32])).unwrap().state;
    let client = world.id(BUYER);
    let mut seller = Some(seller);
    let mut refused = |client, message| {
        let input = SellerInput::Message { client, message };
        let step = seller.take().unwrap().step(input);
        seller = Some(step.state);
        match step.effects.into_iter().next() {
            Some(SellerEffect::Refuse { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    let partials = Partials {
        round,
        partials: Vec::new(),
        channel_signature: None,
    };
    let partials = ToSeller::Partials(Box::new(partials));
    assert_eq!(refused(client, partials), RefuseReason::OutOfTurn);
    assert_eq!(
        refused(client, ToSeller::Ack(round)),
        RefuseReason::OutOfTurn
    );
    let stranger = ClientId([9; 33]);
    assert_eq!(
        refused(stranger, ToSeller::Ack(round)),
        RefuseReason::NotInvited
    );
    let mut stale = round;
    stale.attempt.0 += 1;
    assert_eq!(
        refused(client, ToSeller::Ack(stale)),
        RefuseReason::UnknownRound
    );
    let join = Join {
        round,
        nonces: Vec::new(),
    };
    let malformed = refused(client, ToSeller::Join(Box::new(join)));
    assert!(matches!(malformed, RefuseReason::Malformed(_)));
}

#[test]
fn a_sale_needs_an_account_for_every_client() {
    let world = World::new(2);
    let mut setup = world.setup(world.stock(), honest(&world));
    setup.clients.pop();
    let error = Seller::start(setup, Zeroizing::new([3; 32])).unwrap_err();
    assert_eq!(error, StockError::Accounts);
}

#[test]
fn finals_are_accepted_even_from_an_lsp_that_said_it_failed() {
    let mut world = World::new(2);
    let lie: Lie = |m| {
        if let ToCoSigner::Finals(finals) = m {
            let (round, reason) = (finals.round, FailReason::Cancelled);
            *m = ToCoSigner::Failed { round, reason };
        }
    };
    world.lie = Some((BUYER, lie, AGREED));
    world.attempts_end = true;
    let sale = honest(&world);
    world.attempt(sale.clone());
    assert!(world.wallets[&BUYER].kit().sales.is_empty());
    world.lie = None;
    let client = world.id(BUYER);
    world.seller_input(SellerInput::Connected(client));
    while let Some(mail) = world.mail.pop_front() {
        world.deliver(mail);
    }
    assert_eq!(world.wallets[&BUYER].kit().sales, [sale]);
}
