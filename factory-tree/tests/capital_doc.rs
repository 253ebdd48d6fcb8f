//! The tables and the picture in docs/ are what `coordinator plan` says. To redraw:
//! `SUPERSCALAR_REDRAW=1 cargo test -p factory-tree --test capital_doc`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use factory_tree::capital::{self, FeeratePath, Plan, PlanParams};
use factory_tree::params::{ExpiryPolicy, Profile};

const HEAD: &str = "| | births a day | clients of one | capital, BTC | in use | held up by no-shows | vB | fees, sat | interest, sat | block space | paths begun on a day, at most | all leave at once: blocks |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn plan(change: impl FnOnce(&mut PlanParams)) -> Plan {
    let mut params = PlanParams::new(1000, Profile::Lite);
    change(&mut params);
    capital::simulate(&params).unwrap()
}

fn percent(ppm: u64) -> String {
    format!("{}.{:02} %", ppm / 10_000, (ppm % 10_000) / 100)
}

fn row(name: &str, plan: &Plan) -> String {
    let steady = &plan.steady;
    let total = steady.locked.total();
    let tail = u128::from(steady.locked.tail_sat) * 1_000_000 / u128::from(total);
    let births = steady.births_per_1000_days;
    format!(
        "| {name} | {}.{:02} | {} | {}.{:02} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
        births / 1000,
        births % 1000 / 10,
        plan.factory.clients,
        total / 100_000_000,
        total % 100_000_000 / 1_000_000,
        percent(steady.efficiency_ppm.into()),
        percent(tail as u64),
        steady.vbytes_per_client_month,
        steady.sat_per_client_month,
        steady.interest_sat_per_client_month,
        percent(steady.block_space_ppm),
        plan.totals.peak_published,
        plan.mass_exit.blocks,
    )
}

fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn by_clients() -> String {
    let mut table = HEAD.to_owned();
    for clients in [10, 100, 1000, 10_000, 100_000, 1_000_000] {
        let plan = plan(|params| params.clients = clients);
        table.push_str(&row(&thousands(clients), &plan));
    }
    table
}

fn by_no_shows() -> String {
    let mut table = HEAD.to_owned();
    for (name, ppm) in [
        ("0", 0),
        ("1%", 10_000),
        ("2%", 20_000),
        ("5%", 50_000),
        ("10%", 100_000),
        ("20%", 200_000),
    ] {
        let plan = plan(|params| {
            params.clients = 10_000;
            params.no_show_ppm = ppm;
        });
        table.push_str(&row(&format!("`--no-show {name}`"), &plan));
    }
    table
}

fn by_factory() -> String {
    let mut table = HEAD.to_owned();
    for clients in [8, 16, 64, 128, 512, 1024] {
        let plan = plan(|params| {
            params.clients = 100_000;
            params.factory_clients = clients;
        });
        table.push_str(&row(&format!("`--factory-clients {clients}`"), &plan));
    }
    table
}

fn by_policy() -> String {
    let mut table = HEAD.to_owned();
    let mut add = |name: &str, change: fn(&mut PlanParams)| {
        let plan = plan(|params| {
            params.clients = 10_000;
            change(params);
        });
        table.push_str(&row(name, &plan));
    };
    add("(none)", |_| ());
    add("`--profile standard`", |params| {
        *params = PlanParams::new(10_000, Profile::Standard);
    });
    add("`--profile deep`", |params| {
        *params = PlanParams::new(10_000, Profile::Deep);
    });
    add("`--expiry lsp-reclaim`", |params| {
        params.factory.expiry_policy = ExpiryPolicy::LspReclaim;
    });
    add("`--stock 0.2`", |params| {
        params.factory.stock_share_ppm = 200_000
    });
    add("`--stock 0`", |params| params.factory.stock_share_ppm = 0);
    add("`--feerate 1`", |params| {
        params.feerates = FeeratePath::Constant(1)
    });
    add("`--feerate 100`", |params| {
        params.feerates = FeeratePath::Constant(100)
    });
    table
}

/// `coordinator plan --clients 1000 --feerate-path 10,60@60,10@66 --days 110 --svg docs/capital.svg`
fn picture() -> String {
    capital::svg(&plan(|params| {
        params.feerates = FeeratePath::parse("feerate-path", "10,60@60,10@66", 10).unwrap();
        params.days = 110;
    }))
}

fn replace(text: &str, name: &str, table: &str) -> String {
    let (start, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let from = text.find(&start).expect("the mark is there") + start.len();
    let to = text.find(&end).expect("the end mark is there");
    let mut all = String::new();
    write!(all, "{}{table}{}", &text[..from], &text[to..]).unwrap();
    all
}

#[test]
fn the_documents_tables_are_the_simulators() {
    let redraw = std::env::var_os("SUPERSCALAR_REDRAW").is_some();
    let keep = |file: &str, text: &str| {
        let path = docs().join(file);
        if redraw {
            std::fs::write(&path, text).unwrap();
        }
        let held = std::fs::read_to_string(&path).unwrap();
        assert!(held == text, "docs/{file} is out of date");
    };
    let held = std::fs::read_to_string(docs().join("capital.md")).unwrap();
    let text = replace(&held, "clients", &by_clients());
    let text = replace(&text, "no-shows", &by_no_shows());
    let text = replace(&text, "factory", &by_factory());
    let text = replace(&text, "policy", &by_policy());
    keep("capital.md", &text);
    keep("capital.svg", &picture());
}
