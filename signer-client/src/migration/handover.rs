//! The old keys, once nothing is left behind them: masked for the coordinator's factory key, so that nobody else can read them.
//!
//! | stored | means | after a crash |
//! |---|---|---|
//! | begun | the gates are shut, nothing was sent | looked at anew: sent, or taken back |
//! | sent | the keys may be out | sent again until the coordinator has them |
//! | taken | the factory is the coordinator's | its channels are retired |

use std::sync::Arc;

use channel_host::LeafId as Leaf;
use factory_tree::handover::MaskedKeys;
use factory_tree::ids::{FactoryId, LeafId};
use factory_tree::kit::ExitKit;
use proto::v1::client_message::Body;
use proto::wire;
use tokio::time::Instant;

use super::decide::{Rest, may_hand_over};
use super::facts::{Place, Scene};
use super::lane::Lane;
use super::mover::Mover;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::keys::ClientKeys;
use crate::lightning::name_of;
use crate::store::Handover;

/// What the user reads meanwhile.
const WAITING: &str = "the keys are handed over";

/// What goes out.
fn masked(keys: &ClientKeys, place: &Place) -> Result<wire::Handover> {
    let kit = &place.kit;
    let channels = kit.channels().into_iter();
    let bought = channels.filter(|channel| channel.sale.is_some());
    let bought: Vec<LeafId> = bought.map(|channel| channel.leaf_id).collect();
    let secrets = keys.handover_secrets(kit.join_nonce, &bought);
    let keys = MaskedKeys::new(
        &secrets.factory,
        &secrets.payout,
        (&secrets.channel, &secrets.sold),
        &kit.lsp_key,
    );
    Ok(wire::Handover {
        factory: place.row.factory,
        keys: keys.map_err(|error| Error::Task(error.to_string()))?,
    })
}

/// Those of a factory's channels that the node knows: a bought one may not have been opened.
fn known(lane: &dyn Lane, kit: &ExitKit) -> Vec<Leaf> {
    let leaves = kit.channels().into_iter().map(|channel| name_of(&channel));
    leaves.filter(|leaf| lane.leaf(*leaf).is_some()).collect()
}

/// Opens or shuts the gates of a factory's channels; nothing goes on before that is stored.
async fn gate(scene: &Scene, place: &Place, open: bool) -> Result<()> {
    let kit = Arc::clone(&place.kit);
    let gates = scene.on_lane(move |lane| {
        let mut leaves = known(lane, &kit).into_iter();
        leaves.try_for_each(|leaf| lane.gate(leaf, open))
    });
    Ok(gates.await??)
}

impl Mover {
    /// Nothing is left: from now on nothing arrives either.
    pub(super) async fn begin_handover(&mut self, scene: &Scene, place: &Place) -> Result<String> {
        #[cfg(feature = "fault-points")]
        if crate::misbehave::keeps_keys() {
            return Ok("misbehaving".to_owned());
        }
        if self.client.migration.link().is_none() {
            return Ok(WAITING.to_owned());
        }
        let (factory, begun) = (place.row.factory, Some(Handover::Begun));
        self.client.store.set_handover(factory, begun).await?;
        fault::point("handover_stored");
        self.hand_over(scene, place).await
    }

    /// Sends the keys, or takes the beginning back.
    pub(super) async fn hand_over(&mut self, scene: &Scene, place: &Place) -> Result<String> {
        let (client, factory) = (Arc::clone(&self.client), place.row.factory);
        let now = Instant::now();
        let sent = place.row.is_given_away();
        let link = client.migration.link().filter(|link| {
            let pace = self.pace(factory);
            pace.may_hand_over(scene.height) && pace.may_ask(link.number, now)
        });
        if sent && link.is_none() {
            return Ok(WAITING.to_owned());
        }
        // Looked at anew once nothing can come in: what came in before is there to see, or pending.
        gate(scene, place, false).await?;
        let scene = Scene::look(&client, Arc::clone(&scene.lane)).await?;
        let rest = match scene.case(&client, &place.row, None).await? {
            Some(case) => may_hand_over(&case.facts, sent).err(),
            None => Some(Rest::Leaving),
        };
        let Some(link) = link.filter(|_| rest.is_none()) else {
            return self.take_back(&scene, place, rest).await;
        };
        if !sent {
            let step = Some(Handover::Sent);
            client.store.set_handover(factory, step).await?;
        }
        self.pace(factory).asking(link.number, now);
        let keys = masked(&client.keys, place)?;
        #[cfg(feature = "fault-points")]
        let keys = crate::misbehave::twist_handover(keys);
        link.out.body(Body::Handover(keys.into())).await?;
        fault::point("handover_sent");
        Ok(WAITING.to_owned())
    }

    /// Opens the gate again, unless the keys may be out.
    async fn take_back(&self, scene: &Scene, place: &Place, rest: Option<Rest>) -> Result<String> {
        let factory = place.row.factory;
        if !place.row.is_given_away() {
            self.client.store.set_handover(factory, None).await?;
            let stands = self.client.store.factory(factory).await?.stands();
            gate(scene, place, stands).await?;
        }
        Ok(rest.map_or_else(|| WAITING.to_owned(), |rest| rest.to_string()))
    }

    /// The coordinator has the keys: the factory is not ours any more.
    pub(super) async fn taken(&mut self, scene: &Scene, factory: FactoryId) -> Result<()> {
        let client = Arc::clone(&self.client);
        let row = client.store.factory(factory).await?;
        // Its word alone ends nothing: only what was sent can have been taken.
        if row.handover != Some(Handover::Sent) {
            tracing::debug!(%factory, "keys that were not sent are said to be taken");
            return Ok(());
        }
        client
            .store
            .set_handover(factory, Some(Handover::Taken(scene.height)))
            .await?;
        fault::point("handover_taken");
        self.pace(factory).worked();
        client.events.emit(Event::HandedOver { factory });
        if let Some(kit) = client.kits.sound(factory).await? {
            let retired = scene.on_lane(move |lane| {
                let leaves = known(lane, &kit).into_iter();
                leaves.map(|leaf| lane.retire(leaf)).collect::<Vec<_>>()
            });
            for error in retired
                .await?
                .into_iter()
                .filter_map(std::result::Result::err)
            {
                // What is not done now is done with the next block.
                tracing::debug!(%error, "not yet");
            }
        }
        client.wake_chain.notify_one();
        Ok(())
    }

    /// It does not want them yet, or finds them wrong: they are offered again at the next block.
    pub(super) async fn keys_refused(
        &mut self,
        scene: &Scene,
        factory: FactoryId,
        why: &str,
    ) -> Result<()> {
        self.pace(factory).refused(scene.height);
        self.client.events.emit(Event::HandoverRefused {
            factory,
            why: why.to_owned(),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use factory_tree::ids::LeafId;
    use factory_tree::keys::{mask_secret, unmask_secret};

    #[test]
    fn the_coordinator_and_nobody_else_can_read_each_key() {
        let (_dir, keys) = crate::keys::tests::fresh();
        let secp = Secp256k1::new();
        let nonce = [7; 16];
        let public = keys.join_public(nonce);
        let lsp = SecretKey::from_slice(&[8; 32]).unwrap();
        let bought = [LeafId([3; 16]), LeafId([4; 16])];
        let secrets = keys.handover_secrets(nonce, &bought);
        let mask = |secret| mask_secret(secret, &lsp.public_key(&secp)).unwrap();
        let read = |masked: [u8; 32], expected: &PublicKey| unmask_secret(&masked, expected, &lsp);
        let factory = mask(&secrets.factory);
        assert!(read(factory, &public.factory_key).is_ok());
        assert!(read(mask(&secrets.channel), &public.channel_key).is_ok());
        assert_eq!(secrets.sold.len(), bought.len());
        for (leaf, secret) in bought.iter().zip(&secrets.sold) {
            let public = keys.leaf_keys().funding_pubkey(leaf.as_u128());
            assert!(read(mask(secret), &public).is_ok());
        }
        // The output key of the payout script, even as BIP-341 says.
        let script = public.payout_script.as_bytes();
        let mut even = vec![2];
        even.extend_from_slice(&script[2..34]);
        let output = PublicKey::from_slice(&even).unwrap();
        assert!(read(mask(&secrets.payout), &output).is_ok());
        let other = SecretKey::from_slice(&[9; 32]).unwrap();
        assert!(unmask_secret(&factory, &public.factory_key, &other).is_err());
        assert!(!format!("{secrets:?}").contains(&secrets.factory.display_secret().to_string()));
    }

    #[test]
    fn every_join_has_an_even_output_key() {
        let (_dir, keys) = crate::keys::tests::fresh();
        let secp = Secp256k1::new();
        for n in 0..16 {
            let payout = keys.handover_secrets([n; 16], &[]).payout.public_key(&secp);
            assert_eq!(payout.serialize()[0], 2, "{n}");
        }
    }
}
