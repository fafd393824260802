//! The pool: every index once, panics passed on, nothing hangs however it is misused.

use super::*;
use std::sync::atomic::AtomicU32;

/// Runs `count` indices and checks that each was run exactly once.
fn check(pool: &Pool, count: usize) {
    let seen: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
    pool.run(count, &|i| {
        seen[i].fetch_add(1, Relaxed);
    });
    assert!(
        seen.iter().all(|s| s.load(Relaxed) == 1),
        "{count} indices on {pool:?}"
    );
}

#[test]
fn every_index_runs_once() {
    for threads in [1, 2, 3, 4, 9] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for count in [0, 1, 2, 3, threads, 100, 10_000] {
            check(&pool, count);
        }
    }
}

#[test]
fn thousands_of_tiny_regions() {
    // More threads than cores: workers are often late, asleep, or still leaving.
    for threads in [2, 4, 8] {
        let pool = Pool::new(threads).unwrap();
        for i in 0..5000 {
            check(&pool, i % 7);
            if i % 1000 == 0 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(2 * SPIN);
            }
        }
    }
}

#[test]
fn several_threads_take_part() {
    let pool = Pool::new(3).unwrap();
    let threads = Mutex::new(std::collections::HashSet::new());
    // Each index waits for company, at most a second.
    pool.run(3, &|_| {
        lock(&threads).insert(std::thread::current().id());
        let start = Instant::now();
        while lock(&threads).len() < 2 && start.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
    });
    assert!(lock(&threads).len() >= 2);
}

#[test]
fn a_slow_worker_is_waited_for() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..5 {
        let done = AtomicU32::new(0);
        pool.run(2, &|_| {
            // Longer than the caller spins: it has to sleep and be woken.
            std::thread::sleep(Duration::from_millis(3));
            done.fetch_add(1, Relaxed);
        });
        assert_eq!(done.load(Relaxed), 2);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    for threads in [1, 2, 4] {
        let pool = Pool::new(threads).unwrap();
        for bad in [0, 1, 50, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, &|i| assert!(i != bad, "index {i}"));
            }));
            let payload = result.unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert_eq!(*message, format!("index {bad}"));
            check(&pool, 100);
        }
        // All of them at once: one is passed on.
        assert!(catch_unwind(AssertUnwindSafe(|| pool.run(64, &|_| panic!("all")))).is_err());
        check(&pool, 10);
    }
}

#[test]
fn a_region_inside_a_region_runs_in_place() {
    let (pool, other) = (Pool::new(3).unwrap(), Pool::new(2).unwrap());
    let count = AtomicU32::new(0);
    pool.run(20, &|_| {
        pool.run(5, &|_| {
            count.fetch_add(1, Relaxed);
        });
        other.run(5, &|_| {
            count.fetch_add(1, Relaxed);
        });
    });
    assert_eq!(count.load(Relaxed), 200);
}

#[test]
fn callers_beside_each_other() {
    let pool = Pool::new(3).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..500).for_each(|i| check(&pool, i % 11)));
        }
    });
}

#[test]
fn a_region_after_a_panic_inside_a_nested_one() {
    let pool = Pool::new(2).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(4, &|_| pool.run(4, &|_| panic!("inner")));
    }));
    assert!(result.is_err());
    assert!(!IN_REGION.get(), "the caller is out of the region");
    check(&pool, 40);
}

#[test]
fn pools_end() {
    for threads in [1, 2, 8] {
        // Asleep, spinning, and never used.
        let pool = Pool::new(threads).unwrap();
        check(&pool, 10);
        std::thread::sleep(2 * SPIN);
        drop(pool);
        let pool = Pool::new(threads).unwrap();
        check(&pool, 10);
        drop(pool);
        drop(Pool::new(threads).unwrap());
    }
}

#[test]
fn impossible_sizes_are_errors() {
    assert!(matches!(Pool::new(0), Err(Error::Threads { given: 0, .. })));
    assert!(matches!(
        Pool::new(MAX_THREADS + 1),
        Err(Error::Threads { .. })
    ));
}
