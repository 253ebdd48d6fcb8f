//! Ids, rows and errors of the operator's service.

use crate::ladder::LadderError;
use chain::wallet::WalletError;
use factory_tree::ids::{CeremonyId, FactoryId};
use proto::admin::Factory;
use proto::session::ServiceError;
use proto::v1::{self, ErrorCode, FactoryState};

use crate::ceremony::{self, CreateError, Status};
use crate::context::Context;
use crate::params::ParamError;
use crate::server::{factory_state, phase};
use crate::store::ceremonies::{CeremonyRow, CeremonyState};
use crate::store::factories::{self, FactoryRow};
use crate::store::{StoreError, ceremonies};
use crate::trees::TreesError;

/// The operator is told everything.
pub fn store_error(error: &StoreError) -> ServiceError {
    ServiceError::new(ErrorCode::Store, error.to_string())
}

pub fn ladder_error(error: LadderError) -> ServiceError {
    match error {
        LadderError::Store(error) => store_error(&error),
        LadderError::Wallet(error) => wallet_error(&error),
        error => ServiceError::new(ErrorCode::Internal, error.to_string()),
    }
}

pub fn wallet_error(error: &WalletError) -> ServiceError {
    let code = match error {
        WalletError::NotEnough { .. } | WalletError::NoConfirmedCoin { .. } => ErrorCode::NoFunds,
        WalletError::Store(_) | WalletError::Corrupt { .. } => ErrorCode::Store,
        WalletError::Chain(_) => ErrorCode::ChainUnavailable,
        _ => ErrorCode::Internal,
    };
    ServiceError::new(code, error.to_string())
}

pub fn trees_error(error: &TreesError) -> ServiceError {
    let code = match error {
        TreesError::Unknown(_) => ErrorCode::NotFound,
        TreesError::Store(_) => ErrorCode::Store,
        TreesError::Tree { .. } | TreesError::Sale { .. } => ErrorCode::Internal,
        TreesError::Stopped => ErrorCode::ShuttingDown,
    };
    ServiceError::new(code, error.to_string())
}

pub fn param_error(error: &ParamError) -> ServiceError {
    let code = match error {
        ParamError::Params(_) => ErrorCode::Refused,
        ParamError::Unknown { .. } | ParamError::Value { .. } => ErrorCode::InvalidArgument,
    };
    ServiceError::new(code, error.to_string())
}

pub fn create_error(error: &CreateError) -> ServiceError {
    let code = match error {
        CreateError::Chain(_) => ErrorCode::ChainUnavailable,
        CreateError::Clients { .. } => ErrorCode::InvalidArgument,
        CreateError::NoFunds { .. } => ErrorCode::NoFunds,
        CreateError::Unknown(_) => ErrorCode::NotFound,
        CreateError::Capacity { .. } => ErrorCode::Capacity,
        CreateError::TooMany { .. }
        | CreateError::TooFewClients { .. }
        | CreateError::TooManyClients { .. }
        | CreateError::Feerate { .. }
        | CreateError::Params(_)
        | CreateError::Overflow
        | CreateError::Over { .. } => ErrorCode::Refused,
        CreateError::Store(error) => return store_error(error),
        CreateError::Wallet(error) => return wallet_error(error),
    };
    ServiceError::new(code, error.to_string())
}

/// What an id names: a ceremony with its newest factory, or a factory with its ceremony.
#[derive(Debug)]
pub struct Named {
    pub ceremony: CeremonyRow,
    pub factory: Option<FactoryRow>,
}

pub async fn named(ctx: &Context, id: &[u8]) -> Result<Named, ServiceError> {
    let found = ctx
        .store
        .read(async |tx| {
            let (ceremony, factory) = if let Ok(id) = FactoryId::try_from(id) {
                let factory = factories::get(tx, id).await?;
                (factory.as_ref().map(|row| row.round.ceremony), factory)
            } else if let Ok(id) = CeremonyId::try_from(id) {
                (Some(id), factories::of_ceremony(tx, id).await?)
            } else {
                (None, None)
            };
            let Some(ceremony) = ceremony else {
                return Ok(None);
            };
            let ceremony = ceremonies::get(tx, ceremony).await?;
            Ok(ceremony.map(|ceremony| Named { ceremony, factory }))
        })
        .await
        .map_err(|error| store_error(&error))?;
    let text = || {
        let id: String = id
            .iter()
            .take(33)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("there is no factory and no ceremony {id}; see `coordinator factory list`")
    };
    found.ok_or_else(|| ServiceError::new(ErrorCode::NotFound, text()))
}

/// A ceremony and its factory, as the operator sees them.
pub fn factory(ctx: &Context, ceremony: &CeremonyRow, row: Option<&FactoryRow>) -> Factory {
    let running = ctx
        .ceremonies
        .running()
        .into_iter()
        .find(|(id, _)| *id == ceremony.id);
    let running = running.map(|(_, status)| status);
    let round = row
        .map(|row| row.round)
        .or(running.and_then(|status| status.round));
    let wished = ceremony.wish.clients.unwrap_or(0);
    Factory {
        id: row.map(|row| row.id.0.to_vec().into()),
        round: Some(match round {
            Some(round) => v1::Round::from(round),
            None => v1::Round {
                ceremony: ceremony.id.0.to_vec().into(),
                attempt: 0,
            },
        }),
        state: row
            .map_or_else(|| no_factory(ceremony.state), factory_state)
            .into(),
        phase: ceremony_phase(ceremony.state, row, running).into(),
        clients: row.map_or(wished, |row| row.clients),
        capacity_sat: row.map_or(0, |row| row.capacity.to_sat()),
        funding: row.map(|row| row.funding.into()),
        funding_sat: row.map_or(0, |row| row.funding_amount.to_sat()),
        expiry_policy: v1::ExpiryPolicy::from(ceremony.wish.params.expiry_policy).into(),
        birth_height: row.map_or(0, |row| row.birth_height),
        expiry_height: row.map_or(0, |row| row.expiry_height),
        confirmed_height: row.and_then(|row| row.confirmed_height),
        problem: ceremony.reason.clone().unwrap_or_default(),
        gathered: None,
    }
}

/// The same, with how many clients are there while it waits for them. The database's failures are told elsewhere.
pub async fn listed(ctx: &Context, ceremony: &CeremonyRow, row: Option<&FactoryRow>) -> Factory {
    let waits = ceremony.state == CeremonyState::Gathering && ceremony.wish.clients.is_some();
    let gathered = match waits {
        true => ceremony::interested(ctx, &ceremony.wish).await.ok(),
        false => None,
    };
    Factory {
        gathered: gathered.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        ..factory(ctx, ceremony, row)
    }
}

const fn no_factory(state: CeremonyState) -> FactoryState {
    match state {
        CeremonyState::Failed => FactoryState::Failed,
        CeremonyState::Gathering | CeremonyState::Running | CeremonyState::Complete => {
            FactoryState::Unspecified
        }
    }
}

fn ceremony_phase(
    state: CeremonyState,
    row: Option<&FactoryRow>,
    running: Option<Status>,
) -> v1::Phase {
    match state {
        CeremonyState::Failed => v1::Phase::Failed,
        CeremonyState::Complete if row.is_some_and(|row| row.confirmed_height.is_some()) => {
            v1::Phase::Done
        }
        CeremonyState::Complete => v1::Phase::Funding,
        CeremonyState::Gathering | CeremonyState::Running => running
            .and_then(|status| status.phase)
            .map_or(v1::Phase::Unspecified, phase),
    }
}
