//! The one task that moves a node: blocks, LDK's events, time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bitcoin::Block;
use chain::{ChainEvent, Follower};
use lightning::chain::{BlockLocator, Listen};
use lightning::util::persist::{
    CHANNEL_MANAGER_PERSISTENCE_KEY, NETWORK_GRAPH_PERSISTENCE_KEY, SCORER_PERSISTENCE_KEY,
};
use lightning::util::ser::Writeable;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Core;
use super::start::single;
use crate::error::NodeError;
use crate::event::NodeEvent;
use crate::leaf::ChainNews;
use crate::store::{Change, StoreError};

/// How often payments on their way are moved on; those that arrive in between are batched.
const PAYMENTS_EVERY: Duration = Duration::from_millis(20);
const PING_EVERY: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);
const GOSSIP_EVERY: Duration = Duration::from_secs(600);
const RECONNECT_EVERY: Duration = Duration::from_secs(1);
/// How often to look whether the receiver of a payment that waits is back.
const WAITING_EVERY: Duration = Duration::from_millis(200);

/// When each of the slow chores is due.
struct Chores {
    ping: Instant,
    minute: Instant,
    gossip: Instant,
    reconnect: Instant,
    waiting: Instant,
}

fn due(at: &mut Instant, every: Duration) -> bool {
    let now = Instant::now();
    let due = now >= *at;
    if due {
        *at = now + every;
    }
    due
}

impl Core {
    /// Runs until it is told to stop, or the store fails.
    pub(super) async fn drive(
        self: Arc<Self>,
        mut follower: Follower,
        mut stop: watch::Receiver<bool>,
    ) {
        let now = Instant::now();
        let mut chores = Chores {
            ping: now + PING_EVERY,
            minute: now,
            gossip: now + GOSSIP_EVERY,
            reconnect: now,
            waiting: now,
        };
        let mut moves = interval(PAYMENTS_EVERY);
        let mut polls = interval(self.config.poll_interval);
        let begun = self.begin().await;
        if let Some(cause) = self.failure(begun) {
            return self.give_up(cause).await;
        }
        moves.set_missed_tick_behavior(MissedTickBehavior::Delay);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (mut looked, mut idle) = (Ok(()), false);
            tokio::select! {
                biased;
                _ = stop.changed() => return,
                _ = polls.tick() => looked = self.follow(&mut follower).await,
                () = self.manager.get_event_or_persistence_needed_future() => {}
                () = self.monitors.get_update_future() => {}
                _ = moves.tick() => {
                    let moving = self.manager.needs_pending_htlc_processing();
                    if moving {
                        self.manager.process_pending_htlc_forwards();
                    }
                    idle = !moving
                        && self.monitors.pending_operation_count() == 0
                        && !self.replay.is_due()
                        && !self.monitors_replay.is_due();
                }
            }
            let done = match looked {
                Err(NodeError::Chain(error)) => {
                    tracing::warn!(%error, "no news from the Bitcoin node");
                    Ok(())
                }
                other => other,
            };
            // Going through a thousand monitors fifty times a second would be work for nothing.
            let done = if idle {
                done
            } else {
                done.and(self.settle().await)
            };
            self.chores(&mut chores).await;
            if let Some(cause) = self.failure(done) {
                return self.give_up(cause).await;
            }
        }
    }

    /// What a block would have us look at, and perhaps did while we were away.
    async fn begin(&self) -> Result<(), NodeError> {
        self.settle().await?;
        self.repeat_parts();
        self.jit_resume().await?;
        self.bought_resume().await?;
        if self.close_lost(&self.lost).await.is_err() {
            tracing::warn!("that a leaf is closed is told at the next block");
        }
        self.exit_step().await?;
        self.settle().await
    }

    /// Why the node cannot go on.
    fn failure(&self, done: Result<(), NodeError>) -> Option<StoreError> {
        self.store.failure().or(match done {
            Err(NodeError::Store(error)) => Some(error),
            Err(error) => {
                tracing::error!(%error, "the Lightning node stumbled");
                None
            }
            Ok(()) => None,
        })
    }

    /// Nothing that cannot be stored may be promised: no peer hears from us any more.
    async fn give_up(&self, cause: StoreError) {
        tracing::error!(%cause, "the Lightning node stops");
        self.stopping.store(true, Ordering::Release);
        self.peers.disconnect_all_peers();
        let _ = self.config.events.take(NodeEvent::Stopped { cause }).await;
    }

    /// Handles what LDK has to say, sends what it has to send, stores what it has to store.
    pub(super) async fn settle(&self) -> Result<(), NodeError> {
        // One queue's pause keeps nothing of the other's back.
        if self.replay.begin() {
            self.manager
                .process_pending_events_async(|event| self.handle(event, &self.replay))
                .await;
            self.replay.end();
        }
        if self.monitors_replay.begin() {
            self.monitors
                .process_pending_events_async(|event| self.handle(event, &self.monitors_replay))
                .await;
            self.monitors_replay.end();
        }
        self.peers.process_events();
        if self.save()? {
            // What waited for its monitor may go out now.
            self.peers.process_events();
        }
        if !self.monitors_replay.is_paused() {
            self.note_settled();
        }
        self.parts_step().await
    }

    /// Stores what changed; `true` if monitors did.
    pub(super) fn save(&self) -> Result<bool, StoreError> {
        self.save_if(self.manager.get_and_clear_needs_persistence())
    }

    /// Stores the manager whether it says it changed or not.
    pub(super) fn save_all(&self) -> Result<(), StoreError> {
        self.save_if(true).map(|_| ())
    }

    /// The manager first, then the monitors' updates it made: a manager that is behind a monitor is outdated to LDK, which closes the channel at
    /// the next start; one that is ahead repeats the update. The updates are counted before the manager is written, and only so many are let go:
    /// writing it waits for whoever queued one of them, while later ones may be missing in what was written.
    fn save_if(&self, changed: bool) -> Result<bool, StoreError> {
        let _one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let updates = self.monitors.pending_operation_count();
        if updates == 0 && !changed {
            return Ok(false);
        }
        let key = single(CHANNEL_MANAGER_PERSISTENCE_KEY);
        self.store
            .write(vec![Change::Put(key, self.manager.encode())])?;
        self.monitors.flush(updates, &self.log);
        Ok(updates > 0)
    }

    /// What is learnt of the network: lost without harm, so stored now and then.
    pub(super) fn save_gossip(&self) -> Result<(), StoreError> {
        let scorer = match self.scorer.read() {
            Ok(scorer) => scorer.encode(),
            Err(poisoned) => poisoned.into_inner().encode(),
        };
        self.store.write(vec![
            Change::Put(single(NETWORK_GRAPH_PERSISTENCE_KEY), self.graph.encode()),
            Change::Put(single(SCORER_PERSISTENCE_KEY), scorer),
        ])
    }

    /// Takes in blocks up to the tip, and LDK's events between them: undrained, a monitor that waits for its leaf adds one per block.
    async fn follow(&self, follower: &mut Follower) -> Result<(), NodeError> {
        let mut moved = false;
        while let Some(event) = follower.next().await? {
            moved = true;
            match event {
                ChainEvent::Connected { height, block } => {
                    self.connect_block(&block, height).await?;
                }
                ChainEvent::Disconnected(gone) => {
                    let at = follower.position();
                    let gone_from = gone.height.min(at.height.saturating_add(1));
                    self.disconnect_to(BlockLocator::new(at.hash, at.height), gone_from)
                        .await?;
                }
            }
            self.settle().await?;
        }
        if moved {
            self.jit_release().await;
            self.bought_push().await;
            self.fees.refresh(&*self.config.chain).await?;
            self.sweep_target.refresh(&*self.config.coins).await;
            if self
                .sweeper
                .regenerate_and_broadcast_spend_if_necessary()
                .is_err()
            {
                tracing::warn!("money out of closed channels cannot be swept now");
            }
        }
        Ok(())
    }

    async fn connect_block(&self, block: &Block, height: u32) -> Result<(), NodeError> {
        if height <= self.book.height() {
            let before = BlockLocator::new(block.header.prev_blockhash, height.saturating_sub(1));
            self.disconnect_to(before, height).await?;
        }
        self.book.set_height(height);
        self.note_pending_payments(block)?;
        let news = self.book.scan(block, height)?;
        self.sweeper.block_connected(block, height);
        self.monitors.block_connected(block, height);
        self.manager.block_connected(block, height);
        for item in news {
            self.tell_chain_news(item).await;
        }
        // Those that could not be stored or told at the start.
        if self.close_lost(&self.lost).await.is_err() {
            tracing::warn!("that a leaf is closed is told at the next block");
        }
        self.exit_step().await
    }

    async fn disconnect_to(&self, at: BlockLocator, gone: u32) -> Result<(), NodeError> {
        let news = self.book.rewind(gone)?;
        self.book.set_height(at.height);
        self.sweeper.blocks_disconnected(at);
        self.monitors.blocks_disconnected(at);
        self.manager.blocks_disconnected(at);
        for item in news {
            self.tell_chain_news(item).await;
        }
        Ok(())
    }

    async fn tell_chain_news(&self, news: ChainNews) {
        self.tell(match news {
            ChainNews::Confirmed(leaf, height) => NodeEvent::LeafConfirmed { leaf, height },
            ChainNews::Unconfirmed(leaf) => NodeEvent::LeafUnconfirmed { leaf },
            ChainNews::Spent(leaf, kind, txid, height) => NodeEvent::LeafSpent {
                leaf,
                kind,
                txid,
                height,
            },
        })
        .await;
    }

    /// Tells what can also be read from [`crate::Node::leaves`]: not repeated if the host cannot take it in.
    pub(super) async fn tell(&self, event: NodeEvent) {
        if self.config.events.take(event).await.is_err() {
            tracing::warn!("an event could not be taken in");
        }
    }

    async fn chores(self: &Arc<Self>, chores: &mut Chores) {
        if due(&mut chores.ping, PING_EVERY) {
            self.peers.timer_tick_occurred();
        }
        if due(&mut chores.minute, MINUTE) {
            self.manager.timer_tick_occurred();
            self.monitors.rebroadcast_pending_claims();
        }
        if due(&mut chores.reconnect, RECONNECT_EVERY) {
            self.reconnect();
        }
        if due(&mut chores.waiting, WAITING_EVERY) {
            self.serve_waiting().await;
            // Failures show in the store.
            let _ = self.jit_tick().await;
            // What could not be stored or told is looked at again.
            let _ = self.unseen_step().await;
            // A client that is back is no news to LDK.
            let _ = self.parts_step().await;
        }
        if due(&mut chores.gossip, GOSSIP_EVERY) {
            self.graph.remove_stale_channels_and_tracking();
            // A failure shows in the store.
            let _ = self.save_gossip();
        }
    }
}
