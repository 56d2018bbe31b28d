"""llama.cpp by the wheel `xllamacpp`, in f32 wherever it has a choice: no flash attention (f16 inside), keys and values in f32."""

import json
import math
import urllib.request

import xllamacpp

# More than any vocabulary has.
ALL = 1 << 20


class Llama:
    """A GGUF file behind llama.cpp's own server."""

    def __init__(self, file, port):
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = 2048
        params.n_parallel = 1
        params.use_jinja = True
        params.warmup = False
        params.port = port
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)
        self.plain = self.tokens("a", add_special=False)[-1]

    def ask(self, path, body):
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, data, headers)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def tokens(self, text, add_special):
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return self.ask("/tokenize", body)["tokens"]

    def prompt(self, messages):
        return self.ask("/apply-template", {"messages": messages})["prompt"]

    def likely(self, ids, count):
        """Log-probabilities of the `count` likeliest tokens behind `ids`, by their ids, as the server says."""
        # What is told is the model's, whatever is drawn; but of a token that ends the answer, or is half a character, nothing would be
        # told, so that one is drawn that is neither.
        drawn = [[self.plain, 1e4]]
        body = {"prompt": ids, "n_predict": 1, "n_probs": count, "logit_bias": drawn, "cache_prompt": True}
        [found] = self.ask("/completion", body)["completion_probabilities"]
        return {token["id"]: token["logprob"] for token in found["top_logprobs"]}

    def behind(self, ids):
        """Log-probabilities of all tokens behind `ids`, and how far the server's own sum of the softmax is off.

        The server adds up the softmax in one f32, from the largest part to the smallest, so that most of a large vocabulary is
        below what such a sum can hold: the sum is made again here. Of a vocabulary of 49,152 it takes a second a token."""
        told = self.likely(ids, ALL)
        off = math.log(math.fsum(math.exp(number) for number in told.values()))
        return {token: number - off for token, number in told.items()}, off
