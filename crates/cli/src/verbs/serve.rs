//! `puna serve`: the HTTP server, until Ctrl-C or SIGTERM.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use engine::{Scheduler, SchedulerParams};
use server::{Auth, Clock, Model, Served, Settings, Shutdown, State};

use crate::args::ServeArgs;
use crate::exit::{Code, failure, usage};
use crate::verbs::sampling;
use crate::{config, interrupt, load, memory, out};

/// P-U-N-A on a keypad.
const PORT: u16 = 7862;

pub fn run(args: &ServeArgs) -> Result<()> {
    refuse_unready(args)?;
    let (host, port) = address(args)?;
    let state = State::open(
        settings(args, host)?,
        &super::key::database(args.state.as_ref())?,
    )?;
    let listener = TcpListener::bind((host, port))
        .with_context(|| format!("cannot listen at {host}, port {port}"))?;
    let served = Served::new(models(args, state.clock())?, args.strict);
    state.set_models(served.ids());
    let gauged = served.clone();
    state.set_gauges(move |metrics| gauged.gauge(metrics));
    let mut routes = server::routes();
    routes.extend(server::api(&served));
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
            let ended = server::run(listener, state, routes, &shutdown);
            stopped.store(true, std::sync::atomic::Ordering::SeqCst);
            ended
        })
    });
    Ok(ended?)
}

/// What the contract names and this release does not do yet.
fn refuse_unready(args: &ServeArgs) -> Result<()> {
    match args.cache_dir {
        Some(_) => Err(usage(
            "--cache-dir of serve is not in this release",
            "leave --cache-dir out: cached prefixes are kept in memory",
        )),
        None => Ok(()),
    }
}

/// The models, each on an engine's thread of its own.
fn models(args: &ServeArgs, clock: &Clock) -> Result<Vec<Model>> {
    let typed: Vec<Option<&str>> = match &args.model[..] {
        [] => vec![None],
        some => some.iter().map(|m| Some(m.as_str())).collect(),
    };
    let mut models: Vec<Model> = Vec::new();
    for typed in typed {
        let model = model(typed, args, clock)?;
        if models.iter().any(|m| m.id == model.id) {
            return Err(usage(
                format!("two models are called {}", model.id),
                "name each --model once",
            ));
        }
        models.push(model);
    }
    Ok(models)
}

fn model(typed: Option<&str>, args: &ServeArgs, clock: &Clock) -> Result<Model> {
    let (loaded, tokenizer) = load::weights_and_tokenizer(typed, &args.load)?;
    let lower = &loaded.lower;
    let template = lower.template(None);
    let template = match load::template_of(&loaded.path, &tokenizer, template.as_ref()) {
        Ok(template) => Some(template),
        Err(error) if matches!(error.downcast_ref(), Some(text::Error::NoTemplate)) => None,
        Err(error) => return Err(error),
    };
    let generation = load::generation_config(&loaded, sampling::any_set(&lower.sampling))?;
    let eog = generation.as_ref().map(engine::eog_from_generation_config);
    let eog = eog.transpose()?.unwrap_or_default();
    let sampler = sampling::params(&lower.sampling, generation.as_ref())?;
    let (context, cache) = memory::shared_cache(&loaded.need(loaded.load.ctx), args.parallel)?;
    let params = SchedulerParams {
        cache,
        ..SchedulerParams::new(loaded.cache_type, context, args.parallel)
    };
    let scheduler = Scheduler::start(loaded.weights.clone(), Arc::new(tokenizer), params)?;
    out::note(&format!("{}, context {context} tokens", loaded.name));
    Ok(Model {
        id: loaded.name,
        created: clock.now() / 1000,
        scheduler,
        template,
        sampler,
        eog,
        stop: loaded.lower.stop,
        system: loaded.lower.system,
        turns: loaded.lower.turns,
        adaptation: loaded.adaptation,
    })
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
