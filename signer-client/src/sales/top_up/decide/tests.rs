//! Every reason not to buy, and a year of looks.

use factory_tree::ids::{LeafId, SaleId};
use factory_tree::testing::cases;
use proptest::prelude::*;

use super::*;

/// When the tests begin, in Unix time.
const BEGIN: u64 = 1_800_000_000;
const SAT: u64 = 1000;

fn policy() -> TopUpConfig {
    TopUpConfig {
        enabled: true,
        ..TopUpConfig::default()
    }
}

fn place() -> Place {
    Place {
        factory: FactoryId([1; 32]),
        unfit: None,
        tip: Height(100),
        dying_from: Height(1000),
        left: Some(Amount::from_sat(400_000)),
        uncovered: false,
    }
}

/// 49,999.999 sat can be received, and nothing was bought yet.
fn facts(now: u64) -> Facts {
    Facts {
        order: None,
        now,
        receivable: Some(Msat(50_000 * SAT - 1)),
        purchases: Vec::new(),
        places: vec![place()],
    }
}

fn purchase(state: PurchaseState, began: u64, ended: Option<u64>) -> PurchaseView {
    PurchaseView {
        sale: SaleId([1; 16]),
        factory: FactoryId([1; 32]),
        leaf: LeafId([1; 16]),
        capacity_sat: 100_000,
        fee_msat: 1500 * SAT,
        automatic: true,
        state,
        note: "a note".to_owned(),
        invoice: None,
        hash: None,
        created_time: began,
        ended_time: ended,
    }
}

fn settled(ended: u64) -> PurchaseView {
    purchase(PurchaseState::Settled, ended - 5, Some(ended))
}

fn by_the_user(purchase: PurchaseView) -> PurchaseView {
    PurchaseView {
        automatic: false,
        ..purchase
    }
}

/// Of a wallet that has had too little for long.
fn patient() -> Memory {
    Memory {
        low_since: Some(0),
        ..Memory::default()
    }
}

fn decided(change: impl FnOnce(&mut Facts)) -> Result<Question, Hold> {
    let mut facts = facts(BEGIN);
    change(&mut facts);
    patient().decide(&policy(), &facts)
}

fn state(change: impl FnOnce(&mut Facts)) -> TopUpState {
    decided(change).unwrap_err().state
}

#[test]
fn it_buys_what_it_is_told_to() {
    let question = decided(|_| {}).unwrap();
    let expected = Question {
        factory: FactoryId([1; 32]),
        amount: Amount::from_sat(100_000),
        most: Msat(2000 * SAT),
    };
    assert_eq!(question, expected);
    let least = decided(|facts| facts.places[0].left = Some(Amount::from_sat(70_000)));
    assert_eq!(least.unwrap().amount, Amount::from_sat(70_000));
    // Where the most is left; of two alike in the younger.
    let where_left = |left: [u64; 2]| {
        let question = decided(|facts| {
            facts.places.push(place());
            for (n, place) in facts.places.iter_mut().enumerate() {
                place.left = Some(Amount::from_sat(left[n]));
                place.factory = FactoryId([n as u8; 32]);
            }
        });
        question.unwrap().factory.0[0]
    };
    assert_eq!(where_left([300_000, 200_000]), 0);
    assert_eq!(where_left([200_000, 300_000]), 1);
    assert_eq!(where_left([300_000, 300_000]), 1);
}

#[test]
fn it_buys_nothing_that_is_not_needed() {
    let enough = state(|facts| facts.receivable = Some(Msat(50_000 * SAT)));
    assert_eq!(enough, TopUpState::Enough);
    let unknown = state(|facts| facts.receivable = None);
    assert_eq!(unknown, TopUpState::Unusable);
}

#[test]
fn it_buys_nothing_while_a_purchase_is_under_way() {
    for open in [
        PurchaseState::Ordered,
        PurchaseState::Paid,
        PurchaseState::Sold,
    ] {
        let open = purchase(open, BEGIN - 9 * DAY, None);
        for open in [by_the_user(open.clone()), open] {
            let held = state(|facts| facts.purchases = vec![open]);
            assert_eq!(held, TopUpState::UnderWay);
        }
    }
    let held = state(|facts| facts.order = Some("b7a1".to_owned()));
    assert_eq!(held, TopUpState::UnderWay);
}

#[test]
fn it_buys_in_no_factory_that_ends_or_has_nothing() {
    let held = |change: &dyn Fn(&mut Place)| state(|facts| change(&mut facts.places[0]));
    let left = held(&|place| place.unfit = Some("it is being left".to_owned()));
    assert_eq!(left, TopUpState::Unfit);
    assert_eq!(held(&|place| place.tip = Height(1000)), TopUpState::Unfit);
    assert_eq!(held(&|place| place.left = None), TopUpState::SoldOut);
    let none = state(|facts| facts.places.clear());
    assert_eq!(none, TopUpState::NoFactory);
    // Another factory is as good.
    let other = decided(|facts| {
        facts.places[0].tip = Height(1000);
        facts.places.push(Place {
            factory: FactoryId([2; 32]),
            ..place()
        });
    });
    assert_eq!(other.unwrap().factory, FactoryId([2; 32]));
    assert!(decided(|facts| facts.places[0].tip = Height(999)).is_ok());
}

#[test]
fn it_buys_nothing_that_needs_consent() {
    let held = state(|facts| facts.places[0].uncovered = true);
    assert_eq!(held, TopUpState::Uncovered);
    let offer = Offer {
        fee: Msat(SAT),
        needs_consent: true,
        spendable: Msat(SAT),
    };
    let held = weigh(&policy(), Msat(2 * SAT), offer).unwrap_err();
    assert_eq!(held.state, TopUpState::Uncovered);
}

#[test]
fn a_price_is_within_what_was_agreed_to() {
    let offer = |fee| Offer {
        fee: Msat(fee),
        needs_consent: false,
        spendable: Msat(2000 * SAT),
    };
    let weighed = |fee, most| weigh(&policy(), Msat(most), offer(fee)).map_err(|hold| hold.state);
    assert_eq!(weighed(2000 * SAT, 2000 * SAT), Ok(()));
    assert_eq!(weighed(2000 * SAT + 1, u64::MAX), Err(TopUpState::Dear));
    assert_eq!(weighed(501 * SAT, 500 * SAT), Err(TopUpState::Budget));
    let poor = Offer {
        spendable: Msat(SAT - 1),
        ..offer(SAT)
    };
    let held = weigh(&policy(), Msat(2000 * SAT), poor).unwrap_err();
    assert_eq!(held.state, TopUpState::Poor);
}

#[test]
fn the_budget_is_of_thirty_days() {
    let now = BEGIN;
    let bought = |days: u64| settled(now - days * DAY);
    // 1,500 sat each, of 6,000.
    let mut purchases: Vec<PurchaseView> = [29, 20, 10].map(bought).to_vec();
    let most = |purchases: &[PurchaseView]| {
        let purchases = purchases.to_vec();
        decided(|facts| facts.purchases = purchases).map(|question| question.most)
    };
    assert_eq!(most(&purchases), Ok(Msat(1500 * SAT)));
    // What came to nothing costs nothing, what the user bought is the user's, what is old is over.
    purchases.push(purchase(
        PurchaseState::Cancelled,
        now - 9 * DAY,
        Some(now - 8 * DAY),
    ));
    purchases.push(by_the_user(bought(2)));
    purchases.push(bought(30));
    assert_eq!(spent(&purchases, now), Msat(4500 * SAT));
    assert_eq!(most(&purchases), Ok(Msat(1500 * SAT)));
    purchases.push(bought(1));
    let held = most(&purchases).unwrap_err();
    assert_eq!(held.state, TopUpState::Budget);
    assert_eq!(held.until, Some(now + DAY));
    // What is under way counts as long as it takes.
    let open = purchase(PurchaseState::Paid, now - 90 * DAY, None);
    assert_eq!(spent(&[open], now), Msat(1500 * SAT));
}

#[test]
fn a_moment_is_no_reason() {
    let mut memory = Memory::default();
    let mut look = |seconds: u64, receivable: Option<u64>| {
        let mut facts = facts(BEGIN + seconds);
        facts.receivable = receivable.map(|sat| Msat(sat * SAT));
        memory
            .decide(&policy(), &facts)
            .map_err(|hold| (hold.state, hold.until))
    };
    let settling = |until| Err((TopUpState::Settling, Some(BEGIN + until)));
    assert_eq!(look(0, Some(1)), settling(60));
    assert_eq!(look(59, Some(1)), settling(60));
    assert_eq!(look(60, Some(60_000)), Err((TopUpState::Enough, None)));
    assert_eq!(look(70, Some(1)), settling(130));
    assert_eq!(look(80, None), Err((TopUpState::Unusable, None)));
    assert_eq!(look(90, Some(1)), settling(150));
    assert!(look(150, Some(2)).is_ok());
}

/// What is refused is asked again after five minutes, then ever more rarely, and at least daily; also by a wallet that is started again each
/// time, as far as it bought.
#[test]
fn pauses_grow() {
    let refusal = || Hold::new(TopUpState::Refused, "no");
    let (mut memory, mut asked) = (patient(), Vec::new());
    for minute in 0..6 * 24 * 60 {
        let now = BEGIN + minute * 60;
        if memory.decide(&policy(), &facts(now)).is_ok() {
            memory.asked(now);
            memory.refused(now, refusal());
            asked.push(minute);
        }
    }
    let gaps: Vec<u64> = asked.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(gaps[..6], [5, 5, 10, 20, 40, 80]);
    assert_eq!(gaps.last(), Some(&(24 * 60)));
    let held = memory.decide(&policy(), &facts(BEGIN + 6 * DAY - 60));
    assert_eq!(held.unwrap_err().note, "no");

    let (mut facts, mut asked) = (facts(0), Vec::new());
    for minute in 0..24 * 60 {
        facts.now = BEGIN + minute * 60;
        if patient().decide(&policy(), &facts).is_ok() {
            let ended = Some(facts.now);
            facts
                .purchases
                .push(purchase(PurchaseState::Cancelled, facts.now, ended));
            asked.push(minute);
        }
    }
    let again: Vec<u64> = asked.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(again[..6], [5, 5, 10, 20, 40, 80]);
    // What was bought in the end, and what failed long ago, is no reason to wait any longer.
    let since = |purchases: Vec<PurchaseView>| {
        let now = facts.now + 300;
        let next = Facts {
            now,
            purchases,
            ..facts.clone()
        };
        patient().decide(&policy(), &next)
    };
    let mut worked = facts.purchases.clone();
    worked.push(settled(facts.now));
    assert!(since(worked).is_ok());
    let old = purchase(PurchaseState::Cancelled, 1, Some(2));
    let new = purchase(PurchaseState::Cancelled, facts.now, Some(facts.now));
    assert!(since(vec![old, new]).is_ok());
}

#[test]
fn it_asks_again_only_after_a_pause() {
    let mut memory = patient();
    memory.asked(BEGIN - 299);
    let mut at = |now| {
        memory
            .decide(&policy(), &facts(now))
            .map_err(|hold| hold.state)
    };
    assert_eq!(at(BEGIN), Err(TopUpState::Pausing));
    assert!(at(BEGIN + 1).is_ok());
    // Whoever bought.
    let bought = by_the_user(settled(BEGIN - 299));
    assert_eq!(
        state(|facts| facts.purchases = vec![bought]),
        TopUpState::Pausing
    );
}

/// What happens at a look of the year.
#[derive(Clone, Debug)]
struct Moment {
    seconds: u64,
    receivable: Option<u64>,
    fee: u64,
    /// What becomes of what is bought, if it is not refused.
    end: Option<PurchaseState>,
    open_for: u64,
    user_buys: bool,
    restart: bool,
}

fn moment() -> impl Strategy<Value = Moment> {
    let seconds = prop_oneof![1..120u64, 1..7200u64, 1..3 * DAY];
    let receivable = prop_oneof![4 => (0..40_000u64).prop_map(Some), 1 => (50_000..90_000u64).prop_map(Some), 1 => Just(None)];
    let ends = [PurchaseState::Settled, PurchaseState::Cancelled];
    let end = prop::option::of(prop::sample::select(ends.to_vec()));
    let rare = || prop::bool::weighted(0.1);
    (
        seconds,
        receivable,
        0..2500u64,
        end,
        0..20_000u64,
        rare(),
        rare(),
    )
        .prop_map(
            |(seconds, receivable, fee, end, open_for, user_buys, restart)| Moment {
                seconds,
                receivable,
                fee: fee * SAT,
                end,
                open_for,
                user_buys,
                restart,
            },
        )
}

/// A wallet, and what it did.
#[derive(Debug, Default)]
struct Year {
    memory: Memory,
    purchases: Vec<PurchaseView>,
    /// How an open one ends, and when.
    open: Option<(u64, PurchaseState)>,
    asked: Vec<u64>,
}

impl Year {
    fn bring(&mut self, now: u64) {
        let Some((at, state)) = self.open.filter(|(at, _)| *at <= now) else {
            return;
        };
        let one = self.purchases.last_mut().unwrap();
        (one.state, one.ended_time) = (state, Some(at));
        self.open = None;
    }

    fn buy(&mut self, now: u64, moment: &Moment, automatic: bool) {
        let end = moment.end.unwrap_or(PurchaseState::Settled);
        self.open = Some((now + moment.open_for, end));
        self.purchases.push(PurchaseView {
            fee_msat: moment.fee,
            automatic,
            ..purchase(PurchaseState::Paid, now, None)
        });
    }

    fn live(&mut self, now: u64, moment: &Moment) {
        self.bring(now);
        if moment.restart {
            self.memory = Memory::default();
        }
        if moment.user_buys && self.open.is_none() {
            self.buy(now, moment, false);
        }
        let facts = Facts {
            now,
            order: None,
            receivable: moment.receivable.map(|sat| Msat(sat * SAT)),
            purchases: self.purchases.clone(),
            places: vec![place()],
        };
        let Ok(question) = self.memory.decide(&policy(), &facts) else {
            return;
        };
        assert!(self.open.is_none(), "something is under way");
        assert!(moment.receivable.is_some_and(|sat| sat < 50_000));
        self.asked.push(now);
        self.memory.asked(now);
        let offer = Offer {
            fee: Msat(moment.fee),
            needs_consent: false,
            spendable: Msat(u64::MAX),
        };
        match weigh(&policy(), question.most, offer) {
            Err(hold) => self.memory.refused(now, hold),
            Ok(()) if moment.end.is_none() => {
                let hold = Hold::new(TopUpState::Refused, "no");
                self.memory.refused(now, hold);
            }
            Ok(()) => self.buy(now, moment, true),
        }
    }

    /// What was paid for without the user from this time on, for 30 days.
    fn paid_from(&self, time: u64) -> u64 {
        let paid = self.purchases.iter().filter(|one| {
            let since = one.ended_time.is_none_or(|ended| ended >= time);
            let before = one.created_time < time + MONTH;
            one.automatic && one.state != PurchaseState::Cancelled && since && before
        });
        paid.map(|one| one.fee_msat).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(200)))]

    #[test]
    fn no_month_costs_more_than_its_budget(moments in prop::collection::vec(moment(), 1..300)) {
        let (mut year, mut now, mut restarts) = (Year::default(), BEGIN, Vec::new());
        for moment in &moments {
            now += moment.seconds;
            if moment.restart {
                restarts.push(now);
            }
            year.live(now, moment);
        }
        for one in year.purchases.iter().filter(|one| one.automatic) {
            prop_assert!(one.fee_msat <= 2000 * SAT);
            for time in [Some(one.created_time), one.ended_time].into_iter().flatten() {
                prop_assert!(year.paid_from(time) <= 6000 * SAT);
            }
        }
        for two in year.asked.windows(2) {
            // What a wallet asked before it was started again is known only if it bought.
            let restarted = restarts.iter().any(|at| two[0] < *at && *at <= two[1]);
            let pause = if restarted { 60 } else { 300 };
            prop_assert!(two[1] - two[0] >= pause);
        }
    }
}
