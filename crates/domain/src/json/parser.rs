//! The reader: from a text to a [`Value`].

use std::borrow::Cow;

use super::{DEPTH_MAX, Member, Object, ParseError, Stop, Value, is_regular, normalise, plain_len};

/// Parses a text that is no array of more than `elements_max` elements; see [`super::parse_elements`].
pub(super) fn parse_text(text: &str, elements_max: usize) -> Result<Value<'_>, Stop> {
    let mut parser = Parser {
        text,
        bytes: text.as_bytes(),
        at: 0,
        depth: 0,
        elements_max,
        values: Vec::new(),
        members: Vec::new(),
    };
    parser.skip_space();
    let value = match parser.value() {
        Err(_) if parser.values.len() > elements_max && parser.depth == 1 => return Err(Stop::TooMany),
        value => value?,
    };
    parser.skip_space();
    if parser.at == parser.bytes.len() {
        Ok(value)
    } else {
        Err(parser.expected("the end of the text").into())
    }
}

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// Elements that an array may have which is the whole text.
    elements_max: usize,
    /// Elements and members of everything still open. A finished container moves its tail into a vector of
    /// exactly its size: one allocation each, and a body full of tiny containers cannot claim spare capacity.
    values: Vec<Value<'a>>,
    members: Vec<Member<'a>>,
}

impl<'a> Parser<'a> {
    #[cold]
    fn expected(&self, expected: &'static str) -> ParseError {
        ParseError { offset: self.at, expected }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Consumes `byte` if it is next.
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self) -> Result<Value<'a>, ParseError> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(b'-' | b'0'..=b'9') => self.number().map(Value::Number),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => Err(self.expected("a value")),
        }
    }

    fn literal(&mut self, word: &'static str, value: Value<'a>) -> Result<Value<'a>, ParseError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected(word));
        }
        self.at += word.len();
        Ok(value)
    }

    /// Enters the container whose opening bracket is next.
    fn open(&mut self) -> Result<(), ParseError> {
        if self.depth == DEPTH_MAX {
            return Err(self.expected("at most 512 levels of nesting"));
        }
        self.depth += 1;
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    fn array(&mut self) -> Result<Value<'a>, ParseError> {
        self.open()?;
        let start = self.values.len();
        if !self.eat(b']') {
            loop {
                let value = self.value()?;
                self.values.push(value);
                if self.depth == 1 && self.values.len() > self.elements_max {
                    return Err(self.expected("no further element"));
                }
                self.skip_space();
                if self.eat(b']') {
                    break;
                }
                if !self.eat(b',') {
                    return Err(self.expected("',' or ']'"));
                }
                self.skip_space();
            }
        }
        self.depth -= 1;
        Ok(Value::Array(take_tail(&mut self.values, start)))
    }

    fn object(&mut self) -> Result<Value<'a>, ParseError> {
        self.open()?;
        let start = self.members.len();
        if !self.eat(b'}') {
            loop {
                let key = self.key()?;
                let value = self.value()?;
                self.members.push((key, value));
                self.skip_space();
                if self.eat(b'}') {
                    break;
                }
                if !self.eat(b',') {
                    return Err(self.expected("',' or '}'"));
                }
                self.skip_space();
            }
        }
        self.depth -= 1;
        let regular = is_regular(&self.members[start..]);
        let members = take_tail(&mut self.members, start);
        Ok(Value::Object(Object(if regular { members } else { normalise(members) })))
    }

    /// Reads a key, the colon and the space around it.
    fn key(&mut self) -> Result<Cow<'a, str>, ParseError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key in quotes"));
        }
        let key = self.string()?;
        self.skip_space();
        if !self.eat(b':') {
            return Err(self.expected("':'"));
        }
        self.skip_space();
        Ok(key)
    }

    /// Reads the string whose opening quote is next.
    fn string(&mut self) -> Result<Cow<'a, str>, ParseError> {
        let start = self.at + 1;
        self.at = start + plain_len(&self.bytes[start..]);
        if self.peek() == Some(b'"') {
            let plain = &self.text[start..self.at];
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        self.string_with_escapes(start).map(Cow::Owned)
    }

    /// Goes on with the string that starts at `start` and is plain up to here.
    #[inline(never)]
    fn string_with_escapes(&mut self, start: usize) -> Result<String, ParseError> {
        let mut text = String::from(&self.text[start..self.at]);
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    self.at += 1;
                    let unescaped = self.escape()?;
                    text.push(unescaped);
                }
                Some(_) => return Err(self.expected("no bare control character in a string")),
                None => return Err(self.expected("'\"'")),
            }
            let plain = self.at;
            self.at += plain_len(&self.bytes[plain..]);
            text.push_str(&self.text[plain..self.at]);
        }
    }

    /// Reads what follows a backslash.
    fn escape(&mut self) -> Result<char, ParseError> {
        let unescaped = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.expected("one of \"\\/bfnrtu after a backslash")),
        };
        self.at += 1;
        Ok(unescaped)
    }

    /// Reads `uXXXX`, and a second escape if the two are a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char, ParseError> {
        self.at += 1;
        let first = self.four_hex_digits()?;
        if (0xD800..0xDC00).contains(&first) && self.bytes[self.at..].starts_with(b"\\u") {
            let behind_first = self.at;
            self.at += 2;
            let second = self.four_hex_digits()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            // The second escape stands for itself: it may begin a pair of its own.
            self.at = behind_first;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn four_hex_digits(&mut self) -> Result<u32, ParseError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.expected("a hexadecimal digit"))?;
            self.at += 1;
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<f64, ParseError> {
        let start = self.at;
        let negative = self.eat(b'-');
        let first_digit = self.at;
        if !self.eat(b'0') {
            self.digits()?;
        }
        let last_digit = self.at;
        let mut whole = true;
        if self.eat(b'.') {
            whole = false;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            whole = false;
            self.at += 1;
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        // Up to 15 digits every intermediate sum is an exact double.
        if whole && last_digit - first_digit <= 15 {
            let digits = &self.bytes[first_digit..last_digit];
            let magnitude = digits.iter().fold(0.0, |sum, digit| sum * 10.0 + f64::from(digit - b'0'));
            return Ok(if negative { -magnitude } else { magnitude });
        }
        // The grammar above is a subset of the one of `f64::from_str`, which rounds correctly and overflows
        // to infinity as JavaScript does; so this cannot fail.
        self.text[start..self.at].parse().map_err(|_| ParseError { offset: start, expected: "a number" })
    }

    /// Consumes one digit or more.
    fn digits(&mut self) -> Result<(), ParseError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.expected("a digit"));
        }
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        Ok(())
    }
}

/// Moves what follows `start` into a vector of exactly its size.
fn take_tail<T>(all: &mut Vec<T>, start: usize) -> Vec<T> {
    // A huge container that is all there is gives up the vector itself: copying would double its memory.
    if start == 0 && all.len() > 1024 {
        let mut tail = std::mem::take(all);
        tail.shrink_to_fit();
        return tail;
    }
    all.drain(start..).collect()
}
