//! Which factories are confirmed, usable, or can never be.
//!
//! Only the funding outpoint of the own attempt counts. A failed attempt's kit is kept until the
//! funding input common to all attempts is spent by something else, to depth.

use std::collections::HashMap;

use bitcoin::{OutPoint, Txid};
use factory_tree::units::{Blocks, Height};

use crate::client::{Inner, Warning};
use crate::error::Result;
use crate::event::Event;
use crate::exit::{leave_by, would_be_late};
use crate::store::{FactoryRow, Spend};

/// Brings every factory's state in line with the chain, whatever it was before.
pub(super) async fn update(client: &Inner, tip: Height) -> Result<()> {
    let factories = client.store.factories().await?;
    if factories.is_empty() {
        return Ok(());
    }
    let seen = client.store.seen_txs().await?;
    let heights: HashMap<Txid, Height> = seen
        .iter()
        .map(|seen| (seen.tx.compute_txid(), seen.height))
        .collect();
    let spends: HashMap<OutPoint, Spend> = client
        .store
        .spends()
        .await?
        .into_iter()
        .map(|spend| (spend.outpoint, spend))
        .collect();
    for row in &factories {
        let confirmed = heights.get(&row.funding.txid).copied();
        update_one(client, row, confirmed, tip).await?;
        let rival = spends
            .get(&row.common_pin)
            .filter(|spend| spend.spender != row.funding.txid);
        abandon(client, row, rival, tip).await?;
    }
    Ok(())
}

async fn update_one(
    client: &Inner,
    row: &FactoryRow,
    confirmed: Option<Height>,
    tip: Height,
) -> Result<()> {
    let late = warn_if_late(client, row, confirmed, tip).await?;
    let deep = confirmed.is_some_and(|height| depth(height, tip) >= row.confirmations.max(1));
    let usable = deep && !late;
    if confirmed == row.confirmed && usable == row.usable {
        return Ok(());
    }
    let factory = row.factory;
    client
        .store
        .set_confirmed(factory, confirmed, usable)
        .await?;
    // Before anybody hears of it: nothing is taken over a factory that is not confirmed, and what is usable is used at once.
    let open = FactoryRow {
        usable,
        ..row.clone()
    }
    .stands();
    crate::lightning::gate(client, factory, open).await?;
    // A block that was replaced by another with the same funding is both.
    if row.confirmed.is_some() && row.confirmed != confirmed {
        client.events.emit(Event::FactoryUnconfirmed { factory });
    }
    if let Some(Height(height)) = confirmed
        && row.confirmed != confirmed
    {
        client
            .events
            .emit(Event::FactoryConfirmed { factory, height });
    }
    if usable && !row.usable {
        client.events.emit(Event::FactoryUsable { factory });
        client
            .set_live(|live| (live.round, live.phase) = (None, None))
            .await;
        client.wake_connection.notify_one();
    }
    Ok(())
}

/// Whether the factory is, or would be in the next block, too near its end to be used; told once.
async fn warn_if_late(
    client: &Inner,
    row: &FactoryRow,
    confirmed: Option<Height>,
    tip: Height,
) -> Result<bool> {
    let awaited = row.acked && !row.failed;
    if !row.is_live() || (confirmed.is_none() && !awaited) {
        return Ok(false);
    }
    let Some(kit) = client.kits.sound(row.factory).await? else {
        return Ok(false);
    };
    let at = confirmed.unwrap_or_else(|| tip.plus(Blocks(1)));
    let late = would_be_late(row, &kit, at);
    if late && client.first_time(row.factory, Warning::Late) {
        let leave_by_height = leave_by(&kit).0;
        client.events.emit(Event::FactoryLate {
            factory: row.factory,
            leave_by_height,
        });
    }
    Ok(late)
}

async fn abandon(
    client: &Inner,
    row: &FactoryRow,
    rival: Option<&Spend>,
    tip: Height,
) -> Result<()> {
    let finally = client.config.exit.final_depth;
    let dead = rival.is_some_and(|spend| depth(spend.height, tip) >= finally);
    match (dead, row.abandoned) {
        (true, None) => {
            client.store.set_abandoned(row.factory, Some(tip)).await?;
            client.events.emit(Event::FactoryAbandoned {
                factory: row.factory,
            });
        }
        (false, Some(_)) => client.store.set_abandoned(row.factory, None).await?,
        _ => {}
    }
    Ok(())
}

/// Confirmations of what is in the block at `height`.
pub(crate) fn depth(height: Height, tip: Height) -> u32 {
    if height > tip {
        return 0;
    }
    let Blocks(above) = tip.since(height);
    above.saturating_add(1)
}
