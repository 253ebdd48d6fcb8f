//! What a run of blocks means for our factories, found first and stored then, in one transaction.

use std::collections::{BTreeSet, HashMap};

use bitcoin::{Block, BlockHash, OutPoint, Transaction, Txid};
use chain::ChainEvent;
use factory_tree::factory::SpentKind;
use factory_tree::ids::FactoryId;

use super::{ChainTaskError, height_after};
use crate::context::Context;
use crate::event::Event;
use crate::fault;
use crate::lightning;
use crate::notify;
use crate::store::factories::FactoryRow;
use crate::store::history::{self, HistoryRow};
use crate::store::outputs::{self, OutputRow};
use crate::store::sweeps::{self, SweepRow};
use crate::store::{self, Conn, factories};

/// What is watched for, and what was found.
#[derive(Debug)]
pub(super) struct Scan {
    fundings: HashMap<Txid, FactoryRow>,
    outputs: HashMap<OutPoint, OutputRow>,
    sweeps: HashMap<Txid, SweepRow>,
    stored_tip: Option<u32>,
    found: Vec<Found>,
    events: Vec<(u32, Event)>,
}

#[derive(Debug)]
enum Found {
    Block(u32, BlockHash),
    Funding(FactoryId, u32),
    Output(OutputRow),
    Spend(OutPoint, u32, Txid),
    Sweep(Txid, u32),
}

impl Scan {
    pub(super) async fn load(ctx: &Context) -> Result<Self, ChainTaskError> {
        let scan = ctx.store.read(async |tx| {
            let fundings = factories::funded(tx)
                .await?
                .into_iter()
                .map(|row| (row.funding.txid, row));
            let outputs = outputs::unspent(tx)
                .await?
                .into_iter()
                .map(|row| (row.outpoint, row));
            let sweeps = sweeps::unconfirmed(tx).await?.into_iter();
            Ok(Self {
                fundings: fundings.collect(),
                outputs: outputs.collect(),
                sweeps: sweeps.map(|row| (row.tx.compute_txid(), row)).collect(),
                stored_tip: outputs::tip(tx).await?,
                found: Vec::new(),
                events: Vec::new(),
            })
        });
        Ok(scan.await?)
    }

    /// Takes in a run of connected blocks, or one disconnected block, and returns how many events that were.
    pub(super) async fn take(
        mut self,
        ctx: &Context,
        events: &[ChainEvent],
    ) -> Result<usize, ChainTaskError> {
        let mut rewind = None;
        let mut taken = 0usize;
        for event in events {
            match event {
                ChainEvent::Disconnected(gone) if taken == 0 => {
                    taken = 1;
                    rewind = self
                        .stored_tip
                        .filter(|tip| *tip >= gone.height)
                        .map(|_| gone.height);
                    self.events.push((
                        gone.height,
                        Event::BlockDisconnected {
                            height: gone.height,
                        },
                    ));
                    break;
                }
                ChainEvent::Disconnected(_) => break,
                ChainEvent::Connected { height, block } => {
                    if self.stored_tip.is_some_and(|tip| tip >= *height) {
                        let hash = block.block_hash();
                        let known = ctx
                            .store
                            .read(async |tx| outputs::block_at(tx, *height).await)
                            .await?;
                        if known == Some(hash) {
                            taken = taken.saturating_add(1);
                            continue;
                        }
                        // Not the block that was taken into account: everything from here on is replaced. What is watched for
                        // is loaded again after that, with this block still to come.
                        if taken == 0 {
                            rewind = Some(*height);
                        }
                        break;
                    }
                    self.connect(ctx, *height, block).await?;
                    taken = taken.saturating_add(1);
                }
            }
        }
        let last = taken.checked_sub(1).and_then(|last| events.get(last));
        let tip = last
            .map(height_after)
            .or(rewind.map(|height| height.saturating_sub(1)));
        // Blocks that were taken into account before are only the wallet's to see again.
        let known = self.stored_tip.filter(|_| rewind.is_none());
        self.commit(ctx, rewind, tip.max(known).unwrap_or(0))
            .await?;
        Ok(taken)
    }

    async fn connect(
        &mut self,
        ctx: &Context,
        height: u32,
        block: &Block,
    ) -> Result<(), ChainTaskError> {
        self.found.push(Found::Block(height, block.block_hash()));
        self.events.push((height, Event::BlockConnected { height }));
        for tx in &block.txdata {
            // Only a transaction of ours, or one that spends an output of ours, costs more than this look.
            let spends: Vec<OutPoint> = tx
                .input
                .iter()
                .map(|input| input.previous_output)
                .filter(|outpoint| self.outputs.contains_key(outpoint))
                .collect();
            let txid = (!spends.is_empty() || self.may_be_ours(tx)).then(|| tx.compute_txid());
            if let Some(txid) = txid {
                self.our_tx(height, txid);
                for outpoint in spends {
                    self.spend(ctx, height, outpoint, txid).await?;
                }
            }
        }
        Ok(())
    }

    /// Fundings and sweeps are looked for by id; computing one costs two hashes, so only while something is awaited.
    fn may_be_ours(&self, tx: &Transaction) -> bool {
        let awaited = self
            .fundings
            .values()
            .any(|row| row.confirmed_height.is_none());
        !tx.is_coinbase() && (awaited || !self.sweeps.is_empty())
    }

    fn our_tx(&mut self, height: u32, txid: Txid) {
        if let Some(row) = self.fundings.get_mut(&txid) {
            row.confirmed_height = Some(height);
            let output = OutputRow {
                outpoint: row.funding,
                factory: row.id,
                kind: SpentKind::Funding,
                amount: row.funding_amount,
                confirmed_height: height,
                spent_height: None,
                spent_by: None,
            };
            self.found.push(Found::Funding(row.id, height));
            self.events.push((
                height,
                Event::FactoryConfirmed {
                    factory: row.id,
                    height,
                },
            ));
            self.watch(output);
        }
        if let Some(row) = self.sweeps.remove(&txid) {
            self.found.push(Found::Sweep(txid, height));
            let event = Event::Swept {
                factory: row.factory,
                txid,
                sat: row.amount.to_sat(),
                outputs: row.tx.input.len(),
            };
            self.events.push((height, event));
        }
    }

    fn watch(&mut self, output: OutputRow) {
        self.outputs.insert(output.outpoint, output.clone());
        self.found.push(Found::Output(output));
    }

    async fn spend(
        &mut self,
        ctx: &Context,
        height: u32,
        outpoint: OutPoint,
        by: Txid,
    ) -> Result<(), ChainTaskError> {
        let Some(spent) = self.outputs.remove(&outpoint) else {
            return Ok(());
        };
        self.found.push(Found::Spend(outpoint, height, by));
        let known = ctx.trees.get(&ctx.store, spent.factory).await?;
        let Some(tx) = known.tx(&by) else {
            return Ok(());
        };
        let kind = serde_json::to_value(tx.kind)
            .ok()
            .and_then(|kind| kind.as_str().map(str::to_owned));
        let kind = kind.unwrap_or_default();
        self.events.push((
            height,
            Event::TreePublished {
                factory: spent.factory,
                txid: by,
                kind,
                height,
            },
        ));
        for output in known.outputs(tx) {
            self.watch(OutputRow {
                outpoint: output.outpoint,
                factory: spent.factory,
                kind: output.kind,
                amount: output.amount,
                confirmed_height: height,
                spent_height: None,
                spent_by: None,
            });
        }
        Ok(())
    }

    async fn commit(
        self,
        ctx: &Context,
        rewind: Option<u32>,
        tip: u32,
    ) -> Result<(), ChainTaskError> {
        let Self {
            fundings,
            found,
            mut events,
            ..
        } = self;
        let confirmed = found
            .iter()
            .any(|found| matches!(found, Found::Funding(..)));
        let (late, changed) = ctx
            .store
            .write(async |tx| {
                let mut late = Vec::new();
                let mut changed = BTreeSet::new();
                if let Some(height) = rewind {
                    unconfirm(tx, &fundings, height, &mut late, &mut changed).await?;
                    outputs::rewind(tx, height).await?;
                }
                for found in &found {
                    store_one(tx, found, &mut changed).await?;
                }
                settle(tx, tip, &mut late, &mut changed).await?;
                Ok((late, changed))
            })
            .await?;
        if confirmed {
            fault::point("confirmed_stored");
        }
        if !changed.is_empty() {
            // Whoever hears that a factory is usable may pay over it at once, and whoever hears that it is not is paid no more.
            lightning::settle(ctx).await;
        }
        events.extend(late.into_iter().map(|event| (tip, event)));
        for (height, event) in events {
            ctx.events.set_height(height);
            ctx.events.emit(event);
        }
        ctx.events.set_height(tip);
        for factory in changed {
            notify::members(ctx, factory).await?;
        }
        Ok(())
    }
}

async fn store_one(
    tx: &mut Conn,
    found: &Found,
    changed: &mut BTreeSet<FactoryId>,
) -> store::Result<()> {
    match found {
        Found::Block(height, hash) => outputs::connect(tx, *height, *hash).await,
        Found::Funding(factory, height) => {
            changed.insert(*factory);
            let entry = entry(*factory, *height, "factory_confirmed");
            history::add_to_members(tx, *factory, &entry).await?;
            factories::set_confirmed(tx, *factory, Some(*height), false).await
        }
        Found::Output(output) => outputs::add(tx, output).await,
        Found::Spend(outpoint, height, by) => outputs::spend(tx, *outpoint, *height, *by).await,
        Found::Sweep(txid, height) => sweeps::confirm(tx, txid, *height).await.map(|_| ()),
    }
}

/// Factories whose funding left the chain are unconfirmed again.
async fn unconfirm(
    tx: &mut Conn,
    fundings: &HashMap<Txid, FactoryRow>,
    height: u32,
    events: &mut Vec<Event>,
    changed: &mut BTreeSet<FactoryId>,
) -> store::Result<()> {
    for row in fundings
        .values()
        .filter(|row| row.confirmed_height.is_some_and(|at| at >= height))
    {
        factories::set_confirmed(tx, row.id, None, false).await?;
        history::add_to_members(tx, row.id, &entry(row.id, height, "factory_unconfirmed")).await?;
        events.push(Event::FactoryUnconfirmed { factory: row.id });
        changed.insert(row.id);
    }
    Ok(())
}

/// Which factories are as deep as agreed now, or not any more.
async fn settle(
    tx: &mut Conn,
    tip: u32,
    events: &mut Vec<Event>,
    changed: &mut BTreeSet<FactoryId>,
) -> store::Result<()> {
    for row in factories::funded(tx).await? {
        let depth = row
            .confirmed_height
            .map(|at| tip.saturating_add(1).saturating_sub(at));
        let usable = depth.is_some_and(|depth| depth >= row.confirmations);
        if usable == row.usable {
            continue;
        }
        factories::set_confirmed(tx, row.id, row.confirmed_height, usable).await?;
        changed.insert(row.id);
        if usable {
            history::add_to_members(tx, row.id, &entry(row.id, tip, "factory_usable")).await?;
            events.push(Event::FactoryUsable { factory: row.id });
        }
    }
    Ok(())
}

fn entry(factory: FactoryId, height: u32, kind: &str) -> HistoryRow {
    HistoryRow {
        number: 0,
        height,
        kind: kind.to_owned(),
        round: None,
        factory: Some(factory),
        text: String::new(),
    }
}
