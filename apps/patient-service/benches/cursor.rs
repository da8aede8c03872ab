//! Cursors: one is written with each list that goes on, one is read with each that does.

use divan::{Bencher, black_box};
use patient_service::{
    http::cursor::{decode, encode},
    store::{Direction, Order, Position, SortField},
};
use uuid::Uuid;

fn main() {
    divan::main();
}

const ORDER: Order = Order { field: SortField::Name, direction: Direction::Ascending };

fn position() -> Position {
    Position { sort_key: "Amara Abebe".to_owned(), id: Uuid::from_u128(7) }
}

#[divan::bench]
fn write(bencher: Bencher<'_, '_>) {
    let position = position();
    bencher.bench_local(|| encode(black_box(&position), ORDER));
}

#[divan::bench]
fn read(bencher: Bencher<'_, '_>) {
    let cursor = encode(&position(), ORDER);
    bencher.bench_local(|| decode(black_box(&cursor), ORDER));
}
