//! Buys inbound liquidity by itself, on the terms of the configuration's `[top_up]` and never on others.
//!
//! | file | what |
//! |---|---|
//! | `decide` | whether to ask for a price now, or why not; whether a price is one to pay unasked |
//! | `facts` | what that is decided by, from the store and the channels |
//! | `task` | looks, asks and buys |
//!
//! What was spent, and what came to nothing, is read from the stored purchases: a restart changes neither the budget nor the pauses.

mod decide;
mod facts;
mod task;

use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::api::{PurchaseView, purchases};
use crate::client::Inner;
use crate::config::TopUpConfig;
use crate::error::Result;
use crate::event::Event;
use crate::lightning::unix_time;
use crate::store::SharedStore;

#[cfg(test)]
pub(in crate::sales) use task::Buyer;
pub(crate) use task::run;

/// Why the wallet buys nothing by itself now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TopUpState {
    /// It is not to.
    #[default]
    Off,
    /// It does not run, or has just begun to.
    NotRunning,
    /// Enough can be received.
    Enough,
    /// What can be received is not known: a channel carries no payments now.
    Unusable,
    /// A purchase is under way.
    UnderWay,
    /// The wallet is in no factory.
    NoFactory,
    /// Its factory is not one to buy in now.
    Unfit,
    /// Nothing is left to be bought.
    SoldOut,
    /// It needs the user's consent: more could be held than is covered.
    Uncovered,
    /// The budget does not allow it.
    Budget,
    /// One purchase costs more than it may.
    Dear,
    /// There is too little to pay with.
    Poor,
    /// It has not been too little for long enough.
    Settling,
    /// A purchase, or a question, was a moment ago.
    Pausing,
    /// The coordinator refused, or did not answer.
    Refused,
}

impl TopUpState {
    /// Whether it does not end by itself, and the user may want to do something.
    const fn is_held(self) -> bool {
        matches!(
            self,
            Self::SoldOut
                | Self::Uncovered
                | Self::Budget
                | Self::Dear
                | Self::Poor
                | Self::Refused
        )
    }
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    state: TopUpState,
    /// In words.
    note: String,
    /// Unix time at which it is over, if that is known.
    until: Option<u64>,
}

impl Hold {
    fn new(state: TopUpState, note: impl Into<String>) -> Self {
        let note = note.into();
        Self {
            state,
            note,
            until: None,
        }
    }

    fn until(self, time: u64) -> Self {
        Self {
            until: Some(time),
            ..self
        }
    }
}

/// Whether and when the wallet buys by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUpView {
    /// Whether it does at all.
    pub enabled: bool,
    /// When less than this can be received.
    pub below_sat: u64,
    /// So much.
    pub amount_sat: u64,
    /// For no more than this at once.
    pub max_fee_sat: u64,
    /// And no more in 30 days.
    pub max_fee_sat_per_month: u64,
    /// What of that is spent, or about to be.
    pub spent_msat: u64,
    /// What it waits for.
    pub state: TopUpState,
    /// The same in words.
    pub note: String,
    /// Unix time until which it waits at least, if that is known.
    pub until_time: Option<u64>,
}

impl TopUpView {
    pub(super) fn new(
        policy: &TopUpConfig,
        purchases: &[PurchaseView],
        now: u64,
        held: Option<Hold>,
    ) -> Self {
        let idle = || Hold::new(TopUpState::NotRunning, "`run` buys, and does not run");
        let hold = if policy.enabled {
            held.unwrap_or_else(idle)
        } else {
            Hold::new(TopUpState::Off, "it is switched off")
        };
        Self {
            enabled: policy.enabled,
            below_sat: policy.below_sat,
            amount_sat: policy.amount_sat,
            max_fee_sat: policy.max_fee_sat,
            max_fee_sat_per_month: policy.max_fee_sat_per_month,
            spent_msat: decide::spent(purchases, now).0,
            state: hold.state,
            note: hold.note,
            until_time: hold.until,
        }
    }
}

/// Of a wallet that does not run.
///
/// # Errors
/// The store's.
pub(crate) async fn at_rest(store: &SharedStore, policy: &TopUpConfig) -> Result<TopUpView> {
    let purchases = purchases(store).await?;
    Ok(TopUpView::new(policy, &purchases, unix_time(), None))
}

/// Of this one.
pub(super) async fn view(client: &Inner) -> Result<TopUpView> {
    let purchases = purchases(&client.store).await?;
    let (policy, now) = (&client.config.top_up, client.now().time);
    let held = &client.sales.held;
    let held = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(TopUpView::new(policy, &purchases, now, held))
}

/// Says what is waited for; whenever that changes also to whoever listens, if somebody may want to do something about it.
fn tell(client: &Inner, hold: Hold) {
    let held = client.sales.held.lock();
    let told = held
        .unwrap_or_else(PoisonError::into_inner)
        .replace(hold.clone());
    let same = told.is_some_and(|told| told.state == hold.state && told.note == hold.note);
    if hold.state.is_held() && !same {
        client.events.emit(Event::TopUpHeld {
            state: hold.state,
            why: hold.note,
        });
    }
}
