//! Who owns every satoshi, told from the chain alone: each block is read, each transaction traced.
//!
//! The harness's own coins are the world outside. What they pay to a party is where that party
//! starts; fees are what the blocks' rewards say; what a party has is what the node's set of
//! unspent outputs says. Nothing here asks a service.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{Amount, Block, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use serde::Serialize;
use serde_json::json;

use crate::bitcoind::Bitcoind;
use crate::export::Export;

/// Blocks between two halvings on regtest.
const HALVING: u32 = 150;

/// Whose an output is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The harness.
    Outside,
    /// A party by name.
    Party(String),
    /// Still in the factory: several must sign.
    Factory,
    /// In a Lightning channel, or out of one and not yet in anybody's wallet.
    Channel,
    /// An anchor: whoever spends it first.
    Anyone,
}

/// A transaction of the chain.
#[derive(Clone, Debug, Serialize)]
pub struct OnChain {
    /// Its id.
    pub txid: Txid,
    /// `funding`, a kind of the export, `fee_child`, `sweep`, `payment`, `gift`.
    pub kind: String,
    /// Height of its block.
    pub height: u32,
    /// Its size.
    pub vbytes: u64,
    /// What it pays itself.
    pub fee_sat: u64,
    /// Who made it, where a party's coins tell.
    pub by: Option<String>,
}

/// What is known before the chain is read.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Name of the party that runs factories.
    pub coordinator: String,
    /// Scripts that the harness pays parties at.
    pub gifts: HashMap<ScriptBuf, String>,
    /// Addresses of the parties' on-chain wallets.
    pub wallets: HashMap<ScriptBuf, String>,
    /// Name of each client by the id that exports have.
    pub clients: HashMap<String, String>,
}

/// The chain, told as who owns what.
#[derive(Debug)]
pub struct Ledger {
    known: Known,
    factories: Vec<Export>,
    roles: HashMap<OutPoint, Owner>,
    kinds: HashMap<Txid, String>,
    unspent: BTreeMap<OutPoint, (TxOut, Owner)>,
    start: BTreeMap<String, Amount>,
    onchain: Vec<OnChain>,
    spenders: HashMap<OutPoint, usize>,
    fees: Amount,
    rewards: Amount,
}

impl Ledger {
    /// Reads the chain from its first block.
    pub fn read(node: &Bitcoind, known: Known, factories: Vec<Export>) -> Result<Self> {
        let mut ledger = Self {
            known,
            factories,
            roles: HashMap::new(),
            kinds: HashMap::new(),
            unspent: BTreeMap::new(),
            start: BTreeMap::new(),
            onchain: Vec::new(),
            spenders: HashMap::new(),
            fees: Amount::ZERO,
            rewards: Amount::ZERO,
        };
        ledger.learn()?;
        for height in 1..=node.height()? {
            let hash = node.block_hash(height)?;
            let raw = node.rpc("getblock", json!([hash, 0]))?;
            let block: Block = deserialize_hex(raw.as_str().context("a block is text")?)?;
            ledger.block(height, &block)?;
        }
        Ok(ledger)
    }

    /// What the exports say of outputs.
    fn learn(&mut self) -> Result<()> {
        for factory in &self.factories {
            self.kinds
                .insert(factory.funding.txid, "funding".to_owned());
            self.roles
                .insert(factory.funding_outpoint(), Owner::Factory);
            for tx in &factory.transactions {
                self.kinds.insert(tx.txid, tx.kind.clone());
                for output in &tx.outputs {
                    let owner = match output.role.as_str() {
                        "anchor" => Owner::Anyone,
                        "payout" => self.known.payee(factory, &output.script_pubkey)?,
                        "branch" | "channel" | "stock" => Owner::Factory,
                        other => bail!("unknown role {other} in {}", tx.txid),
                    };
                    self.roles
                        .insert(OutPoint::new(tx.txid, output.vout), owner);
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, height: u32, block: &Block) -> Result<()> {
        let (coinbase, rest) = block
            .txdata
            .split_first()
            .context("a block has a coinbase")?;
        for tx in rest {
            self.transaction(height, tx)?;
        }
        let reward = sum(coinbase.output.iter().map(|output| output.value))?;
        let subsidy = Amount::from_sat(5_000_000_000 >> (height / HALVING).min(63));
        let fees = reward
            .checked_sub(subsidy)
            .context("a reward under the subsidy")?;
        self.rewards = add(self.rewards, fees)?;
        self.credit(coinbase, |_, _| Ok(Owner::Outside))
    }

    fn transaction(&mut self, height: u32, tx: &Transaction) -> Result<()> {
        let mut spent = Vec::new();
        for input in &tx.input {
            let outpoint = input.previous_output;
            let coin = self.unspent.remove(&outpoint);
            spent.push(coin.with_context(|| format!("{outpoint} is spent but was never there"))?);
        }
        let txid = tx.compute_txid();
        let paid = sum(tx.output.iter().map(|output| output.value))?;
        let fee = sum(spent.iter().map(|(output, _)| output.value))?
            .checked_sub(paid)
            .with_context(|| format!("{txid} makes money"))?;
        self.fees = add(self.fees, fee)?;
        let maker = self.maker(tx, txid, &spent)?;
        let kind = self.kind(txid, &spent, &maker);
        let by = match &maker {
            Owner::Party(name) => Some(name.clone()),
            _ => None,
        };
        let place = self.onchain.len();
        let inputs = tx.input.iter().map(|input| (input.previous_output, place));
        self.spenders.extend(inputs);
        self.onchain.push(OnChain {
            txid,
            kind,
            height,
            vbytes: tx.vsize() as u64,
            fee_sat: fee.to_sat(),
            by,
        });
        let outpoints = (0u32..).map(|vout| OutPoint::new(txid, vout));
        let owners: HashMap<OutPoint, Owner> = outpoints
            .zip(&tx.output)
            .map(|(outpoint, output)| (outpoint, self.payee(outpoint, output, &maker)))
            .collect();
        self.credit(tx, |outpoint, _| {
            let owner = owners.get(&outpoint).cloned();
            owner.with_context(|| format!("{outpoint} is nobody's"))
        })?;
        if maker == Owner::Outside {
            self.given(tx)?;
        }
        Ok(())
    }

    /// Whose an output is. What goes to no known script is in a channel, or comes out of one.
    fn payee(&self, outpoint: OutPoint, output: &TxOut, maker: &Owner) -> Owner {
        let script = &output.script_pubkey;
        let role = self.roles.get(&outpoint).cloned();
        let gift = || self.known.party(script).map(Owner::Party);
        let anchor = || (*script == ScriptBuf::new_p2a()).then_some(Owner::Anyone);
        role.or_else(gift).or_else(anchor).unwrap_or(match maker {
            Owner::Outside => Owner::Outside,
            _ => Owner::Channel,
        })
    }

    /// Whose coins a transaction spends. What only the factory and its channels paid for is whose wallet it pays to: a sweep;
    /// or nobody's yet: a commitment.
    fn maker(&self, tx: &Transaction, txid: Txid, spent: &[(TxOut, Owner)]) -> Result<Owner> {
        let mut owners: Vec<&Owner> = spent.iter().map(|(_, owner)| owner).collect();
        owners.retain(|owner| !matches!(owner, Owner::Anyone | Owner::Factory | Owner::Channel));
        owners.sort();
        owners.dedup();
        match owners.as_slice() {
            [one] => Ok((*one).clone()),
            [] if self.kinds.contains_key(&txid) => Ok(Owner::Factory),
            [] => {
                let scripts = tx.output.iter().map(|output| &output.script_pubkey);
                let mut paid: Vec<String> = scripts.filter_map(|s| self.known.party(s)).collect();
                paid.sort();
                paid.dedup();
                match <[String; 1]>::try_from(paid) {
                    Ok([party]) => Ok(Owner::Party(party)),
                    Err(_) => Ok(Owner::Channel),
                }
            }
            other => bail!("{txid} spends the coins of {other:?}"),
        }
    }

    fn kind(&self, txid: Txid, spent: &[(TxOut, Owner)], maker: &Owner) -> String {
        let spends = |owner: Owner| spent.iter().any(|(_, spent)| *spent == owner);
        let own = match maker {
            _ if spends(Owner::Anyone) => "fee_child",
            Owner::Outside => "gift",
            Owner::Channel => "commitment",
            _ if spends(Owner::Factory) || spends(Owner::Channel) => "sweep",
            _ => "payment",
        };
        self.kinds.get(&txid).map_or(own, String::as_str).to_owned()
    }

    fn credit(
        &mut self,
        tx: &Transaction,
        owner: impl Fn(OutPoint, &TxOut) -> Result<Owner>,
    ) -> Result<()> {
        let txid = tx.compute_txid();
        for (vout, output) in (0u32..).zip(&tx.output) {
            let outpoint = OutPoint::new(txid, vout);
            if !output.script_pubkey.is_op_return() {
                let owner = owner(outpoint, output)?;
                self.unspent.insert(outpoint, (output.clone(), owner));
            }
        }
        Ok(())
    }

    fn given(&mut self, tx: &Transaction) -> Result<()> {
        for output in &tx.output {
            if let Some(name) = self.known.gifts.get(&output.script_pubkey) {
                let start = self.start.entry(name.clone()).or_default();
                *start = add(*start, output.value)?;
            }
        }
        Ok(())
    }

    // ---- what it comes to --------------------------------------------------------------------------------------

    /// What the harness gave a party.
    pub fn start_of(&self, party: &str) -> Amount {
        self.start.get(party).copied().unwrap_or_default()
    }

    /// Confirmed coins of a party.
    pub fn has(&self, party: &str) -> Amount {
        self.sum_of(&Owner::Party(party.to_owned()))
    }

    /// Sum of what an owner has.
    pub fn sum_of(&self, owner: &Owner) -> Amount {
        let owned = self.unspent.values().filter(|(_, whose)| whose == owner);
        owned.map(|(output, _)| output.value).sum()
    }

    /// Every transaction but the blocks' rewards, in chain order.
    pub fn onchain(&self) -> &[OnChain] {
        &self.onchain
    }

    /// What spent an output, if anything did.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<&OnChain> {
        self.onchain.get(*self.spenders.get(outpoint)?)
    }

    /// Fees of all transactions that the harness did not make.
    pub fn fees(&self) -> Amount {
        let paid = self.onchain.iter().filter(|tx| tx.kind != "gift");
        Amount::from_sat(paid.map(|tx| tx.fee_sat).sum())
    }

    /// Compares what was traced with what the node has unspent and with what miners earned; gives
    /// the satoshis that are missing (or too many).
    pub fn difference(&self, node: &Bitcoind) -> Result<i64> {
        let given: Amount = self.start.values().copied().sum();
        let mut held = Amount::ZERO;
        for (outpoint, (output, owner)) in &self.unspent {
            if *owner == Owner::Outside {
                continue;
            }
            let coin = node.rpc("gettxout", json!([outpoint.txid, outpoint.vout, false]))?;
            let value = coin["value"].as_f64().map(Amount::from_btc);
            let value = value.with_context(|| format!("{outpoint} is not unspent"))??;
            ensure!(
                value == output.value,
                "{outpoint} is {value}, not {}",
                output.value
            );
            held = add(held, value)?;
        }
        // From the rewards, not from our own sums; the harness paid for its own.
        let gifts = self
            .onchain
            .iter()
            .filter(|tx| tx.kind == "gift")
            .map(|tx| tx.fee_sat);
        let fees = self.rewards.checked_sub(Amount::from_sat(gifts.sum()));
        let out = add(held, fees.context("fees of gifts over all fees")?)?;
        Ok(given
            .to_signed()?
            .checked_sub(out.to_signed()?)
            .context("overflow")?
            .to_sat())
    }
}

impl Known {
    /// Whose a script is.
    fn party(&self, script: &ScriptBuf) -> Option<String> {
        let gift = self.gifts.get(script);
        gift.or_else(|| self.wallets.get(script)).cloned()
    }

    fn payee(&self, factory: &Export, script: &ScriptBuf) -> Result<Owner> {
        let mut clients = factory.clients();
        let payee = clients.find(|client| client.payout_script_pubkey.as_ref() == Some(script));
        let payee = payee.with_context(|| format!("nobody's payout script {script}"))?;
        let name = self.clients.get(&payee.id);
        let name = name.with_context(|| format!("unknown client {}", payee.id))?;
        Ok(Owner::Party(name.clone()))
    }
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Result<Amount> {
    amounts.into_iter().try_fold(Amount::ZERO, add)
}

fn add(a: Amount, b: Amount) -> Result<Amount> {
    a.checked_add(b).context("more than all money")
}
