//! The commands that talk to the running coordinator.

use anyhow::anyhow;
use hyper_util::rt::TokioIo;
use proto::admin::admin_client::AdminClient;
use proto::admin::*;
use proto::session::ServiceError;
use proto::v1::{self, ErrorCode};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::args::{Args, ClientCommand, Command, CreateArgs, FactoryCommand, WalletCommand};
use super::{Exit, Failure, ladder, liquidity, node, outln, output, progress};
use crate::config::Expiry;
use crate::datadir::DataDir;
use crate::params;

pub fn call(args: &Args, command: &Command) -> Result<(), Failure> {
    let data = DataDir::new(args.data_dir.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut admin = connect(&data).await?;
        dispatch(&mut admin, args, command).await
    })
}

async fn connect(data: &DataDir) -> Result<AdminClient<Channel>, Failure> {
    let path = data.admin_socket();
    let not_running = |error: &dyn std::fmt::Display| {
        let path = data.path().display();
        let text = match data.is_in_use() {
            true => format!(
                "the coordinator in {path} was started, and does not answer yet ({error}): it is starting, or waits for its Bitcoin node; its log says more"
            ),
            false => format!(
                "no coordinator is running in {path} ({error}); start it with `coordinator run`"
            ),
        };
        Failure::new(Exit::Unreachable, anyhow!(text))
    };
    // Tried here first, as tonic hides the system's words.
    UnixStream::connect(&path)
        .await
        .map_err(|error| not_running(&error))?;
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://admin")
        .connect_with_connector(connector)
        .await;
    let channel = channel.map_err(|error| not_running(&error))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// The one place where an answer's error becomes an exit code.
pub(super) fn failure(error: &ServiceError) -> Failure {
    let exit = match error.code {
        ErrorCode::Unreachable | ErrorCode::ShuttingDown => Exit::Unreachable,
        ErrorCode::InvalidArgument => Exit::Usage,
        ErrorCode::Refused
        | ErrorCode::NotFound
        | ErrorCode::NoFunds
        | ErrorCode::Capacity
        | ErrorCode::FeeCoins
        | ErrorCode::TooManySessions
        | ErrorCode::RateLimited => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, anyhow!(error.message.clone()))
}

pub(super) fn refused(status: Status) -> Failure {
    failure(&ServiceError::from_status(&status))
}

async fn dispatch(
    admin: &mut AdminClient<Channel>,
    args: &Args,
    command: &Command,
) -> Result<(), Failure> {
    let json = args.json;
    match command {
        Command::Init(_) | Command::Run(_) | Command::Plan(_) => Ok(()),
        Command::Ladder(command) => ladder::call(admin, json, command).await,
        Command::Liquidity(command) => liquidity::call(admin, json, command).await,
        Command::Info => {
            let info = admin
                .info(InfoRequest {})
                .await
                .map_err(refused)?
                .into_inner();
            output::info(json, &info);
            Ok(())
        }
        Command::Wallet(WalletCommand::Address) => {
            let answer = admin
                .wallet_address(WalletAddressRequest {})
                .await
                .map_err(refused)?
                .into_inner();
            output::address(json, &answer);
            Ok(())
        }
        Command::Wallet(WalletCommand::Balance) => {
            let answer = admin
                .wallet_balance(WalletBalanceRequest {})
                .await
                .map_err(refused)?
                .into_inner();
            output::balance(json, &answer);
            Ok(())
        }
        Command::Client(ClientCommand::List { connected }) => {
            let request = ClientListRequest {
                connected_only: *connected,
            };
            let answer = admin
                .client_list(request)
                .await
                .map_err(refused)?
                .into_inner();
            output::clients(json, &answer.clients);
            Ok(())
        }
        Command::Factory(command) => factory(admin, args, command).await,
        Command::Node(command) => node::call(admin, json, command).await,
    }
}

async fn factory(
    admin: &mut AdminClient<Channel>,
    args: &Args,
    command: &FactoryCommand,
) -> Result<(), Failure> {
    let json = args.json;
    match command {
        FactoryCommand::Create(wish) => {
            let request = Request::new(create_request(wish)?);
            let events = admin
                .factory_create(request)
                .await
                .map_err(refused)?
                .into_inner();
            progress::follow(args, wish.wait, admin, events).await
        }
        FactoryCommand::List { live } => {
            let request = FactoryListRequest { live_only: *live };
            let answer = admin
                .factory_list(request)
                .await
                .map_err(refused)?
                .into_inner();
            output::factories(json, &answer.factories);
            Ok(())
        }
        FactoryCommand::Show { id } => {
            let request = FactoryShowRequest {
                id: find(admin, id).await?,
            };
            let answer = admin
                .factory_show(request)
                .await
                .map_err(refused)?
                .into_inner();
            output::show(json, &answer);
            Ok(())
        }
        FactoryCommand::Export { id } => {
            let request = FactoryExportRequest {
                id: find(admin, id).await?,
            };
            let answer = admin
                .factory_export(request)
                .await
                .map_err(refused)?
                .into_inner();
            outln!("{}", answer.json);
            Ok(())
        }
        FactoryCommand::Cancel { id } => {
            let request = FactoryCancelRequest {
                id: find(admin, id).await?,
            };
            let answer = admin
                .factory_cancel(request)
                .await
                .map_err(refused)?
                .into_inner();
            output::cancelled(json, &answer);
            Ok(())
        }
    }
}

pub(super) fn usage(text: String) -> Failure {
    Failure::new(Exit::Usage, anyhow!(text))
}

/// The id that this is, or is an unambiguous beginning of.
async fn find(
    admin: &mut AdminClient<Channel>,
    text: &str,
) -> Result<prost::bytes::Bytes, Failure> {
    let text = text.to_ascii_lowercase();
    if let Some(id) = whole_id(&text)? {
        return Ok(id.into());
    }
    let request = FactoryListRequest { live_only: false };
    let list = admin.factory_list(request).await.map_err(refused)?;
    let factories = list.into_inner().factories;
    let ids = factories.iter().flat_map(|factory| {
        let ceremony = factory.round.as_ref().map(|round| &round.ceremony);
        factory.id.iter().chain(ceremony)
    });
    unambiguous(&text, ids, "factory's and no ceremony's id", "factory list")
}

/// The one of these ids that begins with `text`, in lower case; `list` is the command that lists them.
pub(super) fn unambiguous<'a>(
    text: &str,
    ids: impl Iterator<Item = &'a prost::bytes::Bytes>,
    what: &str,
    list: &str,
) -> Result<prost::bytes::Bytes, Failure> {
    let mut found = ids.filter(|id| hex::encode(id).starts_with(text));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.clone()),
        (None, _) => Err(Failure::new(
            Exit::Refused,
            anyhow!("no {what} begins with {text}; see `coordinator {list}`"),
        )),
        (Some(_), Some(_)) => Err(usage(format!(
            "more than one id begins with {text}; write more of it"
        ))),
    }
}

/// A whole id; `None` for the beginning of one. What has 32 digits is a ceremony's.
fn whole_id(text: &str) -> Result<Option<Vec<u8>>, Failure> {
    let digits = text.len();
    if digits == 0 || digits > 64 || !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(usage(format!(
            "{text:?} is no id: a factory's has 64 hex digits, a ceremony's 32; the first few will do"
        )));
    }
    Ok(hex::decode(text)
        .ok()
        .filter(|id| [16, 32].contains(&id.len())))
}

fn create_request(args: &CreateArgs) -> Result<FactoryCreateRequest, Failure> {
    let profile = match args.profile.as_deref() {
        Some("lite") => v1::Profile::Lite,
        Some("standard") => v1::Profile::Standard,
        Some("deep") => v1::Profile::Deep,
        _ => v1::Profile::Unspecified,
    };
    let expiry = match args.expiry {
        Some(Expiry::ClientRefund) => v1::ExpiryPolicy::ClientRefund,
        Some(Expiry::LspReclaim) => v1::ExpiryPolicy::LspReclaim,
        None => v1::ExpiryPolicy::Unspecified,
    };
    let shorthands = [
        args.k.map(|k| format!("k={k}")),
        args.static_arities
            .as_ref()
            .map(|arities| format!("static_arities={arities}")),
    ];
    let mut settings = Vec::new();
    for text in shorthands.iter().flatten().chain(&args.set) {
        let (name, value) = params::parse(text)
            .ok_or_else(|| usage(format!("--set {text:?}: write it like active=144")))?;
        settings.push(Setting {
            name,
            value: value.to_string(),
        });
    }
    let feerate = args.feerate.map(|rate| {
        // sat/vB to sat per 1000 weight units; a factory's funding costs at least the relay fee.
        let known = rate.is_finite() && (1.0..=100_000.0).contains(&rate);
        known
            .then_some((rate * 250.0).round() as u64)
            .ok_or_else(|| usage(format!("--feerate {rate}: use 1 to 100000")))
    });
    Ok(FactoryCreateRequest {
        profile: profile.into(),
        expiry_policy: expiry.into(),
        clients: args.clients,
        min_clients: args.min_clients,
        capacity_sat: args.capacity,
        feerate_sat_per_kwu: feerate.transpose()?,
        settings,
        wait: args.wait,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_is_starting_is_not_to_be_started() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(Some(dir.path().into())).unwrap();
        let told = async || {
            let failure = connect(&data).await.err().unwrap();
            assert_eq!(failure.exit, Exit::Unreachable);
            failure.error.to_string()
        };
        let text = told().await;
        assert!(text.contains("`coordinator run`"), "{text}");
        let _lock = data.lock().unwrap();
        let text = told().await;
        assert!(text.contains("waits for its Bitcoin node"), "{text}");
        assert!(!text.contains("`coordinator run`"), "{text}");
    }

    #[test]
    fn ids_may_be_cut_short() {
        assert_eq!(whole_id(&"ab".repeat(32)).unwrap(), Some(vec![0xab; 32]));
        assert_eq!(whole_id(&"ab".repeat(16)).unwrap(), Some(vec![0xab; 16]));
        assert_eq!(whole_id("fb8").unwrap(), None);
        for wrong in ["", "xy", &"a".repeat(65)] {
            assert_eq!(whole_id(wrong).unwrap_err().exit, Exit::Usage);
        }
    }

    #[test]
    fn a_beginning_names_one_id_or_none() {
        let ids = [0xab, 0xac].map(|byte| prost::bytes::Bytes::from(vec![byte; 33]));
        let find = |text| unambiguous(text, ids.iter(), "client's id", "client list");
        assert_eq!(find("abab").unwrap(), ids[0]);
        assert_eq!(find("a").unwrap_err().exit, Exit::Usage);
        assert_eq!(find("ff").unwrap_err().exit, Exit::Refused);
    }
}
