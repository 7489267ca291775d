//! The check of a payload's fields, one after the other, by the rules of Umami's schema.

use std::borrow::Cow;

use uuid::Uuid;

use super::field::Field;
use super::{SchemaRules, Source, SourceKind};
use crate::json::{Object, Value};
use crate::page_url::is_url;
use crate::schema::{self, BAD_UUID, Node, parse_uuid, wrong_type};

const BAD_URL: &str = "Invalid URL.";
pub(super) const NOT_ONE_SOURCE: &str = "Exactly one of website, link, or pixel must be provided";
const BEGINS_AS_A_FORMULA: &str = "Value must not start with =, +, -, @, tab, or carriage return";

/// The check of one payload: fields not looked at yet, and the errors of the others.
///
/// Each method takes one field out. A value that is refused is an error in the tree, so that `None` is of no
/// consequence then. Methods must be called in the order of [`Field`], which is the order of the answer.
pub(super) struct Check<'a> {
    rules: SchemaRules,
    fields: [Option<Value<'a>>; Field::COUNT],
    pub(super) tree: Node,
    /// Whether a field had the wrong type. zod then skips the rules about the payload as a whole.
    aborted: bool,
}

impl<'a> Check<'a> {
    pub(super) fn new(object: Object<'a>, rules: SchemaRules) -> Self {
        let mut fields = [const { None }; Field::COUNT];
        for (key, value) in object {
            if let Some(field) = Field::of(&key) {
                fields[field as usize] = Some(value);
            }
        }
        Self { rules, fields, tree: Node::default(), aborted: false }
    }

    fn take(&mut self, field: Field) -> Option<Value<'a>> {
        self.fields[field as usize].take()
    }

    fn wrong_type(&mut self, field: Field, expected: &str, received: &str) {
        self.aborted = true;
        self.tree.add(field.name(), wrong_type(expected, received));
    }

    /// A string of any length.
    pub(super) fn text(&mut self, field: Field) -> Option<Cow<'a, str>> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong_type(field, "string", other.type_name());
                None
            }
        }
    }

    /// A string of at most `max` UTF-16 units.
    pub(super) fn string(&mut self, field: Field, max: usize) -> Option<Cow<'a, str>> {
        let text = self.text(field)?;
        if is_longer(&text, max) {
            self.tree.add(field.name(), format!("Too big: expected string to have <={max} characters"));
        }
        Some(text)
    }

    /// A string that goes into a column of `max` characters.
    pub(super) fn column(&mut self, field: Field, max: usize) -> Option<Cow<'a, str>> {
        if self.rules.any_length { self.text(field) } else { self.string(field, max) }
    }

    /// A string that people read in lists, as [`Check::column`].
    pub(super) fn label(&mut self, field: Field, max: usize) -> Option<Cow<'a, str>> {
        let text = self.column(field, max)?;
        if self.rules.no_formulas && text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
            self.tree.add(field.name(), BEGINS_AS_A_FORMULA);
        }
        Some(text)
    }

    pub(super) fn url(&mut self, field: Field) -> Option<Cow<'a, str>> {
        let text = self.text(field)?;
        if !is_url(&text) {
            self.tree.add(field.name(), BAD_URL);
        }
        Some(text)
    }

    /// A UUID; no id if the text is not one.
    pub(super) fn uuid(&mut self, field: Field) -> Option<(Cow<'a, str>, Option<Uuid>)> {
        let text = self.text(field)?;
        let id = parse_uuid(&text);
        if id.is_none() {
            self.tree.add(field.name(), BAD_UUID);
        }
        Some((text, id))
    }

    pub(super) fn record(&mut self, field: Field) -> Option<Object<'a>> {
        match self.take(field)? {
            Value::Object(object) => Some(object),
            other => {
                self.wrong_type(field, "record", other.type_name());
                None
            }
        }
    }

    /// Whole seconds, as [`schema::seconds`] reads them.
    pub(super) fn timestamp(&mut self, field: Field) -> Option<i64> {
        let value = self.take(field)?;
        match schema::seconds(&value) {
            Ok(seconds) => Some(seconds).filter(|seconds| *seconds != 0 || self.rules.zero_is_a_time),
            Err(refusal) => {
                self.aborted |= refusal.is_of_type;
                self.tree.add(field.name(), refusal.error);
                None
            }
        }
    }

    /// A number from 0 to `max`.
    pub(super) fn vital(&mut self, field: Field, max: u32) -> Option<f64> {
        match self.take(field)? {
            Value::Number(number) if number.is_finite() => {
                if number < 0.0 {
                    self.tree.add(field.name(), "Too small: expected number to be >=0");
                } else if number > f64::from(max) {
                    self.tree.add(field.name(), format!("Too big: expected number to be <={max}"));
                }
                Some(number)
            }
            other => {
                self.wrong_type(field, "number", other.type_name());
                None
            }
        }
    }

    /// The one source that is not empty, out of the sources that are strings. To be called last.
    pub(super) fn source(
        &mut self,
        named: Vec<(SourceKind, Cow<'a, str>, Option<Uuid>)>,
    ) -> Option<Source<'a>> {
        let mut given = named.into_iter().filter(|(_, text, _)| !text.is_empty());
        if let (Some((kind, text, id)), None) = (given.next(), given.next()) {
            return id.map(|id| Source { kind, text, id });
        }
        if !self.aborted {
            self.tree.add(Field::Website.name(), NOT_ONE_SOURCE);
        }
        None
    }
}

/// Whether `text` has more than `max` UTF-16 units. A unit takes one to three bytes of UTF-8.
pub(super) fn is_longer(text: &str, max: usize) -> bool {
    text.len() > max && (text.len() > 3 * max || text.encode_utf16().count() > max)
}
