use chrono::{DateTime, Utc};

use crate::{Malformed, cursor::Cursor};

/// The headers of a record: names and values, in order. Names may repeat and need not be UTF-8; a value may be null.
pub type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A record with memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Headers,
    /// When it was created or, with `message.timestamp.type=LogAppendTime`, appended.
    pub timestamp: DateTime<Utc>,
}

/// A record with its offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordAndOffset {
    /// The record.
    pub record: Record,
    /// Its offset.
    pub offset: i64,
}

/// A record in the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// Its offset.
    pub offset: i64,
    /// When it was created or, with `message.timestamp.type=LogAppendTime`, appended; in milliseconds since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// The encoded headers, without their count.
    headers: Cursor<'a>,
}

impl<'a> RecordRef<'a> {
    /// Decodes a record and all its headers. Offset and timestamp are deltas.
    pub(crate) fn validate(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let mut body = Self::body(cursor)?;
        let record = Self::fields(&mut body)?;
        let mut headers = record.headers;
        for _ in 0..Self::count(&mut body)? {
            header(&mut headers)?;
        }
        if headers.is_empty() { Ok(record) } else { Err(Malformed::Record) }
    }

    /// Decodes a record that was validated before.
    pub(crate) fn decode(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Self::fields(&mut Self::body(cursor)?)
    }

    fn body(cursor: &mut Cursor<'a>) -> Result<Cursor<'a>, Malformed> {
        cursor.bytes().map(Cursor)
    }

    /// Leaves the cursor before the count of headers.
    fn fields(body: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let _attributes = body.take(1)?;
        let (timestamp, offset) = (body.varint()?, body.varint()?);
        let (key, value) = (body.nullable()?, body.nullable()?);
        let mut headers = *body;
        Self::count(&mut headers)?;
        Ok(Self { offset, timestamp, key, value, headers })
    }

    fn count(body: &mut Cursor<'a>) -> Result<u64, Malformed> {
        u64::try_from(body.varint()?).map_err(|_| Malformed::Record)
    }

    /// Names and values of the headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut headers = self.headers;
        // They are valid: an error means the end.
        std::iter::from_fn(move || header(&mut headers).ok())
    }

    /// The value of the last header with this name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.headers().filter(|(found, _)| *found == name.as_bytes()).last()?;
        std::str::from_utf8(value?).ok()
    }

    /// A copy in memory of its own.
    pub fn to_record(&self) -> RecordAndOffset {
        // Of the exact size: there may be tens of thousands.
        let mut headers = Headers::with_capacity(self.headers().count());
        headers.extend(self.headers().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))));
        let record = Record {
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.map(<[u8]>::to_vec),
            headers,
            // A timestamp out of range becomes 1970.
            timestamp: DateTime::from_timestamp_millis(self.timestamp).unwrap_or_default(),
        };
        RecordAndOffset { record, offset: self.offset }
    }
}

fn header<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a [u8], Option<&'a [u8]>), Malformed> {
    Ok((cursor.bytes()?, cursor.nullable()?))
}
