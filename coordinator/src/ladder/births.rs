//! A rung's day: who is invited, when its ceremony begins, and what is told if it cannot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bitcoin::Amount;
use factory_tree::ceremony::coordinator::Invitee;
use factory_tree::ids::{CeremonyId, ClientId, FactoryId};
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
/// A ceremony may take so long.
const BIRTH_BLOCKS: u32 = 6;
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
    /// Orders that are paid for and wait for a factory, of those who are there.
    orders: Vec<Order>,
    /// Whoever has paid for a place and is away: nobody waits for them.
    buyers_away: Vec<ClientId>,
    params: FactoryParams,
}

impl Plan {
    /// Clients that must leave, and are away.
    pub(super) fn away(&self, ctx: &Context) -> impl Iterator<Item = ClientId> {
        let leaving = self.leaving.iter().map(|one| one.client);
        leaving.filter(|client| !ctx.sessions.is_connected(client))
    }

    /// Whether a client's place has all that it has paid for.
    fn serves(&self, client: ClientId) -> bool {
        let of_client = self.orders.iter().filter(|order| order.client == client);
        let paid = of_client.map(|order| Amount::from_sat(order.lsp_balance_sat));
        let seat = self.preview.seats.iter().find(|seat| seat.client == client);
        seat.is_some_and(|seat| checked_sum(paid) == Some(seat.bought))
    }

    /// Until when its birth, planned at this height, waits for those who must come; `None`: it waits no longer.
    fn waits_until(&self, ctx: &Context, planned: Height, height: u32) -> Option<Height> {
        let all_there = self.away(ctx).next().is_none() && !self.leaving.is_empty();
        let until = planned.plus(Blocks(ctx.config.ladder.birth_slip));
        (!all_there && Height(height) < until).then_some(until)
    }

    /// Whether a birth is due for somebody.
    fn is_called(&self) -> bool {
        !self.leaving.is_empty() || !self.orders.is_empty()
    }
}

/// A birth that is due, and waits until all that must come are there.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Which.
    pub(super) rung: u32,
    /// Clients that must leave, and are away.
    pub(super) away: Vec<ClientId>,
    /// It begins here with those who are there.
    pub(super) until: Height,
}

/// The birth that is due and not under way, and the height it was planned at.
async fn due_now(ctx: &Context, list: &[Due]) -> Result<Option<(u32, Height)>, LadderError> {
    let birth = list.iter().find_map(|due| match due {
        Due::Birth { rung, planned } => Some((*rung, *planned)),
        _ => None,
    });
    let Some((rung, planned)) = birth else {
        return Ok(None);
    };
    let open = ctx
        .store
        .read(async |tx| ceremonies::open(tx).await)
        .await?;
    let is_open = open.iter().any(|row| row.wish.rung == Some(rung));
    Ok((!is_open).then_some((rung, planned)))
}

/// What the birth that is due waits for, if it does.
pub(super) async fn waiting(
    ctx: &Context,
    seen: &Seen,
    list: &[Due],
    height: u32,
) -> Result<Option<Waiting>, LadderError> {
    let Some((rung, planned)) = due_now(ctx, list).await? else {
        return Ok(None);
    };
    let plan = plan(ctx, seen, list, height).await?;
    let until = plan.waits_until(ctx, planned, height);
    Ok(until.map(|until| Waiting {
        rung,
        away: plan.away(ctx).collect(),
        until,
    }))
}

/// Begins the birth that is due, if it is time.
pub(super) async fn look(
    ctx: &Arc<Context>,
    seen: &Seen,
    list: &[Due],
    height: u32,
    shutdown: &watch::Receiver<bool>,
) -> Result<(), LadderError> {
    let Some((rung, planned)) = due_now(ctx, list).await? else {
        return Ok(());
    };
    // One try per block: what failed at once would fail at once again.
    if !ctx.ladder.is_news(format!("birth {rung} {height}")) {
        return Ok(());
    }
    let plan = plan(ctx, seen, list, height).await?;
    for client in plan.away(ctx).chain(plan.buyers_away.iter().copied()) {
        ctx.webhooks.wake(client, Why::Birth);
    }
    if plan.waits_until(ctx, planned, height).is_some() {
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
            .filter(|order| plan.serves(order.client))
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
    let read = ctx.store.read(async |tx| lsps1::born_with(tx).await);
    let leaving = leaving(ctx, seen, list, height, &read.await?);
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
    let (orders, away) = buyers(ctx, &params, height, &free).await?;
    candidates.extend(orders.iter().map(|order| {
        let account = accounts.get(&order.client);
        let one = (order.client, Kind::StockBuyer);
        Candidate {
            bought: Amount::from_sat(order.lsp_balance_sat),
            ..candidate(ctx, one, None, account, height)
        }
    }));
    candidates.extend(outside(ctx, &candidates, &accounts, height));
    let available = spendable(ctx, seen, height).await?;
    let choosing = ChooseParams {
        min_clients: ctx.config.ceremony.min_clients,
        min_capacity: Amount::from_sat(policy.capacity_min_sat),
        default_capacity: Amount::from_sat(policy.capacity_default_sat),
        max_capacity: Amount::from_sat(policy.capacity_max_sat),
        skip_above: thousandths(policy.score_skip_above),
        capital: Some(available),
        ..ChooseParams::new(params.clone(), Height(height))
    };
    Ok(Plan {
        preview: choose(&choosing, &candidates, ctx.config.ceremony.max_clients),
        available,
        leaving,
        orders,
        buyers_away: away,
        params,
    })
}

/// Orders that are paid for, can wait until a factory that is born now is usable, and whose clients are there; and clients of such that are away.
async fn buyers(
    ctx: &Context,
    params: &FactoryParams,
    height: u32,
    free: &impl Fn(&ClientId) -> bool,
) -> Result<(Vec<Order>, Vec<ClientId>), LadderError> {
    let rows = ctx
        .store
        .read(async |tx| lsps1::for_birth(tx).await)
        .await?;
    let usable = height
        .saturating_add(params.conf_margin)
        .saturating_add(ctx.config.confirmations())
        .saturating_add(BIRTH_BLOCKS);
    let mut here: BTreeMap<ClientId, bool> = BTreeMap::new();
    let (mut orders, mut away) = (Vec::new(), Vec::new());
    for row in rows {
        if crate::lsps1::release_at(ctx, &row) <= usable {
            continue;
        }
        let client = row.order.client;
        match *here.entry(client).or_insert_with(|| free(&client)) {
            true => orders.push(row.order),
            false => away.push(client),
        }
    }
    Ok((orders, away))
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

/// What may be locked: without coins that came back a short while ago, and what the paths still cost of those that have not left. Not without what orders
/// of channels are for: anybody can pay for one, never come for it, and have the payment back.
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
        bought: Amount::ZERO,
        hours: account.map_or(Hours::default(), |account| account.hours),
        faults: thousandths(faults),
        since: Height(account.map_or(height, |account| account.first_seen)),
    }
}

/// The clients that are due an invitation, those of an earlier try at this rung included.
fn leaving(
    ctx: &Context,
    seen: &Seen,
    list: &[Due],
    height: u32,
    born_with: &HashMap<(CeremonyId, ClientId), Amount>,
) -> Vec<Leaving> {
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
        let ceremony = seen.rows.iter().find(|row| row.id == facts.id);
        let ceremony = ceremony.map(|row| row.round.ceremony);
        let bought = ceremony.and_then(|ceremony| born_with.get(&(ceremony, member.client)));
        let capacity = row.map_or(member.capacity, |row| row.capacity);
        all.push(Leaving {
            client: member.client,
            from: facts.id,
            attempt,
            deadline: facts.schedule.publish_from,
            // What it bought, it bought for this factory's life; its balance has room anyway.
            capacity: capacity
                .checked_sub(bought.copied().unwrap_or_default())
                .unwrap_or_default(),
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
