//! What makes an exit kit good (protocol.md step 6, facts.md 3.4 items 15 and 16).

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::hashes::Hash;
use bitcoin::key::TapTweak;
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1, VerifyOnly, XOnlyPublicKey, schnorr};
use bitcoin::sighash::{EcdsaSighashType, Prevouts, SighashCache, TapSighashType};
use bitcoin::{Amount, OutPoint, TxOut, Txid};

use super::{ExitKit, KIT_VERSION, KitTx};
use crate::exit::{self, RehearsalError};
use crate::factory::SpentKind;
use crate::ids::FactoryId;
use crate::output::{OutputRole, RoledOutput, channel_witness_script};
use crate::params::{ParamsError, Schedule};
use crate::plan;
use crate::sale::StockError;
use crate::shape::{ClientRange, Shape, ShapeNode, len};
use crate::tree::tx_kind;
use crate::tx::{RelayError, Timelock, TxKind, check_relay, checked_sum};

/// What is wrong with an exit kit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    /// Not the JSON of a kit.
    #[error("not an exit kit: {0}")]
    Format(String),
    /// Written by another version of this software.
    #[error("exit kit of version {0}, this software reads version {KIT_VERSION}")]
    Version(u32),
    /// Too few or too many of something.
    #[error("{found} {what}, there should be {expected}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// No such place in the factory.
    #[error("position {0} is not in the factory")]
    Position(u32),
    /// The parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// A field contradicts the others.
    #[error("{0} contradicts the rest of the kit")]
    Field(&'static str),
    /// A transaction spends something the kit does not know, or not as it is.
    #[error(
        "{txid} spends {outpoint}, which is not an output before it with that amount and script"
    )]
    Unconnected {
        /// The transaction.
        txid: Txid,
        /// What it spends.
        outpoint: OutPoint,
    },
    /// A transaction is not built as its kind is.
    #[error("{txid}: {what} is not that of a {kind:?} transaction")]
    Malformed {
        /// The transaction.
        txid: Txid,
        /// Its kind.
        kind: TxKind,
        /// What is wrong.
        what: &'static str,
    },
    /// It would not relay.
    #[error("{txid}: {error}")]
    Relay {
        /// The transaction.
        txid: Txid,
        /// The rule broken.
        error: RelayError,
    },
    /// A signature does not verify against the key in the output.
    #[error("{txid}: the signature does not verify against the key of {outpoint}")]
    BadSignature {
        /// The transaction.
        txid: Txid,
        /// What it spends.
        outpoint: OutPoint,
    },
    /// An output on the client's way has no transaction that gets the money out of it.
    #[error("nothing gets the money out of {outpoint} ({kind:?}) at expiry")]
    NoTimeout {
        /// The output.
        outpoint: OutPoint,
        /// What it is.
        kind: SpentKind,
    },
    /// The rehearsal of the exit.
    #[error("exit rehearsal: {0}")]
    Rehearsal(#[from] RehearsalError),
    /// The sales.
    #[error("sales: {0}")]
    Sales(#[from] StockError),
    /// A timeout does not pay the client.
    #[error("{txid} pays nothing to the client")]
    Unpaid {
        /// The timeout.
        txid: Txid,
    },
}

impl ExitKit {
    /// Judges the kit by itself: its fields agree, every transaction spends the one before as the
    /// parameters say and relays, every signature verifies against the key in the output it spends
    /// (BIP-340; ECDSA for the channel), the path reaches the client's channel, every output on the
    /// way has what gets the money out, the transactions of every sale are those its terms make, and a rehearsal on a chain of its own ends paid.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self) -> Result<(), KitError> {
        let (shape, schedule) = self.check_fields()?;
        let known = self.known_outputs();
        let mut before = BTreeSet::from([self.funding()]);
        let verifier = Verifier {
            kit: self,
            schedule: &schedule,
            secp: Secp256k1::verification_only(),
        };
        for tx in &self.txs {
            let outpoint = tx.spends.outpoint;
            let unconnected = KitError::Unconnected {
                txid: tx.txid(),
                outpoint,
            };
            let spent = known.get(&outpoint).filter(|_| before.contains(&outpoint));
            let spent = spent.ok_or_else(|| unconnected.clone())?;
            if spent.value != tx.spends.amount || spent.script_pubkey != tx.spends.script {
                return Err(unconnected);
            }
            verifier.check(tx)?;
            let txid = tx.txid();
            let outputs = (0u32..).zip(&tx.tx.output);
            before.extend(outputs.map(|(vout, _)| OutPoint::new(txid, vout)));
        }
        self.check_path(&shape)?;
        self.check_form(&shape)?;
        self.check_timeouts()?;
        self.check_sales()?;
        Ok(exit::rehearse(self)?)
    }

    fn check_fields(&self) -> Result<(Shape, Schedule), KitError> {
        if self.version != KIT_VERSION {
            return Err(KitError::Version(self.version));
        }
        let clients = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        let shape = Shape::new(&self.params, clients)?;
        let schedule = self.params.schedule(self.birth, shape.levels())?;
        let own = self.keys.get(self.position as usize);
        let own = own.ok_or(KitError::Position(self.position))?;
        let agree = [
            ("expiry", self.expiry == schedule.expiry),
            ("exit_delay", self.exit_delay == schedule.exit_delay),
            (
                "factory_id",
                self.factory_id == FactoryId::of(self.funding()),
            ),
            ("factory_key", self.factory_key == *own),
        ];
        match agree.into_iter().find(|(_, agrees)| !agrees) {
            Some((field, _)) => Err(KitError::Field(field)),
            None => Ok((shape, schedule)),
        }
    }

    /// The path is one chain from the funding output to the client's channel.
    fn check_path(&self, shape: &Shape) -> Result<(), KitError> {
        let expected = shape.path(self.position).len();
        let found = self.path().count();
        if found != expected {
            return Err(KitError::Count {
                what: "path transactions",
                found,
                expected,
            });
        }
        let mut next = self.funding();
        let mut leaf = None;
        for tx in self.path() {
            if tx.spends.outpoint != next {
                return Err(KitError::Unconnected {
                    txid: tx.txid(),
                    outpoint: tx.spends.outpoint,
                });
            }
            let leads_on = [OutputRole::Branch, OutputRole::Channel];
            let mut own = self
                .own_outputs(tx)
                .filter(|(_, o, _)| leads_on.contains(&o.role));
            next = own.next().ok_or(malformed(tx, "outputs"))?.0;
            leaf = Some(tx);
        }
        let leaf = leaf.ok_or(KitError::Field("txs"))?;
        let script = channel_witness_script(&self.channel_key, &self.lsp_channel_key).to_p2wsh();
        let channel = TxOut {
            value: self.capacity,
            script_pubkey: script,
        };
        let reached = self
            .own_outputs(leaf)
            .any(|(_, output, txout)| output.role == OutputRole::Channel && *txout == channel);
        if leaf.kind == TxKind::Leaf && reached {
            Ok(())
        } else {
            Err(malformed(leaf, "own channel"))
        }
    }

    /// Every transaction of the path is its node of the shape, and has all of that node's outputs:
    /// what is not there, a stock say, needs no timeout and would not be missed.
    fn check_form(&self, shape: &Shape) -> Result<(), KitError> {
        for (index, tx) in shape.path(self.position).into_iter().zip(self.path()) {
            let node = shape.nodes().get(index).ok_or(malformed(tx, "node"))?;
            if tx.kind != tx_kind(node.kind) || tx.spends.kind != plan::spent_kind(shape, node) {
                return Err(malformed(tx, "place in the tree"));
            }
            if tx.spends.clients != node.clients || !tx.spends.with_lsp {
                return Err(malformed(tx, "owner"));
            }
            let due = plan::output_roles(shape, node, |sub| self.stock(node, tx, sub).is_some());
            let found = tx.outputs.iter().map(|o| (o.role, o.clients.clone()));
            if !found.eq(due) {
                return Err(malformed(tx, "outputs"));
            }
            for (output, txout) in tx.outputs.iter().zip(&tx.tx.output) {
                let stock = output.role == OutputRole::Stock;
                if stock && self.stock(node, tx, &output.clients) != Some(txout.value) {
                    return Err(malformed(tx, "stock"));
                }
            }
        }
        Ok(())
    }

    /// The stock that `leaf` has for the sub-factory `sub`, by the capacities of its channels, which
    /// come first and in leaf order.
    fn stock(&self, node: &ShapeNode, leaf: &KitTx, sub: &ClientRange) -> Option<Amount> {
        let channels = node.clients.clone().zip(&leaf.tx.output);
        let capacities = channels.filter(|(client, _)| sub.contains(client));
        let capacities = checked_sum(capacities.map(|(_, channel)| channel.value))?;
        plan::stock_amount(&self.params, capacities, len(sub))
    }

    /// Every output on the way has exactly one timeout where the policy has timeouts, the channel
    /// has one under both, and each ends in a payout to the client.
    fn check_timeouts(&self) -> Result<(), KitError> {
        let mut timeouts: BTreeMap<OutPoint, &KitTx> = BTreeMap::new();
        let unsold = self.txs_before_sales();
        for tx in unsold.iter().filter(|tx| tx.kind == TxKind::Timeout) {
            if timeouts.insert(tx.spends.outpoint, tx).is_some() {
                return Err(malformed(tx, "second spend of its output"));
            }
        }
        let every = plan::has_timeouts(&self.params);
        let mut needed = Vec::new();
        for tx in unsold {
            if tx.is_path() && every {
                needed.push((tx.spends.outpoint, tx.spends.kind, &tx.spends.clients));
            }
            for (outpoint, output, _) in self.own_outputs(tx) {
                let kind = match (output.role, tx.kind) {
                    (OutputRole::Channel, _) => SpentKind::Channel,
                    (OutputRole::Stock, _) if every => SpentKind::Stock,
                    (OutputRole::Branch, TxKind::Timeout) => SpentKind::FirstStage,
                    _ => continue,
                };
                needed.push((outpoint, kind, &output.clients));
            }
        }
        for (outpoint, kind, clients) in needed {
            let timeout = timeouts.remove(&outpoint);
            let with_lsp = kind != SpentKind::FirstStage;
            let timeout = timeout.filter(|timeout| {
                let spends = &timeout.spends;
                spends.kind == kind && spends.clients == *clients && spends.with_lsp == with_lsp
            });
            self.check_payout(timeout.ok_or(KitError::NoTimeout { outpoint, kind })?)?;
        }
        match timeouts.into_values().next() {
            Some(stray) => Err(malformed(stray, "spent output")),
            None => Ok(()),
        }
    }

    fn check_payout(&self, timeout: &KitTx) -> Result<(), KitError> {
        let mut own = self.own_outputs(timeout);
        let (_, output, txout) = own.next().ok_or(KitError::Unpaid {
            txid: timeout.txid(),
        })?;
        let alone = self.position..self.position.saturating_add(1);
        let ours = output.clients == alone && txout.script_pubkey == self.payout_script;
        match output.role {
            OutputRole::Payout if ours => Ok(()),
            // Its second stage is judged by itself.
            OutputRole::Branch => Ok(()),
            _ => Err(KitError::Unpaid {
                txid: timeout.txid(),
            }),
        }
    }
}

struct Verifier<'a> {
    kit: &'a ExitKit,
    schedule: &'a Schedule,
    secp: Secp256k1<VerifyOnly>,
}

impl Verifier<'_> {
    fn check(&self, tx: &KitTx) -> Result<(), KitError> {
        let [input] = tx.tx.input.as_slice() else {
            return Err(malformed(tx, "number of inputs"));
        };
        if tx.tx.version.0 != 3 {
            return Err(malformed(tx, "version"));
        }
        if input.previous_output != tx.spends.outpoint {
            return Err(malformed(tx, "input"));
        }
        if tx.tx.compute_txid() != tx.txid {
            return Err(malformed(tx, "txid"));
        }
        let locks = (tx.timelock.sequence(), tx.timelock.lock_time());
        if locks != (input.sequence, tx.tx.lock_time) || !self.locks_fit(tx) {
            return Err(malformed(tx, "timelock"));
        }
        if !tx.spends.clients.contains(&self.kit.position) {
            return Err(malformed(tx, "owner"));
        }
        self.check_outputs(tx)?;
        let signed = match tx.spends.kind {
            SpentKind::Channel => self.channel_signed(tx),
            _ => {
                self.check_key(tx)?;
                self.taproot_signed(tx)
            }
        };
        signed.ok_or(KitError::BadSignature {
            txid: tx.txid(),
            outpoint: tx.spends.outpoint,
        })
    }

    fn locks_fit(&self, tx: &KitTx) -> bool {
        let params = &self.kit.params;
        match tx.kind {
            TxKind::Static | TxKind::Kickoff | TxKind::StockChain => tx.timelock == Timelock::NONE,
            TxKind::State | TxKind::Leaf => {
                let slot = tx.timelock.delay.filter(|slot| *slot <= params.max_slot());
                let on_a_step = slot.and_then(|slot| slot.0.checked_rem(params.step)) == Some(0);
                on_a_step && tx.timelock.height.is_none()
            }
            TxKind::Timeout => {
                tx.timelock == plan::timeout_timelock(params, self.schedule, tx.spends.kind)
            }
            TxKind::Poison => {
                let delay = |sale| Some(params.poison_delay(sale)) == tx.timelock.delay;
                tx.timelock.height.is_none() && (1..=params.chain_depth_max).any(delay)
            }
        }
    }

    fn check_outputs(&self, tx: &KitTx) -> Result<(), KitError> {
        if tx.outputs.len() != tx.tx.output.len() {
            return Err(malformed(tx, "number of outputs"));
        }
        let outputs = tx.outputs.iter().zip(&tx.tx.output);
        let roled: Vec<RoledOutput> = outputs
            .map(|(output, txout)| RoledOutput {
                role: output.role,
                clients: output.clients.clone(),
                txout: txout.clone(),
            })
            .collect();
        check_relay(tx.spends.amount, &roled, tx.vbytes()).map_err(|error| KitError::Relay {
            txid: tx.txid(),
            error,
        })?;
        Ok(())
    }

    /// The output's key is the BIP-341 tweak of the aggregate by exactly the script the policy
    /// puts there.
    fn check_key(&self, tx: &KitTx) -> Result<(), KitError> {
        let spends = &tx.spends;
        let internal = spends.internal_key.ok_or(malformed(tx, "internal key"))?;
        let leaf = plan::script_leaf(&self.kit.params, self.schedule, spends.kind);
        let root = leaf.merkle_root(self.kit.lsp_key.x_only_public_key().0);
        let (tweaked, _) = internal.tap_tweak(&self.secp, root);
        let output = crate::output::taproot(tweaked.to_x_only_public_key());
        if spends.merkle_root == root && spends.script == output {
            Ok(())
        } else {
            Err(malformed(tx, "key of the spent output"))
        }
    }

    fn taproot_signed(&self, tx: &KitTx) -> Option<()> {
        let [input] = tx.tx.input.as_slice() else {
            return None;
        };
        let [signature] = <[&[u8]; 1]>::try_from(input.witness.iter().collect::<Vec<_>>()).ok()?;
        let signature = schnorr::Signature::from_slice(signature).ok()?;
        let script = tx.spends.script.as_bytes();
        let key = XOnlyPublicKey::from_slice(script.get(2..)?).ok()?;
        let spent = [prevout(tx)];
        let sighash = SighashCache::new(&tx.tx)
            .taproot_key_spend_signature_hash(0, &Prevouts::All(&spent), TapSighashType::Default)
            .ok()?;
        let message = Message::from_digest(sighash.to_byte_array());
        self.secp.verify_schnorr(&signature, &message, &key).ok()
    }

    fn channel_signed(&self, tx: &KitTx) -> Option<()> {
        let [input] = tx.tx.input.as_slice() else {
            return None;
        };
        let mut channels = self.kit.channels().into_iter();
        let channel = channels.find(|channel| channel.outpoint == tx.spends.outpoint)?;
        let (own, lsp) = (channel.channel_key, channel.lsp_channel_key);
        let script = channel_witness_script(&own, &lsp);
        if script.to_p2wsh() != tx.spends.script {
            return None;
        }
        let witness: Vec<&[u8]> = input.witness.iter().collect();
        let [dummy, lower, higher, shown] = <[&[u8]; 4]>::try_from(witness).ok()?;
        if !dummy.is_empty() || shown != script.as_bytes() {
            return None;
        }
        let sighash = SighashCache::new(&tx.tx)
            .p2wsh_signature_hash(0, &script, tx.spends.amount, EcdsaSighashType::All)
            .ok()?;
        let message = Message::from_digest(sighash.to_byte_array());
        let mut keys = [own, lsp];
        keys.sort_by_key(PublicKey::serialize);
        for (key, signature) in keys.iter().zip([lower, higher]) {
            let signature = bitcoin::ecdsa::Signature::from_slice(signature).ok()?;
            if signature.sighash_type != EcdsaSighashType::All {
                return None;
            }
            self.secp
                .verify_ecdsa(&message, &signature.signature, key)
                .ok()?;
        }
        Some(())
    }
}

fn prevout(tx: &KitTx) -> TxOut {
    TxOut {
        value: tx.spends.amount,
        script_pubkey: tx.spends.script.clone(),
    }
}

fn malformed(tx: &KitTx, what: &'static str) -> KitError {
    KitError::Malformed {
        txid: tx.txid(),
        kind: tx.kind,
        what,
    }
}
