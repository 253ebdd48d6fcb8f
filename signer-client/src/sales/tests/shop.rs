//! A coordinator that answers as the test says, and a node that pays.

use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use channel_host::{
    AskError, InvoiceView, LeafId as NodeLeaf, LeafKeys, Msat, PaymentHash, RpcError,
};
use factory_tree::ids::SaleId;
use factory_tree::sale::order::{Order, Purchase, PurchaseState, SignedQuote, method};
use serde_json::{Value, json};

use super::super::shop::Shop;
use crate::client::SignerClient;
use crate::error::{Error, Result};

/// The fee of the one quote there is.
pub(super) const FEE: u64 = 1_234_000;
/// The sale that it names.
pub(super) const SALE: SaleId = SaleId([7; 16]);
/// Of the payment.
pub(super) const HASH: PaymentHash = PaymentHash([8; 32]);

pub(super) fn coordinator() -> LeafKeys {
    LeafKeys::new(&[1; 32])
}

/// What the coordinator answers, and what it was asked.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) asked: Vec<(String, Value)>,
    pub(super) orders: Vec<Order>,
    pub(super) state: PurchaseState,
    pub(super) away: bool,
    pub(super) refuses: bool,
    pub(super) quote: Option<SignedQuote>,
    /// What its invoices say.
    pub(super) invoice: InvoiceView,
    /// Payments that were begun.
    pub(super) paid: usize,
    pub(super) poor: bool,
    pub(super) stands: bool,
}

#[derive(Debug)]
pub(super) struct TestShop {
    client: SignerClient,
    counter: Mutex<Counter>,
}

impl TestShop {
    pub(super) fn new(client: SignerClient) -> Self {
        let counter = Counter {
            asked: Vec::new(),
            orders: Vec::new(),
            state: PurchaseState::Ordered,
            away: false,
            refuses: false,
            quote: None,
            invoice: InvoiceView {
                hash: HASH,
                payee: coordinator().node_id(),
                amount: Some(Msat(FEE)),
                description: String::new(),
                description_hash: None,
                expires_at: None,
            },
            paid: 0,
            poor: false,
            stands: false,
        };
        Self {
            client,
            counter: Mutex::new(counter),
        }
    }

    pub(super) fn counter(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap()
    }
}

#[async_trait]
impl Shop for TestShop {
    async fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        let mut counter = self.counter();
        counter.asked.push((method.to_owned(), params.clone()));
        if counter.away {
            return Err(AskError::Away(coordinator().node_id()).into());
        }
        if counter.refuses {
            return Err(AskError::Refused(RpcError::new(1, "reserved for another client")).into());
        }
        match method {
            method::QUOTE => return Ok(json!(counter.quote.clone().unwrap())),
            method::BUY => {
                let order: Order = serde_json::from_value(params.clone()).unwrap();
                // The same order again is answered with the same, another is not.
                assert!(counter.orders.iter().all(|known| *known == order));
                counter.orders.push(order);
            }
            method::CANCEL if counter.state == PurchaseState::Ordered => {
                counter.state = PurchaseState::Cancelled;
            }
            _ => {}
        }
        Ok(json!(Purchase {
            sale: SALE,
            state: counter.state,
            invoice: "invoice".to_owned(),
            note: "a note".to_owned(),
        }))
    }

    fn read(&self, invoice: &str) -> Result<InvoiceView> {
        assert_eq!(invoice, "invoice");
        Ok(self.counter().invoice.clone())
    }

    async fn pay(&self, _invoice: &str) -> Result<()> {
        if self.counter().poor {
            return Err(Error::PaymentRefused("there is no room".to_owned()));
        }
        let inner = &self.client.inner;
        let now = inner.now();
        let begun = inner.store.begin_payment(HASH, Msat(FEE), "", now);
        assert_eq!(begun.await?, None, "paid twice");
        self.counter().paid += 1;
        Ok(())
    }

    fn stands(&self, _leaf: NodeLeaf) -> bool {
        self.counter().stands
    }
}
