//! The tree as a picture, drawn from the coordinator's export alone.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bitcoin::OutPoint;
use scenarios::export::{Export, Exported, Output};

use crate::screen::{Screen, grouped, short};

/// Draws the factory from its funding output down to channels and stocks.
pub(crate) fn draw(screen: &mut Screen, export: &Export) -> Result<()> {
    let numbers = export
        .clients()
        .zip(0u32..)
        .map(|(client, number)| (client.id.as_str(), number));
    let picture = Picture {
        export,
        numbers: numbers.collect(),
    };
    let funding = export.funding_outpoint();
    screen.say(&format!(
        "{} {}  {} sat  owned by all {} clients & L",
        screen.bold("funding output"),
        short(&funding.txid.to_string()),
        grouped(export.funding.amount_sat),
        picture.numbers.len()
    ));
    picture.below(screen, funding, "")
}

struct Picture<'a> {
    export: &'a Export,
    numbers: HashMap<&'a str, u32>,
}

impl Picture<'_> {
    /// The transaction that spends an output, and all below it.
    fn below(&self, screen: &mut Screen, outpoint: OutPoint, indent: &str) -> Result<()> {
        let node = self
            .export
            .child(outpoint)
            .with_context(|| format!("nothing spends {outpoint}"))?;
        let timeout = self.export.timeout(outpoint).map(|tx| {
            let paid = tx.outputs_of("payout").count() + tx.outputs_of("branch").count();
            format!("  ⏱ else at {}: {paid} payouts", when(tx))
        });
        let line = format!(
            "{indent}└─ {} {}{}{}",
            screen.accent(&node.kind),
            short(&node.txid.to_string()),
            node.delay()
                .map(|blocks| format!("  after {blocks} blocks"))
                .unwrap_or_default(),
            screen.dim(&timeout.unwrap_or_default())
        );
        screen.say(&line);
        let indent = format!("{indent}   ");
        if node.kind == "leaf" {
            self.leaf(screen, node, &indent);
            return Ok(());
        }
        let branches: Vec<_> = node.outputs_of("branch").collect();
        for (index, (branch, output)) in branches.iter().enumerate() {
            let last = index + 1 == branches.len();
            let stem = if branches.len() == 1 {
                &indent
            } else {
                &format!("{indent}{}  ", if last { " " } else { "│" })
            };
            if branches.len() > 1 {
                let mark = if last { "└" } else { "├" };
                let text = format!(
                    "{indent}{mark}─ clients {}  {} sat",
                    self.range(output),
                    grouped(output.amount_sat)
                );
                screen.say(&text);
            }
            self.below(screen, *branch, stem)?;
        }
        Ok(())
    }

    fn leaf(&self, screen: &mut Screen, leaf: &Exported, indent: &str) {
        let channels = leaf
            .outputs_of("channel")
            .map(|(_, output)| format!("{}: {}", self.range(output), grouped(output.amount_sat)));
        let channels: Vec<_> = channels.collect();
        let stocks: Vec<_> = leaf.outputs_of("stock").collect();
        let mark = if stocks.is_empty() { "└" } else { "├" };
        screen.say(&format!(
            "{indent}{mark}─ {} of client {}",
            screen.good("channels"),
            channels.join("  ")
        ));
        if stocks.is_empty() {
            return;
        }
        let stocks = stocks.iter().map(|(outpoint, output)| {
            let timeout = self
                .export
                .timeout(*outpoint)
                .map(|tx| format!(" ⏱ {}", when(tx)));
            format!(
                "{}: {}{}",
                self.range(output),
                grouped(output.amount_sat),
                timeout.unwrap_or_default()
            )
        });
        let stocks = stocks.collect::<Vec<_>>().join("  ");
        screen.say(&format!(
            "{indent}└─ {} of clients {stocks}",
            screen.good("stocks")
        ));
    }

    /// `0-3`, or one number.
    fn range(&self, output: &Output) -> String {
        let mut numbers: Vec<u32> = output
            .clients
            .iter()
            .filter_map(|id| self.numbers.get(id.as_str()).copied())
            .collect();
        numbers.sort_unstable();
        match (numbers.first(), numbers.last()) {
            (Some(first), Some(last)) if first != last => format!("{first}-{last}"),
            (Some(only), _) => only.to_string(),
            _ => "?".to_owned(),
        }
    }
}

fn when(tx: &Exported) -> String {
    let after = tx.delay().map(|blocks| format!(" and +{blocks}"));
    format!("height {}{}", tx.locktime, after.unwrap_or_default())
}
