//! Every error of the service, on the stream and as a gRPC status.

use factory_tree::ceremony::message::Round;
use factory_tree::ids::{Attempt, ClientId, FactoryId};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::v1::{self, ErrorCode};
use crate::wire::WireError;
use crate::wire::fields;

const CODE_KEY: &str = "superscalar-error";
const CEREMONY_KEY: &str = "superscalar-ceremony";
const ATTEMPT_KEY: &str = "superscalar-attempt";
const FACTORY_KEY: &str = "superscalar-factory";
const CLIENT_KEY: &str = "superscalar-client";

/// What an error is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The attempt.
    pub round: Option<Round>,
    /// The factory.
    pub factory: Option<FactoryId>,
    /// The client.
    pub client: Option<ClientId>,
}

/// An error as the other side is told it: a code for machines, cause and remedy for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str_name())]
pub struct ServiceError {
    /// What kind.
    pub code: ErrorCode,
    /// Cause and remedy.
    pub message: String,
    /// What it is about.
    pub about: About,
}

impl ServiceError {
    /// An error about nothing in particular.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            about: About::default(),
        }
    }

    /// About this attempt.
    #[must_use]
    pub const fn round(mut self, round: Round) -> Self {
        self.about.round = Some(round);
        self
    }

    /// About this factory.
    #[must_use]
    pub const fn factory(mut self, factory: FactoryId) -> Self {
        self.about.factory = Some(factory);
        self
    }

    /// About this client.
    #[must_use]
    pub const fn client(mut self, client: ClientId) -> Self {
        self.about.client = Some(client);
        self
    }

    /// What the other side said in a status. A status of tonic's own (a broken connection, a
    /// message over the limit) becomes the code that says the same.
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        let metadata = status.metadata();
        let named = value(metadata, CODE_KEY).and_then(ErrorCode::from_str_name);
        Self {
            code: named.unwrap_or_else(|| foreign_code(status.code())),
            message: status.message().to_owned(),
            about: About {
                round: round_of(metadata),
                factory: value(metadata, FACTORY_KEY).and_then(|id| id.parse().ok()),
                client: value(metadata, CLIENT_KEY).and_then(|id| id.parse().ok()),
            },
        }
    }
}

/// The one place where error codes become gRPC codes.
#[must_use]
pub const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::Unspecified => Code::Unknown,
        ErrorCode::VersionUnsupported
        | ErrorCode::WrongNetwork
        | ErrorCode::FeeCoins
        | ErrorCode::Unexpected
        | ErrorCode::NoFunds
        | ErrorCode::Refused => Code::FailedPrecondition,
        ErrorCode::AuthFailed | ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::AuthTimeout => Code::DeadlineExceeded,
        ErrorCode::SessionReplaced | ErrorCode::Late => Code::Aborted,
        ErrorCode::TooManySessions | ErrorCode::RateLimited | ErrorCode::TooSlow => {
            Code::ResourceExhausted
        }
        ErrorCode::Malformed | ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::TooLarge | ErrorCode::Capacity => Code::OutOfRange,
        ErrorCode::UnknownRound | ErrorCode::NotFound => Code::NotFound,
        ErrorCode::Conflict => Code::AlreadyExists,
        ErrorCode::ShuttingDown | ErrorCode::ChainUnavailable | ErrorCode::Unreachable => {
            Code::Unavailable
        }
        ErrorCode::Store | ErrorCode::Internal => Code::Internal,
    }
}

/// What a status without our code in its metadata means.
const fn foreign_code(code: Code) -> ErrorCode {
    match code {
        Code::Ok | Code::Unknown => ErrorCode::Unspecified,
        Code::Cancelled | Code::Aborted | Code::Unavailable | Code::DeadlineExceeded => {
            ErrorCode::Unreachable
        }
        Code::InvalidArgument | Code::AlreadyExists => ErrorCode::InvalidArgument,
        Code::NotFound => ErrorCode::NotFound,
        Code::PermissionDenied | Code::FailedPrecondition => ErrorCode::Refused,
        Code::ResourceExhausted => ErrorCode::RateLimited,
        Code::OutOfRange => ErrorCode::TooLarge,
        Code::Unimplemented => ErrorCode::VersionUnsupported,
        Code::Internal | Code::DataLoss => ErrorCode::Internal,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
    }
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let mut metadata = MetadataMap::new();
        let mut put = |key: &'static str, text: &str| {
            // Names, hex and digits are always legal values.
            if let Ok(value) = text.parse() {
                metadata.insert(key, value);
            }
        };
        put(CODE_KEY, error.code.as_str_name());
        if let Some(round) = error.about.round {
            put(CEREMONY_KEY, &round.ceremony.to_string());
            put(ATTEMPT_KEY, &round.attempt.to_string());
        }
        if let Some(factory) = error.about.factory {
            put(FACTORY_KEY, &factory.to_string());
        }
        if let Some(client) = error.about.client {
            put(CLIENT_KEY, &client.to_string());
        }
        let message = fields::short(&error.message);
        Self::with_metadata(grpc_code(error.code), message, metadata)
    }
}

fn value<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

fn round_of(metadata: &MetadataMap) -> Option<Round> {
    Some(Round {
        ceremony: value(metadata, CEREMONY_KEY)?.parse().ok()?,
        attempt: Attempt(value(metadata, ATTEMPT_KEY)?.parse().ok()?),
    })
}

impl From<WireError> for ServiceError {
    fn from(error: WireError) -> Self {
        let code = match error {
            WireError::TooMany { .. } => ErrorCode::TooLarge,
            WireError::Network { .. } => ErrorCode::WrongNetwork,
            WireError::Missing { .. }
            | WireError::Length { .. }
            | WireError::Ragged { .. }
            | WireError::Count { .. }
            | WireError::UnknownEnum { .. }
            | WireError::OutOfRange { .. }
            | WireError::AmountTooLarge { .. }
            | WireError::AmountTooSmall { .. }
            | WireError::Point { .. }
            | WireError::Scalar { .. }
            | WireError::Script { .. }
            | WireError::Transaction { .. }
            | WireError::Position { .. } => ErrorCode::Malformed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<&ServiceError> for v1::Error {
    fn from(error: &ServiceError) -> Self {
        Self {
            code: error.code.into(),
            message: fields::short(&error.message),
            round: error.about.round.map(v1::Round::from),
            factory: error.about.factory.map(|id| fields::copied(id.0)),
            client: error.about.client.map(|id| fields::copied(id.0)),
        }
    }
}

impl TryFrom<v1::Error> for ServiceError {
    type Error = WireError;
    /// An unknown code is taken for an unspecified one: what the other side complains about is for
    /// people to read, and must not be lost because it is newer.
    fn try_from(wire: v1::Error) -> Result<Self, WireError> {
        let factory = wire.factory.as_deref();
        let client = wire.client.as_deref();
        Ok(Self {
            code: ErrorCode::try_from(wire.code).unwrap_or(ErrorCode::Unspecified),
            message: fields::text("error.message", wire.message)?,
            about: About {
                round: wire.round.map(Round::try_from).transpose()?,
                factory: factory
                    .map(|id| fields::fixed("error.factory", id).map(FactoryId))
                    .transpose()?,
                client: client
                    .map(|id| fields::fixed("error.client", id).map(ClientId))
                    .transpose()?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use factory_tree::ids::CeremonyId;

    use super::*;

    fn codes() -> impl Iterator<Item = ErrorCode> {
        (0..100).filter_map(|code| ErrorCode::try_from(code).ok())
    }

    #[test]
    fn every_error_survives_as_status_and_as_message() {
        assert_eq!(codes().count(), 27);
        let round = Round {
            ceremony: CeremonyId([7; 16]),
            attempt: Attempt(3),
        };
        for code in codes() {
            let error = ServiceError::new(code, "Ursache: \u{e4}\u{f6}\u{fc}")
                .round(round)
                .factory(FactoryId([8; 32]))
                .client(ClientId([9; 33]));
            let status = Status::from(error.clone());
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(ServiceError::from_status(&status), error);
            assert_eq!(ServiceError::try_from(v1::Error::from(&error)), Ok(error));
        }
    }

    /// `InvalidArgument` as `INVALID_ARGUMENT`.
    fn screaming(code: Code) -> String {
        let mut name = String::new();
        for letter in format!("{code:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(letter.to_uppercase());
        }
        name
    }

    #[test]
    fn the_documented_table_is_the_one_in_force() {
        let page = include_str!("../../../docs/wire.md");
        for code in codes().filter(|code| *code != ErrorCode::Unspecified) {
            let row = format!("| `{}` |", screaming(grpc_code(code)));
            let name = code.as_str_name().trim_start_matches("ERROR_CODE_");
            let row = page.lines().find(|line| line.starts_with(&row)).unwrap();
            let (_, codes) = row.trim_start_matches('|').split_once('|').unwrap();
            assert!(codes.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_foreign_status_gets_a_code() {
        let status = Status::unavailable("no route");
        let error = ServiceError::from_status(&status);
        assert_eq!(error.code, ErrorCode::Unreachable);
        assert_eq!(error.about, About::default());
    }

    #[test]
    fn unknown_codes_and_long_texts() {
        let mut wire = v1::Error {
            code: 9999,
            message: "x\u{1b}[2J".into(),
            ..v1::Error::default()
        };
        let error = ServiceError::try_from(wire.clone()).unwrap();
        assert_eq!(error.code, ErrorCode::Unspecified);
        assert_eq!(error.message, "x\u{fffd}[2J");
        wire.message = "x".repeat(1025);
        let refused = ServiceError::try_from(wire).unwrap_err();
        assert!(matches!(refused, WireError::TooMany { found: 1025, .. }));
        let long = ServiceError::new(ErrorCode::Internal, "\u{e4}".repeat(600));
        assert_eq!(v1::Error::from(&long).message.len(), 1024);
    }
}
