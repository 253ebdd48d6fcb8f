//! A ladder driven by [`due`] alone, block by block: silent clients, clients that keep their keys,
//! downtime, reorgs, late births. The world keeps its own books; the view is made from them anew
//! for every block, as an adapter makes it from its database.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, Network};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::ids::{ClientId, FactoryId};
use crate::params::{ExpiryPolicy, FactoryParams, Profile, Schedule};
use crate::shape::{NodeKind, Shape};
use crate::testing::cases;
use crate::units::{Blocks, Height};

mod chain;

use chain::{confirm, others, publish, reclaim};

const CAPACITY: Amount = Amount::from_sat(200_000);

/// A transaction of ours or of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Tx {
    sent: Option<Height>,
    confirmed: Option<Height>,
}

impl Tx {
    fn send(&mut self, height: Height) {
        self.sent = self.sent.or(Some(height));
    }
}

#[derive(Clone, Copy, Debug)]
struct Client {
    silent: bool,
    keeps_keys: bool,
}

#[derive(Clone, Debug)]
struct Member {
    client: usize,
    stored: Progress,
    balance: Amount,
    warned: Option<Warning>,
    parts_left: u8,
    /// The spend of its channel output on the chain.
    close: Tx,
}

#[derive(Clone, Debug)]
struct Factory {
    id: FactoryId,
    rung: u32,
    params: FactoryParams,
    schedule: Schedule,
    shape: Shape,
    funding: Tx,
    was_confirmed: bool,
    reap: Tx,
    timeout: Tx,
    nodes: BTreeMap<usize, Tx>,
    branches: BTreeMap<usize, Tx>,
    members: Vec<Member>,
    loss_reported: Option<Amount>,
    /// How often it was reported that the loss is larger than known.
    reports: u32,
    /// Whether we were away at any time from `E` on.
    missed: bool,
}

impl Factory {
    fn txs(&mut self) -> impl Iterator<Item = &mut Tx> {
        let own = [&mut self.funding, &mut self.reap, &mut self.timeout];
        let tree = self.nodes.values_mut().chain(self.branches.values_mut());
        let closes = self.members.iter_mut().map(|member| &mut member.close);
        own.into_iter().chain(tree).chain(closes)
    }

    fn confirmed(&self, node: usize) -> Option<Height> {
        self.nodes.get(&node).and_then(|tx| tx.confirmed)
    }

    fn leaf_of(&self, position: u32) -> usize {
        *self.shape.path(position).last().unwrap()
    }

    fn progress(&self, position: u32) -> Progress {
        let member = &self.members[position as usize];
        let recovered = self.shape.path(position).into_iter().any(|node| {
            let branch = self.branches.get(&node);
            branch.is_some_and(|tx| tx.confirmed.is_some())
        });
        if recovered || member.close.confirmed.is_some() {
            return Progress::Gone;
        }
        let on_chain = self.confirmed(self.leaf_of(position)).is_some();
        match member.stored {
            Progress::HandedOver => Progress::HandedOver,
            _ if on_chain => Progress::OnChain,
            stored => stored,
        }
    }

    /// Outputs on the chain that nothing spends, stocks included: those are spent by us at `q`.
    fn open(&self, height: Height) -> u32 {
        let mut open = 0;
        for (index, node) in self.shape.nodes().iter().enumerate() {
            let Some(at) = self.confirmed(index) else {
                continue;
            };
            for child in &node.children {
                let branch = self.branches.get(child);
                let reaped = branch.is_some_and(|tx| tx.confirmed.is_some());
                open += u32::from(!reaped && self.confirmed(*child).is_none());
            }
            if node.kind == NodeKind::Leaf {
                let members = node.clients.clone().map(|c| &self.members[c as usize]);
                open += members.filter(|m| m.close.confirmed.is_none()).count() as u32;
                open += u32::from(height < at.plus(Blocks(self.params.q)));
            }
        }
        open
    }

    fn root(&self, height: Height) -> Root {
        if let Some(at) = self.reap.confirmed {
            return Root::Reaped { at };
        }
        if let Some(at) = self.timeout.confirmed {
            return Root::TimedOut { at };
        }
        let nodes: BTreeSet<usize> = self.nodes.keys().copied().collect();
        let nodes: BTreeSet<usize> = nodes
            .into_iter()
            .filter(|n| self.confirmed(*n).is_some())
            .collect();
        if !nodes.is_empty() {
            let closes = self.members.iter().map(|member| member.close);
            let all = self.nodes.values().chain(self.branches.values()).copied();
            let latest = all.chain(closes).filter_map(|tx| tx.confirmed).max();
            return Root::Published {
                nodes,
                open: self.open(height),
                latest: latest.unwrap(),
            };
        }
        match self.reap.sent {
            Some(_) => Root::ReapSent,
            None => Root::Unspent,
        }
    }

    fn facts(&self, height: Height) -> FactoryFacts {
        FactoryFacts {
            id: self.id,
            rung: self.rung,
            params: self.params.clone(),
            schedule: self.schedule,
            funding: match self.funding.confirmed {
                Some(at) => Funding::Confirmed { at },
                None if self.was_confirmed => Funding::Reorged,
                None => Funding::Unconfirmed,
            },
            root: self.root(height),
            stock: CAPACITY,
            members: (0u32..)
                .zip(&self.members)
                .map(|(position, member)| MemberFacts {
                    client: client_id(member.client),
                    capacity: CAPACITY,
                    balance: member.balance,
                    progress: self.progress(position),
                    warned: member.warned,
                })
                .collect(),
            loss_reported: self.loss_reported,
        }
    }
}

fn client_id(number: usize) -> ClientId {
    let mut bytes = [2; 33];
    bytes[25..].copy_from_slice(&(number as u64).to_be_bytes());
    ClientId(bytes)
}

fn number(client: ClientId) -> usize {
    u64::from_be_bytes(client.0[25..].try_into().unwrap()) as usize
}

#[derive(Clone, Copy, Debug)]
struct Chances {
    silent: f64,
    keeps_keys: f64,
    offline: f64,
    reorg: f64,
    sleep: f64,
    exit: f64,
    failing: f64,
}

#[derive(Debug, Default)]
struct Counts {
    born: u32,
    reaped: u32,
    moved: u32,
    published: u32,
    reports: u32,
    /// Clients that stayed to the end of a factory that was never missed, by invitations.
    stayed: BTreeMap<u8, u32>,
    most_live: usize,
}

struct World {
    params: LadderParams,
    factory: FactoryParams,
    rng: StdRng,
    chances: Chances,
    height: Height,
    top: Height,
    ladder: Ladder,
    factories: Vec<Factory>,
    clients: Vec<Client>,
    asleep: u32,
    slept: bool,
    growing: bool,
    counts: Counts,
}

impl World {
    fn new(compressed: Compressed, seed: u64, chances: Chances) -> Self {
        let first = Height(500);
        Self {
            params: compressed.ladder,
            factory: compressed.factory,
            rng: StdRng::seed_from_u64(seed),
            chances,
            height: first,
            top: first,
            ladder: Ladder {
                first,
                ..Ladder::default()
            },
            factories: Vec::new(),
            clients: Vec::new(),
            asleep: 0,
            slept: false,
            growing: true,
            counts: Counts::default(),
        }
    }

    fn chance(&mut self, chance: f64) -> bool {
        self.rng.gen_bool(chance)
    }

    fn view(&self) -> Ladder {
        let facts = self.factories.iter().map(|f| f.facts(self.height));
        Ladder {
            factories: facts.collect(),
            ..self.ladder.clone()
        }
    }

    /// The next block, or a reorg.
    fn mine(&mut self) {
        if self.chance(self.chances.reorg) {
            let deepest = self
                .params
                .handover_depth
                .min(self.params.reap_depth)
                .min(5);
            let depth = self.rng.gen_range(1..=deepest.max(2) - 1);
            self.height = self.height.minus(Blocks(depth));
            let height = self.height;
            for tx in self.factories.iter_mut().flat_map(Factory::txs) {
                tx.confirmed = tx.confirmed.filter(|at| *at <= height);
            }
            return;
        }
        self.height = self.height.plus(Blocks(1));
        self.top = self.top.max(self.height);
        let height = self.height;
        let exits = self.chances.exit;
        for factory in &mut self.factories {
            confirm(factory, height, &mut self.rng);
            others(factory, height, exits, &mut self.rng);
        }
    }

    fn sleep(&mut self) {
        let life = self.factory.active + self.factory.dying;
        if self.asleep == 0 && self.chances.sleep > 0.0 && self.chance(self.chances.sleep) {
            self.asleep = match self.rng.gen_range(0..3) {
                0 => self.rng.gen_range(1..=self.params.spacing),
                1 => self.rng.gen_range(1..=life / 2),
                _ => self.rng.gen_range(1..=life * 2),
            };
        }
        if self.asleep > 0 {
            self.slept = true;
            for factory in &mut self.factories {
                factory.missed |= self.height.plus(Blocks(1)) >= factory.schedule.publish_from;
            }
        }
    }

    fn step(&mut self) {
        self.mine();
        self.sleep();
        if self.asleep > 0 {
            self.asleep -= 1;
            return;
        }
        let view = self.view();
        let list = due(&self.params, self.height, &view);
        self.check(&view, &list);
        for due in list {
            // Some things fail; they are due again.
            if !self.chance(self.chances.failing) {
                self.act(due);
            }
        }
    }

    fn check(&mut self, view: &Ladder, list: &[Due]) {
        assert!(list.is_sorted_by_key(Due::rank), "safety first");
        assert_eq!(
            due(&self.params, self.height, view),
            list,
            "same view, same list"
        );
        let distinct: BTreeSet<String> = list.iter().map(|due| format!("{due:?}")).collect();
        assert_eq!(distinct.len(), list.len(), "nothing twice");
        let births = list.iter().filter(|d| matches!(d, Due::Birth { .. }));
        assert!(births.count() <= 1, "one birth at a time");
        let live = view.factories.len();
        self.counts.most_live = self.counts.most_live.max(live);
        let exit_delay = Blocks(60);
        assert!(live as u32 <= self.params.max_live(&self.factory, exit_delay));
        for facts in &view.factories {
            self.check_factory(facts, list);
        }
    }

    fn check_factory(&self, facts: &FactoryFacts, list: &[Due]) {
        let confirmed = matches!(facts.funding, Funding::Confirmed { .. });
        let live = !matches!(facts.root, Root::Reaped { .. } | Root::TimedOut { .. });
        let own = self.factories.iter().find(|f| f.id == facts.id).unwrap();
        for member in &facts.members {
            let over = self.height >= facts.schedule.publish_from;
            if over && confirmed && live && facts.refunds_clients() && member.progress.is_inside() {
                let published = list.iter().any(|due| {
                    matches!(due, Due::Publish { factory, client, .. }
                        if *factory == facts.id && *client == member.client)
                });
                assert!(published, "{:?} at {}", member, self.height);
            }
            let late = self.height >= facts.schedule.last_spend;
            let spent = matches!(member.progress, Progress::Gone | Progress::HandedOver);
            if late && !own.missed && confirmed && live && facts.refunds_clients() {
                assert!(spent, "{member:?} is left at {}", self.height);
                assert_eq!(member.progress, Progress::Gone);
            }
        }
        // Under `LspReclaim` a client may publish around T whatever we do.
        if !own.missed && facts.refunds_clients() {
            let alarm = list
                .iter()
                .any(|due| matches!(due, Due::TooLate { factory, .. } if *factory == facts.id));
            assert!(!alarm, "an alarm although nothing was missed: {facts:?}");
        }
    }

    fn factory(&mut self, id: FactoryId) -> &mut Factory {
        self.factories.iter_mut().find(|f| f.id == id).unwrap()
    }

    fn member(&mut self, id: FactoryId, client: ClientId) -> &mut Member {
        let members = &mut self.factory(id).members;
        members
            .iter_mut()
            .find(|m| m.client == number(client))
            .unwrap()
    }

    fn act(&mut self, due: Due) {
        let height = self.height;
        match due {
            Due::TooLate {
                factory, at_risk, ..
            } => {
                self.counts.reports += 1;
                let own = self.factory(factory);
                let refunds = own.params.expiry_policy == ExpiryPolicy::ClientRefund;
                assert!(own.missed || !refunds);
                assert!(own.reports < 4, "reported over and over");
                own.loss_reported = Some(at_risk);
                own.reports += 1;
            }
            Due::Publish {
                factory, client, ..
            } => {
                let first = !matches!(self.member(factory, client).stored, Progress::Publishing);
                if first {
                    self.counts.published += 1;
                    let invited = match self.member(factory, client).stored {
                        Progress::Invited { tries, .. } => Some(tries),
                        Progress::In => Some(0),
                        _ => None,
                    };
                    if let (Some(tries), false) = (invited, self.slept) {
                        *self.counts.stayed.entry(tries).or_default() += 1;
                    }
                }
                self.member(factory, client).stored = Progress::Publishing;
                let own = self.factory(factory);
                let at = own.members.iter().position(|m| m.client == number(client));
                publish(own, at.unwrap() as u32, height);
            }
            Due::CloseBeforeT {
                factory, client, ..
            } => self.member(factory, client).close.send(height),
            Due::Reap { factory, .. } | Due::ReclaimAtT { factory } => {
                let own = self.factory(factory);
                // After the root is published, `ReclaimAtT` means outputs further down.
                if own.confirmed(0).is_none() {
                    let first = own.reap.sent.is_none();
                    own.reap.send(height);
                    self.counts.reaped += u32::from(first);
                } else {
                    reclaim(own, height);
                }
            }
            Due::ReapSubtree {
                factory,
                part,
                members,
                ..
            } => {
                let own = self.factory(factory);
                match part {
                    Part::Branch { node } => own.branches.entry(node).or_default().send(height),
                    Part::Channel => own.members[members.start as usize].close.send(height),
                }
            }
            Due::Rebroadcast { factory } => self.factory(factory).funding.send(height),
            Due::Handover { client, from, .. } => {
                if !self.clients[number(client)].keeps_keys {
                    self.member(from, client).stored = Progress::HandedOver;
                }
            }
            Due::Move {
                client, from, to, ..
            } => self.move_part(client, from, to),
            Due::Warn {
                client,
                factory,
                level,
            } => {
                let member = self.member(factory, client);
                assert!(member.warned.is_none_or(|told| told < level));
                member.warned = Some(level);
            }
            Due::Invite {
                client,
                from,
                to,
                attempt,
                of,
                ..
            } => {
                assert!(attempt <= of);
                self.member(from, client).stored = Progress::Invited {
                    tries: attempt,
                    rung: to,
                };
            }
            Due::Birth { rung, planned } => self.birth(rung, planned),
            Due::Forget { factory } => self.forget(factory),
        }
    }

    /// Where everybody handed over, the coins came back by keys, or a timeout was quicker.
    fn forget(&mut self, id: FactoryId) {
        let height = self.height;
        let own = self.factory(id);
        let mut stored = own.members.iter().map(|member| member.stored);
        if stored.all(|progress| progress == Progress::HandedOver) {
            let root = own.root(height);
            let timed_out = matches!(root, Root::TimedOut { .. });
            let published = matches!(root, Root::Published { .. });
            assert!(matches!(root, Root::Reaped { .. }) || published || (timed_out && own.missed));
        }
        self.factories.retain(|factory| factory.id != id);
    }

    fn move_part(&mut self, client: ClientId, from: FactoryId, to: FactoryId) {
        if self.clients[number(client)].silent || self.chance(0.3) {
            return;
        }
        let new = self.factory(to).schedule;
        let old = self.factory(from).schedule;
        let expiries = part_expiries(self.height, &old, &new).expect("due in time only");
        let stuck = self.chance(0.1);
        let member = self.member(from, client);
        member.parts_left = member.parts_left.saturating_sub(1);
        member.stored = match member.parts_left {
            0 => {
                member.balance = Amount::ZERO;
                Progress::Moved { factory: to }
            }
            _ => Progress::Moving {
                factory: to,
                in_flight: stuck.then_some(expiries.incoming),
            },
        };
        if member.parts_left == 0 {
            self.counts.moved += 1;
        }
    }

    /// A ceremony: late sometimes, with those that answer their invitation and some new clients.
    fn birth(&mut self, rung: u32, planned: Height) {
        let late = self.height.since(planned).0;
        if late < self.params.birth_slip && self.chance(0.5) {
            return;
        }
        if !self.growing {
            self.ladder.given_up.insert(rung);
            return;
        }
        let mut joining = Vec::new();
        let mut answered = Vec::new();
        for (index, factory) in self.factories.iter().enumerate() {
            for (position, member) in factory.members.iter().enumerate() {
                let invited =
                    matches!(member.stored, Progress::Invited { rung: to, .. } if to == rung);
                if invited && !self.clients[member.client].silent {
                    answered.push((index, position, member.client));
                }
            }
        }
        let mut id = [0; 32];
        id[..4].copy_from_slice(&rung.to_be_bytes());
        let id = FactoryId(id);
        for (index, position, client) in answered {
            if joining.len() < 12
                && !self.rng.gen_bool(self.chances.offline)
                && !joining.contains(&client)
            {
                joining.push(client);
                self.factories[index].members[position].stored =
                    Progress::NewChannel { factory: id };
                self.factories[index].members[position].parts_left = self.rng.gen_range(1..6);
            }
        }
        while joining.len() < 4 {
            joining.push(self.clients.len());
            let client = Client {
                silent: self.rng.gen_bool(self.chances.silent),
                keeps_keys: self.rng.gen_bool(self.chances.keeps_keys),
            };
            self.clients.push(client);
        }
        let shape = Shape::new(&self.factory, joining.len() as u32).unwrap();
        let schedule = self.factory.schedule(self.height, shape.levels()).unwrap();
        let members = joining.into_iter().map(|client| Member {
            client,
            stored: Progress::In,
            balance: Amount::from_sat(100_000),
            warned: None,
            parts_left: 0,
            close: Tx::default(),
        });
        self.factories.push(Factory {
            id,
            rung,
            params: self.factory.clone(),
            schedule,
            shape,
            funding: Tx {
                sent: Some(self.height),
                confirmed: None,
            },
            was_confirmed: false,
            reap: Tx::default(),
            timeout: Tx::default(),
            nodes: BTreeMap::new(),
            branches: BTreeMap::new(),
            members: members.collect(),
            loss_reported: None,
            reports: 0,
            missed: false,
        });
        self.counts.born += 1;
    }

    /// Three lifetimes with births.
    fn grow(&mut self) {
        let life = self.factory.active + self.factory.dying;
        let end = self.ladder.first.plus(Blocks(life * 3));
        while self.top < end {
            self.step();
        }
    }

    /// The same, then until nothing is left.
    fn run(mut self) -> Counts {
        self.grow();
        let life = self.factory.active + self.factory.dying;
        let end = self.top;
        self.growing = false;
        self.chances.sleep = 0.0;
        let limit = end.plus(Blocks(life * 3 + 3000));
        while self.top < limit {
            self.step();
            if self.factories.is_empty() {
                let rest = due(&self.params, self.height, &self.view());
                let rest: Vec<_> = rest.iter().filter(|d| d.rank() != 9).collect();
                assert!(rest.is_empty(), "{rest:?}");
                return self.counts;
            }
        }
        panic!(
            "due for ever: {:?}",
            due(&self.params, self.height, &self.view())
        );
    }
}

const CALM: Chances = Chances {
    silent: 0.0,
    keeps_keys: 0.0,
    offline: 0.0,
    reorg: 0.0,
    sleep: 0.0,
    exit: 0.0,
    failing: 0.0,
};

fn compressed(rungs: u32, spacing: u32) -> Compressed {
    LadderParams::compressed(Network::Regtest, rungs, spacing).unwrap()
}

#[test]
fn in_a_calm_ladder_every_factory_is_reaped_once_and_nothing_is_published() {
    let mut world = World::new(compressed(33, 18), 7, CALM);
    world.grow();
    let counts = &world.counts;
    let dead = counts.born - 33;
    assert!(dead >= 66 && counts.reaped >= dead, "{counts:?}");
    assert_eq!((counts.published, counts.reports), (0, 0));
    assert!(counts.moved >= dead * 4, "{counts:?}");
    // Happily there are as many as rungs, and those that are not buried yet.
    let unburied = world.params.bury_depth.div_ceil(world.params.spacing) + 1;
    assert!(counts.most_live <= (33 + unburied) as usize, "{counts:?}");
    let counts = world.run();
    // Without births the last clients have nowhere to go, and are published.
    assert!(counts.reports == 0 && counts.published > 0, "{counts:?}");
}

#[test]
fn the_default_ladder_runs_for_three_lifetimes() {
    let compressed = Compressed {
        factory: FactoryParams::profile(Profile::Lite, Network::Regtest),
        ladder: LadderParams::default(),
    };
    let chances = Chances {
        silent: 0.05,
        offline: 0.1,
        ..CALM
    };
    let counts = World::new(compressed, 3, chances).run();
    assert!(counts.born >= 99 && counts.published > 0, "{counts:?}");
    assert!(counts.most_live <= 33 + 12, "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(48)))]

    #[test]
    fn an_awake_coordinator_invites_everybody_as_often_as_it_says(
        seed in any::<u64>(),
        rungs in 4u32..12,
        spacing in prop_oneof![Just(18u32), 6u32..30],
    ) {
        let chances = Chances { silent: 0.5, keeps_keys: 0.2, ..CALM };
        let compressed = compressed(rungs, spacing);
        let of = compressed.ladder.invitations;
        let mut world = World::new(compressed, seed, chances);
        world.grow();
        let mut invited = world.counts.stayed.keys();
        prop_assert!(invited.all(|times| *times == of), "{:?}", world.counts);
    }

    #[test]
    fn whatever_happens_it_catches_up(
        seed in any::<u64>(),
        rungs in prop_oneof![4u32..10, Just(33)],
        silent in 0.0..0.6f64,
        keeps_keys in 0.0..0.5f64,
        offline in 0.0..0.5f64,
        reorg in 0.0..0.08f64,
        sleep in prop_oneof![Just(0.0), 0.0..0.02f64],
        exit in prop_oneof![Just(0.0), 0.0..0.003f64],
        reclaim in any::<bool>(),
    ) {
        let mut compressed = compressed(rungs, 18);
        if reclaim {
            compressed.factory.expiry_policy = ExpiryPolicy::LspReclaim;
        }
        let chances = Chances { silent, keeps_keys, offline, reorg, sleep, exit, failing: 0.05 };
        let counts = World::new(compressed, seed, chances).run();
        prop_assert!(counts.born > 0 && counts.reaped <= counts.born);
    }
}
