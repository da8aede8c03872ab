//! Cursors: positions in a list, as opaque text for clients.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

use crate::{
    patient::parse_date,
    store::{Direction, Order, Position, SortField},
};

/// The bytes of an id at the beginning.
const ID_BYTES: usize = 16;

/// Encodes a position in a list with this order as a cursor: the id, a byte for the order, the sort key.
pub fn encode(position: &Position, order: Order) -> String {
    let key = position.sort_key.as_bytes();
    URL_SAFE_NO_PAD.encode([position.id.as_bytes(), &[tag(order)][..], key].concat())
}

/// In the list of another order, the position would skip patients that no page has had. The bytes are none of UTF-8, so that a
/// version without them rejects the sort key.
fn tag(order: Order) -> u8 {
    let field = match order.field {
        SortField::Id => 0xf6,
        SortField::Name => 0xf8,
        SortField::Email => 0xfa,
        SortField::DateOfBirth => 0xfc,
        SortField::RegisteredDate => 0xfe,
    };
    match order.direction {
        Direction::Ascending => field,
        Direction::Descending => field + 1,
    }
}

/// Decodes a cursor of a list with this order.
///
/// # Errors
/// If it is not a cursor of a list with this order.
pub fn decode(cursor: &str, order: Order) -> Result<Position, String> {
    decode_any(cursor, order)
        .filter(|position| match order.field {
            SortField::Id => position.sort_key == position.id.to_string(),
            SortField::Name | SortField::Email => !position.sort_key.contains('\0'),
            // Only dates that a patient can have: chrono accepts others that PostgreSQL rejects, such as the year 0.
            SortField::DateOfBirth | SortField::RegisteredDate => parse_date(&position.sort_key).is_some(),
        })
        .ok_or_else(|| "must be the cursor of an earlier response with the same sort".to_owned())
}

fn decode_any(cursor: &str, order: Order) -> Option<Position> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (id, rest) = bytes.split_at_checked(ID_BYTES)?;
    let sort_key = rest.strip_prefix(&[tag(order)])?;
    Some(Position { id: Uuid::from_slice(id).ok()?, sort_key: String::from_utf8(sort_key.to_vec()).ok()? })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn by(field: SortField) -> Order {
        Order { field, direction: Direction::Ascending }
    }

    fn crafted(field: SortField, sort_key: &str) -> String {
        encode(&Position { id: Uuid::nil(), sort_key: sort_key.to_owned() }, by(field))
    }

    #[test]
    fn a_cursor_is_decoded_as_it_was_encoded() {
        let id = Uuid::now_v7();
        for (field, sort_key) in [
            (SortField::Id, id.to_string()),
            (SortField::Name, "Zoë 🩺".to_owned()),
            (SortField::RegisteredDate, "2024-02-29".to_owned()),
        ] {
            let position = Position { id, sort_key };
            assert_eq!(decode(&encode(&position, by(field)), by(field)), Ok(position));
        }
    }

    #[test]
    fn a_cursor_of_another_order_is_rejected() {
        let fields = [SortField::Name, SortField::Email, SortField::DateOfBirth, SortField::RegisteredDate];
        let orders = fields.iter().flat_map(|field| {
            [Direction::Ascending, Direction::Descending].map(|direction| Order { field: *field, direction })
        });
        for order in orders.clone() {
            let cursor = encode(&Position { id: Uuid::nil(), sort_key: "2024-02-29".to_owned() }, order);
            for other in orders.clone() {
                assert_eq!(decode(&cursor, other).is_ok(), order == other, "{order:?} {other:?}");
            }
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        let date = crafted(SortField::Id, "2024-02-29");
        let text = crafted(SortField::DateOfBirth, "infinity");
        let nul = crafted(SortField::Name, "\0");
        for (cursor, field) in [
            ("", SortField::Name),
            ("abc", SortField::Name),
            ("%%%", SortField::Name),
            (&nul, SortField::Name),
            (&date, SortField::Id),
            (&text, SortField::DateOfBirth),
        ] {
            assert!(decode(cursor, by(field)).is_err(), "{cursor:?}");
        }
        for no_date in
            ["0000-01-01", "-0001-01-01", "+10000-01-01", "+262142-12-31", "2024-1-1", " 2024-01-01", "today"]
        {
            for field in [SortField::DateOfBirth, SortField::RegisteredDate] {
                assert!(decode(&crafted(field, no_date), by(field)).is_err(), "{no_date:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_cursor_or_rejected(
            text: String,
            bytes in vec(any::<u8>(), 0..80),
            (id, sort_key) in (any::<u128>(), "[a-c0-9\\x00é-]{0,10}"),
        ) {
            let position = Position { id: Uuid::from_u128(id), sort_key };
            for field in [SortField::Id, SortField::Name, SortField::Email, SortField::DateOfBirth] {
                for cursor in [text.clone(), URL_SAFE_NO_PAD.encode(&bytes), encode(&position, by(field))] {
                    if let Ok(position) = decode(&cursor, by(field)) {
                        prop_assert_eq!(encode(&position, by(field)), cursor.as_str(), "each position has one cursor");
                        prop_assert!(!position.sort_key.contains('\0'));
                    }
                }
            }
        }
    }
}
