//! A server that answers each request as a test says, byte by byte if need be.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

/// What a request is answered with.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A whole answer.
    Json(u16, Value),
    /// A stream of events, of which each piece is an HTTP chunk of its own.
    Stream(Vec<Vec<u8>>),
    /// A stream whose connection ends after these pieces, in the middle of the body.
    BrokenStream(Vec<Vec<u8>>),
    /// These bytes and nothing else.
    Raw(Vec<u8>),
}

/// A server on a port of its own. It ends with the test, and never answers two requests at a time.
pub(crate) struct ScriptedServer {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    _thread: JoinHandle<()>,
}

impl ScriptedServer {
    /// Starts to answer with what `script` makes of each request and of its number among all.
    pub(crate) fn start(script: impl Fn(&Request, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request.clone());
                    seen.len() - 1
                };
                // A client may go away early.
                let _ = write(&mut stream, script(&request, number));
            }
        });
        Self { address, requests, _thread: thread }
    }

    /// Starts a server with one model whose every answer is this.
    pub(crate) fn answering(reply: Reply) -> Self {
        Self::start(move |request, _| if request.path == "/v1/models" { models() } else { reply.clone() })
    }

    /// Its address with `path`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What came so far, without the lists of models.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.path != "/v1/models").cloned().collect()
    }
}

/// The list of models.
pub(crate) fn models() -> Reply {
    Reply::Json(200, json!({ "object": "list", "data": [{ "id": "org/tiny", "object": "model" }, { "id": "other" }] }))
}

/// Events as pieces of a stream.
pub(crate) fn events(data: &[Value]) -> Vec<Vec<u8>> {
    data.iter().map(|data| format!("data: {data}\n\n").into_bytes()).collect()
}

/// A chunk of a completion.
pub(crate) fn text(text: &str) -> Value {
    json!({ "choices": [{ "index": 0, "text": text, "finish_reason": null }] })
}

/// The last chunks of a completion or of a chat.
pub(crate) fn ending(reason: &str, prompt_tokens: u64, completion_tokens: u64) -> [Value; 2] {
    [
        json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }),
        json!({ "choices": [], "usage": { "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens } }),
    ]
}

/// A whole stream of a completion.
pub(crate) fn completion(texts: &[&str], prompt_tokens: u64, completion_tokens: u64) -> Vec<Vec<u8>> {
    let mut data: Vec<Value> = texts.iter().map(|part| text(part)).collect();
    data.extend(ending("length", prompt_tokens, completion_tokens));
    let mut pieces = events(&data);
    pieces.push(b"data: [DONE]\n\n".to_vec());
    pieces
}

/// The same bytes in pieces of `length`, which cut lines, events and characters.
pub(crate) fn cut(pieces: &[Vec<u8>], length: usize) -> Vec<Vec<u8>> {
    pieces.concat().chunks(length).map(<[u8]>::to_vec).collect()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { path, authorization, body: serde_json::from_slice(&body).unwrap_or_default() })
}

fn write(stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match reply {
        Reply::Json(status, body) => {
            let body = body.to_string();
            write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        Reply::Stream(pieces) => {
            write_pieces(stream, &pieces)?;
            stream.write_all(b"0\r\n\r\n")
        }
        Reply::BrokenStream(pieces) => write_pieces(stream, &pieces),
        Reply::Raw(bytes) => stream.write_all(&bytes),
    }
}

fn write_pieces(stream: &mut TcpStream, pieces: &[Vec<u8>]) -> std::io::Result<()> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\
          Connection: close\r\n\r\n",
    )?;
    for piece in pieces {
        write!(stream, "{:x}\r\n", piece.len())?;
        stream.write_all(piece)?;
        stream.write_all(b"\r\n")?;
        stream.flush()?;
    }
    Ok(())
}
