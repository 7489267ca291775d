//! `dashi website`: the websites whose events are taken.

use dashi_config::Loaded;
use dashi_domain::client_address::BlockedAddresses;
use dashi_domain::identity::IdentityKey;
use dashi_store::NewWebsite;
use serde_json::json;
use uuid::Uuid;

use crate::args::{Switch, WebsiteCommand};
use crate::clock::now_ms;
use crate::column::{NAME_CHARS_MAX, fits};
use crate::exit::{Exit, Misuse};
use crate::open;
use crate::output::{print_list, print_result};

/// Widths of columns of Umami's table.
const DOMAIN_CHARS_MAX: usize = 500;
const BLOCKED_CHARS_MAX: usize = 500;

/// Runs one of the commands against the configured store.
pub async fn run(loaded: &Loaded, command: WebsiteCommand) -> anyhow::Result<Exit> {
    let settings = &loaded.settings;
    let store = open::store(&settings.store, settings, open::Absent::Create).await?;
    store.migrate().await?;
    match command {
        WebsiteCommand::Add { name, domain, id, json } => {
            fits("--name", Some(&name), NAME_CHARS_MAX)?;
            fits("--domain", domain.as_deref(), DOMAIN_CHARS_MAX)?;
            let website = NewWebsite { id: id.unwrap_or_else(Uuid::now_v7), name, domain };
            store.add_website(&website, now_ms()).await?;
            print_result(
                json,
                || json!({ "id": website.id, "name": website.name, "domain": website.domain }),
                || format!("{}\n", website.id),
            );
        }
        WebsiteCommand::List { json } => print_list(
            &store.websites().await?,
            json,
            |website| {
                json!({
                    "id": website.id,
                    "name": website.name,
                    "domain": website.domain,
                    "created_at_ms": website.created_at_ms,
                    "recordings": website.recorder.takes_recordings(),
                    "heatmaps": website.recorder.takes_heatmaps(),
                    "blocked_addresses": website.blocked_addresses,
                })
            },
            |website| {
                let domain = website.domain.as_deref().unwrap_or_default();
                format!("{}  {:<30}  {domain}", website.id, website.name)
            },
        ),
        WebsiteCommand::Remove { id, json } => {
            changed(id, store.remove_website(id, now_ms()).await?)?;
            print_result(
                json,
                || json!({ "id": id, "removed": true }),
                || format!("removed {id}; its rows stay\n"),
            );
        }
        WebsiteCommand::IdentityKey { id, json } => {
            let key = IdentityKey::new(settings.profiles.identity_key.expose()).ok_or_else(|| {
                anyhow::anyhow!(
                    "profiles.identity_key is empty, so no page can read anything and no website has a key; set it \
                     (DASHI_PROFILES_IDENTITY_KEY), such as to the output of `openssl rand -hex 32`"
                )
            })?;
            changed(id, store.websites().await?.iter().any(|website| website.id == id))?;
            let website_key = key.website_key(id);
            print_result(
                json,
                || json!({ "website": id, "identity_key": website_key }),
                || format!("{website_key}\n"),
            );
        }
        WebsiteCommand::Recordings { id, taken, json } => {
            let is_taken = taken == Switch::On;
            changed(id, store.set_recordings(id, is_taken).await?)?;
            let state = if is_taken { "takes recordings" } else { "takes no recordings" };
            print_result(json, || json!({ "id": id, "recordings": is_taken }), || format!("{id} {state}\n"));
        }
        WebsiteCommand::Heatmaps { id, taken, json } => {
            let is_taken = taken == Switch::On;
            changed(id, store.set_heatmaps(id, is_taken).await?)?;
            let state = if is_taken { "takes heatmaps that are posted" } else { "takes no heatmaps" };
            print_result(json, || json!({ "id": id, "heatmaps": is_taken }), || format!("{id} {state}\n"));
        }
        WebsiteCommand::Block { id, addresses, json } => {
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
            let state = if addresses.is_empty() {
                "blocks no addresses".to_owned()
            } else {
                format!("blocks {addresses}")
            };
            print_result(
                json,
                || json!({ "id": id, "blocked_addresses": addresses }),
                || format!("{id} {state}\n"),
            );
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

fn changed(id: Uuid, existed: bool) -> anyhow::Result<()> {
    anyhow::ensure!(existed, "there is no website with the id {id}: `dashi website list` has them");
    Ok(())
}
