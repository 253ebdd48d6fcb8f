//! What a life of the ladder came to.

use std::fs;

use anyhow::Result;
use scenarios::binaries;
use scenarios::ledger::{Ledger, OnChain};
use serde_json::json;

use super::{BALANCE, DAYS, Story, wallets};
use crate::screen::{grouped, signed};

/// Counted at the end.
struct Count {
    born: usize,
    reaped: usize,
    migrated: usize,
    published: usize,
    difference: i64,
    /// Wallets that have what they were paid, and migrated.
    whole: usize,
}

impl Story {
    /// Reads the chain, asks every wallet, writes `ladder.json`; gives whether it adds up.
    pub(super) fn report(&mut self) -> Result<bool> {
        self.screen.heading("What it came to, read from the chain");
        let whole = self.whole_wallets()?;
        self.ladder.world.coordinator.terminate()?;
        let ledger = self.ladder.world.ledger(self.ladder.exports())?;
        let lives = self.ladder.tally.lives();
        let count = Count {
            born: lives.len(),
            reaped: self.ladder.reaped(&ledger).len(),
            migrated: lives.iter().map(|(_, life)| life.handed_over.len()).sum(),
            published: lives.iter().map(|(_, life)| life.published.len()).sum(),
            difference: ledger.difference(&self.ladder.world.node)?,
            whole,
        };
        let exits = self.ladder.world.exits_were_complete();
        self.tell(&ledger, &count);
        let exits_ok = match exits {
            Ok(watch) => {
                self.screen.say(&format!(
                    "exits         {} looks at the wallets' stores, {} exits rehearsed: always complete",
                    grouped(watch.looks),
                    grouped(watch.rehearsed)
                ));
                true
            }
            Err(error) => {
                let line = self.screen.bad(&format!("✗ {error:#}"));
                self.screen.say(&line);
                false
            }
        };
        let first = DAYS.rungs as usize;
        let ok = exits_ok
            && count.difference == 0
            && count.whole == wallets()
            && count.published == 0
            && count.reaped >= first
            && count.born >= 2 * first;
        self.write(&ledger, &count, ok)?;
        Ok(ok)
    }

    /// Wallets that migrated, and have on Lightning exactly what they were paid.
    fn whole_wallets(&mut self) -> Result<usize> {
        let mut whole = 0;
        for index in 0..wallets() {
            self.screen.progress(&format!("asking wallet {index}"));
            let id = self.ladder.world.id_of(self.ladder.world.client(index)?)?;
            let mut lives = self.ladder.tally.factories.values();
            let migrated = lives.any(|life| life.handed_over.contains(id));
            let has = self.ladder.world.lightning_msat(index)?;
            whole += usize::from(migrated && has == BALANCE * 1_000);
        }
        Ok(whole)
    }

    fn tell(&mut self, ledger: &Ledger, count: &Count) {
        let own = own(ledger);
        let vbytes: u64 = own.iter().map(|tx| tx.vbytes).sum();
        let fees: u64 = own.iter().map(|tx| tx.fee_sat).sum();
        let each = own.len() as f64 / count.born.max(1) as f64;
        let parts: u32 = self
            .ladder
            .tally
            .factories
            .values()
            .map(|life| life.parts)
            .sum();
        let lines = [
            format!(
                "factories     {} born, {} reaped by one input each, {} standing",
                count.born,
                count.reaped,
                count.born.saturating_sub(count.reaped)
            ),
            format!(
                "clients       {} moves in {} parts; {} of {} wallets have every thousandth of a satoshi they were paid",
                count.migrated,
                grouped(parts.into()),
                count.whole,
                wallets()
            ),
            format!(
                "on the chain  {} transactions, {} vB, {} sat of fees; {each:.2} per factory; {} paths published",
                own.len(),
                grouped(vbytes),
                grouped(fees),
                count.published
            ),
            format!("difference    {} sat", signed(count.difference)),
        ];
        for line in lines {
            self.screen.say(&line);
        }
    }

    fn write(&mut self, ledger: &Ledger, count: &Count, ok: bool) -> Result<()> {
        let own = own(ledger);
        let report = json!({
            "ok": ok,
            "born": count.born,
            "reaped": count.reaped,
            "migrated": count.migrated,
            "published_by_lsp": count.published,
            "onchain_txs": own.len(),
            "onchain_vb": own.iter().map(|tx| tx.vbytes).sum::<u64>(),
            "difference_sat": count.difference,
            "elapsed_s": (self.screen.elapsed() * 10.0).round() / 10.0,
        });
        let path = binaries::root().join("target/demo/ladder.json");
        fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
        let verdict = match ok {
            true => self.screen.good("✓ it adds up to the satoshi"),
            false => self.screen.bad("✗ it does not add up"),
        };
        let seconds = self.screen.elapsed();
        self.screen.say(&format!(
            "{verdict}; {seconds:.1} s in all; report: target/demo/ladder.json"
        ));
        Ok(())
    }
}

/// The ladder's own transactions: everything but what the harness handed out, and the channel of the world outside.
fn own(ledger: &Ledger) -> Vec<&OnChain> {
    let coordinators = |tx: &&OnChain| tx.by.as_deref() == Some("coordinator");
    let all = ledger.onchain().iter().filter(coordinators);
    all.filter(|tx| tx.kind != "gift").collect()
}
