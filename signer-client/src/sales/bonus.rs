//! Bonus channels, for signing with others who buy: the coordinator is told beforehand where the next one of each factory is to be, whether or not it
//! gives any.

use std::collections::HashMap;
use std::time::Duration;

use factory_tree::ids::{FactoryId, LeafId};
use factory_tree::sale::order::{BonusPlace, method};
use rand::RngCore;
use rand::rngs::OsRng;
use serde_json::json;
use tokio::time::Instant;

use super::desk::is_no;
use super::offers::{self, place_at};
use super::shop::Shop;
use crate::client::Inner;
use crate::error::Result;
use crate::fault;
use crate::store::FactoryRow;

/// Before it is told again when the coordinator did not hear it, or the factory was not in use ..
const AGAIN: Duration = Duration::from_secs(10);
/// .. and when it did: what it knows may have been for a sale that we never heard of, and what it refuses may change.
const LATER: Duration = Duration::from_secs(3_600);

/// What was told, by factory, and until when that is enough.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<FactoryId, (Option<LeafId>, Instant)>);

impl Told {
    /// Tells what is due. What cannot be told now is told later.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn look(&mut self, client: &Inner, shop: &dyn Shop) -> Result<()> {
        let rows = client.store.factories().await?;
        self.0
            .retain(|factory, _| rows.iter().any(|row| row.factory == *factory));
        for row in rows {
            let (factory, now) = (row.factory, Instant::now());
            let next = client.store.bonus_place(factory).await?;
            let told = self.0.get(&factory);
            if told.is_some_and(|(leaf, until)| *leaf == next && now < *until) {
                continue;
            }
            let (leaf, pause) = tell(client, shop, &row, next).await?;
            self.0.insert(factory, (leaf, now + pause));
        }
        Ok(())
    }
}

/// Draws the place, if there is none, and tells it.
async fn tell(
    client: &Inner,
    shop: &dyn Shop,
    row: &FactoryRow,
    next: Option<LeafId>,
) -> Result<(Option<LeafId>, Duration)> {
    let factory = row.factory;
    if !offers::is_in_use(client, row).await? || !offers::shares_stock(client, factory).await? {
        return Ok((next, AGAIN));
    }
    let leaf = match next {
        Some(leaf) => leaf,
        None => {
            let mut nonce = [0; 16];
            OsRng.fill_bytes(&mut nonce);
            let leaf = LeafId::derive(&nonce, 0);
            client.store.draw_bonus_place(factory, leaf).await?;
            leaf
        }
    };
    fault::point("bonus_place_drawn");
    let place = place_at(client, leaf);
    let place = BonusPlace {
        factory,
        leaf_id: place.leaf_id,
        channel_key: place.channel_key,
    };
    let pause = match shop.ask(method::BONUS_PLACE, &json!(place)).await {
        Ok(_) => LATER,
        Err(error) => {
            tracing::debug!(%error, %factory, "the coordinator does not know the place of a bonus channel");
            if is_no(&error) { LATER } else { AGAIN }
        }
    };
    Ok((Some(leaf), pause))
}
