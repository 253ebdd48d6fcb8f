//! The ladder as it is: a row for each factory that is not over, redrawn where there is a terminal.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stdout};

use anyhow::Result;
use scenarios::export::Export;
use scenarios::ladder::{Ladder, Life};

use crate::screen::{grouped, short};

/// Most rows that are drawn: a screen is not endless.
const ROWS: usize = 40;
/// Width of the bar that is a factory's life.
const BAR: u32 = 24;

/// What is on the screen.
pub(crate) struct Board {
    terminal: bool,
    /// Rows drawn last, to be drawn over.
    drawn: usize,
    active: u32,
    dying: u32,
    /// What was told, where nothing can be drawn over.
    told: (usize, usize),
}

impl Board {
    pub(crate) fn new(ladder: &Ladder) -> Self {
        Self {
            terminal: stdout().is_terminal(),
            drawn: 0,
            active: ladder.numbers.factory.active,
            dying: ladder.numbers.factory.dying,
            told: (0, 0),
        }
    }

    /// Draws the ladder, or tells what is new.
    pub(crate) fn show(&mut self, ladder: &Ladder) -> Result<()> {
        match self.terminal {
            true => self.draw(ladder),
            false => self.tell(ladder),
        }
    }

    /// What follows comes below.
    pub(crate) const fn leave(&mut self) {
        self.drawn = 0;
    }

    /// A line for every day.
    fn tell(&mut self, ladder: &Ladder) -> Result<()> {
        let lives = ladder.tally.lives();
        let reaped = lives.iter().filter(|(_, life)| life.swept_sat > 0).count();
        let news = (lives.len(), reaped);
        if news == self.told {
            return Ok(());
        }
        self.told = news;
        let moved: usize = lives.iter().map(|(_, life)| life.handed_over.len()).sum();
        let height = ladder.world.node.height()?;
        println!(
            "  height {height}: {} born, {reaped} reaped, {moved} clients migrated",
            lives.len()
        );
        Ok(())
    }

    fn draw(&mut self, ladder: &Ladder) -> Result<()> {
        let height = ladder.world.node.height()?;
        let mut rows = Vec::new();
        let lives = ladder.tally.lives();
        let over = |life: &Life| life.swept_sat > 0;
        let standing: Vec<_> = lives.iter().filter(|(_, life)| !over(life)).collect();
        let gone: Vec<_> = lives.iter().filter(|(_, life)| over(life)).collect();
        rows.push(format!(
            "height {height}   {} born, {} reaped",
            lives.len(),
            gone.len()
        ));
        // Of those that are over only the last few.
        let last = gone.iter().skip(gone.len().saturating_sub(3));
        for (id, life) in last.chain(&standing) {
            rows.push(self.row(ladder.export(id).ok(), id, life, height));
        }
        let skipped = rows.len().saturating_sub(ROWS);
        rows.drain(1..=skipped);
        self.paint(&rows)
    }

    fn row(&self, export: Option<&Export>, id: &str, life: &Life, height: u32) -> String {
        let birth = export.map_or(life.born, |export| export.birth_height);
        let clients = export.map_or(0, |export| export.clients().count());
        let (dies, end) = (birth + self.active, birth + self.active + self.dying);
        let expiry = export.map_or(0, |export| export.expiry_height);
        let state = match life {
            life if life.swept_sat > 0 => format!("reaped {} sat", grouped(life.swept_sat)),
            life if !life.published.is_empty() => "published".to_owned(),
            life if !life.usable => "being born".to_owned(),
            _ if height < dies => "active".to_owned(),
            _ if height < end => "dying".to_owned(),
            _ => "closing".to_owned(),
        };
        let moved = life.handed_over.len();
        let silent = match height >= dies {
            true => clients.saturating_sub(moved),
            false => 0,
        };
        format!(
            "{:>4}  {}  {}  born {birth:>5}  dies {dies:>5}  E {end:>5}  T {expiry:>5}  {clients} clients, {moved} moved, {silent} to come  {state}",
            life.rung
                .map_or_else(|| "-".to_owned(), |rung| format!("#{rung}")),
            short(id),
            self.bar(birth, height),
        )
    }

    /// A life from left to right: what of it is over, and where it begins to die.
    fn bar(&self, birth: u32, height: u32) -> String {
        let life = (self.active + self.dying).max(1);
        let place = |blocks: u32| (blocks.min(life) * BAR) / life;
        let (now, dies) = (place(height.saturating_sub(birth)), place(self.active));
        let mut bar = String::new();
        for cell in 0..BAR {
            let _ = bar.write_char(match (cell < now, cell >= dies) {
                (true, false) => '█',
                (true, true) => '▓',
                (false, false) => '·',
                (false, true) => '░',
            });
        }
        bar
    }

    fn paint(&mut self, rows: &[String]) -> Result<()> {
        let mut text = String::new();
        if self.drawn > 0 {
            write!(text, "\x1b[{}A", self.drawn)?;
        }
        for row in rows {
            writeln!(text, "\x1b[2K  {row}")?;
        }
        // Fewer than before: what is left of them is wiped.
        let fewer = self.drawn.saturating_sub(rows.len());
        for _ in 0..fewer {
            text.push_str("\x1b[2K\n");
        }
        self.drawn = rows.len().max(self.drawn);
        print!("{text}");
        // A terminal that is gone is no reason to stop.
        let _ = stdout().flush();
        Ok(())
    }
}
