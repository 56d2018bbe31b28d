//! What is asked of a server over HTTP: its models, the tokens of a chat, the log-probabilities of a prompt.

use std::time::Duration;

use serde_json::{Map, Value, json};
use ureq::Agent;

use super::Row;
use crate::{Error, Result};

/// Longest wait for an answer: a long row on a processor takes its time.
const PATIENCE: Duration = Duration::from_secs(600);
/// An answer above this is no answer.
const MAX_BYTES: u64 = 256 << 20;
/// How much of an answer that is an error is shown.
const SHOWN: usize = 300;

/// A server of OpenAI's kind.
pub struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
}

/// A model that a server lists.
pub(super) struct Listed {
    pub(super) id: String,
    /// The base, if it is an adapter.
    pub(super) parent: Option<String>,
}

impl Client {
    /// A client of the server at `url`, with or without its `/v1`.
    pub fn new(url: &str, key: Option<String>) -> Self {
        let config =
            Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).max_redirects(0);
        let url = url.trim_end_matches('/');
        Self { agent: config.build().into(), url: url.strip_suffix("/v1").unwrap_or(url).to_owned(), key }
    }

    pub(super) fn models(&self) -> Result<Vec<Listed>> {
        let (url, answer) = self.ask("/v1/models", None)?;
        let (_, value) = (answer.status == 200).then_some(((), &answer.value)).ok_or_else(|| answer.error(&url))?;
        let list = value["data"].as_array().ok_or(Error::Answer { url, missing: "a list of models" })?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(list
            .iter()
            .filter_map(|model| Some(Listed { id: text(&model["id"])?, parent: text(&model["parent"]) }))
            .collect())
    }

    /// The ids that a chat becomes; nothing from a server that doesn't tell.
    pub(super) fn tokens(
        &self,
        model: &str,
        messages: &Value,
        kwargs: &Map<String, Value>,
    ) -> Result<Option<Vec<u32>>> {
        let mut body = json!({"model": model, "messages": messages, "add_generation_prompt": true});
        if !kwargs.is_empty() {
            body["chat_template_kwargs"] = kwargs.clone().into();
        }
        let (url, answer) = self.ask("/tokenize", Some(&body))?;
        match answer.status {
            200 => ids(&answer.value["tokens"]).map(Some).ok_or(Error::Answer { url, missing: "`tokens`" }),
            404 | 405 | 501 => Ok(None),
            _ => Err(answer.error(&url)),
        }
    }

    /// Log-probabilities of a row's trained tokens, each given all before it.
    pub(super) fn score(&self, model: &str, row: &Row) -> Result<Vec<f32>> {
        let plain = json!({"model": model, "prompt": row.ids, "max_tokens": 1, "temperature": 0});
        let mut body = plain.clone();
        body["prompt_logprobs"] = 0.into();
        let (url, mut answer) = self.ask("/v1/completions", Some(&body))?;
        let mut all = by_id(&answer.value["choices"][0]["prompt_logprobs"], &row.ids);
        if all.is_none() {
            // OpenAI's own way, which most other servers know.
            let mut body = plain;
            (body["echo"], body["logprobs"]) = (true.into(), 1.into());
            answer = self.ask("/v1/completions", Some(&body))?.1;
            if answer.status != 200 {
                return Err(answer.error(&url));
            }
            all = echoed(&answer.value["choices"][0]["logprobs"]["token_logprobs"]);
        }
        let missing = Error::Answer { url, missing: "log-probabilities of the prompt" };
        let pick = |all: Vec<Option<f32>>| row.trained.iter().map(|&at| *all.get(at)?).collect();
        all.and_then(pick).ok_or(missing)
    }

    fn ask(&self, path: &str, body: Option<&Value>) -> Result<(String, Answer)> {
        let url = format!("{}{path}", self.url);
        let failed = |error: ureq::Error| Error::Request { url: url.clone(), reason: error.to_string() };
        let key = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let sent = match body {
            None => key.iter().fold(self.agent.get(&url), |request, key| request.header("Authorization", key)).call(),
            Some(body) => {
                let request = self.agent.post(&url).header("Content-Type", "application/json");
                key.iter().fold(request, |request, key| request.header("Authorization", key)).send(&body.to_string())
            }
        };
        let mut response = sent.map_err(failed)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(MAX_BYTES).read_to_vec().map_err(failed)?;
        let value = serde_json::from_slice(&text).unwrap_or(Value::Null);
        Ok((url, Answer { status, value, text: String::from_utf8_lossy(&text).chars().take(SHOWN).collect() }))
    }
}

struct Answer {
    status: u16,
    value: Value,
    text: String,
}

impl Answer {
    fn error(&self, url: &str) -> Error {
        Error::Request { url: url.to_owned(), reason: format!("status {}: {}", self.status, self.text.trim()) }
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// vLLM's `prompt_logprobs`: at each place an object from ids to numbers, the prompt's own among them.
fn by_id(value: &Value, ids: &[u32]) -> Option<Vec<Option<f32>>> {
    let places = value.as_array().filter(|places| places.len() == ids.len())?;
    let own = |(place, id): (&Value, &u32)| place[id.to_string()]["logprob"].as_f64().map(|number| number as f32);
    Some(places.iter().zip(ids).map(own).collect())
}

fn echoed(value: &Value) -> Option<Vec<Option<f32>>> {
    Some(value.as_array()?.iter().map(|number| number.as_f64().map(|number| number as f32)).collect())
}
