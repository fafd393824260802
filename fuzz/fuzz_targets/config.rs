//! config.json: any JSON is a configuration or an error, and a configuration is sound.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else {
        return;
    };
    let Ok(config) = model::Config::from_hf(&json) else {
        return;
    };
    assert!(config.heads.is_multiple_of(config.kv_heads) && config.parameters() > 0);
    if config.head_dim <= 1024 {
        assert_eq!(config.rope.table().inv_freq.len(), config.rope.dim / 2);
    }
});
