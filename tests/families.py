"""Walk over every causal family that transformers can build small; `python tests/families.py` writes the table anew."""
import os
import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
import yaml
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

from llmlab import LabError, make_config
from llmlab.models.adapters import add_lora, family_targets
from llmlab.models.testing import FAMILY_SIZES, TINY, tiny_tokenizer
from llmlab.tokens.tokenize import Example
from llmlab.training.gradients import compare_gradients
from llmlab.training.trainer import make_batcher, training_arguments

TABLE = Path(__file__).with_name("families.yaml")
MOST_WEIGHTS = 3_000_000
SMALL = {  # what a family's config may be told besides TINY, where it knows the name
    4: [
        "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "mamba_n_heads", "mamba_num_heads",
        "num_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads", "encoder_attention_heads",
        "num_decoder_attention_heads", "num_kv_shared_layers", "num_encoder_attention_heads",
        "swa_num_attention_heads", "mamba_dt_rank", "time_step_rank", "conv_kernel"
    ],
    2: [
        "num_experts_per_tok", "moe_k", "moe_topk", "zero_expert_num", "index_n_heads", "linear_num_key_heads",
        "linear_num_value_heads", "linear_num_heads", "num_blocks", "decoder_layers", "num_decoder_layers", "n_layer",
        "n_layers", "num_layers", "num_kv_heads", "swa_num_key_value_heads", "num_hash_layers"
    ],
    1: [
        "n_group", "topk_group", "first_k_dense_replace", "encoder_layers", "num_encoder_layers",
        "num_layers_per_stack"
    ],
    8: [
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim",
        "linear_head_dim", "mamba_d_state", "ssm_state_size", "state_size", "rotary_dim", "dim_head", "d_head",
        "swa_head_dim", "kv_channels", "laurel_rank", "hc_lowrank"
    ],
    16: [
        "q_lora_rank", "kv_lora_rank", "o_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size",
        "expert_ffn_hidden_size", "shared_experts_intermediate_size", "shared_intermediate_size",
        "moe_shared_expert_intermediate_size", "router_hidden_size", "index_head_dim", "mamba_d_head",
        "mamba_head_dim", "mamba_headdim", "backbone_hidden_size", "pronunciation_embed_dim", "shape_embed_dim"
    ],
    32: [
        "d_model", "n_embd", "emb_dim", "embedding_size", "embedding_dim", "word_embed_proj_dim", "lru_width",
        "attention_hidden_size", "dense_intermediate_size", "intermediate_size_mlp", "ffn_hidden_size",
        "input_embedding_size", "output_embedding_size"
    ],
    64: [
        "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "dim_ff", "d_inner", "mamba_d_ssm", "index_topk",
        "feed_forward_size"
    ],
    512: [
        "vocab_size_per_layer_input", "pronunciation_vocab_size", "shape_vocab_size", "decoder_vocab_size",
        "unpadded_vocab_size"
    ],
}
NAMES = {name: size for size, names in SMALL.items() for name in names}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN = {  # family -> sizes that follow from no rule; None: not told
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "deepseek_v4": {"head_dim": 32, "num_key_value_heads": 1, "o_groups": 2, "qk_rope_head_dim": None,
                    "index_head_dim": 32},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16},
    "falcon": {"head_dim": None},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "git": {"vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                              "num_attention_heads": 2, "image_size": 28, "patch_size": 14}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    "prophetnet": {"num_hidden_layers": None},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                       "indexer_compress_ratio": 2},
    "reformer": {"is_decoder": True, "axial_pos_shape": [32, 32], "axial_pos_embds_dim": [16, 16]},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
              "num_hidden_layers": 5, "attention_head_dim": 16, "num_key_value_heads": 4, "attention_hidden_size": 64,
              "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "attention_head_dim": 16, "mamba_headdim": 8,
               "attention_hidden_size": 64, "num_key_value_heads": 4, "hybrid_layer_ids": [1], "adapter_rank": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def family_sizes(family):
    """Return the sizes of a small model of a family."""
    if family in FAMILY_SIZES:
        return FAMILY_SIZES[family]
    known = AutoConfig.for_model(family).to_dict()
    sizes = {**TINY, **{name: size for name, size in NAMES.items() if isinstance(known.get(name), int)}}
    if "kv_lora_rank" in known:
        sizes.pop("head_dim")
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if kinds := list(dict.fromkeys(known.get(name) or [])):
            sizes["num_hidden_layers"] = max(sizes["num_hidden_layers"], len(kinds))
            sizes[name] = kinds
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if name in sizes:
            sizes[name] = (sizes[name] * 9)[:sizes["num_hidden_layers"]]
    return {name: size for name, size in {**sizes, **OWN.get(family, {})}.items() if size is not None}


def small_model(family):
    """Build a family's model; raise a LookupError that says why it cannot be small."""
    try:
        config = AutoConfig.for_model(family)
        text = config.get_text_config(decoder=True)
        if text is not config and text.model_type != family:
            raise LookupError(f"the text side is {text.model_type}")
        config = AutoConfig.for_model(family, **family_sizes(family))
        with torch.device("meta"):
            size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST_WEIGHTS:
            raise LookupError(f"{size:,} weights")
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
    except LookupError:
        raise
    except Exception as error:
        raise LookupError(f"{type(error).__name__}: {str(error).strip()[:160]}") from error


def examples():
    """Make a step of three examples, of which two begin alike."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 500, (length,), generator=generator).tolist() for length in (11, 9, 13, 7)]
    rows = [texts[0] + texts[1], texts[0] + texts[2], texts[3]]
    return [Example(row, 5, ((5, len(row)),)) for row in rows]


def walk(family, targets=None):
    """Say how a family is trained: exact in trees, exact padded, or refused because."""
    try:
        model = small_model(family)
    except LookupError as error:
        return f"not built: {error.args[0]}"
    config = make_config({"model": "smollm2-135m", "max_length": 128, "report_to": []})
    try:
        with warnings.catch_warnings(action="ignore"):
            model = add_lora(model, targets or family_targets(None, family), lora_r=2)
            batcher = make_batcher(config, model, tiny_tokenizer(), training_arguments(config, "unused"))
    except LabError as error:
        way_out = re.search(r"set target_modules=\[(.*)\]", str(error))
        then = f" Then: {walk(family, way_out[1].split(', '))}" if way_out and not targets else ""
        return f"refused: {error}{then}"
    return f"exact {batcher.batching}{_compare(model, batcher)}"


def _compare(model, batcher):
    """Compare gradients in float64, or in float32 where a model knows no other; name layers that learn nothing."""
    note = ""
    try:
        check = compare_gradients(model.double(), batcher, examples())
    except (RuntimeError, TypeError, ValueError):
        note, check = " in float32", compare_gradients(model.float(), batcher, examples())
    assert check.passed, "\n".join(check.lines())
    idle = {name.partition(".lora_")[0].rpartition(".")[2] for name, weight in model.named_parameters()
            if "lora_B" in name and (weight.grad is None or not weight.grad.any())}
    return note + (f"; nothing is learned by {', '.join(sorted(idle))}" if idle else "")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = {}
    for family in sys.argv[1:] or FAMILIES:
        try:
            found[family] = walk(family)
        except Exception as error:
            found[family] = f"FAILS: {type(error).__name__}: {str(error).strip()[:300]}"
        print(family, found[family], flush=True)
    if not sys.argv[1:]:
        table = {"transformers": transformers.__version__, "families": found}
        TABLE.write_text(yaml.safe_dump(table, allow_unicode=True, sort_keys=False, width=10**6), encoding="utf-8")
