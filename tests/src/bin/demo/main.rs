//! `bin/demo`: a factory from its first invitation to the last satoshi, on a regtest chain.

mod balance;
mod build;
mod cheat;
mod ladder;
mod leave;
mod pay;
mod picture;
mod quotes;
mod screen;
mod stage;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use stage::Stage;

/// Builds a factory with real processes on a real regtest chain, pays over its channels, and lets everybody leave it.
#[derive(Debug, Parser)]
#[command(name = "bin/demo")]
pub(crate) struct Arguments {
    /// How many wallets, each a process of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=256))]
    clients: u32,
    /// The factory's shape.
    #[arg(long, value_enum, default_value_t = Profile::Lite)]
    profile: Profile,
    /// Who is favoured when the factory expires.
    #[arg(long, value_enum, default_value_t = Expiry::ClientRefund)]
    expiry: Expiry,
    /// A whole life of a ladder of factories instead: births, moves, handovers, reaps, in compressed time.
    #[arg(long, conflicts_with_all = ["clients", "profile", "expiry", "keep"])]
    ladder: bool,
    /// Leave everything running at the end, and say how to poke at it.
    #[arg(long)]
    keep: bool,
}

/// A named shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Short delays.
    Lite,
    /// Three states.
    Standard,
    /// Two layers.
    Deep,
}

/// Who is favoured at expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Expiry {
    /// Timeouts pay the clients.
    ClientRefund,
    /// The coordinator may take what nobody published.
    LspReclaim,
}

impl Profile {
    const fn name(self) -> &'static str {
        match self {
            Self::Lite => "lite",
            Self::Standard => "standard",
            Self::Deep => "deep",
        }
    }
}

impl Expiry {
    const fn name(self) -> &'static str {
        match self {
            Self::ClientRefund => "client-refund",
            Self::LspReclaim => "lsp-reclaim",
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the whole story; gives whether everything adds up.
fn run(arguments: Arguments) -> anyhow::Result<bool> {
    if arguments.ladder {
        return ladder::run();
    }
    let mut stage = Stage::set(&arguments)?;
    let factory = build::factory(&mut stage)?;
    quotes::show(&mut stage, &factory)?;
    let old = pay::around(&mut stage, &factory)?;
    match arguments.expiry {
        Expiry::ClientRefund => leave::one_then_timeouts(&mut stage, &factory, &old)?,
        Expiry::LspReclaim => leave::all_then_reclaim(&mut stage, &factory)?,
    }
    let ok = balance::sheet(&mut stage, &factory)?;
    if arguments.keep {
        stage.keep()?;
    }
    Ok(ok)
}
