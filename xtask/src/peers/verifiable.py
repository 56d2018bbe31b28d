"""What `ferrotune deploy --verify` asks of a server, for programs that have no such interface: names, token ids of a chat, and
log-probabilities of given tokens.
"""

import json
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer


def serve(port, names, tokens, score):
    """Answers on `port` until it is ended. `tokens(name, messages, variables)` writes a prompt; `score(name, ids)` gives the
    log-probability of each id given those before it, and nothing for the first."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"data": [{"id": name, "parent": "base"} for name in names]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.reply(body)
            except Exception as error:
                # Whoever asks would learn only that the line is dead.
                traceback.print_exc()
                self.answer({"error": repr(error)}, 500)

        def reply(self, body):
            if self.path == "/tokenize":
                variables = body.get("chat_template_kwargs", {})
                self.answer({"tokens": tokens(body["model"], body["messages"], variables)})
            elif self.path == "/v1/completions":
                numbers = score(body["model"], body["prompt"])
                self.answer({"choices": [{"logprobs": {"token_logprobs": numbers}}]})
            else:
                self.answer({"error": "not found"}, 404)

        def log_message(self, *_):
            pass

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
