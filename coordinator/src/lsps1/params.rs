//! What a client orders, read strictly: bLIP-51 wants to be told which field is wrong, and which option does not allow it.

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Network};
use channel_host::RpcError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Lsps1Config;
use crate::lsps::Text;

const OPTION_MISMATCH: i32 = 100;
const UNKNOWN_TOKEN: i32 = 102;

const KNOWN: [&str; 8] = [
    "lsp_balance_sat",
    "client_balance_sat",
    "required_channel_confirmations",
    "funding_confirms_within_blocks",
    "channel_expiry_blocks",
    "token",
    "refund_onchain_address",
    "announce_channel",
];

/// A channel that can be had, as far as the options say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub lsp_balance_sat: u64,
    pub confirmations: u16,
    pub confirm_within: u16,
    pub expiry_blocks: u32,
    pub announce: bool,
}

fn about(code: i32, text: &str, property: &str, message: &str) -> RpcError {
    RpcError {
        data: Some(json!({ "property": property, "message": message })),
        ..RpcError::new(code, text)
    }
}

fn invalid(property: &str, message: &str) -> RpcError {
    about(-32_602, "Invalid params", property, message)
}

fn mismatch(property: &str, message: &str) -> RpcError {
    about(OPTION_MISMATCH, "Option mismatch", property, message)
}

fn field<T: DeserializeOwned>(
    params: &Map<String, Value>,
    name: &str,
    kind: &str,
) -> Result<T, RpcError> {
    let value = params.get(name).ok_or_else(|| invalid(name, "Missing"))?;
    serde_json::from_value(value.clone()).map_err(|_| invalid(name, &format!("Not {kind}")))
}

/// A text that may be missing; some clients say null then.
fn text(params: &Map<String, Value>, name: &str) -> Result<Option<String>, RpcError> {
    match params.get(name) {
        None => Ok(None),
        Some(value) => {
            serde_json::from_value(value.clone()).map_err(|_| invalid(name, "Not a string"))
        }
    }
}

const AMOUNT: &str = "an amount as a string of digits";
const U16: &str = "a number of 16 bits";
const U32: &str = "a number of 32 bits";

pub(super) fn read(
    params: &Map<String, Value>,
    config: &Lsps1Config,
    network: Network,
) -> Result<Asked, RpcError> {
    let foreign = params.keys().filter(|name| !KNOWN.contains(&name.as_str()));
    let foreign: Vec<String> = foreign.cloned().collect();
    if !foreign.is_empty() {
        return Err(RpcError::unrecognized(&foreign));
    }
    let Text(lsp_balance_sat) = field(params, "lsp_balance_sat", AMOUNT)?;
    let Text(client_balance_sat) = field(params, "client_balance_sat", AMOUNT)?;
    let asked = Asked {
        lsp_balance_sat,
        confirmations: field(params, "required_channel_confirmations", U16)?,
        confirm_within: field(params, "funding_confirms_within_blocks", U16)?,
        expiry_blocks: field(params, "channel_expiry_blocks", U32)?,
        announce: field(params, "announce_channel", "a boolean")?,
    };
    if lsp_balance_sat == 0 {
        return Err(invalid("lsp_balance_sat", "Must be 1 or greater"));
    }
    if asked.expiry_blocks == 0 {
        return Err(invalid("channel_expiry_blocks", "Must be 1 or greater"));
    }
    // We give none out.
    if text(params, "token")?.is_some_and(|token| !token.is_empty()) {
        return Err(RpcError::new(UNKNOWN_TOKEN, "Unrecognized or stale token"));
    }
    if let Some(address) = text(params, "refund_onchain_address")? {
        let address = address.parse::<Address<NetworkUnchecked>>();
        let ours = address.is_ok_and(|address| address.is_valid_for_network(network));
        if !ours {
            let what = "Not an address of this network";
            return Err(invalid("refund_onchain_address", what));
        }
    }
    check(&asked, client_balance_sat, config)?;
    Ok(asked)
}

fn check(asked: &Asked, client_balance_sat: u64, config: &Lsps1Config) -> Result<(), RpcError> {
    let sat = asked.lsp_balance_sat;
    let rules = [
        (
            sat >= config.min_sat,
            "min_initial_lsp_balance_sat",
            "lsp_balance_sat is too small",
        ),
        (
            sat <= config.max_sat,
            "max_initial_lsp_balance_sat",
            "lsp_balance_sat is too large",
        ),
        (
            client_balance_sat == 0,
            "max_initial_client_balance_sat",
            "client_balance_sat is too large",
        ),
        (
            asked.confirmations >= config.min_confirmations,
            "min_required_channel_confirmations",
            "required_channel_confirmations is too small",
        ),
        (
            asked.confirm_within >= config.min_confirms_within,
            "min_funding_confirms_within_blocks",
            "funding_confirms_within_blocks is too small",
        ),
        (
            asked.expiry_blocks <= config.max_expiry_blocks,
            "max_channel_expiry_blocks",
            "channel_expiry_blocks is too large",
        ),
    ];
    match rules.into_iter().find(|(holds, ..)| !holds) {
        Some((_, option, message)) => Err(mismatch(option, message)),
        None => Ok(()),
    }
}
