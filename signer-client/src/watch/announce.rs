//! Tells of confirmations once each, also over restarts and reorgs.

use std::collections::{HashMap, HashSet};

use bitcoin::{OutPoint, Txid};
use factory_tree::ids::FactoryId;
use factory_tree::tx::TxKind;

use crate::client::Inner;
use crate::error::Result;
use crate::event::Event;
use crate::exit::kind_name;

/// What was told already.
#[derive(Debug)]
pub(super) struct Announced {
    txs: HashSet<Txid>,
    payouts: HashSet<OutPoint>,
}

impl Announced {
    /// What the store knew before this process began was told by an earlier one.
    pub(super) async fn load(client: &Inner) -> Result<Self> {
        let txs = client.store.seen_txs().await?;
        let payouts = client.store.payouts().await?;
        Ok(Self {
            txs: txs.iter().map(|seen| seen.tx.compute_txid()).collect(),
            payouts: payouts.iter().map(|payout| payout.outpoint).collect(),
        })
    }

    /// Tells what is new.
    pub(super) async fn announce(&mut self, client: &Inner) -> Result<()> {
        let factories = client.store.factories().await?;
        if factories.is_empty() {
            return Ok(());
        }
        let mut kinds: HashMap<Txid, (FactoryId, TxKind, String)> = HashMap::new();
        for row in &factories {
            let Some(kit) = client.kits.sound(row.factory).await? else {
                continue;
            };
            for tx in &kit.txs {
                kinds.insert(tx.txid(), (row.factory, tx.kind, kind_name(tx)));
            }
        }
        let seen = client.store.seen_txs().await?;
        let mut now = HashSet::with_capacity(seen.len());
        for seen in &seen {
            let txid = seen.tx.compute_txid();
            now.insert(txid);
            let Some((factory, tx_kind, kind)) = kinds.get(&txid) else {
                continue;
            };
            if self.txs.contains(&txid) {
                continue;
            }
            client.events.emit(Event::ExitConfirmed {
                factory: *factory,
                txid,
                kind: kind.clone(),
                height: seen.height.0,
            });
            if *tx_kind == TxKind::Leaf {
                let factory = *factory;
                client.events.emit(Event::LeafConfirmed { factory, txid });
            }
        }
        // What a reorg removed is told again when it is back.
        self.txs = now;
        let by_nonce: HashMap<[u8; 16], FactoryId> = factories
            .iter()
            .map(|row| (row.join_nonce, row.factory))
            .collect();
        let payouts = client.store.payouts().await?;
        for payout in &payouts {
            if !self.payouts.contains(&payout.outpoint) {
                client.events.emit(Event::PayoutConfirmed {
                    factory: by_nonce.get(&payout.join_nonce).copied(),
                    outpoint: payout.outpoint,
                    sat: payout.amount.to_sat(),
                });
            }
        }
        self.payouts = payouts.iter().map(|payout| payout.outpoint).collect();
        Ok(())
    }
}
