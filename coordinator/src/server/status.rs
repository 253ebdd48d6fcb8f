//! GetStatus: the calling client's affairs.

use factory_tree::ceremony::coordinator::Phase;
use factory_tree::ids::ClientId;
use proto::session::ServiceError;
use proto::v1::{self, FactoryState};
use proto::wire;

use super::store_error;
use crate::context::Context;
use crate::store::attempts::AttemptState;
use crate::store::factories::{self, FactoryRow};

/// A ceremony's phase on the wire.
pub(crate) const fn phase(phase: Phase) -> v1::Phase {
    match phase {
        Phase::Joining => v1::Phase::Joining,
        // The wallet drafts the funding between the last ping and the proposals.
        Phase::Confirming | Phase::Funding => v1::Phase::Confirming,
        Phase::Signing => v1::Phase::Signing,
        Phase::Acking => v1::Phase::Finalizing,
        Phase::Opening => v1::Phase::Opening,
        Phase::Finished => v1::Phase::Funding,
    }
}

/// A factory's state on the wire.
pub(crate) const fn factory_state(row: &FactoryRow) -> FactoryState {
    match row.state {
        AttemptState::Failed => FactoryState::Failed,
        AttemptState::FundingSigned => match (row.confirmed_height, row.usable) {
            _ if row.spent => FactoryState::Spent,
            (None, _) => FactoryState::Unconfirmed,
            (Some(_), false) => FactoryState::Confirmed,
            (Some(_), true) => FactoryState::Usable,
        },
        AttemptState::Drawn
        | AttemptState::Invited
        | AttemptState::Proposed
        | AttemptState::Completed
        | AttemptState::Ready => FactoryState::Proposed,
    }
}

pub async fn get(ctx: &Context, client: ClientId) -> Result<v1::GetStatusResponse, ServiceError> {
    let rows = ctx
        .store
        .read(async |tx| factories::of_client(tx, client).await)
        .await;
    let rows = rows.map_err(|error| store_error(&error))?;
    let status = ctx.ceremonies.status_of(&client);
    let interest = ctx
        .sessions
        .interest(&client)
        .map(|interest| wire::Interest {
            capacity: Some(interest.capacity),
            has_fee_coins: interest.has_fee_coins,
            once: interest.once,
        });
    let factories = rows.iter().map(|row| v1::FactoryStatus {
        id: row.factory.id.0.to_vec().into(),
        state: factory_state(&row.factory).into(),
        funding: Some(row.factory.funding.into()),
        confirmed_height: row.factory.confirmed_height,
        expiry_height: row.factory.expiry_height,
        capacity_sat: row.capacity.to_sat(),
        round: Some(row.factory.round.into()),
    });
    Ok(v1::GetStatusResponse {
        connected: ctx.sessions.is_connected(&client),
        interest: interest.map(v1::Interest::from),
        round: status.and_then(|status| status.round).map(v1::Round::from),
        phase: status
            .and_then(|status| status.phase)
            .map_or(v1::Phase::Unspecified, phase)
            .into(),
        factories: factories.collect(),
    })
}
