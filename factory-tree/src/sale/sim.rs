//! Both sides of sales against each other, over a network in memory, with disks that survive the
//! crashes and machines that do not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bitcoin::secp256k1::ecdsa;
use bitcoin::{Amount, OutPoint};
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::cosigner::*;
use super::message::*;
use super::rules::{Agreed, Place, Role};
use super::seller::*;
use super::tests::factory;
use super::*;
use crate::ceremony::message::{DeclineReason, Round};
use crate::guard::SignedRecord;
use crate::ids::{Attempt, ClientId};
use crate::kit::ExitKit;
use crate::musig::{Message, PartialSignature, PublicNonce};
use crate::purpose::Purpose;
use crate::testing::{ATTEMPT, BIRTH, CEREMONY, TestFactory, bytes};

mod hostile;
mod party;
mod properties;

use party::{Channels, Fault, Lsp, Wallet};

/// Changes what a client is told.
type Lie = fn(&mut ToCoSigner);
/// Changes what it agreed to.
type Other = fn(&mut Agreed);

#[derive(Debug)]
enum Mail {
    ToClient(u32, ToCoSigner),
    ToSeller(u32, ToSeller),
    ChainStored,
}

/// A stock, everybody who shares it, and the LSP.
struct World {
    factory: TestFactory,
    wallets: BTreeMap<u32, Wallet>,
    /// The LSP's disk.
    records: Vec<SaleRecord>,
    seller: Option<Seller>,
    mail: VecDeque<Mail>,
    outcome: Option<SellerOutcome>,
    blamed: BTreeSet<u32>,
    acked: Vec<u32>,
    draws: u64,
    attempt: u32,
    /// What the LSP tells this client is changed, and what that agreed to.
    lie: Option<(u32, Lie, Other)>,
    /// The client whose disk does not keep what it is given.
    broken_disk: Option<u32>,
    /// The LSP forgets, or denies, what terms are bound.
    forgets: bool,
    /// The LSP's nonces, with everybody's they were first used with.
    lsp_nonces: BTreeMap<[u8; 66], Vec<Vec<PublicNonce>>>,
    /// An attempt in which nothing more happens is left as it is.
    attempts_end: bool,
    /// Effects until the LSP (`None`) or this client crashes.
    crash: Option<(Option<u32>, usize)>,
    /// Every nonce that ever signed, with what.
    nonces: BTreeMap<[u8; 66], ([u8; 66], Message)>,
}

impl World {
    fn new(k: u8) -> Self {
        Self::of(factory(k))
    }

    fn of(factory: TestFactory) -> Self {
        let signed = factory.sign();
        let clients = signed.factory.stock(0).clients();
        let wallets = clients.map(|position| {
            let wallet = Wallet {
                kit: signed.kit(position).to_json().unwrap(),
                signed: Vec::new(),
                pending: None,
                machine: None,
                fault: Fault::Honest,
                refused: Vec::new(),
            };
            (position, wallet)
        });
        Self {
            wallets: wallets.collect(),
            factory: signed.factory,
            records: Vec::new(),
            seller: None,
            mail: VecDeque::new(),
            outcome: None,
            blamed: BTreeSet::new(),
            acked: Vec::new(),
            draws: 0,
            attempt: 0,
            lie: None,
            broken_disk: None,
            forgets: false,
            lsp_nonces: BTreeMap::new(),
            attempts_end: false,
            crash: None,
            nonces: BTreeMap::new(),
        }
    }

    fn id(&self, position: u32) -> ClientId {
        self.factory.clients[position as usize].id()
    }

    fn position(&self, client: ClientId) -> u32 {
        let mut positions = self.wallets.keys();
        *positions
            .find(|position| self.id(**position) == client)
            .unwrap()
    }

    fn seed(&mut self) -> [u8; 32] {
        self.draws += 1;
        bytes(77, "nonce", self.draws)
    }

    fn sold(&self) -> Vec<&SoldRecord> {
        let sold = self.records.iter().filter_map(|record| match record {
            SaleRecord::Sold(sold) => Some(sold.as_ref()),
            _ => None,
        });
        sold.collect()
    }

    /// The stock as the LSP knows it.
    fn stock(&self) -> Stock {
        let mut stock = self.factory.stock(0);
        for sold in self.sold() {
            stock.push(sold.sale.clone()).unwrap();
        }
        stock
    }

    /// The terms that are bound and not sold.
    fn bound(&self) -> Option<Sale> {
        let next = self.stock().next_number();
        self.records.iter().rev().find_map(|record| match record {
            SaleRecord::Bound { sale, .. } if sale.number == next => Some(sale.clone()),
            _ => None,
        })
    }

    fn setup(&self, stock: Stock, sale: Sale) -> Setup {
        let numbers = 1..=stock.params().chain_depth_max;
        let secrets = numbers.flat_map(|n| stock.clients().map(move |c| (n, c)));
        let channels = secrets.map(|(n, c)| self.factory.sold_secrets(n, c).1);
        let factory = Round {
            ceremony: CEREMONY,
            attempt: ATTEMPT,
        };
        Setup {
            bound: self.bound().filter(|_| !self.forgets),
            clients: stock.clients().map(|c| self.id(c)).collect(),
            round: SaleRound {
                sale: sale.id,
                attempt: Attempt(self.attempt),
            },
            terms: SaleTerms {
                until: BIRTH,
                step_seconds: 5,
            },
            factory,
            signer: Arc::new(Lsp {
                factory: self.factory.lsp,
                channels: Channels(channels.collect()),
            }),
            stock,
            sale,
        }
    }

    /// One attempt, until it ends or nobody does anything any more.
    fn attempt(&mut self, sale: Sale) -> SellerOutcome {
        self.attempt += 1;
        self.outcome = None;
        let setup = self.setup(self.stock(), sale);
        let seed = Zeroizing::new(self.seed());
        let step = Seller::start(setup, seed).unwrap();
        self.seller = Some(step.state);
        self.seller_effects(step.effects);
        self.run()
    }

    /// Attempts with the same terms until they are sold.
    fn sell(&mut self, sale: &Sale) {
        for _ in 0..6 {
            let terms = self.bound().unwrap_or_else(|| sale.clone());
            if self.attempt(terms) == SellerOutcome::Sold {
                return;
            }
        }
        panic!("not sold: {:?}", self.records);
    }

    fn run(&mut self) -> SellerOutcome {
        for _ in 0..400 {
            if let Some(mail) = self.mail.pop_front() {
                self.deliver(mail);
            } else if let Some(outcome) = self.outcome.clone() {
                return outcome;
            } else if self.attempts_end {
                return SellerOutcome::Sold;
            } else {
                self.stalled();
            }
        }
        panic!("does not end: {:?}", self.seller);
    }

    /// Nothing is under way: deadlines come due, crashed machines start again.
    fn stalled(&mut self) {
        let Some(seller) = &self.seller else {
            return self.restart_seller();
        };
        let (round, phase) = (seller.round(), seller.phase());
        if phase < Phase::Completing {
            return self.seller_input(SellerInput::Deadline { round, phase });
        }
        let positions: Vec<u32> = self.wallets.keys().copied().collect();
        for position in positions {
            self.restart_client(position);
            let client = self.id(position);
            self.seller_input(SellerInput::Connected(client));
        }
    }

    fn restart_seller(&mut self) {
        let held = self.stock();
        let last = self.sold().last().copied().cloned();
        match last {
            Some(sold) if sold.round.attempt == Attempt(self.attempt) => {
                let mut before = self.factory.stock(0);
                for sale in &held.sales()[..held.sales().len() - 1] {
                    before.push(sale.clone()).unwrap();
                }
                let setup = self.setup(before, sold.sale.clone());
                self.seller = Some(Seller::resume(setup, sold).unwrap());
            }
            _ => {
                let reason = FailReason::Restarted;
                let by = Vec::new();
                let bound = self.bound().is_some();
                self.outcome = Some(SellerOutcome::Failed { reason, by, bound });
            }
        }
    }

    fn restart_client(&mut self, position: u32) {
        let secrets = self.secrets(position);
        let wallet = self.wallets.get_mut(&position).unwrap();
        if wallet.machine.is_some() {
            return;
        }
        if let Some(pending) = wallet.pending.clone() {
            wallet.machine = Some(CoSigner::resume(pending, wallet.kit(), secrets).unwrap());
        }
    }

    fn secrets(&self, position: u32) -> Secrets {
        let numbers = 1..=8;
        let channels = numbers.map(|n| self.factory.sold_secrets(n, position).0);
        Secrets {
            factory_secret: self.factory.clients[position as usize].factory,
            channel_signer: Arc::new(Channels(channels.collect())),
        }
    }

    fn deliver(&mut self, mail: Mail) {
        match mail {
            Mail::ToClient(position, message) => self.tell(position, message),
            Mail::ToSeller(position, message) => {
                let client = self.id(position);
                self.seller_input(SellerInput::Message { client, message });
            }
            Mail::ChainStored => self.seller_input(SellerInput::ChainStored),
        }
    }

    fn seller_input(&mut self, input: SellerInput) {
        if let Some(machine) = self.seller.take() {
            let step = machine.step(input);
            self.seller = Some(step.state);
            self.seller_effects(step.effects);
        }
    }

    /// Whether the party crashes instead of its next effect.
    fn crashes(&mut self, party: Option<u32>) -> bool {
        match &mut self.crash {
            Some((who, left)) if *who == party => {
                if *left == 0 {
                    self.crash = None;
                    return true;
                }
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    fn seller_effects(&mut self, effects: Vec<SellerEffect>) {
        for effect in effects {
            if self.crashes(None) {
                self.seller = None;
                // What it sent is on its way; what it was told is lost.
                self.mail.retain(|mail| matches!(mail, Mail::ToClient(..)));
                return;
            }
            match effect {
                SellerEffect::Store(record) => {
                    if let SaleRecord::Chain { .. } = *record {
                        self.mail.push_back(Mail::ChainStored);
                    }
                    self.records.push(*record);
                }
                SellerEffect::Send { client, message } => {
                    if let ToCoSigner::Sign(sign) = &message {
                        self.check_lsp_nonces(sign);
                    }
                    let position = self.position(client);
                    self.mail.push_back(Mail::ToClient(position, message));
                }
                SellerEffect::Emit(SellerEvent::Acked { client, .. }) => {
                    self.acked.push(self.position(client));
                }
                SellerEffect::Emit(SellerEvent::Blamed { client, .. }) => {
                    self.blamed.insert(self.position(client));
                }
                SellerEffect::Emit(_) | SellerEffect::Wake { .. } | SellerEffect::Refuse { .. } => {
                }
                SellerEffect::Finished(outcome) => self.outcome = Some(outcome),
            }
        }
    }

    /// What an honest client agrees to: what the sale says, if that is its order.
    fn agreed(&self, position: u32, sale: &Sale) -> Agreed {
        let ours = self
            .factory
            .sold_channel(sale.number, position, Amount::ZERO);
        let role = if sale.bought.position == position {
            Role::Buyer {
                ordered: sale.bought.capacity,
            }
        } else {
            Role::Mate {
                least_bonus: Amount::ZERO,
            }
        };
        Agreed {
            role,
            consent: true,
            place: Some(Place {
                leaf_id: ours.leaf_id,
                channel_key: ours.channel_key,
            }),
            place_used: false,
            tip: BIRTH,
        }
    }

    fn tell(&mut self, position: u32, mut message: ToCoSigner) {
        if let Some((_, lie, _)) = self.lie.filter(|(to, ..)| *to == position) {
            lie(&mut message);
        }
        if self.wallets[&position].fault == Fault::NeverJoins {
            return;
        }
        let step = match message {
            ToCoSigner::Offer(offer) => self.answer(position, *offer),
            ToCoSigner::Sign(_) if self.wallets[&position].fault == Fault::NeverSigns => return,
            other => {
                if let ToCoSigner::Finals(_) = other {
                    self.restart_client(position);
                }
                let wallet = self.wallets.get_mut(&position).unwrap();
                let Some(machine) = wallet.machine.take() else {
                    return;
                };
                machine.step(match other {
                    ToCoSigner::Sign(sign) => CoSignerInput::Sign(sign),
                    ToCoSigner::Finals(finals) => CoSignerInput::Finals(finals),
                    ToCoSigner::Failed { round, reason } => CoSignerInput::Failed { round, reason },
                    ToCoSigner::Offer(_) => unreachable!(),
                })
            }
        };
        self.moved(position, step);
    }

    fn answer(&mut self, position: u32, offer: Offer) -> CoSignerStep {
        let machine = self.wallets.get_mut(&position).unwrap().machine.take();
        if let Some(machine) = machine.filter(|machine| machine.round() == offer.round) {
            return machine.step(CoSignerInput::Offer(Box::new(offer)));
        }
        let mut agreed = self.agreed(position, &offer.sale);
        if let Some((.., other)) = self.lie.filter(|(to, ..)| *to == position) {
            other(&mut agreed);
        }
        let (kit, secrets) = (self.wallets[&position].kit(), self.secrets(position));
        let mut seeds: Vec<[u8; 32]> = (0..16).map(|_| self.seed()).collect();
        let mut seed = || seeds.pop().unwrap();
        CoSigner::offered(offer, kit, agreed, secrets, &mut seed)
    }

    fn moved(&mut self, position: u32, step: CoSignerStep) {
        self.wallets.get_mut(&position).unwrap().machine = Some(step.state);
        for effect in step.effects {
            if self.crashes(Some(position)) {
                self.wallets.get_mut(&position).unwrap().machine = None;
                return;
            }
            self.client_effect(position, effect);
        }
    }

    fn client_effect(&mut self, position: u32, effect: CoSignerEffect) {
        let wallet = self.wallets.get_mut(&position).unwrap();
        let mut next = None;
        match effect {
            CoSignerEffect::LoadSigned(outpoints) => {
                let known = wallet.signed.iter();
                let known = known.filter(|r| outpoints.contains(&r.outpoint)).copied();
                next = Some(CoSignerInput::Signed(known.collect()));
            }
            CoSignerEffect::StoreSigned { records, pending } => {
                for record in &records {
                    wallet.store(*record);
                }
                wallet.pending = Some(*pending);
                self.check_nonces(&records);
            }
            CoSignerEffect::StoreKit(kit) => {
                wallet.kit = kit.to_json().unwrap();
            }
            CoSignerEffect::Rehearse(_) => {
                let mut read = wallet.kit();
                if self.broken_disk == Some(position) {
                    read.txs.pop();
                }
                let result = read.verify().map_err(|e| e.to_string());
                next = Some(CoSignerInput::Rehearsed(result));
            }
            CoSignerEffect::Send(message) => {
                let message = wallet.distort(message);
                self.mail.push_back(Mail::ToSeller(position, message));
            }
            CoSignerEffect::Finished(CoSignerOutcome::Refused { reason }) => {
                wallet.refused.push(reason);
            }
            CoSignerEffect::Emit(_) | CoSignerEffect::Finished(_) => {}
        }
        if let Some(input) = next {
            let machine = self.wallets.get_mut(&position).unwrap().machine.take();
            let step = machine.unwrap().step(input);
            self.moved(position, step);
        }
    }

    /// I3 for the LSP: a nonce meets the same other nonces for ever.
    fn check_lsp_nonces(&mut self, sign: &Sign) {
        for nonce in &sign.nonces[0] {
            let used = self.lsp_nonces.entry(nonce.to_bytes());
            let with = used.or_insert_with(|| sign.nonces.clone());
            assert_eq!(*with, sign.nonces, "I3");
        }
    }

    /// I3: a nonce signs one message under one sum.
    fn check_nonces(&mut self, records: &[SignedRecord]) {
        for record in records
            .iter()
            .filter(|r| r.own_nonce != crate::guard::NO_NONCE)
        {
            let signed = (record.sum, record.sighash);
            let earlier = self.nonces.insert(record.own_nonce, signed);
            assert!(earlier.is_none_or(|earlier| earlier == signed), "I3");
        }
    }
}
