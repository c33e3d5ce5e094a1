"""What exact training must compute: distinct tokens, visible pairs, supervised positions, and the multiplications they ask for. Pure functions."""
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder, by the names of transformers' config."""
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    windows: tuple  # a layer: tokens it looks back on, or None for all

    @property
    def products(self) -> dict:
        """Name the matrices of one block, as (in, out)."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {"q_proj": (self.hidden_size, queries), "k_proj": (self.hidden_size, keys), "v_proj": (self.hidden_size, keys),
                "o_proj": (queries, self.hidden_size), "gate_proj": (self.hidden_size, self.intermediate_size),
                "up_proj": (self.hidden_size, self.intermediate_size), "down_proj": (self.intermediate_size, self.hidden_size)}

    @property
    def block_parameters(self) -> int:
        """Count the weights of one block's matrices."""
        return sum(one * other for one, other in self.products.values())


def sizes_of(config: dict) -> Sizes:
    """Read sizes from a checkpoint's config.json (Llama and Gemma 3 families)."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if kinds is None and config["model_type"] == "gemma3_text":
        pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
        kinds = ["full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)]
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds or ["full_attention"] * layers)
    return Sizes(config["hidden_size"], config["intermediate_size"], heads, config.get("num_key_value_heads") or heads,
                 config.get("head_dim") or config["hidden_size"] // heads, config["vocab_size"], windows)


def common_prefix(one: list, other: list) -> int:
    """Count the tokens that two sequences begin with alike."""
    for place, (left, right) in enumerate(zip(one, other)):
        if left != right:
            return place
    return min(len(one), len(other))


def distinct_depths(sequences: list) -> list:
    """List the depth (0: first token) of each distinct prefix token of a set of sequences: those of its prefix tree."""
    depths, before = [], []
    for sequence in sorted(sequences):
        depths += range(common_prefix(before, sequence), len(sequence))
        before = sequence
    return depths


def count_work(examples: list, sizes: Sizes, lora_r: int = 8, lora_targets: tuple = ("q_proj", "v_proj")) -> dict:
    """Count tokens, pairs and floating point operations (two a multiplication with its addition) of one exact step.

    Forward and the activations' gradients of every block at each distinct token; attention over visible pairs alone
    (two products forward, four backward); LoRA's two matrices forward and both gradients; the frozen head forward and
    backward at supervised positions. `spared` is what an implementation may leave out of these besides, and stay exact: below
    the first layer's adapters no gradient is wanted, and in the last layer only supervised positions are read.
    """
    depths = distinct_depths([example["input_ids"] for example in examples])
    tokens, supervised = len(depths), sum(label != -100 for example in examples for label in example["labels"][1:])
    pairs = [sum(min(depth + 1, window or depth + 1) for depth in depths) for window in sizes.windows]
    layers, width = len(sizes.windows), sizes.num_attention_heads * sizes.head_dim
    lora = sum(lora_r * sum(sizes.products[name]) for name in lora_targets) * layers
    parts = {"blocks": 4 * sizes.block_parameters * layers * tokens, "attention": 12 * width * sum(pairs), "lora": 6 * lora * tokens,
             "head": 4 * sizes.hidden_size * sizes.vocab_size * supervised}
    wide = sum(
        sizes.products[name][0] * sizes.products[name][1]
        for name in ("o_proj", "gate_proj", "up_proj", "down_proj", "q_proj")
    )
    inward = sum(sizes.products[name][0] * sizes.products[name][1] for name in ("q_proj", "k_proj", "v_proj"))
    spared = 4 * wide * (tokens - min(tokens, supervised)) + 2 * inward * tokens
    return {"examples": len(examples), "tokens": sum(len(example["input_ids"]) for example in examples), "distinct_tokens": tokens,
            "supervised_tokens": supervised, "visible_pairs": sum(pairs), "flops": {**parts, "total": sum(parts.values())}, "spared": spared,
            "sizes": asdict(sizes)}
