//! What to look for in a block.

use std::collections::{HashMap, HashSet};

use bitcoin::{Block, OutPoint, ScriptBuf, Txid};

use crate::client::Inner;
use crate::error::Result;
use crate::store::BlockFacts;

/// The outpoints, transactions and scripts of all factories of this wallet.
#[derive(Debug, Default)]
pub(super) struct WatchIndex {
    outpoints: HashSet<OutPoint>,
    txids: HashSet<Txid>,
    scripts: HashMap<ScriptBuf, [u8; 16]>,
    version: Option<u64>,
}

impl WatchIndex {
    pub(super) async fn load(client: &Inner) -> Result<Self> {
        let mut index = Self::default();
        index.refresh(client).await?;
        Ok(index)
    }

    /// Takes in kits that were added since.
    pub(super) async fn refresh(&mut self, client: &Inner) -> Result<()> {
        let version = client.kits.version();
        if self.version == Some(version) {
            return Ok(());
        }
        for row in client.store.factories().await? {
            self.outpoints.extend([row.funding, row.common_pin]);
            self.txids.insert(row.funding.txid);
            if let Some(kit) = client.kits.sound(row.factory).await? {
                self.outpoints.extend(kit.watched());
                self.txids.extend(kit.txs.iter().map(|tx| tx.txid()));
            }
        }
        for join in client.store.joins().await? {
            self.scripts.insert(join.payout_script, join.join_nonce);
        }
        for payout in client.store.payouts().await? {
            self.outpoints.insert(payout.outpoint);
        }
        self.version = Some(version);
        Ok(())
    }

    /// What `block` says of our factories. Payouts it brings are watched from then on.
    pub(super) fn facts(&mut self, block: &Block) -> BlockFacts {
        let mut facts = BlockFacts::default();
        if self.outpoints.is_empty() && self.scripts.is_empty() {
            return facts;
        }
        for tx in &block.txdata {
            let spent = tx.input.iter().map(|input| input.previous_output);
            let spent: Vec<OutPoint> = spent.filter(|o| self.outpoints.contains(o)).collect();
            let paid: Vec<(u32, [u8; 16])> = (0u32..)
                .zip(&tx.output)
                .filter_map(|(vout, output)| {
                    let nonce = self.scripts.get(&output.script_pubkey)?;
                    Some((vout, *nonce))
                })
                .collect();
            let txid = tx.compute_txid();
            if spent.is_empty() && paid.is_empty() && !self.txids.contains(&txid) {
                continue;
            }
            facts.txs.push(tx.clone());
            facts.spends.extend(spent.into_iter().map(|o| (o, txid)));
            for (vout, nonce) in paid {
                let outpoint = OutPoint::new(txid, vout);
                if let Some(output) = tx.output.get(vout as usize) {
                    facts.payouts.push((outpoint, output.value, nonce));
                    self.outpoints.insert(outpoint);
                }
            }
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash;
    use bitcoin::{Amount, Transaction, TxIn, TxOut, absolute, transaction};

    fn spend(from: OutPoint, to: &ScriptBuf, sat: u64) -> Transaction {
        Transaction {
            version: transaction::Version::TWO,
            lock_time: absolute::LockTime::ZERO,
            input: vec![TxIn {
                previous_output: from,
                ..TxIn::default()
            }],
            output: vec![TxOut {
                value: Amount::from_sat(sat),
                script_pubkey: to.clone(),
            }],
        }
    }

    fn block(txdata: Vec<Transaction>) -> Block {
        let mut block = bitcoin::constants::genesis_block(bitcoin::Network::Regtest);
        block.txdata = txdata;
        block
    }

    #[test]
    fn a_payout_spent_in_its_own_block_is_seen_twice() {
        let watched = OutPoint::new(Txid::from_byte_array([1; 32]), 0);
        let (own, other) = (
            ScriptBuf::from_bytes(vec![1]),
            ScriptBuf::from_bytes(vec![2]),
        );
        let mut index = WatchIndex {
            outpoints: HashSet::from([watched]),
            scripts: HashMap::from([(own.clone(), [7; 16])]),
            ..WatchIndex::default()
        };
        let timeout = spend(watched, &own, 500);
        let payout = OutPoint::new(timeout.compute_txid(), 0);
        let child = spend(payout, &other, 400);
        let foreign = spend(OutPoint::new(child.compute_txid(), 0), &other, 300);
        let facts = index.facts(&block(vec![timeout.clone(), child.clone(), foreign]));
        assert_eq!(facts.txs, [timeout.clone(), child.clone()]);
        assert_eq!(
            facts.spends,
            [
                (watched, timeout.compute_txid()),
                (payout, child.compute_txid())
            ]
        );
        assert_eq!(facts.payouts, [(payout, Amount::from_sat(500), [7; 16])]);
    }
}
