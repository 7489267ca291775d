//! Conditional requests.

use http::{HeaderMap, header};

/// Whether an `If-None-Match` header of the request names `tag`, by the weak comparison of RFC 9110, section 13.1.2.
/// `None` without such a header. `tag` is an entity tag in quotes, weak or strong.
pub fn if_none_match(request: &HeaderMap, tag: &str) -> Option<bool> {
    fn opaque(tag: &str) -> &str {
        tag.strip_prefix("W/").unwrap_or(tag)
    }
    let ours = opaque(tag);
    let values = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .map(|value| value.split(',').map(str::trim).any(|known| known == "*" || opaque(known) == ours))
        .reduce(|any, named| any || named)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_tag_is_found_in_any_list_weak_or_strong() {
        for (values, found) in [
            (vec![], None),
            (vec!["\"1-a+b\""], Some(true)),
            (vec!["W/\"1-a+b\""], Some(true)),
            (vec!["\"x\", \"1-a+b\""], Some(true)),
            (vec!["\"x\"", "\"1-a+b\""], Some(true)),
            (vec!["*"], Some(true)),
            (vec!["1-a+b"], Some(false)),
            (vec!["\"1-a\""], Some(false)),
            (vec![""], Some(false)),
        ] {
            let mut request = HeaderMap::new();
            for value in &values {
                request.append(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            }
            for tag in ["\"1-a+b\"", "W/\"1-a+b\""] {
                assert_eq!(if_none_match(&request, tag), found, "{values:?}");
            }
        }
    }
}
