//! A whole construction over gRPC, TLS and disks, by a coordinator process and wallets.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use scenarios::binaries;
use scenarios::bitcoind::Options;
use scenarios::process::{Launch, Process};
use scenarios::world::{World, number};
use serde::Serialize;

use crate::cpu;

/// Up to so many wallets are processes of their own.
const OWN_PROCESSES: u32 = 128;
/// More share so many processes.
const SHARED_PROCESSES: u32 = 4;

/// What a construction costs. `wall_s` and the processor times run from the invitation to the last
/// client's stored exit kit; connecting, TLS and authentication are apart, all processes together.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) clients: u32,
    pub(crate) wall_s: f64,
    /// From the invitation to the last channel that stands on both sides.
    pub(crate) with_channels_s: f64,
    pub(crate) coordinator_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
    pub(crate) bytes_to_clients: u64,
    pub(crate) bytes_from_clients: u64,
    pub(crate) coordinator_peak_rss_bytes: u64,
    /// The largest of the wallets, if each is a process of its own.
    pub(crate) client_peak_rss_bytes: Option<u64>,
    pub(crate) connect_s: f64,
    pub(crate) connect_cpu_s: f64,
}

/// Builds one factory and tells what it cost.
pub(crate) fn run(clients: u32) -> Result<Cost> {
    let mut bench = Bench::prepare(clients)?;
    let (connecting, before) = (Instant::now(), bench.coordinator()?);
    bench.start_workers()?;
    bench.connected()?;
    let connect_s = connecting.elapsed().as_secs_f64();
    let connect_cpu = bench.coordinator()?.saturating_sub(before) + bench.workers()?;

    let (coordinator, workers, traffic) =
        (bench.coordinator()?, bench.workers()?, bench.traffic()?);
    let invited = bench.invite()?;
    let kept = bench.kept()?;
    let (coordinator, workers) = (
        bench.coordinator()? - coordinator,
        bench.workers()? - workers,
    );
    let after = bench.traffic()?;
    let opened = bench.opened()?;
    Ok(Cost {
        clients,
        wall_s: Duration::from_micros(kept.saturating_sub(invited)).as_secs_f64(),
        with_channels_s: Duration::from_micros(opened.saturating_sub(invited)).as_secs_f64(),
        coordinator_cpu_s: coordinator.as_secs_f64(),
        client_cpu_s: workers.as_secs_f64(),
        bytes_to_clients: after.to_clients - traffic.to_clients,
        bytes_from_clients: after.from_clients - traffic.from_clients,
        coordinator_peak_rss_bytes: cpu::peak_rss(bench.world.coordinator.process()?.id())?,
        client_peak_rss_bytes: bench.client_peak_rss()?,
        connect_s,
        connect_cpu_s: connect_cpu.as_secs_f64(),
    })
}

#[derive(Debug)]
struct Bench {
    world: World,
    directory: PathBuf,
    clients: u32,
    workers: Vec<Process>,
}

#[derive(Clone, Copy, Debug)]
struct Traffic {
    to_clients: u64,
    from_clients: u64,
}

impl Bench {
    fn prepare(clients: u32) -> Result<Self> {
        let directory = binaries::target()?.join("bench");
        let mut world = World::prepare(&directory, Options::default())?;
        // The bench measures; it does not test patience.
        world.coordinator.configure("ceremony.join_seconds", 300)?;
        world.coordinator.configure("ceremony.step_seconds", 300)?;
        for limit in ["max_unauthenticated_per_ip", "max_connections_per_ip"] {
            let key = format!("server.{limit}");
            world.coordinator.configure(&key, 2048)?;
        }
        world
            .coordinator
            .configure("ceremony.max_clients", i64::from(clients.max(2)))?;
        world.coordinator.start()?;
        world.coordinator.wait_for("ready")?;
        world.fund_coordinator(Amount::from_sat(1_000_000 + 320_000 * u64::from(clients)))?;
        Ok(Self {
            world,
            directory,
            clients,
            workers: Vec::new(),
        })
    }

    fn start_workers(&mut self) -> Result<()> {
        let processes = match self.clients {
            few @ ..=OWN_PROCESSES => few,
            _ => SHARED_PROCESSES,
        };
        for worker in 0..processes {
            let count = self.clients / processes + u32::from(worker < self.clients % processes);
            self.workers.push(self.worker(worker, count)?);
        }
        Ok(())
    }

    fn worker(&self, number: u32, count: u32) -> Result<Process> {
        let name = format!("wallets-{number}");
        let directory = self.directory.join(&name);
        let text = |path: &Path| path.display().to_string();
        let arguments = [
            "worker".to_owned(),
            format!("--count={count}"),
            format!("--coordinator={}", self.world.connection()),
            format!("--rpc-url={}", self.world.node.rpc_url()),
            format!("--rpc-cookie={}", text(&self.world.node.cookie_file())),
            format!("--directory={}", text(&directory)),
        ];
        Process::start(Launch {
            name: &name,
            program: &std::env::current_exe()?,
            arguments: arguments.map(Into::into).to_vec(),
            environment: Vec::new(),
            logs: &self.directory,
        })
    }

    /// Waits until every wallet is authenticated and has asked for a place.
    fn connected(&self) -> Result<()> {
        let mut interested = 0;
        let all = |event: &scenarios::event::Event| {
            interested += u32::from(event.is("client_interested"));
            interested == self.clients
        };
        self.world
            .coordinator
            .wait("everybody's interest", all)
            .map(drop)
    }

    /// Starts the ceremony; gives the time of the first invitation.
    fn invite(&self) -> Result<u64> {
        let mark = self.world.coordinator.mark()?;
        self.world
            .begin(&["--clients", &self.clients.to_string()])?;
        self.world
            .coordinator
            .wait_after(mark, "the invitation", |event| event.is("attempt_started"))?;
        let seen = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut first = u64::try_from(seen.as_micros())?;
        for worker in &self.workers {
            first = first.min(number(&worker.wait_for("first_invited")?.0, "at_us")?);
        }
        Ok(first)
    }

    /// Waits for every kit; gives the time of the last.
    fn kept(&self) -> Result<u64> {
        let mut last = 0;
        for worker in &self.workers {
            last = last.max(number(&worker.wait_for("all_kept")?.0, "at_us")?);
        }
        Ok(last)
    }

    /// Waits for every channel; gives the time of the last.
    fn opened(&self) -> Result<u64> {
        let mut last = 0;
        for worker in &self.workers {
            last = last.max(number(&worker.wait_for("all_opened")?.0, "at_us")?);
        }
        Ok(last)
    }

    fn coordinator(&self) -> Result<Duration> {
        cpu::of(self.world.coordinator.process()?.id())
    }

    fn workers(&self) -> Result<Duration> {
        self.workers.iter().map(|worker| cpu::of(worker.id())).sum()
    }

    fn client_peak_rss(&self) -> Result<Option<u64>> {
        if self.clients > OWN_PROCESSES {
            return Ok(None);
        }
        let peaks = self.workers.iter().map(|worker| cpu::peak_rss(worker.id()));
        Ok(peaks.collect::<Result<Vec<_>>>()?.into_iter().max())
    }

    fn traffic(&self) -> Result<Traffic> {
        let info = self.world.coordinator.json(&["info"])?;
        let traffic = Traffic {
            to_clients: number(&info, "bytes_sent")?,
            from_clients: number(&info, "bytes_received")?,
        };
        ensure!(traffic.from_clients > 0, "nothing was counted: {info}");
        Ok(traffic)
    }
}

impl Cost {
    /// For people.
    pub(crate) fn show(&self) -> Result<()> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let clients = self.clients.max(1);
        println!("{clients} clients, from the invitation to the last stored exit kit");
        println!("  wall                  {:9.3} s", self.wall_s);
        println!("  with all channels     {:9.3} s", self.with_channels_s);
        println!("  coordinator's CPU     {:9.3} s", self.coordinator_cpu_s);
        println!(
            "  clients' CPU          {:9.3} s  ({:.4} s each)",
            self.client_cpu_s,
            self.client_cpu_s / f64::from(clients)
        );
        println!(
            "  to clients            {:9.3} MiB ({} bytes each)",
            mib(self.bytes_to_clients),
            self.bytes_to_clients / u64::from(clients)
        );
        println!(
            "  from clients          {:9.3} MiB ({} bytes each)",
            mib(self.bytes_from_clients),
            self.bytes_from_clients / u64::from(clients)
        );
        println!(
            "  coordinator's memory  {:9.3} MiB at most",
            mib(self.coordinator_peak_rss_bytes)
        );
        if let Some(bytes) = self.client_peak_rss_bytes {
            println!("  one wallet's memory   {:9.3} MiB at most", mib(bytes));
        }
        println!(
            "  before: connecting, TLS, authentication: {:.3} s, {:.3} s of CPU in all processes",
            self.connect_s, self.connect_cpu_s
        );
        std::io::Write::flush(&mut std::io::stdout()).context("nobody reads this")
    }
}
