//! Records of a CSV file (RFC 4180): fields between commas, quoted ones with doubled quotes and line ends within.

/// The fields of a text, if its last quote is closed.
pub(super) fn fields(text: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Some(fields),
        }
    }
}

/// A field behind its first quote, and the text from the next comma on. What stands between the last quote and that comma
/// belongs to it.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(behind) => {
                field.push('"');
                rest = behind;
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                field.push_str(&rest[..end]);
                return Some((field, &rest[end..]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_plain_or_quoted() {
        for (text, expected) in [
            ("a,b", Some(vec!["a", "b"])),
            ("", Some(vec![""])),
            (",", Some(vec!["", ""])),
            (r#""a,b","c ""d""",e"#, Some(vec!["a,b", "c \"d\"", "e"])),
            ("\"two\nlines\",x", Some(vec!["two\nlines", "x"])),
            (r#""a"#, None),
            (r#""","x""#, Some(vec!["", "x"])),
            (r#"a"b,"c"d"#, Some(vec!["a\"b", "cd"])),
        ] {
            let expected = expected.map(|fields| fields.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(fields(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(written in prop::collection::vec(any::<String>(), 1..6)) {
            let quoted: Vec<_> = written.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
            prop_assert_eq!(fields(&quoted.join(",")), Some(written));
        }

        #[test]
        fn any_text_is_read_or_open(text in any::<String>()) {
            if let Some(fields) = fields(&text) {
                prop_assert!(!fields.is_empty());
            }
        }
    }
}
