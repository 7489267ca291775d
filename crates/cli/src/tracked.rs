//! `dashi link` and `dashi pixel`: links at `/q/SLUG` and pixels at `/p/SLUG`, whose visits are events.

use dashi_config::Loaded;
use dashi_store::{LinkCampaign, Pixel, Store, TrackedLink};
use serde_json::json;
use uuid::Uuid;

use crate::args::{CampaignArgs, LinkCommand, PixelCommand};
use crate::clock::now_ms;
use crate::column::{NAME_CHARS_MAX, fits};
use crate::exit::{Exit, Misuse};
use crate::open;
use crate::output::{print_list, print_result};

/// Widths of columns of Umami's tables, in characters.
const SLUG_CHARS_MAX: usize = 100;
const URL_CHARS_MAX: usize = 500;
const UTM_CHARS_MAX: usize = 255;

/// Characters of a generated slug, without those that look alike.
const SLUG_ALPHABET: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
const SLUG_CHARS: usize = 9;

/// Runs one of `dashi link`'s commands.
pub async fn link(loaded: &Loaded, command: LinkCommand) -> anyhow::Result<Exit> {
    let store = store(loaded).await?;
    match command {
        LinkCommand::Add { url, name, slug, id, campaign, json } => {
            fits("--name", Some(&name), NAME_CHARS_MAX)?;
            let (url, campaign) = (checked_url(url)?, checked_campaign(campaign)?);
            let id = id.unwrap_or_else(Uuid::now_v7);
            let link = TrackedLink { id, name, slug: checked_slug(slug)?, url, campaign };
            store.add_link(&link, now_ms()).await?;
            print_result(json, || link_json(&link), || format!("{}  /q/{}\n", link.id, link.slug));
        }
        LinkCommand::List { json } => print_list(&store.links().await?, json, link_json, |link| {
            format!("{}  {:<30}  /q/{:<20}  {}", link.id, link.name, link.slug, link.url)
        }),
        LinkCommand::Remove { id, json } => {
            removed("link", id, store.remove_link(id, now_ms()).await?, json)?
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

/// Runs one of `dashi pixel`'s commands.
pub async fn pixel(loaded: &Loaded, command: PixelCommand) -> anyhow::Result<Exit> {
    let store = store(loaded).await?;
    match command {
        PixelCommand::Add { name, slug, id, json } => {
            fits("--name", Some(&name), NAME_CHARS_MAX)?;
            let pixel = Pixel { id: id.unwrap_or_else(Uuid::now_v7), name, slug: checked_slug(slug)? };
            store.add_pixel(&pixel, now_ms()).await?;
            print_result(json, || pixel_json(&pixel), || format!("{}  /p/{}\n", pixel.id, pixel.slug));
        }
        PixelCommand::List { json } => print_list(&store.pixels().await?, json, pixel_json, |pixel| {
            format!("{}  {:<30}  /p/{}", pixel.id, pixel.name, pixel.slug)
        }),
        PixelCommand::Remove { id, json } => {
            removed("pixel", id, store.remove_pixel(id, now_ms()).await?, json)?;
        }
    }
    store.close().await;
    Ok(Exit::Done)
}

async fn store(loaded: &Loaded) -> anyhow::Result<Store> {
    let store = open::store(&loaded.settings.store, &loaded.settings, open::Absent::Create).await?;
    store.migrate().await?;
    Ok(store)
}

/// A link as `list --json` prints it: campaign parameters only where the link has them.
fn link_json(link: &TrackedLink) -> serde_json::Value {
    let mut listed = json!({ "id": link.id, "name": link.name, "slug": link.slug, "url": link.url });
    for (name, value) in LinkCampaign::NAMES.into_iter().zip(link.campaign.values()) {
        if let Some(value) = value {
            listed[name] = json!(value);
        }
    }
    listed
}

fn pixel_json(pixel: &Pixel) -> serde_json::Value {
    json!({ "id": pixel.id, "name": pixel.name, "slug": pixel.slug })
}

fn removed(what: &str, id: Uuid, existed: bool, json: bool) -> anyhow::Result<()> {
    anyhow::ensure!(existed, "there is no {what} with the id {id}: `dashi {what} list` has them");
    print_result(json, || json!({ "id": id, "removed": true }), || format!("removed {id}; its rows stay\n"));
    Ok(())
}

fn checked_url(url: String) -> anyhow::Result<String> {
    fits("--url", Some(&url), URL_CHARS_MAX)?;
    let address = dashi_domain::page_url::serialise(&url).unwrap_or_default();
    if !address.starts_with("https://") && !address.starts_with("http://") {
        return Err(Misuse(format!(
            "--url {url:?} leads nowhere: give a whole address such as https://a.example/page"
        ))
        .into());
    }
    Ok(url)
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

/// The given slug, if it can be a part of a path, or a generated one if none was given.
fn checked_slug(given: Option<String>) -> anyhow::Result<String> {
    let Some(slug) = given else { return Ok(generated_slug(Uuid::new_v4())) };
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

fn generated_slug(random: Uuid) -> String {
    let mut rest = random.as_u128();
    let mut next = || {
        let index = (rest % SLUG_ALPHABET.len() as u128) as usize;
        rest /= SLUG_ALPHABET.len() as u128;
        char::from(SLUG_ALPHABET[index])
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
