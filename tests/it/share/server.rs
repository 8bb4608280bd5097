//! A git server over smart HTTP: `git http-backend` behind as much of HTTP as git speaks, which counts what passes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::support::Repo;

/// A running server; it ends with the tests.
pub struct Server {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    pushes: Arc<AtomicU64>,
}

impl Server {
    /// Serves every repository in the folder around `repo`, to whoever asks, for writing too.
    pub fn start(repo: &Repo) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            bytes: Arc::default(),
            requests: Arc::default(),
            pushes: Arc::default(),
        };
        let (bytes, requests, pushes) = (server.bytes.clone(), server.requests.clone(), server.pushes.clone());
        let repo = repo.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (repo, bytes) = (repo.clone(), bytes.clone());
                let (requests, pushes) = (requests.clone(), pushes.clone());
                std::thread::spawn(move || {
                    requests.fetch_add(1, Ordering::SeqCst);
                    // A client that was killed breaks its connection.
                    if let Ok((passed, push)) = answer(&repo, &stream.unwrap()) {
                        bytes.fetch_add(passed, Ordering::SeqCst);
                        pushes.fetch_add(u64::from(push), Ordering::SeqCst);
                    }
                });
            }
        });
        server
    }

    /// The address of a repository.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Requests, bytes both ways, and pushes, since this was last asked.
    pub fn take(&self) -> (u64, u64, u64) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::SeqCst);
        (take(&self.requests), take(&self.bytes), take(&self.pushes))
    }
}

/// The body of a request that is sent in chunks.
fn chunks(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
        reader.take(length).read_to_end(&mut body)?;
        reader.read_line(&mut String::new())?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// Answers one request: how many bytes passed, and whether it was a push.
fn answer(repo: &Repo, mut stream: &TcpStream) -> std::io::Result<(u64, bool)> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut passed = first.len() as u64;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut command = repo.command("git");
    command.arg("http-backend").current_dir(repo.outside());
    command.env("GIT_PROJECT_ROOT", repo.outside()).env("GIT_HTTP_EXPORT_ALL", "1").env("REMOTE_USER", "anybody");
    command.env("REMOTE_ADDR", "127.0.0.1").env("REQUEST_METHOD", &method).env("PATH_INFO", path).env("QUERY_STRING", query);
    let (mut length, mut chunked) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        passed += line.len() as u64;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "content-type" => drop(command.env("CONTENT_TYPE", value)),
            "content-encoding" => drop(command.env("HTTP_CONTENT_ENCODING", value)),
            "git-protocol" => drop(command.env("HTTP_GIT_PROTOCOL", value).env("GIT_PROTOCOL", value)),
            "transfer-encoding" => chunked = value == "chunked",
            "expect" => stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?,
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        body = chunks(&mut reader)?;
    } else {
        reader.take(length).read_to_end(&mut body)?;
    }
    passed += body.len() as u64;
    command.env("CONTENT_LENGTH", body.len().to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&body)));
    let mut answer = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut answer)?;
    writer.join().unwrap();
    child.wait()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(answer.len());
    let headers = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&answer)?;
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok((passed + (head.len() + answer.len()) as u64, method == "POST" && path.ends_with("git-receive-pack")))
}
