//! An on-chain wallet: one BIP-86 key-path descriptor pair, fed by a [`Follower`](crate::Follower), stored by its owner.
//!
//! BDK keeps the coins and the reorgs; building and signing are our own, for three uses only: funding a factory, paying somebody, and the
//! child that pays for a zero-fee parent. The wallet never broadcasts of itself, except in [`OnchainWallet::send`] and [`OnchainWallet::publish`].

mod coins;
mod error;
mod fee_child;
mod funding;
mod keys;
mod payment;
mod publish;
mod select;
mod size;
mod store;

use std::collections::HashSet;
use std::sync::Arc;

use bdk_wallet::KeychainKind;
use bitcoin::bip32::Xpriv;
use bitcoin::key::Keypair;
use bitcoin::{Address, Network, OutPoint, ScriptBuf, Transaction, TxOut};
use tokio::sync::Mutex;

use crate::{BlockId, ChainEvent};
use keys::Keys;

pub use bdk_wallet::ChangeSet;
pub use bdk_wallet::chain::Merge;
pub use coins::{WalletBalance, WalletCoin};
pub use error::WalletError;
pub use fee_child::{FeeChild, FeeChildRequest, OwnPayout, child_vsize};
pub use funding::{FundingDraft, MIN_FUNDING_CHANGE};
pub use payment::{PaymentDraft, SendAmount};
pub use publish::Published;
pub use store::{ChangeSetStore, MemoryStore, StoreError};

/// What this module returns.
pub type Result<T, E = WalletError> = std::result::Result<T, E>;

/// Blocks without anything of ours that may stay unsaved: after a crash they are only fetched again.
const UNSAVED_BLOCKS: u32 = 100;

/// Checkpoints without a gap that a follower is given, and then one in as many.
const RECENT_CHECKPOINTS: usize = 2016;

/// An on-chain wallet, to be shared between tasks as it is.
#[derive(Debug)]
pub struct OnchainWallet {
    network: Network,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    keys: Keys,
    /// Watch-only: the secrets are in [`Keys`] alone.
    wallet: bdk_wallet::Wallet,
    /// BDK can only replace blocks, not remove them: those above this height are disconnected.
    tip_height: u32,
    /// Coins that selection leaves alone.
    reserved: HashSet<OutPoint>,
    store: Arc<dyn ChangeSetStore>,
    unsaved_blocks: u32,
    /// BDK takes the later seen of two conflicting transactions, and what was seen after it was forgotten: this never repeats, after a restart
    /// either.
    last_seen: u64,
}

impl OnchainWallet {
    /// Loads the wallet of this seed, or creates it. `master` is a BIP-32 master key; the account is `m/86'/coin'/0'`.
    ///
    /// `birthday` counts only at creation: nothing is looked for before it. `None` looks from the genesis block on.
    ///
    /// # Errors
    /// [`WalletError::OtherSeed`], [`WalletError::OtherNetwork`] and [`WalletError::Corrupt`] if the stored wallet is not this one, or the store's.
    pub async fn open(
        network: Network,
        master: &Xpriv,
        store: Arc<dyn ChangeSetStore>,
        birthday: Option<BlockId>,
    ) -> Result<Self> {
        let keys = Keys::derive(network, master)?;
        let stored = store.load().await.map_err(WalletError::Store)?;
        let wallet = match stored {
            Some(stored) => keys.load_wallet(network, stored)?,
            None => keys.create_wallet(network, birthday)?,
        };
        let mut state = State {
            tip_height: wallet.latest_checkpoint().height(),
            last_seen: newest(&wallet),
            keys,
            wallet,
            reserved: HashSet::new(),
            store,
            unsaved_blocks: 0,
        };
        state.save().await?;
        Ok(Self {
            network,
            state: Mutex::new(state),
        })
    }

    /// The network it was made for.
    #[must_use]
    pub fn network(&self) -> Network {
        self.network
    }

    /// A fresh address, stored as used before it is returned.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn new_address(&self) -> Result<Address> {
        let mut state = self.state.lock().await;
        let address = state
            .wallet
            .reveal_next_address(KeychainKind::External)
            .address;
        state.save().await?;
        Ok(address)
    }

    /// Where a [`Follower`](crate::Follower) of this wallet starts: recent blocks without a gap, older ones sparsely; newest last.
    pub async fn checkpoints(&self) -> Vec<BlockId> {
        self.state.lock().await.checkpoints()
    }

    /// Takes in one step of the chain. What concerns us is stored at once, the rest now and then: see [`Self::flush`].
    ///
    /// # Errors
    /// [`WalletError::Gap`] if the block does not connect to what the wallet knows; and those of the store.
    pub async fn apply(&self, event: &ChainEvent) -> Result<()> {
        self.state.lock().await.apply(event).await
    }

    /// Stores what is not stored yet. To be called when the follower has reached the tip.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn flush(&self) -> Result<()> {
        self.state.lock().await.save().await
    }

    /// Keeps these coins out of every selection. The set lives in memory: its owner stores it and reserves again after a restart.
    pub async fn reserve(&self, outpoints: impl IntoIterator<Item = OutPoint> + Send) {
        self.state.lock().await.reserved.extend(outpoints);
    }

    /// Gives reserved coins back to selection.
    pub async fn release(&self, outpoints: impl IntoIterator<Item = OutPoint> + Send) {
        let mut state = self.state.lock().await;
        for outpoint in outpoints {
            state.reserved.remove(&outpoint);
        }
    }

    /// What is reserved now.
    pub async fn reserved(&self) -> HashSet<OutPoint> {
        self.state.lock().await.reserved.clone()
    }

    /// Signs every input; `prevouts` are the outputs spent, in the order of the inputs, and all must be the wallet's.
    ///
    /// # Errors
    /// [`WalletError::ForeignInput`] names the first input that is not ours, and nothing is signed then.
    pub async fn sign(&self, transaction: &mut Transaction, prevouts: &[TxOut]) -> Result<()> {
        self.state.lock().await.sign(transaction, prevouts)
    }

    /// Signs the inputs that are the wallet's and leaves the others alone, for a transaction that somebody else completes; `prevouts` are the
    /// outputs spent, in the order of the inputs.
    ///
    /// # Errors
    /// [`WalletError::Keys`] if there is not one output per input; nothing is signed then.
    pub async fn sign_own(&self, transaction: &mut Transaction, prevouts: &[TxOut]) -> Result<()> {
        self.state.lock().await.sign_own(transaction, prevouts)
    }

    /// Where change goes: an address of ours that nobody has paid to, stored as used before it is returned.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn change_script(&self) -> Result<ScriptBuf> {
        self.state.lock().await.change_script().await
    }
}

/// When the wallet last wrote down that it had seen or forgotten a transaction: ahead of the clock, after many within a second.
fn newest(wallet: &bdk_wallet::Wallet) -> u64 {
    let graph = wallet.tx_graph();
    let known = graph.full_txs();
    let times = known.map(|node| node.last_seen.max(graph.get_last_evicted(node.txid)));
    times.max().flatten().unwrap_or(0)
}

impl State {
    async fn apply(&mut self, event: &ChainEvent) -> Result<()> {
        match event {
            ChainEvent::Connected { height, block } => {
                self.wallet
                    .apply_block(block, *height)
                    .map_err(|_| WalletError::Gap { height: *height })?;
                self.tip_height = *height;
            }
            ChainEvent::Disconnected(gone) => {
                self.tip_height = self.tip_height.min(gone.height.saturating_sub(1))
            }
        }
        self.unsaved_blocks = self.unsaved_blocks.saturating_add(1);
        let concerns_us = self
            .wallet
            .staged()
            .is_some_and(|staged| !staged.tx_graph.is_empty() || !staged.indexer.is_empty());
        if concerns_us || self.unsaved_blocks >= UNSAVED_BLOCKS {
            self.save().await
        } else {
            Ok(())
        }
    }

    /// Stores what is staged; it stays staged if that fails.
    async fn save(&mut self) -> Result<()> {
        if let Some(staged) = self.wallet.staged() {
            self.store
                .append(staged)
                .await
                .map_err(WalletError::Store)?;
            self.wallet.take_staged();
        }
        self.unsaved_blocks = 0;
        Ok(())
    }

    fn checkpoints(&self) -> Vec<BlockId> {
        let valid = self
            .wallet
            .checkpoints()
            .filter(|checkpoint| checkpoint.height() <= self.tip_height);
        let mut kept: Vec<BlockId> = valid
            .enumerate()
            .filter(|(depth, checkpoint)| {
                *depth < RECENT_CHECKPOINTS
                    || depth % RECENT_CHECKPOINTS == 0
                    || checkpoint.height() == 0
            })
            .map(|(_, checkpoint)| BlockId {
                height: checkpoint.height(),
                hash: checkpoint.hash(),
            })
            .collect();
        kept.reverse();
        kept
    }

    fn keypair_of(&self, prevout: &TxOut, outpoint: OutPoint) -> Result<Keypair> {
        let path = self.wallet.derivation_of_spk(prevout.script_pubkey.clone());
        self.keys
            .keypair(path.ok_or(WalletError::ForeignInput { outpoint })?)
    }

    fn sign(&self, transaction: &mut Transaction, prevouts: &[TxOut]) -> Result<()> {
        let spends = transaction.input.iter().zip(prevouts);
        let signers = spends
            .map(|(input, prevout)| self.keypair_of(prevout, input.previous_output).map(Some));
        let signers = signers.collect::<Result<Vec<_>>>()?;
        keys::sign_key_path(transaction, prevouts, &signers)
    }

    fn sign_own(&self, transaction: &mut Transaction, prevouts: &[TxOut]) -> Result<()> {
        let signers = prevouts.iter().map(|prevout| {
            let path = self.wallet.derivation_of_spk(prevout.script_pubkey.clone());
            path.map(|path| self.keys.keypair(path)).transpose()
        });
        let signers = signers.collect::<Result<Vec<_>>>()?;
        keys::sign_key_path(transaction, prevouts, &signers)
    }

    /// Where change goes: the first address of ours that nobody pays to. Stored before it is used. What paid to it and was forgotten does not
    /// count: every try of a fee child that is replaced or refused would leave a gap, and who restores the seed looks only so far beyond the last
    /// address that is paid to (BIP 44, gap limit).
    async fn change_script(&mut self) -> Result<ScriptBuf> {
        let keychain = KeychainKind::Internal;
        let outputs = self.wallet.list_output();
        let paid: HashSet<u32> = outputs
            .filter(|output| output.keychain == keychain)
            .map(|output| output.derivation_index)
            .collect();
        let free = (0..).find(|index| !paid.contains(index)).unwrap_or(0);
        // What is revealed already stays so.
        let _ = self.wallet.reveal_addresses_to(keychain, free).count();
        self.save().await?;
        Ok(self.wallet.peek_address(keychain, free).script_pubkey())
    }
}

#[cfg(test)]
mod test_chain;
#[cfg(test)]
mod tests;
