//! `plan`: what a ladder would take. Computed here; nothing has to run.

use bitcoin::Amount;
use factory_tree::capital::{
    self, Day, FeeratePath, Plan, PlanError, PlanParams, parts_per_million,
};
use factory_tree::params::{ExpiryPolicy, Profile};

use super::args::{Args, PlanArgs};
use super::{Exit, Failure, outln, output};
use crate::config::Expiry;

/// Rows of the table of days.
const ROWS: usize = 12;

/// Simulates, prints, and draws if asked to.
pub(super) fn plan(args: &Args, asked: &PlanArgs) -> Result<(), Failure> {
    let params = params(asked).map_err(|error| Failure::new(Exit::Usage, error))?;
    let plan = capital::simulate(&params).map_err(|error| Failure::new(Exit::Usage, error))?;
    if let Some(file) = &asked.svg {
        std::fs::write(file, capital::svg(&plan)).map_err(|error| {
            let context = format!("cannot write {}", file.display());
            Failure::new(Exit::Failed, anyhow::Error::new(error).context(context))
        })?;
    }
    if args.json {
        outln!("{}", serde_json::to_string(&plan)?);
    } else {
        print(&plan);
    }
    Ok(())
}

fn params(asked: &PlanArgs) -> Result<PlanParams, PlanError> {
    let profile: Profile = asked.profile.parse()?;
    let mut params = PlanParams::new(asked.clients, profile);
    params.capacity = Amount::from_sat(asked.capacity);
    params.no_show_ppm = parts_per_million("no-show", &asked.no_show)?;
    params.balance_ppm = parts_per_million("balance", &asked.balance)?;
    params.interest_ppm = parts_per_million("interest", &asked.interest)?;
    params.factory.stock_share_ppm = parts_per_million("stock", &asked.stock)?;
    params.factory.expiry_policy = match asked.expiry {
        Expiry::ClientRefund => ExpiryPolicy::ClientRefund,
        Expiry::LspReclaim => ExpiryPolicy::LspReclaim,
    };
    params.feerates = match &asked.feerate_path {
        Some(path) => FeeratePath::parse("feerate-path", path, asked.feerate)?,
        None => FeeratePath::parse("feerate", &asked.feerate.to_string(), asked.feerate)?,
    };
    params.days = asked.days;
    params.factory_clients = asked.factory_clients;
    params.min_clients = asked.min_clients.min(asked.factory_clients);
    params.seed = asked.seed;
    Ok(params)
}

fn print(plan: &Plan) {
    let (steady, totals, factory, exit) =
        (&plan.steady, &plan.totals, &plan.factory, &plan.mass_exit);
    let days = format!(
        "days {} to {}",
        steady.from_day,
        steady
            .from_day
            .saturating_add(steady.days)
            .saturating_sub(1)
    );
    output::pairs(&[
        (
            "largest factory",
            format!(
                "{} clients, {} BTC ({} stock), {} levels, exit delay {} blocks",
                factory.clients,
                btc(factory.funding_sat),
                btc(factory.stock_sat),
                factory.levels,
                factory.exit_delay
            ),
        ),
        (
            "its transactions",
            format!(
                "funding {} vB, reap {} vB, one client away {} vB, whole tree {} vB",
                factory.funding_vbytes,
                factory.reap_vbytes,
                factory.one_away_vbytes,
                factory.tree_vbytes
            ),
        ),
    ]);
    outln!("");
    output::pairs(&[
        (
            "on average",
            format!("{days}, with {} clients served", steady.clients),
        ),
        (
            "births a day",
            format!(
                "{}, {} transactions for each",
                thousandths(steady.births_per_1000_days),
                thousandths(steady.txs_per_1000_births)
            ),
        ),
        (
            "capital",
            format!(
                "{} BTC: channels {}, stock {}, funded twice {}, no-shows {}",
                btc(steady.locked.total()),
                btc(steady.locked.channels_sat),
                btc(steady.locked.stock_sat),
                btc(steady.locked.double_sat),
                btc(steady.locked.tail_sat)
            ),
        ),
        ("capital in use", percent(steady.efficiency_ppm.into())),
        (
            "client and month",
            format!(
                "{} vB, {} sat of fees, {} sat of interest",
                steady.vbytes_per_client_month,
                steady.sat_per_client_month,
                steady.interest_sat_per_client_month
            ),
        ),
        ("block space", percent(steady.block_space_ppm)),
    ]);
    outln!("");
    output::pairs(&[
        (
            "in all",
            format!(
                "{} born, {} reaped, {} clients published; {} transactions, {} vB, {} sat",
                totals.births,
                totals.reaps,
                totals.published,
                totals.txs,
                totals.vbytes,
                totals.fees_sat
            ),
        ),
        (
            "at most",
            format!(
                "{} BTC locked, {} births a day, {} paths begun on one day",
                btc(totals.peak_locked_sat),
                totals.peak_births,
                totals.peak_published
            ),
        ),
        (
            "all leave at once",
            format!(
                "{} factories, {} vB, {} full blocks, {} sat",
                exit.factories, exit.vbytes, exit.blocks, exit.fees_sat
            ),
        ),
    ]);
    outln!("");
    let step = plan.days.len().div_ceil(ROWS).max(1);
    let last = plan.days.len().saturating_sub(1);
    let shown = plan.days.iter().enumerate();
    let rows: Vec<Vec<String>> = shown
        .filter(|(index, _)| index % step == 0 || *index == last)
        .map(|(_, day)| row(day))
        .collect();
    output::table(
        &[
            "day",
            "clients",
            "born",
            "reaped",
            "published",
            "txs",
            "vB",
            "sat/vB",
            "fees sat",
            "channels",
            "stock",
            "twice",
            "no-shows",
            "BTC locked",
        ],
        &rows,
    );
}

fn row(day: &Day) -> Vec<String> {
    let locked = &day.locked;
    vec![
        day.day.to_string(),
        day.clients.to_string(),
        day.births.to_string(),
        day.reaps.to_string(),
        day.published.to_string(),
        day.txs.to_string(),
        day.vbytes.to_string(),
        day.feerate.to_string(),
        day.fees_sat.to_string(),
        btc(locked.channels_sat),
        btc(locked.stock_sat),
        btc(locked.double_sat),
        btc(locked.tail_sat),
        btc(locked.total()),
    ]
}

fn btc(sat: u64) -> String {
    format!("{}.{:04}", sat / 100_000_000, (sat % 100_000_000) / 10_000)
}

fn percent(ppm: u64) -> String {
    format!("{}.{:02} %", ppm / 10_000, (ppm % 10_000) / 100)
}

fn thousandths(number: u64) -> String {
    format!("{}.{:03}", number / 1000, number % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Command;
    use clap::Parser;

    fn asked(words: &[&str]) -> PlanArgs {
        let words = ["coordinator", "plan"].iter().chain(words);
        match Args::try_parse_from(words).unwrap().command {
            Command::Plan(plan) => plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_are_what_the_plan_is_made_from() {
        let words = [
            "--clients",
            "500",
            "--no-show",
            "2.5%",
            "--feerate-path",
            "10,50@20",
            "--profile",
            "deep",
            "--expiry",
            "lsp-reclaim",
        ];
        let params = params(&asked(&words)).unwrap();
        assert_eq!((params.clients, params.no_show_ppm), (500, 25_000));
        assert_eq!(params.feerates, FeeratePath::Steps(vec![(0, 10), (20, 50)]));
        assert_eq!(params.factory.layers, 2);
        assert_eq!(params.factory.expiry_policy, ExpiryPolicy::LspReclaim);
        let defaults = self::params(&asked(&[])).unwrap();
        assert_eq!(defaults, PlanParams::new(1000, Profile::Lite));
    }

    #[test]
    fn what_is_wrong_is_named_as_a_flag() {
        for (flag, value) in [
            ("--no-show", "2"),
            ("--balance", "x"),
            ("--stock", "-1"),
            ("--interest", "7"),
            ("--feerate", "0"),
            ("--feerate-path", "10,x"),
            ("--clients", "1"),
            ("--capacity", "0"),
            ("--days", "0"),
            ("--factory-clients", "2"),
            ("--min-clients", "1"),
        ] {
            let asked = asked(&[&format!("{flag}={value}")]);
            let failed = params(&asked).and_then(|params| capital::simulate(&params));
            let error = failed.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{flag} ")), "{error}");
        }
    }

    #[test]
    fn amounts_are_written_without_floats() {
        assert_eq!(btc(123_456_789), "1.2345");
        assert_eq!(percent(909_090), "90.90 %");
        assert_eq!(thousandths(2_012), "2.012");
    }
}
