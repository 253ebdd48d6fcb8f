//! Where a passphrase comes from: a file, a file named by the environment, or a person. Never an argument, which every
//! user of the machine could read in the process list.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, Zeroizing};

use crate::PassphraseError;

/// Bounds what is read from a file that may not be a passphrase at all.
const LONGEST: usize = 1024;

/// Read by any user, or written by any but the owner. Group read stays allowed: service managers hand secrets over that way.
const FORBIDDEN_MODE: u32 = 0o027;

/// A passphrase: not empty, wiped when dropped, not shown by `Debug`.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes a passphrase the caller already has.
    pub fn new(text: String) -> Result<Self, PassphraseError> {
        let text = Zeroizing::new(text);
        match text.len() {
            0 => Err(PassphraseError::Empty),
            1..=LONGEST => Ok(Self(text)),
            _ => Err(PassphraseError::TooLong { limit: LONGEST }),
        }
    }

    /// Reads the only line of a file. A trailing line break is not part of the passphrase.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, PassphraseError> {
        let path = path.as_ref();
        let failed = |source| PassphraseError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & FORBIDDEN_MODE != 0 {
            return Err(PassphraseError::OpenToOthers {
                path: path.to_owned(),
                mode,
            });
        }
        // Sized up front, so that growing leaves no unwiped copies behind; 2 for the line break, 1 to see the excess.
        let limit = LONGEST + 3;
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
        file.take(limit as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
            error.into_bytes().zeroize();
            PassphraseError::NotText {
                path: path.to_owned(),
            }
        })?;
        Self::only_line(Zeroizing::new(text), path)
    }

    /// Reads the file whose path the environment variable holds. The passphrase itself never stands in the environment,
    /// which children inherit and crash reports print.
    pub fn from_env_file(variable: &str) -> Result<Self, PassphraseError> {
        Self::from_file(named_file(variable, std::env::var_os(variable))?)
    }

    /// Asks at the terminal, without echo.
    pub fn prompt(question: &str) -> Result<Self, PassphraseError> {
        ask_once(&mut || rpassword::prompt_password(question))
    }

    /// Asks for a new passphrase at the terminal, twice, without echo.
    pub fn prompt_new(question: &str) -> Result<Self, PassphraseError> {
        let again = format!("{} (again): ", question.trim_end().trim_end_matches(':'));
        let mut questions = [question, again.as_str()].into_iter();
        ask_twice(&mut || rpassword::prompt_password(questions.next().unwrap_or(question)))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn only_line(mut text: Zeroizing<String>, path: &Path) -> Result<Self, PassphraseError> {
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.contains(['\n', '\r']) {
            return Err(PassphraseError::SeveralLines {
                path: path.to_owned(),
            });
        }
        Self::new(std::mem::take(&mut *text))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

fn named_file(variable: &str, value: Option<OsString>) -> Result<PathBuf, PassphraseError> {
    value
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .ok_or_else(|| PassphraseError::EnvironmentUnset {
            variable: variable.to_owned(),
        })
}

fn ask_once(ask: &mut dyn FnMut() -> io::Result<String>) -> Result<Passphrase, PassphraseError> {
    Passphrase::new(ask().map_err(|source| PassphraseError::NoTerminal { source })?)
}

fn ask_twice(ask: &mut dyn FnMut() -> io::Result<String>) -> Result<Passphrase, PassphraseError> {
    let first = ask_once(ask)?;
    let second = Zeroizing::new(ask().map_err(|source| PassphraseError::NoTerminal { source })?);
    if *first.0 != *second {
        return Err(PassphraseError::Mismatch);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn read(content: &[u8]) -> Result<Passphrase, PassphraseError> {
        let (_dir, path) = file(content, 0o600);
        Passphrase::from_file(path)
    }

    #[test]
    fn one_line_break_is_not_part_of_it() {
        for content in ["correct horse", "correct horse\n", "correct horse\r\n"] {
            assert_eq!(
                read(content.as_bytes()).unwrap().as_bytes(),
                b"correct horse"
            );
        }
        assert_eq!(
            read(b" spaces count \n").unwrap().as_bytes(),
            b" spaces count "
        );
    }

    #[test]
    fn refuses_what_is_no_passphrase() {
        assert!(matches!(read(b""), Err(PassphraseError::Empty)));
        assert!(matches!(read(b"\n"), Err(PassphraseError::Empty)));
        assert!(matches!(
            read(b"a\nb\n"),
            Err(PassphraseError::SeveralLines { .. })
        ));
        assert!(matches!(
            read(b"a\n\n"),
            Err(PassphraseError::SeveralLines { .. })
        ));
        assert!(matches!(
            read(b"\xff\xfe"),
            Err(PassphraseError::NotText { .. })
        ));
        assert!(matches!(
            read(&[b'x'; LONGEST + 1]),
            Err(PassphraseError::TooLong { .. })
        ));
        assert!(matches!(
            read(&vec![b'x'; 1 << 20]),
            Err(PassphraseError::TooLong { .. })
        ));
        let mut longest = vec![b'x'; LONGEST];
        longest.extend_from_slice(b"\r\n");
        assert_eq!(read(&longest).unwrap().as_bytes().len(), LONGEST);
        let missing = Passphrase::from_file("/nonexistent/passphrase");
        assert!(matches!(missing, Err(PassphraseError::File { .. })));
    }

    #[test]
    fn refuses_a_file_open_to_others() {
        for mode in [0o644, 0o604, 0o606, 0o660, 0o620] {
            let (_dir, path) = file(b"secret", mode);
            let error = Passphrase::from_file(&path).unwrap_err();
            assert!(
                matches!(error, PassphraseError::OpenToOthers { .. }),
                "{mode:o}"
            );
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400, 0o440] {
            let (_dir, path) = file(b"secret", mode);
            assert!(Passphrase::from_file(path).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn the_environment_names_a_file() {
        let unset = Passphrase::from_env_file("SUPERSCALAR_KEYSTORE_TEST_NEVER_SET");
        assert!(matches!(
            unset,
            Err(PassphraseError::EnvironmentUnset { .. })
        ));
        assert!(named_file("X", Some(OsString::new())).is_err());
        assert_eq!(
            named_file("X", Some("/run/p".into())).unwrap(),
            Path::new("/run/p")
        );
    }

    #[test]
    fn a_new_passphrase_is_typed_twice() {
        let typed = |lines: [&'static str; 2]| {
            let mut lines = lines.into_iter();
            ask_twice(&mut || Ok(lines.next().unwrap().to_owned()))
        };
        assert_eq!(typed(["one", "one"]).unwrap().as_bytes(), b"one");
        assert!(matches!(
            typed(["one", "two"]),
            Err(PassphraseError::Mismatch)
        ));
        assert!(matches!(typed(["", ""]), Err(PassphraseError::Empty)));
        let gone = ask_once(&mut || Err(io::ErrorKind::NotFound.into()));
        assert!(matches!(gone, Err(PassphraseError::NoTerminal { .. })));
    }

    #[test]
    fn debug_is_silent() {
        let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
        assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
    }
}
