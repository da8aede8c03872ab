use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::Identity;

/// Tokens that are remembered at most. Each takes some 500 bytes.
const MAX_TOKENS: usize = 4096;

/// The SHA-256 of a token.
pub(crate) type Digest = [u8; 32];

/// Verified tokens, so that the signature of one is verified once: that costs more than all else of a read.
///
/// It has two generations. When the young one is full it becomes the old one, whose tokens are forgotten: what is used
/// stays, and no list of the last uses has to be kept.
#[derive(Debug, Default)]
pub(crate) struct TokenCache {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Digest, Arc<Identity>>,
    old: HashMap<Digest, Arc<Identity>>,
    /// Counts the changes of keys.
    keys: u64,
}

impl TokenCache {
    /// The identity of a token that was verified with the current keys.
    pub(crate) fn get(&self, token: &Digest) -> Option<Arc<Identity>> {
        let mut generations = self.lock();
        if let Some(identity) = generations.young.get(token) {
            return Some(identity.clone());
        }
        let identity = generations.old.remove(token)?;
        generations.insert(*token, identity.clone());
        Some(identity)
    }

    /// Remembers a token, unless the keys have changed since `keys` was read.
    pub(crate) fn insert(&self, token: Digest, identity: Arc<Identity>, keys: u64) {
        let mut generations = self.lock();
        if generations.keys == keys {
            generations.insert(token, identity);
        }
    }

    /// Forgets a token.
    pub(crate) fn remove(&self, token: &Digest) {
        let mut generations = self.lock();
        generations.young.remove(token);
        generations.old.remove(token);
    }

    /// Forgets all tokens, because the keys are others now.
    pub(crate) fn keys_changed(&self) {
        let mut generations = self.lock();
        *generations = Generations { keys: generations.keys + 1, ..Generations::default() };
    }

    /// The number of changes of keys so far, for [`insert`](Self::insert). To be read before the keys are.
    pub(crate) fn keys(&self) -> u64 {
        self.lock().keys
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, token: Digest, identity: Arc<Identity>) {
        if self.young.len() >= MAX_TOKENS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token, identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Arc<Identity> {
        Arc::new(Identity {
            issuer: "i".into(),
            subject: "s".into(),
            client: None,
            scopes: Default::default(),
            expires: 0,
        })
    }

    fn digest(number: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    #[test]
    fn the_number_of_tokens_is_bounded_and_those_in_use_stay() {
        let cache = TokenCache::default();
        for number in 0..10 * MAX_TOKENS {
            cache.insert(digest(number), identity(), 0);
            assert!(cache.get(&digest(0)).is_some(), "it is used all the time");
        }
        let generations = cache.lock();
        assert!(generations.young.len() + generations.old.len() <= MAX_TOKENS);
        drop(generations);
        assert!(cache.get(&digest(1)).is_none());
    }

    #[test]
    fn a_change_of_keys_clears_it_also_for_what_is_being_verified() {
        let cache = TokenCache::default();
        let keys = cache.keys();
        cache.insert(digest(1), identity(), keys);
        cache.keys_changed();
        assert!(cache.get(&digest(1)).is_none());
        cache.insert(digest(2), identity(), keys);
        assert!(cache.get(&digest(2)).is_none(), "it was verified with the keys before");
        cache.insert(digest(2), identity(), cache.keys());
        assert!(cache.get(&digest(2)).is_some());
    }
}
