//! `dashi health`: asks a running Dashi whether it is ready, for containers without an HTTP client.

use std::time::Duration;

use dashi_load::{Connection, Target};
use serde_json::Value;

use crate::args::HealthArgs;
use crate::exit::{Exit, Misuse};
use crate::output::print;

/// How long the answer may take.
const WAIT: Duration = Duration::from_secs(5);

/// Prints the answer. Exit code 0 if Dashi is ready, 1 if it is not or does not answer.
pub async fn run(args: &HealthArgs) -> anyhow::Result<Exit> {
    let target = Target::parse(&args.url)
        .ok_or_else(|| Misuse(format!("--url {}: give http://HOST:PORT", args.url)))?;
    let asked = tokio::time::timeout(WAIT, async {
        let mut connection = Connection::connect(&target.authority).await?;
        connection.request("GET", "/health/ready", &[], b"").await
    });
    let response = match asked.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => anyhow::bail!("{} does not answer: {error}", args.url),
        Err(_) => anyhow::bail!("{} does not answer within {} s", args.url, WAIT.as_secs()),
    };
    let body = String::from_utf8_lossy(&response.body);
    print(&if args.json { format!("{body}\n") } else { text(&body) });
    Ok(if response.status == 200 { Exit::Done } else { Exit::Failed })
}

/// The answer as lines: whether it is ready, and each check.
fn text(body: &str) -> String {
    let Ok(answer) = serde_json::from_str::<Value>(body) else { return format!("{body}\n") };
    let mut out = if answer["ready"] == true { "ready\n" } else { "not ready\n" }.to_owned();
    for (name, state) in answer["checks"].as_object().into_iter().flatten() {
        let state = state.as_str().map_or_else(|| state.to_string(), str::to_owned);
        out.push_str(&format!("  {name:<16} {state}\n"));
    }
    out
}
