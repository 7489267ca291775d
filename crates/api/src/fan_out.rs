//! The way from a change in the store to the streams that show it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_recursion::async_recursion as boxed;
use dashi_domain::profile::Person;
use dashi_store::ProfileChange;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A session of a website.
type Session = (Uuid, Uuid);

/// The streams, by the session and the person that each shows. Cheap to clone. Its lock is never held across an await.
#[derive(Debug, Clone, Default)]
pub struct FanOut(Arc<Mutex<Index>>);

#[derive(Debug, Default)]
struct Index {
    last_id: u64,
    by_session: HashMap<Session, HashMap<u64, Arc<Notify>>>,
    by_person: HashMap<Person, HashMap<u64, Arc<Notify>>>,
    /// How many streams the signed pages of each person have.
    of_pages: HashMap<Person, usize>,
}

/// A stream's entry in the index; removes it on drop.
#[derive(Debug)]
pub struct Subscription {
    fan_out: FanOut,
    id: u64,
    website_id: Uuid,
    session: Option<Session>,
    person: Option<Person>,
    /// The person whose page it is.
    page_of: Option<Person>,
    dirty: Arc<Notify>,
}

impl FanOut {
    /// Enters a stream of this session.
    pub fn subscribe(&self, website_id: Uuid, session_id: Uuid) -> Subscription {
        let session = (website_id, session_id);
        let dirty = Arc::new(Notify::new());
        let mut index = self.lock();
        index.last_id += 1;
        let id = index.last_id;
        index.by_session.entry(session).or_default().insert(id, Arc::clone(&dirty));
        drop(index);
        let fan_out = self.clone();
        Subscription { fan_out, id, website_id, session: Some(session), person: None, page_of: None, dirty }
    }

    /// Enters a stream of a page of this person; `None` if the person's pages have `most` streams already.
    pub fn subscribe_page(&self, person: Person, most: usize) -> Option<Subscription> {
        let dirty = Arc::new(Notify::new());
        let mut index = self.lock();
        let open = index.of_pages.entry(person.clone()).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        index.last_id += 1;
        let id = index.last_id;
        index.by_person.entry(person.clone()).or_default().insert(id, Arc::clone(&dirty));
        drop(index);
        let (fan_out, website_id, page_of) = (self.clone(), person.website_id, Some(person.clone()));
        Some(Subscription { fan_out, id, website_id, session: None, person: Some(person), page_of, dirty })
    }

    /// Marks the streams that may show this change.
    pub fn mark(&self, change: &ProfileChange) {
        let index = self.lock();
        let streams = match change {
            ProfileChange::Person(person) => index.by_person.get(person),
            ProfileChange::Session { website_id, session_id } => {
                index.by_session.get(&(*website_id, *session_id))
            }
            ProfileChange::Resync => {
                // A stream of a session is in one, a stream of a page in the other.
                let of_sessions = index.by_session.values().flat_map(HashMap::values);
                let of_persons = index.by_person.values().flat_map(HashMap::values);
                of_sessions.chain(of_persons).for_each(|dirty| dirty.notify_one());
                return;
            }
        };
        // The flag of each holds one mark, however often it is set.
        streams.into_iter().flat_map(HashMap::values).for_each(|dirty| dirty.notify_one());
    }

    /// Marks streams as the store reports changes, until `stop`. With `every`, all streams are marked that often as
    /// well: for a store that does not report the changes of other processes.
    #[boxed]
    pub async fn run(
        self,
        mut changes: Receiver<ProfileChange>,
        every: Option<Duration>,
        stop: CancellationToken,
    ) {
        let mut ticks = every.map(tokio::time::interval);
        loop {
            let look_again = async {
                match &mut ticks {
                    Some(ticks) => drop(ticks.tick().await),
                    None => std::future::pending().await,
                }
            };
            let change = tokio::select! {
                () = stop.cancelled() => return,
                () = look_again => ProfileChange::Resync,
                change = changes.recv() => match change {
                    Ok(change) => change,
                    // The missed changes are not known, so everything may have changed.
                    Err(RecvError::Lagged(missed)) => {
                        tracing::debug!(missed, "changes were missed: all streams look again");
                        ProfileChange::Resync
                    }
                    Err(RecvError::Closed) => {
                        stop.cancelled().await;
                        return;
                    }
                },
            };
            self.mark(&change);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Waits until something may have changed since the last time; several changes are one.
    pub async fn dirty(&self) {
        self.dirty.notified().await;
    }

    /// Follows this person from now on. Returns whether that is another person than before: then changes may have been
    /// missed, and everything that was read before must be read again.
    pub fn follow(&mut self, person: Option<&str>) -> bool {
        if self.person.as_ref().map(|person| person.distinct_id.as_str()) == person {
            return false;
        }
        let mut index = self.fan_out.lock();
        if let Some(old) = self.person.take() {
            remove(&mut index.by_person, &old, self.id);
        }
        let website_id = self.website_id;
        self.person = person.map(|person| Person { website_id, distinct_id: person.to_owned() });
        if let Some(new) = &self.person {
            index.by_person.entry(new.clone()).or_default().insert(self.id, Arc::clone(&self.dirty));
        }
        true
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut index = self.fan_out.lock();
        if let Some(session) = &self.session {
            remove(&mut index.by_session, session, self.id);
        }
        if let Some(person) = &self.page_of
            && let Some(open) = index.of_pages.get_mut(person)
        {
            *open -= 1;
            if *open == 0 {
                index.of_pages.remove(person);
            }
        }
        if let Some(person) = &self.person {
            remove(&mut index.by_person, person, self.id);
        }
    }
}

fn remove<K: Eq + Hash>(index: &mut HashMap<K, HashMap<u64, Arc<Notify>>>, key: &K, id: u64) {
    if let Some(streams) = index.get_mut(key) {
        streams.remove(&id);
        if streams.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;

    const WEBSITE: Uuid = Uuid::from_u128(1);

    fn person(distinct_id: &str) -> ProfileChange {
        ProfileChange::Person(Person { website_id: WEBSITE, distinct_id: distinct_id.to_owned() })
    }

    fn session(number: u128) -> ProfileChange {
        ProfileChange::Session { website_id: WEBSITE, session_id: Uuid::from_u128(number) }
    }

    /// Whether it was marked since the last time.
    async fn is_dirty(subscription: &Subscription) -> bool {
        tokio::select! {
            biased;
            () = subscription.dirty() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn a_stream_is_marked_by_its_session_and_its_person_and_by_no_other() {
        let fan_out = FanOut::default();
        let mut stream = fan_out.subscribe(WEBSITE, Uuid::from_u128(2));
        assert!(!is_dirty(&stream).await);
        assert!(stream.follow(Some("ada")));
        assert!(!stream.follow(Some("ada")));
        for (change, marks) in
            [(person("ada"), true), (person("bob"), false), (session(2), true), (session(3), false)]
        {
            fan_out.mark(&change);
            fan_out.mark(&change);
            assert_eq!(is_dirty(&stream).await, marks, "{change:?}");
            assert!(!is_dirty(&stream).await, "two changes are one mark");
        }
        assert!(stream.follow(Some("bob")));
        fan_out.mark(&person("ada"));
        assert!(!is_dirty(&stream).await);
        fan_out.mark(&person("bob"));
        assert!(is_dirty(&stream).await);
        fan_out.mark(&ProfileChange::Resync);
        assert!(is_dirty(&stream).await);
        assert!(stream.follow(None));
        drop(stream);
        let index = fan_out.lock();
        assert!(index.by_session.is_empty() && index.by_person.is_empty(), "{index:?}");
    }

    #[tokio::test]
    async fn the_pages_of_a_person_have_so_many_streams_and_are_marked() {
        let fan_out = FanOut::default();
        let of = |name: &str| Person { website_id: WEBSITE, distinct_id: name.to_owned() };
        let is_dirty =
            async |stream: &Subscription| tokio::time::timeout(Duration::ZERO, stream.dirty()).await.is_ok();
        let streams = [0, 1].map(|_| fan_out.subscribe_page(of("ada"), 2).unwrap());
        assert!(fan_out.subscribe_page(of("ada"), 2).is_none());
        let bob = fan_out.subscribe_page(of("bob"), 2).unwrap();
        for (change, marks) in [
            (person("ada"), [true, false]),
            (person("bob"), [false, true]),
            (session(2), [false, false]),
            (ProfileChange::Resync, [true, true]),
        ] {
            fan_out.mark(&change);
            for stream in &streams {
                assert_eq!(is_dirty(stream).await, marks[0], "{change:?}");
            }
            assert_eq!(is_dirty(&bob).await, marks[1], "{change:?}");
        }
        let [first, second] = streams;
        drop(first);
        let another = fan_out.subscribe_page(of("ada"), 2).unwrap();
        assert!(fan_out.subscribe_page(of("ada"), 2).is_none());
        drop((second, another, bob));
        let index = fan_out.lock();
        assert!(index.of_pages.is_empty() && index.by_person.is_empty(), "{index:?}");
    }

    #[tokio::test]
    async fn what_was_missed_marks_all() {
        let fan_out = FanOut::default();
        let streams = [2, 3].map(|number| fan_out.subscribe(WEBSITE, Uuid::from_u128(number)));
        let (sender, receiver) = broadcast::channel(1);
        for number in [7, 8, 9] {
            sender.send(session(number)).unwrap();
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(fan_out.clone().run(receiver, None, stop.clone()));
        for stream in &streams {
            tokio::time::timeout(Duration::from_secs(10), stream.dirty()).await.unwrap();
        }
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_store_that_tells_nothing_is_looked_at_again_and_again() {
        let fan_out = FanOut::default();
        let stream = fan_out.subscribe(WEBSITE, Uuid::from_u128(2));
        let (_sender, receiver) = broadcast::channel(1);
        let stop = CancellationToken::new();
        let every = Some(Duration::from_millis(5));
        let running = tokio::spawn(fan_out.clone().run(receiver, every, stop.clone()));
        for _ in 0..3 {
            tokio::time::timeout(Duration::from_secs(10), stream.dirty()).await.unwrap();
        }
        stop.cancel();
        running.await.unwrap();
    }
}
