use prost::encoding::{self, DecodeContext, WireType};
use prost_types::Timestamp;

/// The fields of an event that a consumer needs, borrowed from the record's value: the generated message would copy every
/// string, the patient's name and email too.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields<'a> {
    pub(super) patient_id: &'a str,
    pub(super) event_type: &'a str,
    pub(super) version: i64,
    pub(super) event_time: Option<Timestamp>,
    pub(super) registered_date: &'a str,
    pub(super) birth_year: i32,
}

impl<'a> Fields<'a> {
    /// Decodes the same values as the generated message; none where that returns an error.
    pub(super) fn decode(mut value: &'a [u8]) -> Option<Self> {
        let mut fields = Self::default();
        let context = DecodeContext::default;
        while !value.is_empty() {
            let (number, wire_type) = encoding::decode_key(&mut value).ok()?;
            let read = match number {
                1 | 2 | 3 | 4 | 16 | 19 => {
                    let text = text(wire_type, &mut value)?;
                    match number {
                        1 => fields.patient_id = text,
                        4 => fields.event_type = text,
                        19 => fields.registered_date = text,
                        // The name, the email and the event id need only be UTF-8.
                        _ => {}
                    }
                    Ok(())
                }
                17 => encoding::int64::merge(wire_type, &mut fields.version, &mut value, context()),
                18 => {
                    let time = fields.event_time.get_or_insert_default();
                    encoding::message::merge(wire_type, time, &mut value, context())
                }
                20 => encoding::int32::merge(wire_type, &mut fields.birth_year, &mut value, context()),
                _ => encoding::skip_field(wire_type, number, &mut value, context()),
            };
            read.ok()?;
        }
        Some(fields)
    }
}

fn text<'a>(wire_type: WireType, value: &mut &'a [u8]) -> Option<&'a str> {
    if wire_type != WireType::LengthDelimited {
        return None;
    }
    let length = usize::try_from(encoding::decode_varint(value).ok()?).ok()?;
    let (text, rest) = value.split_at_checked(length)?;
    *value = rest;
    std::str::from_utf8(text).ok()
}
