//! One call of a command-line program.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What a program answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How it was called, for error messages.
    pub call: String,
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Answer {
    /// The JSON it printed, if it succeeded.
    pub fn json(&self) -> Result<Value> {
        if self.code != 0 {
            bail!("{self}");
        }
        self.printed()
    }

    /// The JSON it printed, whatever its exit code.
    pub fn printed(&self) -> Result<Value> {
        // Progress may come first, one object a line; the answer is the whole text or its last line.
        let text = self.stdout.trim();
        let whole = serde_json::from_str(text);
        let last = || serde_json::from_str(text.lines().last().unwrap_or_default());
        whole
            .or_else(|_| last())
            .with_context(|| format!("not JSON: {self}"))
    }

    /// Fails unless the program refused with this exit code, and told these words.
    pub fn refused(&self, code: i32, words: &[&str]) -> Result<()> {
        let told = format!("{}{}", self.stdout, self.stderr).to_lowercase();
        let missing: Vec<_> = words
            .iter()
            .filter(|word| !told.contains(&word.to_lowercase()))
            .collect();
        if self.code != code || !missing.is_empty() {
            bail!(
                "expected exit code {code} and the words {words:?} (missing: {missing:?}): {self}"
            );
        }
        Ok(())
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {}\nstdout: {}\nstderr: {}",
            self.call,
            self.code,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// Runs a program to its end.
pub fn run(
    program: &Path,
    arguments: &[OsString],
    environment: &[(String, String)],
    input: &str,
) -> Result<Answer> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it: no mistake of ours.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    Ok(Answer {
        call: format!("{name} {}", words.join(" ")),
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
