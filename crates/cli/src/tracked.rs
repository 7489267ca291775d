//! `dashi link` and `dashi pixel`: what is visited at `/q/SLUG` and `/p/SLUG`.

use dashi_store::{LinkCampaign, Pixel, Store, TrackedLink};
use serde_json::json;
use uuid::Uuid;

use crate::args::{CampaignArgs, LinkCommand, PixelCommand};
use crate::serve::now_ms;
use crate::website::{NAME_CHARS_MAX, fits};
use crate::{Exit, Misuse, open, print};
use dashi_config::Loaded;

/// The columns' widths in Umami's tables.
const SLUG_CHARS_MAX: usize = 100;
const URL_CHARS_MAX: usize = 500;
const UTM_CHARS_MAX: usize = 255;

/// Characters of a slug that is made up, without those that look alike.
const SLUG_ALPHABET: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
const SLUG_CHARS: usize = 9;

async fn store(loaded: &Loaded) -> anyhow::Result<Store> {
    let store = open::store(&loaded.settings.store, &loaded.settings, open::Absent::Create).await?;
    store.migrate().await?;
    Ok(store)
}

/// Runs one of `dashi link`'s commands.
pub async fn link(loaded: &Loaded, command: LinkCommand) -> anyhow::Result<Exit> {
    let store = store(loaded).await?;
    match command {
        LinkCommand::Add { url, name, slug, id, campaign } => {
            fits("--name", Some(&name), NAME_CHARS_MAX)?;
            fits("--url", Some(&url), URL_CHARS_MAX)?;
            let address = dashi_domain::page_url::serialise(&url).unwrap_or_default();
            if !address.starts_with("https://") && !address.starts_with("http://") {
                return Err(Misuse(format!(
                    "--url {url:?} leads nowhere: give a whole address such as https://a.example/page"
                ))
                .into());
            }
            let campaign = checked_campaign(campaign)?;
            let id = id.unwrap_or_else(Uuid::now_v7);
            let link = TrackedLink { id, name, slug: checked_slug(slug)?, url, campaign };
            store.add_link(&link, now_ms()).await?;
            print(&format!("{}  /q/{}\n", link.id, link.slug));
        }
        LinkCommand::List { json } => {
            let links = store.links().await?;
            if json {
                let links: Vec<_> = links
                    .iter()
                    .map(|link| {
                        let mut listed =
                            json!({ "id": link.id, "name": link.name, "slug": link.slug, "url": link.url });
                        for (name, value) in LinkCampaign::NAMES.into_iter().zip(link.campaign.values()) {
                            if let Some(value) = value {
                                listed[name] = json!(value);
                            }
                        }
                        listed
                    })
                    .collect();
                print(&format!("{}\n", json!(links)));
            } else {
                for link in links {
                    print(&format!("{}  {:<30}  /q/{:<20}  {}\n", link.id, link.name, link.slug, link.url));
                }
            }
        }
        LinkCommand::Remove { id } => {
            if !store.remove_link(id, now_ms()).await? {
                anyhow::bail!("there is no link with the id {id}");
            }
            print(&format!("removed {id}; its rows stay\n"));
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

/// Runs one of `dashi pixel`'s commands.
pub async fn pixel(loaded: &Loaded, command: PixelCommand) -> anyhow::Result<Exit> {
    let store = store(loaded).await?;
    match command {
        PixelCommand::Add { name, slug, id } => {
            fits("--name", Some(&name), NAME_CHARS_MAX)?;
            let pixel = Pixel { id: id.unwrap_or_else(Uuid::now_v7), name, slug: checked_slug(slug)? };
            store.add_pixel(&pixel, now_ms()).await?;
            print(&format!("{}  /p/{}\n", pixel.id, pixel.slug));
        }
        PixelCommand::List { json } => {
            let pixels = store.pixels().await?;
            if json {
                let pixels: Vec<_> = pixels
                    .iter()
                    .map(|pixel| json!({ "id": pixel.id, "name": pixel.name, "slug": pixel.slug }))
                    .collect();
                print(&format!("{}\n", json!(pixels)));
            } else {
                for pixel in pixels {
                    print(&format!("{}  {:<30}  /p/{}\n", pixel.id, pixel.name, pixel.slug));
                }
            }
        }
        PixelCommand::Remove { id } => {
            if !store.remove_pixel(id, now_ms()).await? {
                anyhow::bail!("there is no pixel with the id {id}");
            }
            print(&format!("removed {id}; its rows stay\n"));
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

fn checked_campaign(args: CampaignArgs) -> anyhow::Result<LinkCampaign> {
    let CampaignArgs { utm_source, utm_medium, utm_campaign, utm_term, utm_content } = args;
    let campaign = LinkCampaign { utm_source, utm_medium, utm_campaign, utm_term, utm_content };
    for (name, value) in LinkCampaign::NAMES.into_iter().zip(campaign.values()) {
        if value.is_some() {
            fits(&format!("--{}", name.replace('_', "-")), value, UTM_CHARS_MAX)?;
        }
    }
    Ok(campaign)
}

/// The slug that was given, if it can be a part of a path, or one made up.
fn checked_slug(given: Option<String>) -> anyhow::Result<String> {
    let Some(slug) = given else { return Ok(made_up(Uuid::new_v4())) };
    fits("--slug", Some(&slug), SLUG_CHARS_MAX)?;
    if !slug.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        || slug.starts_with('.')
    {
        return Err(
            Misuse(format!("--slug {slug:?}: use letters, digits, and the characters - _ ~ .")).into()
        );
    }
    Ok(slug)
}

fn made_up(random: Uuid) -> String {
    let mut rest = random.as_u128();
    let mut next = || {
        let place = (rest % SLUG_ALPHABET.len() as u128) as usize;
        rest /= SLUG_ALPHABET.len() as u128;
        char::from(SLUG_ALPHABET[place])
    };
    (0..SLUG_CHARS).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_a_part_of_a_path() {
        for bad in ["", "a/b", "a b", "é", ".", "a?b", &"a".repeat(101)] {
            assert!(checked_slug(Some(bad.to_owned())).is_err(), "{bad}");
        }
        assert_eq!(checked_slug(Some("Spring-Sale_2.0".to_owned())).expect("good"), "Spring-Sale_2.0");
    }

    #[test]
    fn a_made_up_slug_has_nine_characters() {
        let slug = checked_slug(None).expect("made");
        assert_eq!(slug.len(), SLUG_CHARS);
        assert_ne!(slug, checked_slug(None).expect("made"));
    }
}
