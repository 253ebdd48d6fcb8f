//! The Lightning node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use channel_host::{
    ChannelView, InvoiceRequest, LeafId, LeafView, Msat, Node, NodeError, Stage, read_invoice,
};
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1::{self, ErrorCode};

use super::convert::store_error;
use crate::context::Context;
use crate::lightning::{self, PayError, spend_name};
use crate::lsps;
use crate::store::payments::{self, PaymentRow};

/// How long a name may take to become an address.
const LOOKUP: Duration = Duration::from_secs(10);
/// The most payments that are listed at once.
const MOST_PAYMENTS: u32 = 10_000;

fn node_error(error: &NodeError) -> ServiceError {
    let code = match error {
        NodeError::Store(_) => ErrorCode::Store,
        NodeError::Chain(_) => ErrorCode::ChainUnavailable,
        NodeError::UnknownLeaf { .. } | NodeError::UnknownChannel => ErrorCode::NotFound,
        NodeError::Refused(_)
        | NodeError::NotNow(_)
        | NodeError::NotOver { .. }
        | NodeError::Unreachable { .. } => ErrorCode::Refused,
        _ => ErrorCode::Internal,
    };
    ServiceError::new(code, error.to_string())
}

fn pay_error(error: &PayError) -> ServiceError {
    match error {
        PayError::Node(error) => node_error(error),
        PayError::Store(error) => store_error(error),
        PayError::Down(_) => ServiceError::new(ErrorCode::Internal, error.to_string()),
        PayError::Unreadable(_) | PayError::NoAmount | PayError::OtherAmount(_) => {
            ServiceError::new(ErrorCode::InvalidArgument, error.to_string())
        }
        PayError::Lost => ServiceError::new(ErrorCode::Store, error.to_string()),
    }
}

fn bad(text: impl Into<String>) -> ServiceError {
    ServiceError::new(ErrorCode::InvalidArgument, text)
}

fn running(ctx: &Context) -> Result<Arc<Node>, ServiceError> {
    ctx.lightning.node().ok_or_else(|| {
        let problem = ctx.lightning.problem().unwrap_or_default();
        let text = format!("the Lightning node does not run: {problem}");
        ServiceError::new(ErrorCode::Internal, text)
    })
}

fn peer(bytes: &[u8]) -> Result<PublicKey, ServiceError> {
    PublicKey::from_slice(bytes).map_err(|_| bad("a node id is a public key of 33 bytes"))
}

/// The node's calls wait for its disk.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, ServiceError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result.map_err(|error| node_error(&error)),
        Err(_) => Err(ServiceError::new(
            ErrorCode::ShuttingDown,
            "the coordinator is shutting down",
        )),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub fn info(ctx: &Context) -> NodeInfoResponse {
    let node = ctx.lightning.node();
    let channels = node
        .as_ref()
        .map(|node| node.channels())
        .unwrap_or_default();
    let usable = || channels.iter().filter(|channel| channel.usable);
    let sum = |amount: fn(&ChannelView) -> Msat| {
        usable().fold(0u64, |sum, channel| sum.saturating_add(amount(channel).0))
    };
    NodeInfoResponse {
        node_id: ctx.keys.node_id().to_bytes().to_vec().into(),
        address: ctx.lightning.address().unwrap_or_default(),
        problem: ctx.lightning.problem().unwrap_or_default(),
        height: node.as_ref().map_or(0, |node| node.height()),
        peers: node.as_ref().map_or(0, |node| count(node.peers().len())),
        channels: count(channels.len()),
        leaf_channels: count(
            channels
                .iter()
                .filter(|channel| channel.leaf.is_some())
                .count(),
        ),
        usable_channels: count(usable().count()),
        spendable_msat: sum(|channel| channel.spendable),
        receivable_msat: sum(|channel| channel.receivable),
    }
}

pub async fn connect(
    ctx: &Context,
    request: NodeConnectRequest,
) -> Result<NodeConnectResponse, ServiceError> {
    let (node, peer) = (running(ctx)?, peer(&request.node_id)?);
    let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host(&request.address)).await;
    let address = match found {
        Ok(Ok(mut all)) => all.next(),
        Ok(Err(error)) => {
            return Err(bad(format!("{} is no host:port: {error}", request.address)));
        }
        Err(_) => None,
    };
    let address = address.ok_or_else(|| bad(format!("{} has no address", request.address)))?;
    let connected = node.connect(peer, address).await;
    connected.map_err(|error| node_error(&error))?;
    Ok(NodeConnectResponse {})
}

pub async fn disconnect(ctx: &Context, id: &[u8]) -> Result<NodeDisconnectResponse, ServiceError> {
    let (node, peer) = (running(ctx)?, peer(id)?);
    blocking(move || node.disconnect(peer)).await?;
    Ok(NodeDisconnectResponse {})
}

pub fn peers(ctx: &Context) -> Result<NodePeersResponse, ServiceError> {
    let mut peers = running(ctx)?.peers();
    peers.sort();
    let ids = peers.iter().map(|peer| peer.serialize().to_vec().into());
    Ok(NodePeersResponse {
        peers: ids.collect(),
    })
}

pub fn channels(ctx: &Context) -> Result<NodeChannelsResponse, ServiceError> {
    let channels = running(ctx)?.channels();
    Ok(NodeChannelsResponse {
        channels: channels.iter().map(channel).collect(),
    })
}

fn channel(view: &ChannelView) -> NodeChannel {
    NodeChannel {
        channel: view.channel.to_vec().into(),
        peer: view.peer.serialize().to_vec().into(),
        leaf: view.leaf.map(|leaf| leaf.0.to_vec().into()),
        outpoint: view.outpoint.map(v1::OutPoint::from),
        capacity_sat: view.capacity.to_sat(),
        spendable_msat: view.spendable.0,
        receivable_msat: view.receivable.0,
        usable: view.usable,
        announced: view.announced,
        pending: count(view.pending),
    }
}

pub async fn open_channel(
    ctx: &Context,
    request: NodeOpenChannelRequest,
) -> Result<NodeOpenChannelResponse, ServiceError> {
    let (node, peer) = (running(ctx)?, peer(&request.peer)?);
    let capacity = Amount::from_sat(request.capacity_sat);
    let free = ctx
        .wallet
        .balance()
        .await
        .map_err(|error| super::convert::wallet_error(&error))?
        .confirmed;
    // Known before the handshake: without coins the peer would wait for a funding that never comes.
    if capacity > free {
        let text = format!(
            "the channel would hold {} sat, and the wallet has {} sat confirmed and free",
            capacity.to_sat(),
            free.to_sat()
        );
        return Err(ServiceError::new(ErrorCode::NoFunds, text));
    }
    let number = blocking(move || node.open_channel(peer, capacity, request.announce)).await?;
    Ok(NodeOpenChannelResponse {
        channel: number.to_string(),
    })
}

pub async fn close_channel(
    ctx: &Context,
    request: NodeCloseChannelRequest,
) -> Result<NodeCloseChannelResponse, ServiceError> {
    let node = running(ctx)?;
    let id = <[u8; 32]>::try_from(request.channel.as_ref());
    let id = id.map_err(|_| bad("a channel id has 32 bytes; see `coordinator node channels`"))?;
    let mut channels = node.channels().into_iter();
    let view = channels.find(|view| view.channel == id);
    if let Some(view) = &view
        && !request.force
    {
        let until = lsps::promised_until(ctx, view).await;
        let until = until.map_err(|error| store_error(&error))?;
        let leaf = view.leaf.and_then(|leaf| node.leaf(leaf));
        let inside = leaf.is_some_and(|leaf| leaf.confirmed_at.is_none());
        if let Some(text) = why_not(inside, until) {
            return Err(ServiceError::new(ErrorCode::Refused, text));
        }
    }
    let leaf = view.and_then(|view| view.leaf);
    match leaf.filter(|_| request.force) {
        // To the chain, with its path.
        Some(leaf) => {
            let closed = node.force_close(leaf).await;
            closed.map_err(|error| node_error(&error))?;
        }
        None => {
            let closed = node.close_channel(id, request.force).await;
            closed.map_err(|error| node_error(&error))?;
        }
    }
    Ok(NodeCloseChannelResponse {})
}

/// Why a channel is not closed together with its peer, if it is not. On a leaf that is not on the chain that would free nothing, and a client moves
/// out of a factory, and hands its keys over, only while all its channels there stand: so it is not done, promise or none.
fn why_not(inside: bool, until: Option<String>) -> Option<String> {
    match (inside, until) {
        (true, until) => {
            let broken = until.map_or("", |_| ", and breaks the promise it was sold with");
            Some(format!(
                "this channel lies in a factory, on a leaf that is not on the chain: closed by itself it would free nothing, and keep its client \
                 from moving out. It ends with its factory; --force brings the leaf to the chain now{broken}"
            ))
        }
        (false, Some(until)) => Some(format!(
            "this channel is sold until {until}; --force breaks that promise"
        )),
        (false, None) => None,
    }
}

pub async fn pay(ctx: &Arc<Context>, request: NodePayRequest) -> Result<Payment, ServiceError> {
    let patience = Duration::from_secs(request.timeout_seconds.into());
    let amount = request.amount_msat.map(Msat);
    let paid = lightning::pay(ctx, request.invoice, amount, patience).await;
    paid.map(|row| payment(&row))
        .map_err(|error| pay_error(&error))
}

pub async fn invoice(
    ctx: &Context,
    request: NodeInvoiceRequest,
) -> Result<NodeInvoiceResponse, ServiceError> {
    let (node, network) = (running(ctx)?, ctx.config.network);
    let wanted = InvoiceRequest {
        amount: request.amount_msat.map(Msat),
        description: request.description.into(),
        expiry: Duration::from_secs(request.expiry_seconds.into()),
        hints: Vec::new(),
    };
    let made = blocking(move || {
        let invoice = node.invoice(&wanted)?;
        let hash = read_invoice(&invoice, network)?.hash;
        Ok((invoice, hash))
    });
    let (invoice, hash) = made.await?;
    Ok(NodeInvoiceResponse {
        invoice,
        hash: hash.0.to_vec().into(),
    })
}

pub async fn payments(ctx: &Context, limit: u32) -> Result<NodePaymentsResponse, ServiceError> {
    let limit = limit.min(MOST_PAYMENTS);
    let rows = ctx
        .store
        .read(async |tx| payments::list(tx, limit).await)
        .await
        .map_err(|error| store_error(&error))?;
    Ok(NodePaymentsResponse {
        payments: rows.iter().map(payment).collect(),
    })
}

fn payment(row: &PaymentRow) -> Payment {
    Payment {
        hash: row.hash.to_vec().into(),
        direction: row.direction.name().to_owned(),
        state: row.state.name().to_owned(),
        amount_msat: row.msat,
        fee_msat: row.fee_msat,
        problem: row.text.clone(),
        created_height: row.created_height,
        ended_height: row.ended_height,
    }
}

/// The channels on leaves, by leaf.
pub fn leaf_channels(ctx: &Context) -> HashMap<LeafId, LeafChannel> {
    let Some(node) = ctx.lightning.node() else {
        return HashMap::new();
    };
    let live: HashMap<LeafId, ChannelView> = node
        .channels()
        .into_iter()
        .filter_map(|view| Some((view.leaf?, view)))
        .collect();
    let leaves = node.leaves().into_iter();
    leaves
        .map(|leaf| (leaf.id, leaf_channel(&leaf, live.get(&leaf.id))))
        .collect()
}

fn leaf_channel(leaf: &LeafView, live: Option<&ChannelView>) -> LeafChannel {
    let state = match leaf.stage {
        Stage::Expected => "expected",
        Stage::Opening => "opening",
        Stage::Funded => "funded",
        Stage::Open => "open",
        Stage::Closed => "closed",
        Stage::Abandoned => "abandoned",
    };
    LeafChannel {
        state: state.to_owned(),
        usable: live.is_some_and(|view| view.usable) && leaf.factory_confirmed,
        local_msat: live.map_or(0, |view| view.spendable.0),
        remote_msat: live.map_or(0, |view| view.receivable.0),
        pending: live.map_or(0, |view| count(view.pending)),
        exiting: leaf.exiting,
        confirmed_height: leaf.confirmed_at,
        spent_by: leaf.spent.map(|(kind, ..)| spend_name(kind).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestWorld;

    #[tokio::test]
    async fn what_is_no_invoice_is_bad_input_whether_or_not_the_node_runs() {
        let world = TestWorld::new().await;
        let request = NodePayRequest {
            invoice: "garbage".to_owned(),
            ..NodePayRequest::default()
        };
        let error = pay(&world.ctx, request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains("BOLT 11"), "{}", error.message);
    }
}
