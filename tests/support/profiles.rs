//! People as the API shows them, read with a key, and followed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::http::{self, Answer};
use crate::wait::eventually;

/// The key of the API.
pub const KEY: &str = "a-key-of-the-tests-of-people";

/// The variable that makes a process answer to [`KEY`].
pub const KEYS: (&str, &str) = ("DASHI_API_KEYS", KEY);

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A process that answers to [`KEY`], and a website.
#[derive(Debug, Clone)]
pub struct Reader {
    authority: String,
    website: String,
}

/// The traits that a stream showed at one moment.
#[derive(Debug, Clone)]
pub struct Shown {
    /// When it came.
    pub at: Instant,
    /// The event's id.
    pub version: String,
    /// Effective traits by key.
    pub traits: Value,
}

/// An open stream of a session. Ends with this value.
#[derive(Debug)]
pub struct Following {
    shown: Arc<Mutex<Vec<Shown>>>,
    task: JoinHandle<()>,
}

impl Reader {
    /// Reads from `host:port`.
    pub fn new(authority: &str, website: &str) -> Self {
        Self { authority: authority.to_owned(), website: website.to_owned() }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/websites/{}{rest}", self.website)
    }

    /// Asks for a path below the website's, such as `/profiles`.
    pub async fn get(&self, rest: &str) -> Answer {
        let url = format!("http://{}{}", self.authority, self.path(rest));
        let key = format!("Bearer {KEY}");
        let answered = http::request(Method::GET, &url, Bytes::new(), &[("authorization", &key)]).await;
        answered.unwrap_or_else(|error| panic!("GET {rest}: {error:#}"))
    }

    /// The same; what it answers with.
    ///
    /// # Panics
    /// If that is not 200.
    pub async fn read(&self, rest: &str) -> Value {
        let answer = self.get(rest).await;
        assert_eq!(answer.status, 200, "{rest}: {}", answer.text());
        answer.json()
    }

    /// A person's version, and the traits that are there by key.
    pub async fn person(&self, person: &str) -> (String, Value) {
        let person = self.read(&format!("/profiles/{person}")).await;
        let traits = person["traits"].as_object().expect("traits").iter();
        let traits = traits.map(|(key, now)| (key.clone(), now["value"].clone())).collect();
        (person["version"].as_str().expect("a version").to_owned(), Value::Object(traits))
    }

    /// A session's version and effective traits.
    pub async fn session(&self, session: &str) -> (String, Value) {
        let session = self.read(&format!("/sessions/{session}")).await;
        (session["version"].as_str().expect("a version").to_owned(), session["traits"].clone())
    }

    /// A person's events, read in pages of this size.
    pub async fn journey(&self, person: &str, limit: usize) -> Vec<Value> {
        let mut events = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.read(&format!("/profiles/{person}/journey?limit={limit}&after={after}")).await;
            events.extend(page["events"].as_array().expect("events").clone());
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => return events,
            }
        }
    }

    /// Follows a session from now on; returns once it is shown what is true now.
    pub async fn follow(&self, session: &str) -> Following {
        let stream = TcpStream::connect(&self.authority).await.expect("it listens");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(async { connection.await.ok() });
        let request = Request::get(self.path(&format!("/sessions/{session}/stream")))
            .header("host", &self.authority)
            .header("authorization", format!("Bearer {KEY}"))
            .body(Empty::<Bytes>::new())
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), 200, "the stream of {session}");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        let task = tokio::spawn(async move {
            let _open = sender;
            let (mut body, mut text) = (response.into_body(), String::new());
            while let Some(Ok(frame)) = body.frame().await {
                let at = Instant::now();
                text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap_or(&Bytes::new())));
                while let Some((event, rest)) = text.split_once("\n\n") {
                    let event = read(event, at);
                    seen.lock().unwrap_or_else(PoisonError::into_inner).extend(event);
                    text = rest.to_owned();
                }
            }
        });
        let following = Following { shown, task };
        following.until("it shows what is true", |_| true).await;
        following
    }
}

impl Following {
    /// Everything that was shown so far.
    pub fn shown(&self) -> Vec<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last event.
    pub fn last(&self) -> Option<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    /// Waits until these traits were shown, now or before; returns when that was.
    ///
    /// # Panics
    /// If that takes a minute.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Shown {
        let found = || self.shown().into_iter().find(|shown| wanted(&shown.traits));
        eventually(
            SOON,
            what,
            async || {
                if found().is_some() { Ok(()) } else { Err(format!("{:?}", self.last())) }
            },
        )
        .await;
        found().expect("it was there a moment ago")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An event of a stream that shows traits.
fn read(event: &str, at: Instant) -> Option<Shown> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    (field("event") == Some("traits")).then(|| {
        let data: Value = serde_json::from_str(field("data").expect("data")).expect("JSON");
        let version = field("id").expect("an id").to_owned();
        assert_eq!(data["version"], version.as_str());
        Shown { at, version, traits: data["traits"].clone() }
    })
}

/// People, devices of each and changes by each device, from `DASHI_TEST_PROFILES` such as `1000x5x20`, else these.
pub fn load_size(otherwise: [usize; 3]) -> [usize; 3] {
    let Some(text) = crate::settings::environment("DASHI_TEST_PROFILES") else { return otherwise };
    let numbers: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    let numbers = numbers.ok().and_then(|numbers| <[usize; 3]>::try_from(numbers).ok());
    numbers.unwrap_or_else(|| panic!("DASHI_TEST_PROFILES is {text}, and not such as 1000x5x20"))
}
