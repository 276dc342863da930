//! Protocol Buffers' wire format (<https://protobuf.dev/programming-guides/encoding>), borrowed from the bytes.
//!
//! Knows no message. Must never read beyond the bytes it was given, whatever they say.

use std::fmt;

use super::wire::Text;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer, a truth value, or a number of fixed size.
    Number(u64),
    /// A string, bytes, or a message.
    Bytes(&'a [u8]),
}

/// These bytes are not what they should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

/// The fields of a message, in the order in which they were written: number and value.
pub struct Fields<'a>(&'a [u8]);

/// Something that a field can be read into.
pub trait Field<'a> {
    /// Takes a value. A list gets longer, a message is merged, and anything else is replaced, as the format has it for
    /// fields that come more than once.
    ///
    /// # Errors
    /// When it is no value for this field.
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed>;
}

/// A message that is not read yet.
#[derive(Default)]
pub struct Raw<'a>(pub &'a [u8]);

/// Reads a whole message.
///
/// # Errors
/// When it is malformed.
pub fn read<'a, M: Field<'a> + Default>(bytes: &'a [u8]) -> Result<M, Malformed> {
    let mut message = M::default();
    message.merge(Value::Bytes(bytes))?;
    Ok(message)
}

/// Splits a number off, in which each byte but the last has its highest bit set.
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    // Most are this short.
    if let [byte @ ..0x80, rest @ ..] = *bytes {
        *bytes = rest;
        return Ok(u64::from(*byte));
    }
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = split(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed("a number does not end"))
}

fn split<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    bytes.split_off(..length).ok_or(Malformed("it ends too early"))
}

// === impl Value ===

impl<'a> Value<'a> {
    /// The bytes of a string or message.
    ///
    /// # Errors
    /// When it is a number.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(Malformed("a number where text or a message belongs")),
        }
    }

    fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(Malformed("text or a message where a number belongs")),
        }
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    /// The fields of the message that these bytes are.
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn split(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let rest = &mut self.0;
        let tag = varint(rest)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(rest)?),
            2 => {
                let length = varint(rest)?;
                Value::Bytes(split(rest, length)?)
            }
            wire_type @ (1 | 5) => {
                let bytes = split(rest, if wire_type == 1 { 8 } else { 4 })?;
                Value::Number(bytes.iter().rfold(0, |number, &byte| number << 8 | u64::from(byte)))
            }
            _ => return Err(Malformed("a field of unknown type")),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.split();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

// === impl Field ===

/// What is not UTF-8 becomes U+FFFD, as where the API server writes JSON: it lets anything into annotations, and one of
/// them must not make an object unreadable.
impl<'a> Field<'a> for Text<'a> {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        *self = String::from_utf8_lossy(value.bytes()?).into();
        Ok(())
    }
}

impl<'a> Field<'a> for Raw<'a> {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        self.0 = value.bytes()?;
        Ok(())
    }
}

impl<'a> Field<'a> for bool {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        *self = value.number()? != 0;
        Ok(())
    }
}

/// `int32` and `int64`: negative ones are written as 64 bits, in two's complement.
impl<'a> Field<'a> for i64 {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        *self = value.number()?.cast_signed();
        Ok(())
    }
}

/// An `int32` that must not be negative.
impl<'a> Field<'a> for u32 {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        *self = value.number()?.try_into().map_err(|_| Malformed("a number is negative or too large"))?;
        Ok(())
    }
}

impl<'a, T: Field<'a> + Default> Field<'a> for Option<T> {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        self.get_or_insert_default().merge(value)
    }
}

impl<'a, T: Field<'a> + Default> Field<'a> for Vec<T> {
    fn merge(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        let mut item = T::default();
        item.merge(value)?;
        self.push(item);
        Ok(())
    }
}

// === impl Malformed ===

impl Malformed {
    /// With what is wrong.
    pub fn new(what: &'static str) -> Self {
        Self(what)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed protobuf: {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Malformed> {
        Fields::of(bytes).collect()
    }

    /// The examples of the format's own description, and one field of every type.
    #[test]
    fn fields_are_split_by_their_type() {
        for (bytes, expected) in [
            (&[0x08, 0x96, 0x01][..], (1, Value::Number(150))),
            (b"\x12\x07testing", (2, Value::Bytes(b"testing"))),
            (&[0x1a, 0x03, 0x08, 0x96, 0x01], (3, Value::Bytes(&[0x08, 0x96, 0x01]))),
            (&[0xa1, 0x01, 1, 2, 0, 0, 0, 0, 0, 0x80], (20, Value::Number(0x8000_0000_0000_0201))),
            (&[0x25, 1, 0, 0, 0], (4, Value::Number(1))),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], (1, Value::Number(u64::MAX))),
        ] {
            assert_eq!(fields(bytes), Ok(vec![expected]));
            let twice = [bytes, bytes].concat();
            assert_eq!(fields(&twice), Ok(vec![expected, expected]));
            for end in 1..bytes.len() {
                assert_eq!(fields(&bytes[..end]), Err(Malformed("it ends too early")), "{bytes:?} cut at {end}");
            }
        }
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for (bytes, reason) in [
            (&[0x0b][..], "a field of unknown type"),
            (&[0x0f], "a field of unknown type"),
            (&[0xff; 11], "a number does not end"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "it ends too early"),
        ] {
            assert_eq!(fields(bytes), Err(Malformed(reason)), "{bytes:?}");
        }
    }

    #[test]
    fn values_must_suit_their_field() {
        let mut text = Text::default();
        assert!(text.merge(Value::Bytes("é".as_bytes())).is_ok() && &*text == "é");
        assert!(text.merge(Value::Bytes(&[0xff])).is_ok() && &*text == "\u{fffd}");
        assert!(text.merge(Value::Number(1)).is_err());
        let mut seconds = 0_u32;
        assert!(seconds.merge(Value::Number(7)).is_ok() && seconds == 7);
        assert!(seconds.merge(Value::Number(u64::MAX)).is_err() && seconds.merge(Value::Bytes(b"")).is_err());
        let mut port = 0_i64;
        assert!(port.merge(Value::Number(u64::MAX)).is_ok() && port == -1);
        let mut list: Option<Vec<bool>> = None;
        assert!(list.merge(Value::Number(1)).is_ok() && list.merge(Value::Number(0)).is_ok());
        assert_eq!(list, Some(vec![true, false]));
    }
}
