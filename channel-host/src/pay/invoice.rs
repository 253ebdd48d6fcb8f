//! BOLT 11 invoices, built by us: LDK's builder names one channel per peer, we name the client's intercept SCID, which outlives channels.

use std::time::Duration;

use bitcoin::Network;
use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::PublicKey;
use lightning::bolt11_invoice::{Bolt11Invoice, Currency, InvoiceBuilder};
use lightning::routing::gossip::RoutingFees;
use lightning::routing::router::{RouteHint, RouteHintHop};
use lightning::sign::{KeysManager, NodeSigner, Recipient};
use lightning::types::payment::{PaymentHash, PaymentSecret};

use crate::clock::since_epoch;
use crate::error::NodeError;
use crate::event::Msat;

/// The way to a client: through its coordinator, which knows this number for life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterceptHint {
    /// The coordinator.
    pub lsp: PublicKey,
    /// The client's number there.
    pub scid: u64,
    /// Blocks the coordinator asks for ([`crate::Node::client_route`]).
    pub cltv_delta: u16,
    /// Its base fee.
    pub base_msat: u32,
    /// Its proportional fee, in millionths.
    pub proportional_millionths: u32,
}

/// What an invoice is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Description {
    /// In words.
    Text(String),
    /// By the SHA-256 of what both sides know (BOLT 11's `h`).
    Hash([u8; 32]),
}

impl From<&str> for Description {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Description {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// What an invoice is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceRequest {
    /// How much; `None` leaves it to the payer.
    pub amount: Option<Msat>,
    /// What for.
    pub description: Description,
    /// How long it can be paid.
    pub expiry: Duration,
    /// Ways to us that are not announced.
    pub hints: Vec<InterceptHint>,
}

/// One way an invoice names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub hint: InterceptHint,
    /// What it carries at the most, if the payer is to know.
    pub most: Option<Msat>,
}

impl From<InterceptHint> for Way {
    fn from(hint: InterceptHint) -> Self {
        Self { hint, most: None }
    }
}

/// What LDK wants to recognise the payment by.
pub(crate) struct Registered {
    pub hash: PaymentHash,
    pub secret: PaymentSecret,
    pub metadata: Option<Vec<u8>>,
}

pub(crate) fn build(
    network: Network,
    keys: &KeysManager,
    payee: PublicKey,
    min_final: u32,
    request: &InvoiceRequest,
    ways: &[Way],
    registered: Registered,
) -> Result<Bolt11Invoice, NodeError> {
    let refused = |error: &dyn std::fmt::Display| NodeError::Refused(error.to_string());
    let now = since_epoch();
    let invoice = InvoiceBuilder::new(Currency::from(network));
    let invoice = match &request.description {
        Description::Text(text) => invoice.description(text.clone()),
        Description::Hash(hash) => invoice.description_hash(sha256::Hash::from_byte_array(*hash)),
    };
    let mut invoice = invoice
        .duration_since_epoch(now)
        .payee_pub_key(payee)
        .payment_hash(registered.hash)
        .payment_secret(registered.secret)
        .basic_mpp()
        .min_final_cltv_expiry_delta(u64::from(min_final))
        .expiry_time(request.expiry);
    if let Some(Msat(amount)) = request.amount {
        invoice = invoice.amount_milli_satoshis(amount);
    }
    for Way { hint, most } in ways {
        invoice = invoice.private_route(RouteHint(vec![RouteHintHop {
            src_node_id: hint.lsp,
            short_channel_id: hint.scid,
            fees: RoutingFees {
                base_msat: hint.base_msat,
                proportional_millionths: hint.proportional_millionths,
            },
            cltv_expiry_delta: hint.cltv_delta,
            htlc_minimum_msat: None,
            htlc_maximum_msat: most.map(|most| most.0),
        }]));
    }
    let raw = match registered.metadata {
        Some(metadata) => invoice.payment_metadata(metadata).build_raw(),
        None => invoice.build_raw(),
    };
    let raw = raw.map_err(|error| refused(&error))?;
    let signature = keys.sign_invoice(&raw, Recipient::Node);
    let signed = raw
        .sign(|_| signature)
        .map_err(|()| NodeError::Refused("the invoice could not be signed".into()))?;
    Bolt11Invoice::from_signed(signed).map_err(|error| refused(&error))
}
