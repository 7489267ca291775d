//! Changes of profiles, by NOTIFY: committed with the rows, received by a connection that listens.

use std::sync::OnceLock;
use std::time::Duration;

use dashi_domain::profile::Person;
use sqlx::Executor as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::ProfileChange;
use crate::error::DriverMessage;
use crate::postgres::PostgresStore;
use crate::postgres::pool::{Pool, Session};
use crate::profile::CHANGES_MAX;

/// The channel of NOTIFY.
pub(crate) const CHANNEL: &str = "dashi_profile";

/// Least time between two attempts to listen; as long as nobody listens, readers read again that often.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// How often a listening connection is checked: it may receive nothing for days.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Notifies everybody who listens, once the transaction is committed. Nobody reads a generation that is not live.
pub(crate) async fn notify(connection: &mut Session, changed: &[ProfileChange]) -> Result<(), sqlx::Error> {
    if connection.generation_schema().is_some() {
        return Ok(());
    }
    let notified: Vec<String> = changed.iter().map(text).collect();
    if notified.is_empty() {
        return Ok(());
    }
    sqlx::query("/* notify */ SELECT pg_notify($1, change) FROM unnest($2::text[]) AS change")
        .bind(CHANNEL)
        .bind(notified)
        .execute(connection)
        .await?;
    Ok(())
}

/// A change as the text of a notification, which [`change`] reads back.
fn text(change: &ProfileChange) -> String {
    match change {
        ProfileChange::Person(Person { website_id, distinct_id }) => {
            format!("p{website_id}{distinct_id}")
        }
        ProfileChange::Session { website_id, session_id } => format!("s{website_id}{session_id}"),
        // Of no other form, so it is read as what it is.
        ProfileChange::Resync => "r".to_owned(),
    }
}

/// Reads a notification; one in an unknown form counts as a resync.
fn change(text: &str) -> ProfileChange {
    let split = |text: &str| {
        let (website, rest) = text.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
        Some((website.parse::<Uuid>().ok()?, rest.to_owned()))
    };
    let read = || match text.split_at_checked(1)? {
        ("p", rest) => split(rest)
            .map(|(website_id, distinct_id)| ProfileChange::Person(Person { website_id, distinct_id })),
        ("s", rest) => {
            let (website_id, session) = split(rest)?;
            Some(ProfileChange::Session { website_id, session_id: session.parse().ok()? })
        }
        _ => None,
    };
    read().unwrap_or(ProfileChange::Resync)
}

/// The feed of changes that any process commits.
#[derive(Debug)]
pub(crate) struct ChangeFeed {
    sender: broadcast::Sender<ProfileChange>,
    listening: OnceLock<()>,
}

impl Default for ChangeFeed {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(CHANGES_MAX), listening: OnceLock::new() }
    }
}

/// Listens until the pool is closed. After a gap in which notifications may have been lost it sends a resync; where
/// nobody can listen, it sends one every second.
async fn listen(pool: Pool, sender: broadcast::Sender<ProfileChange>) {
    let mut failing = false;
    while !pool.is_closed() {
        let outcome = tokio::select! {
            () = pool.closed() => return,
            outcome = listen_once(&pool, &sender, &mut failing) => outcome,
        };
        match outcome {
            // Again at once: notifications of commits meanwhile are lost.
            Ok(Listened::UntilItWasLost) => continue,
            Ok(Listened::NotAtAll) => {}
            Err(error) => {
                if !failing {
                    let error = DriverMessage::new(&error);
                    tracing::warn!(
                        error = %error,
                        "cannot listen for changes of profiles; readers look for changes once a second meanwhile; trying again"
                    );
                }
                failing = true;
            }
        }
        let _ = sender.send(ProfileChange::Resync);
        tokio::select! {
            () = pool.closed() => return,
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
        }
    }
}

enum Listened {
    UntilItWasLost,
    /// Nobody can, behind this pooler.
    NotAtAll,
}

/// Listens until the connection is lost.
async fn listen_once(
    pool: &Pool,
    sender: &broadcast::Sender<ProfileChange>,
    failing: &mut bool,
) -> Result<Listened, sqlx::Error> {
    let Some((options, limit)) = pool.listening().await? else { return Ok(Listened::NotAtAll) };
    let silent = |_| sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"));
    // The driver's listener wants a pool; this one makes the one connection that it listens on.
    let single = PgPoolOptions::new().max_connections(1).acquire_timeout(limit).connect_lazy_with(options);
    let connected = async {
        let mut listener = PgListener::connect_with(&single).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let mut listener = tokio::time::timeout(limit, connected).await.map_err(silent)??;
    pool.listened().await;
    // Nobody may be listening here at the moment.
    let _ = sender.send(ProfileChange::Resync);
    *failing = false;
    loop {
        match tokio::time::timeout(HEARTBEAT, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                let _ = sender.send(change(notification.payload()));
            }
            // The connection was lost.
            Ok(Ok(None)) => return Ok(Listened::UntilItWasLost),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                tokio::time::timeout(limit, listener.execute("SELECT 1")).await.map_err(silent)??;
            }
        }
    }
}

impl PostgresStore {
    pub(crate) fn profile_changes(&self) -> broadcast::Receiver<ProfileChange> {
        let receiver = self.changes.sender.subscribe();
        self.changes.listening.get_or_init(|| {
            tokio::spawn(listen(self.pool.clone(), self.changes.sender.clone()));
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_reads_back_what_was_told() {
        let website_id = Uuid::from_u128(1);
        let person = Person { website_id, distinct_id: "Łukasz \u{1f600}".to_owned() };
        let of_person = ProfileChange::Person(person);
        assert_eq!(change(&text(&of_person)), of_person);
        let session_id = Uuid::from_u128(2);
        let of_session = ProfileChange::Session { website_id, session_id };
        assert_eq!(change(&text(&of_session)), of_session);
        for foreign in ["", "p", "x", "sfoo", "é"] {
            assert_eq!(change(foreign), ProfileChange::Resync, "{foreign}");
        }
    }
}
