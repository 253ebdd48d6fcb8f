use bitcoin::{Amount, Network};
use proptest::prelude::*;

use super::sizes::{FactoryModel, Load, Sizes};
use super::*;
use crate::ladder::{Due, FactoryFacts, Funding, Ladder, MemberFacts, Progress, Root, due};
use crate::params::{ExpiryPolicy, FactoryParams, Profile};
use crate::testing::TestFactory;
use crate::units::{Blocks, Height};

fn lite() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

fn sizes() -> Sizes {
    Sizes::measure(&lite(), 1008).unwrap()
}

fn plan(clients: u32, change: impl FnOnce(&mut PlanParams)) -> Plan {
    let mut params = PlanParams::new(clients, Profile::Lite);
    change(&mut params);
    simulate(&params).unwrap()
}

/// Everybody comes, to the last invitation.
fn happy(params: &mut PlanParams) {
    params.no_show_ppm = 0;
    params.shows_ppm = vec![0, 0, 1_000_000];
}

#[test]
fn sizes_are_those_of_the_facts() {
    // facts.md 2.2: 1-in-1-out by key path 111 vB, 1-in-2-out 154, a CLTV sweep about 130.
    let sizes = sizes();
    assert_eq!(sizes.reap(), Load::one(111));
    assert_eq!(sizes.funding(1), Load::one(154));
    assert!(
        (128..=132).contains(&sizes.reclaim().vbytes),
        "{:?}",
        sizes.reclaim()
    );
    // LDK's COMMITMENT_TX_BASE_WEIGHT (lightning 0.3, ln/chan_utils.rs, from BOLT 3) is 724 for
    // to_local and a P2WPKH to_remote, both signatures 73 bytes; P2WSH is 12 bytes more, a P2A 13.
    let ldk = (724 + 4 * 12 + 4 * 13u64).div_ceil(4);
    let own = sizes.commitment().vbytes - crate::tx::CHILD_VBYTES;
    assert!(own <= ldk && own + 2 >= ldk, "{own} and {ldk}");
}

#[test]
fn models_are_the_real_trees() {
    for (clients, change) in [
        (2usize, (|_| ()) as fn(&mut FactoryParams)),
        (4, |_| ()),
        (9, |_| ()),
        (64, |_| ()),
        (17, |p| p.k = 3),
        (12, |p| p.stock_share_ppm = 0),
        (9, |p| p.expiry_policy = ExpiryPolicy::LspReclaim),
    ] {
        let mut params = lite();
        change(&mut params);
        let tree = TestFactory::new(1, params.clone(), clients).unwrap().tree;
        let capacity = crate::testing::CAPACITY;
        let model = FactoryModel::new(&params, clients as u32, capacity).unwrap();
        assert_eq!(model.funding(), tree.txs()[0].spends.txout.value);
        for client in 0..clients as u32 {
            let path = tree.path(client);
            let vbytes = path.iter().map(|tx| tx.vbytes() + crate::tx::CHILD_VBYTES);
            assert_eq!(model.path(client).vbytes, vbytes.sum::<u64>());
            assert_eq!(model.path(client).txs, path.len() as u64 * 2);
        }
        let first = super::sizes::largest_timeout(&model);
        if params.expiry_policy == ExpiryPolicy::ClientRefund {
            assert_eq!(first, tree.txs()[1].vbytes());
        }
    }
    // facts.md 2.3, P4 (lite): path of 8 clients 630 vB; protocol.md: of 64 969 vB.
    let path = |clients| {
        FactoryModel::new(&lite(), clients, Amount::from_sat(200_000))
            .unwrap()
            .path(0)
    };
    assert_eq!(path(8).vbytes, 630 + 3 * 153);
    assert_eq!(path(64).vbytes, 969 + 4 * 153);
}

#[test]
fn publication_takes_what_the_silent_need_and_recovers_the_rest() {
    let (params, sizes) = (lite(), sizes());
    let capacity = Amount::from_sat(200_000);
    let model = FactoryModel::new(&params, 8, capacity).unwrap();
    let publish = |silent: &[u32]| {
        let away: Vec<bool> = (0..8).map(|client| silent.contains(&client)).collect();
        model.publish(&sizes, &away)
    };
    assert_eq!(publish(&[]), Default::default());
    let one = publish(&[0]);
    assert_eq!(one.paths, model.path(0));
    assert_eq!(one.commitments, sizes.commitment());
    assert_eq!(one.channels, capacity);
    // By keys: the other branch; then three mates' channels (41 vB and a witness of 220 at most)
    // with the one stock nobody silent shares.
    assert_eq!(one.recovery.txs, 2);
    let base = 111 * 4 - 230u64;
    let input = 41 * 4 + 220;
    let keys = (base + 3 * input + 230).div_ceil(4);
    let vbytes = one.recovery.vbytes;
    assert!(
        (keys + 111 - 2..=keys + 111 + 2).contains(&vbytes),
        "{vbytes}"
    );
    // Of two stocks of its leaf one is locked: its mate of the other is not needed.
    assert_eq!(one.stock, capacity);
    assert_eq!(one.recovered + one.stock + one.channels, model.funding());
    // A mate of the same leaf costs no further path, one of the other leaf half of one.
    assert_eq!(publish(&[0, 1]).paths, one.paths);
    assert_eq!(publish(&[0, 7]).paths, model.whole_tree());
    let all = publish(&[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(all.recovered, Amount::ZERO);
    assert_eq!(all.recovery, Load::default());
    assert_eq!(all.channels + all.stock, model.funding());
}

#[test]
fn the_happy_ladder_locks_33_factories() {
    let plan = plan(32 * 64, |params| {
        happy(params);
        params.days = 120;
    });
    let steady = plan.steady;
    // facts.md section 5: locked = 33 C_f, two transactions a day, and 30 of 33 days earn.
    assert_eq!(steady.locked.total(), 33 * plan.factory.funding_sat);
    assert_eq!(steady.births_per_1000_days, 1000);
    assert_eq!(steady.txs_per_1000_births, 2000);
    assert_eq!(plan.totals.published, 0);
    assert_eq!(steady.locked.tail_sat, 0);
    // Clients come on their third dying day: 32 of 33 factories' channels are in use.
    assert_eq!(steady.locked.channels_sat, 32 * 64 * 200_000);
    assert_eq!(steady.clients, 32 * 64);
    // On-chain for a client and month: (funding + reap) / clients of a factory * 30 / 32.
    let vbytes = 111 + plan.factory.funding_vbytes;
    assert_eq!(
        steady.vbytes_per_client_month,
        (vbytes * 30).div_ceil(32 * 64)
    );
}

#[test]
fn without_stock_30_of_33_days_earn() {
    let plan = plan(31 * 64, |params| {
        happy(params);
        // All come on the first dying day, but one that keeps the factory to the last.
        params.shows_ppm = vec![950_000, 0, 50_000];
        params.factory.stock_share_ppm = 0;
        params.days = 150;
    });
    // 30/33 = 90.9 %, and somewhat more for those that come late.
    let efficiency = plan.steady.efficiency_ppm;
    assert!((905_000..925_000).contains(&efficiency), "{efficiency}");
}

#[test]
fn capital_is_conserved_every_day() {
    let plan = plan(1000, |params| {
        params.no_show_ppm = 100_000;
        params.days = 200;
    });
    let mut locked = 0;
    for day in &plan.days {
        locked = locked + day.funded_sat - day.returned_sat;
        assert_eq!(day.locked.total(), locked, "day {}", day.day);
        assert_eq!(day.locked.channels_sat, u64::from(day.clients) * 200_000);
        assert_eq!(day.vbytes * day.feerate, day.fees_sat);
    }
    let sum: u64 = plan.days.iter().map(|day| day.vbytes).sum();
    assert_eq!(sum, plan.totals.vbytes);
    let served = plan.steady.clients;
    assert!((930..=1000).contains(&served), "{served}");
}

#[test]
fn everything_comes_back_when_nobody_comes_again() {
    // One generation, all silent: published, and all capital is back before the ladder's days end.
    let plan = plan(64, |params| {
        params.no_show_ppm = 1_000_000;
        params.min_clients = 64;
        params.days = 76;
    });
    let first = plan.days.iter().find(|day| day.births > 0).unwrap();
    let end = first.day + 33;
    let tail = |day: u32| plan.days[day as usize].locked.tail_sat;
    assert_eq!(plan.days[end as usize].published, 64);
    assert_eq!(tail(end), plan.factory.funding_sat);
    // Balances after two days, stock after q, our side after to_self_delay.
    let capital = plan.factory.funding_sat;
    let stock = plan.factory.stock_sat;
    let channels = capital - stock;
    assert_eq!(tail(end + 2), capital - channels * 3 / 10);
    assert_eq!(tail(end + 6), channels * 7 / 10);
    assert_eq!(tail(end + 9), 0);
}

#[test]
fn more_no_shows_are_never_cheaper() {
    let mut last = (0, 0, 0);
    for ppm in [0, 10_000, 50_000, 100_000, 200_000, 500_000, 1_000_000] {
        let plan = plan(2000, |params| params.no_show_ppm = ppm);
        let now = (
            plan.totals.fees_sat,
            plan.steady.sat_per_client_month,
            plan.totals.published,
        );
        assert!(
            now.0 > last.0 && now.1 > last.1 && now.2 >= last.2,
            "{ppm}: {now:?}"
        );
        last = now;
    }
}

#[test]
fn what_costs_more_costs_more() {
    let base = plan(2000, |_| ());
    let dear = plan(2000, |params| params.feerates = FeeratePath::Constant(20));
    assert_eq!(dear.totals.fees_sat, 2 * base.totals.fees_sat);
    assert_eq!(dear.totals.vbytes, base.totals.vbytes);
    let rich = plan(2000, |params| params.capacity = Amount::from_sat(400_000));
    assert_eq!(rich.totals.vbytes, base.totals.vbytes);
    let most = (rich.totals.peak_locked_sat, base.totals.peak_locked_sat);
    assert_eq!(most.0, 2 * most.1);
    let small = plan(2000, |params| params.factory_clients = 16);
    assert!(small.totals.births > base.totals.births);
    let calm = |clients| {
        plan(2000, |params| {
            happy(params);
            params.factory_clients = clients;
        })
    };
    assert!(calm(16).steady.sat_per_client_month > calm(64).steady.sat_per_client_month);
    let deep = simulate(&PlanParams::new(2000, Profile::Deep)).unwrap();
    assert!(deep.totals.vbytes > base.totals.vbytes);
}

#[test]
fn a_reclaimed_factory_waits_for_t_and_costs_one_sweep() {
    let reclaim = plan(640, |params| {
        params.factory.expiry_policy = ExpiryPolicy::LspReclaim;
        params.no_show_ppm = 200_000;
    });
    assert_eq!(reclaim.totals.published, 0);
    let refund = plan(640, |params| params.no_show_ppm = 200_000);
    assert!(reclaim.totals.fees_sat < refund.totals.fees_sat);
    assert!(reclaim.steady.locked.tail_sat > 0);
}

#[test]
fn few_clients_have_factories_too() {
    for clients in [2, 3, 10, 63, 100] {
        let plan = plan(clients, happy);
        let served = plan.days.last().unwrap().clients;
        assert_eq!(served, clients, "{clients}: {:?}", plan.steady);
        assert_eq!(plan.totals.published, 0, "{clients}");
    }
}

#[test]
fn the_calendar_is_the_ladders() {
    // One factory of 64 on day 0 of which 63 leave on their first dying day.
    let params = PlanParams::new(64, Profile::Lite);
    let factory = params.factory.clone();
    let shape = crate::shape::Shape::new(&factory, 64).unwrap();
    let birth = Height(900_000);
    let schedule = factory.schedule(birth, shape.levels()).unwrap();
    let members = |last: Progress| {
        (0..64u8).map(move |n| MemberFacts {
            client: crate::ids::ClientId([n; 33]),
            capacity: params.capacity,
            balance: Amount::ZERO,
            progress: if n == 0 { last } else { Progress::HandedOver },
            warned: None,
        })
    };
    let view = |last| Ladder {
        first: birth,
        factories: vec![FactoryFacts {
            id: crate::ids::FactoryId([1; 32]),
            rung: 0,
            params: factory.clone(),
            schedule,
            funding: Funding::Confirmed { at: birth },
            root: Root::Unspent,
            stock: Amount::ZERO,
            members: members(last).collect(),
            loss_reported: None,
        }],
        ..Ladder::default()
    };
    let first_day = |wanted: fn(&Due) -> bool, last: Progress| {
        let ladder = view(last);
        (0..60u32).find(|day| {
            let height = birth.plus(Blocks(144 * day));
            due(&params.ladder, height, &ladder).iter().any(wanted)
        })
    };
    let invited = first_day(|due| matches!(due, Due::Invite { .. }), Progress::In);
    let ended = first_day(|due| matches!(due, Due::Publish { .. }), Progress::In);
    let plan = plan(64, |params| {
        params.no_show_ppm = 1_000_000;
        params.min_clients = 64;
        params.days = 80;
    });
    let born = |plan: &Plan| plan.days.iter().find(|day| day.births > 0).unwrap().day;
    let published = plan.days.iter().find(|day| day.published > 0).unwrap().day;
    assert_eq!(ended, Some(published - born(&plan)));
    assert_eq!(invited, Some(30));
    let moved = self::plan(64, |params| {
        params.no_show_ppm = 0;
        params.shows_ppm = vec![1_000_000];
        params.min_clients = 64;
        params.days = 80;
    });
    let reaped = moved.days.iter().find(|day| day.reaps > 0).unwrap().day;
    assert_eq!(invited, Some(reaped - born(&moved)));
}

#[test]
fn feerate_paths_are_read_and_followed() {
    let parse = |text| FeeratePath::parse("feerate-path", text, 10);
    assert_eq!(parse("12").unwrap(), FeeratePath::Constant(12));
    let steps = parse("10,50@3, 7@5").unwrap();
    assert_eq!(steps.days(7, 0), [10, 10, 10, 50, 50, 7, 7]);
    let walk = parse("walk:5-80").unwrap();
    let rates = walk.days(1000, 7);
    assert_eq!(rates, walk.days(1000, 7));
    assert_ne!(rates, walk.days(1000, 8));
    assert!(rates.iter().all(|rate| (5..=80).contains(rate)));
    assert!(rates.iter().max() > rates.iter().min());
    for bad in ["", "x", "10@5", "10,20", "10,20@9,30@9", "walk:9", "10,5@x"] {
        let error = parse(bad).unwrap_err().to_string();
        assert!(error.starts_with("--feerate-path"), "{error}");
    }
}

#[test]
fn shares_are_read_without_rounding() {
    let read = |text| parts_per_million("no-show", text);
    for (text, ppm) in [
        ("0.05", 50_000),
        ("5%", 50_000),
        ("0", 0),
        ("1", 1_000_000),
        ("0.000001", 1),
        ("2.5%", 25_000),
        ("100%", 1_000_000),
    ] {
        assert_eq!(read(text), Ok(ppm), "{text}");
    }
    for bad in [
        "",
        "1.1",
        "-1",
        "0.0000001",
        "5",
        "101%",
        ".5",
        "five",
        "1e-2",
        "9999999999",
    ] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.starts_with("--no-show"), "{error}");
    }
}

#[test]
fn bad_parameters_name_their_flag() {
    for (name, change) in [
        ("--clients", (|p| p.clients = 1) as fn(&mut PlanParams)),
        ("--capacity", |p| p.capacity = Amount::from_sat(1)),
        ("--no-show", |p| p.no_show_ppm = 1_000_001),
        ("--shows", |p| p.shows_ppm = vec![1]),
        ("--feerate-path", |p| p.feerates = FeeratePath::Constant(0)),
        ("--feerate-path", |p| {
            p.feerates = FeeratePath::Walk {
                start: 1,
                min: 5,
                max: 10,
            }
        }),
        ("--factory-clients", |p| p.factory_clients = 3),
        ("--factory-clients", |p| {
            p.factory = FactoryParams::profile(Profile::Deep, Network::Bitcoin);
            p.factory_clients = 4096;
        }),
        ("--min-clients", |p| p.min_clients = 65),
        ("--days", |p| p.days = 0),
        ("the ladder: rungs", |p| p.factory.dying = 433),
    ] {
        let mut params = PlanParams::new(100, Profile::Lite);
        change(&mut params);
        let error = simulate(&params).unwrap_err().to_string();
        assert!(error.starts_with(name), "{name}: {error}");
    }
}

#[test]
fn the_small_plan_is_as_it_was() {
    let plan = plan(100, |params| {
        params.days = 48;
        params.seed = 7;
        params.feerates = FeeratePath::parse("feerate-path", "10,50@35", 10).unwrap();
    });
    let text = serde_json::to_string_pretty(&plan).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/capital/small_plan.json");
    if std::env::var_os("SUPERSCALAR_REDRAW").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
    let again: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(again, plan);
}

#[test]
fn the_picture_is_whole() {
    let picture = svg(&plan(100, |params| params.days = 50));
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert_eq!(picture.matches("<polygon").count(), 4);
    // Every point is inside, in a plan of one day and of nobody's factories too.
    let single = svg(&plan(2, |params| params.days = 1));
    for picture in [picture, single] {
        for points in picture.split("points=\"").skip(1) {
            let points = points.split('"').next().unwrap();
            for point in points.split_whitespace() {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (u64, u64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (80..=700).contains(&x) && (50..=530).contains(&y),
                    "{point}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(24)))]

    #[test]
    fn any_plan_adds_up(
        clients in 2u32..600,
        no_show in 0u32..=1_000_000,
        first in 0u32..=1_000_000,
        factory_clients in 4u32..100,
        min_clients in 2u32..4,
        seed in any::<u64>(),
        reclaim in any::<bool>(),
    ) {
        let plan = plan(clients, |params| {
            params.no_show_ppm = no_show;
            params.shows_ppm = vec![first, 1_000_000 - first];
            params.factory_clients = factory_clients;
            params.min_clients = min_clients;
            params.seed = seed;
            params.days = 110;
            if reclaim {
                params.factory.expiry_policy = ExpiryPolicy::LspReclaim;
            }
        });
        let mut locked = 0;
        for day in &plan.days {
            locked = locked + day.funded_sat - day.returned_sat;
            prop_assert_eq!(day.locked.total(), locked);
            prop_assert!(day.clients <= clients);
            prop_assert_eq!(day.locked.channels_sat, u64::from(day.clients) * 200_000);
        }
        prop_assert!(plan.totals.reaps <= plan.totals.births);
        prop_assert!(plan.steady.efficiency_ppm <= 1_000_000);
        let again = simulate(&plan.params).unwrap();
        prop_assert_eq!(again, plan);
    }
}
