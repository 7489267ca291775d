//! The websites that a request names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::source_registry::{Found, SourceRegistry, Website};

/// The websites that are known while a request is decided: those on the list, and those that were looked up for it.
pub(crate) struct Websites<'s> {
    sources: &'s SourceRegistry,
    looked_up: HashMap<Uuid, Found<Arc<Website>>>,
}

impl<'s> Websites<'s> {
    pub(crate) fn new(sources: &'s SourceRegistry) -> Self {
        Self { sources, looked_up: HashMap::new() }
    }

    /// `None` if it has to be looked up.
    pub(crate) fn get(&self, id: Uuid) -> Option<Found<Arc<Website>>> {
        self.looked_up.get(&id).cloned().or_else(|| self.sources.known_website(id))
    }

    /// Looks websites up for a request that was whole at `asked`.
    pub(crate) async fn look_up(&mut self, websites: Vec<Uuid>, asked: Instant) {
        for website in websites {
            let found = self.sources.website(website, asked).await;
            self.looked_up.insert(website, found);
        }
    }
}
