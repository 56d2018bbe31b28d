"""Serves GGUF files as llama.cpp computes them, one at a time. For the file called `f32` the softmax of its server is added up again,
and what it was off is printed; of a rounded model it doesn't matter.

python llama_server.py PORT NAME=FILE...
"""

import sys

from llama import Llama
from verifiable import serve

port, *files = sys.argv[1:]
files = dict(file.split("=", 1) for file in files)
loaded = (None, None)
EXACT = "f32"
# Likeliest tokens that are asked for; a token that is none of them is asked for among all.
LIKELY = 200


def model(name):
    global loaded
    if loaded[0] != name:
        # The memory of one is wanted for the next.
        loaded = (None, None)
        # The port of the last one may not be free yet.
        loaded = (name, Llama(files[name], int(port) + 1 + list(files).index(name)))
    return loaded[1]


def tokens(name, messages, _variables):
    return model(name).tokens(model(name).prompt(messages), add_special=True)


def score(name, ids):
    scores, off = [None], 0.0
    for at in range(1, len(ids)):
        likely = {} if name == EXACT else model(name).likely(ids[:at], LIKELY)
        if ids[at] not in likely:
            likely, sum_off = model(name).behind(ids[:at])
            off = max(off, abs(sum_off))
        scores.append(likely[ids[at]])
    print(f"{name}: where it was added up again, the server's softmax was off by {off:.2e} at most", flush=True)
    return scores


serve(int(port), files, tokens, score)
