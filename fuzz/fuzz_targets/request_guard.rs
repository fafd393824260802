//! The first line is a method and a target, the others are headers: no panic, and what passes has a
//! host without a dot-name of others and a known origin. The whole is also read as a file of keys.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use server::{KeepAlive, Settings, guard, parse_file, presented};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = guard::host_name(text);
        let _ = guard::origin_authority(text);
        let _ = text.parse::<KeepAlive>();
        for key in parse_file(text, 0).unwrap_or_default() {
            assert!(!key.scopes.is_empty() && key.id.starts_with("key-"));
        }
    }
    let mut lines = bytes.split(|b| *b == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut words = first.splitn(2, |b| *b == b' ');
    let Ok(method) = Method::from_bytes(words.next().unwrap_or_default()) else {
        return;
    };
    let Ok(uri) = Uri::try_from(words.next().unwrap_or_default()) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let mut parts = line.splitn(2, |b| *b == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    if let Some(key) = presented(&headers) {
        assert!(!key.is_empty());
    }
    let settings = Settings {
        allowed_origins: vec!["https://chat.example".into()],
        ..Settings::default()
    };
    if let Ok(told) = guard::check(&method, &uri, &headers, &settings) {
        let host = headers.get("host").and_then(|host| host.to_str().ok()).expect("it was checked");
        let name = guard::host_name(host).expect("it was checked");
        assert!(name == "localhost" || name.parse::<std::net::IpAddr>().is_ok());
        assert!(told.is_none_or(|origin| origin.as_bytes().eq_ignore_ascii_case(b"https://chat.example")));
    }
});
