//! What each wallet says leaving would cost it.

use anyhow::{Context, Result};
use scenarios::world::number;
use serde_json::Value;

use crate::build::Factory;
use crate::screen::grouped;
use crate::stage::Stage;

/// Feerates of the table, sat/vB.
const FEERATES: [u64; 3] = [1, 10, 50];

/// A table with a row per wallet, each from that wallet's own mouth.
pub(crate) fn show(stage: &mut Stage, factory: &Factory) -> Result<()> {
    stage
        .screen
        .heading("What each client holds: its way out, and what staying away pays");
    let mut rows = vec![
        [
            "client",
            "capacity",
            "path tx",
            "path vB",
            "exit at 1",
            "10",
            "50 sat/vB",
            "worst delay",
            "coverage",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for client in &stage.world.clients {
        let quote = client.json(&["quote-exit", &factory.created.factory])?;
        rows.push(row(client.name(), &quote)?);
    }
    stage.screen.table(&rows);
    let note = match stage.expiry {
        crate::Expiry::ClientRefund => {
            "coverage: the least that the timeouts pay, net of their own fees, to a client that never publishes anything"
        }
        crate::Expiry::LspReclaim => {
            "coverage: what its channel's timeout pays at T, once it has published its leaf; a client that stays away loses it"
        }
    };
    let note = stage.screen.dim(note);
    stage.screen.say(&note);
    Ok(())
}

fn row(name: &str, quote: &Value) -> Result<Vec<String>> {
    let quotes = quote["quotes"].as_array().context("no quotes")?;
    let at = |feerate: u64| {
        let found = quotes
            .iter()
            .find(|one| one["feerate_sat_per_vb"] == feerate);
        found.with_context(|| format!("no quote at {feerate} sat/vB in {quote}"))
    };
    let first = at(1)?;
    let mut row = vec![
        name.to_owned(),
        grouped(number(quote, "capacity_sat")?),
        number(first, "transactions")?.to_string(),
        grouped(number(first, "vbytes")?),
    ];
    for feerate in FEERATES {
        row.push(grouped(number(at(feerate)?, "cost_sat")?));
    }
    row.push(format!("{} blocks", number(quote, "worst_delay_blocks")?));
    row.push(grouped(number(quote, "coverage_sat")?));
    Ok(row)
}
