//! `puna serve`: the HTTP server, until Ctrl-C or SIGTERM.

mod shelf;

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use engine::Spill;
use server::{Auth, Clock, OnDemand, Served, Settings, Shutdown, State};

use self::shelf::Shelf;
use crate::args::ServeArgs;
use crate::exit::{Code, failure, usage};
use crate::{config, interrupt, out};

/// P-U-N-A on a keypad.
const PORT: u16 = 7862;

/// How long a request waits for its model.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(args: &ServeArgs) -> Result<()> {
    let (host, port) = address(args)?;
    let state = State::open(
        settings(args, host)?,
        &super::key::database(args.state.as_ref())?,
    )?;
    let spill = args.cache_dir.as_deref();
    let spill = spill.map(|dir| Spill::open(dir, args.cache_dir_size));
    let spill = spill.transpose()?.map(Arc::new);
    let listener = TcpListener::bind((host, port))
        .with_context(|| format!("cannot listen at {host}, port {port}"))?;
    let served = models(args, spill, &state)?;
    served.watch(&state);
    let mut routes = server::routes();
    routes.extend(server::api(&served));
    let greeting = greeting(&listener, state.auth(), args)?;
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
            let ended = server::run(listener, state, routes, &shutdown, || out::note(&greeting));
            stopped.store(true, std::sync::atomic::Ordering::SeqCst);
            ended
        })
    });
    Ok(ended?)
}

/// The models that are named, or with `--on-demand` the first of them and all others of this machine.
fn models(args: &ServeArgs, spill: Option<Arc<Spill>>, state: &State) -> Result<Arc<Served>> {
    if args.model.len() > 1 && !args.named_adapter.is_empty() && !args.on_demand {
        return Err(usage(
            "--named-adapter does not say beside which of the models",
            "load it with POST /v1/adapters, which names the model",
        ));
    }
    let named = shelf::named(args)?;
    let shelf = Shelf::new(args, spill, state.clock(), &named);
    if !args.on_demand {
        let models = shelf
            .load_all(named)?
            .into_iter()
            .map(|loaded| loaded.model);
        let served = Served::new(models.collect(), args.strict);
        state.set_models(served.ids());
        return Ok(served);
    }
    let first = named
        .into_iter()
        .next()
        .map(|placed| shelf.load_first(placed));
    let first = first.into_iter().collect::<Result<_>>()?;
    let on = OnDemand {
        loader: Arc::new(shelf),
        keep_alive: args.keep_alive,
        patience: PATIENCE,
    };
    Ok(Served::on_demand(state, first, on, args.strict)?)
}

/// Where to listen: what was typed, else puna.toml's, else this machine's own address.
fn address(args: &ServeArgs) -> Result<(IpAddr, u16)> {
    let host = match (args.host, config::get().serve("host")) {
        (Some(host), _) => host,
        (None, Some(host)) => host.parse().map_err(|_| {
            let what = format!("puna.toml: serve.host {host:?} is no address");
            failure(Code::Failed, what, "127.0.0.1, or 0.0.0.0 for all")
        })?,
        (None, None) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let port = config::get().serve("port");
    let port = args
        .port
        .or_else(|| port.and_then(|port| port.parse().ok()));
    Ok((host, port.unwrap_or(PORT)))
}

fn settings(args: &ServeArgs, address: IpAddr) -> Result<Settings> {
    let (guard, limits) = (&args.guard, &args.limits);
    let clock = Clock::System;
    let api_keys = match &guard.api_key_file {
        Some(path) => server::read_file(path, clock.now())?,
        None => Vec::new(),
    };
    Ok(Settings {
        address,
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
        spans: args.otlp.as_deref().map(exporter).transpose()?,
        access_log: (!limits.no_access_log).then(|| Arc::new(out::note) as server::Sink),
        terminate: true,
        ..Settings::default()
    })
}

/// Sends traces to a collector.
fn exporter(url: &str) -> Result<server::Exporter> {
    let poster = hub::Poster::new(url, "/v1/traces").map_err(|error| {
        usage(
            format!("--otlp {error}"),
            "the address of an OTLP/HTTP collector: http://127.0.0.1:4318",
        )
    })?;
    Ok(Arc::new(move |body| poster.json(body)))
}

fn greeting(listener: &TcpListener, auth: Auth, args: &ServeArgs) -> Result<String> {
    let scheme = if args.guard.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    let who = match auth {
        Auth::Keys => "API keys needed",
        Auth::Open => "no API key needed",
    };
    let address = listener.local_addr()?;
    Ok(format!("listening at {scheme}://{address} ({who})"))
}
