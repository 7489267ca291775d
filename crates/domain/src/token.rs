//! The cache token: a collector gives it to a client, which sends it along, so that the next request needs no look-up.
//!
//! A compact JWS that Umami reads and writes too, so open tabs keep their visit over a switch in either
//! direction. It never expires. Up to 3.2 Umami writes no `type`, from 3.3 on it takes no token without one: tokens
//! of both kinds are read here, and which kind is written goes with the formula of the session ids.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha384, Sha512};
use uuid::Uuid;

use crate::ids::{IdentifiedSessions, Secret};
use crate::json::{self, Value};

/// `{"alg":"HS256","typ":"JWT"}` in base64url.
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// The value of the claim `type` of a cache token, where there is one. Umami's other tokens have other types.
const CACHE_TYPE: &str = "cache";

/// The claims of a token. Each may be missing; those that are there are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenClaims {
    /// The website in the letters it was sent in; absent for links and pixels.
    pub website_id: Option<String>,
    /// The session of the request that was answered with this token.
    pub session_id: Option<Uuid>,
    /// The visit that goes on.
    pub visit_id: Option<Uuid>,
    /// When the visit began, seconds since 1970.
    pub issued_at_s: Option<i64>,
}

/// Issues and verifies tokens with one secret.
#[derive(Clone)]
pub struct Tokens {
    hs256: Hmac<Sha256>,
    hs384: Hmac<Sha384>,
    hs512: Hmac<Sha512>,
}

impl Tokens {
    /// Prepares the keys once, since every request signs one token and verifies another.
    pub fn new(secret: &Secret) -> Self {
        let key = secret.token_key();
        // HMAC takes keys of any length, so none of these can fail (RFC 2104 §2).
        #[expect(clippy::expect_used, reason = "proved by the line above")]
        Self {
            hs256: Hmac::new_from_slice(key).expect("any key length"),
            hs384: Hmac::new_from_slice(key).expect("any key length"),
            hs512: Hmac::new_from_slice(key).expect("any key length"),
        }
    }

    /// Signs the claims: HS256, claims in the order `websiteId`, `sessionId`, `visitId`, `iat`, and where Umami asks for
    /// it, `type`. Without the last it is Umami 3.1's token byte for byte.
    pub fn issue(
        &self,
        website_id: Option<&str>,
        session_id: Uuid,
        visit_id: Uuid,
        iat_s: i64,
        identified: IdentifiedSessions,
    ) -> String {
        let mut claims = String::with_capacity(208);
        claims.push('{');
        if let Some(website_id) = website_id {
            claims.push_str("\"websiteId\":");
            json::write_string(website_id, &mut claims);
            claims.push(',');
        }
        claims
            .push_str(&format!("\"sessionId\":\"{session_id}\",\"visitId\":\"{visit_id}\",\"iat\":{iat_s}"));
        if identified != IdentifiedSessions::Shared {
            claims.push_str(&format!(",\"type\":\"{CACHE_TYPE}\""));
        }
        claims.push('}');
        let mut token = String::with_capacity(384);
        token.push_str(HEADER);
        token.push('.');
        BASE64.encode_string(claims, &mut token);
        let mut mac = self.hs256.clone();
        mac.update(token.as_bytes());
        token.push('.');
        BASE64.encode_string(mac.finalize().into_bytes(), &mut token);
        token
    }

    /// The claims of a token that this secret signed and whose `exp` and `nbf`, if any, hold at `now_s`. The answer to
    /// any fault of a token is `None`: a bad token is no token.
    pub fn verify(&self, token: &str, now_s: i64) -> Option<TokenClaims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let signature = BASE64.decode(signature).ok()?;
        let authentic = if header == HEADER {
            verifies(&self.hs256, signed, &signature)
        } else {
            let header = BASE64.decode(header).ok()?;
            let header = json::parse(&header).ok()?;
            match header.as_object()?.get("alg")?.as_str()? {
                "HS256" => verifies(&self.hs256, signed, &signature),
                "HS384" => verifies(&self.hs384, signed, &signature),
                "HS512" => verifies(&self.hs512, signed, &signature),
                _ => false,
            }
        };
        if !authentic {
            return None;
        }
        let claims = BASE64.decode(claims).ok()?;
        let claims = json::parse(&claims).ok()?;
        let claims = claims.as_object()?;
        let seconds = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) => Ok(Some(*n)),
            Some(_) => Err(()),
        };
        // An `exp` or `nbf` that is no number makes a token invalid, as it does in Umami's library.
        if seconds("exp").ok()?.is_some_and(|exp| now_s as f64 >= exp)
            || seconds("nbf").ok()?.is_some_and(|nbf| nbf > now_s as f64)
        {
            return None;
        }
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if claims.get("type").is_some() && text("type") != Some(CACHE_TYPE) {
            return None;
        }
        Some(TokenClaims {
            website_id: text("websiteId").map(str::to_owned),
            session_id: text("sessionId").and_then(|id| id.parse().ok()),
            visit_id: text("visitId").and_then(|id| id.parse().ok()),
            issued_at_s: seconds("iat").ok().flatten().map(|iat| iat as i64),
        })
    }
}

fn verifies<M: Mac + Clone>(key: &M, signed: &str, signature: &[u8]) -> bool {
    let mut mac = key.clone();
    mac.update(signed.as_bytes());
    mac.verify_slice(signature).is_ok()
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ3ZWJzaXRlSWQiOiIxMTExMTExMS0xMTExLTQxMTEtODExMS0xMTExMTExMTExMTEiLCJzZXNzaW9uSWQiOiI1YjUzNGY4OS01YWRjLTU1ZGMtODFmYS02YTM3ZGU4MjZjMWIiLCJ2aXNpdElkIjoiNTI0ODlhYjAtMTRmMC01NTczLWExYjMtNjcyYTU2NDNiMmQzIiwiaWF0IjoxNzk1MTY0OTc1fQ.EP3lGowgJvOy-NKxmVUCozngYsL-PI5rP5AUAtBTmcQ";
    const WEBSITE: &str = "11111111-1111-4111-8111-111111111111";

    fn tokens() -> Tokens {
        Tokens::new(&Secret::from_text("lab-secret-0001"))
    }

    fn uuid(text: &str) -> Uuid {
        text.parse().expect("a uuid")
    }

    #[test]
    fn issues_the_recorded_token() {
        let token = tokens().issue(
            Some(WEBSITE),
            uuid("5b534f89-5adc-55dc-81fa-6a37de826c1b"),
            uuid("52489ab0-14f0-5573-a1b3-672a5643b2d3"),
            1_795_164_975,
            IdentifiedSessions::Shared,
        );
        assert_eq!(token, RECORDED);
    }

    #[test]
    fn with_ids_of_3_3_and_newer_the_last_claim_is_the_type() {
        let (session, visit) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let issue = |identified| tokens().issue(Some(WEBSITE), session, visit, 5, identified);
        let token = issue(IdentifiedSessions::PerDevice);
        assert_eq!(issue(IdentifiedSessions::Linked), token);
        let claims = BASE64.decode(token.split('.').nth(1).expect("claims")).expect("base64");
        assert_eq!(
            String::from_utf8_lossy(&claims),
            format!(
                r#"{{"websiteId":"{WEBSITE}","sessionId":"{session}","visitId":"{visit}","iat":5,"type":"cache"}}"#
            )
        );
        let claims = tokens().verify(&token, 9).expect("authentic");
        assert_eq!((claims.session_id, claims.visit_id), (Some(session), Some(visit)));
    }

    #[test]
    fn claims_of_all_versions_are_read_and_tokens_of_other_types_are_none() {
        let verify = |claims: &str| tokens().verify(&signed(r#"{"alg":"HS256","typ":"JWT"}"#, claims), 9);
        let known = verify(r#"{"iat":5,"websiteId":"w"}"#).expect("3.1's");
        for claims in [
            r#"{"type":"cache","iat":5,"websiteId":"w","sessionLinkId":"af"}"#,
            r#"{"websiteId":"w","iat":5,"sessionLinkId":null,"cache":{"type":"x"},"type":"cache"}"#,
        ] {
            assert_eq!(verify(claims), Some(known.clone()), "{claims}");
        }
        for claims in [r#"{"type":"share","websiteId":"w"}"#, r#"{"type":null}"#, r#"{"type":["cache"]}"#] {
            assert_eq!(verify(claims), None, "{claims}");
        }
    }

    #[test]
    fn reads_back_what_it_issued() {
        let (session, visit) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let token = tokens().issue(None, session, visit, 5, IdentifiedSessions::Shared);
        let claims = tokens().verify(&token, 9).expect("authentic");
        assert_eq!(
            claims,
            TokenClaims {
                website_id: None,
                session_id: Some(session),
                visit_id: Some(visit),
                issued_at_s: Some(5)
            }
        );
    }

    fn signed(header: &str, claims: &str) -> String {
        fn sign<M: Mac + Clone>(key: &M, signed: &str) -> String {
            let mut mac = key.clone();
            mac.update(signed.as_bytes());
            format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes()))
        }
        let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        match header {
            _ if header.contains("HS512") => sign(&tokens().hs512, &signed),
            _ if header.contains("HS384") => sign(&tokens().hs384, &signed),
            _ => sign(&tokens().hs256, &signed),
        }
    }

    #[test]
    fn other_hs_algorithms_and_time_bounds_are_honoured() {
        let verify = |header: &str, claims: &str| tokens().verify(&signed(header, claims), 1_000);
        assert_eq!(verify(r#"{"alg":"HS512"}"#, "{}"), Some(TokenClaims::default()));
        assert_eq!(verify(r#"{"alg":"HS384","typ":"JWT"}"#, "{}"), Some(TokenClaims::default()));
        assert!(verify(r#"{"alg":"none"}"#, "{}").is_none());
        assert!(verify(r#"{"typ":"JWT","alg":"HS256"}"#, r#"{"exp":1001}"#).is_some());
        assert!(verify(r#"{"typ":"JWT","alg":"HS256"}"#, r#"{"exp":1000}"#).is_none());
        assert!(verify(r#"{"typ":"JWT","alg":"HS256"}"#, r#"{"nbf":1001}"#).is_none());
        assert!(verify(r#"{"typ":"JWT","alg":"HS256"}"#, r#"{"exp":"soon"}"#).is_none());
    }

    #[test]
    fn a_bad_token_is_no_token() {
        let mut forged = RECORDED.to_owned();
        forged.replace_range(60..61, if &RECORDED[60..61] == "A" { "B" } else { "A" });
        let other = Tokens::new(&Secret::from_text("other"));
        for token in ["", ".", "..", "a.b.c", "null", &RECORDED[..RECORDED.len() - 1], &forged] {
            assert_eq!(tokens().verify(token, 0), None, "{token}");
        }
        assert_eq!(other.verify(RECORDED, 0), None);
    }
}
