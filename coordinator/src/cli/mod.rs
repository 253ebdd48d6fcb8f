//! The command line: one process that serves (`run`), and short commands that talk to it over its socket.

mod args;
mod init;
mod io;
mod ladder;
mod liquidity;
mod node;
mod operator;
mod output;
mod plan;
mod progress;
mod run;
mod sales;

use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};

use crate::app::StartError;
use crate::config::ConfigError;
use crate::datadir::DataDirError;
use args::{Args, Command};
use io::outln;

/// How a command ended, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// It failed.
    Failed = 1,
    /// It was asked the wrong way.
    Usage = 2,
    /// The coordinator does not run, or does not answer.
    Unreachable = 3,
    /// Policy, limits, or the state of things forbid it.
    Refused = 4,
}

/// Why a command failed, and how.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    error: anyhow::Error,
    /// The ceremony that failed, and why.
    ceremony: Option<(String, String)>,
}

impl Failure {
    fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
            ceremony: None,
        }
    }

    /// The same as one JSON object.
    fn json(&self, text: &str) -> Value {
        let mut value = json!({ "error": text, "exit_code": self.exit as u8 });
        if let (Some((ceremony, why)), Some(fields)) = (&self.ceremony, value.as_object_mut()) {
            fields.insert("ceremony".to_owned(), json!(ceremony));
            fields.insert("failed".to_owned(), json!(why));
        }
        value
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let start = error.downcast_ref::<StartError>();
        let is_config = error.is::<ConfigError>() || matches!(start, Some(StartError::Config(_)));
        let data_dir = match start {
            Some(StartError::DataDir(error)) => Some(error),
            _ => error.downcast_ref::<DataDirError>(),
        };
        let exit = match data_dir {
            _ if is_config => Exit::Usage,
            Some(DataDirError::NoHome) => Exit::Usage,
            // There is no coordinator, there is one already, or another process has it.
            Some(
                DataDirError::NotInitialised { .. }
                | DataDirError::Initialised { .. }
                | DataDirError::InUse { .. },
            ) => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let result = match args.command {
        Command::Init(ref init) => init::init(&args, init),
        Command::Run(ref run) => run::run(&args, run),
        Command::Plan(ref asked) => plan::plan(&args, asked),
        ref other => operator::call(&args, other),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = with_program(&in_words(&failure.error), &args.program());
            eprintln!("coordinator: {text}");
            if args.json {
                outln!("{}", failure.json(&text));
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// What clap says, also for those who read JSON.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let failure = Failure::new(Exit::Usage, anyhow::anyhow!("{error}"));
        outln!("{}", failure.json(error.to_string().trim_end()));
    }
    // A closed terminal is no reason to fail otherwise.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8))
}

/// Commands in hints as they must be given here: with this data directory.
fn with_program(text: &str, program: &str) -> String {
    const PLAIN: &str = "`coordinator ";
    let mut parts = text.split(PLAIN);
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if part.starts_with("--data-dir") {
            all.push_str(PLAIN);
        } else {
            all.push_str(&format!("`{program} "));
        }
        all.push_str(part);
    }
    all
}

/// An error with its causes, leaving out those whose words it contains already.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_the_data_directory_once() {
        let program = "coordinator --data-dir lsp";
        let hint = with_program("see `coordinator factory list`.", program);
        assert_eq!(hint, "see `coordinator --data-dir lsp factory list`.");
        let already = "try `coordinator --data-dir /x run`";
        assert_eq!(with_program(already, program), already);
    }

    #[test]
    fn to_run_before_init_is_refused_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().display().to_string();
        let words = ["coordinator", "--data-dir", dir.as_str(), "run"];
        let args = Args::try_parse_from(words).unwrap();
        let Command::Run(ref asked) = args.command else {
            panic!("not run");
        };
        let failure = run::run(&args, asked).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        let text = with_program(&in_words(&failure.error), &args.program());
        assert!(
            text.contains(&format!("`{} init`", args.program())),
            "{text}"
        );
    }

    #[test]
    fn a_data_directory_that_is_in_use_is_refused_wherever_that_is_found() {
        let in_use = || DataDirError::InUse { path: "d".into() };
        assert_eq!(Failure::from(in_use()).exit, Exit::Refused);
        let started = StartError::DataDir(in_use());
        assert_eq!(Failure::from(started).exit, Exit::Refused);
        let failed = anyhow::anyhow!("disk on fire");
        assert_eq!(Failure::from(failed).exit, Exit::Failed);
    }

    #[test]
    fn failures_are_one_json_object() {
        let mut failure = Failure::new(Exit::Refused, anyhow::anyhow!("no"));
        assert_eq!(failure.json("no"), json!({ "error": "no", "exit_code": 4 }));
        failure.ceremony = Some(("01".to_owned(), "why".to_owned()));
        assert_eq!(failure.json("no")["ceremony"], "01");
    }

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = anyhow::Error::new(inner).context("cannot write");
        assert_eq!(in_words(&error), "cannot write: disk on fire");
        let named = anyhow::anyhow!("disk on fire").context("cannot write: disk on fire");
        assert_eq!(in_words(&named), "cannot write: disk on fire");
    }
}
