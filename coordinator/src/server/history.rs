//! ListHistory: what happened to the calling client.

use factory_tree::ids::ClientId;
use proto::session::ServiceError;
use proto::v1;

use super::store_error;
use crate::context::Context;
use crate::store::history;

/// Entries in an answer where the client names no number, and at most.
const USUAL: u32 = 50;
const MOST: u32 = 500;

pub async fn list(
    ctx: &Context,
    client: ClientId,
    request: &v1::ListHistoryRequest,
) -> Result<v1::ListHistoryResponse, ServiceError> {
    let limit = if request.limit == 0 {
        USUAL
    } else {
        request.limit.min(MOST)
    };
    // One more than asked for tells whether there are more.
    let ask = limit.saturating_add(1);
    let rows = ctx
        .store
        .read(async |tx| history::list(tx, client, request.before, ask).await)
        .await;
    let mut rows = rows.map_err(|error| store_error(&error))?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let entries = rows.into_iter().map(|row| v1::HistoryEntry {
        id: row.number,
        height: row.height,
        kind: row.kind,
        round: row.round.map(v1::Round::from),
        factory: row.factory.map(|factory| factory.0.to_vec().into()),
        text: row.text,
    });
    Ok(v1::ListHistoryResponse {
        entries: entries.collect(),
        more,
    })
}
