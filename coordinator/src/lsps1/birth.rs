//! Channels that come with the next factory: the client has a place at its birth, and pays when its channel there may be used. They end with the
//! factory, and cost no output of their own.

use bitcoin::OutPoint;
use channel_host::{LeafId, LeafView, Stage};
use factory_tree::ids::{CeremonyId, ClientId};
use factory_tree::units::{Blocks, Height};

use super::params::Asked;
use super::{AVERAGE_BLOCK, on_average};
use crate::context::Context;
use crate::store::ceremonies::{self, CeremonyState};
use crate::store::lsps1::{self as rows, OrderRow};
use crate::store::{self, clients, factories, ladder};

/// A payer's route is no longer than this, in blocks (LDK's and others' default).
const LONGEST_HOLD: u32 = 1_008;

/// How far the channel of an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its client has none.
    None,
    /// The factory is born, or about to be, in this ceremony.
    Born(CeremonyId),
    /// The channel may be used; this is its leaf.
    Usable(OutPoint),
}

/// What such a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Birth {
    /// Blocks for which its payment is held at most.
    pub held: u32,
    /// Blocks for which it may be used.
    pub lasts: u32,
}

/// Nothing where it cannot come with the next factory: the client is none of factories, or would not be invited, it should be announced, funded
/// sooner, opened at once (which bLIP-51 wants of channels that are used before any confirmation), or kept open for longer than the factory lives.
pub(super) async fn offer(
    ctx: &Context,
    client: ClientId,
    asked: &Asked,
) -> store::Result<Option<Birth>> {
    let policy = &ctx.config.policy;
    if asked.announce || asked.confirmations == 0 || !ctx.config.ladder.enabled {
        return Ok(None);
    }
    let read = ctx.store.read(async |tx| {
        let mut known = clients::list(tx).await?.into_iter();
        let known = known.find(|row| row.client == client);
        let own = ladder::members(tx, Some(client)).await?;
        Ok((ladder::first(tx).await?, known, own))
    });
    let (Some(first), Some(account), own) = read.await? else {
        return Ok(None);
    };
    // It may come on top of what the client moves into the same factory.
    let has = own.iter().map(|own| own.capacity.to_sat()).max();
    let most = has.unwrap_or(0).saturating_add(asked.lsp_balance_sat);
    let faults = account
        .score
        .at(ctx.height(), policy.score_half_life_blocks);
    let fits = asked.lsp_balance_sat >= policy.capacity_min_sat
        && most <= policy.capacity_max_sat
        && faults <= policy.score_skip_above;
    if !fits {
        return Ok(None);
    }
    let Ok(factory) = ctx.config.factory_params(&Default::default()) else {
        return Ok(None);
    };
    let (ladder, height) = (ctx.config.ladder_params(), Height(ctx.height()));
    // Today's birth may be over, or too full: tomorrow's, late, and buried.
    let today = ladder.rung_at(Height(first), height);
    let next = today.map_or(0, |today| today.saturating_add(1));
    let usable = ladder
        .planned(Height(first), next)
        .plus(Blocks(ladder.birth_slip))
        .plus(Blocks(factory.conf_margin))
        .plus(Blocks(ladder.usable_depth));
    let wait = usable.0.saturating_sub(height.0);
    // The shortest life a factory can have, counted from when it can be used.
    let life = factory.schedule(height, 1).map_or(0, |schedule| {
        let end = schedule.expiry.minus(Blocks(factory.conf_margin));
        let end = end.minus(Blocks(ladder.usable_depth));
        end.since(height).0
    });
    if u32::from(asked.confirm_within) < wait || on_average(asked.expiry_blocks) > life {
        return Ok(None);
    }
    let config = &ctx.config.lsps1;
    // It may be paid at the last moment.
    let unpaid = u32::try_from(config.valid_seconds.div_ceil(AVERAGE_BLOCK));
    let held = wait
        .saturating_add(unpaid.unwrap_or(u32::MAX))
        .saturating_add(config.hold_blocks);
    let lasts = factory.active.saturating_add(factory.dying);
    Ok((held <= LONGEST_HOLD).then_some(Birth { held, lasts }))
}

/// What became of its client's place.
///
/// # Errors
/// Those of the database.
pub(super) async fn place(ctx: &Context, row: &OrderRow) -> store::Result<Place> {
    let Some(ceremony) = row.ceremony else {
        return Ok(Place::None);
    };
    let client = row.order.client;
    let read = ctx.store.read(async |tx| {
        let state = ceremonies::get(tx, ceremony).await?.map(|row| row.state);
        let factory = factories::of_ceremony(tx, ceremony).await?;
        let own = ladder::members(tx, Some(client)).await?;
        Ok((state, factory, own))
    });
    let (state, factory, own) = read.await?;
    let own = factory.and_then(|factory| {
        let own = own.into_iter().find(|own| own.factory == factory.id);
        own.map(|own| (factory, own))
    });
    match (state, own) {
        (Some(CeremonyState::Gathering | CeremonyState::Running), _) => Ok(Place::Born(ceremony)),
        (Some(CeremonyState::Complete), Some((factory, own))) => {
            let leaf = LeafId(own.leaf.0);
            let known = ctx.lightning.node().and_then(|node| node.leaf(leaf));
            // One that its client has left again meanwhile was served as well.
            let stood = |leaf: &LeafView| matches!(leaf.stage, Stage::Open | Stage::Closed);
            Ok(match known.filter(stood).filter(|_| factory.usable) {
                Some(leaf) => Place::Usable(leaf.outpoint),
                None => Place::Born(ceremony),
            })
        }
        // It was given up, or went on without the client: there is another one tomorrow.
        _ => {
            let id = &row.order.id;
            ctx.store
                .write(async |tx| rows::unseated(tx, id).await)
                .await?;
            Ok(Place::None)
        }
    }
}
