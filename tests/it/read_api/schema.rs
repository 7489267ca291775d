//! Whether an answer is as the served description says.

use serde_json::Value;

/// The description that the server has compiled in.
const DESCRIPTION: &str = include_str!("../../../crates/api/src/umami/openapi.json");

pub fn description() -> Value {
    serde_json::from_str(DESCRIPTION).unwrap()
}

/// All described paths.
pub fn paths() -> Vec<String> {
    description()["paths"].as_object().unwrap().keys().cloned().collect()
}

/// Fails if an answer with this status does not fit its schema. The path may have a query.
pub fn assert_described(path: &str, status: u16, answer: &Value) {
    let described = description();
    let asked: Vec<_> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &str| {
        let parts: Vec<_> = template.split('/').collect();
        parts.len() == asked.len()
            && parts.iter().zip(&asked).all(|(part, asked)| part.starts_with('{') || part == asked)
    };
    // A segment that is written out goes before one in braces, as in the router.
    let paths = paths();
    let template =
        paths.iter().filter(|template| fits(template)).min_by_key(|template| template.matches('{').count());
    let template = template.unwrap_or_else(|| panic!("{path} is not described"));
    let response = &described["paths"][template]["get"]["responses"][status.to_string()];
    let response = resolve(&described, response);
    let schema = &response["content"]["application/json"]["schema"];
    assert!(schema.is_object(), "{template} {status} has no schema");
    let wrong = errors(&described, schema, answer, "answer");
    assert!(wrong.is_empty(), "{path}: {wrong:?} in {answer}");
}

fn resolve<'d>(described: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let at = reference.strip_prefix('#').expect("a reference within the document");
            described.pointer(at).unwrap_or_else(|| panic!("{reference} leads nowhere"))
        }
        None => schema,
    }
}

/// What of a value does not fit a schema. Knows the keywords that the description has, and no others.
fn errors(described: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let schema = resolve(described, schema);
    let mut wrong = Vec::new();
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "type" => {
                let types = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                if !types.iter().any(|known| is_of(value, known.as_str().unwrap())) {
                    wrong.push(format!("{at} is not {rule}"));
                }
            }
            "required" => {
                let missing = rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|name| value.get(name.as_str().unwrap()).is_none());
                wrong.extend(missing.map(|name| format!("{at} lacks {name}")));
            }
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        wrong.extend(errors(described, schema, value, &format!("{at}.{name}")));
                    }
                }
            }
            "additionalProperties" => {
                assert_eq!(rule, &Value::Bool(false), "{at}");
                let known = schema["properties"].as_object().unwrap();
                let others =
                    value.as_object().into_iter().flatten().filter(|(name, _)| !known.contains_key(*name));
                wrong.extend(others.map(|(name, _)| format!("{at} has {name:?} as well")));
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    wrong.extend(errors(described, rule, value, &format!("{at}[{index}]")));
                }
            }
            "enum" => {
                if !rule.as_array().unwrap().contains(value) {
                    wrong.push(format!("{at} is none of {rule}"));
                }
            }
            "minimum" => {
                if value.as_f64().is_some_and(|value| value < rule.as_f64().unwrap()) {
                    wrong.push(format!("{at} is below {rule}"));
                }
            }
            "format" => {
                let fits = value.as_str().is_none_or(|text| match rule.as_str().unwrap() {
                    "uuid" => text.len() == 36 && text.parse::<uuid::Uuid>().is_ok(),
                    "date-time" => text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(),
                    other => panic!("{at}: the format {other} is not known to this test"),
                });
                if !fits {
                    wrong.push(format!("{at} is no {rule}"));
                }
            }
            other => panic!("{at}: the keyword {other} is not known to this test"),
        }
    }
    wrong
}

fn is_of(value: &Value, known: &str) -> bool {
    match known {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type {other} is not known to this test"),
    }
}

#[test]
fn an_answer_that_is_not_as_described_is_found() {
    let described = description();
    let active = &described["components"]["schemas"]["Active"];
    let of = |value: Value| errors(&described, active, &value, "answer").len();
    assert_eq!(of(serde_json::json!({ "visitors": 1 })), 0);
    assert_eq!(of(serde_json::json!({ "visitors": -1 })), 1);
    assert_eq!(of(serde_json::json!({ "visitors": "1" })), 1);
    assert_eq!(of(serde_json::json!({ "visitors": 1, "x": 1 })), 1);
    assert_eq!(of(serde_json::json!({})), 1);
}
