//! The store's tables, and the rules that only the store can name: made and decided at the start, or as soon as the
//! database answers.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashi_config::Settings;
use dashi_domain::fold::FoldRules;
use dashi_domain::umami::Release;
use dashi_ingest::SessionIds;
use dashi_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::open;
use crate::open::{Formula, InForce};
use crate::serve::helpers::Helpers;
use crate::serve::introduce::{Addresses, introduce};
use crate::serve::{Base, Roles};

/// How the making of the tables stands; the roles wait for it.
pub struct Tables {
    /// Cancelled when the tables are made and the rules decided.
    pub made: CancellationToken,
    /// Cancelled when the first attempt to make them has ended: if the list of websites can be read at all, it can be
    /// read from then on.
    pub tried: CancellationToken,
    /// The version of Umami by whose rules events are folded.
    pub release: Arc<OnceLock<Release>>,
}

impl Tables {
    /// Makes the tables: at once in an embedded store, else on a helper that waits for the database, while the process
    /// collects already. Decides `ids` as soon as their formula is known.
    pub async fn prepare(
        base: &Base<'_>,
        ids: Option<SessionIds>,
        helpers: &mut Helpers,
    ) -> anyhow::Result<Self> {
        let (made, tried) = (CancellationToken::new(), CancellationToken::new());
        let projects = base.roles.projects();
        let rules = projects.then(|| open::fold_rules(base.settings, Release::OURS)).transpose()?;
        let set = SetRules::read(base.settings)?;
        let deciding = Deciding { set, ids, release: Arc::new(OnceLock::new()), rules };
        deciding.by_settings();
        let tables =
            Self { made: made.clone(), tried: tried.clone(), release: Arc::clone(&deciding.release) };
        let (store, addresses) = (base.store.clone(), Addresses::of(base.settings, base.address));
        let introduces = base.roles == Roles::Both;
        if let Store::Sqlite(_) = &store {
            store.migrate().await?;
            deciding.note_rules(&store).await;
            if introduces {
                introduce(&store, &addresses).await?;
            }
            made.cancel();
            tried.cancel();
            return Ok(tables);
        }
        let making = async move {
            deciding.make(&store, &tried).await;
            deciding.note_rules(&store).await;
            if introduces && let Err(error) = introduce(&store, &addresses).await {
                tracing::warn!(error = format!("{error:#}"), "the first website could not be looked at");
            }
            made.cancel();
            tried.cancel();
        };
        helpers.spawn("the making of tables", |stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = making => {}
            }
        });
        Ok(tables)
    }
}

/// The rules that the settings name: Umami's version, and the effect of a distinct id on a session. `None` where the
/// database decides.
struct SetRules {
    in_force: Option<InForce>,
    formula: Option<Formula>,
}

impl SetRules {
    fn read(settings: &Settings) -> anyhow::Result<Self> {
        let in_force = open::release_by_settings(settings, &settings.store)?;
        let of_release = || in_force.as_ref().map(open::formula_by_release);
        let formula = open::formula_by_settings(settings).or_else(of_release);
        Ok(Self { in_force, formula })
    }
}

/// The rules on their way to being decided.
struct Deciding {
    set: SetRules,
    ids: Option<SessionIds>,
    release: Arc<OnceLock<Release>>,
    /// The rules of the fold, of a process that projects.
    rules: Option<FoldRules>,
}

impl Deciding {
    /// Notes the rules by which the first rows of new tables are about to be made.
    async fn note_rules(&self, store: &Store) {
        let (Some(rules), Some(release)) = (&self.rules, self.release.get()) else { return };
        if let Err(error) = store.note_rules(&rules.clone().by(*release).text()).await {
            tracing::debug!(error = %error, "the rules of the tables could not be noted");
        }
    }

    /// Decides the rules that the settings name.
    fn by_settings(&self) {
        if let Some(formula) = &self.set.formula {
            self.decide_formula(formula);
        }
        if let Some(in_force) = &self.set.in_force {
            self.decide_release(in_force);
        }
    }

    /// Makes the tables, however long the database is away, and decides the rules by the database. Logs the reason why
    /// it waits whenever that changes, and cancels `tried` after the first failure.
    async fn make(&self, store: &Store, tried: &CancellationToken) {
        let mut logged = String::new();
        loop {
            let made = async {
                store.migrate().await?;
                self.by_store(store).await
            };
            let Err(error) = made.await else { return };
            let error = format!("{:#}", anyhow::Error::from(error));
            if error != logged {
                tracing::warn!(error, "waiting for the store");
                logged = error;
            }
            tried.cancel();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Asks the database for its version of Umami. That decides the rules that the settings leave open; of the others,
    /// a difference is logged.
    async fn by_store(&self, store: &Store) -> Result<(), StoreError> {
        let shown = open::release_by_store(store).await?;
        match &self.set.in_force {
            None => self.decide_release(&shown),
            Some(set) if set.release != shown.release => tracing::warn!(
                set = set.release.name(),
                umami = shown.release.name(),
                because = %shown.because,
                "events are taken and folded by the rules of another version of Umami than this database's"
            ),
            Some(_) => {}
        }
        if self.ids.is_some() {
            let shown = open::formula_by_release(&shown);
            match &self.set.formula {
                None => self.decide_formula(&shown),
                Some(set) if set.identified != shown.identified => tracing::warn!(
                    set = set.name(),
                    umami = shown.name(),
                    because = %shown.because,
                    "session ids of identified visitors are not those that this database's Umami computes"
                ),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Decides by which version's rules requests are checked and events folded, and logs it.
    fn decide_release(&self, in_force: &InForce) {
        tracing::info!(
            umami_release = in_force.release.name(),
            because = %in_force.because,
            "events are taken and folded by the rules of this version of Umami"
        );
        self.release.get_or_init(|| in_force.release);
        if let Some(ids) = &self.ids {
            ids.decide_release(in_force.release);
        }
    }

    /// Decides how session ids are computed, and logs it. A process without a collector computes none.
    fn decide_formula(&self, formula: &Formula) {
        let Some(ids) = &self.ids else { return };
        tracing::info!(
            identified_sessions = formula.name(),
            because = %formula.because,
            "the formula of identified visitors' session ids"
        );
        ids.decide(formula.identified);
    }
}
