//! Websites, links and pixels.

use async_recursion::async_recursion as boxed;
use uuid::Uuid;

use super::Store;
use crate::{NewWebsite, Pixel, StoreError, TrackedLink, Website};

impl Store {
    /// The websites that are not removed.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn websites(&self) -> Result<Vec<Website>, StoreError> {
        either!(self, store => store.websites().await)
    }

    /// Adds a website; brings a removed one with the same id back under the new name and domain.
    ///
    /// # Errors
    /// [`StoreError::WebsiteExists`]: there is one with this id. Any other: the store does not answer.
    #[boxed]
    pub async fn add_website(&self, website: &NewWebsite, now_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.add_website(website, now_ms).await)
    }

    /// Adds a website where there was never any, so that the first event has somewhere to go. Two processes that start
    /// at once add one between them. Tables that Umami made are left as they are: a website has an owner there. Returns
    /// whether it was added.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn add_first_website(&self, website: &NewWebsite, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.add_first_website(website, now_ms).await)
    }

    /// Marks a website removed: it takes no more events from clients without a token. Its rows stay. Returns whether
    /// there was such a website.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn remove_website(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.remove_website(id, now_ms).await)
    }

    /// Turns recordings on or off for a website. Returns whether the website exists.
    ///
    /// # Errors
    /// [`StoreError::NotInThisVersion`]: its Umami knows no recordings. Any other: the store does not answer.
    #[boxed]
    pub async fn set_recordings(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        either!(self, store => store.set_recordings(id, taken).await)
    }

    /// Turns heatmaps that the recorder posts on or off for a website; with them, none are read out of recordings.
    /// Returns whether the website exists.
    ///
    /// # Errors
    /// [`StoreError::NotInThisVersion`]: its Umami knows no such posts. Any other: the store does not answer.
    #[boxed]
    pub async fn set_heatmaps(&self, id: Uuid, taken: bool) -> Result<bool, StoreError> {
        either!(self, store => store.set_heatmaps(id, taken).await)
    }

    /// Sets the addresses and networks whose visits a website does not want: a text, separated by commas, of at most
    /// 500 characters; empty for none. Returns whether the website exists.
    ///
    /// # Errors
    /// [`StoreError::NotInThisVersion`]: its Umami blocks addresses for all websites only. Any other: the store does not
    /// answer.
    #[boxed]
    pub async fn set_blocked_addresses(&self, id: Uuid, addresses: &str) -> Result<bool, StoreError> {
        either!(self, store => store.set_blocked_addresses(id, addresses).await)
    }

    /// The links that are not removed. None in a database of an Umami that had no links yet.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn links(&self) -> Result<Vec<TrackedLink>, StoreError> {
        either!(self, store => store.links().await)
    }

    /// Adds a link.
    ///
    /// # Errors
    /// [`StoreError::SlugTaken`]: choose another slug. [`StoreError::NotInThisVersion`]: its Umami keeps no campaign
    /// parameters of links. Any other: the store does not answer.
    #[boxed]
    pub async fn add_link(&self, link: &TrackedLink, now_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.add_link(link, now_ms).await)
    }

    /// Marks a link removed: it leads nowhere any more. Its rows stay, and its slug stays taken. Returns whether there
    /// was such a link.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn remove_link(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.remove_link(id, now_ms).await)
    }

    /// The pixels that are not removed. None in a database of an Umami that had no pixels yet.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn pixels(&self) -> Result<Vec<Pixel>, StoreError> {
        either!(self, store => store.pixels().await)
    }

    /// Adds a pixel.
    ///
    /// # Errors
    /// [`StoreError::SlugTaken`]: choose another slug. Any other: the store does not answer.
    #[boxed]
    pub async fn add_pixel(&self, pixel: &Pixel, now_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.add_pixel(pixel, now_ms).await)
    }

    /// Marks a pixel removed: it is not found any more. Its rows stay, and its slug stays taken. Returns whether there
    /// was such a pixel.
    ///
    /// # Errors
    /// The store does not answer.
    #[boxed]
    pub async fn remove_pixel(&self, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        either!(self, store => store.remove_pixel(id, now_ms).await)
    }
}
