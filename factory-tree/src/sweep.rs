//! Spends by one party alone: the LSP's, of a stock after its delay and of unpublished outputs at
//! `T` (`LspReclaim`), by the script leaf, and of whatever all others have handed over their keys
//! of; and anybody's of its own key-path output, such as a timeout's payout.

use bitcoin::hashes::Hash;
use bitcoin::key::{Keypair, TapTweak};
use bitcoin::secp256k1::{Message, Secp256k1, Signing, Verification, XOnlyPublicKey, ecdsa};
use bitcoin::sighash::{EcdsaSighashType, Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::{ControlBlock, LeafVersion, TapLeafHash, TaprootMerkleBranch};
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Witness};

use crate::output::{MIN_OUTPUT, ScriptLeaf, channel_witness_script};
use crate::tx::Timelock;

/// The most weight of a transaction that nodes relay.
const MAX_WEIGHT: u64 = 400_000;

/// How an input is unlocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlock {
    /// By the key path: the output is BIP-86's of the key itself.
    KeyPath,
    /// By the LSP's script leaf.
    Leaf {
        /// The leaf.
        leaf: ScriptLeaf,
        /// The aggregate that is the output's internal key.
        internal_key: XOnlyPublicKey,
    },
    /// By the key path: the key is the output's own, tweaked already
    /// ([`OutputKey::keypair`](crate::keys::OutputKey::keypair)).
    Output,
    /// A channel output (BOLT 3's 2-of-2), both of whose keys are here.
    Channel {
        /// The other one.
        other: Keypair,
    },
}

/// One output to sweep.
#[derive(Clone, Debug)]
pub struct SweepInput<'a> {
    /// Where it is.
    pub outpoint: OutPoint,
    /// Amount and script.
    pub txout: TxOut,
    /// Who may spend it.
    pub keypair: &'a Keypair,
    /// How.
    pub unlock: Unlock,
}

/// Why a sweep cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SweepError {
    /// No input.
    #[error("nothing to sweep")]
    Nothing,
    /// An input that this key and leaf do not unlock.
    #[error("{outpoint} is not an output of that key and leaf")]
    NotOurs {
        /// The output.
        outpoint: OutPoint,
    },
    /// The inputs are worth less than it costs to spend them.
    #[error(
        "inputs of {} sat do not pay a fee of {} sat and leave {} sat",
        .inputs.to_sat(), .fee.to_sat(), MIN_OUTPUT.to_sat()
    )]
    TooLittle {
        /// Sum of the inputs.
        inputs: Amount,
        /// The fee at that feerate.
        fee: Amount,
    },
    /// More inputs than fit a transaction that nodes relay.
    #[error(
        "a transaction of weight {weight} is over the relay limit of {MAX_WEIGHT}: sweep in parts"
    )]
    TooLarge {
        /// Its weight.
        weight: u64,
    },
}

/// Sweeps `inputs` into one output of `destination` at `feerate` sat/vB: version 2, signed, final
/// as soon as every input's lock allows.
///
/// # Errors
/// [`SweepError`].
pub fn sweep<C: Signing + Verification>(
    secp: &Secp256k1<C>,
    inputs: &[SweepInput<'_>],
    destination: ScriptBuf,
    feerate: u64,
) -> Result<Transaction, SweepError> {
    if inputs.is_empty() {
        return Err(SweepError::Nothing);
    }
    let mut spends = Vec::with_capacity(inputs.len());
    for input in inputs {
        let spend = Spend::new(secp, input);
        spends.push(spend.ok_or(SweepError::NotOurs {
            outpoint: input.outpoint,
        })?);
    }
    let mut tx = unsigned(inputs, destination);
    // A signature has the same size whatever it signs.
    for (txin, spend) in tx.input.iter_mut().zip(&spends) {
        txin.witness = spend.placeholder();
    }
    let weight = tx.weight().to_wu();
    if weight > MAX_WEIGHT {
        return Err(SweepError::TooLarge { weight });
    }
    let fee = Amount::from_sat((tx.vsize() as u64).saturating_mul(feerate));
    let sum = crate::tx::checked_sum(inputs.iter().map(|input| input.txout.value));
    let sum = sum.unwrap_or(Amount::MAX_MONEY);
    let value = sum.checked_sub(fee).filter(|value| *value >= MIN_OUTPUT);
    let too_little = SweepError::TooLittle { inputs: sum, fee };
    let value = value.ok_or(too_little)?;
    for output in &mut tx.output {
        output.value = value;
    }
    sign(secp, &mut tx, inputs, &spends);
    Ok(tx)
}

fn unsigned(inputs: &[SweepInput<'_>], destination: ScriptBuf) -> Transaction {
    let locks = inputs.iter().map(|input| lock(input.unlock));
    let height = locks.clone().filter_map(|lock| lock.height).max();
    let lock_time = Timelock {
        height,
        delay: None,
    };
    let input = inputs.iter().zip(locks).map(|(input, lock)| TxIn {
        previous_output: input.outpoint,
        script_sig: ScriptBuf::new(),
        sequence: lock.sequence(),
        witness: Witness::new(),
    });
    Transaction {
        version: Version::TWO,
        lock_time: lock_time.lock_time(),
        input: input.collect(),
        output: vec![TxOut {
            value: Amount::ZERO,
            script_pubkey: destination,
        }],
    }
}

/// The locks an input's script asks for.
const fn lock(unlock: Unlock) -> Timelock {
    match unlock {
        Unlock::KeyPath | Unlock::Output | Unlock::Channel { .. } => Timelock::NONE,
        Unlock::Leaf { leaf, .. } => match leaf {
            ScriptLeaf::None => Timelock::NONE,
            ScriptLeaf::LspAfter(height) => Timelock {
                height: Some(height),
                delay: None,
            },
            ScriptLeaf::LspDelayed(delay) => Timelock {
                height: None,
                delay: Some(delay),
            },
        },
    }
}

/// How one input is signed.
enum Spend {
    Key(Keypair),
    Script {
        keypair: Keypair,
        script: ScriptBuf,
        control: ControlBlock,
    },
    /// Keys in the order of the script.
    Channel {
        keys: [Keypair; 2],
        script: ScriptBuf,
    },
}

impl Spend {
    /// `None` when the output is not what key and leaf make.
    fn new<C: Signing + Verification>(secp: &Secp256k1<C>, input: &SweepInput<'_>) -> Option<Self> {
        let own = input.keypair.x_only_public_key().0;
        let (internal, script) = match input.unlock {
            Unlock::KeyPath => (own, None),
            Unlock::Leaf { leaf, internal_key } => (internal_key, Some(leaf.script(own)?)),
            Unlock::Output => {
                let ours = crate::output::taproot(own);
                return (input.txout.script_pubkey == ours).then_some(Self::Key(*input.keypair));
            }
            Unlock::Channel { other } => return Self::channel(input, other),
        };
        let root = script
            .as_ref()
            .map(|script| TapLeafHash::from_script(script, LeafVersion::TapScript).into());
        let (output, parity) = internal.tap_tweak(secp, root);
        if input.txout.script_pubkey != ScriptBuf::new_p2tr_tweaked(output) {
            return None;
        }
        Some(match script {
            None => Self::Key(input.keypair.tap_tweak(secp, None).to_keypair()),
            Some(script) => Self::Script {
                keypair: *input.keypair,
                script,
                control: ControlBlock {
                    leaf_version: LeafVersion::TapScript,
                    output_key_parity: parity,
                    internal_key: internal,
                    merkle_branch: TaprootMerkleBranch::default(),
                },
            },
        })
    }

    fn channel(input: &SweepInput<'_>, other: Keypair) -> Option<Self> {
        let mut keys = [*input.keypair, other];
        keys.sort_by_key(|key| key.public_key().serialize());
        let [first, second] = &keys;
        let script = channel_witness_script(&first.public_key(), &second.public_key());
        (input.txout.script_pubkey == script.to_p2wsh()).then_some(Self::Channel { keys, script })
    }

    /// As large as the witness will be at the most.
    fn placeholder(&self) -> Witness {
        match self {
            Self::Key(_) | Self::Script { .. } => self.schnorr_witness(&[0; 64]),
            Self::Channel { script, .. } => {
                let signature = [0; LARGEST_ECDSA];
                Witness::from_slice(&[&[], signature.as_slice(), &signature, script.as_bytes()])
            }
        }
    }

    fn schnorr_witness(&self, signature: &[u8; 64]) -> Witness {
        match self {
            Self::Script {
                script, control, ..
            } => {
                let elements = [signature.to_vec(), script.to_bytes(), control.serialize()];
                Witness::from_slice(&elements)
            }
            Self::Key(_) | Self::Channel { .. } => Witness::from_slice(&[signature]),
        }
    }
}

/// The largest DER signature with low S and its sighash byte.
const LARGEST_ECDSA: usize = 72;

fn sign<C: Signing>(
    secp: &Secp256k1<C>,
    tx: &mut Transaction,
    inputs: &[SweepInput<'_>],
    spends: &[Spend],
) {
    let prevouts: Vec<&TxOut> = inputs.iter().map(|input| &input.txout).collect();
    let prevouts = Prevouts::All(&prevouts);
    let unsigned = tx.clone();
    let mut cache = SighashCache::new(&unsigned);
    for (index, (txin, spend)) in tx.input.iter_mut().zip(spends).enumerate() {
        // `None` only for an input that is not there.
        let witness = match spend {
            Spend::Channel { keys, script } => inputs
                .get(index)
                .and_then(|input| channel_witness(secp, &mut cache, index, input, keys, script)),
            spend => taproot_witness(secp, &mut cache, index, &prevouts, spend),
        };
        txin.witness = witness.unwrap_or_default();
    }
}

fn taproot_witness<C: Signing>(
    secp: &Secp256k1<C>,
    cache: &mut SighashCache<&Transaction>,
    index: usize,
    prevouts: &Prevouts<'_, &TxOut>,
    spend: &Spend,
) -> Option<Witness> {
    let ty = TapSighashType::Default;
    let (keypair, sighash) = match spend {
        Spend::Key(keypair) => (
            keypair,
            cache.taproot_key_spend_signature_hash(index, prevouts, ty),
        ),
        Spend::Script {
            keypair, script, ..
        } => {
            let leaf = TapLeafHash::from_script(script, LeafVersion::TapScript);
            let hash = cache.taproot_script_spend_signature_hash(index, prevouts, leaf, ty);
            (keypair, hash)
        }
        Spend::Channel { .. } => return None,
    };
    let message = Message::from_digest(sighash.ok()?.to_byte_array());
    let signature = secp.sign_schnorr_no_aux_rand(&message, keypair);
    Some(spend.schnorr_witness(&signature.serialize()))
}

/// BOLT 3's witness of a funding output: nothing for CHECKMULTISIG's extra element, then both signatures.
fn channel_witness<C: Signing>(
    secp: &Secp256k1<C>,
    cache: &mut SighashCache<&Transaction>,
    index: usize,
    input: &SweepInput<'_>,
    keys: &[Keypair; 2],
    script: &ScriptBuf,
) -> Option<Witness> {
    let ty = EcdsaSighashType::All;
    let sighash = cache.p2wsh_signature_hash(index, script, input.txout.value, ty);
    let message = Message::from_digest(sighash.ok()?.to_byte_array());
    let signed = keys.each_ref().map(|key| {
        let signature: ecdsa::Signature = secp.sign_ecdsa_low_r(&message, &key.secret_key());
        bitcoin::ecdsa::Signature::sighash_all(signature).serialize()
    });
    let [first, second] = &signed;
    let elements: [&[u8]; 4] = [&[], first.as_ref(), second.as_ref(), script.as_bytes()];
    Some(Witness::from_slice(&elements))
}

#[cfg(test)]
mod tests;
