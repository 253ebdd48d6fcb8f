//! Where the programs are that scenarios, demo and bench start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The directory of a build's programs, if they are not beside ours.
const OVERRIDE: &str = "SUPERSCALAR_BIN_DIR";

/// The `coordinator` program.
pub fn coordinator() -> Result<PathBuf> {
    find("coordinator")
}

/// The `signer-client` program.
pub fn signer_client() -> Result<PathBuf> {
    find("signer-client")
}

/// The program that runs many wallets in one process.
pub fn wallets() -> Result<PathBuf> {
    find("wallets")
}

/// Cargo puts test programs into `deps/`, and all others one directory above.
fn find(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os(OVERRIDE) {
        Some(directory) => PathBuf::from(directory),
        None => beside_us()?,
    };
    let program = directory.join(name);
    ensure!(
        program.is_file(),
        "there is no {}: build it first, as bin/test does: cargo build --workspace --bins --features scenarios/fault-points",
        program.display()
    );
    Ok(program)
}

fn beside_us() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let directory = own.parent().context("a program is in a directory")?;
    let above = directory.parent().filter(|_| directory.ends_with("deps"));
    Ok(above.unwrap_or(directory).to_owned())
}

/// Cargo's target directory, as far as it can be told from where this program is.
pub fn target() -> Result<PathBuf> {
    let built = beside_us()?;
    Ok(built.parent().unwrap_or(&built).to_owned())
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}
