//! Both machines against each other over a network in memory that can be told to misbehave.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Secp256k1, SecretKey, ecdsa};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Network, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid,
    absolute,
};
use proptest::prelude::*;

use super::coordinator::*;
use super::message::*;
use super::signer::{
    ChannelSigner, JoinKeys, JoinRecord, Signer, SignerEffect, SignerInput, SignerOutcome,
    SignerPhase,
};
use crate::factory::FactoryTx;
use crate::guard::SignedRecord;
use crate::ids::{Attempt, CeremonyId, ClientId, FactoryId, LeafId};
use crate::kit::ExitKit;
use crate::musig::PartialSignature;
use crate::params::{FactoryParams, Profile};
use crate::testing::{bytes, public, secret};
use crate::units::Height;
use crate::verify::Limits;

mod noise;

const CEREMONY: CeremonyId = CeremonyId([3; 16]);
const TIP: Height = Height(500);

/// How a client misbehaves, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Honest,
    NeverJoins,
    SilentAfterJoin,
    SilentAfterProposal,
    SilentAfterFinals,
    SilentAfterAck,
    ChannelRefused,
    RefusesChannel,
    BadPartial,
    BadChannelSignature,
    Declines,
    Duplicates,
}

const FAULTS: [Fault; 12] = [
    Fault::Honest,
    Fault::NeverJoins,
    Fault::SilentAfterJoin,
    Fault::SilentAfterProposal,
    Fault::SilentAfterFinals,
    Fault::SilentAfterAck,
    Fault::ChannelRefused,
    Fault::RefusesChannel,
    Fault::BadPartial,
    Fault::BadChannelSignature,
    Fault::Declines,
    Fault::Duplicates,
];

impl Fault {
    /// Whether a ceremony goes on without this client.
    fn leaves_out(self) -> bool {
        !matches!(self, Self::Honest | Self::Duplicates)
    }
}

fn sign_ecdsa(key: &SecretKey, tx: &FactoryTx, script: &Script) -> ecdsa::Signature {
    let message = bitcoin::secp256k1::Message::from_digest(tx.channel_sighash(script));
    Secp256k1::new().sign_ecdsa(&message, key)
}

#[derive(Debug)]
struct TestLsp;

fn lsp_channel(leaf: LeafId) -> SecretKey {
    secret(0, &format!("lsp channel {leaf}"), 0)
}

impl LspSigner for TestLsp {
    fn factory_secret(&self, round: Round) -> SecretKey {
        secret(0, "lsp", round.attempt.0.into())
    }
    fn sign_channel_timeout(
        &self,
        leaf: LeafId,
        timeout: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        Some(sign_ecdsa(&lsp_channel(leaf), timeout, script))
    }
}

#[derive(Debug)]
struct TestChannels(SecretKey);

impl ChannelSigner for TestChannels {
    fn sign_channel_timeout(
        &self,
        _leaf: LeafId,
        timeout: &FactoryTx,
        script: &Script,
    ) -> Option<ecdsa::Signature> {
        Some(sign_ecdsa(&self.0, timeout, script))
    }
}

/// One client: its machine and what is on its disk.
#[derive(Debug, Default)]
struct Wallet {
    number: u64,
    draws: u64,
    signer: Option<Signer>,
    joins: Vec<JoinRecord>,
    signed: Vec<SignedRecord>,
    kits: BTreeMap<FactoryId, String>,
    outcome: Option<SignerOutcome>,
    /// The factory whose channel may be opened.
    expected: Option<FactoryId>,
    before: Option<SignerPhase>,
}

/// A whole ceremony.
struct Sim {
    ceremony: Option<Ceremony>,
    wallets: BTreeMap<ClientId, (Wallet, Fault)>,
    to_coordinator: VecDeque<Input>,
    records: Vec<Record>,
    events: Vec<Event>,
    wake: Option<(Round, Phase)>,
    outcome: Option<Outcome>,
    funded: Vec<(Round, Arc<crate::tree::Tree>)>,
    refused: Vec<(ClientId, RefuseReason)>,
    /// Own nonce -> (sum, sighash is implied): every nonce that ever signed.
    used_nonces: BTreeMap<[u8; 66], [u8; 66]>,
    refuse_proposals: bool,
    /// Everything the clients were sent.
    sent: Vec<(ClientId, ToClient)>,
}

fn client_id(number: u64) -> ClientId {
    ClientId(public(&secret(number, "node", 0)).serialize())
}

fn pin() -> OutPoint {
    OutPoint::new(Txid::from_byte_array([8; 32]), 1)
}

fn terms(params: FactoryParams) -> Terms {
    Terms {
        params,
        fee: Amount::ZERO,
        fee_ppm: 0,
        join_seconds: 5,
        step_seconds: 5,
        min_clients: 2,
        max_attempts: 10,
        common_pin: pin(),
        confirmations: 1,
    }
}

fn funding(output: TxOut) -> Transaction {
    let change = ScriptBuf::from_hex(&format!("5120{}", "33".repeat(32))).unwrap();
    Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: pin(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            ..TxIn::default()
        }],
        output: vec![
            output,
            TxOut {
                value: Amount::from_sat(20_000),
                script_pubkey: change,
            },
        ],
    }
}

impl Sim {
    fn new(faults: &[Fault], params: FactoryParams) -> Self {
        Self::from_attempt(faults, params, Attempt(1), BTreeMap::new())
    }

    fn from_attempt(
        faults: &[Fault],
        params: FactoryParams,
        attempt: Attempt,
        old: BTreeMap<ClientId, (Wallet, Fault)>,
    ) -> Self {
        Self::with_terms(faults, terms(params), attempt, old)
    }

    fn with_terms(
        faults: &[Fault],
        terms: Terms,
        attempt: Attempt,
        mut old: BTreeMap<ClientId, (Wallet, Fault)>,
    ) -> Self {
        let mut wallets = BTreeMap::new();
        let mut invited = Vec::new();
        for (number, fault) in (1u64..).zip(faults) {
            let client = client_id(number);
            invited.push(Invitee {
                client,
                capacity: Amount::from_sat(200_000),
            });
            let (wallet, fault) = old.remove(&client).unwrap_or((
                Wallet {
                    number,
                    ..Wallet::default()
                },
                *fault,
            ));
            wallets.insert(client, (wallet, fault));
        }
        let step = Ceremony::start(CEREMONY, attempt, terms, invited, Arc::new(TestLsp), TIP);
        let mut sim = Self {
            ceremony: Some(step.state),
            wallets,
            to_coordinator: VecDeque::new(),
            records: Vec::new(),
            events: Vec::new(),
            wake: None,
            outcome: None,
            funded: Vec::new(),
            refused: Vec::new(),
            used_nonces: BTreeMap::new(),
            refuse_proposals: false,
            sent: Vec::new(),
        };
        sim.effects(step.effects);
        sim
    }

    /// Runs until the ceremony ends: deadlines come due when nothing else happens.
    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.outcome.is_some() && self.to_coordinator.is_empty() {
                return;
            }
            let input = self.to_coordinator.pop_front().or_else(|| {
                let (round, phase) = self.wake.take()?;
                Some(Input::Deadline { round, phase })
            });
            let Some(input) = input else {
                panic!("stuck: {:?}", self.events)
            };
            self.input(input);
        }
        panic!("does not end");
    }

    fn input(&mut self, input: Input) {
        let machine = self.ceremony.take().unwrap();
        let (before, cancels) = (machine.phase(), matches!(input, Input::Cancel));
        let step = machine.step(input);
        let after = step.state.phase();
        let mut listed = TRANSITIONS.iter().filter(|(from, ..)| *from == before);
        let known = listed.any(|(_, _, to)| to.contains(&after));
        assert!(
            before == after || cancels || known,
            "{before:?} -> {after:?} is not in the table"
        );
        self.ceremony = Some(step.state);
        self.effects(step.effects);
    }

    fn effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Store(record) => self.records.push(*record),
                Effect::Send { client, message } => self.deliver(client, message),
                Effect::Propose(propose) => {
                    for to in &propose.clients {
                        let path = propose.tree.proposal_for(to.position, &propose.funding_tx);
                        let path = path.unwrap();
                        let proposal = Proposal {
                            round: propose.round,
                            path,
                            sums: to.sums.clone(),
                        };
                        self.deliver(to.client, ToClient::Proposal(Box::new(proposal)));
                    }
                }
                Effect::Refuse { client, reason, .. } => self.refused.push((client, reason)),
                Effect::Wake { round, phase, .. } => self.wake = Some((round, phase)),
                Effect::BuildFunding { round, output } => {
                    let seed = zeroize::Zeroizing::new(bytes(9, "seed", round.attempt.0.into()));
                    let funding = Funding {
                        tx: funding(output),
                        vout: 0,
                        seed,
                    };
                    self.to_coordinator
                        .push_back(Input::FundingReady(Box::new(funding)));
                }
                Effect::OpenChannels { round, tree } => self.open_channels(round, &tree),
                Effect::Emit(event) => self.events.push(event),
                Effect::Fund { round, tree, .. } => self.funded.push((round, tree)),
                Effect::Finished(outcome) => self.outcome = Some(outcome),
            }
        }
    }

    fn deliver(&mut self, client: ClientId, message: ToClient) {
        self.sent.push((client, message.clone()));
        let (mut wallet, fault) = self.wallets.remove(&client).unwrap();
        self.answer(client, &mut wallet, fault, message);
        self.wallets.insert(client, (wallet, fault));
    }

    fn answer(&mut self, client: ClientId, wallet: &mut Wallet, fault: Fault, message: ToClient) {
        match (&message, fault) {
            (ToClient::Invitation(_), Fault::NeverJoins)
            | (ToClient::ConfirmPing(_), Fault::SilentAfterJoin)
            | (ToClient::Proposal(_), Fault::SilentAfterProposal)
            | (ToClient::Finals(_), Fault::SilentAfterFinals) => return,
            _ => {}
        }
        let held = wallet.signer.as_ref().map(Signer::round);
        let step = match message {
            ToClient::Invitation(invitation) if held == Some(invitation.round) => {
                let signer = wallet.signer.take().unwrap();
                signer.step(SignerInput::Invitation(invitation))
            }
            ToClient::Invitation(invitation) => {
                let keys = wallet.keys();
                let channels =
                    Arc::new(TestChannels(secret(wallet.number, "channel", wallet.draws)));
                let pin = wallet.joins.first().map(|join| join.common_pin);
                let (number, mut draws) = (wallet.number, wallet.draws << 32);
                let mut seed = || {
                    draws += 1;
                    bytes(number, "nonce", draws)
                };
                let limits = Limits::default_for(Network::Regtest);
                Signer::invited(*invitation, limits, keys, pin, &mut seed, channels)
            }
            other => {
                let Some(signer) = wallet.signer.take() else {
                    return;
                };
                let input = match other {
                    ToClient::ConfirmPing(round) => SignerInput::ConfirmPing(round),
                    ToClient::Proposal(proposal) => SignerInput::Proposal {
                        known_factory: self.refuse_proposals,
                        proposal,
                        tip: TIP,
                    },
                    ToClient::Finals(finals) => SignerInput::Finals(finals),
                    ToClient::Failed {
                        round,
                        reason,
                        again,
                    } => SignerInput::Failed {
                        round,
                        reason,
                        again,
                    },
                    ToClient::Invitation(_) | ToClient::Factory(_) => return,
                };
                signer.step(input)
            }
        };
        wallet.moved(step.state);
        self.signer_effects(client, wallet, fault, step.effects);
    }

    /// Both Lightning nodes of every member.
    fn open_channels(&mut self, round: Round, tree: &crate::tree::Tree) {
        for member in &tree.spec().members {
            let client = member.client;
            let Some((mut wallet, fault)) = self.wallets.remove(&client) else {
                continue;
            };
            assert_eq!(wallet.expected, Some(tree.id()), "opened before the ack");
            let (here, there) = match fault {
                Fault::SilentAfterAck => (true, None),
                Fault::ChannelRefused => (false, None),
                Fault::RefusesChannel => (true, Some(Err("another script".to_owned()))),
                _ => (true, Some(Ok(()))),
            };
            self.to_coordinator.push_back(if here {
                Input::ChannelOpened { round, client }
            } else {
                let why = "the peer broke off".to_owned();
                Input::ChannelRefused { round, client, why }
            });
            if let (Some(result), Some(signer)) = (there, wallet.signer.take()) {
                wallet.before = Some(signer.phase());
                let step = signer.step(SignerInput::Channel(result));
                wallet.moved(step.state);
                self.signer_effects(client, &mut wallet, fault, step.effects);
            }
            self.wallets.insert(client, (wallet, fault));
        }
    }

    fn signer_effects(
        &mut self,
        client: ClientId,
        wallet: &mut Wallet,
        fault: Fault,
        effects: Vec<SignerEffect>,
    ) {
        for effect in effects {
            match effect {
                SignerEffect::StoreJoin(join) => {
                    let fresh = wallet.joins.iter().all(|held| held.leaf_id != join.leaf_id);
                    assert!(fresh, "I11: a leaf id twice");
                    wallet.joins.push(*join);
                }
                SignerEffect::LoadSigned(_) => {
                    let input = SignerInput::Signed(wallet.signed.clone());
                    let signer = wallet.signer.take().unwrap();
                    wallet.before = Some(signer.phase());
                    let step = signer.step(input);
                    wallet.moved(step.state);
                    self.signer_effects(client, wallet, fault, step.effects);
                }
                SignerEffect::StoreSigned(records) => wallet.signed.extend(records),
                SignerEffect::StoreKit(kit) => {
                    wallet.kits.insert(kit.factory_id, kit.to_json().unwrap());
                }
                SignerEffect::Rehearse(factory) => {
                    let read = ExitKit::from_json(&wallet.kits[&factory]);
                    let result = read.and_then(|kit| kit.verify()).map_err(|e| e.to_string());
                    let input = SignerInput::Rehearsed(result);
                    let signer = wallet.signer.take().unwrap();
                    wallet.before = Some(signer.phase());
                    let step = signer.step(input);
                    wallet.moved(step.state);
                    self.signer_effects(client, wallet, fault, step.effects);
                }
                SignerEffect::ExpectChannel(factory) => {
                    assert!(
                        wallet.kits.contains_key(&factory),
                        "expected before it is kept"
                    );
                    wallet.expected = Some(factory);
                }
                SignerEffect::Send(message) => self.send(client, wallet, fault, message),
                SignerEffect::Emit(_) => {}
                SignerEffect::Finished(outcome) => wallet.outcome = Some(outcome),
            }
        }
    }

    fn send(
        &mut self,
        client: ClientId,
        wallet: &Wallet,
        fault: Fault,
        mut message: ToCoordinator,
    ) {
        if let ToCoordinator::Partials(partials) = &mut message {
            self.check_nonces(wallet);
            if fault == Fault::BadPartial {
                partials.partials[1] = PartialSignature::from_bytes(&[5; 32]).unwrap();
            }
            if fault == Fault::BadChannelSignature {
                partials.channel_signature = ecdsa::Signature::from_compact(&[5; 64]).unwrap();
            }
            if fault == Fault::Declines {
                let reason = DeclineReason::Unable("disk full".into());
                message = ToCoordinator::Decline {
                    round: partials.round,
                    reason,
                };
            }
        }
        let times = if fault == Fault::Duplicates { 2 } else { 1 };
        for _ in 0..times {
            let input = match message.clone() {
                ToCoordinator::Join(join) => {
                    let lsp_channel_key = public(&lsp_channel(join.leaf_id));
                    Input::Joined {
                        client,
                        join,
                        lsp_channel_key,
                    }
                }
                message => Input::Message { client, message },
            };
            self.to_coordinator.push_back(input);
        }
    }

    /// I3: no nonce ever signs under two sums.
    fn check_nonces(&mut self, wallet: &Wallet) {
        for record in wallet
            .signed
            .iter()
            .filter(|r| r.own_nonce != crate::guard::NO_NONCE)
        {
            let before = self.used_nonces.insert(record.own_nonce, record.sum);
            assert!(
                before.is_none_or(|sum| sum == record.sum),
                "I3: a nonce signed twice"
            );
        }
    }

    fn blamed(&self) -> BTreeSet<ClientId> {
        let blamed = self.events.iter().filter_map(|event| match event {
            Event::Blamed { client, .. } => Some(*client),
            _ => None,
        });
        blamed.collect()
    }

    /// Everything that must hold when a ceremony has ended well.
    fn check_complete(&self, faults: &[Fault]) {
        let Some(Outcome::Complete { factory }) = self.outcome else {
            panic!("no factory: {:?} {:?}", self.outcome, self.events)
        };
        let honest = faults.iter().filter(|fault| !fault.leaves_out()).count();
        let (_, tree) = &self.funded[0];
        assert_eq!(self.funded.len(), 1, "I4");
        assert_eq!(tree.id(), factory);
        assert_eq!(tree.spec().members.len(), honest);
        for (client, (wallet, fault)) in &self.wallets {
            let guilty = matches!(fault, Fault::BadPartial | Fault::BadChannelSignature);
            assert_eq!(self.blamed().contains(client), guilty, "I6: {fault:?}");
            if !fault.leaves_out() {
                // I2: the whole exit from the own disk.
                let kit = ExitKit::from_json(&wallet.kits[&factory]).unwrap();
                kit.verify().unwrap();
                assert_eq!(wallet.outcome, Some(SignerOutcome::Opened { factory }));
                assert_eq!(wallet.signer.as_ref().unwrap().phase(), SignerPhase::Opened);
            }
        }
        let stored = |wanted: fn(&Record) -> bool| self.records.iter().any(wanted);
        assert!(stored(|r| matches!(r, Record::Completed { .. })));
        assert!(stored(|r| matches!(r, Record::Ready { .. })));
    }
}

impl Wallet {
    /// Keeps the machine after a step, which must be one of the table's.
    fn moved(&mut self, signer: Signer) {
        let after = signer.phase();
        if let Some(before) = self.before.take() {
            let mut listed = super::signer::TRANSITIONS
                .iter()
                .filter(|(from, ..)| *from == before);
            let known = listed.any(|(_, _, to)| to.contains(&after));
            assert!(
                before == after || known,
                "{before:?} -> {after:?} is not in the table"
            );
        }
        self.signer = Some(signer);
    }

    /// Fresh keys for every attempt.
    fn keys(&mut self) -> JoinKeys {
        self.draws += 1;
        let (number, draw) = (self.number, self.draws);
        let mut join_nonce = [0; 16];
        join_nonce.copy_from_slice(&bytes(number, "join", draw)[..16]);
        let payout = public(&secret(number, "payout", draw))
            .x_only_public_key()
            .0;
        JoinKeys {
            join_nonce,
            leaf_id: LeafId::derive(&join_nonce, 0),
            factory_secret: secret(number, "factory", draw),
            payout_script: crate::output::payout(&Secp256k1::new(), payout),
            channel_key: public(&secret(number, "channel", draw)),
        }
    }
}

fn lite() -> FactoryParams {
    FactoryParams::profile(Profile::Lite, Network::Regtest)
}

fn run(faults: &[Fault]) -> Sim {
    let mut sim = Sim::new(faults, lite());
    sim.run();
    sim
}

#[test]
fn honest_clients_get_a_factory_in_one_attempt() {
    for clients in [2, 3, 8, 13] {
        let faults = vec![Fault::Honest; clients];
        let sim = run(&faults);
        sim.check_complete(&faults);
        assert_eq!(sim.funded[0].0.attempt, Attempt(1));
        assert!(sim.refused.is_empty());
    }
}

#[test]
fn each_misbehaviour_costs_only_its_author() {
    for fault in FAULTS {
        let faults = [Fault::Honest, fault, Fault::Honest, Fault::Honest];
        let sim = run(&faults);
        sim.check_complete(&faults);
        if fault == Fault::Duplicates {
            assert!(sim.refused.is_empty(), "{:?}", sim.refused);
        }
    }
}

#[test]
fn all_policies_and_depths_sign() {
    let mut reclaim = lite();
    reclaim.expiry_policy = crate::params::ExpiryPolicy::LspReclaim;
    let deep = FactoryParams::profile(Profile::Deep, Network::Regtest);
    for params in [
        deep,
        FactoryParams::profile(Profile::Standard, Network::Regtest),
    ] {
        let faults = [Fault::Honest; 6];
        let mut sim = Sim::new(&faults, params);
        sim.run();
        sim.check_complete(&faults);
    }
    // By default a wallet does not accept a factory without timeouts.
    let mut sim = Sim::new(&[Fault::Honest; 3], reclaim);
    sim.run();
    assert!(matches!(sim.outcome, Some(Outcome::Failed { .. })));
}

/// Whoever reads the seed of the coordinator's nonces computes its factory key from any signature.
#[test]
fn the_seed_of_the_coordinators_nonces_is_not_printed() {
    let output = TxOut {
        value: Amount::ZERO,
        script_pubkey: ScriptBuf::new(),
    };
    let input = Input::FundingReady(Box::new(Funding {
        tx: funding(output),
        vout: 0,
        seed: zeroize::Zeroizing::new([0xa7; 32]),
    }));
    let printed = format!("{input:?} {input:#?}");
    assert!(!printed.contains("167"), "{printed}");
    assert!(!printed.contains("a7a7"), "{printed}");
    assert!(printed.contains("vout: 0"), "{printed}");
}

/// Whoever is left out is told at once: its machine ends, and its secret nonces with it.
#[test]
fn whoever_is_left_out_is_told() {
    let ended = |sim: &Sim, number: u64| {
        let (wallet, _) = &sim.wallets[&client_id(number)];
        wallet.signer.as_ref().unwrap().phase() == SignerPhase::Finished
    };
    // A factory stands without it.
    let sim = run(&[Fault::Honest, Fault::SilentAfterJoin, Fault::Honest]);
    assert!(matches!(sim.outcome, Some(Outcome::Complete { .. })));
    assert!(ended(&sim, 2));
    // Too few are left.
    let sim = run(&[Fault::Honest, Fault::SilentAfterJoin]);
    assert!(matches!(sim.outcome, Some(Outcome::Failed { .. })));
    assert!(ended(&sim, 1) && ended(&sim, 2));
    // It was the last attempt.
    let last = Terms {
        max_attempts: 1,
        ..terms(lite())
    };
    let faults = [Fault::Honest, Fault::BadPartial, Fault::Honest];
    let mut sim = Sim::with_terms(&faults, last, Attempt(1), BTreeMap::new());
    sim.run();
    let reason = AbortReason::TooManyAttempts;
    assert_eq!(sim.outcome, Some(Outcome::Failed { reason }));
    assert!((1..=3).all(|number| ended(&sim, number)));
}

#[test]
fn too_few_clients_fail_the_ceremony() {
    let sim = run(&[Fault::Honest, Fault::NeverJoins]);
    let reason = AbortReason::TooFewClients { left: 1 };
    assert_eq!(sim.outcome, Some(Outcome::Failed { reason }));
    assert!(sim.funded.is_empty());
}

#[test]
fn attempts_are_bounded() {
    let mut faults = vec![Fault::Honest; 3];
    faults.extend(vec![Fault::SilentAfterFinals; 2]);
    let mut sim = Sim::new(&faults, lite());
    sim.refuse_proposals = true;
    sim.run();
    assert!(matches!(sim.outcome, Some(Outcome::Failed { .. })));
    assert!(sim.funded.is_empty());
}

#[test]
fn a_restarted_coordinator_goes_on_with_the_next_attempt_and_the_same_pin() {
    let faults = [Fault::Honest; 4];
    let mut sim = Sim::new(&faults, lite());
    // Everything up to the proposals, then the coordinator dies with its nonces.
    while sim.ceremony.as_ref().unwrap().phase() != Phase::Signing {
        let input = sim.to_coordinator.pop_front().unwrap();
        sim.input(input);
    }
    let wallets = std::mem::take(&mut sim.wallets);
    let mut again = Sim::from_attempt(&faults, lite(), Attempt(2), wallets);
    again.run();
    again.check_complete(&faults);
    for (wallet, _) in again.wallets.values() {
        assert_eq!(wallet.joins.len(), 2, "new keys for the new attempt");
        assert!(wallet.joins.iter().all(|join| join.common_pin == pin()));
    }
}

#[test]
fn late_foreign_and_early_messages_are_refused_and_change_nothing() {
    let faults = [Fault::Honest; 3];
    let mut sim = Sim::new(&faults, lite());
    let round = sim.ceremony.as_ref().unwrap().round();
    let other = Round {
        attempt: Attempt(7),
        ..round
    };
    let (member, stranger) = (client_id(1), client_id(99));
    let factory = FactoryId([0; 32]);
    for (client, message) in [
        (member, ToCoordinator::Present(other)),
        (stranger, ToCoordinator::Present(round)),
        (member, ToCoordinator::Ack { round, factory }),
        (member, ToCoordinator::Present(round)),
    ] {
        sim.input(Input::Message { client, message });
    }
    let reasons: Vec<_> = sim
        .refused
        .iter()
        .map(|(_, reason)| reason.clone())
        .collect();
    use RefuseReason::{NotInvited, OutOfTurn, UnknownRound};
    assert_eq!(reasons, [UnknownRound, NotInvited, OutOfTurn, OutOfTurn]);
    sim.run();
    sim.check_complete(&faults);
}

#[test]
fn a_client_that_comes_back_is_sent_what_it_missed() {
    let faults = [Fault::Honest; 3];
    let mut sim = Sim::new(&faults, lite());
    let client = client_id(2);
    for phase in [
        Phase::Joining,
        Phase::Signing,
        Phase::Acking,
        Phase::Opening,
    ] {
        while sim.ceremony.as_ref().unwrap().phase() != phase {
            let input = sim.to_coordinator.pop_front().unwrap();
            sim.input(input);
        }
        sim.input(Input::Gone(client));
        sim.input(Input::Connected(client));
    }
    sim.run();
    sim.check_complete(&faults);
}

/// A channel that stood and is closed again before all stand costs a new attempt: no funding is signed for it.
#[test]
fn a_channel_closed_again_is_not_funded() {
    let mut sim = Sim::new(&[Fault::Honest; 3], lite());
    while sim.ceremony.as_ref().unwrap().phase() != Phase::Opening {
        let input = sim.to_coordinator.pop_front().unwrap();
        sim.input(input);
    }
    let round = sim.ceremony.as_ref().unwrap().round();
    let (client, why) = (client_id(2), "closed".to_owned());
    sim.input(Input::ChannelOpened { round, client });
    sim.input(Input::ChannelRefused { round, client, why });
    sim.run();
    let attempts: Vec<_> = sim.funded.iter().map(|(round, _)| round.attempt).collect();
    assert_eq!(attempts, [Attempt(2)]);
    assert_eq!(sim.funded[0].1.spec().members.len(), 2);
}

/// Its own last answer to the ping and a decline, in one breath: the funding transaction that the
/// wallet makes meanwhile is for an attempt that is over.
#[test]
fn a_decline_before_the_funding_is_made_costs_only_its_author() {
    let faults = [Fault::Honest; 3];
    let mut sim = Sim::new(&faults, lite());
    let round = sim.ceremony.as_ref().unwrap().round();
    while sim.ceremony.as_ref().unwrap().phase() != Phase::Funding {
        let input = sim.to_coordinator.pop_front().unwrap();
        sim.input(input);
    }
    let client = client_id(2);
    let reason = DeclineReason::Unable("changed its mind".into());
    let message = ToCoordinator::Decline { round, reason };
    sim.input(Input::Message { client, message });
    assert!(matches!(
        sim.to_coordinator.front(),
        Some(Input::FundingReady(_))
    ));
    sim.run();
    assert!(matches!(sim.outcome, Some(Outcome::Complete { .. })));
    assert_eq!(sim.funded[0].1.spec().members.len(), 2);
}

#[test]
fn cancelling_ends_it_at_any_phase() {
    for phase in [
        Phase::Joining,
        Phase::Confirming,
        Phase::Funding,
        Phase::Signing,
        Phase::Acking,
        Phase::Opening,
    ] {
        let mut sim = Sim::new(&[Fault::Honest; 3], lite());
        while sim.ceremony.as_ref().unwrap().phase() != phase {
            let input = sim.to_coordinator.pop_front().unwrap();
            sim.input(input);
        }
        sim.input(Input::Cancel);
        let reason = AbortReason::Cancelled;
        assert_eq!(sim.outcome, Some(Outcome::Failed { reason }));
        assert!(sim.funded.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("SUPERSCALAR_LONG").is_some() { 300 } else { 24 }))]
    #[test]
    fn any_mix_of_misbehaviours_ends_well_for_the_honest(
        picks in proptest::collection::vec(0usize..FAULTS.len(), 2..9),
    ) {
        let faults: Vec<Fault> = picks.iter().map(|i| FAULTS[*i]).collect();
        let honest = faults.iter().filter(|fault| !fault.leaves_out()).count();
        let sim = run(&faults);
        if honest >= 2 {
            sim.check_complete(&faults);
        } else {
            prop_assert!(sim.funded.is_empty());
        }
    }
}
