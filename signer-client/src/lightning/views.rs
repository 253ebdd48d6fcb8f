//! What there is to say of a channel, with or without the node.

use std::collections::HashMap;
use std::sync::Arc;

use bitcoin::{OutPoint, Txid};
use channel_host::{ChannelView as Live, LeafId, LeafView, Node, Side, SpendKind, Stage};
use factory_tree::ids::FactoryId;
use factory_tree::kit::{ExitKit, KitChannel};
use factory_tree::tx::TxKind;
use factory_tree::units::Height;
use serde::{Deserialize, Serialize};

use super::ending::when_quiet;
use super::leaf::{cut, name_of};
use super::outside;
use super::sink::spend_name;
use crate::client::Inner;
use crate::error::Result;
use crate::store::{FactoryRow, SharedStore};

/// How far a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelState {
    /// Signed for, not usable yet.
    Opening,
    /// Stands.
    Open,
    /// Stands until its leaf is on the chain, and is closed then.
    Leaving,
    /// Takes no more payments; its money is not on the chain yet.
    Closed,
    /// Its output on the chain is spent, or one on the way to it: by a timeout, a poison, or what `others` signed.
    Spent,
}

impl ChannelState {
    /// As written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Leaving => "leaving",
            Self::Closed => "closed",
            Self::Spent => "spent",
        }
    }
}

/// What spent a channel's output, or one on the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentView {
    /// `commitment`, `cooperative`, `timeout`, `poison`, `reap`, or `others` if somebody else took what led to it.
    pub kind: String,
    /// The transaction.
    pub txid: Txid,
    /// Height of its block.
    pub height: u32,
}

/// A channel: on a leaf, or outside of factories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelView {
    /// The factory; nothing for a channel that was opened just in time.
    pub factory: Option<FactoryId>,
    /// The leaf's id, in hexadecimal digits, or the channel's number if it is on none.
    pub leaf: String,
    /// Its BOLT 2 id, in hexadecimal digits, while it stands.
    pub channel: Option<String>,
    /// How far it is.
    pub state: ChannelState,
    /// Its funding output, of the leaf if it is on one.
    pub outpoint: OutPoint,
    /// What it holds.
    pub capacity_sat: u64,
    /// What of it is this wallet's, payments under way left out.
    pub ours_msat: u64,
    /// What could be sent over it now.
    pub spendable_msat: u64,
    /// What could be received over it now.
    pub receivable_msat: u64,
    /// Payments pending in it.
    pub pending: u64,
    /// Whether it carries payments now: it stands, the factory is confirmed as agreed, and the coordinator is there.
    pub usable: bool,
    /// Whether the factory is confirmed as agreed; outside of factories, whether the channel's own funding is in a block. Until then the coordinator
    /// can still take it back.
    pub factory_confirmed: bool,
    /// Height of the leaf's block, once it is on the chain.
    pub leaf_height: Option<u32>,
    /// What spent it on the chain.
    pub spent: Option<SpentView>,
    /// What of it is this wallet's and on its way on the chain, but not in the on-chain wallet yet.
    pub closing_sat: u64,
}

impl ChannelView {
    /// Whether it lies in no factory.
    #[must_use]
    pub const fn is_outside(&self) -> bool {
        self.factory.is_none()
    }

    /// Whether it will never carry a payment again.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.state, ChannelState::Closed | ChannelState::Spent)
    }

    /// What can be received over it now: what carries no payments takes none, and what is being left is not to be paid over any more.
    #[must_use]
    pub const fn can_receive_msat(&self) -> u64 {
        match (self.usable, self.state) {
            (true, ChannelState::Open) => self.receivable_msat,
            _ => 0,
        }
    }

    /// What of it is this wallet's: its side while it stands, then what of that is not in the on-chain wallet yet.
    #[must_use]
    pub const fn own_msat(&self) -> u64 {
        self.ours_msat
            .saturating_add(self.closing_sat.saturating_mul(1_000))
    }
}

#[cfg(test)]
impl ChannelView {
    /// An open channel that carries payments, for tests to change.
    pub(crate) fn sample(factory: FactoryId, ours_msat: u64, receivable_msat: u64) -> Self {
        use bitcoin::hashes::Hash as _;
        Self {
            factory: Some(factory),
            leaf: String::new(),
            channel: Some("ab".to_owned()),
            state: ChannelState::Open,
            outpoint: OutPoint::new(bitcoin::Txid::all_zeros(), 0),
            capacity_sat: (ours_msat + receivable_msat).div_ceil(1000),
            ours_msat,
            spendable_msat: ours_msat,
            receivable_msat,
            pending: 0,
            usable: true,
            factory_confirmed: true,
            leaf_height: None,
            spent: None,
            closing_sat: 0,
        }
    }
}

fn state_of(view: &LeafView) -> Option<ChannelState> {
    Some(match view.stage {
        _ if view.side != Side::Client => return None,
        Stage::Expected | Stage::Opening | Stage::Abandoned => return None,
        _ if view.spent.is_some() => ChannelState::Spent,
        Stage::Funded => ChannelState::Opening,
        Stage::Open if view.exiting => ChannelState::Leaving,
        Stage::Open => ChannelState::Open,
        Stage::Closed => ChannelState::Closed,
    })
}

/// `gone`: what took its money on its way; `closing_sat`: what the chain holds of it for us.
fn view(
    factory: FactoryId,
    leaf: &LeafView,
    live: Option<&Live>,
    gone: Option<SpentView>,
    closing_sat: u64,
) -> Option<ChannelView> {
    let state = match gone {
        Some(_) => state_of(leaf).map(|_| ChannelState::Spent)?,
        None => state_of(leaf)?,
    };
    let stands = matches!(state, ChannelState::Open | ChannelState::Leaving);
    let open = live.filter(|_| stands);
    let pays = open.filter(|_| leaf.factory_confirmed);
    let spent = leaf.spent.map(|(kind, txid, height)| SpentView {
        kind: spend_name(kind).to_owned(),
        txid,
        height,
    });
    let spent = gone.or(spent);
    Some(ChannelView {
        factory: Some(factory),
        leaf: leaf.id.to_string(),
        channel: open.map(|live| live.channel.iter().map(|b| format!("{b:02x}")).collect()),
        state,
        outpoint: leaf.outpoint,
        capacity_sat: leaf.capacity.to_sat(),
        ours_msat: open.map_or(0, |live| live.spendable.0),
        spendable_msat: pays.map_or(0, |live| live.spendable.0),
        receivable_msat: pays.map_or(0, |live| live.receivable.0),
        pending: open.map_or(0, |live| live.pending as u64),
        usable: pays.is_some_and(|live| live.usable),
        factory_confirmed: leaf.factory_confirmed,
        leaf_height: leaf.confirmed_at,
        spent,
        closing_sat: if stands { 0 } else { closing_sat },
    })
}

/// What a leaf is of.
struct Place {
    row: FactoryRow,
    /// Its kit, and its channel in it, if that is any good.
    kit: Option<(Arc<ExitKit>, KitChannel)>,
}

/// Every leaf of every factory.
async fn places(client: &Inner, rows: &[FactoryRow]) -> Result<HashMap<LeafId, Place>> {
    let joins = client.store.joins().await?;
    let mut places = HashMap::new();
    for row in rows {
        let place = |kit| Place {
            row: row.clone(),
            kit,
        };
        let Some(kit) = client.kits.sound(row.factory).await? else {
            let join = joins.iter().find(|join| join.join_nonce == row.join_nonce);
            places.extend(join.map(|join| (LeafId(join.leaf_id.0), place(None))));
            continue;
        };
        for channel in kit.channels() {
            let found = place(Some((Arc::clone(&kit), channel)));
            places.insert(name_of(&channel), found);
        }
    }
    Ok(places)
}

/// What the node says now, oldest factories first, and what is outside of them last.
pub(super) async fn live(client: &Inner, node: &Arc<Node>) -> Result<Vec<(LeafId, ChannelView)>> {
    let rows = client.store.factories().await?;
    let places = places(client, &rows).await?;
    let channels = node.channels();
    let mut views = Vec::new();
    for leaf in node.leaves() {
        let Some(place) = places.get(&leaf.id) else {
            continue;
        };
        let live = channels.iter().find(|live| live.leaf == Some(leaf.id));
        let seen = match gone(client, place, &leaf).await? {
            Some(gone) => view(place.row.factory, &leaf, None, Some(gone), 0),
            None => {
                // What stands is counted by the channel.
                let closing = match live {
                    Some(_) => 0,
                    None => closing_sat(node, leaf.id).await,
                };
                view(place.row.factory, &leaf, live, None, closing)
            }
        };
        views.extend(seen.map(|view| (leaf.id, view)));
    }
    let place = |view: &ChannelView| {
        let mut rows = rows.iter();
        rows.position(|row| Some(row.factory) == view.factory)
    };
    views.sort_by_key(|(_, view)| place(view));
    views.extend(outside::live(node, &channels).await);
    Ok(views)
}

/// What took a leaf's money on its way: the leaf never comes. What a timeout or a poison paid for it is counted elsewhere.
async fn gone(client: &Inner, place: &Place, leaf: &LeafView) -> Result<Option<SpentView>> {
    // Its gate was shut when that was seen.
    let shut = !leaf.factory_confirmed && place.row.confirmed.is_some() && leaf.spent.is_none();
    let Some((kit, channel)) = place.kit.as_ref().filter(|_| shut) else {
        return Ok(None);
    };
    let chain = crate::exit::view(&client.store, Height(client.followed_height())).await?;
    Ok(cut(kit, channel, &chain).map(|by| SpentView {
        kind: taken_by(kit, by.txid).to_owned(),
        txid: by.txid,
        height: by.height.0,
    }))
}

fn taken_by(kit: &ExitKit, txid: Txid) -> &'static str {
    let tx = kit.txs.iter().find(|tx| tx.txid() == txid);
    match tx.map(|tx| tx.kind) {
        Some(TxKind::Timeout) => spend_name(SpendKind::Timeout),
        Some(TxKind::Poison) => spend_name(SpendKind::Poison),
        _ => "others",
    }
}

/// What is ours of a closed channel, and not in the wallet.
async fn closing_sat(node: &Arc<Node>, leaf: LeafId) -> u64 {
    let Some(settlement) = when_quiet(|| node.settlement(leaf)).await else {
        return 0;
    };
    let amounts = settlement.locked.iter().chain(&settlement.free);
    amounts.map(|amount| amount.to_sat()).sum()
}

/// All channels that stand, or whose money is not in the on-chain wallet yet; as the node says, or said last.
pub(crate) async fn current(client: &Inner) -> Result<Vec<ChannelView>> {
    match client.lightning.node() {
        Some(node) => {
            let live = live(client, &node).await?.into_iter();
            Ok(live.map(|(_, view)| view).collect())
        }
        None => stored(&client.store, false).await,
    }
}

/// The same as the node said last. `kept`: a process that runs keeps it as it is now.
pub(crate) async fn stored(store: &SharedStore, kept: bool) -> Result<Vec<ChannelView>> {
    let rows = store.channels().await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| row.view)
        .map(|view| ChannelView {
            // Else nobody is there to use it.
            usable: view.usable && kept,
            ..view
        })
        .collect())
}

/// The channels of one factory, as the node said last.
pub(crate) async fn of_factory(
    store: &SharedStore,
    factory: FactoryId,
) -> Result<Vec<ChannelView>> {
    let channels = stored(store, false).await?.into_iter();
    Ok(channels
        .filter(|view| view.factory == Some(factory))
        .collect())
}

/// Keeps what the node says for when it does not run, and for other processes.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// What is stored; read once.
    last: Option<HashMap<LeafId, ChannelView>>,
}

impl Snapshots {
    pub(super) async fn store(&mut self, client: &Inner) -> Result<()> {
        let mut last = match self.last.take() {
            Some(last) => last,
            None => {
                let rows = client.store.channels().await?.into_iter();
                let views = rows.filter_map(|row| Some((row.leaf, row.view?)));
                views.collect()
            }
        };
        let now = match client.lightning.node() {
            Some(node) => live(client, &node).await?,
            // It is as it was said last, and of no use meanwhile.
            None => {
                let said = last.iter().map(|(leaf, view)| {
                    let usable = false;
                    let view = view.clone();
                    (*leaf, ChannelView { usable, ..view })
                });
                said.collect()
            }
        };
        // Given up with its attempt, for example.
        let gone: Vec<LeafId> = last
            .keys()
            .filter(|leaf| !now.iter().any(|(other, _)| other == *leaf))
            .copied()
            .collect();
        for leaf in gone {
            client.store.forget_channel(leaf).await?;
            last.remove(&leaf);
        }
        for (leaf, view) in now {
            if last.get(&leaf) != Some(&view) {
                client.store.set_channel(leaf, &view).await?;
                last.insert(leaf, view);
            }
        }
        self.last = Some(last);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Amount;
    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use factory_tree::params::ExpiryPolicy;

    #[test]
    fn what_was_taken_on_its_way_is_spent_whoever_took_it() {
        let [kit, _] = crate::exit::tests::sold(ExpiryPolicy::ClientRefund);
        let timeout = kit.txs.iter().find(|tx| tx.kind == TxKind::Timeout);
        assert_eq!(taken_by(&kit, timeout.unwrap().txid()), "timeout");
        let other = Txid::from_byte_array([8; 32]);
        assert_eq!(taken_by(&kit, other), "others");
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        let leaf = LeafView {
            id: LeafId([1; 16]),
            peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            side: Side::Client,
            outpoint: OutPoint::null(),
            capacity: Amount::from_sat(1_000),
            stage: Stage::Open,
            factory_confirmed: false,
            exiting: false,
            confirmed_at: None,
            spent: None,
        };
        let gone = SpentView {
            kind: "others".to_owned(),
            txid: other,
            height: 9,
        };
        let seen = |gone| view(kit.factory_id, &leaf, None, gone, 0).unwrap();
        assert_eq!(seen(None).state, ChannelState::Open);
        let taken = seen(Some(gone.clone()));
        assert_eq!(taken.state, ChannelState::Spent);
        assert_eq!(taken.spent, Some(gone));
    }
}
