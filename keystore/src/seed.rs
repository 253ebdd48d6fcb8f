//! The seed and its file: created once, never overwritten.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bip39::{Language, Mnemonic};
use bitcoin::Network;
use rand::RngCore as _;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

use crate::sealed::{self, Fresh, OpenError};
use crate::words::{self, ENTROPY_LEN};
use crate::{KdfCost, Keys, Passphrase, SeedError, Words};

/// An unlocked seed. Wiped when dropped, not shown by `Debug`.
pub struct Seed {
    bip39_seed: Zeroizing<[u8; 64]>,
    cost: KdfCost,
}

impl Seed {
    /// Draws a new seed from the operating system's randomness and writes it, encrypted, to `path`, whose directory must be
    /// there. The words come back this once, for the caller to show to their owner; they are the only backup of the seed.
    pub fn create(
        path: impl AsRef<Path>,
        passphrase: &Passphrase,
        cost: KdfCost,
    ) -> Result<(Self, Words), SeedError> {
        let mut entropy = Zeroizing::new([0; ENTROPY_LEN]);
        fill(&mut *entropy)?;
        let mnemonic = mnemonic(&entropy);
        let seed = Self::store(path.as_ref(), &entropy, passphrase, cost)?;
        Ok((seed, Words::of(&mnemonic)))
    }

    /// Writes a seed known by its 24 words, encrypted, to `path`. Case and white space of the words do not matter.
    pub fn restore(
        path: impl AsRef<Path>,
        words: &str,
        passphrase: &Passphrase,
        cost: KdfCost,
    ) -> Result<Self, SeedError> {
        let mnemonic = words::parse(words)?;
        let all = Zeroizing::new(mnemonic.to_entropy_array().0);
        let mut entropy = Zeroizing::new([0; ENTROPY_LEN]);
        entropy.copy_from_slice(&all[..ENTROPY_LEN]);
        Self::store(path.as_ref(), &entropy, passphrase, cost)
    }

    /// Unlocks the seed at `path`. Takes as long as the cost it was made with.
    pub fn open(path: impl AsRef<Path>, passphrase: &Passphrase) -> Result<Self, SeedError> {
        let path = path.as_ref();
        let file = read(path)?;
        let (entropy, cost) = sealed::open(&file, passphrase).map_err(|error| at(path, error))?;
        Ok(Self::unlocked(&entropy, cost))
    }

    /// All keys of this seed for one network.
    pub fn keys(&self, network: Network) -> Result<Keys, SeedError> {
        Keys::new(&self.bip39_seed, network)
    }

    /// How well the file this seed came from resists guessing. Authenticated, so a file cannot pretend.
    pub fn kdf_cost(&self) -> KdfCost {
        self.cost
    }

    fn store(
        path: &Path,
        entropy: &[u8; ENTROPY_LEN],
        passphrase: &Passphrase,
        cost: KdfCost,
    ) -> Result<Self, SeedError> {
        // Asked here only to fail before the slow part; `write_new` is what holds against a race.
        if path.symlink_metadata().is_ok() {
            return Err(SeedError::Exists {
                path: path.to_owned(),
            });
        }
        let mut fresh = Fresh {
            salt: [0; 16],
            nonce: [0; 24],
        };
        fill(&mut fresh.salt)?;
        fill(&mut fresh.nonce)?;
        let file =
            sealed::seal(entropy, passphrase, cost, fresh).map_err(|error| at(path, error))?;
        write_new(path, &file)?;
        Ok(Self::unlocked(entropy, cost))
    }

    fn unlocked(entropy: &[u8; ENTROPY_LEN], cost: KdfCost) -> Self {
        Self {
            bip39_seed: Zeroizing::new(mnemonic(entropy).to_seed_normalized("")),
            cost,
        }
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seed")
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

fn mnemonic(entropy: &[u8; ENTROPY_LEN]) -> Mnemonic {
    Mnemonic::from_entropy_in(Language::English, entropy)
        .expect("32 bytes are a BIP-39 entropy length")
}

fn fill(bytes: &mut [u8]) -> Result<(), SeedError> {
    OsRng
        .try_fill_bytes(bytes)
        .map_err(|error| SeedError::NoRandomness {
            reason: error.to_string(),
        })
}

fn read(path: &Path) -> Result<Vec<u8>, SeedError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => SeedError::Missing {
            path: path.to_owned(),
        },
        _ => SeedError::Io {
            action: "read the seed file",
            path: path.to_owned(),
            source,
        },
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SeedError::OpenToOthers {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(sealed::MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > sealed::MOST_BYTES {
        let what = format!("longer than {} bytes", sealed::MOST_BYTES);
        return Err(SeedError::Damaged {
            path: path.to_owned(),
            what,
        });
    }
    Ok(bytes)
}

/// Puts a whole, synced file at `path` in one step, or nothing: a crash leaves no half a seed, and a file already there
/// stays as it is even if it came up in this very moment.
fn write_new(path: &Path, content: &[u8]) -> Result<(), SeedError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = |action| {
        move |source| SeedError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let mut file = tempfile::Builder::new()
        .prefix(".seed-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(failed("create the seed file"))?;
    file.write_all(content)
        .map_err(failed("write the seed file"))?;
    file.as_file()
        .sync_all()
        .map_err(failed("write the seed file"))?;
    file.persist_noclobber(path)
        .map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => SeedError::Exists {
                path: path.to_owned(),
            },
            _ => failed("create the seed file")(error.error),
        })?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| {
            // The name may not survive a power cut, and nobody has seen this seed yet: better none than one half kept.
            let _ = fs::remove_file(path);
            SeedError::Io {
                action: "sync the directory of the seed file",
                path: directory.to_owned(),
                source,
            }
        })
}

fn at(path: &Path, error: OpenError) -> SeedError {
    let path = path.to_owned();
    match error {
        OpenError::Damaged(what) => SeedError::Damaged { path, what },
        OpenError::UnsupportedVersion(found) => SeedError::UnsupportedVersion { path, found },
        OpenError::UnreasonableKdf(what) => SeedError::UnreasonableKdf { path, what },
        OpenError::OutOfMemory { mib } => SeedError::OutOfMemory { mib },
        OpenError::WrongPassphrase => SeedError::WrongPassphrase { path },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_up_meanwhile_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.json");
        fs::write(&path, "theirs").unwrap();
        assert!(matches!(
            write_new(&path, b"ours"),
            Err(SeedError::Exists { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file stays behind"
        );
    }
}
