"""Tiny random models of every family, and tokenizers: transformers and `tokenizers` beside llama.cpp, on the GGUF files that
`ferrotune export` makes of them.

python families.py make OUT TOKENIZER...     models with `tokenizer.json` of these folders, the first one for all families; prints names
python families.py compare OUT PORT          OUT/NAME beside OUT/NAME-gguf/*.gguf: log-probabilities and token ids
"""

import json
import pathlib
import random
import shutil
import sys
import unicodedata

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
PLAIN = "llama"
FAMILIES = {
    PLAIN: {},
    "llama tied, with biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama, Llama 3's positions": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral": {"head_dim": 32, "sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2": {},
    "qwen2, YaRN": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    },
    "qwen3": {"head_dim": 32},
    "qwen3 tied": {"head_dim": 32, "tie_word_embeddings": True},
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 96, "norm_topk_prob": False},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "head_dim": 32, "norm_topk_prob": True},
}
IDS, EVERY = 48, 8
# Largest difference of log-probabilities, in f32 on both sides.
TOLERANCE = 1e-4
TEXTS = [
    "Hello, world! It's 2026, isn't it? We'll see; they'd've gone. DON'T SHOUT, don't whisper.",
    "  two before,   three inside, four behind    ",
    "\n\n\tdef f(x):\n        return x ** 2  # a comment\n\n\n    if x != 'y' && z >= 0x1F { return; }\r\n\r\n",
    "你好,世界!今天的天气怎么样?我们去北京吧。價格是 1,234.50 元。",
    "日本語とカタカナ、한국어 문장, Русский текст, Ελληνικά, עברית, عربي, हिन्दी, ไทย",
    "👩‍👩‍👧‍👦 🤖🚀 ❤️ 🇩🇪🇨🇳 ¯\\_(ツ)_/¯ “quotes” … — – •",
    "1234567890 3.14159 1e-5 100,000 ½ ² Ⅷ ٣",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\temp\\x.txt",
    "CamelCaseWords snake_case_words kebab-case __init__ $HOME {{ x }} <div class=\"a\">",
    "no-break\u00a0space, em\u2003space, zero\u200bwidth, \ufeff mark, \u2028line",
    "", " ", "  ", "x", "\n", "\t", "é", "é\u0301", "<", "</",
]
ALPHABET = "aZé 1２九 \n\t.,'\"<|>/_-😀你ßñ\u0301 "


def named(family):
    return "".join(c if c.isalnum() else "-" for c in family).replace("--", "-").strip("-")


def make_one(folder, family, keys, tokenizer):
    torch.manual_seed(0)
    rows = 1 + max(Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
    model_type = family.split(",")[0].split(" ")[0]
    config = AutoConfig.for_model(model_type, **{**SHAPE, "vocab_size": rows, **keys})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(0, 0.1)
            elif weight.dim() == 1:
                weight.normal_(1, 0.1)
    model.save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.json", folder)
    told = tokenizer / "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_text(told.read_text() if told.exists() else "{}")
    print(folder.name)


def make(out, tokenizers):
    for family, keys in FAMILIES.items():
        make_one(out / named(family), family, keys, tokenizers[0])
    for tokenizer in tokenizers:
        make_one(out / f"tokenizer-{tokenizer.name}", PLAIN, {}, tokenizer)


def texts(tokenizer):
    random.seed(1)
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    mixed = ["".join(random.choices(ALPHABET, k=random.randint(1, 40))) for _ in range(200)]
    among = ["".join(random.choice([*special, " ", "a", "Hi there", "\n"]) for _ in range(8)) for _ in range(40)]
    return TEXTS + mixed + (among if special else [])


def compare_tokens(name, tokenizer, llama):
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    composes = "NFC" in json.dumps(normalizer)
    wrong, composed, tried = [], 0, texts(tokenizer)
    for text in tried:
        for special in (False, True):
            ours = tokenizer.encode(text, add_special_tokens=special).ids
            theirs = llama.tokens(text, special)
            if ours == theirs:
                continue
            if composes and unicodedata.normalize("NFC", text) != text:
                composed += not special
            else:
                wrong.append((text, ours, theirs))
    told = f", {composed} for want of Unicode's composition (NFC)" if composed else ""
    print(f"{name}: of {len(tried)} texts {len({text for text, _, _ in wrong})} have other tokens{told}", flush=True)
    for text, ours, theirs in wrong[:5]:
        print(f"  {text!r}\n    {ours}\n    {theirs}")
    return not wrong


def compare_numbers(name, folder, tokenizer, llama):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, tokenizer.get_vocab_size(with_added_tokens=True), (IDS,))
    with torch.no_grad():
        expected = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
    largest = 0.0
    for end in range(EVERY, IDS + 1, EVERY):
        found, _ = llama.behind(ids[:end].tolist())
        largest = max(largest, max(abs(expected[end - 1, token].item() - value) for token, value in found.items()))
    print(f"{name}: log-probabilities differ by {largest:.2e} at most", flush=True)
    return largest <= TOLERANCE


def compare(out, port):
    from llama import Llama

    right = True
    for gguf in sorted(out.glob("*-gguf/*.gguf")):
        name = gguf.parent.name.removesuffix("-gguf")
        tokenizer = Tokenizer.from_file(str(out / name / "tokenizer.json"))
        llama = Llama(gguf, port)
        if name.startswith("tokenizer-"):
            right &= compare_tokens(name, tokenizer, llama)
        else:
            right &= compare_numbers(name, out / name, tokenizer, llama)
        del llama
    sys.exit(0 if right else 1)


verb, out, *rest = sys.argv[1:]
out = pathlib.Path(out)
make(out, [pathlib.Path(folder) for folder in rest]) if verb == "make" else compare(out, int(rest[0]))
