"""Serves adapters as PEFT computes them, as far as `ferrotune deploy --verify` asks.

python peft_server.py PORT BASE TEMPLATE NAME=DIR...
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from verifiable import serve

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


def tokens(_name, messages, variables):
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **variables)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def score(name, ids):
    model.set_adapter(name)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    scores = torch.log_softmax(logits, -1)
    return [None] + [scores[at, token].item() for at, token in enumerate(ids[1:])]


serve(int(port), adapters, tokens, score)
