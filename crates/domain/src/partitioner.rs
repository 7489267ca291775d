//! The partition of a session's events: Kafka's default partitioner, on every backend.

use uuid::Uuid;

use crate::position::Partition;

/// The bytes that are a record's key in the log: the session id as 36 lower-case characters.
pub fn key(session_id: Uuid) -> String {
    session_id.hyphenated().to_string()
}

/// The partition of a key among `partitions` (at least 1), as every Kafka client with the Java default
/// partitioner computes it, so that other producers can append to the same log.
///
/// Source: Apache Kafka, `BuiltInPartitioner.partitionForKey`: `toPositive(murmur2(key)) % partitions`.
pub fn partition_for(key: &[u8], partitions: u32) -> Partition {
    debug_assert!(partitions > 0);
    Partition::new((murmur2(key) & 0x7fff_ffff) % partitions.max(1))
}

/// Austin Appleby's MurmurHash2 (public domain) with the seed that Kafka uses.
fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Kafka hashes arrays, whose length is an i32; the cast is the algorithm's.
    let mut hash = SEED ^ (bytes.len() as u32);
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (i, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_kafkas_own_test_suite_does() {
        // Values of Apache Kafka's UtilsTest.testMurmur2.
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }

    #[test]
    fn every_partition_gets_its_share() {
        let mut counts = [0_u32; 8];
        for n in 0..8_000_u128 {
            let key = key(Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)));
            counts[partition_for(key.as_bytes(), 8).number() as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
