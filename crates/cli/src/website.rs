//! `dashi website`: the websites that take events.

use dashi_domain::client_address::BlockedAddresses;
use dashi_store::NewWebsite;
use serde_json::json;
use uuid::Uuid;

use crate::args::{Switch, WebsiteCommand};
use crate::serve::now_ms;
use crate::{Exit, Misuse, open, print};
use dashi_config::Loaded;

/// The columns' widths in Umami's table.
pub const NAME_CHARS_MAX: usize = 100;
const DOMAIN_CHARS_MAX: usize = 500;
const BLOCKED_CHARS_MAX: usize = 500;

/// Runs one of the commands against the configured store.
pub async fn run(loaded: &Loaded, command: WebsiteCommand) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Create).await?;
    store.migrate().await?;
    match command {
        WebsiteCommand::Add { name, domain, id } => {
            fits("--name", Some(&name), NAME_CHARS_MAX)?;
            fits("--domain", domain.as_deref(), DOMAIN_CHARS_MAX)?;
            let website = NewWebsite { id: id.unwrap_or_else(Uuid::now_v7), name, domain };
            store.add_website(&website, now_ms()).await?;
            print(&format!("{}\n", website.id));
        }
        WebsiteCommand::List { json } => {
            let websites = store.websites().await?;
            if json {
                let websites: Vec<_> = websites
                    .iter()
                    .map(|website| json!({ "id": website.id, "name": website.name, "domain": website.domain, "created_at_ms": website.created_at_ms, "recordings": website.recorder.takes_recordings(), "heatmaps": website.recorder.takes_heatmaps(), "blocked_addresses": website.blocked_addresses }))
                    .collect();
                print(&format!("{}\n", json!(websites)));
            } else {
                for website in websites {
                    let domain = website.domain.unwrap_or_default();
                    print(&format!("{}  {:<30}  {domain}\n", website.id, website.name));
                }
            }
        }
        WebsiteCommand::Remove { id } => {
            changed(id, store.remove_website(id, now_ms()).await?)?;
            print(&format!("removed {id}; its rows stay\n"));
        }
        WebsiteCommand::Recordings { id, taken } => {
            changed(id, store.set_recordings(id, taken == Switch::On).await?)?;
            let says = if taken == Switch::On { "takes recordings" } else { "takes no recordings" };
            print(&format!("{id} {says}\n"));
        }
        WebsiteCommand::Heatmaps { id, taken } => {
            changed(id, store.set_heatmaps(id, taken == Switch::On).await?)?;
            let says =
                if taken == Switch::On { "takes heatmaps that are posted" } else { "takes no heatmaps" };
            print(&format!("{id} {says}\n"));
        }
        WebsiteCommand::Block { id, addresses } => {
            let entries = || addresses.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            let blocked = BlockedAddresses::of_website(&entries().map(str::to_owned).collect::<Vec<_>>());
            if let Some(entry) = blocked.unparsable().first() {
                return Err(Misuse(format!(
                    "{entry:?} is neither an address nor a CIDR block such as 10.0.0.0/8"
                ))
                .into());
            }
            let addresses = entries().collect::<Vec<_>>().join(",");
            if !addresses.is_empty() {
                fits("the list", Some(&addresses), BLOCKED_CHARS_MAX)?;
            }
            changed(id, store.set_blocked_addresses(id, &addresses).await?)?;
            let says = if addresses.is_empty() {
                "blocks no addresses".to_owned()
            } else {
                format!("blocks {addresses}")
            };
            print(&format!("{id} {says}\n"));
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

fn changed(id: Uuid, there_was_one: bool) -> anyhow::Result<()> {
    anyhow::ensure!(there_was_one, "there is no website with the id {id}");
    Ok(())
}

/// Refuses a text that is empty, does not fit its column, or would not fit a line.
pub fn fits(flag: &str, text: Option<&str>, chars_max: usize) -> anyhow::Result<()> {
    let chars = text.map_or(0, |text| text.chars().count());
    if chars > chars_max {
        return Err(Misuse(format!("{flag} has {chars} characters, at most {chars_max} fit")).into());
    }
    if let Some(control) = text.and_then(|text| text.chars().find(|c| c.is_control())) {
        return Err(Misuse(format!("{flag} has the control character {control:?}")).into());
    }
    if text == Some("") {
        return Err(Misuse(format!("{flag} is empty")).into());
    }
    Ok(())
}
