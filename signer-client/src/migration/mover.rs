//! Does what is due for every factory that ends, one part at a time.
//!
//! A factory may have several channels: each part leaves the one that holds the most, and arrives in the one with the most room. Which these
//! are is stored with the part.
//!
//! | a part is | means | next |
//! |---|---|---|
//! | asked | stored; nothing was paid | ask (again in each session); terms come, are checked, and stored |
//! | agreed | it may be on its way | pay, if the node has not yet; then wait for the node's word |
//! | moved, failed | over | the next one |
//!
//! Another hash is made only when the last can move nothing any more: it was never paid for, or came back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use channel_host::{LeafId as Leaf, Msat, PartState, PaymentHash};
use factory_tree::ids::{FactoryId, LeafId};
use factory_tree::units::Blocks;
use proto::v1::client_message::Body;
use proto::wire::{MovePart, PartTerms};
use tokio::time::Instant;

use super::decide::{Next, decide};
use super::facts::{Case, Scene};
use super::lane::Lane;
use super::pace::Pace;
use super::{Answer, calendar, terms};
use crate::client::{Inner, Shutdown};
use crate::error::Result;
use crate::event::Event;
use crate::fault;
use crate::lightning::leaf_id;
use crate::store::{FactoryRow, MoveRow, PartEnd, PartProgress, PartRow, PaymentEnd, Token};

/// How often to look: channels come and go without a word.
const LOOK: Duration = Duration::from_secs(1);
/// So many blocks after it was asked for, a part's terms cannot be good any more.
const FRESH: Blocks = Blocks(6);

/// Moves what is to move until told to stop.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let mut mover = Mover::new(Arc::clone(&client));
    let mut link = client.migration.link.subscribe();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            () = client.migration.news.notified() => {}
            // The sender is the client's.
            _ = link.changed() => {}
            _ = look.tick() => {}
        }
        let lane = client.lightning.node().map(|node| node as Arc<dyn Lane>);
        match mover.look(lane).await {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => tracing::debug!(%error, "moving goes on at the next look"),
            Ok(()) => {}
        }
    }
}

pub(super) struct Mover {
    pub(super) client: Arc<Inner>,
    paces: HashMap<FactoryId, Pace>,
}

impl Mover {
    pub(super) fn new(client: Arc<Inner>) -> Self {
        Self {
            client,
            paces: HashMap::new(),
        }
    }

    pub(super) fn pace(&mut self, factory: FactoryId) -> &mut Pace {
        self.paces.entry(factory).or_default()
    }

    /// Nothing without a node, or before the chain was followed: nothing is decided on old news.
    pub(super) async fn look(&mut self, lane: Option<Arc<dyn Lane>>) -> Result<()> {
        let client = Arc::clone(&self.client);
        let Some(lane) = lane.filter(|_| client.followed_height() > 0) else {
            return Ok(());
        };
        let scene = Scene::look(&client, lane).await?;
        while let Some(answer) = client.migration.next_answer() {
            self.answered(&scene, answer).await?;
        }
        let mut words = None;
        let mut outcome = Ok(());
        for row in scene.rows.iter().filter(|row| row.is_live() && row.usable) {
            // One that cannot go on must not keep the others from it.
            match self.step(&scene, row).await {
                Ok(said) => words = words.or(said),
                Err(error) if Inner::is_fatal(&error) => return Err(error),
                Err(error) => outcome = Err(error),
            }
        }
        client.set_live(|live| live.moving = words).await;
        outcome
    }

    /// What is due for one factory; in words what it waits for, if it ends.
    async fn step(&mut self, scene: &Scene, row: &FactoryRow) -> Result<Option<String>> {
        let client = Arc::clone(&self.client);
        let Some(kit) = client.kits.sound(row.factory).await? else {
            return Ok(None);
        };
        if scene.height < calendar(&kit).dying_from && row.handover.is_none() {
            return Ok(None);
        }
        let parts = client.store.parts(row.factory).await?;
        let open = |part: &&PartRow| part.from == row.factory && !part.progress.is_over();
        if let Some(part) = parts.iter().rfind(open) {
            self.bring(scene, row, part).await?;
            return Ok(Some("a part is on its way".to_owned()));
        }
        let Some(case) = scene.case(&client, row, None).await? else {
            return Ok(None);
        };
        if row.handover.is_some() {
            return self.hand_over(scene, &case.old).await.map(Some);
        }
        Ok(match decide(&case.facts) {
            Next::Part(amount) => {
                self.ask(scene, &case, amount).await?;
                Some("the next part is asked for".to_owned())
            }
            Next::HandOver => Some(self.begin_handover(scene, &case.old).await?),
            Next::Rest(rest) => Some(rest.to_string()),
        })
    }

    /// Begins a part: stored before the coordinator hears of it.
    async fn ask(&mut self, scene: &Scene, case: &Case, amount: Msat) -> Result<()> {
        let from = case.old.row.factory;
        let (Some(new), Some((from_leaf, to_leaf))) = (case.new.as_ref(), case.leaves) else {
            return Ok(());
        };
        if self.client.migration.link().is_none()
            || !self.pace(from).may(Instant::now(), scene.height)
        {
            return Ok(());
        }
        let client = Arc::clone(&self.client);
        let begun = MoveRow {
            from,
            total: case.facts.old.balance,
            begun: scene.height,
        };
        if case.facts.total.is_none() {
            client.store.begin_move(&begun).await?;
            client.events.emit(Event::MoveStarted {
                from,
                to: new.row.factory,
                total_msat: begun.total.0,
            });
        }
        let expected = scene.on_lane(move |lane| lane.expect_part(from_leaf, to_leaf, amount));
        let (hash, secret) = expected.await??;
        let part = PartRow {
            hash,
            from,
            to: new.row.factory,
            from_leaf,
            to_leaf,
            amount,
            token: Token(secret),
            asked: scene.height,
            progress: PartProgress::Asked,
            agreed: None,
            failure: None,
        };
        client.store.add_part(&part).await?;
        fault::point("part_stored");
        self.send_question(&part).await
    }

    /// Brings an open part forward.
    async fn bring(&mut self, scene: &Scene, row: &FactoryRow, part: &PartRow) -> Result<()> {
        match part.progress {
            PartProgress::Asked if scene.height > part.asked.plus(FRESH) => {
                self.give_up(scene, part, "the coordinator did not answer in time")
                    .await
            }
            PartProgress::Asked => self.send_question(part).await,
            PartProgress::Agreed => {
                let parts = scene.lane.parts();
                let known = parts.iter().find(|view| view.hash == part.hash);
                // What is under way, or over, the node tells of.
                match known.map(|view| view.state) {
                    Some(PartState::Agreed) => self.pay(scene, row, part).await,
                    _ => Ok(()),
                }
            }
            PartProgress::Moved | PartProgress::Failed => Ok(()),
        }
    }

    /// Asks once in each session, and again if nobody answers.
    async fn send_question(&mut self, part: &PartRow) -> Result<()> {
        let now = Instant::now();
        let Some(link) = self.client.migration.link() else {
            return Ok(());
        };
        let from_leaf = self.bought(part.from, part.from_leaf).await?;
        let to_leaf = self.bought(part.to, part.to_leaf).await?;
        let pace = self.pace(part.from);
        if !pace.may_ask(link.number, now) {
            return Ok(());
        }
        pace.asking(link.number, now);
        let question = MovePart {
            from: part.from,
            to: part.to,
            from_leaf,
            to_leaf,
            hash: part.hash.0,
            payment_secret: part.token.0,
            amount_msat: part.amount.0,
        };
        link.out.body(Body::MovePart(question.into())).await
    }

    /// A channel's name on the wire: the one that a factory was born with needs none.
    async fn bought(&self, factory: FactoryId, leaf: Leaf) -> Result<Option<LeafId>> {
        let kit = self.client.kits.get(factory).await?;
        Ok((leaf_id(&kit) != leaf).then_some(LeafId(leaf.0)))
    }

    /// Nothing was paid for this part, and nothing will be.
    async fn give_up(&mut self, scene: &Scene, part: &PartRow, why: &str) -> Result<()> {
        let end = PartEnd::Failed {
            why: why.to_owned(),
        };
        if self.client.store.end_part(part.hash, &end).await? {
            self.client.events.emit(Event::PartFailed {
                hash: part.hash.to_string(),
                from: part.from,
                to: part.to,
                why: why.to_owned(),
            });
        }
        self.pace(part.from).failed(Instant::now(), scene.height);
        Ok(())
    }

    async fn answered(&mut self, scene: &Scene, answer: Answer) -> Result<()> {
        match answer {
            Answer::Terms(terms) => self.terms(scene, &terms).await,
            Answer::Taken(factory) => self.taken(scene, factory).await,
            Answer::Refused { factory, why } => self.refused(scene, factory, &why).await,
        }
    }

    /// The coordinator says how to pay for a part.
    async fn terms(&mut self, scene: &Scene, terms: &PartTerms) -> Result<()> {
        let client = Arc::clone(&self.client);
        let hash = PaymentHash(terms.hash);
        let part = client.store.part(hash).await?;
        // One that nobody asked for, or that was answered before: nothing is paid twice.
        let Some(part) = part.filter(|part| part.progress == PartProgress::Asked) else {
            tracing::debug!(%hash, "terms of a part that is not asked for");
            return Ok(());
        };
        let Some(row) = scene.rows.iter().find(|row| row.factory == part.from) else {
            return Ok(());
        };
        let Some(case) = scene.case(&client, row, Some(&part)).await? else {
            return Ok(());
        };
        let agreed = match terms::check(terms, part.amount, &case.facts) {
            Ok(agreed) => agreed,
            Err(error) => return self.give_up(scene, &part, &error.to_string()).await,
        };
        if !client.store.agree_part(hash, &agreed).await? {
            return Ok(());
        }
        self.pace(part.from).worked();
        let part = PartRow {
            progress: PartProgress::Agreed,
            agreed: Some(agreed),
            ..part
        };
        self.pay(scene, row, &part).await
    }

    /// Pays for a part whose terms are stored, while they are good.
    async fn pay(&mut self, scene: &Scene, row: &FactoryRow, part: &PartRow) -> Result<()> {
        let client = Arc::clone(&self.client);
        let Some(agreed) = part.agreed else {
            return Ok(());
        };
        let Some(case) = scene.case(&client, row, Some(part)).await? else {
            return Ok(());
        };
        let facts = &case.facts;
        let found = (agreed.outgoing, agreed.incoming);
        let good = match &facts.new {
            Some(new) => terms::expiries(facts.height, &facts.old.calendar, &new.calendar, found),
            None => Err(terms::TermsError::NoNew),
        };
        if let Err(error) = good {
            return self.give_up(scene, part, &error.to_string()).await;
        }
        let ready = facts.old.usable && facts.new.is_some_and(|new| new.usable && new.stands);
        if !ready {
            return Ok(());
        }
        let (hash, amount) = (part.hash, Msat(part.amount.0.saturating_add(agreed.fee.0)));
        let sent = scene
            .on_lane(move |lane| lane.send_part(hash, amount, agreed.token.0, agreed.incoming.0));
        match sent.await? {
            Ok(()) => fault::point("part_sent"),
            // The peer is away, or the channel still settles the last part: this costs nobody anything but a look.
            Err(error) => tracing::debug!(%error, %hash, "a part is not sent yet"),
        }
        Ok(())
    }

    /// The coordinator will not do something about a factory, for now.
    async fn refused(&mut self, scene: &Scene, factory: FactoryId, why: &str) -> Result<()> {
        let row = scene.rows.iter().find(|row| row.factory == factory);
        if row.is_some_and(|row| row.handover.is_some()) {
            return self.keys_refused(scene, factory, why).await;
        }
        let parts = self.client.store.parts(factory).await?;
        let asked = |part: &&PartRow| part.from == factory && part.progress == PartProgress::Asked;
        match parts.iter().rfind(asked) {
            Some(part) => self.give_up(scene, part, why).await,
            None => Ok(()),
        }
    }
}

/// The node's word on a part.
pub(crate) async fn part_over(
    client: &Inner,
    hash: PaymentHash,
    end: &PartEnd,
    fee: Msat,
) -> Result<()> {
    let Some(part) = client.store.part(hash).await? else {
        tracing::warn!(%hash, "a part that is not known");
        return Ok(());
    };
    if !client.store.end_part(hash, end).await? {
        return Ok(());
    }
    if fee.0 > 0 {
        // With the first part of a month; a list of payments that leaves it out does not add up.
        let (text, now) = (format!("the month in factory {}", part.to), client.now());
        client.store.begin_payment(hash, fee, &text, now).await?;
        let paid = PaymentEnd::Succeeded { fee: Msat(0) };
        client.store.end_payment(hash, &paid, now).await?;
    }
    let hash = hash.to_string();
    let (from, to) = (part.from, part.to);
    client.events.emit(match end {
        PartEnd::Moved => Event::PartMoved {
            hash,
            from,
            to,
            amount_msat: part.amount.0,
            fee_msat: fee.0,
        },
        PartEnd::Failed { why } => Event::PartFailed {
            hash,
            from,
            to,
            why: why.clone(),
        },
    });
    client.migration.wake();
    Ok(())
}
