//! What this machine could do at most: reading memory, and multiplying without memory.

use crate::Kernels;

/// x
pub fn read_gbps(_: &Kernels, _bytes: usize) -> f64 {
    0.0
}
/// x
pub fn f32_gflops(_: &Kernels) -> f64 {
    0.0
}
/// x
pub fn bf16_gflops(_: &Kernels) -> Option<f64> {
    None
}
/// x
pub fn int8_gops(_: &Kernels) -> Option<f64> {
    None
}
