//! What the coordinator offers, and whether its answer is what was asked for.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint};
use channel_host::{InvoiceView, Msat};
use serde::Deserialize;
use serde_json::{Value, json};

use super::OrderError;
use crate::jit::Text;

/// For so many blocks a channel is ordered, where nothing speaks against it: thirty days.
const BLOCKS: u32 = 30 * 144;
/// Blocks that a factory has to outlive the channel by, beside its exit delay: the payment may be held so long before that begins.
const SPARE: u32 = 300;
/// What a new factory needs of its life to come into use.
const SPARE_AT_BIRTH: u32 = 36;
const THREE_DAYS: u16 = 3 * 144;
/// A channel is ordered for no less, even if it cannot come from a stock then.
const LEAST_BLOCKS: u32 = 144;
/// Longer ids are none.
const MOST_ID: usize = 100;

/// What is sold, as far as it matters here.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Info {
    min_required_channel_confirmations: u16,
    min_funding_confirms_within_blocks: u16,
    max_channel_expiry_blocks: u32,
    min_initial_lsp_balance_sat: Text,
    max_initial_lsp_balance_sat: Text,
    /// Not bLIP-51's: there may be channels that come with the next factory.
    #[serde(default, rename = "superscalar_next_factory")]
    next_factory: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) capacity: Amount,
    pub(super) blocks: u32,
    confirmations: u16,
    confirm_within: u16,
    at_birth: bool,
}

/// Where a channel should come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A stock, or else the chain; blocks until the end of the factory of that stock, less its exit delay, if there is one.
    Stock(Option<u32>),
    /// The next factory; blocks that such a one lives, less its exit delay, if that is known.
    Birth(Option<u32>),
}

impl Asked {
    pub(super) fn new(info: &Info, capacity: Amount, wanted: Wanted) -> Result<Self, OrderError> {
        let sat = capacity.to_sat();
        let (Text(least_sat), Text(most_sat)) = (
            info.min_initial_lsp_balance_sat,
            info.max_initial_lsp_balance_sat,
        );
        if !(least_sat..=most_sat).contains(&sat) {
            return Err(OrderError::Size {
                sat,
                least_sat,
                most_sat,
            });
        }
        let at_birth = matches!(wanted, Wanted::Birth(_));
        // An order that is refused afterwards is one all the same, for an hour.
        if at_birth && !info.next_factory {
            return Err(OrderError::NoBirth);
        }
        let within = info.min_funding_confirms_within_blocks;
        let least = info.min_required_channel_confirmations;
        let (lives, spare, confirm_within, confirmations) = match wanted {
            Wanted::Stock(lives) => (lives, SPARE, within, least),
            // The next one is born tomorrow, or a day later; there is time for that. With no confirmation bLIP-51 wants it opened at once.
            Wanted::Birth(lives) => (lives, SPARE_AT_BIRTH, within.max(THREE_DAYS), least.max(1)),
        };
        // The coordinator counts eleven minutes for each block that is ordered.
        let fits = lives.map(|lives| lives.saturating_sub(spare) / 11 * 10);
        let fits = fits.filter(|blocks| *blocks >= LEAST_BLOCKS);
        Ok(Self {
            capacity,
            blocks: BLOCKS
                .min(fits.unwrap_or(BLOCKS))
                .min(info.max_channel_expiry_blocks),
            confirmations,
            confirm_within,
            at_birth,
        })
    }

    pub(super) fn params(&self) -> Value {
        json!({
            "lsp_balance_sat": Text(self.capacity.to_sat()),
            "client_balance_sat": Text(0),
            "required_channel_confirmations": self.confirmations,
            "funding_confirms_within_blocks": self.confirm_within,
            "channel_expiry_blocks": self.blocks,
            "token": "",
            "announce_channel": false,
        })
    }
}

/// An order, as the coordinator tells of it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) order_id: String,
    lsp_balance_sat: Text,
    client_balance_sat: Text,
    channel_expiry_blocks: u32,
    announce_channel: bool,
    pub(super) order_state: State,
    payment: Payment,
    pub(super) channel: Option<Channel>,
    /// Not bLIP-51's: the channel comes with the next factory.
    #[serde(default, rename = "superscalar_next_factory")]
    with_next_factory: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum State {
    Created,
    Completed,
    Failed,
}

#[derive(Clone, Debug, Deserialize)]
struct Payment {
    bolt11: Bolt11,
}

#[derive(Clone, Debug, Deserialize)]
struct Bolt11 {
    fee_total_sat: Text,
    order_total_sat: Text,
    invoice: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Channel {
    pub(super) funding_outpoint: OutPoint,
}

impl Answer {
    pub(super) fn invoice(&self) -> &str {
        &self.payment.bolt11.invoice
    }

    /// The price, if this is what was asked for, and the invoice is for that.
    pub(super) fn price(
        &self,
        asked: &Asked,
        invoice: &InvoiceView,
        coordinator: PublicKey,
    ) -> Result<Msat, OrderError> {
        if asked.at_birth && !self.with_next_factory {
            return Err(OrderError::NoBirth);
        }
        let bolt11 = &self.payment.bolt11;
        let sat = bolt11.order_total_sat.0;
        let rules = [
            (
                !self.order_id.is_empty() && self.order_id.len() <= MOST_ID,
                "it has no id",
            ),
            (
                self.order_state == State::Created && self.channel.is_none(),
                "it is no new order",
            ),
            (
                self.lsp_balance_sat.0 == asked.capacity.to_sat(),
                "it is for another amount",
            ),
            (self.client_balance_sat.0 == 0, "something is to be pushed"),
            (
                self.channel_expiry_blocks == asked.blocks,
                "it is for another time",
            ),
            (!self.announce_channel, "the channel would be announced"),
            (
                asked.at_birth || !self.with_next_factory,
                "its payment would be held until the next factory is born",
            ),
            (
                bolt11.fee_total_sat.0 == sat,
                "more than the fee is to be paid",
            ),
        ];
        if let Some((_, why)) = rules.into_iter().find(|(holds, _)| !holds) {
            return Err(OrderError::Answer(why.to_owned()));
        }
        let msat = sat.checked_mul(1000);
        let fee = msat.ok_or_else(|| OrderError::Answer("its price is no amount".to_owned()))?;
        pays(invoice, Msat(fee), coordinator)?;
        Ok(Msat(fee))
    }
}

/// Whether an invoice is for so much, to the coordinator.
pub(super) fn pays(
    invoice: &InvoiceView,
    fee: Msat,
    coordinator: PublicKey,
) -> Result<(), OrderError> {
    let wrong = |what: &str| OrderError::Answer(format!("the invoice {what}"));
    if invoice.payee != coordinator {
        return Err(wrong("pays somebody else"));
    }
    if invoice.amount != Some(fee) {
        return Err(wrong("is not over the price"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};
    use channel_host::PaymentHash;

    use super::*;

    fn info() -> Info {
        let info = json!({
            "superscalar_next_factory": true,
            "min_required_channel_confirmations": 0,
            "min_funding_confirms_within_blocks": 6,
            "supports_zero_channel_reserve": false,
            "max_channel_expiry_blocks": 5_000,
            "min_initial_lsp_balance_sat": "100000",
            "max_initial_lsp_balance_sat": "1000000",
        });
        serde_json::from_value(info).unwrap()
    }

    fn asked(lives: Option<u32>) -> Asked {
        Asked::new(&info(), Amount::from_sat(100_000), Wanted::Stock(lives)).unwrap()
    }

    fn node(n: u8) -> PublicKey {
        PublicKey::from_secret_key(&Secp256k1::new(), &SecretKey::from_slice(&[n; 32]).unwrap())
    }

    #[test]
    fn a_channel_is_ordered_for_as_long_as_its_factory_allows() {
        let blocks = |lives| asked(lives).blocks;
        assert_eq!(blocks(None), 4_320);
        assert_eq!(blocks(Some(10_000)), 4_320);
        assert_eq!(blocks(Some(1_400)), 1_000);
        assert_eq!(blocks(Some(400)), 4_320, "it comes from the chain anyhow");
        let short = Info {
            max_channel_expiry_blocks: 500,
            ..info()
        };
        let asked = Asked::new(
            &short,
            Amount::from_sat(100_000),
            Wanted::Stock(Some(1_400)),
        );
        assert_eq!(asked.unwrap().blocks, 500);
        for sat in [99_999, 1_000_001] {
            let asked = Asked::new(&info(), Amount::from_sat(sat), Wanted::Stock(None));
            assert!(matches!(asked, Err(OrderError::Size { .. })), "{sat}");
        }
    }

    #[test]
    fn a_channel_of_the_next_factory_has_days_to_come_and_ends_with_it() {
        let asked =
            |lives| Asked::new(&info(), Amount::from_sat(100_000), Wanted::Birth(lives)).unwrap();
        assert_eq!(asked(None).blocks, 4_320);
        assert_eq!(asked(Some(1_136)).blocks, 1_000);
        let params = asked(None).params();
        assert_eq!(params["funding_confirms_within_blocks"], json!(432));
        assert_eq!(params["required_channel_confirmations"], json!(1));
    }

    #[test]
    fn an_answer_is_what_was_asked_for() {
        let asked = asked(None);
        let good = || {
            let mut answer = asked.params();
            let more = json!({
                "order_id": "b7a1", "order_state": "CREATED", "created_at": "", "channel": null,
                "payment": { "bolt11": { "state": "EXPECT_PAYMENT", "fee_total_sat": "2000",
                    "order_total_sat": "2000", "invoice": "lnbcrt", "expires_at": "" } },
            });
            let more = more.as_object().unwrap().clone();
            answer.as_object_mut().unwrap().extend(more);
            answer["superscalar_next_factory"] = json!(false);
            answer
        };
        let invoice = |payee, msat| InvoiceView {
            hash: PaymentHash([8; 32]),
            payee,
            amount: Some(Msat(msat)),
            description: String::new(),
            description_hash: None,
            expires_at: None,
        };
        let price = |answer: Value, invoice: &InvoiceView| {
            let answer: Answer = serde_json::from_value(answer).unwrap();
            answer.price(&asked, invoice, node(1))
        };
        let due = invoice(node(1), 2_000_000);
        assert_eq!(price(good(), &due), Ok(Msat(2_000_000)));
        for (at, wrong) in [
            ("/order_id", json!("")),
            ("/order_id", json!("x".repeat(101))),
            ("/order_state", json!("COMPLETED")),
            ("/lsp_balance_sat", json!("99999")),
            ("/client_balance_sat", json!("1")),
            ("/channel_expiry_blocks", json!(4_319)),
            ("/announce_channel", json!(true)),
            ("/superscalar_next_factory", json!(true)),
            ("/payment/bolt11/order_total_sat", json!("2001")),
        ] {
            let mut answer = good();
            *answer.pointer_mut(at).unwrap() = wrong;
            assert!(price(answer, &due).is_err(), "{at}");
        }
        for wrong in [invoice(node(2), 2_000_000), invoice(node(1), 2_000_001)] {
            assert!(price(good(), &wrong).is_err());
        }
        let of_birth = Asked::new(&info(), Amount::from_sat(100_000), Wanted::Birth(None)).unwrap();
        let told = |said: Value| {
            let mut answer = good();
            answer["superscalar_next_factory"] = said;
            let answer: Answer = serde_json::from_value(answer).unwrap();
            answer.price(&of_birth, &due, node(1))
        };
        assert_eq!(told(json!(true)), Ok(Msat(2_000_000)));
        assert_eq!(told(json!(false)), Err(OrderError::NoBirth));
        let none = Info {
            next_factory: false,
            ..info()
        };
        let asked = Asked::new(&none, Amount::from_sat(100_000), Wanted::Birth(None));
        assert!(matches!(asked, Err(OrderError::NoBirth)));
    }
}
