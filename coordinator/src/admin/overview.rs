//! Info, wallet, clients.

use std::collections::BTreeMap;
use std::time::Duration;

use bitcoin::Network;
use factory_tree::ids::ClientId;
use proto::admin::*;
use proto::session::{ServiceError, VERSION};
use proto::v1;
use proto::wire::{self, network_to_wire};

use super::About;
use super::convert::{store_error, wallet_error};
use crate::context::{ChainState, Context};
use crate::server::SOFTWARE;
use crate::sessions::SessionInfo;
use crate::store::clients::{self, ClientRow};
use crate::store::factories;

/// How long the node may take to tell how it is.
const NODE_TIME: Duration = Duration::from_secs(2);

pub async fn info(ctx: &Context, about: &About) -> Result<InfoResponse, ServiceError> {
    let funded = ctx
        .store
        .read(async |tx| factories::funded(tx).await)
        .await
        .map_err(|e| store_error(&e))?;
    let sessions = ctx.sessions.list();
    let chain = ctx.chain.borrow().clone();
    let (chain_ready, chain_problem) = match chain {
        ChainState::Ready(_) => (true, stale(ctx).await.to_owned()),
        ChainState::Away(problem) => (false, problem),
    };
    let traffic = proto::tls::traffic();
    Ok(InfoResponse {
        bytes_received: traffic.received,
        bytes_sent: traffic.sent,
        node_id: ctx.keys.node_id().to_bytes().to_vec().into(),
        connection: about.connection.clone(),
        network: network_to_wire(ctx.config.network).into(),
        protocol_version: VERSION,
        software: SOFTWARE.to_owned(),
        tip_height: ctx.height(),
        chain_ready,
        chain_problem,
        listen: about.listen.clone(),
        data_dir: about.data_dir.clone(),
        uptime_seconds: about.started.elapsed().as_secs(),
        clients_connected: count(sessions.len()),
        clients_interested: count(
            sessions
                .iter()
                .filter(|session| session.interest.is_some())
                .count(),
        ),
        factories_live: count(funded.iter().filter(|row| !row.spent).count()),
        ceremony: ctx
            .ceremonies
            .running()
            .first()
            .map(|(id, _)| id.0.to_vec().into()),
    })
}

/// What a node that follows the chain still lacks: until it has a recent block it relays nothing.
async fn stale(ctx: &Context) -> &'static str {
    match tokio::time::timeout(NODE_TIME, ctx.source.node_info()).await {
        Ok(Ok(node)) if node.initial_block_download && ctx.config.network == Network::Regtest => {
            "the node has no recent block yet; on regtest mine one"
        }
        Ok(Ok(node)) if node.initial_block_download => "the node has no recent block yet",
        _ => "",
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub async fn wallet_address(ctx: &Context) -> Result<WalletAddressResponse, ServiceError> {
    let address = ctx
        .wallet
        .new_address()
        .await
        .map_err(|error| wallet_error(&error))?;
    Ok(WalletAddressResponse {
        address: address.to_string(),
    })
}

pub async fn wallet_balance(ctx: &Context) -> Result<WalletBalanceResponse, ServiceError> {
    let balance = ctx
        .wallet
        .balance()
        .await
        .map_err(|error| wallet_error(&error))?;
    Ok(WalletBalanceResponse {
        confirmed_sat: balance.confirmed.to_sat(),
        unconfirmed_sat: balance.pending.to_sat(),
        immature_sat: balance.immature.to_sat(),
        pinned_sat: balance.locked.to_sat(),
    })
}

pub async fn clients(
    ctx: &Context,
    connected_only: bool,
) -> Result<ClientListResponse, ServiceError> {
    let rows = ctx
        .store
        .read(async |tx| clients::list(tx).await)
        .await
        .map_err(|e| store_error(&e))?;
    let mut sessions: BTreeMap<ClientId, SessionInfo> = ctx
        .sessions
        .list()
        .into_iter()
        .map(|session| (session.client, session))
        .collect();
    let mut all: Vec<Client> = Vec::new();
    for row in rows {
        let session = sessions.remove(&row.client);
        all.push(client(ctx, Some(&row), session.as_ref(), row.client));
    }
    // Those who came this very moment are not written down yet.
    all.extend(
        sessions
            .values()
            .map(|session| client(ctx, None, Some(session), session.client)),
    );
    all.retain(|client| client.connected || !connected_only);
    Ok(ClientListResponse { clients: all })
}

fn client(
    ctx: &Context,
    row: Option<&ClientRow>,
    session: Option<&SessionInfo>,
    id: ClientId,
) -> Client {
    let interest = session
        .and_then(|session| session.interest)
        .map(|interest| {
            v1::Interest::from(wire::Interest {
                capacity: Some(interest.capacity),
                has_fee_coins: interest.has_fee_coins,
                once: interest.once,
            })
        });
    let software = session.map(|session| session.software.clone());
    let half_life = ctx.config.policy.score_half_life_blocks;
    Client {
        id: id.0.to_vec().into(),
        connected: session.is_some(),
        interest,
        software: software
            .or_else(|| row.map(|row| row.software.clone()))
            .unwrap_or_default(),
        factories: row.map_or(0, |row| row.factories),
        silent: row.map_or(0, |row| row.silent),
        guilty: row.map_or(0, |row| row.guilty),
        last_seen_height: row.map_or(ctx.height(), |row| row.last_seen),
        score: row.map_or(0.0, |row| row.score.at(ctx.height(), half_life)),
    }
}
