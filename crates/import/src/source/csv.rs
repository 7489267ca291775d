//! Records of a CSV file (RFC 4180): fields between commas, quoted ones with doubled quotes and line ends within.

/// The fields of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fields {
    /// All of them.
    Whole(Vec<String>),
    /// The last quote is not closed: the record may go on in the next line.
    Open,
    /// Something stands between a closing quote and the next comma.
    Broken,
}

pub(super) fn fields(text: &str) -> Fields {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let behind = match rest.strip_prefix('"') {
            Some(quoted) => {
                let Some((field, behind)) = quoted_field(quoted) else { return Fields::Open };
                fields.push(field);
                behind
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                fields.push(rest[..end].to_owned());
                &rest[end..]
            }
        };
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None if behind.is_empty() => return Fields::Whole(fields),
            None => return Fields::Broken,
        }
    }
}

/// A field behind its first quote, and the text behind its last one.
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
            None => return Some((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(fields: &[&str]) -> Fields {
        Fields::Whole(fields.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn fields_are_plain_or_quoted() {
        for (text, expected) in [
            ("a,b", whole(&["a", "b"])),
            ("", whole(&[""])),
            (",", whole(&["", ""])),
            (r#""a,b","c ""d""",e"#, whole(&["a,b", "c \"d\"", "e"])),
            ("\"two\nlines\",x", whole(&["two\nlines", "x"])),
            (r#""","x""#, whole(&["", "x"])),
            (r#"a"b"#, whole(&["a\"b"])),
            (r#""a"#, Fields::Open),
            (r#"x,"a"",b"#, Fields::Open),
            (r#""c"d,e"#, Fields::Broken),
        ] {
            assert_eq!(fields(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(written in prop::collection::vec(any::<String>(), 1..6)) {
            let quoted: Vec<_> = written.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
            prop_assert_eq!(fields(&quoted.join(",")), Fields::Whole(written));
        }

        #[test]
        fn any_text_is_read_open_or_broken(text in any::<String>()) {
            if let Fields::Whole(fields) = fields(&text) {
                prop_assert!(!fields.is_empty());
            }
        }
    }
}
