//! The 24 words of a seed (BIP-39, English list).

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::Zeroizing;

use crate::WordsError;

const COUNT: usize = 24;

/// Bytes of entropy behind 24 words.
pub(crate) const ENTROPY_LEN: usize = 32;

/// The words of a new seed, to be shown to its owner once. Wiped when dropped; `Debug` does not show them.
pub struct Words(Zeroizing<String>);

impl Words {
    /// All words in order, separated by single spaces.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn of(mnemonic: &Mnemonic) -> Self {
        // Sized up front (the longest BIP-39 word has 8 letters), so that growing leaves no copies behind.
        let mut text = Zeroizing::new(String::with_capacity(COUNT * 9));
        for word in mnemonic.words() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(word);
        }
        Self(text)
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Words(..)")
    }
}

/// Reads 24 words as a person types them: any case, any white space.
pub(crate) fn parse(words: &str) -> Result<Mnemonic, WordsError> {
    let mut text = Zeroizing::new(String::with_capacity(words.len()));
    let mut found = 0;
    for word in words.split_whitespace() {
        if found > 0 {
            text.push(' ');
        }
        text.push_str(word);
        found += 1;
    }
    text.make_ascii_lowercase();
    if found != COUNT {
        return Err(WordsError::Count { found });
    }
    Mnemonic::parse_in_normalized(Language::English, &text).map_err(|error| match error {
        bip39::Error::UnknownWord(index) => WordsError::Unknown {
            position: index + 1,
        },
        bip39::Error::BadWordCount(found) => WordsError::Count { found },
        // Entropy length and language are fixed here, so only the checksum is left to fail.
        _ => WordsError::Checksum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abandon(last: &str) -> String {
        format!("{}{last}", "abandon ".repeat(COUNT - 1))
    }

    #[test]
    fn reads_what_a_person_types() {
        let expected = parse(&abandon("art")).unwrap();
        let typed = format!(
            "  {}\n",
            abandon("ART").replace(' ', "\t \n").to_uppercase()
        );
        assert_eq!(parse(&typed).unwrap(), expected);
        assert_eq!(Words::of(&expected).reveal(), abandon("art"));
    }

    #[test]
    fn tells_what_is_wrong() {
        assert_eq!(parse(""), Err(WordsError::Count { found: 0 }));
        let twelve = format!("{}about", "abandon ".repeat(11));
        assert_eq!(parse(&twelve), Err(WordsError::Count { found: 12 }));
        assert_eq!(
            parse(&abandon("art art")),
            Err(WordsError::Count { found: 25 })
        );
        assert_eq!(
            parse(&abandon("satoshis")),
            Err(WordsError::Unknown { position: 24 })
        );
        assert_eq!(parse(&abandon("zoo")), Err(WordsError::Checksum));
        let message = parse(&abandon("satoshis")).unwrap_err().to_string();
        assert!(!message.contains("satoshis"), "{message}");
    }

    #[test]
    fn debug_is_silent() {
        let words = Words::of(&parse(&abandon("art")).unwrap());
        assert_eq!(format!("{words:?}"), "Words(..)");
    }
}
