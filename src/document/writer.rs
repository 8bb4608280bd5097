//! Writes a document as JSON with sorted members, without making a [`serde_json::Value`] of it first.
//!
//! Members are written as they come, and put in order where they did not come in it. Whatever is not plain is refused, and left to the way
//! through a value: numbers that are no integers, keys that need escapes, and for canonical JSON keys that are not ASCII.

use std::io::Write as _;
use std::ops::Range;

use serde::Serialize;
use serde::ser::{
    Error, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant, Serializer,
};

use super::json::MAX_SAFE_INTEGER;

/// The bytes that [`super::json::pretty`] gives, or nothing where the document is not plain.
pub(super) fn pretty(document: &impl Serialize) -> Option<Vec<u8>> {
    let mut bytes = written(document, true)?;
    bytes.push(b'\n');
    Some(bytes)
}

/// The bytes that [`super::json::canonical`] gives, or nothing where the document is not plain.
pub(super) fn canonical(document: &impl Serialize) -> Option<Vec<u8>> {
    written(document, false)
}

fn written(document: &impl Serialize, pretty: bool) -> Option<Vec<u8>> {
    let mut writer = Writer { out: Vec::new(), pretty, depth: 0, members: Vec::new() };
    document.serialize(&mut writer).ok()?;
    Some(writer.out)
}

/// A document with one long list, which is written anew each time that something was added to it: what was written before is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Growing {
    /// The items so far, with what stands before each.
    items: Vec<u8>,
    count: usize,
}

impl Growing {
    /// Adds `items` after those that were added before. Nothing where one of them is not plain.
    pub fn add(&mut self, items: &[impl Serialize]) -> Option<()> {
        let mut writer = Writer { out: std::mem::take(&mut self.items), pretty: true, depth: 2, members: Vec::new() };
        for item in items {
            writer.separate(self.count == 0);
            item.serialize(&mut writer).ok()?;
            self.count += 1;
        }
        self.items = writer.out;
        Some(())
    }

    /// How many items were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The document that has the list as its member `list`, and after it the text `member`. Both names need no escapes.
    pub fn pretty(&self, list: &str, (member, text): (&str, &str)) -> Option<Vec<u8>> {
        debug_assert!(list < member);
        let mut writer = Writer { out: Vec::with_capacity(self.items.len() + 128), pretty: true, depth: 1, members: Vec::new() };
        writer.out.push(b'{');
        writer.line();
        writer.text(list).ok()?;
        writer.out.extend_from_slice(b": [");
        writer.out.extend_from_slice(&self.items);
        writer.depth = 2;
        writer.close(b']', self.count == 0);
        writer.separate(false);
        writer.text(member).ok()?;
        writer.out.extend_from_slice(b": ");
        writer.text(text).ok()?;
        writer.close(b'}', false);
        writer.out.push(b'\n');
        Some(writer.out)
    }
}

/// The document is not plain.
#[derive(Debug, thiserror::Error)]
#[error("the document is not plain")]
struct NotPlain;

impl Error for NotPlain {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Writer {
    out: Vec<u8>,
    pretty: bool,
    depth: usize,
    /// The members of every object that is being written, the innermost one's last.
    members: Vec<Member>,
}

/// Where a member stands in the output.
#[derive(Clone)]
struct Member {
    /// Its key, without the quotes.
    key: Range<usize>,
    /// The end of its value.
    end: usize,
}

impl Writer {
    fn text(&mut self, text: &str) -> Result<(), NotPlain> {
        // Without an early end, which would be looked for byte by byte.
        if text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\')) {
            return serde_json::to_writer(&mut self.out, text).map_err(|_| NotPlain);
        }
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
        Ok(())
    }

    fn line(&mut self) {
        const SPACES: [u8; 32] = [b' '; 32];
        if self.pretty {
            self.out.push(b'\n');
            let mut left = 2 * self.depth;
            while left > 0 {
                let now = left.min(SPACES.len());
                self.out.extend_from_slice(&SPACES[..now]);
                left -= now;
            }
        }
    }

    /// Before an item: the comma after the one before it, and its line.
    fn separate(&mut self, first: bool) {
        if !first {
            self.out.push(b',');
        }
        self.line();
    }

    fn close(&mut self, bracket: u8, empty: bool) {
        self.depth -= 1;
        if !empty {
            self.line();
        }
        self.out.push(bracket);
    }
}

struct Items<'w> {
    writer: &'w mut Writer,
    first: bool,
    /// Whether a variant's object around it is to be closed too.
    wrapped: bool,
}

impl<'w> Items<'w> {
    fn new(writer: &'w mut Writer, wrapped: bool) -> Self {
        writer.out.push(b'[');
        writer.depth += 1;
        Self { writer, first: true, wrapped }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotPlain> {
        self.writer.separate(self.first);
        self.first = false;
        value.serialize(&mut *self.writer)
    }

    fn finish(self) -> Result<(), NotPlain> {
        self.writer.close(b']', self.first);
        if self.wrapped {
            self.writer.close(b'}', false);
        }
        Ok(())
    }
}

struct Members<'w> {
    writer: &'w mut Writer,
    /// Where its members begin: in the output, after the bracket, and in the list of members.
    begin: usize,
    base: usize,
    sorted: bool,
    wrapped: bool,
}

impl<'w> Members<'w> {
    fn new(writer: &'w mut Writer, wrapped: bool) -> Self {
        writer.out.push(b'{');
        writer.depth += 1;
        let (begin, base) = (writer.out.len(), writer.members.len());
        Self { writer, begin, base, sorted: true, wrapped }
    }

    fn key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotPlain> {
        let writer = &mut *self.writer;
        writer.separate(writer.members.len() == self.base);
        let start = writer.out.len();
        key.serialize(&mut *writer)?;
        let [b'"', inner @ .., b'"'] = &writer.out[start..] else { return Err(NotPlain) };
        if inner.contains(&b'\\') || (!writer.pretty && !inner.is_ascii()) {
            return Err(NotPlain);
        }
        let key = start + 1..start + 1 + inner.len();
        if let Some(last) = writer.members[self.base..].last() {
            self.sorted &= writer.out[last.key.clone()] < writer.out[key.clone()];
        }
        writer.members.push(Member { key, end: 0 });
        writer.out.extend_from_slice(if writer.pretty { b": " } else { b":" });
        Ok(())
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotPlain> {
        value.serialize(&mut *self.writer)?;
        let end = self.writer.out.len();
        self.writer.members.last_mut().ok_or(NotPlain)?.end = end;
        Ok(())
    }

    /// Puts the members in order. Of members with the same key the last one counts, as it does in a map.
    fn sort(&mut self) {
        let mut members = self.writer.members.split_off(self.base);
        let unsorted = self.writer.out.split_off(self.begin);
        let key = |member: &Member| &unsorted[member.key.start - self.begin..member.key.end - self.begin];
        members.sort_by(|a, b| key(a).cmp(key(b)));
        let mut first = true;
        for (at, member) in members.iter().enumerate() {
            if members.get(at + 1).is_some_and(|next| key(next) == key(member)) {
                continue;
            }
            self.writer.separate(first);
            first = false;
            self.writer.out.extend_from_slice(&unsorted[member.key.start - 1 - self.begin..member.end - self.begin]);
        }
    }

    fn finish(mut self) -> Result<(), NotPlain> {
        let empty = self.writer.members.len() == self.base;
        if !self.sorted {
            self.sort();
        }
        self.writer.members.truncate(self.base);
        self.writer.close(b'}', empty);
        if self.wrapped {
            self.writer.close(b'}', false);
        }
        Ok(())
    }
}

/// Opens the object that a variant with content is written as.
fn variant(writer: &mut Writer, name: &str) -> Result<(), NotPlain> {
    writer.out.push(b'{');
    writer.depth += 1;
    writer.line();
    writer.text(name)?;
    writer.out.extend_from_slice(if writer.pretty { b": " } else { b":" });
    Ok(())
}

impl<'w> Serializer for &'w mut Writer {
    type Ok = ();
    type Error = NotPlain;
    type SerializeSeq = Items<'w>;
    type SerializeTuple = Items<'w>;
    type SerializeTupleStruct = Items<'w>;
    type SerializeTupleVariant = Items<'w>;
    type SerializeMap = Members<'w>;
    type SerializeStruct = Members<'w>;
    type SerializeStructVariant = Members<'w>;

    fn serialize_bool(self, value: bool) -> Result<(), NotPlain> {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), NotPlain> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), NotPlain> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), NotPlain> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), NotPlain> {
        if value.unsigned_abs() > MAX_SAFE_INTEGER {
            return Err(NotPlain);
        }
        write!(self.out, "{value}").map_err(|_| NotPlain)
    }

    fn serialize_u8(self, value: u8) -> Result<(), NotPlain> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), NotPlain> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), NotPlain> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), NotPlain> {
        if value > MAX_SAFE_INTEGER {
            return Err(NotPlain);
        }
        write!(self.out, "{value}").map_err(|_| NotPlain)
    }

    fn serialize_f32(self, _: f32) -> Result<(), NotPlain> {
        Err(NotPlain)
    }

    fn serialize_f64(self, _: f64) -> Result<(), NotPlain> {
        Err(NotPlain)
    }

    fn serialize_char(self, value: char) -> Result<(), NotPlain> {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), NotPlain> {
        self.text(value)
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), NotPlain> {
        Err(NotPlain)
    }

    fn serialize_none(self) -> Result<(), NotPlain> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotPlain> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), NotPlain> {
        self.out.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), NotPlain> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), NotPlain> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), NotPlain> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), NotPlain> {
        variant(self, name)?;
        value.serialize(&mut *self)?;
        self.close(b'}', false);
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'w>, NotPlain> {
        Ok(Items::new(self, false))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'w>, NotPlain> {
        Ok(Items::new(self, false))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items<'w>, NotPlain> {
        Ok(Items::new(self, false))
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, name: &'static str, _: usize) -> Result<Items<'w>, NotPlain> {
        variant(self, name)?;
        Ok(Items::new(self, true))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Members<'w>, NotPlain> {
        Ok(Members::new(self, false))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Members<'w>, NotPlain> {
        Ok(Members::new(self, false))
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, name: &'static str, _: usize) -> Result<Members<'w>, NotPlain> {
        variant(self, name)?;
        Ok(Members::new(self, true))
    }
}

macro_rules! items {
    ($($compound:ident $method:ident,)+) => {
        $(impl $compound for Items<'_> {
            type Ok = ();
            type Error = NotPlain;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotPlain> {
                self.item(value)
            }

            fn end(self) -> Result<(), NotPlain> {
                self.finish()
            }
        })+
    };
}

items! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
}

impl SerializeMap for Members<'_> {
    type Ok = ();
    type Error = NotPlain;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotPlain> {
        self.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotPlain> {
        self.value(value)
    }

    fn end(self) -> Result<(), NotPlain> {
        self.finish()
    }
}

macro_rules! members {
    ($($compound:ident,)+) => {
        $(impl $compound for Members<'_> {
            type Ok = ();
            type Error = NotPlain;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), NotPlain> {
                self.key(key)?;
                self.value(value)
            }

            fn end(self) -> Result<(), NotPlain> {
                self.finish()
            }
        })+
    };
}

members! {
    SerializeStruct,
    SerializeStructVariant,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::document::json;

    /// Holds both ways to write a document against the way through a value; whether both were taken.
    fn same(document: &impl Serialize) -> (bool, bool) {
        let value = json::to_value(document);
        let (pretty, canonical) = (pretty(document), canonical(document));
        let plain = (pretty.is_some(), canonical.is_some());
        assert_eq!(pretty.unwrap_or_else(|| json::pretty(&value)), json::pretty(&value));
        assert_eq!(canonical.unwrap_or_else(|| json::canonical(&value)), json::canonical(&value));
        assert_eq!(json::emit(document), json::pretty(&value));
        assert_eq!(json::canonical_of(document), json::canonical(&value));
        plain
    }

    /// Every kind of value that a derived document can have, with members in no order.
    #[derive(Serialize)]
    struct Every {
        z: Option<u8>,
        a: (i64, &'static str, char),
        m: Vec<Variant>,
        empty: [u8; 0],
        #[serde(skip_serializing_if = "Option::is_none")]
        skipped: Option<u8>,
        unit: (),
        nested: BTreeMap<String, BTreeMap<Phase, Vec<Vec<u64>>>>,
        #[serde(flatten)]
        more: BTreeMap<String, Value>,
    }

    #[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
    enum Phase {
        Last,
        First,
    }

    #[derive(Serialize)]
    enum Variant {
        Unit,
        New(Inner),
        Tuple(u8, bool),
        Struct { y: i8, x: Inner },
    }

    #[derive(Serialize)]
    struct Inner(Vec<&'static str>);

    #[test]
    fn a_plain_document_has_the_bytes_that_its_value_has() {
        let text = "\u{0}\u{1f}\u{7f}\"\\/\u{80}\u{2028}\u{1f600}";
        let phases = |n| BTreeMap::from([(Phase::Last, vec![vec![n, 1 << 53 >> 1], vec![]]), (Phase::First, vec![])]);
        let every = |more: Value| Every {
            z: Some(7),
            a: (-(MAX_SAFE_INTEGER as i64), text, '"'),
            m: vec![
                Variant::Unit,
                Variant::New(Inner(vec!["x", ""])),
                Variant::Tuple(1, true),
                Variant::Struct { y: -1, x: Inner(vec![]) },
            ],
            empty: [],
            skipped: None,
            unit: (),
            nested: BTreeMap::from([
                ("b".to_owned(), phases(0)),
                ("a b".to_owned(), phases(MAX_SAFE_INTEGER)),
                (String::new(), BTreeMap::new()),
            ]),
            more: serde_json::from_value(more).unwrap(),
        };
        assert_eq!(same(&every(json!({"b": {"d": null, "c": [{}, [], [[]], {"x": {}}]}, "0": false}))), (true, true));
        // What flattening adds a second time counts instead of the first.
        assert_eq!(same(&every(json!({"a": 1, "z": {"z": 2}}))), (true, true));
        assert_eq!(same(&every(json!({"\u{e9}": 1, "\u{1f600}": 2, "\u{fb33}": 3}))), (true, false));
        for value in [json!("x"), json!(null), json!(-3), json!([]), json!({}), json!([[{}], {"a": []}])] {
            assert_eq!(same(&value), (true, true), "{value}");
        }
        for value in [
            json!({"\"": 1}),
            json!({"\\": 1}),
            json!({"\n": 1}),
            json!(1.5),
            json!(1e300),
            json!(MAX_SAFE_INTEGER + 1),
            json!([i64::MIN]),
        ] {
            assert_eq!(same(&value), (false, false), "{value}");
        }
        assert_eq!(same(&BTreeMap::from([(1, 2)])), (false, false));
    }
}
