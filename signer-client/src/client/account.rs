//! The account in plain words: what there is, what can come, what happens next and when. From the store, and what the Lightning node says, or said last.

use bitcoin::{Amount, OutPoint};
use factory_tree::ids::FactoryId;
use factory_tree::kit::{ExitKit, KitChannel};
use factory_tree::ladder::blocks_in_words;
use factory_tree::sale::Coverage;
use factory_tree::tx::checked_sum;
use factory_tree::units::Height;
use serde::Serialize;

use super::kits::KitCache;
use super::views::in_flight;
use crate::error::Result;
use crate::exit::Unrolled;
use crate::lightning::{ChannelState, ChannelView};
use crate::migration::calendar;
use crate::store::{
    DeclineRow, ExitRow, FactoryRow, Handover, MoveRow, NoticeRow, PartProgress, PartRow,
    RefusedSale, SharedStore,
};

/// A wallet's account with its coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// What is this wallet's on Lightning, in thousandths of a satoshi.
    pub balance_msat: u64,
    /// What of it lies in channels outside of factories, which nothing covers.
    pub outside_msat: u64,
    /// What its channels hold: all in the factories that it stays in, and outside of factories. The coordinator has to keep a reserve in each.
    pub limit_sat: u64,
    /// What can be received now.
    pub inbound_msat: u64,
    /// What the timeouts pay at least if the wallet stays away from now on, net.
    pub coverage_sat: u64,
    /// The same if the coordinator breaks off wherever it likes and the wallet looks every 60 blocks, what it bought included; net.
    pub coverage_awake_sat: u64,
    /// What a month was agreed to cost, in the youngest factory.
    pub monthly_fee_sat: u64,
    /// When the wallet has to be online next.
    pub window: Option<Window>,
    /// Moves under way.
    pub moves: Vec<MoveView>,
    /// Factories that this wallet leaves, until that is done.
    pub leaving: Vec<LeavingView>,
    /// What the coordinator says about the end of factories that this wallet does not leave.
    pub notices: Vec<NoticeView>,
    /// Factories whose stock the coordinator tried to sell twice.
    pub double_sales: Vec<DoubleSaleView>,
}

impl Account {
    /// Channels outside of factories are part of it, and covered by nothing.
    fn add_outside(&mut self, channels: &[ChannelView]) {
        let standing = channels.iter().filter(|view| view.is_outside());
        for view in standing.filter(|view| view.state == ChannelState::Open) {
            self.balance_msat = self.balance_msat.saturating_add(view.ours_msat);
            self.outside_msat = self.outside_msat.saturating_add(view.ours_msat);
            self.limit_sat = self.limit_sat.saturating_add(view.capacity_sat);
            self.inbound_msat = self.inbound_msat.saturating_add(view.can_receive_msat());
        }
    }
}

/// The next time the wallet has to be online, for a few minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The factory that ends then.
    pub factory: FactoryId,
    /// From this height on.
    pub from_height: u32,
    /// The deadline.
    pub deadline_height: u32,
    /// The same in words, if the chain's height is known.
    pub words: Option<String>,
}

/// How far a move is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MoveView {
    /// The factory that ends.
    pub from: FactoryId,
    /// The younger one, once there is a part.
    pub to: Option<FactoryId>,
    /// `moving`, `moved` or `handing_over`.
    pub state: &'static str,
    /// Parts that arrived.
    pub parts_done: u64,
    /// All parts, as far as can be said.
    pub parts_total: u64,
    /// What arrived.
    pub moved_msat: u64,
    /// What is still there.
    pub left_msat: u64,
    /// What it cost.
    pub fee_msat: u64,
}

/// A factory that this wallet leaves: what its exit does or needs now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeavingView {
    /// The factory.
    pub factory: FactoryId,
    /// For people.
    pub words: String,
    /// It waits for this height.
    pub until_height: Option<u32>,
}

/// What the coordinator said last of a factory's end, and what this wallet would not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NoticeView {
    /// The factory.
    pub factory: FactoryId,
    /// `early`, `dying`, `last_day` or `over`; nothing if there was no notice.
    pub level: Option<factory_tree::ladder::Warning>,
    /// For people.
    pub words: Vec<String>,
    /// By when there is something to do.
    pub by_height: Option<u32>,
}

/// The coordinator offered to sell on other terms what this wallet had signed away before. It was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoubleSaleView {
    /// The factory.
    pub factory: FactoryId,
    /// The chain's height then; 0 if it was not known.
    pub at_height: u32,
    /// What was offered, and what to do, for people.
    pub words: String,
}

/// What a view is made from.
struct Held<'a> {
    row: &'a FactoryRow,
    kit: &'a ExitKit,
    /// Its channels.
    channels: Vec<&'a ChannelView>,
    /// What of it can still be used.
    usable: Usable,
    /// Whether this wallet leaves it.
    left: bool,
}

impl<'a> Held<'a> {
    fn new(
        row: &'a FactoryRow,
        kit: &'a ExitKit,
        channels: &'a [ChannelView],
        exits: &[ExitRow],
    ) -> Self {
        let left = exits.iter().any(|exit| exit.leaves(row.factory));
        let own = channels
            .iter()
            .filter(|view| view.factory == Some(row.factory));
        Self {
            row,
            kit,
            channels: own.collect(),
            usable: Usable::of(kit, channels).unless_left(left),
            left,
        }
    }

    /// Whether nothing of it is off the chain any more.
    fn is_over(&self) -> bool {
        !self.channels.is_empty() && self.channels.iter().all(|view| view.spent.is_some())
    }

    fn balance(&self) -> u64 {
        let stands =
            |view: &&&ChannelView| matches!(view.state, ChannelState::Open | ChannelState::Leaving);
        let standing = self.channels.iter().filter(stands);
        standing.fold(0, |sum, view| sum.saturating_add(view.ours_msat))
    }

    fn receivable(&self) -> u64 {
        let standing = self.channels.iter().filter(|_| !self.left);
        standing.fold(0, |sum, view| sum.saturating_add(view.can_receive_msat()))
    }
}

/// What a kit is sure to pay, net.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Covered {
    /// If the wallet stays away.
    pub(crate) away: Amount,
    /// If it looks every 60 blocks.
    pub(crate) awake: Amount,
}

impl Covered {
    fn of(kit: &ExitKit) -> Self {
        // The sales of a verified kit are what they should be.
        Coverage::of_kit(kit).map_or_else(
            |_| Self::default(),
            |Coverage { away, awake, .. }| Self { away, awake },
        )
    }
}

/// What of a kit can still be used, and what of that is sure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usable {
    /// How many of its channels are not over.
    pub(crate) channels: usize,
    /// What those hold.
    pub(crate) capacity: Amount,
    /// Never more than that.
    pub(crate) covered: Covered,
    /// Whether some channel of it is over: nothing is promised of the rest then, since timeouts and poisons pay for several channels at once.
    pub(crate) in_part: bool,
}

impl Usable {
    /// Whether more can be held than is sure, or nothing can be said of it.
    pub(crate) fn needs_consent(&self) -> bool {
        self.in_part || self.capacity > self.covered.awake
    }

    /// By what the node says of the channels; one of which it says nothing stands.
    pub(crate) fn of(kit: &ExitKit, channels: &[ChannelView]) -> Self {
        let left = standing(kit, channels);
        let capacity = capacity(&left);
        let in_part = left.len() < kit.channels().len();
        let covered = match in_part {
            true => Covered::default(),
            false => Covered::of(kit),
        };
        Self {
            channels: left.len(),
            capacity,
            covered: Covered {
                away: covered.away.min(capacity),
                awake: covered.awake.min(capacity),
            },
            in_part,
        }
    }

    /// In a factory that this wallet leaves no channel is to be used any more; what is sure of it stays sure until it is out.
    pub(crate) const fn unless_left(self, left: bool) -> Self {
        match left {
            true => Self {
                channels: 0,
                capacity: Amount::ZERO,
                ..self
            },
            false => self,
        }
    }
}

/// The channels of a kit that are not over, by what the node says of them; one of which it says nothing stands.
pub(super) fn standing(kit: &ExitKit, channels: &[ChannelView]) -> Vec<KitChannel> {
    let is_over = |outpoint: OutPoint| {
        let mut views = channels.iter();
        views.any(|view| view.outpoint == outpoint && view.is_over())
    };
    let all = kit.channels().into_iter();
    all.filter(|channel| !is_over(channel.outpoint)).collect()
}

/// What these channels hold.
pub(super) fn capacity<'a>(channels: impl IntoIterator<Item = &'a KitChannel>) -> Amount {
    let sum = checked_sum(channels.into_iter().map(|channel| channel.capacity));
    sum.unwrap_or(Amount::MAX_MONEY)
}

/// The account, from a store and what the Lightning node says of its `channels`; `height`: the chain's, if it is known.
///
/// # Errors
/// The store's.
pub async fn account(
    store: &SharedStore,
    channels: &[ChannelView],
    height: Option<u32>,
) -> Result<Account> {
    let kits = KitCache::new(SharedStore::clone(store));
    let rows = store.factories().await?;
    let moves = store.moves().await?;
    let exits = store.exits().await?;
    let chain = crate::exit::view(store, Height(0)).await?;
    let mut sound = Vec::new();
    for row in rows.iter().filter(|row| row.is_live() && row.usable) {
        let kit = kits.sound(row.factory).await?;
        let stands = |kit: &ExitKit| !Unrolled::of(kit, &chain).is_some_and(Unrolled::is_over);
        if let Some(kit) = kit.filter(|kit| stands(kit)) {
            sound.push((row, kit));
        }
    }
    // What of a factory is on the chain already is the on-chain balance's: nothing of it moves, and no timeout pays it.
    let held: Vec<Held<'_>> = sound
        .iter()
        .map(|(row, kit)| Held::new(row, kit, channels, &exits))
        .filter(|own| !own.is_over())
        .collect();
    let mut account = sums(&held, &moves, height);
    account.add_outside(channels);
    for begun in &moves {
        if let Some(own) = held.iter().find(|own| own.row.factory == begun.from) {
            let parts = store.parts(begun.from).await?;
            account.moves.push(progress(own, begun, &parts));
        }
    }
    account.notices = notices(&held, &store.notices().await?, &store.declines().await?);
    account.double_sales = double_sales(&held, store.refused_sales().await?);
    let ours = |exit: &&ExitRow| {
        let mut rows = rows.iter().filter(|row| exit.leaves(row.factory));
        rows.any(|row| row.is_live() && !row.is_given_away())
    };
    let leaving: Vec<&ExitRow> = exits.iter().filter(ours).collect();
    for exit in leaving {
        let now = in_flight(store, exit).await?;
        if now.done_height.is_none() {
            account.leaving.push(LeavingView {
                factory: exit.factory,
                words: now.in_words(),
                until_height: now.until_height,
            });
        }
    }
    Ok(account)
}

fn sums(held: &[Held<'_>], moves: &[MoveRow], height: Option<u32>) -> Account {
    let sum = |values: &mut dyn Iterator<Item = u64>| values.fold(0, u64::saturating_add);
    // What is being moved out of is no part of the account's future.
    let leaves = |own: &&Held<'_>| {
        own.row.handover.is_some() || moves.iter().any(|begun| begun.from == own.row.factory)
    };
    let kept = || held.iter().filter(|own| !leaves(own));
    let covered = held.iter().filter(|own| !own.row.is_given_away());
    let covered: Vec<Covered> = covered.map(|own| own.usable.covered).collect();
    let stays = || held.iter().filter(|own| !own.left);
    let youngest = stays().max_by_key(|own| own.row.expiry);
    Account {
        balance_msat: sum(&mut held.iter().map(Held::balance)),
        limit_sat: sum(&mut kept().map(|own| own.usable.capacity.to_sat())),
        inbound_msat: sum(&mut held.iter().map(Held::receivable)),
        coverage_sat: sum(&mut covered.iter().map(|own| own.away.to_sat())),
        coverage_awake_sat: sum(&mut covered.iter().map(|own| own.awake.to_sat())),
        monthly_fee_sat: youngest.map_or(0, |own| own.row.fee.to_sat()),
        window: stays()
            .filter(|own| own.row.handover.is_none())
            .min_by_key(|own| calendar(own.kit).publish_from)
            .map(|own| window(own, height)),
        ..Account::default()
    }
}

fn window(own: &Held<'_>, height: Option<u32>) -> Window {
    let calendar = calendar(own.kit);
    let (from, to) = (calendar.dying_from, calendar.publish_from);
    let words = height.map(|height| {
        let left = |until: Height| blocks_in_words(until.since(Height(height)));
        match Height(height) {
            now if now < from => format!(
                "open the wallet once between block {from} ({}) and block {to} ({})",
                left(from),
                left(to)
            ),
            now if now < to => format!(
                "now: leave the wallet open until its balance has moved, before block {to} ({})",
                left(to)
            ),
            _ => format!("over since block {to}"),
        }
    });
    Window {
        factory: own.row.factory,
        from_height: from.0,
        deadline_height: to.0,
        words,
    }
}

fn progress(own: &Held<'_>, begun: &MoveRow, parts: &[PartRow]) -> MoveView {
    let mut out = parts.iter().filter(|part| part.from == begun.from);
    let last = out.clone().next_back();
    let (mut done, mut moved, mut fee) = (0u64, 0u64, 0u64);
    for part in out.by_ref() {
        if part.progress == PartProgress::Moved {
            done = done.saturating_add(1);
            moved = moved.saturating_add(part.amount.0);
            fee = fee.saturating_add(part.agreed.map_or(0, |agreed| agreed.fee.0));
        }
    }
    let left = own.balance();
    // What is left, in parts as large as the largest so far.
    let sizes = parts.iter().filter(|part| part.from == begun.from);
    let largest = sizes.map(|part| part.amount.0).max().unwrap_or(0).max(1);
    let state = match own.row.handover {
        Some(Handover::Begun | Handover::Sent | Handover::Taken(_)) => "handing_over",
        None if left == 0 => "moved",
        None => "moving",
    };
    MoveView {
        from: begun.from,
        to: last.map(|part| part.to),
        state,
        parts_done: done,
        parts_total: done.saturating_add(left.div_ceil(largest)),
        moved_msat: moved,
        left_msat: left,
        fee_msat: fee,
    }
}

fn notices(held: &[Held<'_>], told: &[NoticeRow], declined: &[DeclineRow]) -> Vec<NoticeView> {
    let views = held.iter().filter_map(|own| {
        let factory = own.row.factory;
        let notice = told.iter().find(|row| row.factory == factory);
        let decline = declined.iter().find(|row| row.factory == factory);
        let ours = !own.left && !own.row.is_given_away();
        if !ours || (notice.is_none() && decline.is_none()) {
            return None;
        }
        let mut words = Vec::new();
        if let Some(row) = notice {
            let notice = &row.notice;
            let all = [
                &notice.what,
                &notice.action,
                &notice.cost,
                &notice.otherwise,
            ];
            words.extend(all.into_iter().cloned());
        }
        if let Some(row) = decline {
            words.push(format!(
                "This wallet declined an invitation at block {}: {}.",
                row.height, row.why
            ));
        }
        Some(NoticeView {
            factory,
            level: notice.map(|row| row.notice.level),
            words,
            by_height: notice.map(|row| row.notice.by.0),
        })
    });
    views.collect()
}

/// Of what is left, being left or given away already there is nothing to do.
fn double_sales(held: &[Held<'_>], refused: Vec<RefusedSale>) -> Vec<DoubleSaleView> {
    let concerns = |refused: &RefusedSale| {
        let ours = |own: &&Held<'_>| !own.left && !own.row.is_given_away();
        let mut held = held.iter().filter(ours);
        held.any(|own| own.row.factory == refused.factory)
    };
    let views = refused.into_iter().filter(concerns).map(|refused| {
        let words = format!(
            "The coordinator tried to sell the same coins twice ({}); this wallet refused. Leave this factory with `exit {}`, and buy nothing more in it.",
            refused.found, refused.factory
        );
        DoubleSaleView {
            factory: refused.factory,
            at_height: refused.height.0,
            words,
        }
    });
    views.collect()
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;
    use channel_host::{LeafId, Msat, PaymentHash};
    use factory_tree::ceremony::message::Round;
    use factory_tree::exit::ExitPlan;
    use factory_tree::ids::{Attempt, CeremonyId};
    use factory_tree::params::{ExpiryPolicy, FactoryParams, Profile};
    use factory_tree::testing::TestFactory;

    use super::*;
    use crate::lightning::SpentView;
    use crate::store::{Agreed, Goal, Token};

    fn kit() -> ExitKit {
        let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
        TestFactory::new(3, params, 2).unwrap().sign().kit(0)
    }

    fn row(n: u8, kit: &ExitKit, expiry: Height) -> FactoryRow {
        FactoryRow {
            factory: FactoryId([n; 32]),
            round: Round {
                ceremony: CeremonyId([n; 16]),
                attempt: Attempt(1),
            },
            join_nonce: [n; 16],
            funding: OutPoint::null(),
            common_pin: OutPoint::null(),
            capacity: Amount::from_sat(200_000),
            birth: kit.birth,
            expiry,
            confirmations: 1,
            fee: Amount::from_sat(u64::from(n)),
            acked: true,
            failed: false,
            confirmed: Some(Height(1)),
            usable: true,
            abandoned: None,
            closed: None,
            handover: None,
        }
    }

    fn channel(factory: u8, ours_msat: u64) -> ChannelView {
        ChannelView {
            factory: Some(FactoryId([factory; 32])),
            leaf: String::new(),
            channel: None,
            state: ChannelState::Open,
            outpoint: OutPoint::null(),
            capacity_sat: 200_000,
            ours_msat,
            spendable_msat: ours_msat,
            receivable_msat: 1_000,
            pending: 0,
            usable: true,
            factory_confirmed: true,
            leaf_height: None,
            spent: None,
            closing_sat: 0,
        }
    }

    fn part(n: u8, progress: PartProgress, amount: u64) -> PartRow {
        PartRow {
            hash: PaymentHash([n; 32]),
            from: FactoryId([1; 32]),
            to: FactoryId([2; 32]),
            from_leaf: LeafId([1; 16]),
            to_leaf: LeafId([2; 16]),
            amount: Msat(amount),
            token: Token([0; 32]),
            asked: Height(1),
            progress,
            agreed: Some(Agreed {
                token: Token([0; 32]),
                fee: Msat(7),
                incoming: Height(1),
                outgoing: Height(1),
            }),
            failure: None,
        }
    }

    #[test]
    fn what_is_moved_out_of_counts_its_balance_and_no_limit() {
        let kit = kit();
        let (old, new) = (row(1, &kit, Height(5000)), row(2, &kit, Height(6000)));
        let (left, right) = ([channel(1, 40_000)], [channel(2, 60_000)]);
        let held = |old, new| {
            let old = Held::new(old, &kit, &left, &[]);
            [old, Held::new(new, &kit, &right, &[])]
        };
        let begun = MoveRow {
            from: old.factory,
            total: Msat(100_000),
            begun: Height(9),
        };
        let before = sums(&held(&old, &new), &[], Some(1));
        assert_eq!(before.limit_sat, 400_000);
        let during = sums(&held(&old, &new), &[begun], Some(1));
        assert_eq!(during.balance_msat, 100_000);
        assert_eq!(during.limit_sat, 200_000);
        assert_eq!(during.coverage_sat, before.coverage_sat);
        assert_eq!(during.monthly_fee_sat, 2);
        // Keys that are out cover nothing, and need no looking after.
        let sent = FactoryRow {
            handover: Some(Handover::Sent),
            ..old.clone()
        };
        let after = sums(&held(&sent, &new), &[begun], Some(1));
        assert_eq!(after.coverage_sat * 2, before.coverage_sat);
        assert_eq!(after.window.unwrap().factory, new.factory);
    }

    #[test]
    fn channels_outside_of_factories_count_and_are_not_covered() {
        let outside = ChannelView {
            factory: None,
            ..channel(1, 40_000)
        };
        let closed = ChannelView {
            state: ChannelState::Closed,
            ..outside.clone()
        };
        let mut account = Account::default();
        account.add_outside(&[outside, closed, channel(1, 7)]);
        let expected = Account {
            balance_msat: 40_000,
            outside_msat: 40_000,
            limit_sat: 200_000,
            inbound_msat: 1_000,
            ..Account::default()
        };
        assert_eq!(account, expected);
    }

    #[test]
    fn the_window_is_told_in_words() {
        let kit = kit();
        let row = row(1, &kit, kit.expiry);
        let own = Held::new(&row, &kit, &[], &[]);
        let calendar = calendar(&kit);
        let at = |height: Height| window(&own, Some(height.0)).words.unwrap();
        assert!(at(kit.birth).contains("about 30 days"), "{}", at(kit.birth));
        assert!(at(calendar.dying_from).starts_with("now"));
        assert!(at(calendar.publish_from).starts_with("over"));
        assert_eq!(window(&own, None).words, None);
    }

    #[test]
    fn a_move_is_told_in_parts() {
        let kit = kit();
        let row = row(1, &kit, kit.expiry);
        let left = [channel(1, 25)];
        let own = Held::new(&row, &kit, &left, &[]);
        let begun = MoveRow {
            from: row.factory,
            total: Msat(52),
            begun: Height(9),
        };
        let parts = [
            part(1, PartProgress::Moved, 10),
            part(2, PartProgress::Failed, 10),
            part(3, PartProgress::Moved, 10),
            part(4, PartProgress::Agreed, 10),
        ];
        let view = progress(&own, &begun, &parts);
        assert_eq!((view.parts_done, view.parts_total), (2, 5));
        assert_eq!(
            (view.moved_msat, view.left_msat, view.fee_msat),
            (20, 25, 14)
        );
        assert_eq!((view.state, view.to), ("moving", Some(FactoryId([2; 32]))));
    }

    #[test]
    fn all_channels_of_a_factory_are_one_account() {
        let [kit, _] = crate::exit::tests::sold(ExpiryPolicy::ClientRefund);
        let row = row(1, &kit, kit.expiry);
        let [born, first, third] = kit.channels().try_into().unwrap();
        let at = |outpoint, ours| ChannelView {
            outpoint,
            ..channel(1, ours)
        };
        let mut views = [
            at(born.outpoint, 40_000),
            at(first.outpoint, 5_000),
            at(third.outpoint, 1),
            channel(2, 900_000),
        ];
        let all = sums(&[Held::new(&row, &kit, &views, &[])], &[], None);
        assert_eq!((all.balance_msat, all.inbound_msat), (45_001, 3_000));
        assert_eq!(all.limit_sat, 330_000);
        let sure = Coverage::of_kit(&kit).unwrap();
        assert_eq!(sure.held.to_sat(), all.limit_sat);
        assert_eq!(all.coverage_awake_sat, sure.awake.to_sat());
        let away = ExitPlan::new(&kit).coverage.least();
        assert_eq!(all.coverage_sat, away.to_sat());
        // A poison paid for one of them: the others go on.
        views[2].state = ChannelState::Spent;
        views[2].spent = Some(SpentView {
            kind: "poison".to_owned(),
            txid: third.outpoint.txid,
            height: 9,
        });
        let own = Held::new(&row, &kit, &views, &[]);
        assert!(!own.is_over());
        let left = sums(&[own], &[], None);
        assert_eq!((left.balance_msat, left.limit_sat), (45_000, 300_000));
        assert_eq!((left.coverage_sat, left.coverage_awake_sat), (0, 0));
        // Closed, and not on the chain yet: no more is held, and no more promised.
        (views[2].state, views[2].spent) = (ChannelState::Closed, None);
        assert_eq!(sums(&[Held::new(&row, &kit, &views, &[])], &[], None), left);
    }

    fn exit(row: &FactoryRow, goal: Goal) -> ExitRow {
        ExitRow {
            factory: row.factory,
            goal,
            feerate: None,
            max_fee: None,
            requested: Height(8),
            progress: crate::store::Progress::default(),
        }
    }

    #[test]
    fn who_leaves_already_is_not_told_to_leave_for_a_double_sale() {
        let kit = kit();
        let row = row(1, &kit, kit.expiry);
        let refused = || {
            vec![RefusedSale {
                factory: row.factory,
                found: "sale 1, once more".to_owned(),
                height: Height(7),
            }]
        };
        let told = |exits: &[ExitRow]| {
            let held = [Held::new(&row, &kit, &[], exits)];
            double_sales(&held, refused()).len()
        };
        assert_eq!(told(&[]), 1);
        assert_eq!(told(&[exit(&row, Goal::Timeout)]), 1);
        assert_eq!(told(&[exit(&row, Goal::Leave)]), 0);
    }

    #[test]
    fn what_is_left_has_no_calendar_and_nothing_of_it_is_to_be_used() {
        let kit = kit();
        let (old, new) = (row(1, &kit, Height(6000)), row(2, &kit, Height(5000)));
        let channels = [channel(1, 40_000), channel(2, 60_000)];
        let declined = [&old, &new].map(|row| DeclineRow {
            factory: row.factory,
            height: Height(9),
            why: "too dear".to_owned(),
        });
        let told = |exits: &[ExitRow]| {
            let held = [&old, &new].map(|row| Held::new(row, &kit, &channels, exits));
            let notices = notices(&held, &[], &declined).into_iter();
            let of: Vec<FactoryId> = notices.map(|notice| notice.factory).collect();
            (sums(&held, &[], Some(1)), of)
        };
        let (both, notices) = told(&[exit(&old, Goal::Timeout)]);
        assert_eq!(notices, [old.factory, new.factory]);
        assert_eq!((both.limit_sat, both.inbound_msat), (400_000, 2_000));
        assert_eq!(both.monthly_fee_sat, 1);
        let (left, notices) = told(&[exit(&old, Goal::Leave)]);
        assert_eq!(notices, [new.factory]);
        assert_eq!(left.window.unwrap().factory, new.factory);
        assert_eq!((left.limit_sat, left.inbound_msat), (200_000, 1_000));
        assert_eq!(left.monthly_fee_sat, 2);
        // It is the wallet's until it is out, and covered.
        assert_eq!(left.balance_msat, both.balance_msat);
        assert_eq!(left.coverage_sat, both.coverage_sat);
        let (all, _) = told(&[exit(&old, Goal::Leave), exit(&new, Goal::Leave)]);
        assert_eq!((all.window, all.limit_sat), (None, 0));
    }
}
