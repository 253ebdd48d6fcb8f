//! `node`: the commands of the Lightning node.

use anyhow::anyhow;
use proto::admin::admin_client::AdminClient;
use proto::admin::*;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::args::NodeCommand;
use super::operator::{refused, usage};
use super::output::{outpoint, pairs, sat, table, yes};
use super::{Exit, Failure, outln};

pub async fn call(
    admin: &mut AdminClient<Channel>,
    json: bool,
    command: &NodeCommand,
) -> Result<(), Failure> {
    match command {
        NodeCommand::Info => {
            let answer = admin.node_info(NodeInfoRequest {}).await;
            info(json, &answer.map_err(refused)?.into_inner());
        }
        NodeCommand::Connect { peer } => {
            let (id, address) = peer
                .split_once('@')
                .ok_or_else(|| usage(format!("{peer:?}: write it like ID@HOST:PORT")))?;
            let request = NodeConnectRequest {
                node_id: node_id(id)?.into(),
                address: address.to_owned(),
            };
            admin.node_connect(request).await.map_err(refused)?;
            done(json, "connected", id);
        }
        NodeCommand::Disconnect { id } => {
            let request = NodeDisconnectRequest {
                node_id: node_id(id)?.into(),
            };
            admin.node_disconnect(request).await.map_err(refused)?;
            done(json, "disconnected", id);
        }
        NodeCommand::Peers => {
            let answer = admin.node_peers(NodePeersRequest {}).await;
            peers(json, &answer.map_err(refused)?.into_inner());
        }
        NodeCommand::Channels => {
            let answer = admin.node_channels(NodeChannelsRequest {}).await;
            channels(json, &answer.map_err(refused)?.into_inner().channels);
        }
        NodeCommand::OpenChannel {
            id,
            capacity,
            announce,
        } => {
            let request = NodeOpenChannelRequest {
                peer: node_id(id)?.into(),
                capacity_sat: *capacity,
                announce: *announce,
            };
            let answer = admin.node_open_channel(request).await.map_err(refused)?;
            done(json, "channel", &answer.into_inner().channel);
        }
        NodeCommand::CloseChannel { channel, force } => {
            let request = NodeCloseChannelRequest {
                channel: fixed(channel, 32, "channel id")?.into(),
                force: *force,
            };
            admin.node_close_channel(request).await.map_err(refused)?;
            done(json, "closing", channel);
        }
        NodeCommand::Pay {
            invoice,
            amount,
            timeout,
        } => {
            let request = NodePayRequest {
                invoice: invoice.clone(),
                amount_msat: amount.map(msat).transpose()?,
                timeout_seconds: *timeout,
            };
            let answer = admin.node_pay(request).await.map_err(refused)?;
            return paid(json, &answer.into_inner());
        }
        NodeCommand::Invoice {
            amount,
            msat: exact,
            description,
            expiry,
        } => {
            let request = NodeInvoiceRequest {
                amount_msat: amount.map(msat).transpose()?.or(*exact),
                description: description.clone(),
                expiry_seconds: *expiry,
            };
            let answer = admin.node_invoice(request).await.map_err(refused)?;
            invoice(json, &answer.into_inner());
        }
        NodeCommand::Payments { limit } => {
            let request = NodePaymentsRequest { limit: *limit };
            let answer = admin.node_payments(request).await.map_err(refused)?;
            payments(json, &answer.into_inner().payments);
        }
    }
    Ok(())
}

fn msat(sat: u64) -> Result<u64, Failure> {
    sat.checked_mul(1000)
        .ok_or_else(|| usage(format!("{sat} sat are more than there are")))
}

fn fixed(text: &str, bytes: usize, what: &str) -> Result<Vec<u8>, Failure> {
    let found = hex::decode(text).ok().filter(|id| id.len() == bytes);
    found.ok_or_else(|| {
        let digits = bytes.saturating_mul(2);
        usage(format!("{text:?} is no {what}: it has {digits} hex digits"))
    })
}

pub(super) fn node_id(text: &str) -> Result<Vec<u8>, Failure> {
    fixed(text, 33, "node id")
}

fn done(as_json: bool, what: &str, id: &str) {
    if as_json {
        outln!("{}", json!({ what: id }));
    } else {
        outln!("{what} {id}");
    }
}

fn info(as_json: bool, info: &NodeInfoResponse) {
    let node = hex::encode(&info.node_id);
    if as_json {
        let value = json!({
            "node_id": node, "address": info.address, "running": info.problem.is_empty(), "problem": info.problem,
            "height": info.height, "peers": info.peers, "channels": info.channels,
            "leaf_channels": info.leaf_channels, "usable_channels": info.usable_channels,
            "spendable_msat": info.spendable_msat, "receivable_msat": info.receivable_msat,
        });
        outln!("{value}");
        return;
    }
    let state = if info.problem.is_empty() {
        format!("running, at {}", info.height)
    } else {
        info.problem.clone()
    };
    pairs(&[
        ("node", format!("{node}@{}", info.address)),
        ("state", state),
        ("peers", info.peers.to_string()),
        (
            "channels",
            format!(
                "{} ({} on leaves), {} usable",
                info.channels, info.leaf_channels, info.usable_channels
            ),
        ),
        ("can send", format!("{} sat", sat(info.spendable_msat))),
        ("can receive", format!("{} sat", sat(info.receivable_msat))),
    ]);
}

fn peers(as_json: bool, answer: &NodePeersResponse) {
    let ids: Vec<String> = answer.peers.iter().map(hex::encode).collect();
    if as_json {
        outln!("{}", json!({ "peers": ids }));
    } else {
        ids.iter().for_each(|id| outln!("{id}"));
    }
}

fn channels(as_json: bool, all: &[NodeChannel]) {
    let funding = |channel: &NodeChannel| {
        outpoint(channel.outpoint.as_ref()).map(|outpoint| outpoint.to_string())
    };
    if as_json {
        let list: Vec<Value> = all
            .iter()
            .map(|channel| {
                json!({
                    "channel": hex::encode(&channel.channel), "peer": hex::encode(&channel.peer),
                    "leaf": channel.leaf.as_ref().map(hex::encode), "funding": funding(channel),
                    "capacity_sat": channel.capacity_sat, "spendable_msat": channel.spendable_msat,
                    "receivable_msat": channel.receivable_msat, "usable": channel.usable,
                    "announced": channel.announced, "pending": channel.pending,
                })
            })
            .collect();
        outln!("{}", json!({ "channels": list }));
        return;
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|channel| {
            vec![
                hex::encode(&channel.channel),
                hex::encode(&channel.peer),
                if channel.leaf.is_some() {
                    "leaf"
                } else {
                    "chain"
                }
                .to_owned(),
                channel.capacity_sat.to_string(),
                sat(channel.spendable_msat),
                sat(channel.receivable_msat),
                yes(channel.usable),
                channel.pending.to_string(),
            ]
        })
        .collect();
    let heads = [
        "channel",
        "peer",
        "on",
        "capacity",
        "can send",
        "can receive",
        "usable",
        "pending",
    ];
    table(&heads, &rows);
}

fn invoice(as_json: bool, answer: &NodeInvoiceResponse) {
    let hash = hex::encode(&answer.hash);
    if as_json {
        outln!("{}", json!({ "invoice": answer.invoice, "hash": hash }));
    } else {
        outln!("{}", answer.invoice);
    }
}

fn payment(payment: &Payment) -> Value {
    json!({
        "hash": hex::encode(&payment.hash), "direction": payment.direction, "state": payment.state,
        "amount_msat": payment.amount_msat, "fee_msat": payment.fee_msat, "problem": payment.problem,
        "created_height": payment.created_height, "ended_height": payment.ended_height,
    })
}

/// A payment that came back is a refusal; one that is under way has not succeeded.
fn paid(as_json: bool, answer: &Payment) -> Result<(), Failure> {
    succeeded(answer)?;
    if as_json {
        outln!("{}", payment(answer));
    } else {
        let (amount, fee) = (sat(answer.amount_msat), sat(answer.fee_msat));
        outln!("paid {amount} sat, fee {fee} sat");
    }
    Ok(())
}

fn succeeded(answer: &Payment) -> Result<(), Failure> {
    let hash = hex::encode(&answer.hash);
    match answer.state.as_str() {
        "succeeded" => Ok(()),
        "failed" => {
            let text = format!("payment {hash} failed: {}", answer.problem);
            Err(Failure::new(Exit::Refused, anyhow!(text)))
        }
        _ => {
            let text =
                format!("payment {hash} is still under way; see `coordinator node payments`");
            Err(Failure::new(Exit::Failed, anyhow!(text)))
        }
    }
}

fn payments(as_json: bool, all: &[Payment]) {
    if as_json {
        let list: Vec<Value> = all.iter().map(payment).collect();
        outln!("{}", json!({ "payments": list }));
        return;
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|payment| {
            vec![
                hex::encode(&payment.hash),
                payment.direction.clone(),
                sat(payment.amount_msat),
                sat(payment.fee_msat),
                payment.state.clone(),
                payment.problem.clone(),
            ]
        })
        .collect();
    table(&["hash", "", "sat", "fee (sat)", "state", "problem"], &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_whole() {
        assert_eq!(node_id(&"02".repeat(33)).unwrap(), vec![2; 33]);
        for wrong in ["", "02", "zz"] {
            assert_eq!(node_id(wrong).unwrap_err().exit, Exit::Usage);
        }
        assert_eq!(msat(u64::MAX).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_end_of_a_payment_is_the_exit_code() {
        let of = |state: &str| {
            let answer = Payment {
                state: state.to_owned(),
                ..Payment::default()
            };
            succeeded(&answer).map_err(|failure| failure.exit)
        };
        assert_eq!(of("succeeded"), Ok(()));
        assert_eq!(of("failed"), Err(Exit::Refused));
        assert_eq!(of("pending"), Err(Exit::Failed));
    }
}
