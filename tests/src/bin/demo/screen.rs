//! What is shown: headings with the time, progress, tables. Colour only where there is a terminal.

use std::io::{IsTerminal, Write, stdout};
use std::time::Instant;

/// The terminal, or whatever takes its place.
#[derive(Debug)]
pub(crate) struct Screen {
    started: Instant,
    terminal: bool,
    colour: bool,
    step: u32,
    open: bool,
}

/// Width of headings and rules.
const WIDTH: usize = 100;

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = stdout().is_terminal();
        Self {
            started: Instant::now(),
            terminal,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
            step: 0,
            open: false,
        }
    }

    pub(crate) fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        match self.colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(&self, text: &str) -> String {
        self.paint("31;1", text)
    }

    pub(crate) fn accent(&self, text: &str) -> String {
        self.paint("36", text)
    }

    /// Begins a numbered part of the story.
    pub(crate) fn heading(&mut self, title: &str) {
        self.close();
        self.step += 1;
        let time = format!(" {:.1} s", self.elapsed());
        let left = format!("━━ {} · {title} ", self.step);
        let fill = WIDTH.saturating_sub(left.chars().count() + time.chars().count());
        println!(
            "\n{}{}",
            self.bold(&format!("{left}{}", "━".repeat(fill))),
            self.dim(&time)
        );
    }

    /// A line of the story.
    pub(crate) fn say(&mut self, text: &str) {
        self.close();
        println!("  {text}");
    }

    /// What is going on: one line, overwritten by the next, shown only where that is possible.
    pub(crate) fn progress(&mut self, text: &str) {
        if self.terminal {
            print!("\r\x1b[2K  {}", self.dim(text));
            // A terminal that is gone is no reason to stop.
            let _ = stdout().flush();
            self.open = true;
        }
    }

    fn close(&mut self) {
        if self.open {
            print!("\r\x1b[2K");
            self.open = false;
        }
    }

    /// A table: the first row is the heading; all columns but the first are right-aligned.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) {
        self.close();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for (index, row) in rows.iter().enumerate() {
            let cells = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, width))| match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                });
            let line = cells.collect::<Vec<_>>().join("   ");
            match index {
                0 => println!("  {}", self.bold(&line)),
                _ => println!("  {line}"),
            }
        }
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number with its sign, `+` too.
pub(crate) fn signed(number: i64) -> String {
    let sign = match number {
        0 => "",
        1.. => "+",
        _ => "−",
    };
    format!("{sign}{}", grouped(number.unsigned_abs()))
}

/// The beginning and the end of an id.
pub(crate) fn short(id: &str) -> String {
    match (id.get(..6), id.get(id.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) if id.len() > 12 => format!("{head}…{tail}"),
        _ => id.to_owned(),
    }
}
