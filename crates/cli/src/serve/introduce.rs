//! The text with which a start introduces itself.

use std::net::SocketAddr;

use dashi_store::{NewWebsite, REDACTED, Store, redact_url};
use uuid::Uuid;

use crate::clock::now_ms;
use crate::output::print;

/// The agent of a browser.
const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// Makes a website in a store without one, so that a first event can be taken, and prints how to send an event and
/// where its row can be read.
pub async fn introduce(store: &Store, url: &str, address: SocketAddr) -> anyhow::Result<()> {
    let first = NewWebsite { id: Uuid::now_v7(), name: "default".to_owned(), domain: None };
    store.add_first_website(&first, now_ms()).await?;
    let websites = store.websites().await?;
    let Some(website) = websites.first() else {
        print(
            "There is no website yet, so no event is taken: add one in Umami's dashboard, or with `dashi website add`\n",
        );
        return Ok(());
    };
    let shown = match store {
        Store::Sqlite(_) => String::new(),
        Store::Postgres(_) => format!(
            "A moment later it is a row:\n\n  psql '{}' -c 'SELECT created_at, url_path FROM website_event ORDER BY 1 DESC LIMIT 1'\n\n",
            for_psql(url)
        ),
    };
    print(&format!(
        "Dashi collects for the website \"{}\" ({}) on http://{address}\n\
         Send it an event (curl's own agent is a bot's, so it names a browser's):\n\n  \
         curl http://{address}/api/send -H 'Content-Type: application/json' -A '{AGENT}' \
         -d '{{\"type\":\"event\",\"payload\":{{\"website\":\"{}\",\"hostname\":\"example.com\",\"url\":\"/hello\",\"title\":\"Hello\"}}}}'\n\n{shown}",
        website.name, website.id, website.id,
    ));
    Ok(())
}

/// A store's URL for psql: without a password, for which psql asks, and with the parameters that psql knows.
fn for_psql(url: &str) -> String {
    let shown = redact_url(url).replace(&format!(":{REDACTED}@"), "@");
    let (address, query) = shown.split_once('?').unwrap_or((&shown, ""));
    let known = |parameter: &&str| {
        ["host=", "hostaddr=", "port=", "user=", "dbname="].iter().any(|name| parameter.starts_with(name))
    };
    let mut kept: Vec<String> = query.split('&').filter(known).map(str::to_owned).collect();
    if let Some(schema) = query.split('&').find_map(|parameter| parameter.strip_prefix("schema=")) {
        kept.push(format!("options=-csearch_path%3D{schema}"));
    }
    let url = if kept.is_empty() { address.to_owned() } else { format!("{address}?{}", kept.join("&")) };
    url.replace('\'', "%27")
}
