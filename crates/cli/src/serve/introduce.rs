//! The text with which a start introduces itself.

use std::net::SocketAddr;

use dashi_api::Keys;
use dashi_config::Settings;
use dashi_store::{NewWebsite, Store};
use uuid::Uuid;

use crate::clock::now_ms;
use crate::output::print;

/// The agent of a browser.
pub const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

/// The addresses that a start shows.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The server's, as a browser of this machine reaches it, such as `http://127.0.0.1:8484`.
    server: String,
    /// The beginning of the collector's paths; empty for none.
    base_path: String,
    console: ConsoleIs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConsoleIs {
    Open,
    /// Readable with a key.
    Locked,
    /// Not readable at all, as a key is needed and none is set.
    Shut,
    Off,
}

impl Addresses {
    pub fn of(settings: &Settings, address: SocketAddr) -> Self {
        let ip = address.ip().to_canonical();
        let host = if ip.is_unspecified() { "localhost".to_owned() } else { ip.to_string() };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let has_keys = Keys::parse(settings.api.keys.expose()).is_some();
        Self {
            server: format!("http://{host}:{}", address.port()),
            base_path: settings.ingest.base_path.clone(),
            console: match (settings.console.enabled, ip.is_loopback(), has_keys) {
                (false, _, _) => ConsoleIs::Off,
                (true, _, true) => ConsoleIs::Locked,
                (true, true, false) => ConsoleIs::Open,
                (true, false, false) => ConsoleIs::Shut,
            },
        }
    }

    /// Where to look.
    fn console(&self) -> String {
        let at = format!("{}/console", self.server);
        match self.console {
            ConsoleIs::Open => format!("Look at it in the console:\n\n  {at}\n\n"),
            ConsoleIs::Locked => {
                format!("Look at it in the console, with a key of api.keys:\n\n  {at}\n\n")
            }
            ConsoleIs::Shut => format!(
                "Others reach this address, so the console needs a key: make one with `dashi keys new`, set DASHI_API_KEYS to its hash, then\n\n  \
                 {at}\n\n"
            ),
            ConsoleIs::Off => String::new(),
        }
    }
}

/// Makes a website in a store without one, so that a first event can be taken, and prints where to look and what to paste.
pub async fn introduce(store: &Store, addresses: &Addresses) -> anyhow::Result<()> {
    let first = NewWebsite { id: Uuid::now_v7(), name: "default".to_owned(), domain: None };
    store.add_first_website(&first, now_ms()).await?;
    let websites = store.websites().await?;
    let console = addresses.console();
    let Some(website) = websites.first() else {
        print(&format!(
            "{console}There is no website yet, so no event is taken: add one in Umami's dashboard, or with `dashi website add`\n"
        ));
        return Ok(());
    };
    print(&text(addresses, &website.name, website.id));
    Ok(())
}

fn text(addresses: &Addresses, website: &str, id: Uuid) -> String {
    let (console, at) = (addresses.console(), format!("{}{}", addresses.server, addresses.base_path));
    format!(
        "Dashi collects for the website \"{website}\" ({id}) on {}\n\
         {console}Send it events from a page, or one from here (curl's own agent is a bot's, so it names a browser's):\n\n  \
         <script defer src=\"{at}/script.js\" data-website-id=\"{id}\"></script>\n\n  \
         curl {at}/api/send -H 'Content-Type: application/json' -A '{AGENT}' \
         -d '{{\"type\":\"event\",\"payload\":{{\"website\":\"{id}\",\"hostname\":\"example.com\",\"url\":\"/hello\",\"title\":\"Hello\"}}}}'\n\n",
        addresses.server,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(address: &str, edit: impl FnOnce(&mut Settings)) -> String {
        let mut settings = dashi_config::load(dashi_config::Layers::default()).unwrap().settings;
        edit(&mut settings);
        text(&Addresses::of(&settings, address.parse().unwrap()), "default", Uuid::from_u128(1))
    }

    #[test]
    fn the_start_shows_where_to_look_and_one_line_to_paste() {
        let shown = shown("127.0.0.1:8484", |_| ());
        assert!(shown.contains("\n  http://127.0.0.1:8484/console\n"), "{shown}");
        let tag = "\n  <script defer src=\"http://127.0.0.1:8484/script.js\" \
                   data-website-id=\"00000000-0000-0000-0000-000000000001\"></script>\n";
        assert!(shown.contains(tag), "{shown}");
    }

    #[test]
    fn a_console_that_cannot_be_read_says_so() {
        for address in ["0.0.0.0:80", "[::]:80"] {
            let shown = shown(address, |_| ());
            assert!(
                shown.contains("DASHI_API_KEYS") && shown.contains("http://localhost:80/console"),
                "{shown}"
            );
        }
        let on_loopback = shown("[::1]:80", |_| ());
        assert!(on_loopback.contains("console:\n\n  http://[::1]:80/console\n"), "{on_loopback}");
        assert!(!shown("127.0.0.1:80", |settings| settings.console.enabled = false).contains("/console"));
        let under_a_path = shown("127.0.0.1:80", |settings| settings.ingest.base_path = "/umami".to_owned());
        assert!(under_a_path.contains("curl http://127.0.0.1:80/umami/api/send"), "{under_a_path}");
    }
}
