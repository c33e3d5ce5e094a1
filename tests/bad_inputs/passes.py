"""Settings by which a pass would be something else than its examples, each as if it stood alone."""
from llmlab.models.testing import tiny_model, tiny_tokenizer

from . import Bad


def model(family, context_length=None, sizes=None, **settings):
    "Make settings whose model is a tiny one of a family."
    def write(folder):
        tiny_model(family, **(sizes or {})).save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")
        path = str(folder / "model")
        return {"model": {"id": path, "context_length": context_length} if context_length else path, **settings}

    return write


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 256}
HUNYUAN = {"rope_parameters": {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}, "max_position_embeddings": 256}
NOISE = {"training_args": {"neftune_noise_alpha": 5}}
RWKV = {"batching": "padded", "padding_side": "left", "target_modules": ["key"]}

CASES = [
    Bad("dynamic RoPE beyond its length", model("llama", 1024, DYNAMIC), ("max_length=1024", "256", "dynamic")),
    Bad("dynamic RoPE a token beyond its length", model("llama", 1024, DYNAMIC, max_length=257), "Set max_length=256"),
    Bad("dynamic RoPE with a fixed alpha", model("hunyuan_v1_dense", 1024, HUNYUAN, max_length=300), "Set max_length=256"),
    Bad("dynamic RoPE, padded", model("qwen2", 512, DYNAMIC, max_length=512, batching="padded"), "Set max_length=256"),
    Bad("noise by length in a tree", NOISE, ("neftune_noise_alpha", "batching=padded")),
    Bad("noise by length in a pack", {**NOISE, "batching": "packed"}, ("neftune_noise_alpha", "batching=padded")),
    Bad("a state that runs through padding", model("rwkv", **RWKV), ("padding_side=left", "Set padding_side=right")),
    Bad("padding to one length before a state", model("rwkv", **RWKV, padding="max_length", max_length=512,
                                                       per_device_train_batch_size=1), ("padding_side=left", "padding_side=right")),
]
