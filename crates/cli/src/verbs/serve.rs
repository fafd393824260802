//! `puna serve`: the HTTP server, until Ctrl-C or SIGTERM.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use server::{Auth, Clock, Settings, Shutdown, State};

use crate::args::ServeArgs;
use crate::exit::usage;
use crate::{interrupt, out};

pub fn run(args: &ServeArgs) -> Result<()> {
    refuse_unready(args)?;
    let state = State::open(settings(args)?, &super::key::database(args.state.as_ref())?)?;
    let listener = TcpListener::bind((args.host, args.port))
        .with_context(|| format!("cannot listen at {}, port {}", args.host, args.port))?;
    greet(&listener, state.auth(), args)?;
    let shutdown = Shutdown::default();
    let (ended, _) = interrupt::listen(|| {
        let (asker, stopped) = (shutdown.clone(), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            // Ctrl-C is a flag that somebody has to look at.
            scope.spawn(|| {
                while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    if interrupt::asked() {
                        out::note("ending; Ctrl-C again ends at once");
                        return asker.ask();
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let ended = server::run(listener, state, server::routes(), &shutdown);
            stopped.store(true, std::sync::atomic::Ordering::SeqCst);
            ended
        })
    });
    Ok(ended?)
}

/// What the contract names and this release does not do yet.
fn refuse_unready(args: &ServeArgs) -> Result<()> {
    for (given, name) in [
        (!args.model.is_empty(), "--model"),
        (args.parallel.is_some(), "--parallel"),
        (args.cache_dir.is_some(), "--cache-dir"),
        (args.strict, "--strict"),
    ] {
        if given {
            let hint = format!(
                "leave {name} out: the server has keys, metrics and pages, but no models yet"
            );
            return Err(usage(
                format!("{name} of serve is not in this release"),
                hint,
            ));
        }
    }
    Ok(())
}

fn settings(args: &ServeArgs) -> Result<Settings> {
    let (guard, limits) = (&args.guard, &args.limits);
    let clock = Clock::System;
    let api_keys = match &guard.api_key_file {
        Some(path) => server::read_file(path, clock.now())?,
        None => Vec::new(),
    };
    Ok(Settings {
        address: args.host,
        no_auth: guard.no_auth,
        api_keys,
        clock,
        audit_content: args.audit_content,
        allowed_hosts: guard.allowed_host.clone(),
        allowed_origins: guard.allowed_origin.clone(),
        tls: guard.tls_cert.clone().zip(guard.tls_key.clone()),
        max_body: limits.max_body,
        max_connections: limits.max_connections,
        max_requests: limits.max_requests,
        grace: Duration::from_secs(limits.grace),
        access_log: (!limits.no_access_log).then(|| Arc::new(out::note) as server::Sink),
        terminate: true,
        ..Settings::default()
    })
}

fn greet(listener: &TcpListener, auth: Auth, args: &ServeArgs) -> Result<()> {
    let scheme = if args.guard.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    let who = match auth {
        Auth::Keys => "API keys needed",
        Auth::Open => "no API key needed",
    };
    out::note(&format!(
        "listening at {scheme}://{} ({who})",
        listener.local_addr()?
    ));
    Ok(())
}
