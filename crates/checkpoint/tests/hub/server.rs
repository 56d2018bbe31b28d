//! A web server of a few lines on the loopback device, and a hub made of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The commit that every branch of the fake hub means.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// First byte asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |start| start.parse().unwrap())
    }
}

#[derive(Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    pub(crate) cut: Option<usize>,
    /// Silence before the answer.
    pub(crate) delay: Duration,
    /// Sent instead of everything above.
    pub(crate) raw: Option<Vec<u8>>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, body: body.into(), ..Reply::default() }
    }

    pub(crate) fn redirect(to: String) -> Reply {
        Reply::status(302).with("location", to)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// A server that answers until the test ends.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, requests) = (Arc::new(answer), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, requests) = (answer.clone(), requests.clone());
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    requests.lock().unwrap().push(request.clone());
                    // A client that hangs up early is part of the tests.
                    let _ = write(stream, &request, &answer(&request));
                });
            }
        });
        Server { address, log }
    }

    /// Everything asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// `METHOD path` of everything asked so far that contains `part`.
    pub(crate) fn lines(&self, part: &str) -> Vec<String> {
        let line = |r: &Request| format!("{} {}", r.method, r.path);
        self.requests().iter().map(line).filter(|line| line.contains(part)).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream).take(1 << 23);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => {
                let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
                let mut body = vec![0; length];
                reader.read_exact(&mut body).ok()?;
                return Some(Request { method, path, headers, body });
            }
        };
    }
}

fn write(mut stream: TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    std::thread::sleep(reply.delay);
    if let Some(raw) = &reply.raw {
        return stream.write_all(raw);
    }
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.headers.iter().any(|(name, _)| *name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    }
    stream.flush()
}

/// The part of `content` that a request asks for.
pub(crate) fn part(content: &[u8], request: &Request) -> Reply {
    match request.from() {
        0 => Reply::ok(content),
        from if from >= content.len() => Reply::status(416),
        from => Reply { status: 206, ..Reply::ok(&content[from..]) }
            .with("content-range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())),
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Not a git object's name, but as good: any 40 hexadecimal digits.
pub(crate) fn blob_id(content: &[u8]) -> String {
    sha256(content)[..40].to_owned()
}

/// A repository `o/m` as the Hugging Face hub shows it: large files lie on another host.
#[derive(Clone)]
pub(crate) struct Repo {
    pub(crate) files: BTreeMap<&'static str, Vec<u8>>,
}

impl Repo {
    pub(crate) fn tiny() -> Repo {
        let weights: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        Repo {
            files: BTreeMap::from([
                ("README.md", b"# m".to_vec()),
                ("config.json", br#"{"model_type": "llama"}"#.to_vec()),
                ("model.safetensors", weights),
                ("pytorch_model.bin", b"pickle".to_vec()),
                ("tokenizer.json", b"{}".to_vec()),
            ]),
        }
    }

    fn is_large(name: &str) -> bool {
        name.ends_with(".safetensors") || name.ends_with(".bin") || name.ends_with(".gguf")
    }

    /// The answer of the hub; `cdn` is the address of the other host.
    pub(crate) fn hub(&self, request: &Request, cdn: &str) -> Reply {
        if request.path.starts_with("/api/models/o/m/revision/") {
            return Reply::ok(self.listing());
        }
        let prefix = format!("/o/m/resolve/{COMMIT}/");
        let Some((name, content)) = request.path.strip_prefix(&prefix).and_then(|name| self.files.get_key_value(name))
        else {
            return Reply::status(404);
        };
        if Self::is_large(name) {
            return Reply::redirect(format!("{cdn}/{name}?signature=s"))
                .with("x-repo-commit", COMMIT)
                .with("x-linked-etag", format!("\"{}\"", sha256(content)))
                .with("x-linked-size", content.len().to_string());
        }
        part(content, request).with("x-repo-commit", COMMIT).with("etag", format!("\"{}\"", blob_id(content)))
    }

    /// The answer of the other host, whose addresses are signed for GET alone.
    pub(crate) fn cdn(&self, request: &Request) -> Reply {
        let name = request.path.trim_start_matches('/').split('?').next().unwrap();
        match self.files.get(name) {
            Some(content) if request.method == "GET" => part(content, request),
            _ => Reply::status(403),
        }
    }

    fn listing(&self) -> String {
        let entry = |(name, content): (&&str, &Vec<u8>)| {
            let lfs = if Self::is_large(name) {
                format!(
                    r#", "lfs": {{"sha256": "{}", "size": {}, "pointerSize": 135}}"#,
                    sha256(content),
                    content.len()
                )
            } else {
                String::new()
            };
            format!(r#"{{"rfilename": "{name}", "size": {}, "blobId": "{}"{lfs}}}"#, content.len(), blob_id(content))
        };
        let siblings: Vec<String> = self.files.iter().map(entry).collect();
        format!(r#"{{"id": "o/m", "sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(", "))
    }
}
