"""The steps of results.jsonl by torch, transformers and peft, as LLaMA-Factory runs them: a line of JSON each.

    python3 peer.py results.jsonl [DEVICE]

DEVICE is `cuda`. With `cpu` the same is done without memory's figures, on shapes that are small enough. With `paper` tensors have
shapes and no data: nothing is timed, the bytes that are held are counted, at any size.
"""

import contextlib
import json
import math
import statistics
import sys
import time
import weakref

import peft
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARMING, STEPS = 2, 5
# By name, not `all-linear`: that takes the routers of experts too, which nobody else does.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODE = sys.argv[2] if len(sys.argv) > 2 else "cuda"
ON_GPU, ON_PAPER = MODE == "cuda", MODE == "paper"
# Autograd asks a GPU's driver even for tensors without data; their sizes are the same on a processor.
DEVICE = "cuda" if ON_GPU else "cpu"
# Bytes in whose multiples torch hands out memory of a GPU.
GRAIN = 512


class Held(TorchDispatchMode):
    """Bytes of all storages that live, and their highest sum."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.storages = 0, 0, {}

    def see(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return
        size = -(-storage.nbytes() // GRAIN) * GRAIN

        def gone(_):
            del self.storages[key]
            self.now -= size

        self.storages[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return result


def synchronize():
    if ON_GPU:
        torch.cuda.synchronize()


def attention():
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return "sdpa"
    return "sdpa" if ON_PAPER else "flash_attention_2"


def adapted(model, lora):
    if not ON_PAPER:
        return peft.get_peft_model(model, lora)
    # A module whose tensors have no data can't be moved while something refers to it; here all lie where they belong.
    move = torch.nn.Module.to
    torch.nn.Module.to = lambda module, *args, **kwargs: module
    try:
        with torch.device(DEVICE):
            return peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    finally:
        torch.nn.Module.to = move


def case(ours, recompute):
    told = {key: ours[key] for key in ("shape", "layers", "tokens")}
    told |= {"who": "peft", "recompute": recompute, "attention": attention()}
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) if ON_PAPER else contextlib.nullcontext():
            told |= steps(ours, recompute, told["attention"])
        # A figure of a step that went wrong is none.
        if not (ON_PAPER or math.isfinite(told["loss"])):
            told = {**told, "seconds": None, "tokens_per_second": None, "left_out": "the loss isn't finite"}
    except torch.cuda.OutOfMemoryError:
        told["left_out"] = "out of memory"
    except Exception as error:  # What one shape can't do doesn't take the others' figures.
        told["failed"] = told["left_out"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return told


def steps(ours, recompute, attention):
    kinds = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}
    kinds |= {"qwen3_moe": transformers.Qwen3MoeConfig}
    kind = kinds[ours["config"]["model_type"]]
    config = kind(**{**ours["config"], "use_cache": False, "attn_implementation": attention})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model = adapted(model, lora).train()
    weights = torch.cuda.memory_allocated() if ON_GPU else None
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    # Of experts, some versions of peft adapt none: then the steps can't be compared.
    told = {"trained": sum(parameter.numel() for parameter in trained)}
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.tensor([[i * 7919 % config.vocab_size for i in range(ours["tokens"])]], device=DEVICE)

    def step():
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    if ON_PAPER:
        with Held() as held:
            for tensor in [*model.parameters(), *model.buffers()]:
                held.see(tensor)
            weights = held.now
            # The optimiser has its moments from the first step on.
            step()
            held.peak = held.now
            step()
        return told | {"weights": weights, "peak": held.peak}
    seconds = []
    for number in range(WARMING + STEPS):
        synchronize()
        start = time.perf_counter()
        told["loss"] = step().item()
        synchronize()
        if number >= WARMING:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    told |= {"seconds": median, "tokens_per_second": ours["tokens"] / median, "weights": weights}
    return told | {"peak": torch.cuda.max_memory_allocated() if ON_GPU else None}


def main():
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    print(json.dumps({"who": "peers", **versions}), flush=True)
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    seen, failed = set(), False
    for ours in lines:
        key = (ours.get("shape"), ours.get("tokens"), ours.get("layers"))
        if ours["who"] != "ferrotune" or "config" not in ours or key in seen:
            continue
        seen.add(key)
        for recompute in (True, False):
            told = case(ours, recompute)
            failed |= "failed" in told
            print(json.dumps(told), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
