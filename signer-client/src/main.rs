//! The command-line wallet.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    signer_client::cli::main()
}
