//! The probes give figures that a machine can have.

use kernels::{Compute, Kernels, Level, limits};

#[test]
fn limits_are_positive_and_in_order() {
    for level in Level::available() {
        let k = Kernels::new(level, Compute::Fast, 1).unwrap();
        let f32 = limits::f32_gflops(&k);
        assert!(f32 > 0.01 && f32 < 1e5, "{level}: {f32}");
        let bf16 = limits::bf16_gflops(&k);
        assert_eq!(bf16.is_some(), level == Level::Avx512Bf16);
        let int8 = limits::int8_gops(&k);
        let vnni = [Level::Avx2Vnni, Level::Avx512Vnni, Level::Avx512Bf16].contains(&level);
        assert_eq!(int8.is_some(), vnni);
        for more in [bf16, int8].into_iter().flatten() {
            assert!(more > 0.01 && more < 1e6, "{level}: {more}");
        }
    }
    let k = Kernels::new(Level::best(), Compute::Fast, 2).unwrap();
    for bytes in [0, 1, 1 << 20] {
        let read = limits::read_gbps(&k, bytes);
        assert!(read > 0.0 && read.is_finite(), "{bytes}: {read}");
    }
}

#[test]
fn a_cache_line_goes_from_core_to_core() {
    // Beside other work the two threads may never meet.
    if let Some(ns) = limits::ping_pong_ns() {
        assert!(ns > 0.1 && ns < 1e8, "{ns}");
    }
}
