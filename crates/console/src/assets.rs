//! The files of the page, compiled in.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use dashi_http::conditional::if_none_match;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

/// Name, type and text of each file. The first one is the page itself.
const FILES: &[(&str, &str, &str)] = &[
    ("", HTML, include_str!("../assets/index.html")),
    ("console.css", CSS, include_str!("../assets/console.css")),
    ("icon.svg", SVG, include_str!("../assets/icon.svg")),
    ("main.js", SCRIPT, include_str!("../assets/main.js")),
    ("data.js", SCRIPT, include_str!("../assets/data.js")),
    ("dom.js", SCRIPT, include_str!("../assets/dom.js")),
    ("format.js", SCRIPT, include_str!("../assets/format.js")),
    ("plot.js", SCRIPT, include_str!("../assets/plot.js")),
    ("pipeline.js", SCRIPT, include_str!("../assets/pipeline.js")),
    ("growth.js", SCRIPT, include_str!("../assets/growth.js")),
    ("lanes.js", SCRIPT, include_str!("../assets/lanes.js")),
    ("letters.js", SCRIPT, include_str!("../assets/letters.js")),
    ("welcome.js", SCRIPT, include_str!("../assets/welcome.js")),
    ("live.js", SCRIPT, include_str!("../assets/live.js")),
    ("stream.js", SCRIPT, include_str!("../assets/stream.js")),
    ("places.js", SCRIPT, include_str!("../assets/places.js")),
    ("traffic.js", SCRIPT, include_str!("../assets/traffic.js")),
    ("ranges.js", SCRIPT, include_str!("../assets/ranges.js")),
    ("journey.js", SCRIPT, include_str!("../assets/journey.js")),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Scripts, styles and data come from the server of the page alone, and no other page may show it in a frame.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'";

/// A file, ready to be served.
struct File {
    name: &'static str,
    kind: HeaderValue,
    plain: Bytes,
    compressed: Bytes,
    etag: String,
}

static PREPARED: LazyLock<Vec<File>> = LazyLock::new(|| {
    let prepare = |(name, kind, text): &(&'static str, &'static str, &'static str)| {
        let hash: String =
            Sha256::digest(text.as_bytes()).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        File {
            name,
            kind: HeaderValue::from_static(kind),
            plain: Bytes::from_static(text.as_bytes()),
            compressed: compress(text.as_bytes()),
            // Weak: the compressed form has the same one.
            etag: format!("W/\"{hash}\""),
        }
    };
    FILES.iter().map(prepare).collect()
});

fn compress(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing into memory does not fail; an empty form is not served.
    let written = encoder.write_all(text).and_then(|()| encoder.finish());
    written.map(Bytes::from).unwrap_or_default()
}

/// Serves a file by its name; `None` if there is none. The page itself has the name "".
pub fn serve(name: &str, request: &HeaderMap) -> Option<Response> {
    let file = PREPARED.iter().find(|file| file.name == name)?;
    let mut response = Response::new(Body::empty());
    let is_known = if_none_match(request, &file.etag) == Some(true);
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else if accepts_gzip(request) && !file.compressed.is_empty() {
        *response.body_mut() = Body::from(file.compressed.clone());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else {
        *response.body_mut() = Body::from(file.plain.clone());
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, file.kind.clone());
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    // After an update of the binary, pages must not mix old files with new ones.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::try_from(file.etag.as_str()) {
        headers.insert(header::ETAG, etag);
    }
    Some(response)
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip")
            && !matches!(weight.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}

/// Headers of every answer of the console.
pub fn common_headers() -> HeaderMap {
    let pairs: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    pairs.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_only_files_that_are_there_and_holds_no_script_or_style_itself() {
        let page = FILES[0].2;
        let named = |attribute: &str| -> Vec<String> {
            page.split(&format!("{attribute}=\""))
                .skip(1)
                .filter_map(|rest| rest.split('"').next().map(str::to_owned))
                .collect()
        };
        let loaded: Vec<String> =
            named("src").into_iter().chain(named("href")).filter(|name| !name.starts_with('#')).collect();
        assert!(loaded.len() >= 3, "{loaded:?}");
        for name in loaded {
            assert!(FILES.iter().any(|file| file.0 == name), "{name}");
        }
        // The policy would keep a browser from obeying them.
        for forbidden in ["style=", "<style", "onclick=", "<script>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn modules_import_only_files_that_are_there_and_nothing_names_another_host() {
        for (name, _, text) in FILES {
            for import in text.split(" from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|file| file.0 == import), "{name} imports {import}");
            }
            for host in text.split("https://").skip(1) {
                assert!(
                    host.starts_with("example."),
                    "{name} names a host: {}",
                    host.get(..30).unwrap_or(host)
                );
            }
        }
    }

    #[test]
    fn a_file_is_sent_once_and_compressed_to_who_can_read_it() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect()
        };
        let plain = serve("main.js", &headers(&[])).unwrap();
        assert_eq!(plain.status(), 200);
        assert!(!plain.headers().contains_key("content-encoding"));
        assert_eq!(plain.headers()["content-type"], SCRIPT);
        let tag = plain.headers()["etag"].to_str().unwrap().to_owned();
        let compressed = serve("main.js", &headers(&[("accept-encoding", "br, gzip;q=0.5")])).unwrap();
        assert_eq!(compressed.headers()["content-encoding"], "gzip");
        assert!(
            !serve("main.js", &headers(&[("accept-encoding", "gzip;q=0")]))
                .unwrap()
                .headers()
                .contains_key("content-encoding")
        );
        assert_eq!(serve("main.js", &headers(&[("if-none-match", &tag)])).unwrap().status(), 304);
        assert!(serve("../Cargo.toml", &headers(&[])).is_none());
    }
}
