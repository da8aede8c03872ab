use chrono::DateTime;
use rskafka::record::{Record, RecordAndOffset};

use crate::{Malformed, cursor::Cursor};

/// A record where it was received: nothing of it is copied.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// Where it is in its partition.
    pub offset: i64,
    /// When it was made or, if the topic says so, appended; in milliseconds since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers, encoded, without their number.
    headers: Cursor<'a>,
}

impl<'a> RecordRef<'a> {
    /// Reads a record with all its headers; offset and timestamp are those that it has in its batch.
    pub(crate) fn check(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let mut body = Self::body(cursor)?;
        let record = Self::fields(&mut body)?;
        let mut headers = record.headers;
        for _ in 0..Self::count(&mut body)? {
            header(&mut headers)?;
        }
        if headers.is_empty() { Ok(record) } else { Err(Malformed::Record) }
    }

    /// Reads a record that has been checked before.
    pub(crate) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Self::fields(&mut Self::body(cursor)?)
    }

    fn body(cursor: &mut Cursor<'a>) -> Result<Cursor<'a>, Malformed> {
        cursor.bytes().map(Cursor)
    }

    /// Leaves the cursor before the number of headers.
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

    /// Names and values of its headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut headers = self.headers;
        // It has been checked: nothing but the end ends it.
        std::iter::from_fn(move || header(&mut headers).ok())
    }

    /// The text of the last header with this name, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.headers().filter(|(found, _)| *found == name.as_bytes()).last()?;
        std::str::from_utf8(value?).ok()
    }

    /// The record in memory of its own. Of headers with the same name the last one is kept; one without a value has an
    /// empty one; what is no UTF-8 in a name is replaced.
    pub fn to_record(&self) -> RecordAndOffset {
        let headers = self
            .headers()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.unwrap_or_default().to_vec()));
        let record = Record {
            key: self.key.map(<[u8]>::to_vec),
            value: self.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
            // What is no time at all becomes 1970.
            timestamp: DateTime::from_timestamp_millis(self.timestamp).unwrap_or_default(),
        };
        RecordAndOffset { record, offset: self.offset }
    }
}

fn header<'a>(cursor: &mut Cursor<'a>) -> Result<(&'a [u8], Option<&'a [u8]>), Malformed> {
    Ok((cursor.bytes()?, cursor.nullable()?))
}
