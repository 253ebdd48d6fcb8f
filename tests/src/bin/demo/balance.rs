//! The balance sheet, to the satoshi, and the report.

use std::fs;

use anyhow::Result;
use scenarios::ledger::{Ledger, OnChain, Owner};
use scenarios::world::number;
use serde::Serialize;
use serde_json::json;

use crate::build::Factory;
use crate::screen::{grouped, short, signed};
use crate::stage::Stage;

/// Beyond this the transactions are summed up by kind on the screen; the report has them all.
const LISTED: usize = 40;

#[derive(Debug, Serialize)]
struct Party {
    name: String,
    start_sat: u64,
    end_sat: u64,
    /// What the party's own program says it has; nothing if it does not run any more.
    says_sat: Option<u64>,
}

/// Shows who ended with what, and writes `report.json`; gives whether it adds up.
pub(crate) fn sheet(stage: &mut Stage, factory: &Factory) -> Result<bool> {
    stage
        .screen
        .heading("The balance sheet, read from the chain");
    let ledger = stage.world.ledger(vec![factory.export.clone()])?;
    let difference = ledger.difference(&stage.world.node)?;
    let parties = parties(stage, &ledger)?;
    show_parties(stage, &ledger, &parties, difference);
    show_transactions(stage, &ledger);
    let honest = parties
        .iter()
        .all(|party| party.says_sat.is_none_or(|says| says == party.end_sat));
    let ok = difference == 0 && honest && ledger.sum_of(&Owner::Factory) == bitcoin::Amount::ZERO;
    let report = json!({
        "ok": ok,
        "clients": stage.world.clients.len(),
        "profile": stage.profile.name(),
        "expiry": stage.expiry.name(),
        "elapsed_s": (stage.screen.elapsed() * 10.0).round() / 10.0,
        "factory": factory.created.factory,
        "parties": parties,
        "anchors_left_sat": ledger.sum_of(&Owner::Anyone).to_sat(),
        "fees_sat": ledger.fees().to_sat(),
        "onchain": own(&ledger),
        "difference_sat": difference,
    });
    let path = stage.directory.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    let verdict = match ok {
        true => stage.screen.good("✓ it adds up to the satoshi"),
        false => stage.screen.bad("✗ it does not add up"),
    };
    let seconds = stage.screen.elapsed();
    stage.screen.say(&format!(
        "{verdict}; {seconds:.1} s in all; report: {}",
        path.display()
    ));
    Ok(ok)
}

fn own(ledger: &Ledger) -> Vec<&OnChain> {
    ledger
        .onchain()
        .iter()
        .filter(|tx| tx.kind != "gift")
        .collect()
}

fn parties(stage: &Stage, ledger: &Ledger) -> Result<Vec<Party>> {
    let mut parties = Vec::new();
    let coordinator = &stage.world.coordinator;
    let says = match stage.coordinator_lives {
        true => Some(number(
            &coordinator.json(&["wallet", "balance"])?,
            "confirmed_sat",
        )?),
        false => None,
    };
    parties.push((coordinator.name(), says));
    for client in &stage.world.clients {
        let balance = client.json(&["balance"])?;
        let says = number(&balance, "confirmed_sat")? + number(&balance, "payouts_sat")?;
        parties.push((client.name(), Some(says)));
    }
    // It runs in the demo's own process: there is nobody to ask.
    parties.push((scenarios::outside::NAME, None));
    let party = |(name, says_sat): (&str, Option<u64>)| Party {
        name: name.to_owned(),
        start_sat: ledger.start_of(name).to_sat(),
        end_sat: ledger.has(name).to_sat(),
        says_sat,
    };
    Ok(parties.into_iter().map(party).collect())
}

fn show_parties(stage: &mut Stage, ledger: &Ledger, parties: &[Party], difference: i64) {
    let heading = ["party", "start sat", "end sat", "change", "its own word"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for party in parties {
        let change = party.end_sat.cast_signed() - party.start_sat.cast_signed();
        rows.push(vec![
            party.name.clone(),
            grouped(party.start_sat),
            grouped(party.end_sat),
            signed(change),
            match party.says_sat {
                Some(sat) => grouped(sat),
                None if party.name == scenarios::outside::NAME => "-".to_owned(),
                None => "killed".to_owned(),
            },
        ]);
    }
    let plain = |name: &str, sat: u64| {
        vec![
            name.to_owned(),
            "0".to_owned(),
            grouped(sat),
            String::new(),
            String::new(),
        ]
    };
    rows.push(plain(
        "anchors nobody spent",
        ledger.sum_of(&Owner::Anyone).to_sat(),
    ));
    rows.push(plain(
        "still in the factory",
        ledger.sum_of(&Owner::Factory).to_sat(),
    ));
    rows.push(plain("fees to miners", ledger.fees().to_sat()));
    let start: u64 = parties.iter().map(|party| party.start_sat).sum();
    rows.push(vec![
        "sum".to_owned(),
        grouped(start),
        grouped(start.saturating_add_signed(-difference)),
        format!("difference {}", signed(difference)),
        String::new(),
    ]);
    stage.screen.table(&rows);
}

fn show_transactions(stage: &mut Stage, ledger: &Ledger) {
    let txs = own(ledger);
    let (vbytes, fees): (u64, u64) = (
        txs.iter().map(|tx| tx.vbytes).sum(),
        txs.iter().map(|tx| tx.fee_sat).sum(),
    );
    let title = format!(
        "{} transactions on the chain, {} vB, {} sat of fees:",
        txs.len(),
        grouped(vbytes),
        grouped(fees)
    );
    stage.screen.say("");
    stage.screen.say(&title);
    let mut rows = Vec::new();
    if txs.len() <= LISTED {
        rows.push(
            ["transaction", "height", "kind", "vB", "fee sat", "paid by"]
                .map(str::to_owned)
                .to_vec(),
        );
        for tx in txs {
            rows.push(vec![
                short(&tx.txid.to_string()),
                tx.height.to_string(),
                tx.kind.clone(),
                grouped(tx.vbytes),
                grouped(tx.fee_sat),
                tx.by.clone().unwrap_or_default(),
            ]);
        }
    } else {
        rows.push(
            ["kind", "transactions", "vB", "fees sat"]
                .map(str::to_owned)
                .to_vec(),
        );
        let mut kinds: Vec<&str> = txs.iter().map(|tx| tx.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let of_kind: Vec<_> = txs.iter().filter(|tx| tx.kind == kind).collect();
            rows.push(vec![
                kind.to_owned(),
                of_kind.len().to_string(),
                grouped(of_kind.iter().map(|tx| tx.vbytes).sum()),
                grouped(of_kind.iter().map(|tx| tx.fee_sat).sum()),
            ]);
        }
    }
    stage.screen.table(&rows);
}
