"""Adapters that are wrong, each in one way.

python broken.py make SOUND OUT     copies a sound adapter once a kind, breaks the copy, and prints the kinds
python broken.py load URL OUT       asks a vLLM that may load adapters at run time what it does with each
"""

import json
import pathlib
import sys
import urllib.error
import urllib.request

import numpy
from safetensors.numpy import load_file, save_file

# Whatever is loaded behind an adapter with NaN answers nothing any more.
LAST = "nan"
Q_A = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"
Q_B = Q_A.replace("lora_A", "lora_B")


def config(**changes):
    return lambda parts: parts[0].update(changes)


def without(*keys):
    def change(parts):
        for key in keys:
            parts[0].pop(key, None)
            parts[1].pop(key, None)

    return change


def tensor(name, value):
    return lambda parts: parts[1].update({name: value(parts[1])})


def renamed(old, new):
    def change(parts):
        for name in [name for name in parts[1] if old in name]:
            parts[1][name.replace(old, new)] = parts[1].pop(name)

    return change


def with_value(number):
    def value(tensors):
        changed = tensors[Q_B].copy()
        changed[5, 2] = number
        return changed

    return value


KINDS = {
    "no r": without("r"),
    "no lora_alpha": without("lora_alpha"),
    "alpha 0": config(lora_alpha=0),
    "rank 16 over tensors of 8": config(r=16),
    "rank 1024 in the configuration": config(r=1024),
    "use_dora": config(use_dora=True),
    "bias all": config(bias="all"),
    "modules_to_save lm_head": config(modules_to_save=["lm_head"]),
    "PiSSA": config(init_lora_weights="pissa"),
    "another method": config(peft_type="LOHA"),
    "target_modules that name no tensor": config(target_modules=["v_proj"]),
    "no A": without(Q_A),
    "no B": without(Q_B),
    "no pair": without(Q_A, Q_B),
    "A transposed": tensor(Q_A, lambda t: numpy.ascontiguousarray(t[Q_A].T)),
    "B a row short": tensor(Q_B, lambda t: t[Q_B][:-1].copy()),
    "a layer of 99": renamed("layers.3.", "layers.99."),
    "a module that isn't there": renamed("q_proj", "qq_proj"),
    "names as in memory": renamed("lora_A.weight", "lora_A.default.weight"),
    "a whole weight": tensor("base_model.model.model.norm.weight", lambda t: numpy.ones(576, numpy.float32)),
    "whole numbers": tensor(Q_A, lambda t: t[Q_A].astype(numpy.int32)),
    "infinity": tensor(Q_B, with_value(numpy.inf)),
    "a cut file": None,
    "no configuration": None,
    LAST: tensor(Q_B, with_value(numpy.nan)),
}


def make(sound, out):
    for kind, change in KINDS.items():
        folder = out / kind.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        parts = json.loads((sound / "adapter_config.json").read_text()), load_file(sound / "adapter_model.safetensors")
        if change is not None:
            change(parts)
        (folder / "adapter_config.json").write_text(json.dumps(parts[0]))
        save_file(parts[1], folder / "adapter_model.safetensors")
        if kind == "a cut file":
            whole = (folder / "adapter_model.safetensors").read_bytes()
            (folder / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
        if kind == "no configuration":
            (folder / "adapter_config.json").unlink()
        print(folder.name)


def ask(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def load(url, out):
    for kind in KINDS:
        name = kind.replace(" ", "-")
        status, text = ask(url + "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(out / name)})
        if status == 200:
            print(f"{name}: loaded")
            ask(url + "/v1/unload_lora_adapter", {"lora_name": name})
            continue
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            pass
        print(f"{name}: {status} {' '.join(text.split())[:160]}")


verb, where, out = sys.argv[1:]
out = pathlib.Path(out).absolute()
make(pathlib.Path(where), out) if verb == "make" else load(where, out)
