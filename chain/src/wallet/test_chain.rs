//! A chain of our own making, to feed wallets in unit tests.

use std::sync::Arc;

use bitcoin::bip32::Xpriv;
use bitcoin::block::{Header, Version};
use bitcoin::constants::genesis_block;
use bitcoin::hashes::Hash;
use bitcoin::{
    Amount, Block, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxMerkleNode, TxOut, absolute,
    transaction,
};

use super::{MemoryStore, OnchainWallet};
use crate::{BlockId, ChainEvent};

pub(super) fn master(n: u8) -> Xpriv {
    Xpriv::new_master(Network::Regtest, &[n; 32]).unwrap()
}

/// A transaction from nowhere: the wallet does not look at where money comes from.
pub(super) fn paying(outputs: &[TxOut], from: u8) -> Transaction {
    let previous_output = OutPoint {
        txid: bitcoin::Txid::from_byte_array([from; 32]),
        vout: 0,
    };
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output,
            ..TxIn::default()
        }],
        output: outputs.to_vec(),
    }
}

pub(super) struct TestChain(Vec<Arc<Block>>);

impl TestChain {
    pub(super) fn new() -> Self {
        Self(vec![Arc::new(genesis_block(Network::Regtest))])
    }

    pub(super) fn mine(&mut self, txdata: Vec<Transaction>) -> ChainEvent {
        let merkle_root = txdata.first().map_or(TxMerkleNode::all_zeros(), |tx| {
            TxMerkleNode::from_raw_hash(tx.compute_txid().to_raw_hash())
        });
        let tip = self.0.last().unwrap();
        let header = Header {
            version: Version::TWO,
            prev_blockhash: tip.block_hash(),
            merkle_root,
            time: tip.header.time + 1,
            bits: tip.header.bits,
            nonce: 0,
        };
        let block = Arc::new(Block { header, txdata });
        let height = u32::try_from(self.0.len()).unwrap();
        self.0.push(block.clone());
        ChainEvent::Connected { height, block }
    }

    pub(super) fn disconnect(&mut self) -> ChainEvent {
        let gone = self.0.pop().unwrap();
        ChainEvent::Disconnected(BlockId {
            height: u32::try_from(self.0.len()).unwrap(),
            hash: gone.block_hash(),
        })
    }
}

/// A fresh wallet with one confirmed coin of each of these amounts.
pub(super) async fn wallet_with(coins: &[u64]) -> (OnchainWallet, TestChain, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::default());
    let wallet = OnchainWallet::open(Network::Regtest, &master(1), store.clone(), None)
        .await
        .unwrap();
    let mut chain = TestChain::new();
    let mut outputs = Vec::new();
    for coin in coins {
        let script_pubkey = wallet.new_address().await.unwrap().script_pubkey();
        outputs.push(TxOut {
            value: Amount::from_sat(*coin),
            script_pubkey,
        });
    }
    let event = chain.mine(if outputs.is_empty() {
        vec![]
    } else {
        vec![paying(&outputs, 1)]
    });
    wallet.apply(&event).await.unwrap();
    (wallet, chain, store)
}

pub(super) fn foreign_script() -> ScriptBuf {
    ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::all_zeros())
}
