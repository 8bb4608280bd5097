//! JSON as `git cbia` reads and writes it.
//!
//! Reading is strict, because a document that two parsers read differently has no meaning that a hash could
//! pin: duplicate keys, a byte-order mark, invalid UTF-8, `-0`, and numbers that do not survive an IEEE 754 double
//! are refused with their place. Writing is deterministic: sorted keys, two spaces, LF, a final newline.
//! Keys are hashed over RFC 8785 canonical JSON.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};
use serde_json::{Map, Number, Value};

use super::writer;

/// The largest document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 32 << 20;
/// The largest magnitude of an integer that every double-based reader agrees on (2^53 − 1, RFC 8785 appendix D).
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Why a document could not be read, and where.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct JsonError {
    /// What is wrong.
    pub reason: String,
    /// RFC 6901 pointer of the value, where known.
    pub pointer: Option<String>,
    /// Line, counted from 1.
    pub line: Option<u64>,
    /// Column in bytes, counted from 1.
    pub column: Option<u64>,
}

impl JsonError {
    fn whole(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), pointer: None, line: None, column: None }
    }
}

/// Reads one JSON document strictly.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(JsonError::whole(format!("it is larger than {MAX_DOCUMENT_BYTES} bytes")));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(JsonError { line: Some(1), column: Some(1), ..JsonError::whole("it starts with a byte-order mark") });
    }
    if let Err(error) = std::str::from_utf8(bytes) {
        let (line, column) = line_column(bytes, error.valid_up_to());
        return Err(JsonError { line: Some(line), column: Some(column), ..JsonError::whole("it is not valid UTF-8") });
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut pointer = String::new();
    let parsed = Strict { pointer: &mut pointer }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    parsed.map_err(|error| {
        let text = error.to_string();
        let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned();
        JsonError {
            reason,
            pointer: Some(pointer),
            line: Some(error.line() as u64),
            column: Some((error.column() as u64).max(1)),
        }
    })
}

struct Strict<'p> {
    pointer: &'p mut String,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        if value > MAX_SAFE_INTEGER {
            return Err(E::custom(format!("the integer {value} does not survive a double (more than 2^53 - 1)")));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > MAX_SAFE_INTEGER {
            return Err(E::custom(format!("the integer {value} does not survive a double (beyond -(2^53 - 1))")));
        }
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        if value == 0.0 && value.is_sign_negative() {
            return Err(E::custom("-0 has no canonical form"));
        }
        if value.abs() > MAX_SAFE_INTEGER as f64 {
            return Err(E::custom(format!("the number {value} is beyond the integers that survive a double")));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("the number is not finite"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let (mut items, depth) = (Vec::new(), self.pointer.len());
        loop {
            self.pointer.push('/');
            // Writing into memory cannot fail.
            write!(self.pointer, "{}", items.len()).ok();
            let Some(item) = seq.next_element_seed(Strict { pointer: &mut *self.pointer })? else { break };
            self.pointer.truncate(depth);
            items.push(item);
        }
        self.pointer.truncate(depth);
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (mut members, depth) = (Map::new(), self.pointer.len());
        while let Some(key) = map.next_key::<String>()? {
            self.pointer.push('/');
            self.pointer.push_str(&escape(&key));
            if members.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} is given twice", Value::from(key))));
            }
            let value = map.next_value_seed(Strict { pointer: &mut *self.pointer })?;
            self.pointer.truncate(depth);
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

/// One step of an RFC 6901 pointer, escaped.
pub fn escape(key: &str) -> Cow<'_, str> {
    if key.contains(['~', '/']) { key.replace('~', "~0").replace('/', "~1").into() } else { key.into() }
}

/// RFC 8785 canonical JSON.
pub fn canonical(value: &Value) -> Vec<u8> {
    // Where every key is ASCII and every number an integer, what serde_json writes is canonical already, in a tenth of the time.
    if is_plain(value)
        && let Ok(bytes) = serde_json::to_vec(value)
    {
        return bytes;
    }
    // A `Value` has string keys and finite numbers only, which is all that canonicalization can fail on.
    serde_json_canonicalizer::to_vec(value).unwrap_or_default()
}

/// Whether a value needs neither keys in the order of UTF-16 nor the number format of ECMAScript.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => number.as_i64().is_some_and(|n| n.unsigned_abs() <= MAX_SAFE_INTEGER),
        Value::Array(values) => values.iter().all(is_plain),
        Value::Object(members) => members.iter().all(|(key, value)| key.is_ascii() && is_plain(value)),
    }
}

/// How emitted documents are written: sorted keys, two spaces, LF, a final newline.
pub fn pretty(value: &Value) -> Vec<u8> {
    // A `Value` has string keys and finite numbers only, which is all that writing it into memory can fail on.
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A document type as a JSON value. Every emitted type has string keys and finite numbers only, so this cannot fail;
/// a type that could would surface as `null`, which no schema of ours accepts.
pub fn to_value(document: &impl Serialize) -> Value {
    serde_json::to_value(document).unwrap_or(Value::Null)
}

/// A document type as the bytes that are emitted for it.
pub fn emit(document: &impl Serialize) -> Vec<u8> {
    writer::pretty(document).unwrap_or_else(|| pretty(&to_value(document)))
}

/// A document type as RFC 8785 canonical JSON.
pub fn canonical_of(document: &impl Serialize) -> Vec<u8> {
    writer::canonical(document).unwrap_or_else(|| canonical(&to_value(document)))
}

/// `text` without the spaces and line breaks between its tokens. What is no JSON gives something that is none either, or something else.
pub fn compact(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let (mut from, mut at, mut quoted) = (0, 0, false);
    // What is kept is copied in pieces: from one space to the next.
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => at += 1,
            b' ' | b'\t' | b'\r' | b'\n' if !quoted => {
                bytes.extend_from_slice(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    bytes.extend_from_slice(&text[from..]);
    bytes
}

/// Line and column (from 1, in bytes) of a byte offset.
pub fn line_column(text: &[u8], offset: usize) -> (u64, u64) {
    let before = &text[..offset.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() as u64 + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() as u64 + 1;
    (line, column)
}

/// Line and column of the value that an RFC 6901 pointer names, in a document that [`parse`] accepted. A pointer to
/// a member that is absent gives its parent's place.
pub fn locate(text: &[u8], pointer: &str) -> (u64, u64) {
    let mut scan = Scan { text, at: 0 };
    scan.space();
    'steps: for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let start = scan.at;
        let (close, keyed) = match scan.peek() {
            Some(b'{') => (b'}', true),
            Some(b'[') => (b']', false),
            _ => break,
        };
        scan.at += 1;
        for index in 0usize.. {
            scan.space();
            if scan.peek().is_none_or(|b| b == close) {
                scan.at = start;
                break 'steps;
            }
            let name = if keyed {
                let from = scan.at;
                scan.value();
                let key = serde_json::from_slice::<String>(&text[from..scan.at]).unwrap_or_default();
                scan.space();
                scan.at += 1;
                scan.space();
                key
            } else {
                index.to_string()
            };
            if name == step {
                continue 'steps;
            }
            scan.value();
            scan.space();
            if scan.peek() == Some(b',') {
                scan.at += 1;
            }
        }
    }
    line_column(text, scan.at)
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Skips one value.
    fn value(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.at += 1;
                    while let Some(byte) = self.peek() {
                        self.at += if byte == b'\\' { 2 } else { 1 };
                        if byte == b'"' {
                            break;
                        }
                    }
                    if depth == 0 {
                        return;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => return,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return;
                    }
                }
                b',' if depth == 0 => return,
                byte if depth == 0 && byte.is_ascii_whitespace() => return,
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_documents_are_refused_with_their_place() {
        let cases: &[(&[u8], &str, &str, u64, u64)] = &[
            (b"{\"a\":1,\n \"a\":2}", "the key \"a\" is given twice", "/a", 2, 4),
            (b"{\"a\":{\"b\":1,\"\\u0062\":2}}", "the key \"b\" is given twice", "/a/b", 1, 20),
            (b"[9007199254740992]", "the integer 9007199254740992 does not survive a double (more than 2^53 - 1)", "/0", 1, 17),
            (b"[-9007199254740992]", "the integer -9007199254740992 does not survive a double (beyond -(2^53 - 1))", "/0", 1, 18),
            (
                b"[18446744073709551616]",
                "the number 18446744073709552000 is beyond the integers that survive a double",
                "/0",
                1,
                21,
            ),
            (b"[9007199254740993.0]", "the number 9007199254740992 is beyond the integers that survive a double", "/0", 1, 19),
            (b"[1,-0]", "-0 has no canonical form", "/1", 1, 5),
            (b"[-0.0]", "-0 has no canonical form", "/0", 1, 5),
        ];
        for (text, reason, pointer, line, column) in cases {
            let error = parse(text).unwrap_err();
            let got = (error.reason.as_str(), error.pointer.as_deref(), error.line, error.column);
            assert_eq!(got, (*reason, Some(*pointer), Some(*line), Some(*column)), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn malformed_documents_are_refused() {
        let deep = "[".repeat(100_000);
        let cases: &[&[u8]] = &[
            b"",
            b"{",
            b"{} x",
            b"\xef\xbb\xbf{}",
            b"\"\xff\"",
            b"\"\\ud800\"",
            b"[1e400]",
            b"{\"a\":1,}",
            b"nul",
            b"\0",
            deep.as_bytes(),
        ];
        for text in cases {
            assert!(parse(text).is_err(), "{:?}", &text[..text.len().min(20)]);
        }
    }

    #[test]
    fn emitted_json_has_sorted_keys_and_a_final_newline() {
        let value = parse(b"{\"b\":[1,{}],\"a\":\"\xc3\xa9\"}").unwrap();
        assert_eq!(pretty(&value), "{\n  \"a\": \"é\",\n  \"b\": [\n    1,\n    {}\n  ]\n}\n".as_bytes());
        assert_eq!(canonical(&value), "{\"a\":\"é\",\"b\":[1,{}]}".as_bytes());
    }

    #[test]
    fn the_short_way_to_canonical_json_gives_the_same_bytes() {
        let every_ascii: String = (0..=0x7f).map(char::from).collect();
        let texts = [every_ascii.as_str(), "\u{80}\u{2028}\u{2029}\u{fb33}\u{1f600}\u{feff}\u{ffff}"];
        let numbers = [0, 1, -1, 1 << 31, MAX_SAFE_INTEGER as i64, -(MAX_SAFE_INTEGER as i64)];
        for value in [
            serde_json::json!({ every_ascii.as_str(): texts, "b": numbers, "": [[], {}, null, true, false] }),
            serde_json::json!({ "a\u{e9}": 1, "a\u{1f600}": 2, "a\u{fb33}": 3 }),
            serde_json::json!([1.5, 1e21, 1e-7, -0.0, 100.0]),
            serde_json::json!([MAX_SAFE_INTEGER + 2]),
        ] {
            assert_eq!(canonical(&value), serde_json_canonicalizer::to_vec(&value).unwrap(), "{value}");
            assert_eq!(pretty(&value), format!("{value:#}\n").into_bytes());
            assert_eq!(compact(&pretty(&value)), serde_json::to_vec(&value).unwrap(), "{value}");
        }
    }

    #[test]
    fn anything_can_be_compacted() {
        let cases: &[(&[u8], &[u8])] = &[
            (b"", b""),
            (b" { \" a\\\" b \" : [ 1 ,\t2 ] }\n", b"{\" a\\\" b \":[1,2]}"),
            (b"\"a b", b"\"a b"),
            (b"a \"\\", b"a\"\\"),
            (b"\" \xff \" \xff", b"\" \xff \"\xff"),
        ];
        for (text, wanted) in cases {
            assert_eq!(compact(text), *wanted, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn keys_are_ordered_by_utf16_when_canonical() {
        let value = parse("{\"\u{fb33}\":1,\"\u{1f600}\":2}".as_bytes()).unwrap();
        assert_eq!(canonical(&value), "{\"\u{1f600}\":2,\"\u{fb33}\":1}".as_bytes());
    }

    #[test]
    fn pointers_are_located() {
        let text = b"{\n  \"a\": [1, {\"x/y\": \"},\\\"\"}, 3],\n  \"b\": {\"c\": true}\n}";
        for (pointer, place) in
            [("", (1, 1)), ("/a", (2, 8)), ("/a/1/x~1y", (2, 20)), ("/a/2", (2, 29)), ("/b/c", (3, 14)), ("/b/zz", (3, 8))]
        {
            assert_eq!(locate(text, pointer), place, "{pointer}");
        }
    }

    #[test]
    fn the_features_that_would_change_hashing_are_off() {
        // `preserve_order` would keep this order, `arbitrary_precision` would keep the digits.
        assert_eq!(serde_json::json!({"b": 1, "a": 2}).to_string(), "{\"a\":2,\"b\":1}");
        assert_eq!(serde_json::from_str::<Value>("1.00").unwrap().to_string(), "1.0");
    }
}
