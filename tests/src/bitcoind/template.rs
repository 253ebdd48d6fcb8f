//! A pre-mined chain, made once per machine and copied into each test's data directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Bitcoind, Options, executable, miner};

/// Enough for eleven spendable block rewards after the first block of a test.
const BLOCKS: u32 = 110;

/// To be raised when the contents change.
const FORMAT: u32 = 1;

/// The template's data directory, made if it is not there.
pub(super) fn directory() -> Result<PathBuf> {
    let cache = cache()?;
    let template = cache.join(format!("regtest-{BLOCKS}-v{FORMAT}-{}", node_version()?));
    if template.is_dir() {
        return Ok(template);
    }
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("regtest.lock"))?;
    lock.lock()?;
    // Another test may have made it while we waited; the lock goes with the file.
    if !template.is_dir() {
        make(&cache, &template)?;
    }
    Ok(template)
}

fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("superscalar"))
}

/// A data directory may not be readable for an older version.
fn node_version() -> Result<String> {
    let output = Command::new(executable()?)
        .arg("-version")
        .output()
        .context("cannot run bitcoind")?;
    let first = String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let version = first
        .split_whitespace()
        .find(|word| word.starts_with('v') && word.contains('.'))
        .unwrap_or("unknown");
    Ok(version.replace(
        |letter: char| !letter.is_ascii_alphanumeric() && letter != '.',
        "_",
    ))
}

/// Built beside its place and renamed, so that nobody ever copies half of it.
fn make(cache: &Path, template: &Path) -> Result<()> {
    let work = tempfile::Builder::new()
        .prefix("regtest-")
        .tempdir_in(cache)?;
    let data = tempfile::Builder::new().prefix("bitcoind-").tempdir()?;
    let node = Bitcoind::launch(data, Options::default())?;
    node.mine_to(&miner::address(), BLOCKS)?;
    node.stop()?;
    copy(node.directory(), work.path())?;
    let _ = fs::remove_file(work.path().join("regtest/debug.log"));
    fs::rename(work.keep(), template)?;
    Ok(())
}

/// Copies a directory with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
