//! Standard output that may be closed early: `| head` ends a command quietly.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// As `println!`, without its panic.
macro_rules! outln {
    ($($argument:tt)*) => {
        $crate::cli::io::line(::std::format_args!($($argument)*))
    };
}
pub(super) use outln;

/// Writes a line. When nobody can read it there is nothing left to do.
pub(super) fn line(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("coordinator: cannot write to standard output: {error}");
            std::process::exit(i32::from(super::Exit::Failed as u8));
        }
    }
}
