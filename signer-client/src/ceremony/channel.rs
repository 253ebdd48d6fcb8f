//! Step 7 on our side: the coordinator may open the channel of the leaf that was verified, and its end is told.

use std::sync::Arc;
use std::time::Duration;

use channel_host::{LeafRefusal, LeafView, Node, NodeError, Stage};
use factory_tree::ceremony::message::{DeclineReason, Round, ToCoordinator};
use factory_tree::ceremony::signer::{SignerInput, SignerPhase};
use factory_tree::ids::FactoryId;

use super::Driver;
use crate::client::Inner;
use crate::connection::Outgoing;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lightning::{coordinator_of, leaf_at, leaf_id, on_node, reconcile};

/// How long a node that is just being started again is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// What a channel has come to; nothing while it is being opened.
fn end(view: Option<&LeafView>, refusal: Option<&LeafRefusal>) -> Option<Result<(), String>> {
    let why = |or: &str| refusal.map_or_else(|| or.to_owned(), ToString::to_string);
    match view?.stage {
        Stage::Open => Some(Ok(())),
        Stage::Closed | Stage::Abandoned => Some(Err(why("the channel was closed at once"))),
        Stage::Expected | Stage::Opening | Stage::Funded => match refusal? {
            // The coordinator tries again; or it has the answer already.
            LeafRefusal::BrokenOff(_) | LeafRefusal::Used => None,
            wrong => Some(Err(wrong.to_string())),
        },
    }
}

impl Driver {
    /// Lets the coordinator open the channel of this kit's leaf, and no other.
    pub(super) async fn expect_channel(&self, factory: FactoryId) -> Result<()> {
        #[cfg(feature = "fault-points")]
        if crate::misbehave::hides_from_lightning() {
            return Ok(());
        }
        let client = &self.client;
        let kit = client.kits.get(factory).await?;
        let node = self.node().await?;
        let channels = kit.channels();
        let born = channels.first().and_then(|born| leaf_at(&kit, born));
        let leaf = born.ok_or(NodeError::UnfitLeaf {
            leaf: leaf_id(&kit),
            what: "its kit has no channel",
        })?;
        let coordinator = coordinator_of(client)
            .ok_or_else(|| Error::Connection("no coordinator is configured".to_owned()))?;
        let id = leaf.id;
        client.lightning.refusals().remove(&id);
        let expected = on_node(node, move |node| {
            match node.expect_leaf(leaf.clone(), coordinator) {
                // By this kit, before a restart: the outpoint is the leaf's.
                Err(NodeError::LeafUsed { .. }) if is_this(node, &leaf) => Ok(()),
                other => other,
            }
        });
        expected.await??;
        fault::point("channel_expected");
        Ok(())
    }

    pub(super) async fn node(&self) -> Result<Arc<Node>> {
        let lightning = &self.client.lightning;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match lightning.running() {
                Err(_) if !lightning.is_ready() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                other => return other,
            }
        }
    }

    /// Whether the channel that is awaited stands, or cannot: told once each.
    pub(crate) async fn look_at_channel(&mut self, out: &Outgoing) -> Result<()> {
        let machine = self.awaited();
        let Some((round, factory)) = machine.or(self.resumed) else {
            return Ok(());
        };
        let Some(end) = self.channel_end(factory).await? else {
            return Ok(());
        };
        if let Err(why) = &end {
            self.client.events.emit(Event::ChannelRefused {
                factory,
                why: why.clone(),
            });
        }
        if machine.is_some() {
            return self.input(SignerInput::Channel(end), out).await;
        }
        self.resumed = None;
        match end {
            Ok(()) => {
                fault::point("channel_opened");
                out.ceremony(&ToCoordinator::ChannelOpened { round, factory })
                    .await?;
                self.client.events.emit(Event::ChannelOpened { factory });
                Ok(())
            }
            Err(found) => {
                self.fail(round).await?;
                let rule = "channel".to_owned();
                let reason = DeclineReason::Refused { rule, found };
                self.decline(round, reason, out).await
            }
        }
    }

    /// The factory whose channel the machine awaits.
    fn awaited(&self) -> Option<(Round, FactoryId)> {
        let (signer, factory) = self.current()?;
        (signer.phase() == SignerPhase::Acked).then_some((signer.round(), factory))
    }

    async fn channel_end(&self, factory: FactoryId) -> Result<Option<Result<(), String>>> {
        let Some(node) = self.client.lightning.node() else {
            return Ok(None);
        };
        let kit = self.client.kits.get(factory).await?;
        let view = node.leaf(leaf_id(&kit));
        let refusal = self
            .client
            .lightning
            .refusals()
            .get(&leaf_id(&kit))
            .cloned();
        Ok(end(view.as_ref(), refusal.as_ref()))
    }

    /// An attempt came to nothing: its kit stays, its channel does not.
    pub(super) async fn fail(&mut self, round: Round) -> Result<()> {
        if self.resumed.is_some_and(|(resumed, _)| resumed == round) {
            self.resumed = None;
        }
        self.client.store.set_failed(round).await?;
        match reconcile(&self.client).await {
            Err(error) if Inner::is_fatal(&error) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the channels are looked at again at the next block");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn is_this(node: &Node, leaf: &channel_host::Leaf) -> bool {
    let outpoint = bitcoin::OutPoint::new(leaf.transaction.compute_txid(), leaf.vout);
    node.leaf(leaf.id)
        .is_some_and(|view| view.outpoint == outpoint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use bitcoin::{Amount, OutPoint, Txid};
    use channel_host::{LeafId, Side};

    fn at(stage: Stage) -> LeafView {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        LeafView {
            id: LeafId([1; 16]),
            peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            side: Side::Client,
            outpoint: OutPoint::new(Txid::all_zeros(), 0),
            capacity: Amount::from_sat(1),
            stage,
            factory_confirmed: false,
            exiting: false,
            confirmed_at: None,
            spent: None,
        }
    }

    #[test]
    fn only_a_channel_that_stands_is_told_of() {
        assert_eq!(end(None, None), None);
        for stage in [Stage::Expected, Stage::Opening, Stage::Funded] {
            assert_eq!(end(Some(&at(stage)), None), None);
        }
        assert_eq!(end(Some(&at(Stage::Open)), None), Some(Ok(())));
        for stage in [Stage::Closed, Stage::Abandoned] {
            assert!(matches!(end(Some(&at(stage)), None), Some(Err(_))));
        }
    }

    #[test]
    fn what_is_not_the_verified_leaf_is_refused_and_a_lost_connection_is_not() {
        let wrong = LeafRefusal::Capacity {
            verified: Amount::from_sat(2),
            found: Amount::from_sat(1),
        };
        let text = wrong.to_string();
        assert_eq!(
            end(Some(&at(Stage::Expected)), Some(&wrong)),
            Some(Err(text))
        );
        let lost = LeafRefusal::BrokenOff("the peer has gone".to_owned());
        assert_eq!(end(Some(&at(Stage::Expected)), Some(&lost)), None);
        // It came about at the second try.
        assert_eq!(end(Some(&at(Stage::Open)), Some(&lost)), Some(Ok(())));
    }
}
