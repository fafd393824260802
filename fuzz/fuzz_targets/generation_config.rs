//! generation_config.json: samplers in their ranges, or an error.
#![no_main]

use engine::{SamplerParams, eog_from_generation_config};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else {
        return;
    };
    let _ = eog_from_generation_config(&json);
    if let Ok(params) = SamplerParams::default().with_generation_config(&json) {
        let _ = params.validate();
    }
});
