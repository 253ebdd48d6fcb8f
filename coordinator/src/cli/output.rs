//! Answers as text or JSON.

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use factory_tree::params::FactoryParams;
use proto::admin::*;
use proto::v1::{self, ExpiryPolicy, FactoryState, Phase};
use proto::wire::network_from_wire;
use serde_json::{Value, json};

use super::outln;

/// Prints a table with its columns aligned.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}", width = *width))
            .collect();
        outln!("{}", padded.join("  ").trim_end());
    };
    print(
        &head
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>(),
    );
    rows.iter().for_each(|row| print(row));
}

/// Prints names and values, aligned.
pub(super) fn pairs(pairs: &[(&str, String)]) {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs {
        outln!("{name:width$}  {value}");
    }
}

pub(super) fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// Whether something is sold; if not, how that is switched on.
pub(super) fn sold(enabled: bool, section: &str) -> String {
    match enabled {
        true => "yes".to_owned(),
        false => format!("no: set {section}.enabled = true in coordinator.toml, and restart"),
    }
}

fn network(value: i32) -> String {
    network_from_wire("network", value)
        .map_or_else(|_| "?".to_owned(), |network| network.to_string())
}

pub(super) fn outpoint(wire: Option<&v1::OutPoint>) -> Option<OutPoint> {
    let wire = wire?;
    Some(OutPoint::new(Txid::from_slice(&wire.txid).ok()?, wire.vout))
}

/// A phase in words.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "gathering",
        Phase::Joining => "joining",
        Phase::Confirming => "confirming",
        Phase::Signing => "signing",
        Phase::Finalizing => "acknowledging",
        Phase::Opening => "opening channels",
        Phase::Funding => "funding",
        Phase::Done => "done",
        Phase::Failed => "failed",
    }
}

fn state(state: FactoryState) -> &'static str {
    match state {
        FactoryState::Unspecified => "none",
        FactoryState::Proposed => "proposed",
        FactoryState::Unconfirmed => "unconfirmed",
        FactoryState::Confirmed => "confirmed",
        FactoryState::Usable => "usable",
        FactoryState::Spent => "spent",
        FactoryState::Failed => "failed",
    }
}

fn expiry(policy: ExpiryPolicy) -> &'static str {
    match policy {
        ExpiryPolicy::LspReclaim => "lsp_reclaim",
        ExpiryPolicy::ClientRefund | ExpiryPolicy::Unspecified => "client_refund",
    }
}

pub fn info(as_json: bool, info: &InfoResponse) {
    let node = hex::encode(&info.node_id);
    let ceremony = info.ceremony.as_ref().map(hex::encode);
    if as_json {
        let value = json!({
            "node_id": node, "connection": info.connection, "network": network(info.network),
            "protocol_version": info.protocol_version, "software": info.software, "tip_height": info.tip_height,
            "chain_ready": info.chain_ready, "chain_problem": info.chain_problem, "listen": info.listen,
            "data_dir": info.data_dir, "uptime_seconds": info.uptime_seconds,
            "clients_connected": info.clients_connected, "clients_interested": info.clients_interested,
            "factories_live": info.factories_live, "ceremony": ceremony,
            "bytes_received": info.bytes_received, "bytes_sent": info.bytes_sent,
        });
        outln!("{value}");
        return;
    }
    let chain = if info.chain_ready && info.chain_problem.is_empty() {
        format!("in sync at {}", info.tip_height)
    } else if info.chain_ready {
        format!("in sync at {}; {}", info.tip_height, info.chain_problem)
    } else {
        info.chain_problem.clone()
    };
    pairs(&[
        ("node id", node),
        ("connection", info.connection.clone()),
        ("network", network(info.network)),
        ("chain", chain),
        ("listen", info.listen.clone()),
        ("data", info.data_dir.clone()),
        ("software", info.software.clone()),
        ("running for", format!("{} s", info.uptime_seconds)),
        (
            "clients",
            format!(
                "{} connected, {} interested",
                info.clients_connected, info.clients_interested
            ),
        ),
        ("factories", format!("{} live", info.factories_live)),
        ("ceremony", ceremony.unwrap_or_else(|| "none".to_owned())),
        (
            "traffic",
            format!("{} bytes in, {} out", info.bytes_received, info.bytes_sent),
        ),
    ]);
}

pub fn address(as_json: bool, answer: &WalletAddressResponse) {
    if as_json {
        outln!("{}", json!({ "address": answer.address }));
    } else {
        outln!("{}", answer.address);
    }
}

pub fn balance(as_json: bool, answer: &WalletBalanceResponse) {
    if as_json {
        outln!("{}", balance_json(answer));
    } else {
        pairs(&balance_pairs(answer));
    }
}

fn balance_json(answer: &WalletBalanceResponse) -> Value {
    json!({
        "confirmed_sat": answer.confirmed_sat, "unconfirmed_sat": answer.unconfirmed_sat,
        "immature_sat": answer.immature_sat, "pinned_sat": answer.pinned_sat,
    })
}

fn balance_pairs(answer: &WalletBalanceResponse) -> [(&'static str, String); 4] {
    let sat = |amount| format!("{} sat", grouped(amount));
    let immature = match answer.immature_sat {
        0 => sat(0),
        amount => format!(
            "{} (block rewards, spendable 100 blocks after theirs)",
            sat(amount)
        ),
    };
    [
        ("confirmed", sat(answer.confirmed_sat)),
        ("unconfirmed", sat(answer.unconfirmed_sat)),
        ("immature", immature),
        ("pinned", sat(answer.pinned_sat)),
    ]
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(" ")
}

pub fn clients(as_json: bool, clients: &[Client]) {
    if as_json {
        let all: Vec<Value> = clients
            .iter()
            .map(|client| {
                let interest = client.interest.as_ref();
                json!({
                    "client": hex::encode(&client.id), "connected": client.connected,
                    "interested": interest.is_some(), "capacity_sat": interest.map(|interest| interest.capacity_sat),
                    "has_fee_coins": interest.map(|interest| interest.has_fee_coins), "software": client.software,
                    "factories": client.factories, "silent": client.silent, "guilty": client.guilty,
                    "score": client.score, "last_seen_height": client.last_seen_height,
                })
            })
            .collect();
        outln!("{}", json!({ "clients": all }));
        return;
    }
    let rows: Vec<Vec<String>> = clients
        .iter()
        .map(|client| {
            let wants = client
                .interest
                .as_ref()
                .map(|interest| format!("{} sat", interest.capacity_sat));
            vec![
                hex::encode(&client.id),
                yes(client.connected),
                wants.unwrap_or_else(|| "-".to_owned()),
                client.factories.to_string(),
                format!("{:.2}", client.score),
                client.silent.to_string(),
                client.guilty.to_string(),
                client.last_seen_height.to_string(),
            ]
        })
        .collect();
    table(
        &[
            "client",
            "connected",
            "wants",
            "factories",
            "score",
            "silent",
            "guilty",
            "last seen",
        ],
        &rows,
    );
}

fn factory_json(factory: &Factory) -> Value {
    let funding = outpoint(factory.funding.as_ref());
    let round = factory.round.as_ref();
    json!({
        "ceremony": round.map(|round| hex::encode(&round.ceremony)), "attempt": round.map(|round| round.attempt),
        "factory": factory.id.as_ref().map(hex::encode), "state": state(factory.state()), "phase": phase(factory.phase()),
        "clients": factory.clients, "gathered": factory.gathered, "capacity_sat": factory.capacity_sat,
        "funding_txid": funding.map(|funding| funding.txid), "funding_vout": funding.map(|funding| funding.vout),
        "funding_sat": factory.funding_sat, "expiry_policy": expiry(factory.expiry_policy()),
        "birth_height": factory.birth_height, "expiry_height": factory.expiry_height,
        "confirmed_height": factory.confirmed_height, "problem": factory.problem,
    })
}

/// Its clients, or how many of them are there while it waits for the others.
fn there(factory: &Factory) -> String {
    match factory.gathered {
        Some(gathered) => format!("{gathered} of {}", factory.clients),
        None => factory.clients.to_string(),
    }
}

fn factory_pairs(factory: &Factory) -> Vec<(&'static str, String)> {
    let round = factory.round.as_ref();
    let funding = outpoint(factory.funding.as_ref());
    let mut all = vec![
        (
            "factory",
            factory
                .id
                .as_ref()
                .map_or_else(|| "-".to_owned(), hex::encode),
        ),
        (
            "ceremony",
            round
                .map(|round| hex::encode(&round.ceremony))
                .unwrap_or_default(),
        ),
        (
            "attempt",
            round.map_or(0, |round| round.attempt).to_string(),
        ),
        ("state", state(factory.state()).to_owned()),
        ("phase", phase(factory.phase()).to_owned()),
        ("clients", there(factory)),
        ("capacity", format!("{} sat", factory.capacity_sat)),
        (
            "funding",
            funding.map_or_else(|| "-".to_owned(), |funding| funding.to_string()),
        ),
        ("holds", format!("{} sat", factory.funding_sat)),
        (
            "expiry",
            format!(
                "height {} ({})",
                factory.expiry_height,
                expiry(factory.expiry_policy())
            ),
        ),
        (
            "confirmed",
            factory
                .confirmed_height
                .map_or_else(|| "no".to_owned(), |height| format!("height {height}")),
        ),
    ];
    if !factory.problem.is_empty() {
        all.push(("problem", factory.problem.clone()));
    }
    all
}

pub fn factories(as_json: bool, factories: &[Factory]) {
    if as_json {
        let all: Vec<Value> = factories.iter().map(factory_json).collect();
        outln!("{}", json!({ "factories": all }));
        return;
    }
    let rows: Vec<Vec<String>> = factories
        .iter()
        .map(|factory| {
            let ceremony = factory
                .round
                .as_ref()
                .map(|round| hex::encode(&round.ceremony));
            vec![
                ceremony.unwrap_or_default(),
                factory
                    .id
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), hex::encode),
                state(factory.state()).to_owned(),
                phase(factory.phase()).to_owned(),
                there(factory),
                factory.funding_sat.to_string(),
                factory.expiry_height.to_string(),
                factory.problem.clone(),
            ]
        })
        .collect();
    table(
        &[
            "ceremony", "factory", "state", "phase", "clients", "sat", "expires", "problem",
        ],
        &rows,
    );
}

pub fn created(as_json: bool, ceremony: &str, factory: &Factory) {
    if as_json {
        let mut value = factory_json(factory);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("ceremony".to_owned(), json!(ceremony));
        }
        outln!("{value}");
    } else {
        pairs(&factory_pairs(factory));
    }
}

pub fn show(as_json: bool, answer: &FactoryShowResponse) {
    let Some(factory) = &answer.factory else {
        return;
    };
    let params = answer
        .params
        .clone()
        .and_then(|params| FactoryParams::try_from(params).ok());
    let params = params
        .and_then(|params| serde_json::to_value(params).ok())
        .unwrap_or_default();
    if as_json {
        let members: Vec<Value> = answer.members.iter().map(member_json).collect();
        let mut value = factory_json(factory);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("params".to_owned(), params);
            fields.insert("members".to_owned(), json!(members));
            fields.insert("levels".to_owned(), json!(answer.levels));
            fields.insert("transactions".to_owned(), json!(answer.transactions));
        }
        outln!("{value}");
        return;
    }
    pairs(&factory_pairs(factory));
    outln!(
        "levels {}, transactions {}",
        answer.levels,
        answer.transactions
    );
    outln!("");
    let named: Vec<(&str, String)> = params
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), plain(value)))
        .collect();
    pairs(&named);
    outln!("");
    let rows: Vec<Vec<String>> = answer.members.iter().flat_map(member_rows).collect();
    table(
        &[
            "client",
            "from",
            "capacity",
            "acked",
            "channel",
            "ours (sat)",
            "theirs (sat)",
        ],
        &rows,
    );
}

fn member_json(member: &Member) -> Value {
    let bought = member.bought.iter().map(|bought| {
        json!({
            "leaf_id": hex::encode(&bought.leaf_id), "capacity_sat": bought.capacity_sat,
            "channel": bought.channel.as_ref().map(leaf_channel),
        })
    });
    let bought: Vec<Value> = bought.collect();
    json!({
        "client": hex::encode(&member.client), "factory_pubkey": hex::encode(&member.factory_key),
        "payout_script_pubkey": hex::encode(&member.payout_script), "capacity_sat": member.capacity_sat,
        "acked": member.acked, "channel": member.channel.as_ref().map(leaf_channel), "bought": bought,
    })
}

/// The channel a member was born with, then those from the stock.
fn member_rows(member: &Member) -> Vec<Vec<String>> {
    let row = |from: &str, capacity_sat: u64, channel: Option<&LeafChannel>| {
        let side =
            |msat: fn(&LeafChannel) -> u64| channel.map_or_else(dash, |channel| sat(msat(channel)));
        vec![
            hex::encode(&member.client),
            from.to_owned(),
            capacity_sat.to_string(),
            yes(member.acked),
            channel_state(channel),
            side(|channel| channel.local_msat),
            side(|channel| channel.remote_msat),
        ]
    };
    let born = row("birth", member.capacity_sat, member.channel.as_ref());
    let bought = member.bought.iter();
    let bought = bought.map(|one| row("stock", one.capacity_sat, one.channel.as_ref()));
    std::iter::once(born).chain(bought).collect()
}

fn leaf_channel(channel: &LeafChannel) -> Value {
    json!({
        "state": channel.state, "usable": channel.usable, "local_msat": channel.local_msat,
        "remote_msat": channel.remote_msat, "pending": channel.pending, "exiting": channel.exiting,
        "confirmed_height": channel.confirmed_height, "spent_by": channel.spent_by,
    })
}

fn channel_state(channel: Option<&LeafChannel>) -> String {
    let Some(channel) = channel else {
        return dash();
    };
    match (&channel.spent_by, channel.exiting) {
        (Some(by), _) => format!("{}, spent by {by}", channel.state),
        (None, true) => format!("{}, exiting", channel.state),
        (None, false) => channel.state.clone(),
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// Thousandths of a satoshi as satoshi, exactly.
pub(super) fn sat(msat: u64) -> String {
    format!("{}.{:03}", msat / 1000, msat % 1000)
}

/// A parameter as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

pub fn cancelled(as_json: bool, answer: &FactoryCancelResponse) {
    let ceremony = hex::encode(&answer.ceremony);
    let released: Vec<String> = answer
        .released
        .iter()
        .filter_map(|pin| outpoint(Some(pin)))
        .map(|pin| pin.to_string())
        .collect();
    if as_json {
        outln!("{}", json!({ "ceremony": ceremony, "released": released }));
    } else {
        let coins = match released.len() {
            0 => "no coins were pinned for it".to_owned(),
            1 => "1 coin is free again".to_owned(),
            many => format!("{many} coins are free again"),
        };
        outln!("ceremony {ceremony} is given up; {coins}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_bought_is_listed_below_what_it_was_born_with() {
        let member = Member {
            client: vec![2; 33].into(),
            capacity_sat: 200_000,
            bought: vec![BoughtChannel {
                leaf_id: vec![7; 16].into(),
                capacity_sat: 50_000,
                channel: Some(LeafChannel {
                    state: "open".to_owned(),
                    local_msat: 30_000_500,
                    ..LeafChannel::default()
                }),
            }],
            ..Member::default()
        };
        let rows = member_rows(&member);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0][1..3], ["birth", "200000"]);
        assert_eq!(rows[1][0], "02".repeat(33));
        assert_eq!(rows[1][1..3], ["stock", "50000"]);
        assert_eq!(rows[1][4..6], ["open", "30000.500"]);
        let bought = &member_json(&member)["bought"];
        assert_eq!(bought[0]["leaf_id"], "07".repeat(16));
        assert_eq!(bought[0]["channel"]["state"], "open");
    }

    #[test]
    fn a_ceremony_that_waits_for_clients_says_how_many_are_there() {
        let mut factory = Factory {
            clients: 9,
            gathered: Some(2),
            ..Factory::default()
        };
        assert_eq!(there(&factory), "2 of 9");
        assert_eq!(factory_json(&factory)["gathered"], 2);
        assert_eq!(factory_json(&factory)["clients"], 9);
        factory.gathered = None;
        assert_eq!(there(&factory), "9");
    }

    #[test]
    fn immature_block_rewards_are_not_called_unconfirmed() {
        let answer = WalletBalanceResponse {
            confirmed_sat: 1_267_498_921_775,
            unconfirmed_sat: 2,
            pinned_sat: 3,
            immature_sat: 4,
        };
        let value = json!({ "confirmed_sat": 1_267_498_921_775u64, "unconfirmed_sat": 2, "immature_sat": 4, "pinned_sat": 3 });
        assert_eq!(balance_json(&answer), value);
        let pairs = balance_pairs(&answer);
        assert_eq!(pairs[0].1, "1 267 498 921 775 sat");
        assert_eq!(pairs[1], ("unconfirmed", "2 sat".to_owned()));
        assert_eq!(pairs[2].0, "immature");
        assert!(pairs[2].1.starts_with("4 sat"), "{}", pairs[2].1);
    }
}
