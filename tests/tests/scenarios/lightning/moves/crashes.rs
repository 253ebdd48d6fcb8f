//! Moves whose sides stop between any two writes.

use anyhow::Result;
use channel_host::{MovePart, Msat, NodeEvent};

use super::harness::{Move, ending, moving, state};
use crate::lightning::harness::{Member, until};

const AMOUNT: Msat = Msat(1_000_001);
const FEE: Msat = Msat(1_001);
/// More writes than a start and a part take.
const MANY: u32 = 200;

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Lsp,
    Client,
}

fn victim(all: &mut Move, which: Victim) -> &mut Member {
    match which {
        Victim::Lsp => &mut all.lsp,
        Victim::Client => &mut all.client,
    }
}

/// Starts the victim with a store that fails at a write, and moves a part. Returns the part, if it came to that, and whether the store failed.
async fn fail(all: &mut Move, which: Victim, writes: u32) -> Result<(Option<MovePart>, bool)> {
    let failing = victim(all, which);
    failing.abort().await;
    failing.fail_after(Some(writes)).await?;
    if failing.launch().await.is_err() {
        return Ok((None, true));
    }
    let (mut part, mut over, mut failed) = (None, false, false);
    until("the part's end, or the store's", || {
        while let Some(event) = victim(all, which).heard() {
            failed |= matches!(event, NodeEvent::Stopped { .. });
            let known = part.as_ref();
            over |= known.is_some_and(|part| ending(&event, part).is_some());
        }
        let sides = [&all.lsp, &all.client];
        let channels = sides.iter().flat_map(|side| side.node().channels());
        let usable = channels.filter(|channel| channel.usable).count() == 4;
        if part.is_none() && usable && !failed {
            part = all.terms(AMOUNT, FEE).ok();
            // Refused if the store has failed meanwhile.
            if let Some(part) = &part {
                let _ = all.send(part);
            }
        }
        Ok(failed || over)
    })
    .await?;
    Ok((part, failed))
}

async fn survives(which: Victim) -> Result<()> {
    let mut all = moving().await?;
    let (mut moved, mut failures) = (0, 0);
    for writes in 0..MANY {
        let before = (all.balance(&all.old)?, all.balance(&all.new)?);
        let (part, failed) = fail(&mut all, which, writes).await?;
        let failing = victim(&mut all, which);
        failing.abort().await;
        failing.fail_after(None).await?;
        failing.launch().await?;
        all.usable().await?;
        // Agreed to and never paid is over, too.
        let quiet = |all: &Move| {
            let parts = part
                .iter()
                .flat_map(|part| [state(&all.lsp, part), state(&all.client, part)].into_iter());
            let mut open = parts.flatten();
            open.all(|state| state == channel_host::PartState::Agreed)
        };
        until("the part's end", || Ok(quiet(&all))).await?;
        all.idle().await?;
        let after = (all.balance(&all.old)?, all.balance(&all.new)?);
        let whole = Msat(AMOUNT.0 + FEE.0);
        if after.1 > before.1 {
            moved += 1;
            assert_eq!(after.0.0, before.0.0 - whole.0, "write {writes}");
            assert_eq!(after.1.0, before.1.0 + AMOUNT.0, "write {writes}");
        } else {
            failures += 1;
            assert_eq!(after, before, "write {writes}");
        }
        // Whatever happened, the next part moves.
        all.move_part(AMOUNT, FEE).await?;
        all.idle().await?;
        if !failed {
            assert!(writes > 10 && moved > 3 && failures > 3, "{writes}");
            assert!(all.node.mempool()?.is_empty());
            return Ok(());
        }
    }
    anyhow::bail!("a part takes more than {MANY} writes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_survives_a_crash_of_the_coordinator_between_any_two_writes() -> Result<()> {
    survives(Victim::Lsp).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_survives_a_crash_of_the_client_between_any_two_writes() -> Result<()> {
    survives(Victim::Client).await
}
