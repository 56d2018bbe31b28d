"""Serves GGUF files as llama.cpp computes them, as far as `ferrotune deploy --verify` asks: one at a time, in f32 where the file
allows.

python llama_server.py PORT NAME=FILE...
"""

import json
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import xllamacpp

port, *files = sys.argv[1:]
files = dict(file.split("=", 1) for file in files)
loaded = (None, None)
# Likeliest tokens that are asked for; a trained token that is none of them is asked for among all.
LIKELY, ALL = 200, 1 << 20


def server(name):
    global loaded
    if loaded[0] != name:
        loaded = (None, None)
        params = xllamacpp.CommonParams()
        params.model.path = files[name]
        params.n_ctx = 2048
        params.n_parallel = 1
        params.use_jinja = True
        params.warmup = False
        params.port = int(port) + 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        loaded = (name, xllamacpp.Server(params))
    return loaded[1].listening_address


def ask(name, path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(server(name) + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def score(name, ids):
    scores = [None]
    for at in range(1, len(ids)):
        for count in (LIKELY, ALL):
            body = {"prompt": ids[:at], "n_predict": 1, "n_probs": count, "temperature": 1.0, "cache_prompt": True}
            [found] = ask(name, "/completion", body)["completion_probabilities"]
            likely = {token["id"]: token["logprob"] for token in found["top_logprobs"]}
            if ids[at] in likely:
                break
        scores.append(likely[ids[at]])
    return scores


class Handler(BaseHTTPRequestHandler):
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"data": [{"id": name, "parent": "base"} for name in files]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            text = ask(body["model"], "/apply-template", {"messages": body["messages"]})["prompt"]
            tokens = ask(body["model"], "/tokenize", {"content": text, "add_special": True, "parse_special": True})
            self.answer({"tokens": tokens["tokens"]})
        elif self.path == "/v1/completions":
            numbers = score(body["model"], body["prompt"])
            self.answer({"choices": [{"logprobs": {"token_logprobs": numbers}}]})
        else:
            self.answer({"error": "not found"}, 404)

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
