//! The ceremony, as the coordinator's events tell it.

use std::fs;

use anyhow::Result;
use scenarios::event::Event;
use scenarios::export::Export;
use scenarios::world::{COMPRESSED, Created};

use crate::picture;
use crate::screen::{Screen, grouped, short};
use crate::stage::Stage;

/// Blocks of the active period: payments between clients lock for two exits and a route.
const ACTIVE: &str = "active=900";

/// A factory that stands, and what its members exported.
#[derive(Debug)]
pub(crate) struct Factory {
    pub(crate) created: Created,
    pub(crate) export: Export,
}

/// Builds the factory, funds it, shows it, and writes all exports.
pub(crate) fn factory(stage: &mut Stage) -> Result<Factory> {
    stage.screen.heading(&format!(
        "A factory is built: profile {}, {}",
        stage.profile.name(),
        stage.expiry.name()
    ));
    let compressed: Vec<_> = COMPRESSED
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let note = format!(
        "calendar compressed for the demo: {} blocks; all locks are the profile's",
        compressed.join(", ")
    );
    let note = stage.screen.dim(&note);
    stage.screen.say(&note);
    stage.world.join(&stage.everybody())?;
    let mark = stage.world.coordinator.mark()?;
    stage.world.begin(&[
        "--profile",
        stage.profile.name(),
        "--expiry",
        stage.expiry.name(),
        // A month that leaves room for the locks of payments.
        "--set",
        ACTIVE,
    ])?;
    let mut progress = Progress::new(stage.everybody().len());
    let screen = &mut stage.screen;
    let funded = stage
        .world
        .coordinator
        .wait_after(mark, "a funding", |event| {
            progress.tell(screen, event);
            event.is("funding_broadcast") || event.is("ceremony_failed")
        })?;
    anyhow::ensure!(
        funded.is("funding_broadcast"),
        "the ceremony failed: {funded}"
    );
    let created = Created {
        factory: funded.text("factory").to_owned(),
        funding: funded.text("txid").parse()?,
    };
    stage.world.confirm(&created)?;
    stage.world.usable_for(&created, &stage.everybody())?;
    let export = stage.world.export(&created)?;
    let text = format!(
        "factory {} stands: one output of {} sat, confirmed at height {}",
        short(&created.factory),
        grouped(export.funding.amount_sat),
        stage.world.node.height()?
    );
    stage.screen.say(&text);
    write_exports(stage, &created)?;
    stage.screen.heading("The tree");
    picture::draw(&mut stage.screen, &export)?;
    Ok(Factory { created, export })
}

/// Before anything is killed: later there is nobody to ask.
fn write_exports(stage: &Stage, created: &Created) -> Result<()> {
    let directory = stage.directory.join("exports");
    fs::create_dir_all(&directory)?;
    let mut all = vec![(
        "coordinator".to_owned(),
        stage
            .world
            .coordinator
            .json(&["factory", "export", &created.factory])?,
    )];
    for client in &stage.world.clients {
        all.push((
            client.name().to_owned(),
            client.json(&["export", &created.factory])?,
        ));
    }
    for (name, export) in all {
        let text = serde_json::to_string_pretty(&export)?;
        fs::write(directory.join(format!("{name}.json")), text + "\n")?;
    }
    Ok(())
}

/// How far the ceremony is.
#[derive(Debug)]
struct Progress {
    clients: usize,
    joined: usize,
    partials: usize,
    acked: usize,
    opened: usize,
}

impl Progress {
    const fn new(clients: usize) -> Self {
        Self {
            clients,
            joined: 0,
            partials: 0,
            acked: 0,
            opened: 0,
        }
    }

    fn tell(&mut self, screen: &mut Screen, event: &Event) {
        let counted = match event.name() {
            "joined" => Some((&mut self.joined, "have joined with fresh keys and nonces")),
            "partials_received" => {
                Some((&mut self.partials, "have checked their path and signed it"))
            }
            "channel_opened" => Some((
                &mut self.opened,
                "have a Lightning channel on their leaf, which is not on the chain",
            )),
            "acked" => Some((
                &mut self.acked,
                "have their exit kit on disk, verified and rehearsed",
            )),
            _ => None,
        };
        if let Some((count, what)) = counted {
            *count += 1;
            let line = format!("{count} of {} clients {what}", self.clients);
            if *count == self.clients {
                screen.say(&format!("✓ {line}"));
            } else {
                screen.progress(&line);
            }
        }
        match event.name() {
            "proposal_sent" => screen.say("✓ the tree is built, each client was sent its path"),
            "client_left_out" | "attempt_failed" => {
                let line = screen.bad(&format!("✗ {event}"));
                screen.say(&line);
            }
            "funding_broadcast" => {
                let line = format!(
                    "✓ only now the funding is signed and broadcast: {}",
                    short(event.text("txid"))
                );
                screen.say(&line);
            }
            _ => {}
        }
    }
}
