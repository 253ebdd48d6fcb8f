//! Whether what a store holds is a complete exit for all that the wallet shows.

use std::collections::HashMap;
use std::fmt;

use anyhow::Result;
use bitcoin::hashes::{Hash, sha256};
use bitcoin::{Amount, OutPoint};
use factory_tree::exit::rehearse;
use factory_tree::ids::FactoryId;
use factory_tree::kit::ExitKit;
use signer_client::store::{FactoryRow, SharedStore};
use signer_client::{ChannelState, ChannelView};

/// Rehearses exits; remembers kits that were sound, byte for byte.
#[derive(Debug, Default)]
pub(super) struct Exits {
    sound: HashMap<(FactoryId, sha256::Hash), Way>,
}

/// Where a rehearsed exit ends.
#[derive(Clone, Debug)]
struct Way {
    channels: Vec<(OutPoint, Amount)>,
}

/// What is wrong with a wallet's exits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// The store cannot be read.
    Unreadable(String),
    /// A factory that may still be needed has no sound kit.
    Kit {
        /// The factory.
        factory: FactoryId,
        /// What is wrong with it.
        why: String,
    },
    /// A balance that no exit brings home.
    Balance {
        /// The factory it is in.
        factory: FactoryId,
        /// How much, in thousandths of a satoshi.
        msat: u64,
        /// Why not.
        why: &'static str,
    },
}

impl Wrong {
    /// Whether it may be over in a moment: a balance is what the Lightning node said last, and is written down after it has changed; a
    /// store may be in somebody's hands.
    pub(super) const fn may_be_over(&self) -> bool {
        !matches!(self, Self::Kit { .. })
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => f.write_str(why),
            Self::Kit { factory, why } => write!(f, "no exit from factory {factory}: {why}"),
            Self::Balance { factory, msat, why } => {
                write!(f, "{msat} msat in factory {factory} without an exit: {why}")
            }
        }
    }
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) wrong: Vec<Wrong>,
    pub(super) rehearsed: u64,
}

impl Seen {
    pub(super) fn unreadable(error: &anyhow::Error) -> Self {
        Self {
            wrong: vec![Wrong::Unreadable(format!("{error:#}"))],
            rehearsed: 0,
        }
    }
}

impl Exits {
    pub(super) async fn judge(&mut self, store: &SharedStore) -> Result<Seen> {
        let rows = store.factories().await?;
        let mut seen = Seen::default();
        let mut ways = HashMap::new();
        for row in rows.iter().filter(|row| row.is_live()) {
            seen.rehearsed += 1;
            match self.way(store, row).await? {
                Ok(way) => drop(ways.insert(row.factory, way)),
                Err(why) => seen.wrong.push(Wrong::Kit {
                    factory: row.factory,
                    why,
                }),
            }
        }
        let channels = store.channels().await?;
        let views = channels.iter().filter_map(|row| row.view.as_ref());
        for view in views.filter(|view| stands(view) && view.ours_msat > 0) {
            // One outside of factories is on the chain, or comes there by itself.
            let Some(factory) = view.factory else {
                continue;
            };
            let row = rows.iter().find(|row| row.factory == factory);
            if let Err(why) = covers(row, ways.get(&factory), view) {
                seen.wrong.push(Wrong::Balance {
                    factory,
                    msat: view.ours_msat,
                    why,
                });
            }
        }
        Ok(seen)
    }

    /// Reads the kit, verifies it whole, and rehearses both ways out that it has.
    async fn way(&mut self, store: &SharedStore, row: &FactoryRow) -> Result<Result<Way, String>> {
        let bytes = match store.kit(row.factory).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let key = (row.factory, sha256::Hash::hash(&bytes));
        if let Some(way) = self.sound.get(&key) {
            return Ok(Ok(way.clone()));
        }
        let way = verified(row, &bytes);
        if let Ok(way) = &way {
            self.sound.insert(key, way.clone());
        }
        Ok(way)
    }
}

fn verified(row: &FactoryRow, bytes: &[u8]) -> Result<Way, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let kit = ExitKit::from_json(text).map_err(|error| error.to_string())?;
    kit.verify().map_err(|error| error.to_string())?;
    if kit.factory_id != row.factory || kit.funding() != row.funding {
        return Err(format!("the kit is that of factory {}", kit.factory_id));
    }
    rehearse(&kit).map_err(|error| error.to_string())?;
    let channels = kit.channels().into_iter();
    Ok(Way {
        channels: channels
            .map(|channel| (channel.outpoint, channel.capacity))
            .collect(),
    })
}

/// Whether its balance counts for the wallet: while it does, there has to be a way to it.
const fn stands(view: &ChannelView) -> bool {
    matches!(
        view.state,
        ChannelState::Opening | ChannelState::Open | ChannelState::Leaving
    )
}

fn covers(
    row: Option<&FactoryRow>,
    way: Option<&Way>,
    view: &ChannelView,
) -> Result<(), &'static str> {
    let row = row.ok_or("the wallet does not know the factory")?;
    if row.is_given_away() {
        return Err("its keys may be the coordinator's");
    }
    if !row.is_live() {
        return Err("the wallet has given the factory up");
    }
    let way = way.ok_or("its kit is no good")?;
    let mut channels = way.channels.iter();
    let own = channels.find(|(outpoint, _)| *outpoint == view.outpoint);
    let (_, capacity) = own.ok_or("the kit ends at another channel")?;
    if view.ours_msat > capacity.to_sat().saturating_mul(1000) {
        return Err("the kit's channel holds less");
    }
    Ok(())
}
