# The habits. `just` lists them.

default:
    @just --list

# Every test that needs no network
test *args:
    cargo test --workspace {{args}}

# Format, lints
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    @if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; else echo "cargo-deny is not installed: licences not checked"; fi

# The API documentation, warnings as errors
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Speed on this machine: the default model, then a synthetic 1B
bench *args:
    cargo run --release -- bench {{args}}
    cargo run --release -- bench --shape llama-3.2-1b --type Q4_0 {{args}}

# Fuzz every parser for some seconds each (needs cargo-fuzz and a nightly toolchain)
fuzz seconds="120":
    .ci/fuzz {{seconds}}

# Everything a change has to pass
ci:
    .ci/run
