//! The arithmetic of one ceremony in one process on one core: no network, no disk.
//!
//! Both machines are the real ones. Of the clients a few do their whole work, timed; the others
//! only make what the coordinator needs of them, untimed.

mod client;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Message, PublicKey, Secp256k1, SecretKey, ecdsa};
use bitcoin::{
    Amount, Network, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid,
    WScriptHash, Witness, absolute, transaction,
};
use factory_tree::ceremony::coordinator::{
    Ceremony, Effect, Funding, Input, LspSigner, Outcome, Propose, Terms,
};
use factory_tree::ceremony::message::{Proposal, Round, ToClient};
use factory_tree::factory::FactoryTx;
use factory_tree::ids::{Attempt, CeremonyId, ClientId, LeafId};
use factory_tree::params::{FactoryParams, Profile};
use factory_tree::units::Height;
use serde::Serialize;

use crate::cpu;
use client::Client;

/// Clients that do, and are timed doing, their whole work.
const TIMED: usize = 4;
const TIP: Height = Height(1000);
const CAPACITY: Amount = Amount::from_sat(200_000);

/// What a ceremony's arithmetic costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    /// Clients of the factory.
    pub(crate) clients: u32,
    /// Processor time of the coordinator's part.
    pub(crate) coordinator_cpu_s: f64,
    /// Processor time of one client's part.
    pub(crate) one_client_cpu_s: f64,
}

/// Runs a ceremony of a `lite` factory.
pub(crate) fn run(clients: u32) -> Result<Cost> {
    let params = FactoryParams::profile(Profile::Lite, Network::Regtest);
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()?;
    let mut bench = Bench::new(clients)?;
    let invited = bench.clients.iter().map(Client::invitee).collect();
    let terms = Terms {
        params,
        fee: Amount::ZERO,
        fee_ppm: 0,
        join_seconds: 60,
        step_seconds: 60,
        min_clients: 2,
        max_attempts: 1,
        common_pin: pin(),
        confirmations: 1,
    };
    let id = CeremonyId(random());
    let signer = bench.lsp.clone();
    let step =
        bench.coordinator(|| Ceremony::start(id, Attempt(1), terms, invited, signer, TIP))?;
    bench.take(step.effects)?;
    let mut ceremony = step.state;
    while let Some(input) = bench.inputs.pop_front() {
        let step = bench.coordinator(|| ceremony.step(input))?;
        ceremony = step.state;
        bench.take(step.effects)?;
    }
    bench.cost()
}

#[derive(Debug)]
struct Bench {
    clients: Vec<Client>,
    places: HashMap<ClientId, usize>,
    lsp: Arc<Lsp>,
    inputs: VecDeque<Input>,
    coordinator: Duration,
    done: bool,
}

impl Bench {
    fn new(count: u32) -> Result<Self> {
        let lsp = Arc::new(Lsp {
            factory: secret()?,
            channel: secret()?,
        });
        let clients: Vec<Client> = (0..count)
            .map(|place| Client::new((place as usize) < TIMED, lsp.channel_key()))
            .collect::<Result<_>>()?;
        Ok(Self {
            places: (0..)
                .zip(&clients)
                .map(|(place, client)| (client.id(), place))
                .collect(),
            lsp,
            clients,
            inputs: VecDeque::new(),
            coordinator: Duration::ZERO,
            done: false,
        })
    }

    /// Times the coordinator's work.
    fn coordinator<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        let before = cpu::own()?;
        let result = work();
        self.coordinator += cpu::own()?.saturating_sub(before);
        Ok(result)
    }

    fn take(&mut self, effects: Vec<Effect>) -> Result<()> {
        for effect in effects {
            match effect {
                Effect::Send { client, message } => self.deliver(client, message)?,
                Effect::Propose(propose) => self.propose(&propose)?,
                Effect::BuildFunding { output, .. } => {
                    let funding = Funding {
                        tx: funding(output),
                        vout: 0,
                        seed: random().into(),
                    };
                    self.inputs
                        .push_back(Input::FundingReady(Box::new(funding)));
                }
                Effect::Refuse { reason, .. } => bail!("refused: {reason:?}"),
                Effect::Finished(Outcome::Failed { reason }) => bail!("failed: {reason:?}"),
                // Everybody has its kit; what follows is Lightning's.
                Effect::OpenChannels { .. } => self.done = true,
                Effect::Finished(Outcome::Complete { .. })
                | Effect::Store(_)
                | Effect::Wake { .. }
                | Effect::Emit(_)
                | Effect::Fund { .. } => {}
            }
        }
        Ok(())
    }

    fn deliver(&mut self, to: ClientId, message: ToClient) -> Result<()> {
        let place = *self.places.get(&to).context("a message to a stranger")?;
        let client = self
            .clients
            .get_mut(place)
            .context("a place has a client")?;
        self.inputs.extend(client.receive(message)?);
        Ok(())
    }

    fn propose(&mut self, propose: &Propose) -> Result<()> {
        for one in &propose.clients {
            let place = *self
                .places
                .get(&one.client)
                .context("a proposal to a stranger")?;
            let path =
                self.coordinator(|| propose.tree.proposal_for(one.position, &propose.funding_tx))?;
            let proposal = Proposal {
                round: propose.round,
                path: path.context("a member has a path")?,
                sums: one.sums.clone(),
            };
            let client = self
                .clients
                .get_mut(place)
                .context("a place has a client")?;
            self.inputs
                .extend(client.proposed(proposal, &propose.tree)?);
        }
        Ok(())
    }

    fn cost(&self) -> Result<Cost> {
        ensure!(self.done, "the ceremony came to nothing");
        let timed = self.clients.len().min(TIMED);
        let spent: Duration = self.clients.iter().map(Client::spent).sum();
        Ok(Cost {
            clients: u32::try_from(self.clients.len())?,
            coordinator_cpu_s: self.coordinator.as_secs_f64(),
            one_client_cpu_s: spent.as_secs_f64() / timed as f64,
        })
    }
}

#[derive(Debug)]
struct Lsp {
    factory: SecretKey,
    channel: SecretKey,
}

impl Lsp {
    fn channel_key(&self) -> PublicKey {
        self.channel.public_key(&Secp256k1::signing_only())
    }
}

impl LspSigner for Lsp {
    fn factory_secret(&self, _: Round) -> SecretKey {
        self.factory
    }

    fn sign_channel_timeout(
        &self,
        _: LeafId,
        timeout: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        Some(sign_channel(&self.channel, timeout, script))
    }
}

/// ECDSA on a channel's timeout.
fn sign_channel(key: &SecretKey, timeout: &FactoryTx, script: &Script) -> ecdsa::Signature {
    let message = Message::from_digest(timeout.channel_sighash(script));
    Secp256k1::signing_only().sign_ecdsa(&message, key)
}

fn pin() -> OutPoint {
    OutPoint::new(Txid::all_zeros(), 7)
}

fn funding(output: TxOut) -> Transaction {
    let change = TxOut {
        value: Amount::from_sat(10_000),
        script_pubkey: ScriptBuf::new_p2wsh(&WScriptHash::all_zeros()),
    };
    Transaction {
        version: transaction::Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: pin(),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![output, change],
    }
}

/// Fresh bytes from the operating system.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::RngCore::fill_bytes(&mut rand::rngs::OsRng, &mut bytes);
    bytes
}

fn secret() -> Result<SecretKey> {
    Ok(SecretKey::from_slice(&random::<32>())?)
}
