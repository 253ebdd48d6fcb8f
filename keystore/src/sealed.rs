//! The seed file's format, version 1: a small JSON document. The key comes from the passphrase by Argon2id, the entropy is
//! sealed with XChaCha20-Poly1305, and every other field is authenticated with it as associated data.
//!
//! An AEAD cannot tell a wrong key from altered bytes. An unkeyed checksum over all fields, checked first, tells damage
//! (bit rot, a torn copy) from a wrong passphrase; against somebody who alters the file on purpose only the AEAD counts.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use bitcoin::hashes::{Hash, sha256};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::Passphrase;
use crate::words::ENTROPY_LEN;

const FORMAT: &str = "superscalar-seed";
const VERSION: u64 = 1;
const KDF: &str = "argon2id-v19";
const CIPHER: &str = "xchacha20-poly1305";
const SALT_LEN: usize = 16;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// Upper bounds on read: a file handed to us must not make us allocate or compute without end.
const MOST_MEMORY_KIB: u32 = 256 * 1024;
const MOST_PASSES: u32 = 16;
const MOST_LANES: u32 = 4;

/// More than any file of this format takes.
pub(crate) const MOST_BYTES: u64 = 4096;

/// What unlocking a seed costs, for its owner and for somebody who guesses passphrases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KdfCost {
    /// Argon2id, 64 MiB, 3 passes: a fraction of a second.
    Standard,
    /// Argon2id, 1 MiB, 1 pass: about a millisecond, so that many demo clients start at once. **Weak**: callers refuse it on
    /// mainnet, when they create a seed and (see `Seed::kdf_cost`) when they open one.
    Light,
}

impl KdfCost {
    const fn params(self) -> KdfParams {
        match self {
            Self::Standard => KdfParams {
                memory_kib: 64 * 1024,
                passes: 3,
                lanes: 1,
            },
            Self::Light => KdfParams {
                memory_kib: 1024,
                passes: 1,
                lanes: 1,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KdfParams {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl KdfParams {
    /// Anything cheaper than [`KdfCost::Standard`] counts as light.
    pub(crate) const fn cost(self) -> KdfCost {
        let standard = KdfCost::Standard.params();
        if self.memory_kib >= standard.memory_kib && self.passes >= standard.passes {
            KdfCost::Standard
        } else {
            KdfCost::Light
        }
    }

    fn checked(self) -> Result<Params, OpenError> {
        let unreasonable = |what: String| Err(OpenError::UnreasonableKdf(what));
        if self.memory_kib > MOST_MEMORY_KIB {
            return unreasonable(format!(
                "memory {} KiB, at most {MOST_MEMORY_KIB}",
                self.memory_kib
            ));
        }
        if self.passes > MOST_PASSES {
            return unreasonable(format!("{} passes, at most {MOST_PASSES}", self.passes));
        }
        if self.lanes > MOST_LANES {
            return unreasonable(format!("{} lanes, at most {MOST_LANES}", self.lanes));
        }
        Params::new(self.memory_kib, self.passes, self.lanes, Some(ENTROPY_LEN))
            .map_err(|error| OpenError::UnreasonableKdf(error.to_string()))
    }
}

/// Why bytes did not open. The file's path is added by the caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    Damaged(String),
    UnsupportedVersion(u64),
    UnreasonableKdf(String),
    OutOfMemory { mib: u64 },
    WrongPassphrase,
}

/// The fresh randomness of one file. Drawn by the caller.
pub(crate) struct Fresh {
    pub(crate) salt: [u8; SALT_LEN],
    pub(crate) nonce: [u8; NONCE_LEN],
}

/// Encrypts the entropy; gives the whole file.
pub(crate) fn seal(
    entropy: &[u8; ENTROPY_LEN],
    passphrase: &Passphrase,
    cost: KdfCost,
    fresh: Fresh,
) -> Result<Vec<u8>, OpenError> {
    let Fresh { salt, nonce } = fresh;
    let mut sealed = Sealed {
        kdf: cost.params(),
        salt,
        nonce,
        ciphertext: [0; ENTROPY_LEN + TAG_LEN],
    };
    let header = sealed.header();
    let payload = Payload {
        msg: entropy,
        aad: header.as_bytes(),
    };
    let ciphertext = sealed
        .cipher(passphrase)?
        .encrypt(XNonce::from_slice(&nonce), payload)
        .expect("32 bytes are within the cipher's limit, the only way to fail");
    sealed.ciphertext.copy_from_slice(&ciphertext);
    Ok(sealed.to_json())
}

/// Decrypts a whole file.
pub(crate) fn open(
    file: &[u8],
    passphrase: &Passphrase,
) -> Result<(Zeroizing<[u8; ENTROPY_LEN]>, KdfCost), OpenError> {
    let sealed = Sealed::from_json(file)?;
    let header = sealed.header();
    let payload = Payload {
        msg: &sealed.ciphertext,
        aad: header.as_bytes(),
    };
    let plain = sealed
        .cipher(passphrase)?
        .decrypt(XNonce::from_slice(&sealed.nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| OpenError::WrongPassphrase)?;
    let mut entropy = Zeroizing::new([0; ENTROPY_LEN]);
    entropy.copy_from_slice(&plain);
    Ok((entropy, sealed.kdf.cost()))
}

/// The file's fields, of checked lengths.
struct Sealed {
    kdf: KdfParams,
    salt: [u8; SALT_LEN],
    nonce: [u8; NONCE_LEN],
    ciphertext: [u8; ENTROPY_LEN + TAG_LEN],
}

impl Sealed {
    /// Everything but the ciphertext, in one canonical spelling: the associated data.
    fn header(&self) -> String {
        let KdfParams {
            memory_kib,
            passes,
            lanes,
        } = self.kdf;
        let (salt, nonce) = (hex::encode(self.salt), hex::encode(self.nonce));
        format!(
            "{FORMAT} {VERSION} {KDF} m={memory_kib} t={passes} p={lanes} {salt} {CIPHER} {nonce}"
        )
    }

    fn checksum(&self) -> [u8; 32] {
        let text = format!("{} {}", self.header(), hex::encode(self.ciphertext));
        sha256::Hash::hash(text.as_bytes()).to_byte_array()
    }

    fn cipher(&self, passphrase: &Passphrase) -> Result<XChaCha20Poly1305, OpenError> {
        let params = self.kdf.checked()?;
        let blocks = params.block_count();
        let out_of_memory = OpenError::OutOfMemory {
            mib: (blocks as u64).div_ceil(1024),
        };
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(blocks)
            .map_err(|_| out_of_memory)?;
        memory.resize(blocks, Block::new());
        let mut key = Zeroizing::new([0; 32]);
        let derived = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(
                passphrase.as_bytes(),
                &self.salt,
                &mut *key,
                &mut memory,
            );
        memory.zeroize();
        derived.map_err(|error| OpenError::UnreasonableKdf(error.to_string()))?;
        Ok(XChaCha20Poly1305::new(key.as_slice().into()))
    }

    fn to_json(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT.to_owned(),
            version: VERSION,
            kdf: KdfDocument {
                algorithm: KDF.to_owned(),
                memory_kib: self.kdf.memory_kib,
                passes: self.kdf.passes,
                lanes: self.kdf.lanes,
                salt: hex::encode(self.salt),
            },
            cipher: CipherDocument {
                algorithm: CIPHER.to_owned(),
                nonce: hex::encode(self.nonce),
                ciphertext: hex::encode(self.ciphertext),
            },
            checksum: hex::encode(self.checksum()),
        };
        let mut json = serde_json::to_vec_pretty(&document)
            .expect("a document of strings and numbers has a JSON form");
        json.push(b'\n');
        json
    }

    fn from_json(file: &[u8]) -> Result<Self, OpenError> {
        let damaged = |what: &str| OpenError::Damaged(what.to_owned());
        let unreadable =
            |error: serde_json::Error| OpenError::Damaged(format!("not a seed document: {error}"));
        // The version alone first: a later format may differ in every other field.
        let Marker { format, version } = serde_json::from_slice(file).map_err(unreadable)?;
        if format != FORMAT {
            return Err(damaged("not marked as a seed file"));
        }
        if version != VERSION {
            return Err(OpenError::UnsupportedVersion(version));
        }
        let document: Document = serde_json::from_slice(file).map_err(unreadable)?;
        if document.kdf.algorithm != KDF || document.cipher.algorithm != CIPHER {
            return Err(damaged("unknown algorithm"));
        }
        let sealed = Self {
            kdf: KdfParams {
                memory_kib: document.kdf.memory_kib,
                passes: document.kdf.passes,
                lanes: document.kdf.lanes,
            },
            salt: field(&document.kdf.salt).ok_or_else(|| damaged("salt"))?,
            nonce: field(&document.cipher.nonce).ok_or_else(|| damaged("nonce"))?,
            ciphertext: field(&document.cipher.ciphertext).ok_or_else(|| damaged("ciphertext"))?,
        };
        if field(&document.checksum) != Some(sealed.checksum()) {
            return Err(damaged("its checksum does not fit"));
        }
        Ok(sealed)
    }
}

fn field<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

#[derive(Deserialize)]
struct Marker {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u64,
    kdf: KdfDocument,
    cipher: CipherDocument,
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KdfDocument {
    algorithm: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CipherDocument {
    algorithm: String,
    nonce: String,
    ciphertext: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTROPY: [u8; ENTROPY_LEN] = [0x5a; ENTROPY_LEN];

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned()).unwrap()
    }

    fn fresh() -> Fresh {
        Fresh {
            salt: [7; SALT_LEN],
            nonce: [9; NONCE_LEN],
        }
    }

    fn light() -> Vec<u8> {
        seal(&ENTROPY, &passphrase("right"), KdfCost::Light, fresh()).unwrap()
    }

    /// A file altered by somebody who knows the format, and fits the checksum to the rest.
    fn forge(alter: impl FnOnce(&mut Sealed)) -> Vec<u8> {
        let mut sealed = Sealed::from_json(&light()).unwrap();
        alter(&mut sealed);
        sealed.to_json()
    }

    #[test]
    fn opens_what_it_sealed() {
        for cost in [KdfCost::Light, KdfCost::Standard] {
            let file = seal(&ENTROPY, &passphrase("right"), cost, fresh()).unwrap();
            assert!(file.len() as u64 <= MOST_BYTES);
            let (entropy, opened) = open(&file, &passphrase("right")).unwrap();
            assert_eq!((*entropy, opened), (ENTROPY, cost));
        }
    }

    #[test]
    fn format_is_stable() {
        let expected = include_str!("../tests/seed-v1.json");
        assert_eq!(String::from_utf8(light()).unwrap(), expected);
    }

    #[test]
    fn wrong_passphrase_is_told_from_damage() {
        assert_eq!(
            open(&light(), &passphrase("wrong")),
            Err(OpenError::WrongPassphrase)
        );
        let file = light();
        for position in 0..file.len() {
            for bit in 0..8 {
                let mut flipped = file.clone();
                flipped[position] ^= 1 << bit;
                match open(&flipped, &passphrase("right")) {
                    // White space, or a hex digit in the other case: nothing was lost.
                    Ok((entropy, cost)) => assert_eq!((*entropy, cost), (ENTROPY, KdfCost::Light)),
                    Err(OpenError::Damaged(_) | OpenError::UnsupportedVersion(_)) => {}
                    Err(other) => panic!("byte {position} bit {bit}: {other:?}"),
                }
            }
        }
        for length in 0..file.len() - 1 {
            assert!(
                matches!(
                    open(&file[..length], &passphrase("right")),
                    Err(OpenError::Damaged(_))
                ),
                "{length}"
            );
        }
    }

    #[test]
    fn a_forged_header_does_not_open() {
        let forgeries = [
            forge(|sealed| sealed.kdf.passes = 2),
            forge(|sealed| sealed.kdf.memory_kib = 512),
            forge(|sealed| sealed.salt[0] ^= 1),
            forge(|sealed| sealed.nonce[0] ^= 1),
            forge(|sealed| sealed.ciphertext[0] ^= 1),
        ];
        for forgery in forgeries {
            assert_eq!(
                open(&forgery, &passphrase("right")),
                Err(OpenError::WrongPassphrase)
            );
        }
    }

    #[test]
    fn the_header_is_associated_data() {
        let forgery = forge(|sealed| {
            let cipher = sealed.cipher(&passphrase("right")).unwrap();
            let bare = cipher
                .encrypt(XNonce::from_slice(&sealed.nonce), ENTROPY.as_slice())
                .unwrap();
            sealed.ciphertext.copy_from_slice(&bare);
        });
        assert_eq!(
            open(&forgery, &passphrase("right")),
            Err(OpenError::WrongPassphrase)
        );
    }

    #[test]
    fn a_hostile_file_cannot_exhaust_us() {
        let bombs = [
            forge(|sealed| sealed.kdf.memory_kib = u32::MAX),
            forge(|sealed| sealed.kdf.memory_kib = MOST_MEMORY_KIB + 1),
            forge(|sealed| sealed.kdf.passes = MOST_PASSES + 1),
            forge(|sealed| sealed.kdf.lanes = MOST_LANES + 1),
            forge(|sealed| sealed.kdf.memory_kib = 0),
            forge(|sealed| sealed.kdf.passes = 0),
            forge(|sealed| sealed.kdf.lanes = 0),
        ];
        for bomb in bombs {
            assert!(matches!(
                open(&bomb, &passphrase("right")),
                Err(OpenError::UnreasonableKdf(_))
            ));
        }
    }

    #[test]
    fn cheaper_than_standard_is_light() {
        let standard = KdfCost::Standard.params();
        assert_eq!(standard.cost(), KdfCost::Standard);
        assert_eq!(
            KdfParams {
                memory_kib: standard.memory_kib - 1,
                ..standard
            }
            .cost(),
            KdfCost::Light
        );
        assert_eq!(
            KdfParams {
                passes: standard.passes - 1,
                ..standard
            }
            .cost(),
            KdfCost::Light
        );
    }

    #[test]
    fn later_versions_and_foreign_documents_are_named() {
        let file = String::from_utf8(light()).unwrap();
        let later = file
            .replace("\"version\": 1", "\"version\": 2")
            .replace("\"cipher\"", "\"other\"");
        assert_eq!(
            open(later.as_bytes(), &passphrase("right")),
            Err(OpenError::UnsupportedVersion(2))
        );
        let foreign = file.replace(FORMAT, "somebody-elses-seed");
        assert!(matches!(
            open(foreign.as_bytes(), &passphrase("right")),
            Err(OpenError::Damaged(_))
        ));
        let extended = file.replacen('{', "{\"more\": 1,", 1);
        assert!(matches!(
            open(extended.as_bytes(), &passphrase("right")),
            Err(OpenError::Damaged(_))
        ));
    }
}
