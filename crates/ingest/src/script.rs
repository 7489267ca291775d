//! The tracker script, as `/script.js` and under the names that the operator gives it, and beside each of them the files that
//! it loads where they are needed: one measures web vitals, one follows the traits of the page's person. Source of the headers: docs/umami-contract.md §20.1.

use std::io::Write as _;
use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use dashi_domain::json;
use dashi_http::conditional::if_none_match;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::routes::SEND_PATH;

/// Built from `tracker/src`; a test of the tracker proves it current.
const SCRIPT: &str = include_str!("../../../tracker/dist/script.js");

/// The second file, which the first one loads on pages that ask for web vitals. Built from `tracker/src` as well.
const VITALS: &str = include_str!("../../../tracker/dist/script-vitals.js");

/// The file which the first one loads on pages that follow the traits of their person. Built from `tracker/src` as well.
const PROFILE: &str = include_str!("../../../tracker/dist/script-profile.js");

/// Settings of the tracker script.
#[derive(Debug, Clone)]
pub struct ScriptSettings {
    /// The path to which events are posted, in place of `/api/send`.
    pub send_path: Option<String>,
    /// The host to which events are posted if the page's tag names none; without it, the script's own host.
    pub collect_host: Option<String>,
    /// Another address of the script, to which requests are redirected.
    pub url: Option<String>,
    /// When the script was made, for `Last-Modified`.
    pub modified: SystemTime,
}

/// The paths of the files beside the script of this path: `/a/b.js` has `/a/b-vitals.js` and `/a/b-profile.js`. The script
/// itself, in the browser, computes them in the same way.
pub fn files_beside(script: &str) -> [String; 2] {
    let name = script.strip_suffix(".js").unwrap_or(script);
    [format!("{name}-vitals.js"), format!("{name}-profile.js")]
}

/// All files, ready to be served.
#[derive(Debug)]
pub struct Script {
    elsewhere: Option<HeaderValue>,
    tracker: File,
    vitals: File,
    profile: File,
    modified: SystemTime,
}

/// One of the files.
#[derive(Debug, Clone, Copy)]
pub enum ScriptFile {
    Tracker,
    Vitals,
    Profile,
}

/// A file in the forms in which it is served.
#[derive(Debug)]
struct File {
    plain: Bytes,
    compressed: Bytes,
    etag: HeaderValue,
}

impl Script {
    /// Prepares the script. `url`, if there is one, must fit a header, or the script itself is served.
    pub fn new(settings: &ScriptSettings) -> Self {
        let mut text = String::new();
        if let Some(host) = &settings.collect_host {
            // In syntax that every browser of the script knows, and without effect where there is no tag.
            text.push_str("(s=>{if(s)s.dataset.hostUrl=s.dataset.hostUrl||");
            json::write_string(host, &mut text);
            text.push_str("})(document.currentScript);\n");
        }
        text.push_str(&SCRIPT.replace(SEND_PATH, settings.send_path.as_deref().unwrap_or(SEND_PATH)));
        Self {
            elsewhere: settings.url.as_deref().and_then(|url| HeaderValue::try_from(url).ok()),
            tracker: File::new(text),
            vitals: File::new(VITALS.to_owned()),
            profile: File::new(PROFILE.to_owned()),
            modified: settings.modified,
        }
    }

    /// The answer to a GET or HEAD for `file` with these headers.
    pub fn respond(&self, file: ScriptFile, request: &HeaderMap) -> Response {
        let (file, elsewhere) = match file {
            ScriptFile::Tracker => (&self.tracker, self.elsewhere.as_ref()),
            ScriptFile::Vitals => (&self.vitals, None),
            ScriptFile::Profile => (&self.profile, None),
        };
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        if let Some(url) = elsewhere {
            headers.insert(header::LOCATION, url.clone());
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            return response;
        }
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=86400, must-revalidate"),
        );
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        headers.insert(header::ETAG, file.etag.clone());
        if let Ok(modified) = HeaderValue::try_from(httpdate::fmt_http_date(self.modified)) {
            headers.insert(header::LAST_MODIFIED, modified);
        }
        if self.is_known(file, request) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/javascript; charset=UTF-8"));
        *response.body_mut() = if takes_gzip(request) {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            Body::from(file.compressed.clone())
        } else {
            Body::from(file.plain.clone())
        };
        response
    }

    /// Whether the client has this version. A tag that it names decides alone (RFC 9110 §13.1.3).
    fn is_known(&self, file: &File, request: &HeaderMap) -> bool {
        let text = |name| request.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let tag = file.etag.to_str().unwrap_or_default();
        if let Some(is_named) = if_none_match(request, tag) {
            return is_named;
        }
        let since = text(header::IF_MODIFIED_SINCE).and_then(|date| httpdate::parse_http_date(date).ok());
        since.is_some_and(|since| httpdate::HttpDate::from(self.modified) <= httpdate::HttpDate::from(since))
    }
}

impl File {
    fn new(text: String) -> Self {
        let hash: String = Sha256::digest(&text).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing into memory cannot fail, and hexadecimal digits fit a header.
        #[expect(clippy::expect_used, reason = "proved by the line above")]
        let (compressed, etag) = {
            encoder.write_all(text.as_bytes()).expect("a Vec takes all");
            let compressed = encoder.finish().expect("a Vec takes all");
            (compressed, HeaderValue::try_from(format!("W/\"{hash}\"")).expect("visible ASCII"))
        };
        Self { plain: text.into(), compressed: compressed.into(), etag }
    }
}

fn takes_gzip(request: &HeaderMap) -> bool {
    request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
            let quality = quality.trim().trim_start_matches("q=").trim();
            name.trim().eq_ignore_ascii_case("gzip") && !quality.parse::<f32>().is_ok_and(|q| q <= 0.0)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings() -> ScriptSettings {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_777_623_630_500);
        ScriptSettings { send_path: None, collect_host: None, url: None, modified }
    }

    fn request(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_script_names_its_endpoint_once() {
        assert_eq!(SCRIPT.matches(SEND_PATH).count(), 1);
    }

    #[test]
    fn the_endpoint_and_the_host_are_the_operators() {
        let script = Script::new(&ScriptSettings {
            send_path: Some("/take".to_owned()),
            collect_host: Some("https://c.example/\"x".to_owned()),
            ..settings()
        });
        let text = String::from_utf8(script.tracker.plain.to_vec()).expect("UTF-8");
        let host = "(s=>{if(s)s.dataset.hostUrl=s.dataset.hostUrl||\"https://c.example/\\\"x\"})(document.currentScript);\n";
        assert!(text.starts_with(host), "{text}");
        assert!(text.contains("\"/take\"") && !text.contains(SEND_PATH));
        assert_ne!(script.tracker.etag, Script::new(&settings()).tracker.etag);
    }

    #[test]
    fn the_further_files_lie_beside_the_script_whatever_its_name() {
        for (script, vitals, profile) in [
            ("/script.js", "/script-vitals.js", "/script-profile.js"),
            ("/s/t", "/s/t-vitals.js", "/s/t-profile.js"),
            ("/a.b/stats.js", "/a.b/stats-vitals.js", "/a.b/stats-profile.js"),
        ] {
            assert_eq!(files_beside(script), [vitals, profile]);
        }
        let moved =
            Script::new(&ScriptSettings { url: Some("https://cdn.example/s.js".to_owned()), ..settings() });
        assert_eq!(moved.respond(ScriptFile::Tracker, &HeaderMap::new()).status(), 307);
        for (name, file) in [(ScriptFile::Vitals, &moved.vitals), (ScriptFile::Profile, &moved.profile)] {
            let answer = moved.respond(name, &HeaderMap::new());
            assert_eq!(
                (answer.status(), answer.headers().get(header::ETAG)),
                (StatusCode::OK, Some(&file.etag)),
                "{name:?}"
            );
            assert_ne!(file.etag, moved.tracker.etag, "{name:?}");
        }
    }

    #[test]
    fn a_client_that_has_it_is_told_so() {
        let script = Script::new(&settings());
        let etag: &'static str = script.tracker.etag.to_str().expect("ASCII").to_owned().leak();
        let strong: &'static str = etag.trim_start_matches("W/");
        let list: &'static str = format!("\"x\", {strong}").leak();
        for (pairs, status) in [
            (vec![], 200),
            (vec![(header::IF_NONE_MATCH, etag)], 304),
            (vec![(header::IF_NONE_MATCH, list)], 304),
            (vec![(header::IF_NONE_MATCH, "*")], 304),
            (vec![(header::IF_NONE_MATCH, "\"x\"")], 200),
            (vec![(header::IF_MODIFIED_SINCE, "Fri, 01 May 2026 08:20:30 GMT")], 304),
            (vec![(header::IF_MODIFIED_SINCE, "Fri, 01 May 2026 08:20:29 GMT")], 200),
            (vec![(header::IF_MODIFIED_SINCE, "yesterday")], 200),
            (
                vec![
                    (header::IF_NONE_MATCH, "\"x\""),
                    (header::IF_MODIFIED_SINCE, "Fri, 01 May 2026 08:20:30 GMT"),
                ],
                200,
            ),
        ] {
            assert_eq!(script.respond(ScriptFile::Tracker, &request(&pairs)).status(), status, "{pairs:?}");
        }
    }

    #[test]
    fn it_is_compressed_for_those_who_take_that() {
        let script = Script::new(&settings());
        for (encoding, compressed) in
            [("gzip", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false), ("", false)]
        {
            let answer =
                script.respond(ScriptFile::Tracker, &request(&[(header::ACCEPT_ENCODING, encoding)]));
            assert_eq!(answer.headers().contains_key(header::CONTENT_ENCODING), compressed, "{encoding}");
        }
        // The tracker's own promise is that a page loads at most 3.2 KB.
        assert!(script.tracker.compressed.len() <= 3_200, "{}", script.tracker.compressed.len());
    }
}
