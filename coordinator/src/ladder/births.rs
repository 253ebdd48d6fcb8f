//! A rung's day: who is invited, when its ceremony begins, and what is told if it cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bitcoin::Amount;
use factory_tree::ceremony::coordinator::Invitee;
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::ladder::{
    Candidate, ChooseError, ChooseParams, Due, FactoryFacts, Hours, Kind, MemberFacts, Preview,
    Progress, choose,
};
use factory_tree::params::FactoryParams;
use factory_tree::shape::Shape;
use factory_tree::tx::checked_sum;
use factory_tree::units::{Blocks, Height};
use tokio::sync::watch;

use super::LadderError;
use super::view::Seen;
use crate::ceremony::{self, Called};
use crate::context::Context;
use crate::event::Event;
use crate::store::ceremonies::{self, Wish};
use crate::store::clients::{self, ClientRow};
use crate::store::lsps1::{self, Order};
use crate::webhooks::Why;

/// A level of a path and the child that pays for it, on the large side.
const LEVEL_VBYTES: u64 = 500;
/// Feerates rise while one waits.
const FEERATE_MARGIN: u64 = 3;

/// A client of a dying factory that is due an invitation.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    client: ClientId,
    from: FactoryId,
    attempt: u8,
    deadline: Height,
    capacity: Amount,
    balance: Amount,
}

/// What a rung's ceremony would be.
#[derive(Debug)]
pub(super) struct Plan {
    /// Whom it invites, and what it takes.
    pub(super) preview: Preview,
    /// What may be locked in it.
    pub(super) available: Amount,
    leaving: Vec<Leaving>,
    /// Orders that are paid for and wait for a factory.
    orders: Vec<Order>,
    params: FactoryParams,
}

impl Plan {
    /// Clients that must leave, or have paid for a place, and are away.
    pub(super) fn away(&self, ctx: &Context) -> impl Iterator<Item = ClientId> {
        let leaving = self.leaving.iter().map(|one| one.client);
        let all = leaving.chain(self.orders.iter().map(|order| order.client));
        all.filter(|client| !ctx.sessions.is_connected(client))
    }

    /// Whether a birth is due for somebody.
    fn is_called(&self) -> bool {
        !self.leaving.is_empty() || !self.orders.is_empty()
    }
}

/// Begins the birth that is due, if it is time.
pub(super) async fn look(
    ctx: &Arc<Context>,
    seen: &Seen,
    list: &[Due],
    height: u32,
    shutdown: &watch::Receiver<bool>,
) -> Result<(), LadderError> {
    let birth = list.iter().find_map(|due| match due {
        Due::Birth { rung, planned } => Some((*rung, *planned)),
        _ => None,
    });
    let Some((rung, planned)) = birth else {
        return Ok(());
    };
    let open = ctx
        .store
        .read(async |tx| ceremonies::open(tx).await)
        .await?;
    if open.iter().any(|row| row.wish.rung == Some(rung)) {
        return Ok(());
    }
    // One try per block: what failed at once would fail at once again.
    if !ctx.ladder.is_news(format!("birth {rung} {height}")) {
        return Ok(());
    }
    let plan = plan(ctx, seen, list, height).await?;
    let slip = Blocks(ctx.config.ladder.birth_slip);
    for client in plan.away(ctx) {
        ctx.webhooks.wake(client, Why::Birth);
    }
    let all_there = plan.away(ctx).next().is_none() && !plan.leaving.is_empty();
    if !all_there && Height(height) < planned.plus(slip) {
        // Looked at again when somebody comes.
        ctx.ladder.forget(&format!("birth {rung} {height}"));
        return Ok(());
    }
    match begin(ctx, rung, plan, shutdown).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            ctx.ladder.forget(&format!("birth {rung} {height}"));
            Ok(())
        }
        Err(error) => {
            let problem = error.to_string();
            if ctx.ladder.is_news(format!("{rung} {problem}")) {
                ctx.events.emit(Event::LadderWaiting { rung, problem });
            }
            Ok(())
        }
    }
}

/// Whether a ceremony was begun; not, if nobody is there.
async fn begin(
    ctx: &Arc<Context>,
    rung: u32,
    plan: Plan,
    shutdown: &watch::Receiver<bool>,
) -> Result<bool, LadderError> {
    if let Some(problem) = &plan.preview.problem {
        // Somebody waits, or must leave: the operator should know why nothing comes of it.
        let waits = !matches!(problem, ChooseError::TooFew { found: 0, .. });
        let problem = problem.to_string();
        if (waits || plan.is_called()) && ctx.ladder.is_news(format!("{rung} {problem}")) {
            ctx.events.emit(Event::LadderWaiting { rung, problem });
        }
        return Ok(false);
    }
    let invited: Vec<Invitee> = plan
        .preview
        .seats
        .iter()
        .map(|seat| Invitee {
            client: seat.client,
            capacity: seat.capacity,
        })
        .collect();
    // Who is away has missed this one, too; for whom there was no seat, has not.
    let has_seat = |client| plan.preview.seats.iter().any(|seat| seat.client == client);
    let is_there = |client| ctx.sessions.is_connected(client);
    let leaving = plan.leaving.iter();
    let leaving = leaving.filter(|one| has_seat(one.client) || !is_there(&one.client));
    let orders = plan.orders.iter();
    let called = Called {
        leaving: leaving
            .map(|one| (one.client, one.from, one.attempt))
            .collect(),
        orders: orders
            .filter(|order| has_seat(order.client))
            .map(|order| order.id.clone())
            .collect(),
    };
    let count = u32::try_from(invited.len()).unwrap_or(u32::MAX);
    let wish = Wish {
        params: plan.params,
        clients: None,
        min_clients: ctx.config.ceremony.min_clients,
        capacity: None,
        feerate_sat_per_kwu: None,
        rung: Some(rung),
        invited: Some(invited),
    };
    let id = ceremony::create_for(ctx, wish, called, shutdown.clone()).await?;
    ctx.events.emit(Event::LadderBirth {
        rung,
        ceremony: id,
        invited: count,
    });
    Ok(true)
}

/// Who would be invited now: of the clients that must leave and those who asked, those that are connected and in no other ceremony.
pub(super) async fn plan(
    ctx: &Context,
    seen: &Seen,
    list: &[Due],
    height: u32,
) -> Result<Plan, LadderError> {
    let params = ctx.config.factory_params(&BTreeMap::new())?;
    let accounts = ctx.store.read(async |tx| clients::list(tx).await).await?;
    let accounts: HashMap<ClientId, ClientRow> = accounts
        .into_iter()
        .map(|account| (account.client, account))
        .collect();
    let leaving = leaving(ctx, seen, list, height);
    let free =
        |client: &ClientId| ctx.sessions.is_connected(client) && !ctx.ceremonies.is_busy(client);
    let mut candidates: Vec<Candidate> = leaving
        .iter()
        .filter(|one| free(&one.client))
        .map(|one| {
            let kind = Kind::Dying {
                deadline: one.deadline,
                tries: one.attempt.saturating_sub(1),
            };
            let account = accounts.get(&one.client);
            Candidate {
                balance: one.balance,
                ..candidate(ctx, (one.client, kind), Some(one.capacity), account, height)
            }
        })
        .collect();
    for session in ctx.sessions.list() {
        let Some(interest) = session.interest.filter(|_| free(&session.client)) else {
            continue;
        };
        let account = accounts.get(&session.client);
        let one = (session.client, Kind::SignUp);
        candidates.push(candidate(
            ctx,
            one,
            Some(interest.capacity),
            account,
            height,
        ));
    }
    let policy = &ctx.config.policy;
    let most = Amount::from_sat(policy.capacity_max_sat);
    let orders = ctx
        .store
        .read(async |tx| lsps1::for_birth(tx).await)
        .await?;
    let mut orders: Vec<Order> = orders.into_iter().map(|row| row.order).collect();
    // All of what is bought comes on top; what would be more than is sold to anybody waits for the next birth.
    orders.retain(|order| {
        let bought = Amount::from_sat(order.lsp_balance_sat);
        let has = candidates.iter().filter(|one| one.client == order.client);
        let has = has.filter_map(|one| one.wanted);
        let sum = checked_sum(has.chain([bought]));
        let fits = sum.is_some_and(|sum| sum <= most);
        if fits && free(&order.client) {
            let account = accounts.get(&order.client);
            let one = (order.client, Kind::StockBuyer);
            candidates.push(candidate(ctx, one, Some(bought), account, height));
        }
        fits
    });
    candidates.extend(outside(ctx, &candidates, &accounts, height));
    let available = spendable(ctx, seen, height).await?;
    let choosing = ChooseParams {
        min_clients: ctx.config.ceremony.min_clients,
        min_capacity: Amount::from_sat(policy.capacity_min_sat),
        default_capacity: Amount::from_sat(policy.capacity_default_sat),
        max_capacity: most,
        skip_above: thousandths(policy.score_skip_above),
        capital: Some(available),
        ..ChooseParams::new(params.clone(), Height(height))
    };
    Ok(Plan {
        preview: choose(&choosing, &candidates, ctx.config.ceremony.max_clients),
        available,
        leaving,
        orders,
        params,
    })
}

/// Of those that may be invited anyway, what they have in channels outside of factories: a wallet brings it into a factory that has room for it.
fn outside(
    ctx: &Context,
    candidates: &[Candidate],
    accounts: &HashMap<ClientId, ClientRow>,
    height: u32,
) -> Vec<Candidate> {
    // What would take more than is sold to anybody stays where it is.
    let most = Amount::from_sat(ctx.config.policy.capacity_max_sat / 10 * 9);
    let clients: BTreeSet<ClientId> = candidates.iter().map(|one| one.client).collect();
    let balances = clients
        .into_iter()
        .map(|client| (client, ctx.lightning.outside_balance(&client)));
    balances
        .filter(|(_, balance)| *balance > Amount::ZERO && *balance <= most)
        .map(|(client, balance)| Candidate {
            balance,
            ..candidate(
                ctx,
                (client, Kind::OnChain),
                None,
                accounts.get(&client),
                height,
            )
        })
        .collect()
}

/// What may be locked: without coins that came back a short while ago, and what the paths still cost of those that have not left.
async fn spendable(ctx: &Context, seen: &Seen, height: u32) -> Result<Amount, LadderError> {
    let all = ctx.wallet.balance().await?.confirmed;
    let shallow = crate::funding::shallow_amount(ctx).await?;
    let feerate = ctx.feerate().await.to_sat_per_vb_ceil();
    let feerate = feerate.saturating_mul(FEERATE_MARGIN);
    let kept = reserve(seen, ctx.config.ladder.early_notice, height).saturating_mul(feerate);
    let kept = shallow.checked_add(Amount::from_sat(kept));
    Ok(all
        .checked_sub(kept.unwrap_or(Amount::MAX_MONEY))
        .unwrap_or(Amount::ZERO))
}

/// Virtual bytes of the paths of everybody who has not left a factory that ends soon, and of the chains of what was sold there.
fn reserve(seen: &Seen, early: u32, height: u32) -> u64 {
    let soon = |facts: &&FactoryFacts| {
        Height(height).plus(Blocks(early)) >= facts.schedule.dying_from && facts.refunds_clients()
    };
    let factories = seen.ladder.factories.iter().filter(soon);
    let vbytes = factories.map(|facts| {
        let clients = u32::try_from(facts.members.len()).unwrap_or(u32::MAX);
        let levels = Shape::new(&facts.params, clients).map_or(0, |shape| shape.levels());
        let staying = facts.members.iter().filter(|member| {
            member.progress.is_inside() || member.progress == Progress::Publishing
        });
        let staying = staying.count() as u64;
        let rows = facts.members.iter();
        let rows = rows.filter_map(|member| seen.member(facts.id, member.client));
        // A stock that was sold from is published with its leaf, whoever bought.
        let sales = rows.map(|row| row.sold.len() as u64).sum::<u64>();
        staying
            .saturating_mul(levels.into())
            .saturating_add(if staying > 0 { sales } else { 0 })
            .saturating_mul(LEVEL_VBYTES)
    });
    vbytes.fold(0, u64::saturating_add)
}

fn thousandths(points: f64) -> u32 {
    // Saturates: a score of millions is as good as one of thousands.
    (points * 1000.0).round() as u32
}

fn candidate(
    ctx: &Context,
    (client, kind): (ClientId, Kind),
    wanted: Option<Amount>,
    account: Option<&ClientRow>,
    height: u32,
) -> Candidate {
    let half_life = ctx.config.policy.score_half_life_blocks;
    let faults = account.map_or(0.0, |account| account.score.at(height, half_life));
    Candidate {
        client,
        kind,
        wanted,
        balance: Amount::ZERO,
        hours: account.map_or(Hours::default(), |account| account.hours),
        faults: thousandths(faults),
        since: Height(account.map_or(height, |account| account.first_seen)),
    }
}

/// The clients that are due an invitation, those of an earlier try at this rung included.
fn leaving(ctx: &Context, seen: &Seen, list: &[Due], height: u32) -> Vec<Leaving> {
    let mut all = Vec::new();
    let of = |factory: FactoryId, client: ClientId| -> Option<(&FactoryFacts, &MemberFacts)> {
        let facts = seen.ladder.factory(factory)?;
        let member = facts
            .members
            .iter()
            .find(|member| member.client == client)?;
        Some((facts, member))
    };
    let mut add = |facts: &FactoryFacts, member: &MemberFacts, attempt| {
        let row = seen.member(facts.id, member.client);
        all.push(Leaving {
            client: member.client,
            from: facts.id,
            attempt,
            deadline: facts.schedule.publish_from,
            // What it bought, it bought for this factory's life; its balance has room anyway.
            capacity: row.map_or(member.capacity, |row| row.capacity),
            balance: member.balance,
        });
    };
    for due in list {
        let Due::Invite {
            client,
            from,
            attempt,
            ..
        } = due
        else {
            continue;
        };
        if let Some((facts, member)) = of(*from, *client) {
            add(facts, member, *attempt);
        }
    }
    let params = ctx.config.ladder_params();
    let today = params.rung_at(seen.ladder.first, Height(height));
    for facts in &seen.ladder.factories {
        let ends = facts.schedule.publish_from;
        for member in &facts.members {
            if let Progress::Invited { tries, rung } = member.progress
                && Some(rung) == today
                && Height(height).plus(params.settle(&facts.params)) <= ends
            {
                add(facts, member, tries);
            }
        }
    }
    all
}
