//! What a lookup costs as the remote grows. Nothing here asserts a time; the figures are for `docs/sharing.md`:
//! `CBIA_TEST_PROGRAM=$PWD/target/release cargo test --test it share::curve -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use git_cbia::document::digest::Digest;

use super::super::support::Repo;
use super::server::Server;
use super::{join, somebody, team};

/// A repository in which `git cbia` is the program in the folder that `CBIA_TEST_PROGRAM` names, if it names one: an optimized build, say.
fn measured(repo: Repo) -> Repo {
    #[expect(clippy::disallowed_methods, reason = "a person may ask for another program")]
    let (folder, path) = (std::env::var("CBIA_TEST_PROGRAM"), std::env::var("PATH"));
    match folder {
        Ok(folder) => repo.with("PATH", Some(&format!("{folder}:{}", path.unwrap()))),
        Err(_) => repo,
    }
}

/// Fills a bare repository with the refs of as many runs, two for each, all at one commit, which is cheap to have.
fn fill(bare: &Repo, runs: usize) {
    bare.git(["pack-refs", "--all"]);
    let packed = bare.path().join("packed-refs");
    let text = std::fs::read_to_string(&packed).unwrap();
    let (_, tip) = bare.refs("refs/cbia/runs")[0].clone();
    let mut lines: Vec<String> = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    for number in 0..runs {
        let (state, executor) = (Digest::of(format!("s{number}").as_bytes()), Digest::of(b"e"));
        lines.push(format!("{tip} refs/cbia/runs/{state}/{executor}"));
        lines.push(format!("{tip} refs/cbia/cache/{state}"));
    }
    lines.sort_by(|a, b| a[41..].cmp(&b[41..]));
    std::fs::write(packed, format!("# pack-refs with: peeled fully-peeled sorted \n{}\n", lines.join("\n"))).unwrap();
}

/// The median of five lookups in a clone that knows nothing, beside the median of five runs that ask nobody.
fn lookups(url: &str, server: &Server) -> (Duration, Duration, u64, u64) {
    let (mut asking, mut alone, mut bytes, mut missed) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..5 {
        let bob = measured(somebody("Bob"));
        join(&bob, url);
        server.take();
        let started = Instant::now();
        assert_eq!(bob.run(), "replayed");
        asking.push(started.elapsed());
        bytes = server.take().1;
        bob.remove("out");
        let started = Instant::now();
        assert_eq!(bob.run(), "replayed");
        alone.push(started.elapsed());
        bob.write("data/words.txt", "nobody has run this\n");
        server.take();
        assert_eq!(bob.run(), "executed");
        missed = server.take().1;
    }
    asking.sort();
    alone.sort();
    (asking[2], alone[2], bytes, missed)
}

#[test]
#[ignore = "it measures, and takes minutes"]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn the_lookup_curve() {
    println!("| runs in the remote | a miss, HTTP | a hit, HTTP | a hit, HTTP | a hit, path | push of one run, HTTP |");
    println!("|---|---|---|---|---|---|");
    for runs in [100, 1_000, 10_000, 100_000] {
        let (bare, ada) = team();
        let ada = measured(ada);
        ada.run();
        ada.cbia(["push"]).ok();
        fill(&bare, runs);
        let server = Server::start(&bare);
        let (http, alone, bytes, missed) = lookups(&server.url("team.git"), &server);
        let (path, _, _, _) = lookups(bare.path().to_str().unwrap(), &server);
        ada.git(["remote", "set-url", "team", &server.url("team.git")]);
        ada.write("data/words.txt", "more\n");
        ada.run();
        server.take();
        let started = Instant::now();
        ada.cbia(["push"]).ok();
        let (push, pushed) = (started.elapsed(), server.take().1);
        let ms = |time: Duration| format!("{} ms", time.as_millis());
        println!(
            "| {runs} | {missed} bytes | {bytes} bytes | {} | {} | {}, {pushed} bytes |",
            ms(http.saturating_sub(alone)),
            ms(path.saturating_sub(alone)),
            ms(push)
        );
    }
}
