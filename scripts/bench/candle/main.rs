//! `bench-candle MODEL PROMPT GENERATE DEPTH`: candle's quantised Llama on one GGUF file, as `puna bench` does it: after a
//! warm-up a prompt of PROMPT tokens, then GENERATE tokens one by one after DEPTH others. One line of JSON.
//! Threads come from RAYON_NUM_THREADS.

use candle_core::quantized::gguf_file;
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use std::time::Instant;

fn read(model: &mut ModelWeights, ids: &[u32], position: usize) -> Result<Tensor> {
    let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    model.forward(&input, position)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, numbers @ ..] = &args[..] else {
        panic!("bench-candle MODEL PROMPT GENERATE DEPTH");
    };
    let number = |i: usize| -> usize { numbers[i].parse().expect("a number") };
    let (prompt, generate, depth) = (number(0), number(1), number(2));
    let mut file = std::fs::File::open(path)?;
    let content = gguf_file::Content::read(&mut file).map_err(|e| e.with_path(path))?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut seed = 1_u64;
    let mut ids = |n: usize| -> Vec<u32> {
        let mut next = || {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((seed >> 33) % 32_000) as u32
        };
        (0..n).map(|_| next()).collect()
    };
    read(&mut model, &ids(prompt.clamp(1, 512)), 0)?;
    let mut speeds = [0.0; 2];
    if prompt > 0 {
        let prompt_ids = ids(prompt);
        let began = Instant::now();
        read(&mut model, &prompt_ids, 0)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        speeds[0] = prompt as f64 / began.elapsed().as_secs_f64();
    }
    if generate > 0 {
        // Position 0 empties the cache.
        read(&mut model, &ids(depth.max(1)), 0)?;
        let began = Instant::now();
        for i in 0..generate {
            read(&mut model, &ids(1), depth.max(1) + i)?
                .flatten_all()?
                .to_vec1::<f32>()?;
        }
        speeds[1] = generate as f64 / began.elapsed().as_secs_f64();
    }
    println!("{{\"pp\": {}, \"tg\": {}}}", speeds[0], speeds[1]);
    Ok(())
}
