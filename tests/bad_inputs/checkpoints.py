"""Folders of models that are broken, cut, foreign, packed, or hold more than a model."""
import functools
import json
import shutil
import tempfile
from pathlib import Path

from llmlab.models.testing import save_tiny_checkpoint, tiny_model, tiny_tokenizer

from . import Bad

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
WEB_PAGE = b"<!DOCTYPE html><html><body>Entry not found</body></html>"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
PROJECTION = "model.layers.0.mlp.down_proj.weight"


@functools.cache
def _whole():
    "Write a good model once; the cases break copies of it."
    return save_tiny_checkpoint(Path(tempfile.mkdtemp(prefix="llmlab-")) / "model")


def model(change, **settings):
    "Make settings whose model is a copy of a good one, changed by `change`."
    def write(folder):
        path = Path(shutil.copytree(_whole(), folder / "broken"))
        change(path)
        return {"model": str(path), **settings}

    return write


def content(name, written, **settings):
    "Make settings whose model has other bytes, text or JSON in one of its files."
    def change(path):
        (path / name).parent.mkdir(exist_ok=True)
        raw = written if isinstance(written, (bytes, str)) else json.dumps(written, ensure_ascii=False)
        (path / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())

    return model(change, **settings)


def edited(name, changes, **settings):
    "Make settings whose model has other values in one of its JSON files."
    def change(path):
        file = path / name
        values = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**values, **changes}))

    return model(change, **settings)


def config(**changes):
    return edited("config.json", changes)


def habits(**values):
    return content("generation_config.json", values)


def cut(name, keep):
    "Make settings whose model has only a beginning of one of its files."
    return model(lambda path: (path / name).write_bytes((path / name).read_bytes()[:keep]))


def without(*names):
    return model(lambda path: [(path / name).unlink() for name in names])


def tensors(change):
    "Make settings whose model has other tensors."
    def write(path):
        from safetensors.torch import load_file, save_file

        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    return model(write)


def of_family(family):
    "Make settings whose model has the weights of another family."
    def change(path):
        tiny_model(family).save_pretrained(path / "other")
        shutil.move(path / "other" / "model.safetensors", path / "model.safetensors")

    return model(change)


def words(count):
    return [f"낱말{number}" for number in range(count)]


def tokenizer(change):
    "Make settings whose model has a changed tokenizer."
    def write(path):
        made = tiny_tokenizer()
        change(made)
        made.save_pretrained(path)

    return model(write)


def adapter_beside(path, base="another/model"):
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))


def adapter_alone(path):
    adapter_beside(path)
    for name in ("config.json", "model.safetensors"):
        (path / name).unlink()


def as_pickle(path):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def sharded(index):
    def change(path):
        (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
        (path / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))

    return model(change)


def unlinked(path):
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(path / "blobs" / "0a1b2c")


def folder_for_file(name):
    def change(path):
        (path / name).unlink(missing_ok=True)
        (path / name).mkdir()

    return model(change)


CASES = [
    # config.json
    Bad("config: missing", without("config.json"), ("no config.json", "save_pretrained")),
    Bad("config: empty", content("config.json", ""), ("config.json is empty", "again")),
    Bad("config: cut", cut("config.json", 100), ("config.json", "not valid JSON", "again")),
    Bad("config: a list", content("config.json", "[1, 2]"), ("config.json", "names and values")),
    Bad("config: null", content("config.json", "null"), ("config.json", "None")),
    Bad("config: UTF-16", content("config.json", '{"model_type": "llama"}'.encode("utf-16")), ("config.json", "UTF-8")),
    Bad("config: a pointer", content("config.json", LFS_POINTER), ("config.json", "git lfs pull")),
    Bad("config: a web page", content("config.json", WEB_PAGE), ("config.json", "web page")),
    Bad("config: a folder", folder_for_file("config.json"), ("config.json", "folder")),
    Bad("config: brackets without end", content("config.json", "[" * 10**5), ("config.json", "within one another")),
    Bad("config: a name twice", content("config.json", '{"model_type": "llama", "model_type": "gpt2"}'),
        "stands twice"),
    Bad("config: no family", content("config.json", {"hidden_size": 32}), ("config.json", "model_type")),
    Bad("config: an unknown family", config(model_type="no_such_family"), ("config.json", "no_such_family")),
    Bad("config: a family that is a number", config(model_type=5), "config.json"),
    Bad("config: text for a width", config(hidden_size="wide"), ("config.json", "hidden_size")),
    Bad("config: a width of nothing", config(hidden_size=0), ("config.json", "hidden_size=0")),
    Bad("config: no heads", config(num_attention_heads=0), ("config.json", "num_attention_heads=0")),
    Bad("config: a length of nothing", config(max_position_embeddings=0), ("config.json", "max_position_embeddings=0")),
    Bad("config: another kind of attention", config(attn_implementation="magic"), "magic"),
    Bad("config: an unknown number format", config(dtype="float3"), ("config.json", "float3")),
    Bad("config: layers of other kinds than there are", config(layer_types=["full_attention"]), "layer_types"),
    Bad("config: a text model that is a number", config(text_config=5), "model"),
    Bad("config: padding beyond the table", config(pad_token_id=9999), "model"),
    Bad("config: another width", config(hidden_size=64), ("other shapes", "64")),
    Bad("config: another vocabulary", config(vocab_size=600), ("other shapes", "600")),
    Bad("config: text for a length", config(max_position_embeddings="long"),
        ("config.json", "max_position_embeddings")),
    Bad("config: layers without end", config(num_hidden_layers=10**9), ("config.json", "num_hidden_layers")),
    Bad("config: a negative number of layers", config(num_hidden_layers=-1), "model"),
    Bad("config: a layer more", config(num_hidden_layers=3), ("lack", r"layers\.2")),
    Bad("config: a layer less", config(num_hidden_layers=1), ("more than", r"layers\.1")),
    Bad("config: heads that do not divide", config(num_attention_heads=3, head_dim=None), "model"),
    Bad("config: an unknown activation", config(hidden_act="magic"), "magic"),
    Bad("config: an unknown rope", config(rope_parameters={"rope_type": "magic", "rope_theta": 1e4}), "magic"),
    Bad("config: code of its own", config(model_type="own_family", auto_map={"AutoConfig": "own.Config"}),
        "own_family"),
    Bad("config: T5", config(model_type="t5"), ("t5", "continues a text")),
    Bad("config: BART", config(model_type="bart"), ("bart", "continues a text")),
    Bad("config: a model of pictures", config(model_type="vit"), ("vit", "continues a text")),
    # Weights that are packed
    Bad("packed: GPTQ", config(quantization_config={"quant_method": "gptq", "bits": 4}), ("gptq", "load_in_4bit")),
    Bad("packed: AWQ", config(quantization_config={"quant_method": "awq", "bits": 4}), ("awq", "load_in_4bit")),
    Bad("packed: 4 bits of bitsandbytes", config(quantization_config={"quant_method": "bitsandbytes"}),
        ("bitsandbytes", "bnb-4bit")),
    Bad("packed: FP8", config(quantization_config={"quant_method": "fp8"}), ("fp8", "quantized")),
    Bad("packed: of no kind", config(quantization_config={"bits": 3}), ("quantization_config", "unknown")),
    Bad("packed: a word", config(quantization_config="yes"), ("quantization_config", "yes")),
    Bad("packed: compressed tensors", config(compression_config={"quant_method": "compressed-tensors"}),
        "compressed-tensors"),
    # Weights
    Bad("weights: missing", without("model.safetensors"), ("no weights", "model.safetensors")),
    Bad("weights: empty", content("model.safetensors", b""), ("model.safetensors is empty", "again")),
    Bad("weights: cut in the head", cut("model.safetensors", 500), ("model.safetensors", "cut short")),
    Bad("weights: cut in the middle", cut("model.safetensors", 20_000), ("model.safetensors", "cut short")),
    Bad("weights: six bytes", cut("model.safetensors", 6), ("model.safetensors", "cut short")),
    Bad("weights: a pointer", content("model.safetensors", LFS_POINTER), ("model.safetensors", "git lfs pull")),
    Bad("weights: a web page", content("model.safetensors", WEB_PAGE), ("model.safetensors", "web page")),
    Bad("weights: noise", content("model.safetensors", bytes(range(256)) * 8), ("model.safetensors", "damaged")),
    Bad("weights: a folder", folder_for_file("model.safetensors"), ("model.safetensors", "folder")),
    Bad("weights: a link to nowhere", model(unlinked), "no weights"),
    Bad("weights: one lacks", tensors(lambda weights: weights.pop("model.norm.weight")),
        ("lack 1", "model.norm.weight")),
    Bad("weights: one more", tensors(lambda weights: weights.update(own=weights["model.norm.weight"] * 1)),
        ("1 weights more", "own")),
    Bad("weights: one of another shape",
        tensors(lambda weights: weights.update({NORM: weights["lm_head.weight"] * 1})),
        ("other shapes", "model.norm.weight")),
    Bad("weights: whole numbers whose scales are gone",
        tensors(lambda weights: weights.update({PROJECTION: (weights[PROJECTION] * 100).char()})), ("I8", "scales")),
    Bad("weights: no numbers", tensors(lambda weights: weights[PROJECTION].fill_(float("nan"))), ("NaN", "damaged")),
    Bad("weights: of another family", of_family("gpt_neox"), ("lack", "of llama's")),
    Bad("weights: only GGUF", model(lambda path: (path / "model.safetensors").rename(path / "model.gguf")),
        "model.gguf"),
    Bad("weights: a pickle", model(as_pickle), (r"\*\.bin", "--trust")),
    Bad("shards: one is missing",
        sharded({"weight_map": {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}}),
        ("1 of the 2 files", "model-00002-of-00002")),
    Bad("shards: a broken index", sharded('{"weight_map": {'), (INDEX, "not valid JSON")),
    Bad("shards: an empty index", sharded({}), (INDEX, "weight_map")),
    Bad("shards: an index of numbers", sharded({"weight_map": {"a": 1}}), (INDEX, "weight_map")),
    # Adapters
    Bad("adapter: beside a model", model(adapter_beside), ("adapter_config.json", "another/model", "elsewhere")),
    Bad("adapter: alone", model(adapter_alone), ("is an adapter for 'another/model'", "merge")),
    Bad("adapter: broken", content("adapter_config.json", "{"), ("adapter_config.json", "not valid JSON")),
    # The tokenizer
    Bad("tokenizer: missing", without("tokenizer.json", "tokenizer_config.json"), ("no tokenizer", "tokenizer.json")),
    Bad("tokenizer: only its settings", without("tokenizer.json"), ("no tokenizer", "tokenizer.json")),
    Bad("tokenizer: empty", content("tokenizer.json", b""), "tokenizer.json is empty"),
    Bad("tokenizer: cut", cut("tokenizer.json", 300), ("tokenizer.json", "not valid JSON")),
    Bad("tokenizer: a list", content("tokenizer.json", "[]"), "tokenizer.json"),
    Bad("tokenizer: a pointer", content("tokenizer.json", LFS_POINTER), ("tokenizer.json", "git lfs pull")),
    Bad("tokenizer: no vocabulary", content("tokenizer.json", "{}"), "tokenizer"),
    Bad("tokenizer: settings cut", cut("tokenizer_config.json", 40), ("tokenizer_config.json", "not valid JSON")),
    Bad("tokenizer: settings a list", content("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "names and values")),
    Bad("tokenizer: special tokens broken", content("special_tokens_map.json", "}"),
        ("special_tokens_map.json", "not valid JSON")),
    Bad("tokenizer: added tokens UTF-16", content("added_tokens.json", "{}".encode("utf-16")),
        ("added_tokens.json", "UTF-8")),
    Bad("tokenizer: a template in CP949", content("chat_template.jinja", "질문: {{ messages }}".encode("cp949")),
        ("chat_template.jinja", "UTF-8")),
    Bad("tokenizer: another template in CP949", content("additional_chat_templates/tools.jinja", "질문".encode("cp949")),
        ("tools.jinja", "UTF-8")),
    Bad("tokenizer: no end", tokenizer(lambda made: setattr(made, "eos_token", None)),
        ("no end token", "tokenizer_args")),
    Bad("tokenizer: an end beyond the model",
        tokenizer(lambda made: made.add_tokens(words(600)) and made.add_special_tokens({"eos_token": "<end>"})),
        ("no row", "tokenizer_args")),
    Bad("tokenizer: padding beyond the model",
        tokenizer(lambda made: made.add_tokens(words(600)) and made.add_special_tokens({"pad_token": "<blank>"})),
        ("no row", "another model's")),
    Bad("tokenizer: another model's", tokenizer(lambda made: made.add_tokens(words(200))), ("no row", "512")),
    Bad("tokenizer: an end that it has not", {"tokenizer_args": {"eos_token": "<nosuch>"}},
        ("tokenizer_args", "<nosuch>")),
    Bad("tokenizer: an end that is misspelt", {"tokenizer_args": {"eos_token": "</S>"}},
        ("tokenizer_args", "Did you mean '</s>'")),
    Bad("tokenizer: padding that it has not", {"tokenizer_args": {"pad_token": "[PAD]"}},
        ("tokenizer_args", r"\[PAD\]")),
    Bad("tokenizer: a number for an end", {"tokenizer_args": {"eos_token": 5}}, "tokenizer_args"),
    Bad("tokenizer: an end that only its settings name", edited("tokenizer_config.json", {"eos_token": "<nosuch>"}),
        ("<nosuch>", "tokenizer_args")),
    Bad("tokenizer: an end that only its map names", edited("special_tokens_map.json", {"eos_token": "<other>"}),
        ("<other>", "tokenizer_args")),
    # Habits of answering
    Bad("habits: broken", content("generation_config.json", "{,}"), ("generation_config.json", "not valid JSON")),
    Bad("habits: a list", content("generation_config.json", "[2]"), ("generation_config.json", "names and values")),
    Bad("habits: text for an end", habits(eos_token_id="</s>"), ("generation_config", "eos_token_id")),
    Bad("habits: yes for an end", habits(eos_token_id=True), ("generation_config", "eos_token_id")),
    Bad("habits: a number for words", habits(stop_strings=5), ("generation_config", "stop_strings")),
    Bad("habits: text for tokens", habits(suppress_tokens="all"), ("generation_config", "suppress_tokens")),
    Bad("habits: words of nothing", habits(stop_strings=["", "끝"]), ("generation_config", "none of them empty")),
    Bad("habits: an end below nothing", habits(eos_token_id=[1, -7]), ("generation_config", "eos_token_id")),
    Bad("habits: a word of no tokens", habits(bad_words_ids=[[]]), ("generation_config", "bad_words_ids")),
    Bad("habits: an end beyond the vocabulary", habits(eos_token_id=[1, 99_999]), ("eos_token_id", "99999", "512")),
    Bad("habits: a token beyond it", habits(suppress_tokens=[512]), ("suppress_tokens", "the token 512")),
    Bad("habits: a word beyond it", habits(bad_words_ids=[[5], [7, 600]]), ("bad_words_ids", "600")),
    Bad("habits: one list for lists", habits(bad_words_ids=[1, 2]), ("generation_config", "bad_words_ids")),
]
