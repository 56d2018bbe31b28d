"""Serves adapters as PEFT computes them, as far as `ferrotune deploy --verify` asks.

python peft_server.py PORT BASE TEMPLATE NAME=DIR...
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

port, base, template, *adapters = sys.argv[1:]
adapters = dict(adapter.split("=", 1) for adapter in adapters)
tokenizer = AutoTokenizer.from_pretrained(base)
with open(template) as file:
    tokenizer.chat_template = file.read()
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
first, *others = adapters
model = PeftModel.from_pretrained(model, adapters[first], adapter_name=first)
for name in others:
    model.load_adapter(adapters[name], adapter_name=name)
model.eval()


def score(name, ids):
    model.set_adapter(name)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    scores = torch.log_softmax(logits, -1)
    return [None] + [scores[at, token].item() for at, token in enumerate(ids[1:])]


class Handler(BaseHTTPRequestHandler):
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"data": [{"id": name, "parent": "base"} for name in adapters]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            kwargs = body.get("chat_template_kwargs", {})
            text = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False, **kwargs)
            self.answer({"tokens": tokenizer(text, add_special_tokens=False)["input_ids"]})
        elif self.path == "/v1/completions":
            numbers = score(body["model"], body["prompt"])
            self.answer({"choices": [{"logprobs": {"token_logprobs": numbers}}]})
        else:
            self.answer({"error": "not found"}, 404)

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
