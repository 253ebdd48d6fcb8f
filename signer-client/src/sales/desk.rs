//! Brings purchases forward. What is due follows from the store alone, so that it goes on after every crash:
//!
//! | a purchase is | its payment | next |
//! |---|---|---|
//! | ordered | is not begun | order (the same again is answered with the same), look at the invoice, pay |
//! | paid | is not begun | pay |
//! | paid | is under way | wait; the coordinator says for what |
//! | paid | came back | cancelled, unless the coordinator has sold all the same |
//! | sold | arrived | settled |
//! | sold | came back | settled when the channel stands, as it is opened all the same, or the factory is over |
//!
//! What another order pays for is ordered, and waits for that order's payment, until the coordinator says that the channel comes from somewhere else.
//! A just-in-time order's payment is one to us.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use channel_host::{AskError, InvoiceView, LeafId, Msat, PaymentHash};
use factory_tree::ids::SaleId;
use factory_tree::sale::order::{Order, Purchase, PurchaseRequest, PurchaseState, Quote, method};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use super::SaleError;
use super::bonus::Told;
use super::shop::Shop;
use crate::client::{Inner, Shutdown, SignerClient};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::fault;
use crate::lightning::coordinator_of;
use crate::store::{Direction, PaymentState, PurchaseRow};

/// How often to look at open purchases.
const LOOK: Duration = Duration::from_secs(1);
/// How often to ask the coordinator about one of them.
const ASK: Duration = Duration::from_secs(10);

/// Brings purchases forward until told to stop.
///
/// # Errors
/// What leaves nothing to go on with: a damaged store.
pub(crate) async fn run(client: Arc<Inner>, mut shutdown: Shutdown) -> Result<()> {
    let client = SignerClient { inner: client };
    let mut asked: HashMap<SaleId, Instant> = HashMap::new();
    let mut told = Told::default();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            () = client.inner.sales.news.notified() => {}
            _ = look.tick() => {}
        }
        // Nothing is asked or paid without a node.
        if client.inner.lightning.node().is_none() {
            continue;
        }
        let looked = match look_at_all(&client, &mut asked).await {
            Ok(()) => told.look(&client.inner, &client).await,
            failed => failed,
        };
        match looked {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => tracing::debug!(%error, "purchases go on at the next look"),
            Ok(()) => {}
        }
    }
}

async fn look_at_all(client: &SignerClient, asked: &mut HashMap<SaleId, Instant>) -> Result<()> {
    let rows = client.inner.store.purchases().await?;
    asked.retain(|sale, _| rows.iter().any(|row| row.sale == *sale && !row.is_over()));
    let mut outcome = Ok(());
    for row in rows.iter().filter(|row| !row.is_over()) {
        let now = Instant::now();
        let last = asked.get(&row.sale);
        let may_ask = last.is_none_or(|last| now.duration_since(*last) >= ASK);
        if may_ask {
            asked.insert(row.sale, now);
        }
        let _turn = client.inner.sales.turn.lock().await;
        let desk = Desk::new(&client.inner, client);
        // One that cannot go on must not keep the others from it.
        match desk.bring(row.sale, may_ask).await {
            Err(error) if Inner::is_fatal(&error) => return Err(error),
            Err(error) => outcome = Err(error),
            Ok(()) => {}
        }
    }
    outcome
}

/// Where purchases are brought forward; the caller has the turn.
#[derive(Debug)]
pub(super) struct Desk<'a> {
    client: &'a Inner,
    shop: &'a dyn Shop,
}

/// How a purchase's payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paid {
    Never,
    UnderWay,
    Back,
    Arrived,
}

impl<'a> Desk<'a> {
    pub(super) const fn new(client: &'a Inner, shop: &'a dyn Shop) -> Self {
        Self { client, shop }
    }

    /// Does what is due; what only waits is asked about if it is time to.
    pub(super) async fn bring(&self, sale: SaleId, may_ask: bool) -> Result<()> {
        let row = self.row(sale).await?;
        if row.is_over() {
            return Ok(());
        }
        let paid = self.paid(&row).await?;
        let holds = self.holds(&row).await?;
        if holds && row.state != PurchaseState::Sold {
            let note = "the coordinator opens the channel";
            self.note(&row, PurchaseState::Sold, note).await?;
        }
        match (row.state, paid) {
            _ if holds => self.settle(&row, paid).await,
            (PurchaseState::Ordered, _) | (_, Paid::Never) if may_ask => self.order(row).await,
            (_, Paid::Back) if may_ask => self.came_back(&row).await,
            _ if may_ask => self.hear(&row).await,
            _ => Ok(()),
        }
    }

    /// The user takes it back.
    pub(super) async fn cancel(&self, sale: SaleId) -> Result<()> {
        let row = self.row(sale).await?;
        let late = |why: &str| SaleError::TooLate {
            sale,
            why: why.to_owned(),
        };
        if row.is_over() {
            return Err(late("it has come to its end").into());
        }
        if self.holds(&row).await? {
            return Err(late("everything is signed").into());
        }
        if self.paid(&row).await? == Paid::Never {
            return self.give_up(&row, "taken back before it was paid").await;
        }
        let request = json!(PurchaseRequest { sale });
        let answer = self.asked(sale, method::CANCEL, &request).await?;
        if answer.state != PurchaseState::Cancelled {
            return Err(late(&answer.note).into());
        }
        let note = match row.paid_by().lsps1() {
            Some(_) => "taken back; the channel comes from the chain",
            None => "taken back; the payment is on its way back",
        };
        self.note(&row, row.state, note).await
    }

    pub(super) async fn row(&self, sale: SaleId) -> Result<PurchaseRow> {
        let row = self.client.store.purchase(sale).await?;
        Ok(row.ok_or(SaleError::Unknown(sale))?)
    }

    async fn paid(&self, row: &PurchaseRow) -> Result<Paid> {
        let Some(hash) = row.hash.filter(|_| row.state != PurchaseState::Ordered) else {
            return Ok(Paid::Never);
        };
        if row.paid_by().jit().is_some() {
            let payment = self.client.store.payment(hash, Direction::In).await?;
            let arrived = payment.is_some_and(|paid| paid.state == PaymentState::Succeeded);
            return Ok(if arrived {
                Paid::Arrived
            } else {
                Paid::UnderWay
            });
        }
        let payment = self.client.store.payment(hash, Direction::Out).await?;
        Ok(match payment.map(|payment| payment.state) {
            None => Paid::Never,
            Some(PaymentState::Pending) => Paid::UnderWay,
            Some(PaymentState::Failed) => Paid::Back,
            Some(PaymentState::Succeeded) => Paid::Arrived,
        })
    }

    /// Whether the sale is in the exit kit.
    async fn holds(&self, row: &PurchaseRow) -> Result<bool> {
        let kit = self.client.kits.sound(row.factory).await?;
        Ok(kit.is_some_and(|kit| kit.sales.iter().any(|sale| sale.id == row.sale)))
    }

    async fn note(&self, row: &PurchaseRow, state: PurchaseState, note: &str) -> Result<()> {
        if row.state != state || row.note != note {
            let store = &self.client.store;
            store.set_purchase(row.sale, state, note, None).await?;
        }
        Ok(())
    }

    async fn asked(
        &self,
        sale: SaleId,
        method: &str,
        params: &serde_json::Value,
    ) -> Result<Purchase> {
        let answer = self.shop.ask(method, params).await?;
        let answer: Purchase =
            serde_json::from_value(answer).map_err(|error| SaleError::Answer(error.to_string()))?;
        if answer.sale != sale {
            return Err(SaleError::Answer(format!("it is about sale {}", answer.sale)).into());
        }
        Ok(answer)
    }

    /// Orders, looks at the invoice, and pays. What the coordinator refuses is over; what it does not answer is asked again.
    async fn order(&self, row: PurchaseRow) -> Result<()> {
        if !row.paid_by().is_invoice() {
            return self.order_for_other(&row).await;
        }
        let invoice = match row.invoice.clone() {
            Some(invoice) => invoice,
            None => match self.invoice(&row).await {
                Err(error) if is_no(&error) => {
                    self.give_up(&row, &error.to_string()).await?;
                    return Err(error);
                }
                invoice => invoice?,
            },
        };
        // From here on the coordinator may say that we paid: what is signed for goes by this.
        let state = PurchaseState::Paid;
        self.note(&row, state, "the payment is on its way").await?;
        fault::point("purchase_paying");
        match self.shop.pay(&invoice).await {
            Ok(()) => {
                fault::point("purchase_paid");
                self.client
                    .events
                    .emit(Event::PurchasePaid { sale: row.sale });
                Ok(())
            }
            Err(error @ Error::PaymentRefused(_)) => {
                // Perhaps it is under way, begun by hand.
                let row = self.row(row.sale).await?;
                if matches!(self.paid(&row).await?, Paid::Never | Paid::Back) {
                    self.give_up(&row, &error.to_string()).await?;
                }
                Err(error)
            }
            Err(error) => {
                self.note(&row, state, &error.to_string()).await?;
                Err(error)
            }
        }
    }

    /// Orders what another order pays for, whose payment is to come.
    async fn order_for_other(&self, row: &PurchaseRow) -> Result<()> {
        match self.ordered(row).await {
            Ok(_) => {
                let note = "waits for the payment that it is for";
                self.note(row, PurchaseState::Paid, note).await
            }
            Err(error) => {
                if is_no(&error) {
                    self.give_up(row, &error.to_string()).await?;
                }
                Err(error)
            }
        }
    }

    /// The coordinator's answer to an order.
    async fn ordered(&self, row: &PurchaseRow) -> Result<Purchase> {
        let order = json!(Order {
            quote: row.quote.clone(),
            leaf_id: row.leaf_id,
            channel_key: row.channel_key,
        });
        let answer = self.asked(row.sale, method::BUY, &order).await?;
        if answer.state == PurchaseState::Cancelled {
            let why = format!("the coordinator cancelled it: {}", answer.note);
            return Err(SaleError::Answer(why).into());
        }
        Ok(answer)
    }

    /// The invoice of this order: asked for, found good, and stored before it is paid.
    async fn invoice(&self, row: &PurchaseRow) -> Result<String> {
        let answer = self.ordered(row).await?;
        let view = self.shop.read(&answer.invoice);
        let view = view.map_err(|error| SaleError::Answer(error.to_string()))?;
        let hash = check_invoice(self.client, row, &view)?;
        let store = &self.client.store;
        store.set_invoice(row.sale, hash, &answer.invoice).await?;
        fault::point("purchase_invoice_stored");
        Ok(answer.invoice)
    }

    /// What a purchase that waits is waiting for.
    async fn hear(&self, row: &PurchaseRow) -> Result<()> {
        let request = json!(PurchaseRequest { sale: row.sale });
        let answer = match self.asked(row.sale, method::PURCHASE, &request).await {
            // No payment for this alone is under way that would have to come back first.
            Ok(answer)
                if !row.paid_by().is_invoice() && answer.state == PurchaseState::Cancelled =>
            {
                return self.end(row, answer.state, &answer.note).await;
            }
            Err(error) if !row.paid_by().is_invoice() && is_no(&error) => {
                return self
                    .end(row, PurchaseState::Cancelled, &error.to_string())
                    .await;
            }
            answer => answer?,
        };
        self.note(row, row.state, &answer.note).await
    }

    /// The payment came back. Until the coordinator says that nothing is sold, it may be.
    async fn came_back(&self, row: &PurchaseRow) -> Result<()> {
        let request = json!(PurchaseRequest { sale: row.sale });
        let answer = match self.asked(row.sale, method::CANCEL, &request).await {
            Err(error) if is_no(&error) => self.asked(row.sale, method::PURCHASE, &request).await,
            answer => answer,
        };
        match answer {
            Ok(answer) if matches!(answer.state, PurchaseState::Sold | PurchaseState::Settled) => {
                self.note(row, row.state, &answer.note).await
            }
            Ok(answer) if answer.state == PurchaseState::Paid => {
                self.note(row, row.state, "the payment came back").await
            }
            Ok(answer) => self.end(row, PurchaseState::Cancelled, &answer.note).await,
            Err(error) if is_no(&error) => {
                let note = format!("the payment came back; {error}");
                self.end(row, PurchaseState::Cancelled, &note).await
            }
            Err(error) => Err(error),
        }
    }

    /// Everything is signed, and in the kit.
    async fn settle(&self, row: &PurchaseRow, paid: Paid) -> Result<()> {
        let note = match paid {
            Paid::Arrived => "",
            // What was paid for with a payment to us is there before that.
            Paid::UnderWay if row.paid_by().jit().is_none() => return Ok(()),
            Paid::UnderWay if self.shop.stands(LeafId(row.leaf_id.0)) => "",
            Paid::UnderWay => {
                let factory = self.client.store.factory(row.factory).await?;
                if factory.is_live() {
                    return Ok(());
                }
                "the factory is over; no payment came"
            }
            Paid::Back | Paid::Never if self.shop.stands(LeafId(row.leaf_id.0)) => {
                "the channel stands; the payment came back"
            }
            Paid::Back | Paid::Never => {
                let factory = self.client.store.factory(row.factory).await?;
                if factory.is_live() {
                    return Ok(());
                }
                "the factory is over; the payment came back"
            }
        };
        self.end(row, PurchaseState::Settled, note).await
    }

    /// Nothing was paid: the coordinator is told, if it listens, and forgets the order by itself if it does not.
    pub(super) async fn give_up(&self, row: &PurchaseRow, why: &str) -> Result<()> {
        let request = json!(PurchaseRequest { sale: row.sale });
        if let Err(error) = self.shop.ask(method::CANCEL, &request).await {
            tracing::debug!(%error, "the coordinator was not told");
        }
        self.end(row, PurchaseState::Cancelled, why).await
    }

    async fn end(&self, row: &PurchaseRow, state: PurchaseState, note: &str) -> Result<()> {
        let (sale, ended) = (row.sale, Some(self.client.now().time));
        let store = &self.client.store;
        store.set_purchase(sale, state, note, ended).await?;
        self.client.events.emit(match state {
            PurchaseState::Settled => Event::PurchaseSettled { sale },
            _ => Event::PurchaseCancelled {
                sale,
                why: note.to_owned(),
            },
        });
        Ok(())
    }
}

/// Whether it was said no, and asking again says nothing else.
pub(super) const fn is_no(error: &Error) -> bool {
    matches!(
        error,
        Error::Asked(AskError::Refused(_))
            | Error::Sale(SaleError::NotOffered | SaleError::Answer(_))
    )
}

/// Whether an invoice asks for the quoted fee, for this quote, to the coordinator; its payment's hash.
fn check_invoice(client: &Inner, row: &PurchaseRow, view: &InvoiceView) -> Result<PaymentHash> {
    let wrong = |what: &str| Error::Sale(SaleError::Answer(format!("the invoice {what}")));
    let quote = Quote::parse(&row.quote.text).map_err(|error| wrong(&error.to_string()))?;
    if coordinator_of(client) != Some(view.payee) {
        return Err(wrong("pays somebody else"));
    }
    if view.amount != Some(Msat(quote.fee_msat)) {
        return Err(wrong("is not over the quoted fee"));
    }
    if view.description_hash != Some(row.quote.hash()) {
        return Err(wrong("is not for this quote"));
    }
    Ok(view.hash)
}
