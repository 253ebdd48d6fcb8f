//! `bin/demo --ladder`: a ladder of the default shape from its first birth until every factory of its first life has come back.

mod board;
mod report;

use std::time::Duration;

use anyhow::Result;
use bitcoin::Amount;
use scenarios::binaries;
use scenarios::ladder::{DYING_DAYS, Days, Ladder};
use scenarios::outside::Outside;

use crate::screen::{Screen, grouped};
use crate::stage::FEE_COIN;
use board::Board;

/// The default's rungs, with days of a few blocks.
const DAYS: Days = Days {
    rungs: 33,
    spacing: 6,
};
/// Wallets that join on the same day.
const COHORT: usize = 2;
/// Processes that the wallets share.
const CROWDS: usize = 3;
/// What each wallet is paid from outside: no round number, so that the last thousandth has to move as well.
const BALANCE: u64 = 40_123;
/// What everybody is given to do after each block.
const QUIET: Duration = Duration::from_millis(100);
/// What the coordinator has for each rung: channels and stocks of its clients, twice, as what dies comes back after its successor is born.
const PER_RUNG: u64 = 2_000_000;
/// Milliseconds between two looks of a wallet at the chain.
const POLL_MS: i64 = 100;

/// The story so far.
pub(crate) struct Story {
    ladder: Ladder,
    screen: Screen,
    board: Board,
}

/// Tells the whole life; gives whether everything adds up.
pub(crate) fn run() -> Result<bool> {
    let mut story = Story::begin()?;
    let outside = Outside::start(&mut story.ladder.world)?;
    story.fill(&outside)?;
    story.second_life()?;
    story.report()
}

const fn cohorts() -> usize {
    (DAYS.rungs - DYING_DAYS) as usize
}

const fn wallets() -> usize {
    cohorts() * COHORT
}

impl Story {
    /// The node, the coordinator, all wallets.
    fn begin() -> Result<Self> {
        let mut screen = Screen::new();
        screen
            .heading("A Bitcoin node, a coordinator, and wallets with coins for their own way out");
        let directory = binaries::root().join("target/demo/ladder");
        let mut ladder = Ladder::prepare(&directory, DAYS)?;
        ladder.hurry(QUIET);
        ladder.world.configure_clients("chain.poll_ms", POLL_MS);
        let coins = Amount::from_sat(u64::from(DAYS.rungs) * PER_RUNG);
        ladder.begin(coins)?;
        for crowd in 0..CROWDS {
            screen.progress(&format!(
                "{} of {} wallets",
                crowd * wallets() / CROWDS,
                wallets()
            ));
            ladder.world.add_crowd(wallets() / CROWDS)?;
        }
        let everybody: Vec<usize> = (0..wallets()).collect();
        ladder.fee_coins(&everybody, FEE_COIN)?;
        screen.say(&format!(
            "coordinator   {} sat; a factory is born every {} blocks, lives {}, dies in {}",
            grouped(coins.to_sat()),
            DAYS.spacing,
            ladder.numbers.factory.active,
            ladder.numbers.factory.dying
        ));
        screen.say(&format!(
            "clients       {} wallets in {CROWDS} processes, each with a fee coin of {} sat",
            wallets(),
            grouped(FEE_COIN.to_sat())
        ));
        let board = Board::new(&ladder);
        Ok(Self {
            ladder,
            screen,
            board,
        })
    }

    /// Every day some join, and are paid from outside.
    fn fill(&mut self, outside: &Outside) -> Result<()> {
        self.screen
            .heading("Every day a factory is born, until the ladder is full");
        for cohort in 0..cohorts() {
            let first = cohort * COHORT;
            let members: Vec<usize> = (first..first + COHORT).collect();
            self.ladder.cohort(&members)?;
            self.ladder.pay_in(outside, &members, BALANCE)?;
            self.board.show(&self.ladder)?;
        }
        Ok(())
    }

    /// From now on nobody does anything but mine.
    fn second_life(&mut self) -> Result<()> {
        self.board.leave();
        self.screen.heading(
            "The ladder runs by itself: clients move, keys are handed over, coins come back",
        );
        while !self.is_over() {
            self.ladder.block()?;
            self.board.show(&self.ladder)?;
            let most = DAYS.rungs * DAYS.spacing * 3;
            let height = self.ladder.world.node.height()?;
            anyhow::ensure!(
                height < 200 + most,
                "the ladder stands still at height {height}"
            );
        }
        self.board.leave();
        Ok(())
    }

    /// Every factory of the first life has come back, and as many were born after it.
    fn is_over(&self) -> bool {
        let first = DAYS.rungs as usize;
        let lives = self.ladder.tally.lives();
        let back = lives.iter().take(first);
        let back = back.filter(|(_, life)| life.swept_sat > 0);
        lives.len() >= 2 * first && back.count() == first
    }
}
