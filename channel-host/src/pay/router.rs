//! LDK's router, kept off leaves that are not in force, and made to leave room for the exit of our own leaf.

use std::sync::{Arc, RwLock};

use bitcoin::secp256k1::{self, PublicKey, Secp256k1};
use lightning::blinded_path::payment::{BlindedPaymentPath, ReceiveTlvs};
use lightning::ln::channel_state::ChannelDetails;
use lightning::routing::router::{
    DefaultRouter, InFlightHtlcs, Path, Payee, Route, RouteParameters, Router,
};
use lightning::routing::scoring::{ProbabilisticScorer, ProbabilisticScoringFeeParameters};
use lightning::sign::{KeysManager, ReceiveAuthKey};

use crate::leaf::{Book, Record, Side};
use crate::node::{Graph, Log};

type Scorer = ProbabilisticScorer<Graph, Log>;
type Inner = DefaultRouter<
    Graph,
    Log,
    Arc<KeysManager>,
    Arc<RwLock<Scorer>>,
    ProbabilisticScoringFeeParameters,
    Scorer,
>;

/// What the first hop's expiry may exceed the sum of a path's deltas by: LDK counts from the next block.
const HEIGHT_SLACK: u32 = 3;
/// How often a part over an invoice's hint is made smaller.
const MAX_HALVINGS: usize = 4;

pub(crate) struct LeafRouter {
    inner: Inner,
    book: Arc<Book>,
}

impl LeafRouter {
    pub(crate) fn new(
        graph: Graph,
        log: Log,
        keys: Arc<KeysManager>,
        scorer: Arc<RwLock<Scorer>>,
        book: Arc<Book>,
    ) -> Self {
        let fees = ProbabilisticScoringFeeParameters::default();
        Self {
            inner: DefaultRouter::new(graph, log, keys, scorer, fees),
            book,
        }
    }

    /// The leaf behind a first hop.
    fn leaf(&self, channel: &ChannelDetails) -> Option<Record> {
        self.book.by_channel(channel.user_channel_id)
    }

    /// Blocks our own payments add on the first hop: the coordinator must not be able to pay out what it cannot yet collect from us, so it
    /// asks for the time our leaf takes to the chain.
    fn extra(&self, channel: &ChannelDetails) -> u32 {
        match self.leaf(channel) {
            Some(leaf) if leaf.side == Side::Client => leaf.exit_delay,
            _ => 0,
        }
    }

    fn expiry(&self, path: &Path) -> u32 {
        let hops = path.hops.iter().map(|hop| hop.cltv_expiry_delta);
        hops.fold(self.book.height(), u32::saturating_add)
            .saturating_add(HEIGHT_SLACK)
    }
}

/// An invoice's hints do not say how much they carry (BOLT 11), and what failed over one would never be tried again over it. A private channel more
/// likely lacks room than it lies: it gets smaller parts, half as much with each failure.
fn split_at_hints(params: &mut RouteParameters) {
    let amount = params.final_value_msat;
    let payment = &mut params.payment_params;
    let failed = &mut payment.previously_failed_channels;
    let Payee::Clear { route_hints, .. } = &mut payment.payee else {
        return;
    };
    for hop in route_hints.iter_mut().flat_map(|hint| &mut hint.0) {
        let scid = hop.short_channel_id;
        let failures = failed.iter().filter(|failed| **failed == scid).count();
        if (1..=MAX_HALVINGS).contains(&failures) {
            hop.htlc_maximum_msat = Some(amount >> failures);
            failed.retain(|failed| *failed != scid);
        }
    }
}

fn first_hop<'a>(path: &Path, hops: &[&'a ChannelDetails]) -> Option<&'a ChannelDetails> {
    let scid = path.hops.first()?.short_channel_id;
    hops.iter()
        .find(|hop| hop.get_outbound_payment_scid() == Some(scid))
        .copied()
}

impl Router for LeafRouter {
    fn find_route(
        &self,
        payer: &PublicKey,
        params: &RouteParameters,
        first_hops: Option<&[&ChannelDetails]>,
        inflight: InFlightHtlcs,
    ) -> Result<Route, &'static str> {
        let mut hops: Vec<&ChannelDetails> = first_hops
            .unwrap_or_default()
            .iter()
            .filter(|hop| !self.leaf(hop).is_some_and(|leaf| leaf.is_gated()))
            .copied()
            .collect();
        loop {
            let extra = hops.iter().map(|hop| self.extra(hop)).max().unwrap_or(0);
            let mut ours = params.clone();
            split_at_hints(&mut ours);
            let limit = &mut ours.payment_params.max_total_cltv_expiry_delta;
            *limit = limit.saturating_sub(extra);
            let mut route = self
                .inner
                .find_route(payer, &ours, Some(&hops), inflight.clone())?;
            for path in &mut route.paths {
                let forwarded = path.hops.len() > 1 || path.blinded_tail.is_some();
                if let Some(hop) = first_hop(path, &hops).filter(|_| forwarded)
                    && let Some(first) = path.hops.first_mut()
                {
                    first.cltv_expiry_delta =
                        first.cltv_expiry_delta.saturating_add(self.extra(hop));
                }
            }
            let outlives = |path: &Path| {
                let hop = first_hop(path, &hops)?;
                let leaf = self.leaf(hop)?;
                (self.expiry(path) >= leaf.last_expiry).then_some(hop.channel_id)
            };
            match route.paths.iter().find_map(outlives) {
                Some(late) => hops.retain(|hop| hop.channel_id != late),
                None => {
                    // What a retry starts from is without our additions.
                    route.route_params = Some(params.clone());
                    return Ok(route);
                }
            }
        }
    }

    fn create_blinded_payment_paths<T: secp256k1::Signing + secp256k1::Verification>(
        &self,
        recipient: PublicKey,
        key: ReceiveAuthKey,
        first_hops: Vec<ChannelDetails>,
        tlvs: ReceiveTlvs,
        amount_msats: Option<u64>,
        secp: &Secp256k1<T>,
    ) -> Result<Vec<BlindedPaymentPath>, ()> {
        self.inner.create_blinded_payment_paths(
            recipient,
            key,
            first_hops,
            tlvs,
            amount_msats,
            secp,
        )
    }
}
