//! A node, a view of it, and a wallet that follows it.

use std::sync::Arc;

use anyhow::Result;
use bitcoin::bip32::Xpriv;
use bitcoin::hashes::Hash;
use bitcoin::key::TapTweak;
use bitcoin::secp256k1::{Message, Secp256k1};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{
    Address, Amount, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut,
    Witness, absolute, taproot, transaction,
};
use chain::wallet::{FeeChildRequest, MemoryStore, OnchainWallet};
use chain::{BitcoindConfig, BitcoindRpc, ChainSource, Follower, RpcAuth};
use scenarios::bitcoind::Bitcoind;
pub use scenarios::coins::{key, payout_script};

pub fn config(node: &Bitcoind) -> BitcoindConfig {
    BitcoindConfig::new(node.rpc_url(), RpcAuth::CookieFile(node.cookie_file()))
}

pub fn source(node: &Bitcoind) -> Result<Arc<dyn ChainSource>> {
    Ok(Arc::new(BitcoindRpc::new(config(node))?))
}

pub fn sat(n: u64) -> Amount {
    Amount::from_sat(n)
}

pub fn rate(n: u32) -> FeeRate {
    FeeRate::from_sat_per_vb_u32(n)
}

pub fn foreign_script(n: u8) -> ScriptBuf {
    ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::hash(&[n]))
}

/// A node, and a wallet with one confirmed coin of each amount.
pub struct Setup {
    pub node: Arc<Bitcoind>,
    pub source: Arc<dyn ChainSource>,
    pub wallet: Arc<OnchainWallet>,
    pub follower: Follower,
}

impl Setup {
    pub async fn with_coins(coins: &[u64]) -> Result<Self> {
        let node = Bitcoind::start()?;
        let source = source(&node)?;
        let master = Xpriv::new_master(Network::Regtest, &[42; 32])?;
        let birthday = source.tip().await?;
        let wallet = OnchainWallet::open(
            Network::Regtest,
            &master,
            Arc::new(MemoryStore::default()),
            Some(birthday),
        )
        .await?;
        let follower = Follower::new(source.clone(), wallet.checkpoints().await)?;
        let mut setup = Self {
            node: Arc::new(node),
            source,
            wallet: Arc::new(wallet),
            follower,
        };
        for coin in coins {
            let script = setup.wallet.new_address().await?.script_pubkey();
            setup.node.send_to(&script, sat(*coin))?;
        }
        setup.mine(1).await?;
        Ok(setup)
    }

    pub async fn sync(&mut self) -> Result<()> {
        while let Some(event) = self.follower.next().await? {
            self.wallet.apply(&event).await?;
        }
        Ok(self.wallet.flush().await?)
    }

    pub async fn mine(&mut self, blocks: u32) -> Result<()> {
        self.node.mine(blocks)?;
        self.sync().await
    }

    pub fn node_address(
        &self,
        script: &bitcoin::Script,
    ) -> Result<Address<bitcoin::address::NetworkUnchecked>> {
        Ok(Address::from_script(script, Network::Regtest)?.into_unchecked())
    }

    /// A zero-fee parent of version 3: one payout to `key(n)`, and an empty P2A.
    pub fn zero_fee_parent(&self, n: u8, amount: u64) -> Result<Transaction> {
        let funded = self.node.fund(&payout_script(n), sat(amount))?;
        let outputs = [
            TxOut {
                value: sat(amount),
                script_pubkey: payout_script(n),
            },
            anchor(),
        ];
        spend(
            n,
            funded,
            sat(amount),
            &outputs,
            Sequence::ENABLE_RBF_NO_LOCKTIME,
        )
    }
}

pub fn anchor() -> TxOut {
    TxOut {
        value: Amount::ZERO,
        script_pubkey: ScriptBuf::new_p2a(),
    }
}

/// Spends a coin of `key(n)` in a transaction of version 3.
pub fn spend(
    n: u8,
    coin: OutPoint,
    amount: Amount,
    outputs: &[TxOut],
    sequence: Sequence,
) -> Result<Transaction> {
    let secp = Secp256k1::new();
    let mut transaction = Transaction {
        version: transaction::Version(3),
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            sequence,
            ..TxIn::default()
        }],
        output: outputs.to_vec(),
    };
    let prevouts = [TxOut {
        value: amount,
        script_pubkey: payout_script(n),
    }];
    let mut cache = SighashCache::new(&transaction);
    let sighash = cache.taproot_key_spend_signature_hash(
        0,
        &Prevouts::All(&prevouts),
        TapSighashType::Default,
    )?;
    let signer = key(n).tap_tweak(&secp, None).to_keypair();
    let signature = secp.sign_schnorr(&Message::from_digest(sighash.to_byte_array()), &signer);
    transaction.input[0].witness = Witness::p2tr_key_spend(&taproot::Signature {
        signature,
        sighash_type: TapSighashType::Default,
    });
    Ok(transaction)
}

/// Asks for a child of a [`Setup::zero_fee_parent`].
pub fn child_of<'a>(
    parent: &'a Transaction,
    feerate: FeeRate,
    avoid: &'a std::collections::HashSet<OutPoint>,
) -> FeeChildRequest<'a> {
    FeeChildRequest {
        parent,
        anchor: 1,
        parent_fee: Amount::ZERO,
        feerate,
        payouts: &[],
        change: None,
        avoid,
        outbid: None,
        budget: sat(1_000_000),
    }
}
