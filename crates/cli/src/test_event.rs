//! `dashi test-event`: sends one event to a running collector and follows it to its row.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use dashi_config::Loaded;
use dashi_domain::ids::{named_event_id, request_name};
use dashi_event_log::EventLog;
use dashi_load::{Connection, Target};
use dashi_store::{AppliedEvent, Store};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::TestEventArgs;
use crate::clock::now_ms;
use crate::exit::{Exit, Misuse};
use crate::output::print;
use crate::progress::within;
use crate::{open, trace};

/// The address of the page that the event is of, by which it is found in the dashboard.
const PATH: &str = "/dashi-test-event";

/// How long the collector's answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// How often the store is asked.
const PAUSE: Duration = Duration::from_millis(20);

/// The event's way.
#[derive(Debug, Serialize)]
struct Way {
    website_id: Uuid,
    event_id: Uuid,
    session_id: String,
    visit_id: String,
    /// From the request to its answer: then it was durable.
    durable_ms: f64,
    /// From the request to its row; absent if it has none yet.
    applied_ms: Option<f64>,
    /// Its partition and offset in the log, if it is not applied.
    in_log: Option<(u32, u64)>,
}

/// Sends the event, waits for its row and prints its way. Exit code 3 if it is durable and not applied within the wait.
pub async fn run(loaded: &Loaded, args: &TestEventArgs) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let target = Target::parse(&args.url)
        .ok_or_else(|| Misuse(format!("--url {}: give http://HOST:PORT", args.url)))?;
    let store = open::store(&settings.store, settings, open::Absent::Refuse).await?;
    let log = open::log(settings, open::Absent::Refuse).await?;
    let website = match args.website {
        Some(website) => website,
        None => store.websites().await?.first().map(|website| website.id).ok_or_else(|| {
            Misuse("the store has no website: add one with `dashi website add --name NAME`".to_owned())
        })?,
    };
    let name = format!("test-event-{}", Uuid::now_v7());
    let event_id = named_event_id(website, &request_name(&name, None));
    let (sent_at_ms, began) = (now_ms(), Instant::now());
    let answer = send(&target, website, &name).await.with_context(|| format!("{}/api/send", args.url))?;
    let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1_000.0;
    let durable_ms = milliseconds(began);
    let id = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut way = Way {
        website_id: website,
        event_id,
        session_id: id("sessionId"),
        visit_id: id("visitId"),
        durable_ms,
        applied_ms: None,
        in_log: None,
    };
    let wait = Duration::from_secs(args.wait);
    let applied = within(args.json, "waiting for its row", wait, row(&store, event_id, wait)).await?;
    if applied.is_some() {
        way.applied_ms = Some(milliseconds(began));
    } else {
        way.in_log = find(&log, event_id, sent_at_ms).await?;
    }
    let backlog = if applied.is_none() { Some(backlog(&log, &store).await?) } else { None };
    store.close().await;
    log.close().await;
    print(&if args.json {
        format!("{}\n", serde_json::to_string(&way)?)
    } else {
        text(&way, applied.as_ref(), backlog, args)
    });
    Ok(if way.applied_ms.is_some() { Exit::Done } else { Exit::No })
}

/// Posts a page view under this name; its answer, which has a session.
async fn send(target: &Target, website: Uuid, name: &str) -> anyhow::Result<Value> {
    let payload = json!({
        "website": website, "hostname": "dashi.test", "url": PATH, "title": "Test of the pipeline", "language": "en"
    });
    let body = json!({ "type": "event", "payload": payload }).to_string();
    let headers = [
        ("content-type", "application/json"),
        ("user-agent", crate::serve::AGENT),
        ("idempotency-key", name),
    ];
    let asked = tokio::time::timeout(ANSWER, async {
        let mut connection = Connection::connect(&target.authority).await?;
        connection.request("POST", "/api/send", &headers, body.as_bytes()).await
    });
    let response = match asked.await {
        Ok(response) => response?,
        Err(_) => anyhow::bail!("no answer within {} s", ANSWER.as_secs()),
    };
    let text = String::from_utf8_lossy(&response.body).into_owned();
    match serde_json::from_str::<Value>(&text) {
        Ok(answer) if response.status == 200 && answer.get("sessionId").is_some() => Ok(answer),
        Ok(answer) if response.status == 200 => {
            anyhow::bail!("answered 200 and did not take the event: {answer}; an address or agent is ignored")
        }
        _ => anyhow::bail!("answered {}: {text}", response.status),
    }
}

/// The event's row, as soon as it is there, within `wait`.
async fn row(store: &Store, event_id: Uuid, wait: Duration) -> anyhow::Result<Option<AppliedEvent>> {
    let deadline = Instant::now() + wait;
    loop {
        let applied = store.trace(event_id).await?;
        if applied.is_some() || Instant::now() >= deadline {
            return Ok(applied);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Where the log has the event.
async fn find(log: &EventLog, event_id: Uuid, from_ms: i64) -> anyhow::Result<Option<(u32, u64)>> {
    for partition in log.partitions().await? {
        // Clocks of processes differ a little.
        let times = from_ms - 1_000..i64::MAX;
        let found = trace::search(log, partition, event_id, times, Some(1), |_| ()).await?;
        if let Some(record) = found.first() {
            return Ok(Some((record.partition.number(), record.offset.number())));
        }
    }
    Ok(None)
}

/// Records that are not applied yet, in all partitions.
async fn backlog(log: &EventLog, store: &Store) -> anyhow::Result<u64> {
    let states = store.partitions().await?;
    let mut records = 0;
    for partition in log.partitions().await? {
        let extent = log.extent(partition).await?;
        let state = states.iter().find(|state| state.log == *log.id() && state.partition == partition);
        let from = state.map_or(extent.low, |state| state.checkpoint.offset().max(extent.low));
        records += extent.high.number().saturating_sub(from.number());
    }
    Ok(records)
}

fn text(way: &Way, applied: Option<&AppliedEvent>, backlog: Option<u64>, args: &TestEventArgs) -> String {
    let mut lines = vec![
        format!("sent      a page view of {PATH} for website {} to {}", way.website_id, args.url),
        format!(
            "durable   after {:.1} ms: event {}, session {}, visit {}",
            way.durable_ms, way.event_id, way.session_id, way.visit_id
        ),
    ];
    match (applied, way.applied_ms, way.in_log) {
        (Some(row), Some(ms), _) => lines.push(format!("applied   after {ms:.1} ms: it has a row in {}", row.table)),
        (_, _, Some((partition, offset))) => lines.push(format!(
            "waits     in partition {partition} at offset {offset}, not applied within {} s; {} records are not applied \
             yet. Is a projector running? `dashi status` shows the partitions",
            args.wait,
            backlog.unwrap_or_default()
        )),
        _ => lines.push(format!(
            "missing   the log of these settings does not have it: the collector at {} uses another one, or its spool \
             has it while Kafka is away (`dashi status` shows spools)",
            args.url
        )),
    }
    lines.join("\n") + "\n"
}
