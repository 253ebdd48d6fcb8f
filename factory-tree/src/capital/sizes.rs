//! Virtual bytes of everything that goes to the chain in a ladder's life, measured on transactions
//! that this crate builds. Signatures are left blank: they have the same size.
//!
//! What only Lightning builds is put together here by BOLT 3: a zero-fee commitment (version 3,
//! two outputs and a P2A), and the sweep of our delayed side of it. A test compares the commitment
//! with LDK's own constant.

use bitcoin::hashes::Hash;
use bitcoin::key::Keypair;
use bitcoin::opcodes::all::{OP_CHECKSIG, OP_CSV, OP_DROP, OP_ELSE, OP_ENDIF, OP_IF, OP_PUSHNUM_1};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Weight, Witness,
    absolute,
};

use crate::output::{self, ScriptLeaf, channel_witness_script};
use crate::params::{FactoryParams, ParamsError};
use crate::plan::{self, stock_amount};
use crate::shape::{ClientRange, NodeKind, Shape, len};
use crate::sweep::{self, SweepInput, Unlock};
use crate::tx::{self, CHILD_VBYTES, Timelock, tree_tx_vbytes};
use crate::units::{Blocks, Height};

/// A DER signature with its sighash byte, at its usual largest (low R and S).
const ECDSA_SIGNATURE: [u8; 72] = [0; 72];
/// Inputs of one sweep: more than relay, in parts.
const MOST_INPUTS: u64 = 500;

/// Transactions and their virtual bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How many.
    pub txs: u64,
    /// Their virtual bytes.
    pub vbytes: u64,
}

impl Load {
    /// One transaction.
    #[must_use]
    pub const fn one(vbytes: u64) -> Self {
        Self { txs: 1, vbytes }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            txs: self.txs.saturating_add(other.txs),
            vbytes: self.vbytes.saturating_add(other.vbytes),
        }
    }

    /// The same so many times.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self {
            txs: self.txs.saturating_mul(count),
            vbytes: self.vbytes.saturating_mul(count),
        }
    }
}

/// Sizes that do not depend on the number of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    base: Weight,
    funding_output: Weight,
    key_input: Weight,
    stock_input: Weight,
    reclaim_input: Weight,
    channel_input: Weight,
    to_local_input: Weight,
    commitment: u64,
}

impl Sizes {
    /// Measures them for factories with these parameters.
    #[must_use]
    pub fn measure(params: &FactoryParams, to_self_delay: u16) -> Option<Self> {
        let key = Signer::new()?;
        let one = key.sweep(Unlock::KeyPath, 1)?;
        let key_input = key.sweep(Unlock::KeyPath, 2)?.checked_sub(one)?;
        let base = one.checked_sub(key_input)?;
        let by_leaf = |leaf| {
            let unlock = Unlock::Leaf {
                leaf,
                internal_key: key.pair.x_only_public_key().0,
            };
            key.sweep(unlock, 1)?.checked_sub(base)
        };
        let script = channel_witness_script(&key.public(), &key.public());
        let witness = Witness::from_slice(&[
            &[][..],
            &ECDSA_SIGNATURE,
            &ECDSA_SIGNATURE,
            script.as_bytes(),
        ]);
        let with = |witness: Witness, outputs| weigh(witness, outputs);
        let payout = || vec![key.payout()];
        let delayed = to_local(&key.public(), to_self_delay);
        let spend = Witness::from_slice(&[&ECDSA_SIGNATURE[..], &[], delayed.as_bytes()]);
        Some(Self {
            base,
            funding_output: with(Witness::new(), vec![key.payout(), key.payout()])
                .checked_sub(with(Witness::new(), payout()))?,
            key_input,
            stock_input: by_leaf(ScriptLeaf::LspDelayed(Blocks(params.q)))?,
            // A height of a main chain's size: three bytes.
            reclaim_input: by_leaf(ScriptLeaf::LspAfter(Height(1_000_000)))?,
            channel_input: with(witness.clone(), payout()).checked_sub(base)?,
            to_local_input: with(spend, payout()).checked_sub(base)?,
            commitment: with(witness, commitment_outputs(&delayed)).to_vbytes_ceil(),
        })
    }

    /// A factory's funding: key-path coins in, the factory and a change out.
    #[must_use]
    pub fn funding(&self, inputs: u64) -> Load {
        let weight = self.base.checked_add(self.funding_output);
        self.inputs(weight, &[(self.key_input, inputs)])
    }

    /// A reap: the factory's output by the key path to the wallet.
    #[must_use]
    pub fn reap(&self) -> Load {
        self.sweep(&[(self.key_input, 1)])
    }

    /// What nobody published, by the script leaf at `T`.
    #[must_use]
    pub fn reclaim(&self) -> Load {
        self.sweep(&[(self.reclaim_input, 1)])
    }

    /// A tree transaction with so many outputs beside its anchor, with its fee child.
    #[must_use]
    pub const fn package(outputs: u64) -> Load {
        Load {
            txs: 2,
            vbytes: tree_tx_vbytes(outputs).saturating_add(CHILD_VBYTES),
        }
    }

    /// A commitment with its fee child.
    #[must_use]
    pub const fn commitment(&self) -> Load {
        Load {
            txs: 2,
            vbytes: self.commitment.saturating_add(CHILD_VBYTES),
        }
    }

    /// Our sides of published channels.
    #[must_use]
    pub fn to_local(&self, inputs: u64) -> Load {
        self.sweep(&[(self.to_local_input, inputs)])
    }

    fn sweep(&self, inputs: &[(Weight, u64)]) -> Load {
        self.inputs(Some(self.base), inputs)
    }

    fn inputs(&self, base: Option<Weight>, inputs: &[(Weight, u64)]) -> Load {
        let count = inputs
            .iter()
            .fold(0u64, |all, (_, n)| all.saturating_add(*n));
        if count == 0 {
            return Load::default();
        }
        let txs = count.div_ceil(MOST_INPUTS);
        let base = base.unwrap_or(Weight::MAX).to_wu().saturating_mul(txs);
        let weight = inputs.iter().fold(base, |sum, (one, n)| {
            sum.saturating_add(one.to_wu().saturating_mul(*n))
        });
        Load {
            txs,
            vbytes: Weight::from_wu(weight).to_vbytes_ceil(),
        }
    }
}

/// A factory of so many clients of one capacity.
#[derive(Clone, Debug)]
pub struct FactoryModel {
    shape: Shape,
    capacity: Amount,
    /// Outputs of each node beside its anchor.
    outputs: Vec<u64>,
    stocks: Vec<(ClientRange, Amount)>,
    funding: Amount,
}

/// What publishing some clients' paths takes, by when it happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// The paths, each transaction with its child.
    pub paths: Load,
    /// The clients' commitments with their children.
    pub commitments: Load,
    /// Branches and channels of the others, recovered by their keys.
    pub recovery: Load,
    /// Unsold stock of published leaves.
    pub stock_sweeps: Load,
    /// Our side of the published channels.
    pub to_local: Load,
    /// What the recovery brings back.
    pub recovered: Amount,
    /// Unsold stock of published leaves that comes back `q` after them.
    pub stock: Amount,
    /// The published clients' channels.
    pub channels: Amount,
}

impl Publication {
    /// All of its transactions.
    #[must_use]
    pub const fn load(&self) -> Load {
        self.paths
            .plus(self.commitments)
            .plus(self.recovery)
            .plus(self.stock_sweeps)
            .plus(self.to_local)
    }
}

impl FactoryModel {
    /// The factory of `clients`.
    ///
    /// # Errors
    /// When the parameters allow no such factory.
    pub fn new(
        params: &FactoryParams,
        clients: u32,
        capacity: Amount,
    ) -> Result<Self, ParamsError> {
        let shape = Shape::new(params, clients)?;
        let of = |clients: u32| {
            capacity
                .checked_mul(clients.into())
                .unwrap_or(Amount::MAX_MONEY)
        };
        let subs = shape.nodes().iter().flat_map(|node| &node.subfactories);
        let stocks: Vec<(ClientRange, Amount)> = subs
            .filter_map(|sub| {
                let amount = stock_amount(params, of(len(sub)), len(sub))?;
                (amount > Amount::ZERO).then(|| (sub.clone(), amount))
            })
            .collect();
        let has_stock = |sub: &ClientRange| stocks.iter().any(|(own, _)| own == sub);
        let roles = |node| plan::output_roles(&shape, node, has_stock).len();
        let outputs = shape.nodes().iter().map(roles);
        let outputs = outputs.map(|all| all.saturating_sub(1) as u64).collect();
        let stock = tx::checked_sum(stocks.iter().map(|(_, amount)| *amount));
        let funding = stock.and_then(|stock| stock.checked_add(of(clients)));
        Ok(Self {
            outputs,
            capacity,
            funding: funding.unwrap_or(Amount::MAX_MONEY),
            stocks,
            shape,
        })
    }

    /// What it takes to fund it, without fee and change.
    #[must_use]
    pub const fn funding(&self) -> Amount {
        self.funding
    }

    /// Its stocks together.
    #[must_use]
    pub fn stock(&self) -> Amount {
        self.funding
            .checked_sub(self.capacities(self.shape.clients()))
            .unwrap_or(Amount::ZERO)
    }

    /// Its skeleton.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    fn capacities(&self, clients: u32) -> Amount {
        self.capacity
            .checked_mul(clients.into())
            .unwrap_or(Amount::MAX_MONEY)
    }

    /// One client's path with its fee children.
    #[must_use]
    pub fn path(&self, client: u32) -> Load {
        self.nodes(self.shape.path(client).into_iter())
    }

    /// Every transaction of the tree with its fee child, without commitments.
    #[must_use]
    pub fn whole_tree(&self) -> Load {
        self.nodes(0..self.outputs.len())
    }

    fn nodes(&self, nodes: impl Iterator<Item = usize>) -> Load {
        let outputs = nodes.filter_map(|node| self.outputs.get(node));
        outputs.fold(Load::default(), |sum, outputs| {
            sum.plus(Sizes::package(*outputs))
        })
    }

    /// What it takes to publish the paths of those for whom `silent` says so; all the others'
    /// keys are ours. Nothing if nobody is.
    #[must_use]
    pub fn publish(&self, sizes: &Sizes, silent: &[bool]) -> Publication {
        let is_silent = |client: u32| silent.get(client as usize).copied().unwrap_or(false);
        let any = |clients: &ClientRange| clients.clone().any(is_silent);
        let mut publication = Publication::default();
        let (mut branches, mut mates, mut keyed_stocks, mut locked_stocks) =
            (0u64, 0u64, 0u64, 0u64);
        let mut count = 0u64;
        for (index, node) in self.shape.nodes().iter().enumerate() {
            if !any(&node.clients) {
                let above = node
                    .parent
                    .and_then(|(parent, _)| self.shape.nodes().get(parent));
                branches = branches.saturating_add(above.is_some_and(|n| any(&n.clients)).into());
                continue;
            }
            publication.paths = publication.paths.plus(self.nodes(core::iter::once(index)));
            if node.kind != NodeKind::Leaf {
                continue;
            }
            let away = node.clients.clone().filter(|client| is_silent(*client));
            let away = away.count() as u64;
            count = count.saturating_add(away);
            mates = u64::from(len(&node.clients))
                .saturating_sub(away)
                .saturating_add(mates);
            for (sub, amount) in &self.stocks {
                if !node.subfactories.contains(sub) {
                    continue;
                }
                if any(sub) {
                    locked_stocks = locked_stocks.saturating_add(1);
                    let sum = publication.stock.checked_add(*amount);
                    publication.stock = sum.unwrap_or(Amount::MAX_MONEY);
                } else {
                    keyed_stocks = keyed_stocks.saturating_add(1);
                }
            }
        }
        if count == 0 {
            return publication;
        }
        publication.commitments = sizes.commitment().times(count);
        publication.recovery = sizes
            .sweep(&[(sizes.key_input, branches)])
            .plus(sizes.sweep(&[
                (sizes.channel_input, mates),
                (sizes.key_input, keyed_stocks),
            ]));
        publication.stock_sweeps = sizes.sweep(&[(sizes.stock_input, locked_stocks)]);
        publication.to_local = sizes.to_local(count);
        publication.channels = self.capacities(u32::try_from(count).unwrap_or(u32::MAX));
        let rest = self.funding.checked_sub(publication.stock);
        let rest = rest.and_then(|rest| rest.checked_sub(publication.channels));
        publication.recovered = rest.unwrap_or(Amount::ZERO);
        publication
    }
}

/// The largest timeout of a factory of this shape: what is relayed as one transaction at most.
#[must_use]
pub fn largest_timeout(model: &FactoryModel) -> u64 {
    let groups = plan::timeout_groups(model.shape(), 0);
    match groups.len() {
        1 => tree_tx_vbytes(model.shape().clients().into()),
        stages => tree_tx_vbytes(stages as u64),
    }
}

/// A key for transactions that are only weighed.
struct Signer {
    secp: Secp256k1<bitcoin::secp256k1::All>,
    pair: Keypair,
}

impl Signer {
    fn new() -> Option<Self> {
        let secp = Secp256k1::new();
        let secret = SecretKey::from_slice(&[1; 32]).ok()?;
        let pair = Keypair::from_secret_key(&secp, &secret);
        Some(Self { secp, pair })
    }

    fn public(&self) -> PublicKey {
        self.pair.public_key()
    }

    fn payout(&self) -> TxOut {
        TxOut {
            value: Amount::from_sat(100_000),
            script_pubkey: output::payout(&self.secp, self.pair.x_only_public_key().0),
        }
    }

    /// The weight of a sweep of `count` outputs that `unlock` opens.
    fn sweep(&self, unlock: Unlock, count: u32) -> Option<Weight> {
        let own = self.pair.x_only_public_key().0;
        let txout = match unlock {
            Unlock::KeyPath => self.payout(),
            Unlock::Output => TxOut {
                script_pubkey: output::taproot(own),
                ..self.payout()
            },
            Unlock::Leaf { leaf, internal_key } => TxOut {
                script_pubkey: ScriptBuf::new_p2tr(&self.secp, internal_key, leaf.merkle_root(own)),
                ..self.payout()
            },
            Unlock::Channel { other } => TxOut {
                script_pubkey: output::channel(&self.public(), &other.public_key()),
                ..self.payout()
            },
        };
        let inputs: Vec<SweepInput<'_>> = (0..count)
            .map(|vout| SweepInput {
                outpoint: OutPoint::new(Txid::all_zeros(), vout),
                txout: txout.clone(),
                keypair: &self.pair,
                unlock,
            })
            .collect();
        let destination = self.payout().script_pubkey;
        let tx = sweep::sweep(&self.secp, &inputs, destination, 1).ok()?;
        Some(tx.weight())
    }
}

/// The weight of a transaction with one input of this witness.
fn weigh(witness: Witness, output: Vec<TxOut>) -> Weight {
    let tx = Transaction {
        version: Version::non_standard(3),
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig: ScriptBuf::new(),
            sequence: Timelock::NONE.sequence(),
            witness,
        }],
        output,
    };
    tx.weight()
}

/// BOLT 3's `to_local` script: the revocation key, or ours after `delay` blocks.
fn to_local(key: &PublicKey, delay: u16) -> ScriptBuf {
    ScriptBuf::builder()
        .push_opcode(OP_IF)
        .push_key(&(*key).into())
        .push_opcode(OP_ELSE)
        .push_sequence(Sequence::from_height(delay))
        .push_opcode(OP_CSV)
        .push_opcode(OP_DROP)
        .push_key(&(*key).into())
        .push_opcode(OP_ENDIF)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// `to_local` and `to_remote` (both P2WSH, as with anchors), and the P2A.
fn commitment_outputs(to_local: &ScriptBuf) -> Vec<TxOut> {
    let remote = ScriptBuf::builder().push_opcode(OP_PUSHNUM_1).into_script();
    let pay = |script_pubkey| TxOut {
        value: Amount::from_sat(1000),
        script_pubkey,
    };
    vec![
        pay(to_local.to_p2wsh()),
        pay(remote.to_p2wsh()),
        output::anchor(Amount::ZERO).txout,
    ]
}
