//! Tells the clients of a factory what became of its funding.

use factory_tree::ceremony::message::{FactoryUpdate, ToClient};
use factory_tree::ids::FactoryId;
use factory_tree::units::Height;

use crate::context::Context;
use crate::store::{Result, factories};

/// Tells every connected client of this factory.
///
/// # Errors
/// Those of the database.
pub async fn members(ctx: &Context, factory: FactoryId) -> Result<()> {
    let found = ctx
        .store
        .read(async |tx| {
            let Some(row) = factories::get(tx, factory).await? else {
                return Ok(None);
            };
            Ok(Some((row, factories::clients(tx, factory).await?)))
        })
        .await?;
    let Some((row, clients)) = found else {
        return Ok(());
    };
    let update = FactoryUpdate {
        factory,
        funding_txid: row.funding.txid,
        confirmed_at: row.confirmed_height.map(Height),
        usable: row.usable,
    };
    let message = proto::v1::ServerMessage::from(&ToClient::Factory(update));
    for client in clients {
        ctx.sessions.send(&client, message.clone());
    }
    Ok(())
}
