//! What this machine could do at most: reading memory, and multiplying without memory. Measured
//! speeds mean something only beside these.

use crate::pool::Pool;
use crate::simd::Simd;
use crate::{Kernels, Level};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Repetitions of a measurement, of which the best counts.
const TRIES: usize = 5;
/// Multiplications of a register in one task: about a quarter of a millisecond.
const ROUNDS: usize = 100_000;
/// Tasks for each thread, handed out one by one, so that a late thread does not hold up the rest.
const TASKS: usize = 16;

/// Gigabytes (10^9) per second that all threads together read from a buffer of about `bytes`, which
/// should be many times the size of the caches. Best of a few passes.
pub fn read_gbps(k: &Kernels, bytes: usize) -> f64 {
    const PART: usize = 1 << 14;
    let (pool, table) = k.parts();
    let data = vec![[0x3f_u8; 64]; (bytes / 64).max(1)];
    let seconds = best(|| {
        pool.run(data.len().div_ceil(PART), &|i| {
            let part = &data[i * PART..data.len().min((i + 1) * PART)];
            let mut sum = [0.0; 16];
            // SAFETY: the table's level is available.
            unsafe { (table.read)(part, &mut sum) };
            std::hint::black_box(sum);
        });
    });
    (data.len() * 64) as f64 / seconds / 1e9
}

/// Thousand million f32 operations per second of all threads, a fused multiply-add counted as two,
/// on the level of `k`, from registers only. Best of a few passes.
pub fn f32_gflops(k: &Kernels) -> f64 {
    let (pool, table) = k.parts();
    let lanes = if matches!(k.level(), Level::Scalar | Level::Avx2 | Level::Avx2Vnni) {
        NARROW * 16
    } else {
        WIDE * 16
    };
    rate(pool, lanes * 2, &|| {
        let mut sum = [0.0; 16];
        // SAFETY: the table's level is available.
        unsafe { (table.multiply)(ROUNDS, &mut sum) };
        std::hint::black_box(sum);
    })
}

/// As [`f32_gflops`], for dot products of bfloat16 pairs; `None` if the level of `k` has none.
pub fn bf16_gflops(k: &Kernels) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if k.level() == Level::Avx512Bf16 {
        // SAFETY: `Kernels` holds levels that are available only.
        return Some(rate(k.parts().0, x86::BF16_OPS, &|| unsafe {
            x86::bf16(ROUNDS)
        }));
    }
    let _ = k;
    None
}

/// As [`f32_gflops`], for dot products of 8-bit integers; `None` if the level of `k` has none.
pub fn int8_gops(k: &Kernels) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    match k.level() {
        Level::Avx2Vnni => {
            // SAFETY: `Kernels` holds levels that are available only.
            return Some(rate(k.parts().0, x86::INT8_OPS / 2, &|| unsafe {
                x86::int8_256(ROUNDS)
            }));
        }
        Level::Avx512Vnni | Level::Avx512Bf16 => {
            // SAFETY: `Kernels` holds levels that are available only.
            return Some(rate(k.parts().0, x86::INT8_OPS, &|| unsafe {
                x86::int8_512(ROUNDS)
            }));
        }
        _ => {}
    }
    let _ = k;
    None
}

/// Nanoseconds that a cache line takes from one core to another, one way: two threads answer each
/// other through one word. Median of many short series; `None` if the process has one core only or
/// the two never ran at the same time. It tells where the host has put two virtual
/// cores, on which bandwidth and the price of a barrier depend.
pub fn ping_pong_ns() -> Option<f64> {
    // Short ones, so that on a busy machine most lie between two interruptions.
    const EXCHANGES: u32 = 50;
    const BATCHES: usize = 250;
    /// Turns of a waiting loop between two looks at the clock.
    const PATIENCE: u32 = 1 << 12;
    #[repr(align(128))]
    struct Line(AtomicU32);
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return None;
    }
    let (ball, over) = (Line(AtomicU32::new(0)), AtomicBool::new(false));
    let give_up = Instant::now() + Duration::from_millis(300);
    // Until the ball is `n`, or the time is up.
    let wait = |n: u32| {
        for turn in 1_u32.. {
            if ball.0.load(Ordering::Acquire) == n {
                return true;
            }
            if turn % PATIENCE == 0 && (over.load(Ordering::Relaxed) || Instant::now() > give_up) {
                return false;
            }
            std::hint::spin_loop();
        }
        false
    };
    // Even numbers are served, odd ones come back.
    let last = EXCHANGES * BATCHES as u32;
    let mut batches: Vec<f64> = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..last {
                if !wait(2 * n + 1) {
                    return;
                }
                ball.0.store(2 * n + 2, Ordering::Release);
            }
        });
        let mut batches = Vec::with_capacity(BATCHES);
        let mut began = Instant::now();
        for n in 0..last {
            ball.0.store(2 * n + 1, Ordering::Release);
            if !wait(2 * n + 2) {
                break;
            }
            if (n + 1) % EXCHANGES == 0 {
                let now = Instant::now();
                batches.push((now - began).as_secs_f64() * 1e9 / f64::from(2 * EXCHANGES));
                began = now;
            }
        }
        over.store(true, Ordering::Relaxed);
        batches
    });
    batches.sort_by(f64::total_cmp);
    batches.get(batches.len() / 2).copied()
}

/// Seconds of the fastest of a few runs.
fn best(mut f: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    // A clock may be too coarse to see a tiny run.
    (0..TRIES).map(time).fold(f64::INFINITY, f64::min).max(1e-9)
}

/// 10^9 operations per second of `task`, which does `ROUNDS` times `operations`, on all threads.
fn rate(pool: &Pool, operations: usize, task: &(dyn Fn() + Sync)) -> f64 {
    let tasks = pool.threads() * TASKS;
    // One measurement at a time: two would share the cores.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = best(|| pool.run(tasks, &|_| task()));
    (tasks * ROUNDS * operations) as f64 / seconds / 1e9
}

/// Adds up all 64-byte lines as floats: a load and an addition each.
#[inline(always)]
pub(crate) fn read<S: Simd>(s: S, data: &[[u8; 64]], sum: &mut [f32; 16]) {
    let mut sums = [s.splat(0.0); 4];
    for lines in data.as_chunks::<4>().0 {
        for (sum, line) in sums.iter_mut().zip(lines) {
            *sum = s.add(*sum, s.load_f32(line));
        }
    }
    let total = sums.into_iter().fold(s.splat(0.0), |a, b| s.add(a, b));
    s.store(total, sum);
}

/// Independent sums that keep every multiplier busy and fit the registers.
const WIDE: usize = 12;
/// The same for levels whose vectors take two registers.
const NARROW: usize = 5;

/// `rounds` fused multiply-adds of each of `WIDE` or `NARROW` vectors.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(s: S, rounds: usize, sum: &mut [f32; 16]) {
    if S::WIDE {
        multiplied::<S, WIDE>(s, rounds, sum)
    } else {
        multiplied::<S, NARROW>(s, rounds, sum)
    }
}

#[inline(always)]
fn multiplied<S: Simd, const N: usize>(s: S, rounds: usize, sum: &mut [f32; 16]) {
    let (a, b) = (s.load(sum), s.splat(std::hint::black_box(0.5)));
    let mut sums = [a; N];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = s.fma(*sum, b, b);
        }
    }
    let total = sums.into_iter().fold(s.splat(0.0), |a, b| s.add(a, b));
    s.store(total, sum);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::WIDE;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Operations of one round of `bf16`.
    pub(super) const BF16_OPS: usize = WIDE * 32 * 2;
    /// Operations of one round of `int8_512`; half of them in `int8_256`.
    pub(super) const INT8_OPS: usize = WIDE * 64 * 2;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16(rounds: usize) {
        let x = _mm512_set1_ps(black_box(0.5));
        let pairs = _mm512_cvtne2ps_pbh(x, x);
        let mut sums = [_mm512_setzero_ps(); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_512(rounds: usize) {
        let x = _mm512_set1_epi8(black_box(3));
        let mut sums = [_mm512_setzero_si512(); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn int8_256(rounds: usize) {
        let x = _mm256_set1_epi8(black_box(3));
        let mut sums = [_mm256_setzero_si256(); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
}
