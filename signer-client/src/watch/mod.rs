//! Follows the chain: the on-chain wallet, the funding of factories, what becomes of their
//! outputs, payouts; and drives the exits at every new tip.

mod announce;
mod funding;
mod index;

use std::sync::Arc;
use std::time::Duration;

use chain::{BlockId, ChainEvent, Follower};
use factory_tree::units::Height;
use tokio::time::Instant;

use crate::client::{Inner, Shutdown};
use crate::error::{Error, Result};
use crate::event::Event;
use announce::Announced;
pub(crate) use funding::depth;
use index::WatchIndex;

/// Longest wait after a failure of the node.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A node without blocks: nothing is known of coins, and no coordinator begins a factory.
const NO_BLOCKS: &str = "the node has no recent block yet; on regtest mine one";

/// Follows the chain until told to stop. A node that is away is waited for.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let poll = client.config.poll_interval();
    let mut trouble: Option<String> = None;
    let mut wait = poll;
    while !shutdown.is_set() {
        let ended = tokio::select! {
            ended = follow(&client, &mut trouble, poll) => ended,
            () = shutdown.wait() => break,
        };
        let Err(error) = ended else { continue };
        if Inner::is_fatal(&error) {
            return Err(error);
        }
        wait = if trouble.is_some() {
            wait.saturating_mul(2).min(LONGEST_WAIT)
        } else {
            poll
        };
        note_trouble(&client, &mut trouble, Some(error.to_string())).await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.wait() => {}
        }
    }
    Ok(())
}

/// Says once what is wrong with the node, and once that it is well again.
async fn note_trouble(client: &Inner, known: &mut Option<String>, problem: Option<String>) {
    if *known == problem {
        return;
    }
    if let Some(problem) = &problem {
        client.events.emit(Event::ChainTrouble {
            problem: problem.clone(),
        });
    }
    known.clone_from(&problem);
    client.set_live(|live| live.chain_problem = problem).await;
}

async fn follow(client: &Inner, trouble: &mut Option<String>, poll: Duration) -> Result<()> {
    let mut watcher = Watcher::start(client).await?;
    let recheck = Duration::from_secs(client.config.exit.recheck_seconds);
    let mut last = None;
    let mut checked = Instant::now();
    loop {
        watcher.catch_up(client).await?;
        let tip = watcher.position();
        let empty = (tip.height == 0).then(|| NO_BLOCKS.to_owned());
        note_trouble(client, trouble, empty).await;
        if last != Some(tip) || checked.elapsed() >= recheck || watcher.woken {
            watcher.at_tip(client, last != Some(tip)).await?;
            watcher.woken = false;
            last = Some(tip);
            checked = Instant::now();
        }
        tokio::select! {
            changed = watcher.follower.wait_for_change(poll) => changed?,
            () = client.wake_chain.notified() => watcher.woken = true,
            () = tokio::time::sleep(recheck.saturating_sub(checked.elapsed())) => {}
        }
    }
}

/// Follows the chain to its tip once.
///
/// # Errors
/// The node's, and the store's.
pub(crate) async fn sync_once(client: &Inner) -> Result<()> {
    let mut watcher = Watcher::start(client).await?;
    watcher.catch_up(client).await?;
    watcher.at_tip(client, true).await
}

struct Watcher {
    follower: Follower,
    index: WatchIndex,
    announced: Announced,
    /// The highest block with a stored fact: blocks below it that have none need no write.
    facts_top: Height,
    woken: bool,
}

impl Watcher {
    async fn start(client: &Inner) -> Result<Self> {
        let network = client.config.network;
        client.chain.node_info().await?.require_ready(network)?;
        let checkpoints = client.wallet.checkpoints().await;
        let follower = Follower::new(Arc::clone(&client.chain), checkpoints)?;
        let announced = Announced::load(client).await?;
        // The wallet's position is saved less often than facts: those above it come again.
        let position = Height(follower.position().height);
        client.store.rewind_to(position).await?;
        Ok(Self {
            follower,
            index: WatchIndex::load(client).await?,
            announced,
            facts_top: position,
            woken: false,
        })
    }

    fn position(&self) -> BlockId {
        self.follower.position()
    }

    async fn catch_up(&mut self, client: &Inner) -> Result<()> {
        while let Some(event) = self.follower.next().await? {
            self.index.refresh(client).await?;
            match &event {
                ChainEvent::Connected { height, block } => {
                    let facts = self.index.facts(block);
                    let height = Height(*height);
                    // Facts before the wallet: after a crash in between the block comes again.
                    if !facts.is_empty() || height <= self.facts_top {
                        client.store.connect_block(height, &facts).await?;
                        self.facts_top = height;
                    }
                }
                ChainEvent::Disconnected(gone) => {
                    let below = Height(gone.height).minus(factory_tree::units::Blocks(1));
                    client.store.rewind_to(below).await?;
                    self.facts_top = self.facts_top.min(below);
                }
            }
            client.wallet.apply(&event).await?;
        }
        Ok(())
    }

    async fn at_tip(&mut self, client: &Inner, new_tip: bool) -> Result<()> {
        let tip = Height(self.position().height);
        client.wallet.flush().await?;
        client.wallet.forget_missing(client.chain.as_ref()).await?;
        client.set_height(tip.0);
        self.index.refresh(client).await?;
        funding::update(client, tip).await?;
        crate::lightning::reconcile(client).await?;
        client.migration.wake();
        self.announced.announce(client).await?;
        let driven = crate::exit::drive(client, tip).await;
        if new_tip {
            client.set_live(|live| live.height = tip.0).await;
            client.events.emit(Event::Synced { height: tip.0 });
            client.wake_connection.notify_one();
        }
        match driven {
            // One exit that fails is shown with that exit; only these concern all.
            Err(error @ (Error::Chain(_) | Error::Store(_))) => Err(error),
            Err(error) => {
                tracing::error!(%error, "driving the exits");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
