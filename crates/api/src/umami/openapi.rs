//! The description of the read side, which programs read.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use crate::answer::json;
use crate::api::Api;

/// OpenAPI 3.1. Tests compare it with the routes and with every answer that they get.
const DESCRIPTION: &str = include_str!("openapi.json");

/// `GET /api/openapi.json`. It shows no data, so it needs no key.
pub async fn description(State(api): State<Api>) -> Response {
    api.finish(Ok(json(StatusCode::OK, DESCRIPTION.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use dashi_domain::buckets::Unit;
    use serde_json::Value;

    use super::*;
    use crate::umami::{ROUTES, sessions, traffic, websites};

    fn description() -> Value {
        serde_json::from_str(DESCRIPTION).unwrap()
    }

    /// A parameter's description, behind its reference.
    fn parameter<'d>(described: &'d Value, parameter: &'d Value) -> &'d Value {
        match parameter["$ref"].as_str() {
            Some(name) => &described["components"]["parameters"][name.rsplit('/').next().unwrap()],
            None => parameter,
        }
    }

    /// The names of a path's parameters, by the place that they are in.
    fn parameters(described: &Value, path: &str, place: &str) -> BTreeSet<String> {
        let list = described["paths"][path]["get"]["parameters"].as_array().unwrap();
        let named = list.iter().map(|each| parameter(described, each)).filter(|each| each["in"] == place);
        let names: Vec<_> = named.map(|each| each["name"].as_str().unwrap().to_owned()).collect();
        let unique: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(unique.len(), names.len(), "{path} has a parameter twice");
        unique
    }

    fn words<T>(words: &[(&str, T)]) -> BTreeSet<String> {
        words.iter().map(|(word, _)| (*word).to_owned()).collect()
    }

    #[test]
    fn every_path_and_parameter_is_described_and_nothing_else_is() {
        let described = description();
        let paths: BTreeSet<_> = described["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(paths, crate::PATHS.into_iter().collect());
        for route in ROUTES {
            let takes: BTreeSet<_> = route.parameters.concat().into_iter().map(str::to_owned).collect();
            assert_eq!(parameters(&described, route.path, "query"), takes, "{}", route.path);
        }
        for path in paths {
            let named: BTreeSet<_> = path.split('/').filter_map(|part| part.strip_prefix('{')).collect();
            let named = named.into_iter().map(|part| part.trim_end_matches('}').to_owned()).collect();
            assert_eq!(parameters(&described, path, "path"), named, "{path}");
        }
    }

    #[test]
    fn the_words_of_each_parameter_are_described() {
        let described = description();
        let known = BTreeMap::from([
            ("type", words(&traffic::KINDS)),
            ("unit", words(&Unit::ALL)),
            ("compare", words(&crate::umami::asked::COMPARES)),
            ("sortDescending", words(&websites::SWITCH)),
            ("orderBy", &words(&websites::ORDERS) | &words(&sessions::ORDERS)),
        ]);
        for (name, known) in known {
            let listed = described["components"]["parameters"][name]["schema"]["enum"].as_array().unwrap();
            let listed: BTreeSet<_> = listed.iter().map(|word| word.as_str().unwrap().to_owned()).collect();
            assert_eq!(listed, known, "{name}");
        }
    }
}
