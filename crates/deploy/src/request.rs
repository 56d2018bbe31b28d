//! Example requests that ask for the trained model, by the one name that reaches it.

use serde_json::{Value, json};

use crate::service::Service;

fn body(service: &Service, question: &str) -> Value {
    let mut body = json!({
        "model": service.name, "messages": [{"role": "user", "content": question}], "max_tokens": 256, "temperature": 0
    });
    if !service.kwargs.is_empty() {
        body["chat_template_kwargs"] = service.kwargs.clone().into();
    }
    body
}

/// A shell script with curl.
pub fn curl(service: &Service, question: &str) -> String {
    let body = format!("{:#}", body(service, question)).replace('\'', "'\\''");
    format!(
        "#!/bin/sh\n# Asks the trained model. Written by `ferrotune deploy`.\nset -e\n\
         curl -fsS \"${{URL:-http://localhost:{}}}/v1/chat/completions\" -H 'Content-Type: application/json' -d '{body}'\n",
        service.port
    )
}

/// A Python script that needs nothing but Python.
pub fn python(service: &Service, question: &str) -> String {
    // JSON's texts are Python's as well; its three words are not, so they are read as JSON.
    let body = Value::from(body(service, question).to_string());
    format!(
        "\"\"\"Asks the trained model. Written by `ferrotune deploy`.\"\"\"\n\n\
         import json\nimport os\nimport urllib.request\n\n\
         url = os.environ.get(\"URL\", \"http://localhost:{}\") + \"/v1/chat/completions\"\n\
         body = json.loads({body})\n\
         request = urllib.request.Request(url, json.dumps(body).encode(), {{\"Content-Type\": \"application/json\"}})\n\
         with urllib.request.urlopen(request) as answer:\n    \
         print(json.load(answer)[\"choices\"][0][\"message\"][\"content\"])\n",
        service.port
    )
}
