//! Websites.

use dashi_store::{NewWebsite, StoreError};
use uuid::Uuid;

use super::fixture::{NOON_MS, StoreFixture, id};

pub(super) async fn websites_come_and_go(fixture: StoreFixture) {
    let store = fixture.migrated().await;
    let website = |n, name: &str, domain: Option<&str>| NewWebsite {
        id: id(n),
        name: name.to_owned(),
        domain: domain.map(str::to_owned),
    };
    let listed = async || -> Vec<(Uuid, String, Option<String>, Option<i64>)> {
        let websites = store.websites().await.unwrap();
        websites.into_iter().map(|site| (site.id, site.name, site.domain, site.created_at_ms)).collect()
    };
    assert_eq!(listed().await, []);
    store.add_website(&website(2, "Zwei", None), NOON_MS + 2).await.unwrap();
    store.add_website(&website(1, "Eins é", Some("a.example")), NOON_MS + 1).await.unwrap();
    let one = (id(1), "Eins é".to_owned(), Some("a.example".to_owned()), Some(NOON_MS + 1));
    let two = (id(2), "Zwei".to_owned(), None, Some(NOON_MS + 2));
    assert_eq!(listed().await, [one.clone(), two.clone()]);
    match store.add_website(&website(1, "Other", None), NOON_MS).await {
        Err(StoreError::WebsiteExists { id: exists }) => assert_eq!(exists, id(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(listed().await, [one.clone(), two.clone()]);
    assert!(store.remove_website(id(1), NOON_MS + 9).await.unwrap());
    assert_eq!(listed().await, std::slice::from_ref(&two));
    assert!(!store.remove_website(id(1), NOON_MS + 9).await.unwrap());
    assert!(!store.remove_website(id(3), NOON_MS + 9).await.unwrap());
    store.add_website(&website(1, "Back", Some("b.example")), NOON_MS + 99).await.unwrap();
    let back = (id(1), "Back".to_owned(), Some("b.example".to_owned()), Some(NOON_MS + 1));
    assert_eq!(listed().await, [back, two]);
    assert!(store.is_empty().await.unwrap(), "a website is no row of the projection");
}
