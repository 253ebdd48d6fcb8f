//! Factories for tests and benches: deterministic members, and a whole tree signed in one process.
//!
//! Behind the feature `testing`. Keys and nonces come from a seed, so nothing here may ever meet
//! real money.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    missing_docs
)]

use std::sync::OnceLock;

use bitcoin::hashes::Hash;
use bitcoin::key::TapTweak;
use bitcoin::secp256k1::{self, All, Keypair, Parity, PublicKey, Secp256k1, SecretKey, schnorr};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute,
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::factory::{FactorySpec, FactoryTx, Member};
use crate::handover::MaskedKeys;
use crate::ids::{Attempt, CeremonyId, ClientId, LeafId, SaleId};
use crate::kit::{ChannelSignatures, ExitKit, JoinData};
use crate::musig::AggregateNonce;
use crate::output::{channel_witness_script, payout};
use crate::params::FactoryParams;
use crate::path::{Path, PathProposal};
use crate::sale::{Sale, SaleTxs, SoldChannel, Stock};
use crate::session::{Aggregation, NonceUse, SecretNonce, Share, complete_all};
use crate::tree::{Draft, Tree, TreeError};
use crate::units::Height;

/// Capacity of a client where a test does not say another.
pub const CAPACITY: Amount = Amount::from_sat(200_000);
/// The height factories are born at.
pub const BIRTH: Height = Height(1000);
/// The ceremony they are made in.
pub const CEREMONY: CeremonyId = CeremonyId([0xce; 16]);
/// The attempt.
pub const ATTEMPT: Attempt = Attempt(1);

/// One context for everything here.
fn secp() -> &'static Secp256k1<All> {
    static CONTEXT: OnceLock<Secp256k1<All>> = OnceLock::new();
    CONTEXT.get_or_init(Secp256k1::new)
}

/// 32 bytes from a seed, a label and a number.
#[must_use]
pub fn bytes(seed: u64, label: &str, number: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"superscalar/testing");
    hash.update(seed.to_be_bytes());
    hash.update(number.to_be_bytes());
    hash.update(label.as_bytes());
    hash.finalize().into()
}

/// A secret key from a seed, a label and a number.
#[must_use]
pub fn secret(seed: u64, label: &str, number: u64) -> SecretKey {
    SecretKey::from_slice(&bytes(seed, label, number)).unwrap()
}

/// The public key of `secret`.
#[must_use]
pub fn public(secret: &SecretKey) -> PublicKey {
    secret.public_key(secp())
}

/// One client with all its secrets.
#[derive(Clone, Debug)]
pub struct TestClient {
    pub node: SecretKey,
    pub join_nonce: [u8; 16],
    pub leaf_id: LeafId,
    pub factory: SecretKey,
    pub payout: SecretKey,
    pub channel: SecretKey,
    /// The LSP's secret for this client's channel.
    pub lsp_channel: SecretKey,
    pub capacity: Amount,
}

impl TestClient {
    /// Client `number` of the factory `seed`.
    #[must_use]
    pub fn new(seed: u64, number: u64, capacity: Amount) -> Self {
        let mut join_nonce = [0u8; 16];
        join_nonce.copy_from_slice(&bytes(seed, "join nonce", number)[..16]);
        Self {
            node: secret(seed, "node", number),
            join_nonce,
            leaf_id: LeafId::derive(&join_nonce, 0),
            factory: secret(seed, "factory", number),
            payout: secret(seed, "payout", number),
            channel: secret(seed, "channel", number),
            lsp_channel: secret(seed, "lsp channel", number),
            capacity,
        }
    }

    #[must_use]
    pub fn id(&self) -> ClientId {
        ClientId(public(&self.node).serialize())
    }

    #[must_use]
    pub fn payout_script(&self) -> ScriptBuf {
        let key = public(&self.payout).x_only_public_key().0;
        payout(secp(), key)
    }

    /// What it hands over when it has left.
    #[must_use]
    pub fn masked_keys(&self, lsp_key: &PublicKey) -> MaskedKeys {
        let pair = Keypair::from_secret_key(secp(), &self.payout);
        let output = pair.tap_tweak(secp(), None).to_keypair();
        let even = match output.x_only_public_key().1 {
            Parity::Even => output.secret_key(),
            Parity::Odd => output.secret_key().negate(),
        };
        MaskedKeys::new(&self.factory, &even, (&self.channel, &[]), lsp_key).unwrap()
    }

    #[must_use]
    pub fn member(&self) -> Member {
        Member {
            client: self.id(),
            factory_key: public(&self.factory),
            payout_script: self.payout_script(),
            leaf_id: self.leaf_id,
            channel_key: public(&self.channel),
            lsp_channel_key: public(&self.lsp_channel),
            capacity: self.capacity,
        }
    }

    #[must_use]
    pub fn join_data(&self) -> JoinData {
        JoinData {
            ceremony: CEREMONY,
            attempt: ATTEMPT,
            join_nonce: self.join_nonce,
            leaf_id: self.leaf_id,
            factory_key: public(&self.factory),
            channel_key: public(&self.channel),
            payout_script: self.payout_script(),
        }
    }
}

/// A factory whose every secret is known.
#[derive(Clone, Debug)]
pub struct TestFactory {
    pub seed: u64,
    pub lsp_node: SecretKey,
    pub lsp: SecretKey,
    pub clients: Vec<TestClient>,
    /// The funding transaction, unsigned: the factory is its first output.
    pub funding_tx: Transaction,
    pub tree: Tree,
}

impl TestFactory {
    /// A factory of `clients` clients with [`CAPACITY`] each.
    ///
    /// # Errors
    /// When the parameters allow no such factory.
    pub fn new(seed: u64, params: FactoryParams, clients: usize) -> Result<Self, TreeError> {
        Self::with_capacities(seed, params, &vec![CAPACITY; clients])
    }

    /// A factory of clients with these capacities.
    ///
    /// # Errors
    /// When the parameters allow no such factory.
    pub fn with_capacities(
        seed: u64,
        params: FactoryParams,
        capacities: &[Amount],
    ) -> Result<Self, TreeError> {
        let clients = (0u64..).zip(capacities);
        let clients = clients.map(|(number, capacity)| TestClient::new(seed, number, *capacity));
        Self::of(seed, params, clients.collect())
    }

    /// A factory of these clients.
    ///
    /// # Errors
    /// When the parameters allow no such factory.
    pub fn of(
        seed: u64,
        params: FactoryParams,
        clients: Vec<TestClient>,
    ) -> Result<Self, TreeError> {
        let lsp = secret(seed, "lsp", 0);
        let spec = FactorySpec {
            params,
            birth: BIRTH,
            lsp_key: public(&lsp),
            members: clients.iter().map(TestClient::member).collect(),
        };
        let draft = Draft::new(spec)?;
        let funding_tx = funding_tx(seed, draft.funding_output());
        let tree = draft.at(OutPoint::new(funding_tx.compute_txid(), 0))?;
        Ok(Self {
            seed,
            lsp_node: secret(seed, "lsp node", 0),
            lsp,
            clients,
            funding_tx,
            tree,
        })
    }

    /// What the client at `position` is sent.
    #[must_use]
    pub fn proposal(&self, position: u32) -> PathProposal {
        self.tree.proposal_for(position, &self.funding_tx).unwrap()
    }

    /// Every party's secret for the keys of `tx`, in key-aggregation order; the LSP's first where
    /// it is a signer.
    #[must_use]
    pub fn secrets(&self, tx: &FactoryTx) -> Vec<SecretKey> {
        let owners = &tx.spends.key.as_ref().unwrap().owners;
        let clients = &self.clients[owners.start as usize..owners.end as usize];
        let lsp = owners.with_lsp.then_some(self.lsp);
        lsp.into_iter()
            .chain(clients.iter().map(|c| c.factory))
            .collect()
    }

    /// The client's exit kit with signatures that are none: for what only looks at its form.
    #[must_use]
    pub fn unsigned_kit(&self, position: u32) -> ExitKit {
        let proposal = self.proposal(position);
        let path = Path::rebuild(&proposal).unwrap();
        let client = &self.clients[position as usize];
        let musig = schnorr::Signature::from_slice(&[1; 64]).unwrap();
        let channel = sign_channel_timeout(&path.channel_timeout, client);
        let signatures = vec![musig; path.sessions.len()];
        ExitKit::assemble(&path, &proposal, &signatures, &channel, client.join_data()).unwrap()
    }

    /// All parties sign everything, by MuSig2 and, for the channels, ECDSA.
    #[must_use]
    pub fn sign(self) -> SignedFactory {
        let signatures = self
            .tree
            .txs()
            .par_iter()
            .enumerate()
            .map(|(session, tx)| self.sign_session(session as u32, tx))
            .collect();
        let channel = self
            .tree
            .channel_timeouts()
            .iter()
            .zip(&self.clients)
            .map(|(timeout, client)| sign_channel_timeout(timeout, client))
            .collect();
        SignedFactory {
            factory: self,
            signatures,
            channel,
        }
    }

    fn sign_session(&self, session: u32, tx: &FactoryTx) -> schnorr::Signature {
        let nonce_use = NonceUse {
            ceremony: CEREMONY,
            attempt: ATTEMPT,
            session,
        };
        let secrets = self.secrets(tx);
        let with_lsp = tx.spends.key.as_ref().unwrap().owners.with_lsp;
        let nonces = (0u64..).zip(&secrets).map(|(signer, secret)| {
            let label = format!("nonce {session}");
            let seed = bytes(self.seed, &label, signer);
            SecretNonce::generate(seed, secret, nonce_use)
        });
        let (mut secret_nonces, public_nonces): (Vec<_>, Vec<_>) = nonces.unzip();
        let sum = AggregateNonce::sum(&public_nonces);
        let own = with_lsp.then(|| secret_nonces.remove(0));
        let others = usize::from(with_lsp);
        let shares = secret_nonces
            .into_iter()
            .zip(&secrets[others..])
            .zip(&public_nonces[others..])
            .map(|((nonce_secret, secret), nonce)| Share {
                signer: public(secret),
                nonce,
                partial: nonce_secret.sign(nonce_use, secret, tx, &sum).unwrap(),
            })
            .collect();
        let aggregation = Aggregation {
            tx,
            shares,
            sum: &sum,
            own,
            nonce_use,
        };
        complete_all(&self.lsp, vec![aggregation]).unwrap()[0]
    }
}

/// Both signatures of a channel's timeout.
#[must_use]
pub fn sign_channel_timeout(timeout: &FactoryTx, client: &TestClient) -> ChannelSignatures {
    sign_timeout(timeout, &client.channel, &client.lsp_channel)
}

fn sign_timeout(timeout: &FactoryTx, client: &SecretKey, lsp: &SecretKey) -> ChannelSignatures {
    let script = channel_witness_script(&public(client), &public(lsp));
    let message = secp256k1::Message::from_digest(timeout.channel_sighash(&script));
    ChannelSignatures {
        client: secp().sign_ecdsa(&message, client),
        lsp: secp().sign_ecdsa(&message, lsp),
    }
}

/// Sales, with every secret known.
impl TestFactory {
    /// The unsold stock that the client at `position` shares.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn stock(&self, position: u32) -> Stock {
        Stock::of_tree(&self.tree, position).unwrap()
    }

    /// Secrets of the client and the LSP for what `position` buys in sale `number`.
    #[must_use]
    pub fn sold_secrets(&self, number: u8, position: u32) -> (SecretKey, SecretKey) {
        let at = u64::from(number) << 32 | u64::from(position);
        let client = secret(self.seed, "sold channel", at);
        (client, secret(self.seed, "lsp sold channel", at))
    }

    /// A channel for `position` in sale `number`.
    #[must_use]
    pub fn sold_channel(&self, number: u8, position: u32, capacity: Amount) -> SoldChannel {
        let (client, lsp) = self.sold_secrets(number, position);
        let join_nonce = &self.clients[position as usize].join_nonce;
        SoldChannel {
            position,
            leaf_id: LeafId::derive(join_nonce, number.into()),
            channel_key: public(&client),
            lsp_channel_key: public(&lsp),
            capacity,
        }
    }

    /// The next sale: `sat` to `buyer`, or everything where the rest would be too small.
    ///
    /// # Panics
    /// When it cannot be sold.
    #[must_use]
    pub fn sale(&self, stock: &Stock, buyer: u32, sat: u64, bonus: &[(u32, u64)]) -> Sale {
        let number = stock.next_number();
        let sum = Amount::from_sat(bonus.iter().map(|(_, sat)| sat).sum());
        let capacity = stock.capacity_for(Amount::from_sat(sat), sum).unwrap();
        let bonus = bonus.iter().map(|(mate, sat)| {
            let capacity = Amount::from_sat(*sat);
            self.sold_channel(number, *mate, capacity)
        });
        let mut id = [number; 16];
        id[..8].copy_from_slice(&self.seed.to_be_bytes());
        Sale {
            id: SaleId(id),
            stock: stock.outpoint(),
            number,
            bought: self.sold_channel(number, buyer, capacity),
            bonus: bonus.collect(),
        }
    }

    /// Signs every session of a sale, all parties in turn.
    #[must_use]
    pub fn sign_sale(&self, txs: &SaleTxs) -> Vec<schnorr::Signature> {
        let first = 10_000 + 100 * u32::from(txs.sale.number);
        let sessions = (first..).zip(txs.sessions());
        sessions
            .map(|(session, tx)| self.sign_session(session, tx))
            .collect()
    }

    /// Both signatures on the timeout of what the client at `position` got in this sale.
    #[must_use]
    pub fn sign_sold_channel(&self, txs: &SaleTxs, position: u32) -> Option<ChannelSignatures> {
        let (_, timeout) = txs.channel_of(position)?;
        let (client, lsp) = self.sold_secrets(txs.sale.number, position);
        Some(sign_timeout(timeout, &client, &lsp))
    }
}

/// A transaction that funds `output` from a coin nobody has, with a change output for CPFP.
#[must_use]
pub fn funding_tx(seed: u64, output: TxOut) -> Transaction {
    let change = payout(
        secp(),
        public(&secret(seed, "change", 0)).x_only_public_key().0,
    );
    Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array(bytes(seed, "coin", 0)), 0),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![
            output,
            TxOut {
                value: Amount::from_sat(10_000),
                script_pubkey: change,
            },
        ],
    }
}

/// A factory with every signature.
#[derive(Clone, Debug)]
pub struct SignedFactory {
    pub factory: TestFactory,
    /// In the tree's session order.
    pub signatures: Vec<schnorr::Signature>,
    /// In leaf order.
    pub channel: Vec<ChannelSignatures>,
}

impl SignedFactory {
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.factory.tree
    }

    /// The signatures of the client's sessions, in its session order.
    #[must_use]
    pub fn signatures_of(&self, position: u32) -> Vec<schnorr::Signature> {
        let sessions = self.tree().sessions_of(position);
        sessions.into_iter().map(|i| self.signatures[i]).collect()
    }

    /// The client's exit kit.
    ///
    /// # Panics
    /// When it is no good, which is what tests are for.
    #[must_use]
    pub fn kit(&self, position: u32) -> ExitKit {
        let proposal = self.factory.proposal(position);
        let path = Path::rebuild(&proposal).unwrap();
        let at = position as usize;
        ExitKit::new(
            &path,
            &proposal,
            &self.signatures_of(position),
            &self.channel[at],
            self.factory.clients[at].join_data(),
        )
        .unwrap()
    }

    /// Every transaction of the factory, signed, with what it spends; the channels' timeouts last.
    #[must_use]
    pub fn signed_txs(&self) -> Vec<(&FactoryTx, Transaction)> {
        let tree = self.tree();
        let musig = tree.txs().iter().zip(&self.signatures);
        let musig = musig.map(|(tx, signature)| (tx, tx.signed(signature)));
        let channels = tree.channel_timeouts().iter().zip(&self.channel);
        let channels = channels.zip(&self.factory.clients);
        let channels = channels.map(|((tx, signatures), client)| {
            let client_key = public(&client.channel);
            let lsp_key = public(&client.lsp_channel);
            let signed = crate::kit::sign_channel(
                tx,
                (&client_key, &signatures.client),
                (&lsp_key, &signatures.lsp),
            );
            (tx, signed)
        });
        musig.chain(channels).collect()
    }

    /// The LSP's key pair, for its own script leaves.
    #[must_use]
    pub fn lsp_keypair(&self) -> Keypair {
        Keypair::from_secret_key(secp(), &self.factory.lsp)
    }
}

/// The signed sales of a stock, and the kits of its clients.
#[derive(Clone, Debug)]
pub struct Sold {
    pub signed: SignedFactory,
    pub stock: Stock,
    pub kits: Vec<ExitKit>,
}

impl Sold {
    /// The unsold stock that the first client shares.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn new(factory: TestFactory) -> Self {
        let signed = factory.sign();
        let stock = signed.factory.stock(0);
        let kits = stock
            .clients()
            .map(|position| signed.kit(position))
            .collect();
        Self {
            signed,
            stock,
            kits,
        }
    }

    /// The next sale, as in [`TestFactory::sale`], in every kit.
    ///
    /// # Panics
    /// When it cannot be sold.
    pub fn sell(&mut self, buyer: u32, sat: u64, bonus: &[(u32, u64)]) {
        let factory = &self.signed.factory;
        let sale = factory.sale(&self.stock, buyer, sat, bonus);
        let txs = self.stock.push(sale).unwrap();
        let signatures = factory.sign_sale(&txs);
        for kit in &mut self.kits {
            let channel = factory.sign_sold_channel(&txs, kit.position);
            *kit = kit.with_sale(&txs, &signatures, channel.as_ref()).unwrap();
        }
    }
}

/// How many cases a property test runs: `usual`, or ten times as many when `SUPERSCALAR_LONG` is
/// set.
#[must_use]
pub fn cases(usual: u32) -> u32 {
    if long() {
        usual.saturating_mul(10)
    } else {
        usual
    }
}

/// Whether what takes long is to be run as well.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("SUPERSCALAR_LONG").is_some_and(|value| value == "1")
}
