use super::*;
use crate::params::Profile;
use bitcoin::Network;
use proptest::prelude::*;

const NOW: Height = Height(10_000);
const OLD: Height = Height(1000);

fn params() -> ChooseParams {
    let factory = FactoryParams::profile(Profile::Lite, Network::Regtest);
    ChooseParams::new(factory, NOW)
}

fn id(number: u8) -> ClientId {
    let mut bytes = [2u8; 33];
    bytes[32] = number;
    ClientId(bytes)
}

fn candidate(number: u8, kind: Kind) -> Candidate {
    Candidate {
        client: id(number),
        kind,
        wanted: None,
        balance: Amount::ZERO,
        bought: Amount::ZERO,
        hours: Hours::default(),
        faults: 0,
        since: OLD,
    }
}

fn dying(number: u8, left: u32) -> Candidate {
    let deadline = NOW.plus(Blocks(left));
    candidate(number, Kind::Dying { deadline, tries: 0 })
}

fn clients(preview: &Preview) -> Vec<ClientId> {
    preview.seats.iter().map(|seat| seat.client).collect()
}

#[test]
fn the_most_urgent_get_the_seats() {
    let candidates = [
        candidate(1, Kind::OnChain),
        candidate(2, Kind::StockBuyer),
        candidate(3, Kind::SignUp),
        dying(4, 400),
        dying(5, 100),
    ];
    let preview = choose(&params(), &candidates, 2);
    assert_eq!(clients(&preview), [id(4), id(5)]);
    assert!(
        preview.seats[1]
            .why
            .starts_with("its factory ends: about 16 hours left")
    );
    let excluded: Vec<_> = preview.excluded.iter().map(|e| (e.client, e.why)).collect();
    assert_eq!(excluded, [3, 2, 1].map(|n| (id(n), Exclusion::NoSeat)));
    assert_eq!(clients(&choose(&params(), &candidates, 3))[2], id(5));
}

#[test]
fn a_client_with_two_reasons_has_one_seat_for_its_whole_balance() {
    let mut first = dying(1, 400);
    first.balance = Amount::from_sat(300_000);
    let mut second = candidate(1, Kind::StockBuyer);
    second.balance = Amount::from_sat(100_000);
    let preview = choose(&params(), &[second, first, dying(2, 10)], 8);
    assert_eq!(preview.seats.len(), 2);
    let seat = preview
        .seats
        .iter()
        .find(|seat| seat.client == id(1))
        .unwrap();
    assert!(matches!(seat.kind, Kind::Dying { .. }));
    assert!(seat.capacity > Amount::from_sat(400_000));
}

#[test]
fn capacity_holds_balance_reserve_and_a_part() {
    let params = params();
    for sat in [1u64, 999, 50_000, 200_000, 99_000_000, 20 * 100_000_000] {
        let balance = Amount::from_sat(sat);
        let capacity = needed_capacity(&params, balance);
        let reserve = |c: Amount| (c.to_sat() / 100).max(1000);
        let part = (sat.div_ceil(100)).max(10_000).min(sat);
        assert!(capacity.to_sat() - reserve(capacity) >= sat + part, "{sat}");
        let less = capacity - Amount::from_sat(2);
        assert!(
            less.to_sat() - reserve(less) < sat + part,
            "{sat}: not the least"
        );
    }
    let mut rich = dying(1, 10);
    rich.balance = Amount::from_sat(50_000_000);
    let mut buyer = candidate(2, Kind::OnChain);
    buyer.balance = rich.balance;
    let preview = choose(&params, &[rich, buyer, dying(3, 10)], 8);
    let capacity = preview
        .seats
        .iter()
        .find(|s| s.client == id(1))
        .unwrap()
        .capacity;
    assert!(
        capacity > Amount::from_sat(50_000_000),
        "a dying client is taken whole"
    );
    assert!(matches!(
        preview.excluded[0].why,
        Exclusion::OverLimit { .. }
    ));
}

#[test]
fn the_account_limit_is_granted_within_the_operators() {
    let mut small = candidate(1, Kind::SignUp);
    small.wanted = Some(Amount::from_sat(1));
    let mut large = candidate(2, Kind::SignUp);
    large.wanted = Some(Amount::from_sat(u64::MAX / 4));
    let preview = choose(&params(), &[small, large, candidate(3, Kind::SignUp)], 8);
    let mut capacities: Vec<u64> = preview.seats.iter().map(|s| s.capacity.to_sat()).collect();
    capacities.sort_unstable();
    assert_eq!(capacities, [20_000, 200_000, 10_000_000]);
}

#[test]
fn unreliable_strangers_are_left_out_and_dying_ones_sit_apart() {
    let mut stranger = candidate(9, Kind::SignUp);
    stranger.faults = 4001;
    let mut faulty = dying(8, 1);
    faulty.faults = 9000;
    let mut fresh = candidate(7, Kind::SignUp);
    fresh.since = NOW;
    let mut candidates = vec![stranger, faulty, fresh];
    candidates.extend((1..=6).map(|n| dying(n, 400)));
    let preview = choose(&params(), &candidates, 64);
    assert_eq!(preview.excluded.len(), 1);
    assert_eq!(clients(&preview)[6..], [id(7), id(8)]);
    assert_eq!(preview.seats[0].leaf, 0);
    assert_eq!(preview.seats[7].leaf, 1);
    assert!(preview.seats[7].why.contains("unreliable"));
}

#[test]
fn mates_share_hours() {
    let (day, night) = (Hours::new(0x0000_0fff), Hours::new(0x00ff_f000));
    let candidates: Vec<_> = (0..8)
        .map(|n| Candidate {
            hours: if n % 2 == 0 { day } else { night },
            ..dying(n, 100)
        })
        .collect();
    let preview = choose(&params(), &candidates, 8);
    for leaf in 0..2 {
        let mates = preview.seats.iter().filter(|seat| seat.leaf == leaf);
        let parity: Vec<u8> = mates.map(|seat| seat.client.0[32] % 2).collect();
        assert_eq!(parity, [parity[0]; 4]);
    }
    assert!(preview.seats[0].why.ends_with("12 hours in common"));
    let seen = Hours::default()
        .seen_at(Height(6 * 25))
        .seen_at(Height(6 * 49 + 5));
    assert_eq!(seen, Hours::new(2));
}

#[test]
fn capital_is_what_the_tree_takes() {
    let factory = crate::testing::TestFactory::new(1, params().factory, 9).unwrap();
    let candidates: Vec<_> = (0..9).map(|n| dying(n, 100)).collect();
    let preview = choose(&params(), &candidates, 64);
    let funding = factory.tree.txs()[0].spends.txout.value;
    let capital = preview.capital;
    assert_eq!(capital.channels + capital.stock, funding);
    assert_eq!(capital.total, funding + FUNDING_CHANGE);
    let mut short = params();
    short.capital = Some(Amount::from_sat(1_000_000));
    let preview = choose(&short, &candidates, 64);
    assert_eq!(preview.seats.len(), 3);
    assert!(preview.capital.total <= Amount::from_sat(1_000_000));
    assert!(matches!(
        preview.excluded[0].why,
        Exclusion::NoCapital { .. }
    ));
}

#[test]
fn too_few_is_a_problem_and_says_who_was_left_out() {
    let mut stranger = candidate(9, Kind::SignUp);
    stranger.faults = 4001;
    let preview = choose(&params(), &[stranger, dying(1, 10)], 64);
    let needed = 2;
    assert_eq!(
        preview.problem,
        Some(ChooseError::TooFew { found: 1, needed })
    );
    let problem = preview.problem.unwrap().to_string();
    assert_eq!(problem, "1 client can be invited, 2 are needed");
    assert_eq!(preview.excluded.len(), 1);
}

proptest! {
    #[test]
    fn everybody_is_seated_once_or_excluded(
        raw in proptest::collection::vec((0u8..4, 0u32..0x0100_0000, 0u32..6000, 0u32..9000, 0u64..30_000_000), 0..80),
        seats in 2u32..70,
    ) {
        let candidates: Vec<_> = (0u8..).zip(raw).map(|(n, (kind, hours, faults, since, sat))| {
            let kind = match kind {
                0 => Kind::Dying { deadline: NOW.plus(Blocks(since)), tries: 1 },
                1 => Kind::SignUp,
                2 => Kind::StockBuyer,
                _ => Kind::OnChain,
            };
            Candidate {
                hours: Hours::new(hours),
                faults,
                since: Height(since),
                balance: Amount::from_sat(sat),
                ..candidate(n, kind)
            }
        }).collect();
        let preview = choose(&params(), &candidates, seats);
        if preview.problem.is_some() {
            return Ok(());
        }
        let mut all: Vec<ClientId> = clients(&preview);
        prop_assert!(all.len() <= seats as usize);
        all.extend(preview.excluded.iter().map(|e| e.client));
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), candidates.len());
        let standings: Vec<_> = preview.seats.iter().map(|s| s.standing).collect();
        prop_assert!(standings.is_sorted());
        let mut shuffled = candidates.clone();
        shuffled.reverse();
        prop_assert_eq!(choose(&params(), &shuffled, seats), preview);
    }
}

#[test]
fn what_is_bought_comes_on_top() {
    let sat = Amount::from_sat;
    let bought = |n, amount| {
        let mut one = candidate(n, Kind::StockBuyer);
        one.bought = sat(amount);
        one
    };
    let mut leaving = dying(1, 10);
    leaving.wanted = Some(sat(200_000));
    let mut full = dying(2, 10);
    full.wanted = Some(sat(200_000));
    full.balance = sat(690_000);
    let needed = needed_capacity(&params(), full.balance).to_sat();
    let mut asks = candidate(3, Kind::SignUp);
    asks.wanted = Some(sat(9_800_000));
    let mut outside = candidate(4, Kind::OnChain);
    outside.balance = sat(50_000);
    let base = needed_capacity(&params(), outside.balance).to_sat();
    let all = [
        leaving,
        bought(1, 300_000),
        bought(1, 100_000),
        full,
        bought(2, 300_000),
        bought(3, 300_000),
        asks,
        outside,
        bought(4, 300_000),
        bought(5, 300_000),
        bought(6, 10_000_001),
    ];
    let preview = choose(&params(), &all, 8);
    for (client, capacity, bought) in [
        (1, 600_000, 400_000),
        (2, needed + 300_000, 300_000),
        // More than is sold to anybody.
        (3, 9_800_000, 0),
        (4, base + 300_000, 300_000),
        (5, 300_000, 300_000),
    ] {
        let mut seats = preview.seats.iter();
        let seat = seats.find(|seat| seat.client == id(client)).unwrap();
        assert_eq!(
            (seat.capacity, seat.bought),
            (sat(capacity), sat(bought)),
            "{client}"
        );
    }
    let over = preview
        .excluded
        .iter()
        .find(|out| out.client == id(6))
        .unwrap();
    assert!(matches!(over.why, Exclusion::OverLimit { .. }));
}
