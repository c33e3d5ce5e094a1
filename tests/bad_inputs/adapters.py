"""LoRA on layers that there are not, in ways that peft does not know, and models that cannot learn to write."""
import functools
import tempfile
from pathlib import Path

from llmlab.models.testing import save_tiny_checkpoint

from . import Bad


@functools.cache
def _family(family):
    "Write a tiny model of a family once."
    return str(save_tiny_checkpoint(Path(tempfile.mkdtemp(prefix="llmlab-")) / family, family))


def of(family, **settings):
    "Make settings for a tiny model of a family."
    return lambda folder: {"model": _family(family), **settings}


def args(**lora_args):
    "Make settings that hand something on to peft."
    return {"lora_args": lora_args}


CASES = [
    Bad("biases that bitsandbytes rounds", of("gpt_neox", load_in_4bit=True, dtype="bfloat16", bias="all", target_modules=["query_key_value"]), ("16 bits", "bias=none")),
    Bad("an expression with open brackets", {"target_modules": "(("}, ("target_modules='\\(\\('", "regular expression", "list of names")),
    Bad("an expression that fits nothing", {"target_modules": ".*attn_layer.*"}, ("matches no layer of llama", "q_proj")),
    Bad("an expression of the end of a name alone", {"target_modules": "q_proj"}, ("target_modules", "matches no layer|q_proj")),
    Bad("a misspelt layer", {"target_modules": ["q_porj"]}, ("'q_porj'", "Did you mean 'q_proj'")),
    Bad("another family's layer", {"target_modules": ["query_key_value"]}, ("llama has no layer 'query_key_value'", "q_proj")),
    Bad("an empty name", {"target_modules": ["q_proj", ""]}, ("target_modules", "''", "leave it out|no layer")),
    Bad("a layer with a part cut off", {"target_modules": ["_proj"]}, "no layer '_proj'"),
    Bad("a layer saved whole that there is not", {"modules_to_save": ["lm_haed"]}, ("modules_to_save", "Did you mean 'lm_head'")),
    Bad("a start of the matrices that peft does not know", args(init_lora_weights="magic"), ("magic", "lora_args")),
    Bad("a number of layers in words", args(layers_to_transform="hello"), ("peft refuses|layers_to_transform", "lora_args")),
    Bad("layers that there are not", args(layers_to_transform=[99]), ("peft refuses", "\\[99\\]|lora_args")),
    Bad("a misspelt field of peft's", args(init_lora_wieghts=True), ("init_lora_wieghts", "init_lora_weights")),
    Bad("ranks by an expression with open brackets", args(rank_pattern={"((": 4}), ("peft refuses|rank_pattern", "lora_args")),
    Bad("ranks for layers that there are not", args(rank_pattern={"w_proj": 4}), ("w_proj", "lora_args")),
    Bad("a rank in words", args(rank_pattern={"q_proj": "many"}), ("peft refuses", "lora_args")),
    Bad("a scale for layers that there are not", args(alpha_pattern={"w_proj": 4}), ("w_proj", "lora_args")),
    Bad("nothing excluded", args(exclude_modules=["w_proj"]), ("exclude_modules", "w_proj")),
    Bad("everything excluded", args(exclude_modules=["q_proj", "v_proj"]), ("peft refuses", "exclude_modules")),
    Bad("a weight that there is not", args(target_parameters=["experts.down_proj"]), ("target_parameters", "llama has no weight")),
    Bad("weights as text", args(target_parameters="down_proj.weight"), ("target_parameters", "valid (array|string)")),
    Bad("weights as numbers", args(target_parameters=[3]), ("target_parameters", "valid (array|string)")),
    Bad("settings of a start that is not chosen", args(loftq_config={"loftq_bits": 4}), ("loftq_config", "ignored|lora_args")),
    Bad("the rank zero", {"lora_r": 0}, "lora_r"),
    Bad("a rank in halves", {"lora_r": 1.5}, "lora_r"),
    Bad("a scale beyond numbers", {"lora_alpha": 10**400}, "lora_alpha|peft refuses"),
    Bad("a dropout of everything", {"lora_dropout": 1.5}, "lora_dropout"),
    Bad("biases of another kind", {"bias": "some"}, ("bias", "lora_only")),
    Bad("layers of Mamba", of("mamba", target_modules="all-linear"), ("out_proj of mamba", "target_modules=\\[dt_proj, in_proj, x_proj\\]")),
    Bad("Mamba as it comes", of("mamba"), ("mamba", "set target_modules=\\[")),
    Bad("a misspelt expert", of("mixtral", target_modules=["experts.dwn_proj"]), ("mixtral has no layer", "Did you mean 'experts.down_proj'")),
    Bad("an old name of experts", of("mixtral", target_modules=["w1"]), ("mixtral has no layer 'w1'", "experts.gate_up_proj")),
    Bad("dropout on experts", of("mixtral", target_modules="all-linear", lora_dropout=0.1), ("lora_dropout=0.1", "experts", "target_modules")),
    Bad("DoRA on experts", of("qwen2_moe", target_modules="all-linear", use_dora=True), ("use_dora=True", "experts", "target_modules")),
    Bad("some layers of experts", of("solar_open", target_modules="all-linear", **args(layers_to_transform=[0])), ("layers_to_transform", "experts")),
    Bad("a misspelt weight of experts", of("gpt_oss", **args(target_parameters=["experts.gate_proj"])), ("gpt_oss has no weight", "Did you mean")),
    Bad("an expression that fits a norm", {"target_modules": ".*post_attention.*"}, ("LlamaRMSNorm", "q_proj")),
    Bad("a model that only reads", of("bert"), ("bert cannot be trained", "reads ahead", "left to right")),
    Bad("a model that only reads, trained whole", of("roberta", use_peft=False), ("roberta cannot be trained", "left to right")),
]
