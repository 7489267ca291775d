//! Connects to the event log and the store for `dashi config check --connect`; creates and changes nothing there.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use dashi_config::{LogUrl, Settings, StoreUrl, parse_log_url, parse_store_url};
use dashi_store::Store;

use crate::exit::Misuse;
use crate::open;

/// Time limit of each.
const BOUND: Duration = Duration::from_secs(10);

/// Time limit of both.
pub const LONGEST: Duration = Duration::from_secs(2 * BOUND.as_secs());

/// Connects to both.
///
/// # Errors
/// One of them cannot be reached, or is not one that Dashi can use.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    bounded("store", reach_store(settings)).await?;
    bounded("event log", reach_log(settings)).await
}

async fn bounded(what: &str, reaching: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    match tokio::time::timeout(BOUND, reaching).await {
        Ok(reached) => reached.with_context(|| format!("the {what} cannot be used")),
        Err(_) => anyhow::bail!("the {what} does not answer within {} s", BOUND.as_secs()),
    }
}

async fn reach_store(settings: &Settings) -> anyhow::Result<()> {
    match parse_store_url(&settings.store)? {
        StoreUrl::Sqlite(path) => reach_file(&path),
        StoreUrl::Postgres(_) => {
            let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
            let answered = async {
                store.ping().await?;
                // A database without tables is fine: they are made at the first start.
                store.umami().await
            };
            let answered = answered.await;
            Store::close(&store).await;
            answered?;
            Ok(())
        }
    }
}

async fn reach_log(settings: &Settings) -> anyhow::Result<()> {
    match parse_log_url(&settings.log)? {
        LogUrl::Sqlite(path) => reach_file(&path),
        LogUrl::Kafka { brokers, .. } => {
            let mut failed = Vec::new();
            for broker in brokers.split(',') {
                match tokio::net::TcpStream::connect(broker).await {
                    Ok(_) => return Ok(()),
                    Err(error) => failed.push(format!("{broker}: {error}")),
                }
            }
            anyhow::bail!("no broker accepts a connection ({})", failed.join("; "))
        }
    }
}

/// Checks that a file can be written to or, if it does not exist, that it can be made in the nearest directory that does.
fn reach_file(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        let opened = std::fs::File::options().append(true).open(path);
        opened.with_context(|| format!("{} cannot be written to", path.display()))?;
        return Ok(());
    }
    let directory = path.ancestors().skip(1).find(|directory| directory.exists());
    let directory = directory.filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let metadata = std::fs::metadata(directory).with_context(|| format!("{}", directory.display()))?;
    if !metadata.is_dir() || metadata.permissions().readonly() {
        return Err(Misuse(format!("{} cannot be made in {}", path.display(), directory.display())).into());
    }
    Ok(())
}
