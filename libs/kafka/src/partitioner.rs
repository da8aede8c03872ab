//! The default partitioner of the Java client: murmur2 of the key. Clients in other languages that use it send the same key
//! to the same partition.

/// The hash of a key, from 0 to `i32::MAX`: Kafka's `toPositive(murmur2(key))`.
pub fn key_hash(key: &[u8]) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32
}

/// The partition of a key with this hash.
///
/// # Panics
/// If `partitions` is not positive.
pub fn of_hash(key_hash: i32, partitions: i32) -> i32 {
    assert!(partitions > 0, "a topic has a partition");
    key_hash % partitions
}

/// Austin Appleby's MurmurHash2, 32 bits, with the seed of Kafka's `Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, &byte| tail << 8 | u32::from(byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_are_those_of_kafka() {
        for (key, hash) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn partitions_are_in_range() {
        for n in 0..100u8 {
            assert!((0..3).contains(&of_hash(key_hash(&[n]), 3)));
        }
    }
}
