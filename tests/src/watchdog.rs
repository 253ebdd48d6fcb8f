//! Ends a process when the test that started it ends, however it ends.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A shell that waits for its input to close, which the operating system does for us even when we are killed, and then kills the process.
#[derive(Debug)]
pub struct Watchdog(Child);

impl Watchdog {
    /// Watches over a process that we started.
    pub fn of(child: &Child) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "read -r _; kill -9 \"$1\" 2>/dev/null",
            "watchdog",
            &child.id().to_string(),
        ]);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        shell.spawn().map(Self).context("cannot start sh")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Before its input closes: the number of the process may be somebody else's by now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
