//! What the engine is told, made from what is stored, what the chain says and what the channels hold.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::{Amount, OutPoint, Txid};
use channel_host::{ChannelView, LeafId, PartState, PartView, Stage};
use factory_tree::factory::{FactoryTx, SpentKind};
use factory_tree::ids::{ClientId, FactoryId};
use factory_tree::ladder::{FactoryFacts, Funding, Ladder, MemberFacts, Progress, Root};
use factory_tree::output::OutputRole;
use factory_tree::params::{FactoryParams, Schedule};
use factory_tree::shape::Shape;
use factory_tree::tx::{TxKind, checked_sum};
use factory_tree::units::Height;

use super::LadderError;
use crate::context::Context;
use crate::store::factories::FactoryRow;
use crate::store::ladder::MemberRow;
use crate::store::outputs::OutputRow;
use crate::store::{factories, ladder, outputs, sweeps};
use crate::trees::KnownTree;

/// What never changes of a factory, kept so that its specification is read once.
#[derive(Clone, Debug)]
struct Calendar {
    params: FactoryParams,
    schedule: Schedule,
    stock: Amount,
}

/// Calendars by factory.
#[derive(Debug, Default)]
pub(super) struct Calendars(Mutex<HashMap<FactoryId, Arc<Calendar>>>);

impl Calendars {
    async fn of(&self, ctx: &Context, row: &FactoryRow) -> Result<Arc<Calendar>, LadderError> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calendar) = known().get(&row.id) {
            return Ok(Arc::clone(calendar));
        }
        let id = row.id;
        let spec = ctx
            .store
            .read(async |tx| factories::spec(tx, id).await)
            .await?;
        let spec = spec.ok_or(LadderError::Unknown(id))?;
        let damaged = |_| LadderError::Unknown(id);
        let shape = Shape::new(&spec.params, row.clients).map_err(damaged)?;
        let schedule = spec.params.schedule(spec.birth, shape.levels());
        let calendar = Arc::new(Calendar {
            schedule: schedule.map_err(damaged)?,
            // Below it there are only transactions without fees.
            stock: row
                .funding_amount
                .checked_sub(row.capacity)
                .unwrap_or_default(),
            params: spec.params,
        });
        known().insert(id, Arc::clone(&calendar));
        Ok(calendar)
    }

    fn keep(&self, live: &HashSet<FactoryId>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| live.contains(id));
    }
}

/// The view, and what stands behind it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What the engine is told.
    pub(crate) ladder: Ladder,
    /// The factories' rows, in the order of the view.
    pub(crate) rows: Vec<FactoryRow>,
    /// The members' rows.
    pub(crate) members: HashMap<(FactoryId, ClientId), MemberRow>,
    /// What is left on the chain of factories whose funding output is spent.
    left: HashMap<FactoryId, Left>,
}

/// What nothing has spent yet of a factory on the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// All its outputs.
    pub(super) all: Amount,
    /// Of these, its stocks.
    pub(super) stock: Amount,
}

impl Seen {
    /// What is left on the chain of a factory; `None` if its funding output is not spent.
    pub(super) fn left(&self, factory: FactoryId) -> Option<Left> {
        self.left.get(&factory).copied()
    }

    /// A member's row.
    pub(crate) fn member(&self, factory: FactoryId, client: ClientId) -> Option<&MemberRow> {
        self.members.get(&(factory, client))
    }
}

/// What the Lightning node says of our channels.
#[derive(Debug, Default)]
pub(super) struct Channels {
    by_leaf: HashMap<LeafId, ChannelView>,
    parts: Vec<PartView>,
    /// Leaves that have a channel, had one, or are about to.
    begun: HashSet<LeafId>,
}

impl Channels {
    pub(super) fn now(ctx: &Context) -> Self {
        let Some(node) = ctx.lightning.node() else {
            return Self::default();
        };
        let begun = node.leaves().into_iter();
        let begun = begun.filter(|leaf| leaf.stage != Stage::Expected);
        let begun = begun.map(|leaf| leaf.id).collect();
        let channels = node.channels().into_iter();
        let by_leaf = channels.filter_map(|channel| Some((channel.leaf?, channel)));
        Self {
            by_leaf: by_leaf.collect(),
            parts: node.parts(),
            begun,
        }
    }

    /// All of a member's.
    fn of(&self, member: &MemberRow) -> impl Iterator<Item = &ChannelView> {
        let leaves = member.leaves();
        leaves.filter_map(|leaf| self.by_leaf.get(&LeafId(leaf.0)))
    }

    /// The part that is on its way out of a member's leaves and has to be over first. One that was only agreed to may never be paid.
    fn part(&self, member: &MemberRow) -> Option<&PartView> {
        let parts = self.parts.iter();
        let under_way = parts
            .filter(|part| is_of(member, part.from))
            .filter(|part| part.state != PartState::Agreed);
        under_way.min_by_key(|part| part.incoming_expiry)
    }

    /// What the client has in its channels, rounded up: nothing is overlooked.
    fn balance(&self, member: &MemberRow) -> Amount {
        let msat = self.of(member).map(|channel| channel.receivable.0);
        Amount::from_sat(msat.fold(0, u64::saturating_add).div_ceil(1000))
    }

    /// What could be paid to the client over them, in satoshi; nothing is known of it without a channel.
    fn room(&self, member: &MemberRow) -> Option<u64> {
        let rooms = self.of(member).map(|channel| channel.spendable.0 / 1000);
        rooms.reduce(u64::saturating_add)
    }

    /// Whether the client has nothing in its channels, and nothing is under way there. One that was bought and never opened holds nothing.
    pub(super) fn is_empty(&self, member: &MemberRow) -> bool {
        let is_empty = |leaf: LeafId| {
            let channel = self.by_leaf.get(&leaf);
            channel.is_some_and(|channel| channel.receivable.0 == 0 && channel.pending == 0)
        };
        let mut bought = member.sold.iter().map(|sold| LeafId(sold.leaf.0));
        is_empty(LeafId(member.leaf.0))
            && bought.all(|leaf| is_empty(leaf) || !self.begun.contains(&leaf))
    }
}

fn is_of(member: &MemberRow, leaf: LeafId) -> bool {
    member.leaves().any(|own| own.0 == leaf.0)
}

/// Everything now.
///
/// # Errors
/// [`LadderError`].
pub(crate) async fn look(ctx: &Context) -> Result<Seen, LadderError> {
    look_for(ctx, None).await
}

/// The same of one client's factories, with that client alone in them: what it asks for costs no more.
///
/// # Errors
/// [`LadderError`].
pub(crate) async fn of_client(ctx: &Context, client: ClientId) -> Result<Seen, LadderError> {
    look_for(ctx, Some(client)).await
}

async fn look_for(ctx: &Context, only: Option<ClientId>) -> Result<Seen, LadderError> {
    let read = ctx.store.read(async |tx| {
        let funded = factories::funded(tx).await?;
        let members = ladder::members(tx, only).await?;
        let of: HashSet<FactoryId> = members.iter().map(|member| member.factory).collect();
        Ok((
            funded
                .into_iter()
                .filter(|row| !row.forgotten && of.contains(&row.id))
                .collect::<Vec<_>>(),
            members,
            ladder::losses(tx).await?,
            ladder::first(tx).await?,
            sweeps::pending(tx).await?,
        ))
    });
    let (rows, members, losses, first, sweeps) = read.await?;
    let channels = Channels::now(ctx);
    if only.is_none() {
        let live: HashSet<FactoryId> = rows.iter().map(|row| row.id).collect();
        ctx.ladder.calendars.keep(&live);
    }
    let mut by_client: HashMap<ClientId, Vec<&MemberRow>> = HashMap::new();
    let mut by_factory: HashMap<FactoryId, Vec<&MemberRow>> = HashMap::new();
    for member in &members {
        by_client.entry(member.client).or_default().push(member);
        by_factory.entry(member.factory).or_default().push(member);
    }
    let expiries: HashMap<FactoryId, u32> = rows
        .iter()
        .filter(|row| !row.spent)
        .map(|row| (row.id, row.expiry_height))
        .collect();
    let params = ctx.config.ladder_params();
    // Without a first birth there is no rung, no invitation and no birth.
    let first = Height(first.unwrap_or(u32::MAX));
    let sent: HashSet<FactoryId> = sweeps.iter().map(|sweep| sweep.factory).collect();
    let mut facts = Vec::with_capacity(rows.len());
    let mut left: HashMap<FactoryId, Left> = HashMap::new();
    for row in &rows {
        let calendar = ctx.ladder.calendars.of(ctx, row).await?;
        let on_chain = match row.spent {
            true => Some(OnChain::load(ctx, row).await?),
            false => None,
        };
        let root = match &on_chain {
            Some(on_chain) => on_chain.root(row),
            None if sent.contains(&row.id) => Root::ReapSent,
            None => Root::Unspent,
        };
        left.extend(on_chain.as_ref().map(|on_chain| (row.id, on_chain.left())));
        let own = || by_factory.get(&row.id).into_iter().flatten();
        let sold = checked_sum(own().map(|member| bought(member)));
        let sold = sold.unwrap_or(Amount::MAX_MONEY);
        let members = own().map(|member| MemberFacts {
            client: member.client,
            capacity: member
                .capacity
                .checked_add(bought(member))
                .unwrap_or(member.capacity),
            balance: channels.balance(member),
            progress: on_chain
                .as_ref()
                .and_then(|on_chain| on_chain.progress(&root, member))
                .unwrap_or_else(|| {
                    let others = by_client.get(&member.client);
                    let others = others.map(Vec::as_slice).unwrap_or_default();
                    progress(&expiries, others, &channels, row, member)
                }),
            warned: member.warned,
        });
        facts.push(FactoryFacts {
            id: row.id,
            rung: params
                .rung_at(first, Height(row.birth_height))
                .unwrap_or(u32::MAX),
            params: calendar.params.clone(),
            schedule: calendar.schedule,
            funding: match row.confirmed_height {
                Some(at) => Funding::Confirmed { at: Height(at) },
                None => Funding::Unconfirmed,
            },
            stock: calendar.stock.checked_sub(sold).unwrap_or_default(),
            members: members.collect(),
            loss_reported: losses
                .iter()
                .find(|(id, _)| *id == row.id)
                .map(|(_, loss)| *loss),
            root,
        });
    }
    Ok(Seen {
        ladder: Ladder {
            first,
            factories: facts,
            given_up: BTreeSet::new(),
        },
        rows,
        members: members
            .into_iter()
            .map(|member| ((member.factory, member.client), member))
            .collect(),
        left,
    })
}

/// The capacities of what a member bought.
fn bought(member: &MemberRow) -> Amount {
    let capacities = member.sold.iter().map(|sold| sold.capacity);
    checked_sum(capacities).unwrap_or(Amount::MAX_MONEY)
}

/// How far a client is whose path is not on the chain.
fn progress(
    expiries: &HashMap<FactoryId, u32>,
    memberships: &[&MemberRow],
    channels: &Channels,
    row: &FactoryRow,
    member: &MemberRow,
) -> Progress {
    if member.handed_over {
        return Progress::HandedOver;
    }
    if member.publishing {
        return Progress::Publishing;
    }
    let part = channels.part(member);
    let balance = channels.balance(member);
    let younger = memberships
        .iter()
        .filter(|other| !other.handed_over && !other.publishing)
        .filter_map(|other| Some((*expiries.get(&other.factory)?, other)))
        .filter(|(expiry, _)| *expiry > row.expiry_height)
        // Into a channel that cannot take it nothing moves: another is needed.
        .filter(|(_, other)| {
            let begun = part.is_some_and(|part| is_of(other, part.to));
            let room = channels.room(other);
            begun || room.is_some_and(|room| room >= balance.to_sat())
        })
        .max_by_key(|(expiry, _)| *expiry);
    match (younger, member.invited) {
        (Some((_, to)), _) => {
            let factory = to.factory;
            match part {
                Some(part) => Progress::Moving {
                    factory,
                    in_flight: Some(Height(part.incoming_expiry)),
                },
                None if channels.is_empty(member) => Progress::Moved { factory },
                None => Progress::NewChannel { factory },
            }
        }
        (None, Some((tries, rung))) => Progress::Invited { tries, rung },
        (None, None) => Progress::In,
    }
}

/// A factory of which something is spent.
struct OnChain {
    tree: Arc<KnownTree>,
    outputs: HashMap<OutPoint, OutputRow>,
    /// Transactions that are in the chain.
    confirmed: HashSet<Txid>,
}

impl OnChain {
    async fn load(ctx: &Context, row: &FactoryRow) -> Result<Self, LadderError> {
        let id = row.id;
        let rows = ctx
            .store
            .read(async |tx| outputs::of_factory(tx, id).await)
            .await?;
        Ok(Self {
            tree: ctx.trees.get(&ctx.store, id).await?,
            confirmed: rows.iter().filter_map(|row| row.spent_by).collect(),
            outputs: rows.into_iter().map(|row| (row.outpoint, row)).collect(),
        })
    }

    fn root(&self, row: &FactoryRow) -> Root {
        let spent = self.outputs.get(&row.funding);
        let Some((at, by)) = spent.and_then(|spent| Some((spent.spent_height?, spent.spent_by?)))
        else {
            return Root::Unspent;
        };
        match self.tree.tx(&by).map(|tx| tx.kind) {
            // What is not the tree's can only be signed with every key: ours alone.
            None => Root::Reaped { at: Height(at) },
            Some(TxKind::Timeout) => Root::TimedOut { at: Height(at) },
            Some(_) => self.published(),
        }
    }

    fn published(&self) -> Root {
        let tree = &self.tree.tree;
        let is_confirmed = |node: &usize| {
            let tx = tree.node_tx(*node).and_then(|index| tree.txs().get(index));
            tx.is_some_and(|tx| self.confirmed.contains(&tx.txid))
        };
        let rows = || self.outputs.values();
        let open = rows().filter(|row| row.spent_by.is_none()).count();
        let heights = rows().map(|row| row.spent_height.unwrap_or(row.confirmed_height));
        Root::Published {
            nodes: (0..tree.shape().nodes().len())
                .filter(is_confirmed)
                .collect(),
            open: u32::try_from(open).unwrap_or(u32::MAX),
            latest: Height(heights.max().unwrap_or(0)),
        }
    }

    fn left(&self) -> Left {
        let unspent = || {
            let rows = self.outputs.values();
            rows.filter(|row| row.spent_by.is_none())
        };
        let stocks = unspent().filter(|row| row.kind == SpentKind::Stock);
        Left {
            all: checked_sum(unspent().map(|row| row.amount)).unwrap_or(Amount::MAX_MONEY),
            stock: checked_sum(stocks.map(|row| row.amount)).unwrap_or(Amount::MAX_MONEY),
        }
    }

    /// How far a client is, if the chain says.
    fn progress(&self, root: &Root, member: &MemberRow) -> Option<Progress> {
        if matches!(root, Root::Reaped { .. } | Root::TimedOut { .. }) {
            return Some(Progress::Gone);
        }
        let path = self.tree.path(member.position, None)?;
        for step in &path {
            let spent = self.outputs.get(&step.spends.outpoint)?;
            match spent.spent_by {
                None => return None,
                Some(by) if by == step.txid => {}
                Some(_) => return Some(Progress::Gone),
            }
        }
        let sales = self.tree.bought(member.position).map(|(sale, _)| sale.id());
        let mut paths = sales.filter_map(|sale| self.tree.path(member.position, Some(sale)));
        let over = self.is_over(&path, member.position)
            && paths.all(|path| self.is_over(&path, member.position));
        Some(match (over, member.handed_over) {
            (true, _) => Progress::Gone,
            (false, true) => Progress::HandedOver,
            (false, false) => Progress::OnChain,
        })
    }

    /// Whether the client's channel at the end of this path is spent, or can never come.
    fn is_over(&self, path: &[&FactoryTx], client: u32) -> bool {
        for step in path {
            let spent = self.outputs.get(&step.spends.outpoint);
            match spent.and_then(|spent| spent.spent_by) {
                None => return false,
                Some(by) if by == step.txid => {}
                Some(_) => return true,
            }
        }
        let channel = path.last().and_then(|leaf| {
            let mut channels = leaf.outputs_of(OutputRole::Channel);
            channels.find(|(_, output)| output.clients.contains(&client))
        });
        let row = channel.and_then(|(channel, _)| self.outputs.get(&channel));
        row.is_none_or(|row| row.spent_by.is_some())
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;
    use channel_host::Msat;
    use factory_tree::ids::LeafId as OurLeafId;
    use factory_tree::testing::{public, secret};

    use super::*;
    use crate::store::sold::SoldLeaf;

    fn channel(leaf: u8, receivable: u64, pending: usize) -> (LeafId, ChannelView) {
        let leaf = LeafId([leaf; 16]);
        let view = ChannelView {
            channel: [0; 32],
            leaf: Some(leaf),
            peer: public(&secret(1, "peer", 1)),
            outpoint: None,
            capacity: Amount::from_sat(100),
            balance: Msat(100_000 - receivable),
            spendable: Msat(100_000 - receivable),
            receivable: Msat(receivable),
            usable: true,
            confirmations: 1,
            announced: false,
            our_reserve: None,
            their_reserve: 0,
            pending,
        };
        (leaf, view)
    }

    /// Born with leaf 1, it bought 2 and 3.
    fn row() -> MemberRow {
        let (factory, position) = (FactoryId([9; 32]), 0);
        let sold = [2, 3].map(|leaf| SoldLeaf {
            factory,
            position,
            leaf: OurLeafId([leaf; 16]),
            capacity: Amount::from_sat(100),
            channel_key: public(&secret(1, "bought", leaf.into())),
        });
        MemberRow {
            client: ClientId([2; 33]),
            factory,
            position,
            capacity: Amount::from_sat(100),
            leaf: OurLeafId([1; 16]),
            sold: sold.to_vec(),
            fee: Amount::ZERO,
            fee_taken: false,
            invited: None,
            warned: None,
            handed_over: false,
            publishing: false,
        }
    }

    fn channels<const N: usize>(list: [(LeafId, ChannelView); N]) -> Channels {
        Channels {
            begun: list.iter().map(|(leaf, _)| *leaf).collect(),
            by_leaf: HashMap::from(list),
            parts: Vec::new(),
        }
    }

    #[test]
    fn a_member_has_what_all_its_channels_hold() {
        let all = channels([
            channel(1, 1_500, 0),
            channel(2, 2_600, 0),
            channel(4, 9_000, 0),
        ]);
        assert_eq!(all.balance(&row()), Amount::from_sat(5));
        assert_eq!(all.room(&row()), Some(98 + 97));
        assert_eq!(channels([]).room(&row()), None);
        assert_eq!(bought(&row()), Amount::from_sat(200));
    }

    #[test]
    fn a_member_is_empty_when_all_its_channels_are() {
        let is_empty = |all: &Channels| all.is_empty(&row());
        let mut all = channels([channel(1, 0, 0), channel(2, 0, 0), channel(3, 0, 0)]);
        assert!(is_empty(&all));
        // Never opened, there is nothing in it; closed, nobody knows.
        all.by_leaf.remove(&LeafId([3; 16]));
        assert!(!is_empty(&all));
        all.begun.remove(&LeafId([3; 16]));
        assert!(is_empty(&all));
        all.by_leaf.extend([channel(2, 1, 0)]);
        assert!(!is_empty(&all));
        all.by_leaf.extend([channel(2, 0, 1)]);
        assert!(!is_empty(&all));
        assert!(
            !is_empty(&channels([channel(2, 0, 0)])),
            "the one it was born with"
        );
    }

    #[test]
    fn the_part_that_has_to_be_over_first_counts() {
        let part = |from: u8, expiry, state| PartView {
            hash: channel_host::PaymentHash([from; 32]),
            from: LeafId([from; 16]),
            to: LeafId([7; 16]),
            amount: Msat(1),
            fee: Msat(0),
            incoming_expiry: expiry,
            state,
        };
        let mut all = channels([]);
        all.parts = vec![
            part(1, 50, PartState::Paid),
            part(3, 40, PartState::Paid),
            part(2, 30, PartState::Agreed),
            part(4, 20, PartState::Paid),
        ];
        let found = all.part(&row()).map(|part| part.incoming_expiry);
        assert_eq!(found, Some(40));
    }
}
