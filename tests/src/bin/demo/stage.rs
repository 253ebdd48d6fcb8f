//! Everybody who takes part, and what they were given.

use std::path::PathBuf;

use anyhow::Result;
use bitcoin::Amount;
use scenarios::binaries;
use scenarios::bitcoind::Options;
use scenarios::world::World;

use crate::screen::{Screen, grouped};
use crate::{Arguments, Expiry, Profile};

/// What a wallet needs to leave by itself, and then some.
pub(crate) const FEE_COIN: Amount = Amount::from_sat(50_000);

/// The demo's world and screen.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) screen: Screen,
    pub(crate) directory: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) expiry: Expiry,
    pub(crate) coordinator_lives: bool,
}

impl Stage {
    /// Starts everybody and hands out the coins.
    pub(crate) fn set(arguments: &Arguments) -> Result<Self> {
        let mut screen = Screen::new();
        screen.heading("A Bitcoin node, a coordinator, and wallets: each a process of its own");
        let directory = binaries::root().join("target/demo");
        screen.progress("bitcoind starts");
        let mut world = World::prepare(&directory, Options::default())?;
        screen.say(&format!(
            "bitcoind      regtest, height {}",
            world.node.height()?
        ));
        world.coordinator.start()?;
        world.coordinator.wait_for("ready")?;
        let coins = Amount::from_sat(1_000_000 + 500_000 * u64::from(arguments.clients));
        world.fund_coordinator(coins)?;
        screen.say(&format!(
            "coordinator   process {}, {} sat",
            world.coordinator.process()?.id(),
            grouped(coins.to_sat())
        ));
        let mut stage = Self {
            world,
            screen,
            directory,
            profile: arguments.profile,
            expiry: arguments.expiry,
            coordinator_lives: true,
        };
        stage.wallets(arguments.clients)?;
        Ok(stage)
    }

    fn wallets(&mut self, count: u32) -> Result<()> {
        for number in 0..count {
            self.screen
                .progress(&format!("wallet {} of {count} starts", number + 1));
            let mut client = self.world.new_client(&format!("client-{number}"))?;
            if self.expiry == Expiry::LspReclaim {
                client.configure("limits.allow_lsp_reclaim", true)?;
            }
            client.start()?;
            self.world.clients.push(client);
        }
        for client in &self.world.clients {
            client.wait_for("connected")?;
        }
        let with_coins: Vec<usize> = match self.expiry {
            Expiry::ClientRefund => vec![0],
            Expiry::LspReclaim => (0..self.world.clients.len()).collect(),
        };
        self.world.fund_clients(&with_coins, FEE_COIN)?;
        let who = match self.expiry {
            Expiry::ClientRefund => "client 0 alone has a fee coin",
            Expiry::LspReclaim => "each has a fee coin",
        };
        self.screen.say(&format!(
            "clients       {count} wallets connected over TLS and authenticated; {who} ({} sat)",
            grouped(FEE_COIN.to_sat())
        ));
        Ok(())
    }

    /// All wallets by number.
    pub(crate) fn everybody(&self) -> Vec<usize> {
        (0..self.world.clients.len()).collect()
    }

    /// Tells how to poke at what runs, and waits until the reader has enough. A coordinator that the
    /// story killed is started again, so that there is something to ask.
    pub(crate) fn keep(&mut self) -> Result<()> {
        self.screen
            .heading("Everything stays: a node, a coordinator, wallets");
        if !self.coordinator_lives {
            self.world.coordinator.start()?;
            self.world.coordinator.wait_for("ready")?;
        }
        let (node, client) = (&self.world.node, self.world.client(0)?);
        let lines = [
            format!(
                "export SUPERSCALAR_PASSPHRASE_FILE={}/client-0.passphrase",
                self.world.home().display()
            ),
            format!(
                "alias lsp='{} --data-dir {}'",
                binaries::coordinator()?.display(),
                self.world.coordinator.data().display()
            ),
            format!(
                "alias alice='{} --data-dir {}'     # client-0; the others are beside it",
                binaries::signer_client()?.display(),
                client.data().display()
            ),
            format!(
                "rpc() {{ curl -s --user \"$(cat {})\" --data \"{{\\\"method\\\":\\\"$1\\\",\\\"params\\\":[$2]}}\" {}; }}",
                node.cookie_file().display(),
                node.rpc_url()
            ),
            String::new(),
            "alice status; alice balance; lsp factory list; lsp client list".to_owned(),
            "alice join --capacity 300000               # then the same for another, and:"
                .to_owned(),
            "lsp factory create --clients 2 --wait".to_owned(),
            "rpc generatetoaddress \"6,\\\"$(lsp wallet address)\\\"\"   # mines six blocks"
                .to_owned(),
        ];
        for line in lines {
            self.screen.say(&line);
        }
        self.screen.say(&format!(
            "It ends with Enter here, Ctrl-C, or: kill {}",
            std::process::id()
        ));
        if std::io::stdin().read_line(&mut String::new())? == 0 {
            // Nobody at the keyboard: until a signal ends it.
            loop {
                std::thread::park();
            }
        }
        Ok(())
    }
}
