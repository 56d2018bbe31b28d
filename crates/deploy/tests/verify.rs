//! Verification against a server in this process, which makes each of the mistakes that real ones make.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use ferrotune_deploy::Error;
use ferrotune_deploy::verify::{Client, Problem, Question, Row, Verdict, verify};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

/// How a server is set up.
#[derive(Clone, Copy)]
struct Server {
    /// The adapter's name.
    name: &'static str,
    /// How much of the adapter acts.
    share: f32,
    /// A token before every prompt.
    prefix: Option<u32>,
    /// Speaks vLLM's dialect, else OpenAI's.
    vllm: bool,
}

const RIGHT: Server = Server { name: "tuned", share: 1.0, prefix: None, vllm: true };
const PROMPT: [u32; 4] = [5, 6, 7, 8];

/// Log-probability of a token at a place, by a model that is `share` of the way from the base to the trained one.
fn logprob(id: u32, at: usize, share: f32) -> f32 {
    let base = -2.0 - (id % 7) as f32 * 0.3;
    base + share * (0.2 + (at % 3) as f32 * 0.25)
}

fn row(first: u32) -> Row {
    let ids: Vec<u32> = PROMPT.into_iter().chain(first..first + 6).collect();
    let trained: Vec<usize> = (4..10).collect();
    let by = |share: f32| trained.iter().map(|&at| logprob(ids[at], at, share)).collect();
    let prompt = Some((json!([{"role": "user", "content": "hello"}]), PROMPT.to_vec()));
    Row { prompt, tuned: by(1.0), base: Some(by(0.0)), trained: trained.clone(), ids }
}

impl Server {
    fn answer(self, path: &str, body: &Value) -> (u16, Value) {
        let model = body["model"].as_str().unwrap_or_default();
        let share = if model == self.name { self.share } else { 0.0 };
        match path {
            "/v1/models" => {
                let listed = json!([{"id": "base"}, {"id": self.name, "parent": "base"}]);
                (200, json!({"data": listed}))
            }
            "/tokenize" if self.vllm => {
                assert_eq!(body["chat_template_kwargs"], json!({"enable_thinking": false}));
                let ids: Vec<u32> = self.prefix.into_iter().chain(PROMPT).collect();
                (200, json!({"tokens": ids, "count": ids.len()}))
            }
            "/v1/completions" => {
                let ids: Vec<u32> = serde_json::from_value(body["prompt"].clone()).unwrap();
                let all = ids.iter().enumerate().map(|(at, &id)| (id, (at > 0).then(|| logprob(id, at, share))));
                let choice = if self.vllm {
                    let place = |(id, number): (u32, Option<f32>)| {
                        number.map(
                            |number| json!({"1": {"logprob": -0.1}, id.to_string(): {"logprob": number, "rank": 4}}),
                        )
                    };
                    json!({"prompt_logprobs": all.map(place).collect::<Vec<_>>()})
                } else if body["echo"] == true {
                    let numbers: Vec<_> = all.map(|(_, number)| number).chain([Some(-0.5)]).collect();
                    json!({"logprobs": {"token_logprobs": numbers}})
                } else {
                    json!({"text": "x"})
                };
                (200, json!({"choices": [choice]}))
            }
            _ => (404, json!({"error": "not found"})),
        }
    }

    /// Serves on a port of its own until the test ends.
    fn start(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                reader.read_line(&mut line).unwrap();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                loop {
                    let mut header = String::new();
                    reader.read_line(&mut header).unwrap();
                    if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if header.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let (status, value) = self.answer(&path, &serde_json::from_slice(&body).unwrap_or(Value::Null));
                let text = value.to_string();
                let head =
                    format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
                stream.write_all((head + &text).as_bytes()).unwrap();
            }
        });
        url
    }
}

fn ask(server: Server, name: &str) -> Verdict {
    let client = Client::new(&format!("{}/v1/", server.start()), None);
    let kwargs: Map<String, Value> = [("enable_thinking".to_owned(), false.into())].into_iter().collect();
    let question = Question { name, is_adapter: true, kwargs: &kwargs, tolerance: 0.05 };
    let rows: Vec<Row> = (0..5).map(|i| row(10 + 11 * i)).collect();
    let mut rescaled = |factor: f64| -> Result<Vec<Vec<f32>>, Error> {
        let by = |row: &Row| row.trained.iter().map(|&at| logprob(row.ids[at], at, factor as f32)).collect();
        Ok(rows.iter().map(by).collect())
    };
    verify(&client, &question, &rows, &mut rescaled, &[0.25, 0.5, 2.0, 4.0]).unwrap()
}

#[test]
fn a_right_server_is_right() {
    for vllm in [true, false] {
        let verdict = ask(Server { vllm, ..RIGHT }, "tuned");
        assert_eq!(verdict.problems, [], "{verdict:?}");
        let agreement = verdict.agreement.unwrap();
        assert_eq!((verdict.rows, agreement.tokens, verdict.prompts), (5, 30, if vllm { 5 } else { 0 }));
        assert!(agreement.max < 1e-5 && (agreement.share.unwrap() - 1.0).abs() < 1e-4, "{agreement:?}");
    }
}

#[test]
fn a_name_that_is_not_there_is_told_with_those_that_are() {
    let offered = vec!["base".to_owned(), "lora1".to_owned()];
    let verdict = ask(Server { name: "lora1", ..RIGHT }, "tuned");
    assert_eq!(verdict.problems, [Problem::NoSuchName { offered }]);
}

#[test]
fn the_bases_name_is_found_out() {
    assert_eq!(ask(RIGHT, "base").problems, [Problem::Untrained { listed_as_base: true }]);
    assert_eq!(ask(Server { share: 0.0, ..RIGHT }, "tuned").problems, [Problem::Untrained { listed_as_base: false }]);
}

#[test]
fn another_template_is_told_with_the_place() {
    let verdict = ask(Server { prefix: Some(99), ..RIGHT }, "tuned");
    let served = [&[99], &PROMPT[..]].concat();
    assert_eq!(verdict.problems, [Problem::Template { prompts: 5, at: 0, trained: PROMPT.to_vec(), served }]);
}

#[test]
fn another_scaling_is_named() {
    for share in [0.25, 0.5, 2.0] {
        let verdict = ask(Server { share, ..RIGHT }, "tuned");
        assert_eq!(verdict.problems, [Problem::Scaling { factor: f64::from(share) }], "{verdict:?}");
    }
    assert_eq!(ask(Server { share: -3.0, ..RIGHT }, "tuned").problems, [Problem::Other]);
}

#[test]
fn a_server_that_is_not_there_or_can_not_score_is_told() {
    let client = Client::new("http://127.0.0.1:1", None);
    let question = Question { name: "x", is_adapter: true, kwargs: &Map::new(), tolerance: 0.05 };
    let never = &mut |_: f64| -> Result<Vec<Vec<f32>>, Error> { unreachable!("nothing was scored") };
    let error = verify(&client, &question, &[row(1)], never, &[]).unwrap_err().to_string();
    assert!(error.starts_with("http://127.0.0.1:1/v1/models: "), "{error}");
}
