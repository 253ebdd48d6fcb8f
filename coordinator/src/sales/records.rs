//! What a sale's task writes: one transaction each, tried until it succeeds.

use std::time::Duration;

use bitcoin::secp256k1::schnorr;
use factory_tree::ids::{Attempt, ClientId};
use factory_tree::sale::Sale;
use factory_tree::sale::seller::SoldRecord;

use super::driver::{Driver, Stop};
use crate::clock::unix_time;
use crate::event::Event;
use crate::reputation::Fault;
use crate::store::attempts::{self, BlameRow};
use crate::store::jit as orders;
use crate::store::sales::{self as rows, SaleRow};
use crate::store::{self, StoreError, bonus, clients};

/// A pause before a write that failed is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Something to be written.
#[derive(Debug)]
pub(super) enum Entry {
    /// What it waits for.
    Note(String),
    /// A client may sign these terms from now on.
    Bound(Box<Sale>),
    /// It makes no bonus channels after all.
    WithoutBonus(Vec<ClientId>),
    /// The chain transaction is complete.
    Chain(schnorr::Signature),
    /// Everything is.
    Sold(Box<SoldRecord>),
    /// A client that gets a bonus channel of it has it.
    BonusAcked(ClientId),
    /// Every client of the stock has it.
    Delivered,
    /// The payment of a complete sale went back.
    SentBack(String),
    /// Its channel will never stand.
    Ended(String),
    /// A client sent an invalid signature.
    Blame(Box<BlameRow>),
    /// What counts against clients.
    Faults(Vec<(ClientId, Fault)>),
}

impl Driver {
    /// Writes, however long it takes.
    pub(super) async fn write(&mut self, entry: &Entry) -> Result<(), Stop> {
        loop {
            match self.try_write(entry).await {
                Ok(()) => return Ok(()),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    async fn try_write(&self, entry: &Entry) -> store::Result<()> {
        let (sale, height) = (self.id(), self.ctx.height());
        let half_life = self.ctx.config.policy.score_half_life_blocks;
        let written = self.ctx.store.write(async |tx| match entry {
            Entry::Note(text) => rows::note(tx, sale, text).await,
            Entry::Bound(terms) => rows::bind(tx, terms).await,
            Entry::WithoutBonus(clients) => {
                for client in clients {
                    bonus::decline(tx, sale, *client).await?;
                }
                Ok(())
            }
            Entry::Chain(signature) => rows::chain(tx, sale, signature).await,
            Entry::Sold(record) => rows::sold(tx, record).await,
            Entry::BonusAcked(client) => bonus::acked(tx, sale, *client).await,
            Entry::Delivered => rows::delivered(tx, sale).await,
            Entry::SentBack(text) => rows::sent_back(tx, sale, text).await,
            Entry::Ended(text) => {
                orders::over_by_sale(tx, sale).await?;
                rows::end(tx, sale, text, unix_time()).await
            }
            Entry::Blame(row) => attempts::blame(tx, row, height).await,
            Entry::Faults(faults) => clients::blame(tx, faults, height, half_life).await,
        });
        written.await
    }

    /// An attempt begins: its number, stored before anything of it is used.
    pub(super) async fn begin_attempt(&mut self) -> Result<Attempt, Stop> {
        let sale = self.id();
        loop {
            let store = &self.ctx.store;
            let begun = store.write(async |tx| rows::begin_attempt(tx, sale).await);
            match begun.await {
                Ok(attempt) => return Ok(attempt),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// The order as it is stored now.
    pub(super) async fn read(&mut self) -> Result<SaleRow, Stop> {
        let sale = self.id();
        loop {
            let read = self.ctx.store.read(async |tx| rows::get(tx, sale).await);
            match read.await {
                Ok(row) => return row.ok_or(Stop::Over),
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// A write failed (the disk is full, say): nothing goes on without it, so it is tried again until it succeeds.
    pub(super) async fn pause(&mut self, error: StoreError) -> Result<(), Stop> {
        self.ctx.events.emit(Event::StoreFailed {
            problem: error.to_string(),
        });
        tokio::select! {
            _ = self.shutdown.wait_for(|stop| *stop) => Err(Stop::Shutdown),
            () = tokio::time::sleep(STORE_PAUSE) => Ok(()),
        }
    }
}
