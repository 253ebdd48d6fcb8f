//! Telling clients where the Lightning node is, and what their invoices say of the way to them.

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use channel_host::Node;
use factory_tree::ids::ClientId;
use proto::v1::ServerMessage;
use proto::wire::{FromServer, Lightning};

use crate::context::Context;

/// Tells one client, if the node runs; otherwise it is told when it does.
pub async fn greet(ctx: &Arc<Context>, client: ClientId) {
    greet_all(ctx, vec![client]).await;
}

pub(super) async fn greet_all(ctx: &Arc<Context>, clients: Vec<ClientId>) {
    let (Some(node), Some(address)) = (ctx.lightning.node(), ctx.lightning.address()) else {
        return;
    };
    // The first time a client gets its number, which is stored.
    let made = tokio::task::spawn_blocking(move || {
        let told = clients.into_iter().filter_map(|client| {
            let message = message(&node, client, address.clone())?;
            Some((client, message))
        });
        told.collect::<Vec<_>>()
    });
    for (client, message) in made.await.unwrap_or_default() {
        ctx.sessions.send(&client, message);
    }
}

fn message(node: &Node, client: ClientId, address: String) -> Option<ServerMessage> {
    let peer = PublicKey::from_slice(&client.0).ok()?;
    match node.client_route(peer) {
        Ok(route) => Some(ServerMessage::from(&FromServer::Lightning(Lightning {
            address,
            intercept_scid: route.scid,
            cltv_delta: route.cltv_delta,
            base_msat: route.base_msat,
            proportional_millionths: route.proportional_millionths,
        }))),
        Err(error) => {
            tracing::warn!(%error, %client, "a client is not told the way to it");
            None
        }
    }
}
