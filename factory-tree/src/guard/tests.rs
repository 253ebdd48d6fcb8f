//! Rule by rule, and invariant I10 over random histories.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use proptest::prelude::*;

use super::*;

fn outpoint(n: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([n; 32]), 0)
}

fn request(kind: SpentKind, purpose: Purpose, message: u8, nonce: u8) -> Request {
    Request {
        outpoint: outpoint(1),
        kind,
        purpose,
        sighash: [message; 32],
        own_nonce: [nonce; 66],
        sum: [nonce.wrapping_add(100); 66],
    }
}

fn signed(kind: SpentKind, purposes: &[Purpose]) -> Vec<SignedRecord> {
    let numbered = (1u8..).zip(purposes);
    numbered
        .map(|(n, purpose)| request(kind, *purpose, n, n).record([n; 32]))
        .collect()
}

fn refusal(existing: &[SignedRecord], request: &Request) -> GuardError {
    match decide(existing, request) {
        Decision::Refuse(error) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_first_sighash_wins() {
    let first = request(SpentKind::Funding, Purpose::Next, 1, 1);
    assert_eq!(decide(&[], &first), Decision::Record);
    let stored = [first.record([9; 32])];
    assert_eq!(decide(&stored, &first), Decision::Stored([9; 32]));
    let again = request(SpentKind::Funding, Purpose::Next, 1, 2);
    assert_eq!(decide(&stored, &again), Decision::FreshSession);
    let other = request(SpentKind::Funding, Purpose::Next, 2, 2);
    let error = refusal(&stored, &other);
    assert!(matches!(error, GuardError::AlreadySigned { .. }), "{error}");
}

#[test]
fn a_nonce_never_signs_in_a_second_session() {
    let first = request(SpentKind::Funding, Purpose::Next, 1, 1);
    let stored = [first.record([9; 32])];
    let other_sum = Request {
        sum: [77; 66],
        ..first
    };
    assert!(matches!(
        refusal(&stored, &other_sum),
        GuardError::NonceReused { .. }
    ));
    let other_purpose = request(SpentKind::Funding, Purpose::Timeout, 2, 1);
    assert!(matches!(
        refusal(&stored, &other_purpose),
        GuardError::NonceReused { .. }
    ));
}

#[test]
fn records_of_other_outpoints_do_not_count() {
    let first = request(SpentKind::Funding, Purpose::Next, 1, 1);
    let stored = [first.record([9; 32])];
    let elsewhere = Request {
        outpoint: outpoint(2),
        sighash: [2; 32],
        own_nonce: [2; 66],
        ..first
    };
    assert_eq!(decide(&stored, &elsewhere), Decision::Record);
}

#[test]
fn each_kind_has_its_purposes() {
    use Purpose::{Close, DwPoison, Next, SalePoison, State, Timeout};
    let all = [Next, Timeout, Close, State(144), SalePoison(1), DwPoison];
    let table = [
        (SpentKind::Funding, vec![Next, Timeout, Close]),
        (SpentKind::Static, vec![Next, Timeout, Close]),
        (SpentKind::State, vec![Next, Timeout, Close]),
        (SpentKind::Kickoff, vec![State(144), Timeout]),
        (
            SpentKind::Stock,
            vec![Next, SalePoison(1), Timeout, DwPoison],
        ),
        (SpentKind::Channel, vec![Timeout, DwPoison]),
        (SpentKind::FirstStage, vec![Timeout]),
    ];
    for (kind, mine) in table {
        for purpose in all {
            let decision = decide(&[], &request(kind, purpose, 1, 1));
            let unknown = matches!(decision, Decision::Refuse(GuardError::NotAllowed { .. }));
            assert_eq!(unknown, !mine.contains(&purpose), "{kind:?} {purpose}");
        }
    }
}

#[test]
fn slots_only_go_down() {
    let stored = signed(SpentKind::Kickoff, &[Purpose::State(288)]);
    for (slot, ok) in [(289, false), (287, true), (144, true), (0, true)] {
        let asked = request(SpentKind::Kickoff, Purpose::State(slot), 50, 50);
        let decision = decide(&stored, &asked);
        assert_eq!(decision == Decision::Record, ok, "{slot}: {decision:?}");
    }
    let stored = signed(
        SpentKind::Kickoff,
        &[Purpose::State(288), Purpose::State(0)],
    );
    let between = request(SpentKind::Kickoff, Purpose::State(144), 50, 50);
    assert!(matches!(
        refusal(&stored, &between),
        GuardError::SlotNotLower { lowest: 0, .. }
    ));
    // An old state may be completed again, but never changed.
    let old = request(SpentKind::Kickoff, Purpose::State(288), 1, 60);
    assert_eq!(decide(&stored, &old), Decision::FreshSession);
}

#[test]
fn close_and_next_exclude_each_other() {
    for (held, asked) in [
        (Purpose::Next, Purpose::Close),
        (Purpose::Close, Purpose::Next),
    ] {
        let stored = signed(SpentKind::Static, &[held]);
        let error = refusal(&stored, &request(SpentKind::Static, asked, 50, 50));
        assert!(matches!(error, GuardError::Excluded { .. }), "{error}");
    }
    let stored = signed(SpentKind::Static, &[Purpose::Timeout]);
    let close = request(SpentKind::Static, Purpose::Close, 50, 50);
    assert_eq!(decide(&stored, &close), Decision::Record);
}

#[test]
fn poison_only_of_what_is_sold_or_superseded() {
    let poison = request(SpentKind::Stock, Purpose::SalePoison(1), 50, 50);
    assert!(matches!(refusal(&[], &poison), GuardError::NotSold { .. }));
    let sold = signed(SpentKind::Stock, &[Purpose::Next]);
    assert_eq!(decide(&sold, &poison), Decision::Record);
    for kind in [SpentKind::Stock, SpentKind::Channel] {
        let poison = request(kind, Purpose::DwPoison, 50, 50);
        let error = refusal(&sold, &poison);
        assert!(matches!(error, GuardError::NotSuperseded { .. }), "{error}");
    }
}

fn purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![
        Just(Purpose::Next),
        Just(Purpose::Timeout),
        Just(Purpose::Close),
        (0u32..4).prop_map(|slot| Purpose::State(slot * 144)),
        (1u8..4).prop_map(Purpose::SalePoison),
        Just(Purpose::DwPoison),
    ]
}

fn kind() -> impl Strategy<Value = SpentKind> {
    prop_oneof![
        Just(SpentKind::Funding),
        Just(SpentKind::Kickoff),
        Just(SpentKind::State),
        Just(SpentKind::Stock),
        Just(SpentKind::Channel),
        Just(SpentKind::FirstStage),
    ]
}

proptest! {
    /// I10: whatever is asked in whatever order, no two messages are signed for one purpose of an
    /// output, no nonce signs two sessions, slots go down, and close and next never meet.
    #[test]
    fn no_two_spends_of_one_purpose_are_ever_signed(
        requests in proptest::collection::vec((0u8..3, purpose(), 0u8..3, 1u8..12, 1u8..3), 1..60),
        kinds in proptest::collection::vec(kind(), 3),
    ) {
        let mut store: Vec<SignedRecord> = Vec::new();
        let mut signed: BTreeMap<(OutPoint, Purpose), Message> = BTreeMap::new();
        let mut sessions: BTreeSet<([u8; 66], [u8; 66], Message)> = BTreeSet::new();
        let mut order: Vec<(OutPoint, Purpose)> = Vec::new();
        for (place, purpose, message, nonce, sum) in requests {
            let request = Request {
                outpoint: outpoint(place),
                kind: kinds[usize::from(place)],
                purpose,
                sighash: [message; 32],
                own_nonce: [nonce + 20 * place; 66],
                sum: [sum; 66],
            };
            let existing: Vec<_> =
                store.iter().filter(|r| r.outpoint == request.outpoint).copied().collect();
            let record = request.record([message; 32]);
            // A nonce of a session that another has replaced in the store: the type system keeps
            // it from coming back, as signing consumes it.
            let forgotten = sessions.iter().any(|(used, ..)| *used == request.own_nonce)
                && store.iter().all(|held| held.own_nonce != request.own_nonce);
            if forgotten {
                continue;
            }
            match decide(&existing, &request) {
                Decision::Record => {
                    store.push(record);
                    order.push((request.outpoint, purpose));
                }
                Decision::FreshSession => {
                    let held = store
                        .iter_mut()
                        .find(|r| (r.outpoint, r.purpose) == (request.outpoint, purpose));
                    *held.unwrap() = record;
                }
                Decision::Stored(partial) => {
                    prop_assert_eq!(partial, record.partial);
                    continue;
                }
                Decision::Refuse(_) => continue,
            }
            let reused = sessions.iter().any(|(used, ..)| *used == request.own_nonce);
            prop_assert!(!reused, "nonce reused");
            sessions.insert((request.own_nonce, request.sum, request.sighash));
            let first = signed.entry((request.outpoint, purpose)).or_insert(request.sighash);
            prop_assert_eq!(*first, request.sighash);
        }
        for place in 0..3u8 {
            let mine: Vec<Purpose> =
                order.iter().filter(|(at, _)| *at == outpoint(place)).map(|(_, p)| *p).collect();
            let slots: Vec<u32> = mine
                .iter()
                .filter_map(|p| match p { Purpose::State(slot) => Some(*slot), _ => None })
                .collect();
            prop_assert!(slots.windows(2).all(|w| w[1] < w[0]), "slots {:?}", slots);
            prop_assert!(!(mine.contains(&Purpose::Next) && mine.contains(&Purpose::Close)));
            let next = mine.iter().position(|p| *p == Purpose::Next);
            let poison = mine.iter().position(|p| matches!(p, Purpose::SalePoison(_)));
            prop_assert!(poison.is_none() || next.is_some_and(|next| next < poison.unwrap()));
        }
    }
}
