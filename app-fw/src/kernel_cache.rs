//! Answers that the kernel may use without asking: where they are kept, who keeps them true, and what their rules count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::Duration;

use shared::Chain;
use shared::control::{CachedPackets, KernelCacheStatus};
use syscall_probe::{Cache, CacheCount, CachedChain, CachedVerdict, MISSES, Stamp};

use crate::matcher::RuleState;

/// How often the kernel is told that the daemon is alive.
pub const HEARTBEAT: Duration = Duration::from_millis(125);

/// How long the kernel may keep to itself what somebody wants to be told of, once it cannot be told.
const QUIET: Duration = Duration::from_secs(1);

/// The answers of one daemon.
#[derive(Debug)]
pub struct KernelCache {
    cache: Arc<Cache>,
    counted: Mutex<Counted>,
    /// What [`KernelCache::take_untold`] has taken.
    told: AtomicU64,
}

/// Which rule a counter is for.
#[derive(Debug, Default)]
struct Counted {
    /// By index, from 1.
    rules: Vec<Weak<RuleState>>,
    /// Of rules that are gone.
    free: Vec<u32>,
}

impl KernelCache {
    /// Answers that hold from the first [`KernelCache::renew`] on.
    pub fn new(cache: Arc<Cache>) -> KernelCache {
        KernelCache { cache, counted: Mutex::default(), told: AtomicU64::new(0) }
    }

    /// The daemon is alive.
    pub fn renew(&self) {
        self.cache.renew();
    }

    /// To be called after something was changed that answers are derived from, before that is told to anybody.
    pub fn forget_all(&self) {
        self.cache.forget_all();
    }

    /// See [`Cache`].
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Stores an answer that was found to hold after the stamp was taken. `wanted`: somebody wants to be told of each such packet,
    /// and cannot be for now. False if it could not, or the answer was there already.
    pub fn put(&self, stamp: &Stamp, verdict: CachedVerdict, rule: Option<&Arc<RuleState>>, wanted: bool) -> bool {
        let Some(counter) = rule.map_or(Some(0), |rule| self.counter(rule)) else { return false };
        self.cache.put(stamp, verdict, counter, wanted.then_some(QUIET))
    }

    /// How many packets somebody was not told of who wanted to be, since the last call.
    pub fn take_untold(&self) -> u64 {
        let all = CachedChain::ALL.into_iter().map(|chain| self.cache.count(chain).untold).sum();
        all - self.told.swap(all, Ordering::Relaxed).min(all)
    }

    /// The counter of a rule. `None`: there is none left, or somebody else is being given one, for whom no packet waits.
    fn counter(&self, rule: &Arc<RuleState>) -> Option<u32> {
        if let Some(counter) = rule.elsewhere.get() {
            return Some(*counter);
        }
        let mut counted = match self.counted.try_lock() {
            Ok(counted) => counted,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let counter = match counted.free.pop() {
            Some(counter) => {
                counted.rules[counter as usize - 1] = Arc::downgrade(rule);
                counter
            }
            None => {
                let counter = counted.rules.len() as u32 + 1;
                if counter >= self.cache.counters() {
                    return None;
                }
                counted.rules.push(Arc::downgrade(rule));
                counter
            }
        };
        Some(*rule.elsewhere.get_or_init(|| counter))
    }

    /// Adds to the rules what the kernel has counted for them since.
    pub fn collect(&self) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let Counted { rules, free } = &mut *counted;
        free.clear();
        for (counter, rule) in (1..).zip(rules.iter()) {
            let (packets, bytes) = self.cache.take_counter(counter);
            match rule.upgrade() {
                Some(rule) if packets > 0 => rule.count_many(packets, bytes),
                Some(_) => {}
                None => free.push(counter),
            }
        }
    }

    /// What packets found so far.
    pub fn status(&self) -> KernelCacheStatus {
        let of_chain = |cached: CachedChain| {
            let count = self.cache.count(cached);
            let missed: BTreeMap<String, u64> = MISSES
                .iter()
                .zip(count.misses)
                .filter(|(_, count)| *count > 0)
                .map(|(why, n)| ((*why).into(), n))
                .collect();
            let chain = match cached {
                CachedChain::Output => Chain::Output,
                CachedChain::Input => Chain::Input,
                CachedChain::Forward => Chain::Forward,
            };
            let CacheCount { accepted, dropped, .. } = count;
            let was_met = accepted > 0 || dropped > 0 || !missed.is_empty();
            was_met.then_some(CachedPackets { chain, accepted, dropped, missed })
        };
        KernelCacheStatus { why_not: None, chains: CachedChain::ALL.into_iter().filter_map(of_chain).collect() }
    }
}
