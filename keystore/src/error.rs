//! What can go wrong with seeds and passphrases, each with its remedy. No message carries a secret.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a seed could not be created, restored or opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SeedError {
    /// A seed is never overwritten: it may be the only way to somebody's money.
    #[error(
        "there is a seed file at {path} already, and it is never overwritten; open it, choose another directory, \
         or move it to a safe place first"
    )]
    Exists {
        /// Where the seed was to go.
        path: PathBuf,
    },
    /// There is no seed yet.
    #[error("there is no seed file at {path}; create one (init), or restore one from its 24 words")]
    Missing {
        /// Where the seed was looked for.
        path: PathBuf,
    },
    /// Others may read or change the file.
    #[error("the seed file {path} is open to other users (mode {mode:03o}); run: chmod 600 {path}")]
    OpenToOthers {
        /// The seed file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content does not match its own checksum, or is no seed file at all.
    #[error(
        "the seed file {path} is damaged ({what}); put a backup of it back, or move it away and restore from the 24 words"
    )]
    Damaged {
        /// The seed file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Written by a later release.
    #[error(
        "the seed file {path} has format version {found}, this program reads version 1; use a newer release"
    )]
    UnsupportedVersion {
        /// The seed file.
        path: PathBuf,
        /// The version it declares.
        found: u64,
    },
    /// The file asks for more work than any release of ours ever wrote.
    #[error(
        "the seed file {path} asks for an unreasonable key derivation ({what}); it was not written by this program: \
         put a backup of it back, or move it away and restore from the 24 words"
    )]
    UnreasonableKdf {
        /// The seed file.
        path: PathBuf,
        /// The parameter outside its bounds.
        what: String,
    },
    /// The file is intact, so the passphrase is not the one it was locked with.
    #[error(
        "wrong passphrase for the seed file {path}: the file itself is intact (its checksum fits; only deliberate \
         tampering could make a right passphrase fail); try again, or move it away and restore from the 24 words"
    )]
    WrongPassphrase {
        /// The seed file.
        path: PathBuf,
    },
    /// The words to restore from are no mnemonic.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// The key derivation needs memory that is not there.
    #[error(
        "{mib} MiB of memory are needed for a moment to unlock the seed, and are not free; make room and try again"
    )]
    OutOfMemory {
        /// What was asked for.
        mib: u64,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness: {reason}; nothing was written")]
    NoRandomness {
        /// In the system's words.
        reason: String,
    },
    /// A BIP-32 step hit an invalid scalar. Its probability is below 2^-120 for any seed.
    #[error("this seed has no valid BIP-32 keys ({reason}); create another one")]
    Underivable {
        /// In BIP-32's words.
        reason: String,
    },
    /// The file system failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// In the system's words.
        source: io::Error,
    },
}

/// Why words are not a mnemonic this program restores from. Positions count from 1; words themselves are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WordsError {
    /// Seeds of this program have 24 words.
    #[error("a seed has 24 words, these are {found}; check for missing or doubled words")]
    Count {
        /// How many there were.
        found: usize,
    },
    /// Not on BIP-39's English list.
    #[error("word {position} is not on the BIP-39 English list; check its spelling")]
    Unknown {
        /// Which one, from 1.
        position: usize,
    },
    /// All words are known, but they do not belong together.
    #[error(
        "the words do not fit together (BIP-39 checksum); check their order, and each word against your note"
    )]
    Checksum,
}

/// Why there is no passphrase.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// Nothing to lock with.
    #[error("the passphrase is empty; choose one of several words")]
    Empty,
    /// Longer than anybody types.
    #[error("the passphrase is longer than {limit} bytes; choose a shorter one")]
    TooLong {
        /// The most that is read.
        limit: usize,
    },
    /// A file must hold the passphrase as its only line, or it is unclear what the passphrase is.
    #[error(
        "the passphrase file {path} has more than one line; it must hold the passphrase and nothing else"
    )]
    SeveralLines {
        /// The passphrase file.
        path: PathBuf,
    },
    /// Not text, so nobody could ever type it.
    #[error(
        "the passphrase file {path} is not UTF-8 text; it must hold the passphrase as one line of text"
    )]
    NotText {
        /// The passphrase file.
        path: PathBuf,
    },
    /// Any user of the machine may read the passphrase, or the group may change it.
    #[error(
        "the passphrase file {path} is open to other users (mode {mode:03o}); run: chmod 600 {path}"
    )]
    OpenToOthers {
        /// The passphrase file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file cannot be read.
    #[error(
        "cannot read the passphrase file {path}: {source}; create it (mode 600) with the passphrase as its only line"
    )]
    File {
        /// The passphrase file.
        path: PathBuf,
        /// In the system's words.
        source: io::Error,
    },
    /// The environment names no passphrase file.
    #[error(
        "the environment variable {variable} is not set; set it to the path of a file (mode 600) that holds the passphrase"
    )]
    EnvironmentUnset {
        /// Its name.
        variable: String,
    },
    /// Nobody to ask.
    #[error(
        "cannot ask for the passphrase ({source}); without a terminal, put it into a file (mode 600) and name that file"
    )]
    NoTerminal {
        /// In the system's words.
        source: io::Error,
    },
    /// A new passphrase typed twice, differently.
    #[error("the two passphrases differ; nothing was changed, try again")]
    Mismatch,
}
