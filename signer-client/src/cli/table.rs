//! Text tables.

/// Columns aligned, numbers to the right.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned).to_vec()],
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        // A column of numbers is aligned to the right, its head included.
        let numeric: Vec<bool> = (0..columns)
            .map(|column| {
                let mut cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
                self.rows.len() > 1 && cells.all(|cell| is_number(cell))
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).zip(&numeric);
            let cells = cells.map(|((cell, width), right)| {
                if *right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn is_number(cell: &str) -> bool {
    cell == "-"
        || (!cell.is_empty()
            && cell
                .chars()
                .all(|c| c.is_ascii_digit() || c == ' ' || c == '.'))
}

/// Digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `12 345.678`: satoshis, with thousandths.
pub(super) fn with_msat(msat: u64) -> String {
    format!("{}.{:03}", grouped(msat / 1000), msat % 1000)
}

/// What is covered, in the words of the README: away, and awake.
pub(super) fn covered(away_sat: u64, awake_sat: u64) -> String {
    format!(
        "{} sat away, {} sat awake",
        grouped(away_sat),
        grouped(awake_sat)
    )
}

/// The beginning of an id, enough for people.
pub(super) fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(12).collect()
}

/// A moment, from Unix time.
pub(super) fn time(unix: u64) -> String {
    let time = i64::try_from(unix)
        .ok()
        .and_then(|unix| chrono::DateTime::from_timestamp(unix, 0));
    time.map_or_else(
        || unix.to_string(),
        |time| time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_to_the_right() {
        let mut table = Table::new(["what", "sat"]);
        table.row(["a".to_owned(), grouped(1_234_567)]);
        table.row(["bcd".to_owned(), grouped(8)]);
        assert_eq!(
            table.render(),
            "what        sat\na     1 234 567\nbcd           8\n"
        );
    }
}
