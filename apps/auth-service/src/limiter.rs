//! How often a login may be tried, from one address and for one account.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures that an account may have at once, and the time after which it may have one more.
const ACCOUNT: Rate = Rate { burst: 5, interval: Duration::from_secs(30) };
/// The same for an address: people share one.
const ADDRESS: Rate = Rate { burst: 20, interval: Duration::from_secs(3) };
/// Accounts and addresses that are remembered at most, each.
const MAX_ENTRIES: usize = 4096;

/// A number of tries at once, and one more after each interval.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    interval: Duration,
}

/// Counts tries that have not succeeded.
#[derive(Debug, Default)]
pub struct Limiter {
    accounts: Table<String>,
    addresses: Table<IpAddr>,
}

/// A try, which counts nothing any more when it is dropped, unless its password is checked: whoever finds the service busy has
/// guessed nothing.
#[derive(Debug)]
#[must_use = "it counts nothing once it is dropped"]
pub struct Try<'a> {
    limiter: &'a Limiter,
    account: String,
    address: IpAddr,
    is_checked: bool,
}

impl Try<'_> {
    /// Its password is checked now, so that it counts.
    pub fn check_begins(&mut self) {
        self.is_checked = true;
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        if !self.is_checked {
            give_back(&mut self.limiter.addresses.lock(), &self.address, ADDRESS);
            give_back(&mut self.limiter.accounts.lock(), &self.account, ACCOUNT);
        }
    }
}

impl Limiter {
    /// Counts a try at `now`.
    ///
    /// # Errors
    /// After which time the next one is allowed. This one then counts for nothing: one account with too many tries does not
    /// use up those of its address, which other people share.
    pub fn begin(&self, account: &str, address: IpAddr, now: Instant) -> Result<Try<'_>, Duration> {
        let (address, account) = (network(address), account.to_owned());
        let (mut addresses, mut accounts) = (self.addresses.lock(), self.accounts.lock());
        match (next(&mut addresses, &address, ADDRESS, now), next(&mut accounts, &account, ACCOUNT, now)) {
            (Ok(of_address), Ok(of_account)) => {
                addresses.insert(address, of_address);
                accounts.insert(account.clone(), of_account);
                Ok(Try { limiter: self, account, address, is_checked: false })
            }
            (of_address, of_account) => {
                Err(of_address.err().unwrap_or_default().max(of_account.err().unwrap_or_default()))
            }
        }
    }

    /// The try has succeeded: the account begins anew. The address does not, or one account of an attacker would let it
    /// try all others without end.
    pub fn succeeded(&self, account: &str) {
        self.accounts.lock().remove(account);
    }
}

/// What one client has: a network of IPv6, because it can choose its address there.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// For each key the time at which all of its tries are paid back, as in the generic cell rate algorithm.
#[derive(Debug)]
struct Table<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// When all tries of a key are paid back after one more; else, how long that is to wait.
fn next<K: Eq + Hash>(
    entries: &mut HashMap<K, Instant>,
    key: &K,
    rate: Rate,
    now: Instant,
) -> Result<Instant, Duration> {
    if entries.len() >= MAX_ENTRIES && !entries.contains_key(key) {
        entries.retain(|_, paid_back| *paid_back > now);
        // None is forgotten early: whoever fills the table would have its own count forgotten.
        if entries.len() >= MAX_ENTRIES {
            return Err(rate.interval);
        }
    }
    let paid_back = entries.get(key).copied().map_or(now, |time| time.max(now)) + rate.interval;
    let wait = paid_back.saturating_duration_since(now + rate.interval * rate.burst);
    if wait.is_zero() { Ok(paid_back) } else { Err(wait) }
}

/// Takes back one try of a key, unless it has been forgotten.
fn give_back<K: Eq + Hash>(entries: &mut HashMap<K, Instant>, key: &K, rate: Rate) {
    if let Some(paid_back) = entries.get_mut(key)
        && let Some(earlier) = paid_back.checked_sub(rate.interval)
    {
        *paid_back = earlier;
    }
}

impl<K> Table<K> {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    /// A try whose password is checked.
    fn begin(limiter: &Limiter, account: &str, address: IpAddr, now: Instant) -> Result<(), Duration> {
        limiter.begin(account, address, now).map(|mut attempt| attempt.check_begins())
    }

    #[test]
    fn an_account_has_some_tries_and_then_one_after_each_interval() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        for number in 0..ACCOUNT.burst {
            assert_eq!(begin(&limiter, "ann", address(number), now), Ok(()), "from wherever");
        }
        assert_eq!(begin(&limiter, "ann", address(99), now), Err(ACCOUNT.interval));
        assert_eq!(begin(&limiter, "bob", address(99), now), Ok(()), "another account");
        let later = now + ACCOUNT.interval;
        assert_eq!(begin(&limiter, "ann", address(99), later), Ok(()));
        assert!(begin(&limiter, "ann", address(99), later).is_err());
        limiter.succeeded("ann");
        assert_eq!(begin(&limiter, "ann", address(99), later), Ok(()));
    }

    #[test]
    fn an_address_has_some_tries_whatever_the_account_and_the_outcome() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let tries = |from: IpAddr| {
            let tried = (0..100).take_while(|number| {
                let account = format!("{from} {number}");
                let begun = begin(&limiter, &account, from, now).is_ok();
                limiter.succeeded(&account);
                begun
            });
            tried.count() as u32
        };
        assert_eq!(tries(address(1)), ADDRESS.burst);
        assert_eq!(tries("2001:db8::1".parse().unwrap()), ADDRESS.burst);
        assert_eq!(tries("2001:db8::2".parse().unwrap()), 0, "the same network");
        assert_eq!(tries("2001:db8:0:1::2".parse().unwrap()), ADDRESS.burst);
    }

    #[test]
    fn a_rejected_try_counts_neither_for_the_account_nor_for_the_address() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        for _ in 0..10 * ADDRESS.burst {
            let _ = begin(&limiter, "ann", address(1), now);
        }
        for number in 0..ADDRESS.burst - ACCOUNT.burst {
            assert_eq!(begin(&limiter, &number.to_string(), address(1), now), Ok(()), "ann has used up her own alone");
        }
        assert_eq!(begin(&limiter, "ann", address(1), now), Err(ACCOUNT.interval), "the longer of both times");
        assert_eq!(begin(&limiter, "bob", address(1), now), Err(ADDRESS.interval));
        assert_eq!(begin(&limiter, "bob", address(2), now), Ok(()));
        assert_eq!(limiter.accounts.lock()["bob"], now + ACCOUNT.interval, "once");
    }

    #[test]
    fn a_try_whose_password_was_not_checked_counts_nothing() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        assert_eq!(begin(&limiter, "ann", address(1), now), Ok(()));
        for _ in 0..10 * ADDRESS.burst {
            drop(limiter.begin("ann", address(1), now).unwrap());
        }
        for _ in 1..ACCOUNT.burst {
            assert_eq!(begin(&limiter, "ann", address(1), now), Ok(()));
        }
        assert_eq!(begin(&limiter, "ann", address(1), now), Err(ACCOUNT.interval), "those that were checked count");
        let unchecked = limiter.begin("bob", address(1), now).unwrap();
        limiter.succeeded("bob");
        drop(unchecked);
        assert!(!limiter.accounts.lock().contains_key("bob"), "what was forgotten is not there again");
    }

    #[test]
    fn memory_is_bounded_and_a_full_table_forgets_nobody_early() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        for number in 0..=MAX_ENTRIES as u32 {
            let _ = begin(&limiter, &format!("account {number}"), address(number), now);
        }
        assert_eq!(limiter.accounts.lock().len(), MAX_ENTRIES);
        assert!(begin(&limiter, "one more", address(u32::MAX), now).is_err());
        assert_eq!(begin(&limiter, "one more", address(u32::MAX), now + ACCOUNT.interval), Ok(()));
        assert_eq!(limiter.accounts.lock().len(), 1, "those that are paid back are forgotten");
    }
}
