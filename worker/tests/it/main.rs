//! The worker against a fake control plane over real mutual TLS. Named by what a control plane or a person sees.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod approvals;
mod chaos;
mod compression;
mod documents;
mod fake;
mod jobs;
mod journal;
mod link;
mod merging;
mod offered;
mod orders;
mod own;
mod plane;
mod process;
mod sandbox;
mod steps;
mod turns;

use std::path::PathBuf;
use std::time::Duration;

use hermes_worker::config::{Config, JoinSource, LogFormat};
use hermes_worker::seams::Seams;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use fake::{Attached, Fake, soon};

/// A worker in this process with a home of its own.
struct Worker {
    dir: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinSet<anyhow::Result<()>>,
}

impl Worker {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), stop: CancellationToken::new(), task: JoinSet::new() }
    }

    fn start(fake: &Fake) -> Self {
        Self::new().serve(fake)
    }

    fn serve(self, fake: &Fake) -> Self {
        self.serve_with(fake, Seams::default())
    }

    fn serve_with(mut self, fake: &Fake, seams: Seams) -> Self {
        self.stop = CancellationToken::new();
        self.task.spawn(hermes_worker::app::serve_with(self.config(fake), seams, self.stop.clone()));
        self
    }

    fn config(&self, fake: &Fake) -> Config {
        Config {
            servers: vec![fake.url.parse().unwrap()],
            home: self.home(),
            slots: 4,
            drain_grace: Duration::from_secs(20),
            join: JoinSource::Text(fake.join_token.clone()),
            parent_pid: None,
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            program: None,
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn has(&self, path: &str) -> bool {
        self.home().join(path).try_exists().unwrap()
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.home().join(path)).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.home().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// How the worker ended by itself.
    async fn ended(&mut self) -> anyhow::Result<()> {
        soon("the worker's end", self.task.join_next()).await.unwrap().unwrap()
    }
}

/// A worker that has registered.
async fn attached() -> (Fake, Worker, Attached) {
    let mut fake = Fake::start().await;
    let worker = Worker::start(&fake);
    let mut link = fake.attached().await;
    link.welcome().await;
    (fake, worker, link)
}
