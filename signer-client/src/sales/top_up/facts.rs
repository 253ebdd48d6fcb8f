//! What a decision is made by, from the store and the channels.

use bitcoin::Amount;
use channel_host::Msat;
use factory_tree::units::Height;

use super::super::api::purchases;
use super::super::{limit, offers};
use super::decide::{Facts, Place, is_low};
use crate::client::{Inner, Usable};
use crate::config::TopUpConfig;
use crate::error::{Error, Result};
use crate::lightning::{ChannelState, ChannelView};
use crate::migration::calendar;
use crate::store::FactoryRow;

/// Everything, as it is now. The places are looked at only if too little can be received.
pub(super) async fn facts(
    client: &Inner,
    policy: &TopUpConfig,
    channels: &[ChannelView],
    now: u64,
) -> Result<Facts> {
    let rows = client.store.factories().await?;
    let receivable = receivable(&rows, channels);
    let mut places = Vec::new();
    if receivable.is_some_and(|msat| is_low(policy, msat)) {
        for row in rows.iter().filter(|row| row.is_live()) {
            places.extend(place(client, row, channels).await?);
        }
    }
    Ok(Facts {
        now,
        receivable,
        order: crate::lsps1::has_open(&client.store).await?,
        purchases: purchases(&client.store).await?,
        places,
    })
}

/// What can be received, if all channels that should carry payments do.
pub(super) fn receivable(rows: &[FactoryRow], channels: &[ChannelView]) -> Option<Msat> {
    let stands = |channel: &&ChannelView| {
        let factory = channel.factory;
        let in_use = |id| rows.iter().any(|row| row.factory == id && row.stands());
        channel.state == ChannelState::Open && factory.is_none_or(in_use)
    };
    let mut own = channels.iter().filter(stands);
    own.try_fold(Msat(0), |Msat(sum), channel| {
        let receivable = sum.saturating_add(channel.receivable_msat);
        channel.usable.then_some(Msat(receivable))
    })
}

async fn place(
    client: &Inner,
    row: &FactoryRow,
    channels: &[ChannelView],
) -> Result<Option<Place>> {
    let Some(kit) = client.kits.sound(row.factory).await? else {
        return Ok(None);
    };
    let dying_from = calendar(&kit).dying_from;
    let own = channels.to_vec();
    let counted = tokio::task::spawn_blocking(move || {
        let usable = Usable::of(&kit, &own);
        (usable, limit::stock(&kit, usable))
    });
    let (usable, stock) = counted
        .await
        .map_err(|error| Error::Task(error.to_string()))?;
    let sells =
        stock.filter(|stock| stock.sales < stock.most_sales && stock.left_sat >= stock.least_sat);
    Ok(Some(Place {
        factory: row.factory,
        unfit: offers::unfit(client, row).await?.map(|unfit| unfit.why),
        tip: Height(client.followed_height()),
        dying_from,
        left: sells.map(|stock| Amount::from_sat(stock.left_sat)),
        uncovered: usable.needs_consent(),
    }))
}
