//! Reads a file of variables in the form that Umami's own loader reads: `NAME=VALUE` lines, comments, quotes.
//!
//! * An unquoted value ends at `#` or at the end of its line, without the blanks around it.
//! * A quoted one ("…", '…' or `…`) is literal and may go over several lines; in "…" `\n` and `\r` are line breaks.
//! * `export` before a name, and `NAME: VALUE`, are understood. A line that is no assignment is passed over.
//!
//! `$NAME` is left as it is. Umami's loader expands it, so a value that it would change is refused where the exact text
//! matters.

/// A variable, and the line on which it stands, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) line: usize,
}

/// The variables of a file, in its order.
pub(super) fn parse(text: &str) -> Vec<Variable> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let begin = line;
        let (variable, left) = assignment(rest);
        line += rest[..rest.len() - left.len()].matches('\n').count();
        rest = left;
        variables.extend(variable.map(|(name, value)| Variable { name, value, line: begin }));
    }
    variables
}

/// Whether Umami's loader would expand a part of the value: an unescaped `$` before a name.
pub(super) fn would_be_expanded(value: &str) -> bool {
    let mut before = ' ';
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        let begins_name = |next: &char| next.is_ascii_alphabetic() || matches!(next, '_' | '{');
        if character == '$' && before != '\\' && characters.peek().is_some_and(begins_name) {
            return true;
        }
        before = character;
    }
    false
}

/// Reads one line, or as many as a quoted value takes; returns the assignment, if it is one, and the rest of the text.
fn assignment(text: &str) -> (Option<(String, String)>, &str) {
    let (line, after) = text.split_once('\n').unwrap_or((text, ""));
    let named = || {
        let line = line.trim_start();
        let line = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line);
        let line = line.trim_start();
        let end =
            line.find(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c))).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let value = match rest.trim_start().strip_prefix('=') {
            Some(value) => value,
            None => rest.strip_prefix(':').filter(|value| value.starts_with([' ', '\t']))?,
        };
        (!name.is_empty()).then_some((name, value))
    };
    let Some((name, value)) = named() else { return (None, after) };
    let trimmed = value.trim_start_matches([' ', '\t']);
    if let Some(quote) = trimmed.chars().next().filter(|first| "\"'`".contains(*first)) {
        // The value's position in the whole text, because it may go on in further lines.
        let begin = line.len() - trimmed.len() + 1;
        if let Some((inside, left)) = quoted(&text[begin..], quote) {
            let value = if quote == '"' { inside.replace("\\n", "\n").replace("\\r", "\r") } else { inside };
            let left = left.split_once('\n').map_or("", |(_, left)| left);
            return (Some((name.to_owned(), value)), left);
        }
    }
    let value = value.split('#').next().unwrap_or_default().trim();
    (Some((name.to_owned(), value.to_owned())), after)
}

/// The text up to the closing quote, and the rest behind it; `None` if no quote closes it. A quote behind a backslash does
/// not close it, and both stay in the text.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut before = ' ';
    for (index, character) in text.char_indices() {
        if character == quote && before != '\\' {
            return Some((text[..index].to_owned(), &text[index + 1..]));
        }
        before = character;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).into_iter().map(|variable| (variable.name, variable.value)).collect()
    }

    #[test]
    fn values_are_read_as_umamis_loader_reads_them() {
        for (line, name, value) in [
            ("A=b", "A", "b"),
            ("  A =  b c  ", "A", "b c"),
            ("export A=b", "A", "b"),
            ("A: b", "A", "b"),
            ("A=b # comment", "A", "b"),
            ("A=b#c", "A", "b"),
            ("A=\"b # c\" # d", "A", "b # c"),
            ("A='b \\n $c'", "A", "b \\n $c"),
            ("A=\"b\\nc\"", "A", "b\nc"),
            ("A=`b'\"c`", "A", "b'\"c"),
            ("A=it's", "A", "it's"),
            ("A=\"C:\\dir\"", "A", "C:\\dir"),
            ("A=a\\b", "A", "a\\b"),
            ("A=https://a.example https://b.example", "A", "https://a.example https://b.example"),
            ("A=10.0.0.1, 10.0.0.2", "A", "10.0.0.1, 10.0.0.2"),
            ("MAILER-X=1", "MAILER-X", "1"),
            ("A=a$b$$c", "A", "a$b$$c"),
            ("A=", "A", ""),
            ("A=\"open", "A", "\"open"),
            ("\u{feff}A=b", "A", "b"),
            ("A=b\r", "A", "b"),
        ] {
            assert_eq!(pairs(line), [(name.to_owned(), value.to_owned())], "{line:?}");
        }
        assert_eq!(pairs("# A=b\n\nnonsense\n=x\nexportA"), []);
    }

    #[test]
    fn a_quoted_value_goes_over_lines_and_the_rest_keeps_its_numbers() {
        let found = parse("A=\"1\n2\"\r\nB=3\n\n#\nC='4' trailing\nD=5");
        let found: Vec<_> = found.iter().map(|v| (v.name.as_str(), v.value.as_str(), v.line)).collect();
        assert_eq!(found, [("A", "1\n2", 1), ("B", "3", 3), ("C", "4", 6), ("D", "5", 7)]);
    }

    #[test]
    fn what_would_be_expanded_is_known() {
        for (value, expanded) in
            [("a$b", true), ("${HOME}", true), ("a$_", true), ("a\\$b", false), ("a$1", false), ("a$", false)]
        {
            assert_eq!(would_be_expanded(value), expanded, "{value}");
        }
    }
}
