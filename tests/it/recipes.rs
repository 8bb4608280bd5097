//! The recipes of `docs/executors/`, run as their pages have them: a chat completion endpoint, played by a small server, and an agent.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use gix::bstr::ByteSlice as _;
use serde_json::{Value, json};

use super::executor::{log, nothing_left, ready, record, refused, repo};
use super::support::{EXECUTOR, NOTE, PIPELINE, Repo};

const KEY: &str = "sk-test-5f0c\"41e7\\b2d9";
const MODEL: &str = "example-model";
const CHAT: &str = "docs/executors/chat_completion.md";
const AGENT: &str = "docs/executors/agent_cli.md";

/// The JSON configurations that a page has, in order.
fn configurations(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    text.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Puts an executor of this repository, and a configuration, in place.
fn install(repo: &Repo, script: &str, configuration: &str) {
    let path = format!("control/executors/{script}");
    repo.write(&path, std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).unwrap());
    repo.write(EXECUTOR, configuration);
}

/// The value is in no object, no file of the repository and its surroundings, and nothing that was printed.
#[track_caller]
fn nowhere(repo: &Repo, printed: &[&str], value: &str) {
    let escaped = json!(value).to_string();
    let forms = [value.as_bytes(), escaped.trim_matches('"').as_bytes()];
    let holds = |bytes: &[u8]| forms.iter().any(|form| bytes.find(form).is_some());
    let objects = repo.command("git").args(["cat-file", "--batch-all-objects", "--batch"]).output().unwrap().stdout;
    assert!(objects.len() > 5_000 && !holds(&objects), "an object holds it");
    let mut folders = vec![repo.outside().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert!(!holds(&std::fs::read(&path).unwrap()), "{} holds it", path.display());
            }
        }
    }
    assert!(printed.iter().all(|text| !holds(text.as_bytes())), "{printed:?}");
}

/// What the endpoint does with a request.
#[derive(Clone)]
enum Reply {
    /// Sends this and closes.
    Send(Vec<u8>),
    /// Sends this and then nothing, until the other side gives up.
    Stall(Vec<u8>),
    /// Sends this and then a byte now and then, until the other side gives up.
    Drip(Vec<u8>),
}

/// An endpoint on loopback that gives its replies in order, the last one for ever.
struct Endpoint {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    fn new(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                serve(stream.unwrap(), &replies[number.min(replies.len() - 1)], &seen);
            }
        });
        Self { port, requests, stop, thread: Some(thread) }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}/v1/chat/completions", self.port)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        self.thread.take().unwrap().join().ok();
    }
}

fn serve(mut stream: TcpStream, reply: &Reply, seen: &Mutex<Vec<String>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let whole = |request: &[u8]| {
        let text = String::from_utf8_lossy(request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
        body.len() >= length
    };
    // What begins so wants to speak TLS, which nobody here does.
    while !whole(&request) && request.first() != Some(&0x16) {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => request.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    seen.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
    let (Reply::Send(bytes) | Reply::Stall(bytes) | Reply::Drip(bytes)) = reply;
    // Whoever does not want to hear it, does not.
    stream.write_all(bytes).ok();
    match reply {
        Reply::Send(_) => {}
        Reply::Stall(_) => while matches!(stream.read(&mut buffer), Ok(1..)) {},
        Reply::Drip(_) => {
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A completion as an endpoint gives it.
fn completion(content: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "example-model-2026", "system_fingerprint": null,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content, "refusal": null, "annotations": []},
            "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    })
}

fn good(content: &str) -> Reply {
    said(&completion(content))
}

fn said(answer: &Value) -> Reply {
    Reply::Send(http("200 OK", "", answer.to_string().as_bytes()))
}

/// The completion with one member changed.
fn altered(pointer: &str, value: Value) -> Reply {
    let mut answer = completion("made");
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let members = answer.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => drop(members.remove(name)),
        value => drop(members.insert(name.to_owned(), value)),
    }
    said(&answer)
}

/// A tiny pipeline whose executor is the chat recipe, with the endpoint, and with short times.
fn chat(endpoint: &str) -> Repo {
    let repo = repo();
    install(&repo, "gen_chat.py", &configurations(CHAT)[0]);
    repo.set(EXECUTOR, "/env", json!({"CBIA_CHAT_REQUEST_S": "20", "CBIA_CHAT_ATTEMPTS": "2", "CBIA_CHAT_WAIT_S": "2"}));
    repo.with("CBIA_CHAT_ENDPOINT", Some(endpoint)).with("CBIA_CHAT_MODEL", Some(MODEL)).with("CBIA_CHAT_KEY", Some(KEY))
}

/// Runs, and asserts that the executor failed with this one error line, that nothing was stored, and that the key stands nowhere.
#[track_caller]
fn fails(name: &str, repo: &Repo, error: &str) {
    let ran = refused(repo, &["executor-failed"]);
    let lines: Vec<&str> = ran.stderr.lines().filter(|line| line.contains("error: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains(&format!("error: {error}")), "{name}: wanted {error}, got {}", ran.stderr);
    assert!(log(repo).contains(&format!("error: {error}")), "{name}");
    nowhere(repo, &[&ran.stdout, &ran.stderr], KEY);
}

#[test]
fn every_configuration_of_the_chat_page_works_and_asks_once() {
    if !ready() {
        return;
    }
    let pages = configurations(CHAT);
    assert_eq!(pages.len(), 2);
    for (position, text) in pages.iter().enumerate() {
        let endpoint = Endpoint::new(vec![good("Brief, and by a model.")]);
        let repo = chat(&endpoint.address());
        repo.write(EXECUTOR, text.replace("https://api.example.com/v1/chat/completions", &endpoint.address()));
        let ran = repo.cbia(["run", "--json"]).ok();
        assert_eq!(ran.gen_status(), "executed");
        assert_eq!(repo.read(NOTE), "Brief, and by a model.\n");
        let report: Value = serde_json::from_str(&repo.read("execution/gen/executor.report.json")).unwrap();
        let digest = git_cbia::document::digest::Digest::of(MODEL.as_bytes());
        // A value that was passed on is kept nowhere; one that was given is part of the key.
        let model = if position == 0 { format!("sha256:{digest}") } else { MODEL.to_owned() };
        assert_eq!(report["tool_versions"], json!({"gen_chat": "1", "model": model}));
        assert!(record(&repo)["executor"]["level"].as_str().unwrap().contains("landlock:"));
        assert_eq!(repo.run(), "replayed");
        assert_eq!(endpoint.requests().len(), 1, "a replay asks nobody");
        nowhere(&repo, &[&ran.stdout, &ran.stderr], KEY);
        nothing_left(&repo);
    }
}

#[test]
fn what_is_asked_is_a_function_of_the_state() {
    if !ready() {
        return;
    }
    let endpoint = Endpoint::new(vec![good("made\n")]);
    let repo = chat(&endpoint.address());
    repo.set("control/objectives.json", "/0/constraints", json!({"words": 3}));
    repo.cbia(["run", "--json", "--repeat", "2"]).ok();
    let requests = endpoint.requests();
    assert!(requests.len() == 2 && requests[0] == requests[1], "{requests:#?}");
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
    assert!(head.lines().any(|line| line == format!("Authorization: Bearer {KEY}")), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    let user = "File: out/note.txt\n\nObjective O-1:\n<<<\nA note.\n>>>\n\nConstraints:\n<<<\n{\n  \"words\": 3\n}\n>>>\n\n\
        Authority rule (docs/rule.md):\n<<<\nBe brief.\n>>>\n\nTemplate (control/templates/note.txt.j2):\n<<<\n\
        {{ authorities.rule.text }}words: {{ inputs['data/words.txt'] }}\n>>>\n";
    let system = body["messages"][0]["content"].clone();
    assert!(system.as_str().unwrap().contains("nothing else"));
    assert_eq!(
        body,
        json!({"model": MODEL, "stream": false, "temperature": 0, "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": user}]})
    );
}

#[test]
fn a_busy_endpoint_is_asked_again_and_no_key_is_sent_where_none_is_passed() {
    if !ready() {
        return;
    }
    let busy = |status: &str, header: &str| Reply::Send(http(status, header, b"{}"));
    let cases = [
        busy("429 Too Many Requests", "Retry-After: 0\r\n"),
        busy("500 Oops", "Retry-After: 0\r\n"),
        busy("503 Busy", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n"),
        busy("503 Busy", ""),
        Reply::Send(Vec::new()),
    ];
    for reply in cases {
        let endpoint = Endpoint::new(vec![reply, good("{\"made\": true}")]);
        let repo = chat(&endpoint.address().replace("127.0.0.1", "localhost"));
        repo.set(EXECUTOR, "/sandbox/pass_env", json!(["CBIA_CHAT_ENDPOINT", "CBIA_CHAT_MODEL"]));
        repo.set(PIPELINE, "/gen/artifacts/0/path", json!("out/note.json"));
        assert_eq!(repo.run(), "executed");
        assert_eq!(repo.read("out/note.json"), "{\"made\": true}\n");
        let requests = endpoint.requests();
        assert!(requests.len() == 2 && !requests[1].contains("Authorization"), "{requests:?}");
    }
}

fn raw(bytes: &str) -> Reply {
    Reply::Send(bytes.as_bytes().to_vec())
}

/// An answer's name, what is answered, the error, and how many requests there are.
type Case<'a> = (&'a str, Reply, &'a str, usize);

#[track_caller]
fn all_fail(cases: Vec<Case<'_>>) {
    for (name, reply, error, requests) in cases {
        let endpoint = Endpoint::new(vec![reply.clone()]);
        let repo = chat(&endpoint.address());
        if matches!(reply, Reply::Stall(_) | Reply::Drip(_)) && error.contains("within the time") {
            repo.set(EXECUTOR, "/env/CBIA_CHAT_REQUEST_S", json!("1"));
        }
        fails(name, &repo, &format!("out/note.txt: {error}"));
        assert_eq!(endpoint.requests().len(), requests, "{name}");
    }
}

#[test]
fn every_failure_of_the_exchange_is_refused_with_its_reason() {
    if !ready() {
        return;
    }
    let status = |status: &str, header: &str| {
        Reply::Send(http(status, header, json!({"error": {"message": format!("Wrong key {KEY}")}}).to_string().as_bytes()))
    };
    let text = completion("made").to_string();
    let chunks = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let endless = [chunks.as_bytes(), &[b"1000000\r\n".as_slice(), &vec![b' '; 0x100_0000], b"\r\n"].concat().repeat(2)].concat();
    let begun = http("200 OK", "", &vec![b' '; 1000])[..120].to_vec();
    let elsewhere = Endpoint::new(vec![good("stolen")]);
    let redirect = format!("Location: {}\r\n", elsewhere.address());
    all_fail(vec![
        ("400", status("400 Bad Request", ""), "the endpoint answered with status 400", 1),
        ("401", status("401 Unauthorized", ""), "the endpoint answered with status 401: the key of CBIA_CHAT_KEY", 1),
        ("204", raw("HTTP/1.1 204 No Content\r\n\r\n"), "the endpoint answered with status 204", 1),
        ("500", status("500 Oops", "Retry-After: 0\r\n"), "the endpoint answered with status 500 (asked 2 times)", 2),
        ("429", status("429 Slow", "Retry-After: 0\r\n"), "the endpoint answered with status 429 (asked 2 times)", 2),
        ("patience", status("429 Slow", "Retry-After: 3\r\n"), "the endpoint answered with status 429, and asks for 3 s", 1),
        ("redirect", status("307 Elsewhere", &redirect), "the endpoint redirects (status 307), which is refused", 1),
        ("a moved page", status("301 Moved", &redirect), "the endpoint redirects (status 301), which is refused", 1),
        ("no HTTP", raw("garbage\r\n\r\n"), "the answer is not HTTP", 1),
        ("nothing", raw(""), "the endpoint broke the connection off without an answer (asked 2 times)", 2),
        ("stalled", Reply::Stall(Vec::new()), "no answer within the time: CBIA_CHAT_REQUEST_S is 1", 1),
        ("stalled in the body", Reply::Stall(begun.clone()), "no answer within the time", 1),
        ("slow head", Reply::Drip(b"HTTP/1.1 200 OK\r\nX: ".to_vec()), "no answer within the time", 1),
        ("slow body", Reply::Drip(begun.clone()), "no answer within the time", 1),
        ("truncated", Reply::Send(begun), "the answer was cut off", 1),
        ("truncated chunks", raw(&format!("{chunks}400\r\n{{")), "the answer was cut off", 1),
        (
            "no length",
            raw(&format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{text}")),
            "the answer does not say",
            1,
        ),
        (
            "huge",
            Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16777217\r\n\r\n".to_vec()),
            "the answer is larger than 16777216 bytes",
            1,
        ),
        ("endless", Reply::Stall(endless), "the answer is larger than 16777216 bytes", 1),
        (
            "a page",
            raw("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}"),
            "the answer's content type is",
            1,
        ),
        ("compressed", Reply::Send(http("200 OK", "Content-Encoding: gzip\r\n", b"{}")), "the answer is compressed", 1),
    ]);
    assert!(elsewhere.requests().is_empty(), "a redirect was followed");
}

#[test]
fn every_wrong_answer_is_refused_with_its_reason() {
    if !ready() {
        return;
    }
    let body = |text: &str| Reply::Send(http("200 OK", "", text.as_bytes()));
    let text = completion("made").to_string();
    let escaped_key = KEY.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect::<String>();
    all_fail(vec![
        ("no JSON", body("{"), "the answer is not strict JSON", 1),
        ("no UTF-8", Reply::Send(http("200 OK", "", b"\"\xff\"")), "the answer is not strict JSON", 1),
        ("deep", body(&"[".repeat(100_000)), "the answer is not strict JSON", 1),
        ("NaN", body(&text.replace("\"created\":1", "\"created\":NaN")), "the answer is not strict JSON", 1),
        ("duplicate", body(&text.replace("\"created\":1", "\"created\":1,\"created\":1")), "the answer is not strict JSON", 1),
        ("two documents", body(&format!("{text}{text}")), "the answer is not strict JSON", 1),
        ("no object", body("[]"), "the answer is not an object", 1),
        ("no choices", altered("/choices", Value::Null), "the answer has no choices", 1),
        ("no id", altered("/id", Value::Null), "the answer has no id", 1),
        ("one more", altered("/surprise", json!(1)), "the answer has a member that is not expected: surprise", 1),
        ("a stream", altered("/object", json!("chat.completion.chunk")), "the answer is no chat completion", 1),
        ("no choice", altered("/choices", json!([])), "the answer does not have exactly one choice", 1),
        (
            "two choices",
            altered("/choices", json!([completion("a")["choices"][0], completion("b")["choices"][0]])),
            "the answer does not have exactly one choice",
            1,
        ),
        ("no message", altered("/choices/0/message", Value::Null), "the answer's choice has no message", 1),
        ("no reason", altered("/choices/0/finish_reason", Value::Null), "the answer's choice has no finish_reason", 1),
        ("cut short", altered("/choices/0/finish_reason", json!("length")), "the answer was cut off at the model's limit", 1),
        ("no stop", altered("/choices/0/finish_reason", json!({})), "the answer is not finished", 1),
        ("another role", altered("/choices/0/message/role", json!("user")), "the answer is not the assistant's", 1),
        ("another index", altered("/choices/0/index", json!(1)), "the answer is not the assistant's first choice", 1),
        ("refusal", altered("/choices/0/message/refusal", json!("No.")), "the answer's message has refusal", 1),
        ("tools", altered("/choices/0/message/tool_calls", json!([{}])), "the answer's message has tool_calls", 1),
        ("no content", altered("/choices/0/message/content", Value::Null), "the answer's message has no content", 1),
        ("parts", altered("/choices/0/message/content", json!([{"type": "text", "text": "x"}])), "the answer is empty", 1),
        ("empty", good(""), "the answer is empty", 1),
        ("blank", good(" \n"), "the answer is empty", 1),
        ("a fence", good("\n```text\nmade\n```"), "the answer begins with a code fence", 1),
        ("no Unicode", body(&text.replace("\"made\"", "\"\\ud800\"")), "the answer's content is not valid Unicode", 1),
        ("the key", good(&format!("Here it is: {KEY}")), "the answer holds the value of CBIA_CHAT_KEY", 1),
        ("the key, raw", Reply::Send(http("200 OK", "", KEY.as_bytes())), "the answer holds the value of CBIA_CHAT_KEY", 1),
        (
            "the key in other words",
            body(&text.replace("chatcmpl-1", &escaped_key)),
            "the answer holds the value of CBIA_CHAT_KEY",
            1,
        ),
        ("the key as a name", altered(&format!("/{KEY}"), json!(1)), "the answer holds the value of CBIA_CHAT_KEY", 1),
    ]);

    // The artifact is to be JSON.
    let inside = format!("{{\"a\": \"{escaped_key}\"}}");
    for (content, error) in [
        ("made", "the answer's content is not strict JSON"),
        ("{\"a\": 1, \"a\": 1}", "the answer's content is not strict JSON"),
        ("{\"a\": Infinity}", "the answer's content is not strict JSON"),
        ("```json\n{}\n```", "the answer begins with a code fence"),
        (inside.as_str(), "the answer holds the value of CBIA_CHAT_KEY"),
    ] {
        let endpoint = Endpoint::new(vec![good(content)]);
        let repo = chat(&endpoint.address());
        repo.set(PIPELINE, "/gen/artifacts/0/path", json!("out/note.json"));
        fails(content, &repo, &format!("out/note.json: {error}"));
    }
}

#[test]
fn nothing_is_sent_where_the_settings_or_the_artifacts_are_wrong() {
    if !ready() {
        return;
    }
    let endpoint = Endpoint::new(vec![good("made")]);
    let two_objectives = |repo: &Repo| {
        let mut objectives: Value = serde_json::from_str(&repo.read("control/objectives.json")).unwrap();
        let mut second = objectives[0].clone();
        second["id"] = json!("O-2");
        objectives.as_array_mut().unwrap().push(second);
        repo.write_json("control/objectives.json", &objectives);
        repo.set(PIPELINE, "/gen/artifacts/0/objectives", json!(["O-1", "O-2"]));
    };
    let two_artifacts = |repo: &Repo| {
        let mut pipeline: Value = serde_json::from_str(&repo.read(PIPELINE)).unwrap();
        let mut second = pipeline["gen"]["artifacts"][0].clone();
        second["path"] = json!("out/other.txt");
        pipeline["gen"]["artifacts"].as_array_mut().unwrap().push(second);
        repo.write_json(PIPELINE, &pipeline);
    };
    type Change<'a> = &'a dyn Fn(&Repo);
    let binary: Change<'_> = &|repo| repo.write("control/templates/note.txt.j2", b"\xff");
    let cases: [(&str, Change<'_>, &str); 6] = [
        ("network", &|repo| repo.set(EXECUTOR, "/sandbox/network", json!(false)), "no network is granted to this executor"),
        ("objectives", &two_objectives, "out/note.txt: it has 2 objectives; this executor makes one artifact per objective"),
        ("artifacts", &two_artifacts, "out/other.txt: its objective O-1 is that of out/note.txt too"),
        ("template", binary, "out/note.txt: control/templates/note.txt.j2 is not UTF-8 text"),
        (
            "number",
            &|repo| repo.set(EXECUTOR, "/env/CBIA_CHAT_ATTEMPTS", json!("0")),
            "CBIA_CHAT_ATTEMPTS must be a whole number",
        ),
        ("model", &|repo| repo.set(EXECUTOR, "/sandbox/pass_env", json!(["CBIA_CHAT_ENDPOINT"])), "CBIA_CHAT_MODEL is not set"),
    ];
    for (name, change, error) in cases {
        let repo = chat(&endpoint.address());
        change(&repo);
        fails(name, &repo, error);
    }
    let variables = [
        ("CBIA_CHAT_KEY", "short", "CBIA_CHAT_KEY must be at least 8"),
        ("CBIA_CHAT_KEY", "two words\r\nX-Header: 1", "CBIA_CHAT_KEY must be at least 8"),
        ("CBIA_CHAT_ENDPOINT", "http://192.0.2.1/v1/chat/completions", "CBIA_CHAT_ENDPOINT must begin with https://"),
        ("CBIA_CHAT_ENDPOINT", "http://127.0.0.1.example.com/v1", "CBIA_CHAT_ENDPOINT must begin with https://"),
        ("CBIA_CHAT_ENDPOINT", "ftp://127.0.0.1/v1", "CBIA_CHAT_ENDPOINT must be an address"),
        ("CBIA_CHAT_ENDPOINT", "http://ada:pass-word@127.0.0.1/v1", "CBIA_CHAT_ENDPOINT must hold no user"),
        ("CBIA_CHAT_ENDPOINT", "http://127.0.0.1:99999/v1", "CBIA_CHAT_ENDPOINT is no address"),
        ("CBIA_CHAT_ENDPOINT", "http://127.0.0.1/a b", "CBIA_CHAT_ENDPOINT must be an address in printable ASCII"),
    ];
    for (name, value, error) in variables {
        let repo = chat(&endpoint.address()).with(name, Some(value));
        fails(value, &repo, error);
        if value.len() >= 8 {
            nowhere(&repo, &[], value);
        }
    }
    assert!(endpoint.requests().is_empty());

    // Nobody listens, and somebody who speaks no TLS.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fails(
        "closed",
        &chat(&format!("http://{closed}/")),
        "out/note.txt: the endpoint cannot be reached: Connection refused (asked 2",
    );
    let plain = Endpoint::new(vec![Reply::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())]);
    fails(
        "TLS",
        &chat(&plain.address().replace("http:", "https:")),
        "out/note.txt: no TLS connection to the endpoint can be made",
    );
    assert!(plain.requests().iter().all(|request| !request.contains("Bearer")));
}

/// The agent recipe, with an agent that is a script.
fn agent(configuration: &str, body: &str) -> Repo {
    let repo = repo().with("AGENT_API_KEY", Some(KEY));
    let place = repo.outside().join("agent");
    install(&repo, "gen_agent.py", &configuration.replace("/opt/agent", place.to_str().unwrap()));
    std::fs::create_dir_all(place.join("bin")).unwrap();
    let program = place.join("bin/agent");
    std::fs::write(
        &program,
        format!("#!/usr/bin/python3\nimport os, sys\ndef write(path, text):\n    open(path, 'w').write(text)\n{body}\n"),
    )
    .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    repo
}

#[test]
fn every_configuration_of_the_agent_page_works() {
    if !ready() {
        return;
    }
    let pages = configurations(AGENT);
    assert_eq!(pages.len(), 2);
    for (position, text) in pages.iter().enumerate() {
        let body = [
            "assert sys.argv[1:] == ['--print'], sys.argv\nprompt = sys.stdin.read()",
            "assert sys.argv[1] == '--prompt-file' and sys.stdin.read() == ''\nprompt = open(sys.argv[2]).read()",
        ][position];
        let body = format!(
            "{body}\nassert 'AGENT_API_KEY' in os.environ and os.listdir(os.environ['HOME']) == []\n\
             write(os.environ['HOME'] + '/settings', 'x')\nwrite(os.environ['TMPDIR'] + '/x', 'x')\n\
             assert open('docs/rule.md').read() == 'Be brief.\\n'\nprint('working')\nwrite('out/note.txt', prompt)"
        );
        let repo = agent(text, &body);
        let ran = repo.cbia(["run", "--json", "--repeat", "2"]).ok();
        assert_eq!(ran.gen_status(), "executed");
        let prompt = repo.read(NOTE);
        let wanted =
            "File: out/note.txt\nTemplate: control/templates/note.txt.j2\nObjective O-1: A note.\nAuthority rule: docs/rule.md\n";
        assert!(prompt.ends_with(wanted), "{prompt}");
        let report: Value = serde_json::from_str(&repo.read("execution/gen/executor.report.json")).unwrap();
        assert_eq!(report["tool_versions"], json!({"gen_agent": "1"}));
        let request: Value = serde_json::from_str(&repo.read("execution/gen/request.json")).unwrap();
        let programs = request["pre_gen_capsule"]["gen_executor"]["programs"].as_array().unwrap();
        assert_eq!(programs.len(), 3, "the agent's program is part of the executor's identity");
        assert!(log(&repo).contains("working"));
        assert_eq!(repo.run(), "replayed");
        nowhere(&repo, &[&ran.stdout, &ran.stderr], KEY);
        nothing_left(&repo);
    }
}

#[test]
fn what_an_agent_does_beside_its_task_is_refused() {
    if !ready() {
        return;
    }
    let made = "write('out/note.txt', 'made')";
    let many = format!("{made}\nfor i in range(12): write('out/%02d' % i, '')");
    let cases = [
        ("status", format!("{made}\nsys.exit(3)"), "the agent ended with status 3"),
        ("signal", format!("{made}\nos.kill(os.getpid(), 9)"), "the agent ended with signal 9"),
        ("nothing", String::new(), "the agent did not write: out/note.txt"),
        ("empty", "write('out/note.txt', '')".to_owned(), "the agent left empty: out/note.txt"),
        ("undeclared", format!("{made}\nwrite('notes.md', '')"), "the agent left what is not declared: notes.md"),
        (
            "its own folder",
            format!("{made}\nos.mkdir('.agent')\nwrite('.agent/log', '')"),
            "the agent left what is not declared: .agent/log",
        ),
        ("a folder link", format!("{made}\nos.symlink('out', 'link')"), "the agent left what is not declared: link"),
        (
            "a report",
            format!("{made}\nwrite('execution/gen/outputs.json', '')"),
            "the agent left what is not declared: execution/gen/outputs",
        ),
        ("odd", format!("{made}\nwrite('a\\nb', '')"), "the agent left what is not declared: a\\nb"),
        (
            "many",
            many,
            "the agent left what is not declared: out/00, out/01, out/02, out/03, out/04, out/05, out/06, out/07, out/08, out/09 and 2 more",
        ),
        (
            "a link",
            "os.symlink('../docs/rule.md', 'out/note.txt')".to_owned(),
            "the agent left what is no regular file: out/note.txt",
        ),
        ("an input", format!("{made}\nwrite('data/words.txt', 'x')"), "the agent changed its inputs: data/words.txt"),
        ("no input", format!("{made}\nos.unlink('data/words.txt')"), "the agent changed its inputs: data/words.txt"),
    ];
    let text = &configurations(AGENT)[0];
    for (name, body, error) in cases {
        fails(name, &agent(text, &body), error);
    }
    let repo = agent(text, made);
    repo.set(EXECUTOR, "/sandbox/read", Value::Null);
    fails("not to be read", &repo, "the agent ");
    repo.set(EXECUTOR, "/command", json!(["/usr/bin/python3", "-I", "control/executors/gen_agent.py"]));
    let ran = repo.cbia(["run", "--json"]).exits(5);
    assert!(ran.stderr.contains("error: no agent is named"), "{}", ran.stderr);
}
