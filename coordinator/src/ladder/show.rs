//! The ladder for its operator.

use factory_tree::ladder::{
    FactoryFacts, Progress, Root, Stage, Standing, due, forecast as days_to_come,
};
use factory_tree::units::Height;
use proto::admin::{
    LadderDay, LadderExcluded, LadderFactory, LadderFailure, LadderForecastResponse,
    LadderPreviewResponse, LadderSeat, LadderShowResponse, LadderWait,
};

use super::view::Left;
use super::{LadderError, births, view};
use crate::context::Context;
use crate::store::ceremonies::{self, FailedBirth};

/// A row for every factory that is not over.
///
/// # Errors
/// [`LadderError`].
pub async fn show(ctx: &Context) -> Result<LadderShowResponse, LadderError> {
    let seen = view::look(ctx).await?;
    let height = Height(ctx.height());
    let params = ctx.config.ladder_params();
    let ladder = &seen.ladder;
    let today = params.rung_at(ladder.first, height);
    let born = |rung| ladder.factories.iter().any(|facts| facts.rung == rung);
    let next = today.map(|today| match born(today) {
        true => params.planned(ladder.first, today.saturating_add(1)).0,
        // Its day has begun.
        false => height.0.max(params.planned(ladder.first, today).0),
    });
    let failed = ctx
        .store
        .read(async |tx| ceremonies::last_failed_birth(tx).await)
        .await?;
    let last_failure = failed.map(|failed| {
        let day_ends = params.planned(ladder.first, failed.rung.saturating_add(1));
        let is_today = today == Some(failed.rung);
        let next = after(&failed, ctx.config.ladder.enabled, is_today, day_ends);
        LadderFailure {
            rung: failed.rung,
            ceremony: failed.ceremony.0.to_vec().into(),
            attempt: failed.attempt.unwrap_or(0),
            begun: failed.begun,
            reason: failed.reason,
            next,
        }
    });
    // As in a look: without the node nothing is known of balances, and no birth is begun.
    let waiting = match ctx.config.ladder.enabled && ctx.lightning.sees() {
        true => births::waiting(ctx, &seen, &due(&params, height, ladder), height.0).await?,
        false => None,
    };
    Ok(LadderShowResponse {
        enabled: ctx.config.ladder.enabled,
        height: height.0,
        rungs: params.rungs,
        spacing: params.spacing,
        next_birth: next.filter(|_| ctx.config.ladder.enabled),
        factories: ladder
            .factories
            .iter()
            .map(|facts| row(facts, seen.left(facts.id), height, params.spacing))
            .collect(),
        last_failure,
        waiting: waiting.map(|wait| LadderWait {
            rung: wait.rung,
            away: wait
                .away
                .iter()
                .map(|client| client.0.to_vec().into())
                .collect(),
            until: wait.until.0,
        }),
    })
}

/// What comes after a birth that failed; its rung's day ends before `day_ends`.
fn after(failed: &FailedBirth, enabled: bool, is_today: bool, day_ends: Height) -> String {
    if failed.is_born {
        return "nothing: the rung's factory was born later".to_owned();
    }
    if failed.is_open {
        return "the next attempt is under way".to_owned();
    }
    if !enabled {
        return "nothing: set ladder.enabled = true in coordinator.toml, and restart".to_owned();
    }
    match is_today {
        true => format!(
            "tried again at every block before block {}; `coordinator ladder preview` says who would be invited",
            day_ends.0
        ),
        false => "nothing: the rung's day is over, and the rung stays empty".to_owned(),
    }
}

/// `left`: on the chain, once its funding output is spent.
fn row(facts: &FactoryFacts, left: Option<Left>, height: Height, spacing: u32) -> LadderFactory {
    let (stage, dying_day) = match Stage::of(facts, height, spacing) {
        Stage::Unborn => ("unborn", 0),
        Stage::Active => ("active", 0),
        Stage::Dying { day } => ("dying", day),
        Stage::Closing => ("closing", 0),
        Stage::Expired => ("expired", 0),
        Stage::Ended => ("ended", 0),
    };
    let count = |is: fn(Progress) -> bool| {
        let members = facts.members.iter();
        let found = members.filter(|member| is(member.progress)).count();
        u32::try_from(found).unwrap_or(u32::MAX)
    };
    let sum = |amounts: &mut dyn Iterator<Item = bitcoin::Amount>| {
        amounts.map(|amount| amount.to_sat()).sum::<u64>()
    };
    let capacity = sum(&mut facts.members.iter().map(|member| member.capacity));
    let (locked, stock) = match (stage, left) {
        ("ended", _) => (0, 0),
        // What is spent is not locked any more.
        (_, Some(left)) => (left.all.to_sat(), left.stock.to_sat()),
        (_, None) => {
            let stock = facts.stock.to_sat();
            (capacity.saturating_add(stock), stock)
        }
    };
    LadderFactory {
        id: facts.id.0.to_vec().into(),
        rung: (facts.rung != u32::MAX).then_some(facts.rung),
        stage: stage.to_owned(),
        dying_day,
        born: facts.schedule.birth.0,
        dying_from: facts.schedule.dying_from.0,
        closes: facts.schedule.publish_from.0,
        expires: facts.schedule.expiry.0,
        clients: u32::try_from(facts.members.len()).unwrap_or(u32::MAX),
        moving: count(|progress| {
            matches!(
                progress,
                Progress::NewChannel { .. } | Progress::Moving { .. } | Progress::Moved { .. }
            )
        }),
        handed_over: count(|progress| progress == Progress::HandedOver),
        silent: count(|progress| matches!(progress, Progress::Invited { .. })),
        published: count(|progress| matches!(progress, Progress::Publishing | Progress::OnChain)),
        locked_sat: locked,
        client_sat: sum(&mut facts.members.iter().map(|member| member.balance)),
        stock_sat: stock,
        root: match facts.root {
            Root::Unspent => "standing",
            Root::ReapSent => "coming_back",
            Root::Reaped { .. } => "reaped",
            Root::Published { .. } => "published",
            Root::TimedOut { .. } => "timed_out",
        }
        .to_owned(),
        loss_sat: facts.loss_reported.map(bitcoin::Amount::to_sat),
    }
}

/// Who would be invited into a factory now, whether or not one is due.
///
/// # Errors
/// [`LadderError`].
pub async fn preview(ctx: &Context) -> Result<LadderPreviewResponse, LadderError> {
    let seen = view::look(ctx).await?;
    let height = ctx.height();
    let list = due(&ctx.config.ladder_params(), Height(height), &seen.ladder);
    let plan = births::plan(ctx, &seen, &list, height).await?;
    let preview = &plan.preview;
    let seats = preview.seats.iter().map(|seat| LadderSeat {
        client: seat.client.0.to_vec().into(),
        capacity_sat: seat.capacity.to_sat(),
        leaf: seat.leaf,
        standing: match seat.standing {
            Standing::Settled => "settled",
            Standing::New => "new",
            Standing::Unreliable => "unreliable",
        }
        .to_owned(),
        why: seat.why.clone(),
    });
    let excluded = preview.excluded.iter().map(|out| LadderExcluded {
        client: out.client.0.to_vec().into(),
        why: out.why.to_string(),
    });
    let away = plan.away(ctx).map(|client| client.0.to_vec().into());
    Ok(LadderPreviewResponse {
        seats: seats.collect(),
        excluded: excluded.collect(),
        away: away.collect(),
        channels_sat: preview.capital.channels.to_sat(),
        stock_sat: preview.capital.stock.to_sat(),
        total_sat: preview.capital.total.to_sat(),
        available_sat: plan.available.to_sat(),
        problem: preview
            .problem
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
    })
}

/// The next days, if everybody comes to its first invitation.
///
/// # Errors
/// [`LadderError`].
pub async fn forecast(ctx: &Context, days: u32) -> Result<LadderForecastResponse, LadderError> {
    let seen = view::look(ctx).await?;
    let params = ctx.config.ladder_params();
    let factory = ctx
        .config
        .factory_params(&std::collections::BTreeMap::new())?;
    let feerate = ctx.feerate().await.to_sat_per_vb_ceil();
    let list = days_to_come(
        (&params, &factory),
        Height(ctx.height()),
        &seen.ladder,
        days,
        feerate,
    );
    let most = list.iter().map(|day| day.locked.to_sat()).max();
    let list = list.into_iter().map(|day| LadderDay {
        day: day.day,
        height: day.height.0,
        births: day.births,
        clients: day.clients,
        reaps: day.reaps,
        locked_sat: day.locked.to_sat(),
        needed_sat: day.needed.to_sat(),
        fees_sat: day.chain_fees.to_sat(),
    });
    Ok(LadderForecastResponse {
        feerate,
        days: list.collect(),
        most_locked_sat: most.unwrap_or(0),
    })
}
