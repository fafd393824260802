//! The database: what was acknowledged stays, what is damaged is refused and left alone, what was
//! changed is found out.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use server::{Error, Event, Key, NewKey, Quotas, Scope, Store};

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("deep/er/server.sqlite");
    (folder, path)
}

fn key(name: &str) -> Key {
    let new = NewKey {
        name: name.into(),
        scopes: vec![Scope::Inference],
        quotas: Quotas::default(),
        expires: None,
    };
    new.make(1).expect("a good name").0
}

fn event(n: u64) -> Event {
    Event {
        at: 1_700_000_000_000 + n,
        request: format!("req-{n}"),
        key: "key-1".into(),
        route: "/v1/chat/completions".into(),
        model: "m".into(),
        prompt_tokens: n,
        completion_tokens: 2,
        status: 200,
        billed: true,
        counted: true,
        ..Event::default()
    }
}

#[test]
fn keys_are_kept_without_their_secrets() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let new = NewKey {
        name: "Billing 7".into(),
        scopes: vec![Scope::Inference, Scope::Admin],
        quotas: Quotas {
            rpm: Some(1),
            tpm: Some(u32::MAX),
            monthly_tokens: Some(1 << 40),
        },
        expires: Some(99),
    };
    let (made, secret) = new.make(7).unwrap();
    assert!(secret.len() == 5 + 64 && secret.starts_with("puna-"));
    store.add_key(&made).unwrap();
    assert_eq!(
        Store::open(&path).unwrap().keys().unwrap(),
        std::slice::from_ref(&made)
    );
    let taken = store.add_key(&key("Billing 7")).unwrap_err();
    assert!(taken.to_string().contains("another key has it"), "{taken}");
    let revoked = store.revoke_key("Billing 7", 50).unwrap();
    assert_eq!(
        (revoked.id.as_str(), revoked.revoked),
        (&*made.id, Some(50))
    );
    assert!(matches!(
        store.revoke_key(&made.id, 51),
        Err(Error::NoKey(_))
    ));
    store
        .add_key(&key("Billing 7"))
        .expect("the name is free again");
    drop(store);
    let all = std::fs::read(&path).unwrap();
    let secret = secret.as_bytes();
    assert!(!all.windows(secret.len()).any(|w| w == secret));
    for bad in ["", "=1", "a\nb", &"x".repeat(65), "κ"] {
        let new = NewKey {
            name: bad.into(),
            scopes: vec![Scope::Inference],
            quotas: Quotas::default(),
            expires: None,
        };
        assert!(new.make(1).is_err(), "{bad:?}");
    }
}

#[cfg(unix)]
#[test]
fn only_the_owner_reads_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = folder();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut store = Store::open(&path).unwrap();
    store.append(&[event(1)]).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        seen += 1;
    }
    assert_eq!(seen, 3, "the database, its WAL and its index");
}

#[test]
fn usage_adds_up_by_the_hour() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let later = Event {
        at: event(0).at + 3_600_000,
        ..event(5)
    };
    let late_tokens = Event {
        counted: false,
        ..event(7)
    };
    store
        .append(&[event(1), event(2), late_tokens, later])
        .unwrap();
    let all = store.usage(0, u64::MAX).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (
            all[0].requests,
            all[0].prompt_tokens,
            all[0].completion_tokens
        ),
        (3, 15, 8)
    );
    let first = store.usage(event(0).at, event(0).at + 3_600_000).unwrap();
    assert_eq!((first[0].requests, first[0].prompt_tokens), (2, 10));
    assert!(store.usage(0, event(0).at).unwrap().is_empty());
    assert_eq!(store.verify(None).unwrap().rows, 4);
}

#[test]
fn a_changed_log_is_found_out() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let events: Vec<Event> = (1..=20).map(event).collect();
    store.append(&events).unwrap();
    let noted = store.verify(None).unwrap().head;
    store.append(&[event(21)]).unwrap();
    assert_eq!(store.verify(Some(&noted)).unwrap().rows, 21);
    drop(store);
    let original = std::fs::read(&path).unwrap();
    let off = "DROP TRIGGER audit_unchanged; DROP TRIGGER audit_kept;";
    for (change, row) in [
        ("UPDATE audit SET completion_tokens = 1 WHERE seq = 7", 7),
        ("UPDATE audit SET key = 'key-2' WHERE seq = 20", 20),
        ("UPDATE audit SET content = '' WHERE seq = 2", 2),
        (
            "UPDATE audit SET model = 'mx', adapter = '' WHERE seq = 3",
            3,
        ),
        ("DELETE FROM audit WHERE seq = 5", 5),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("UPDATE audit SET seq = 22 WHERE seq = 9", 9),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 21", 21),
    ] {
        std::fs::write(&path, &original).unwrap();
        let db = rusqlite::Connection::open(&path).unwrap();
        assert!(
            db.execute(change, []).is_err(),
            "the triggers stop {change}"
        );
        db.execute_batch(off).unwrap();
        db.execute(change, []).unwrap();
        drop(db);
        match Store::open(&path).unwrap().verify(None) {
            Err(Error::Tampered { row: found, .. }) => assert_eq!(found, row, "{change}"),
            other => panic!("{change}: {other:?}"),
        }
    }
    // A cut end shows only to one who noted a hash that was there.
    std::fs::write(&path, &original).unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch(off).unwrap();
    db.execute("DELETE FROM audit WHERE seq >= 20", []).unwrap();
    drop(db);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.verify(None).unwrap().rows, 19);
    assert!(matches!(
        store.verify(Some(&noted)),
        Err(Error::Tampered { .. })
    ));
}

/// Opens what it should not be able to, and sees that it was left as it is.
fn refused(path: &Path, why: &str) {
    let before = std::fs::read(path).unwrap();
    match Store::open(path) {
        Err(error @ Error::Damaged { .. }) => {
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.hint().is_some());
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{why}: it was opened"),
    }
    assert!(
        std::fs::read(path).unwrap() == before,
        "{why}: the file was changed"
    );
}

#[test]
fn what_is_damaged_is_left_alone() {
    let (_folder, path) = folder();
    let mut store = Store::open(&path).unwrap();
    let events: Vec<Event> = (1..=2000).map(event).collect();
    store.append(&events).unwrap();
    drop(store);
    let sound = std::fs::read(&path).unwrap();

    std::fs::write(&path, "these are my notes\n".repeat(400)).unwrap();
    refused(&path, "not a database");
    std::fs::write(&path, &sound[..sound.len() / 2]).unwrap();
    refused(&path, "cannot be used");
    let mut scribbled = sound.clone();
    let middle = sound.len() / 2;
    scribbled[middle..middle + 6000].fill(0x5a);
    std::fs::write(&path, &scribbled).unwrap();
    refused(&path, "cannot be used");

    std::fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1)")
        .unwrap();
    drop(other);
    refused(&path, "another program's");

    std::fs::write(&path, &sound).unwrap();
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer
        .execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    drop(newer);
    refused(&path, "newer Puna");
}

/// The child of the next test: acknowledges what it has written, a line each.
#[test]
#[ignore = "the next test runs it, and kills it"]
fn child_that_writes() {
    let Some(path) = std::env::var_os("PUNA_TEST_STORE") else {
        return;
    };
    let mut store = Store::open(Path::new(&path)).unwrap();
    let from = store.keys().unwrap().len();
    for n in from.. {
        let key = key(&format!("k{n}"));
        store.add_key(&key).unwrap();
        println!("\nkey {}", key.id);
        if n % 2 == 0 {
            store.revoke_key(&key.id, 7).unwrap();
            println!("\nrevoked {}", key.id);
        }
        store.append(&[event(n as u64), event(n as u64)]).unwrap();
        println!("\nrows 2");
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let (_folder, path) = folder();
    drop(Store::open(&path).unwrap());
    let (mut keys, mut revoked, mut rows) = (Vec::new(), Vec::new(), 0);
    for round in 0..50 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes", "--ignored", "--nocapture"])
            .env("PUNA_TEST_STORE", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = 1 + round % 7;
        let mut note = |line: &str| {
            if let Some(id) = line.strip_prefix("key ") {
                keys.push(id.to_owned());
                rows += 1;
            }
            if let Some(id) = line.strip_prefix("revoked ") {
                revoked.push(id.to_owned());
                rows += 1;
            }
            rows += if line == "rows 2" { 2 } else { 0 };
            line.starts_with("key ")
        };
        while let Some(Ok(line)) = lines.next() {
            left -= u32::from(note(&line));
            if left == 0 {
                break;
            }
        }
        // At some point of the next write.
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 137));
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line);
        }
        child.wait().unwrap();
        let store = Store::open(&path).unwrap();
        let kept = store.keys().unwrap();
        let is = |id: &String, gone: bool| {
            let found = kept.iter().find(|key| key.id == *id);
            found.is_some_and(|key| !gone || key.revoked == Some(7))
        };
        assert!(keys.iter().all(|id| is(id, false)), "round {round}");
        assert!(revoked.iter().all(|id| is(id, true)), "round {round}");
        let sound = store.verify(None).unwrap();
        assert!(
            sound.rows >= rows,
            "round {round}: {} of {rows}",
            sound.rows
        );
        // A batch is there as a whole or not at all.
        let ended = kept.iter().filter(|key| key.revoked.is_some()).count();
        let events = sound.rows as usize - kept.len() - ended;
        assert_eq!(events % 2, 0, "round {round}");
        let usage = store.usage(0, u64::MAX).unwrap();
        let billed: u64 = usage.iter().map(|row| row.requests).sum();
        assert_eq!(billed as usize, events, "round {round}");
    }
    assert!(keys.len() >= 50, "{}", keys.len());
}
