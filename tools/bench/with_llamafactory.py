"""Contestant: LLaMA-Factory's own sft workflow on rows of tokens. Variants: padded-N, packed-N (its neat packing, N tokens).

It reads tokens by its `tokenized_path`; packs are made by its own packing. torchaudio, which it imports whatever the data, is stood in for: no sound here.
"""
import importlib.util
import sys
import tempfile
import types

from clock import Clock, clock_callback, common_arguments, read_task, report, split_evenly, warm_up_on


def pack(examples: list, tokenizer, length: int) -> dict:
    """Pack rows of tokens as LLaMA-Factory packs its own."""
    from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor

    class Given(PackedSupervisedDatasetProcessor):
        "Takes the tokens it is handed."

        def _encode_data_example(self, prompt, response, **others):
            return prompt[0]["input_ids"], prompt[0]["labels"]

    settings = types.SimpleNamespace(cutoff_len=length, neat_packing=True)
    count = len(examples)
    none = {name: [None] * count for name in ("_system", "_tools", "_images", "_videos", "_audios")}
    return Given(None, tokenizer, None, settings).preprocess_dataset(
        {"_prompt": [[example] for example in examples], "_response": [[""]] * count, **none}
    )


def main():
    if importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.util.spec_from_loader("torchaudio", None)
    import torch
    from datasets import Dataset, DatasetDict
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft.workflow import run_sft
    from transformers import AutoTokenizer

    task = read_task()
    (kind, size), examples, clock = task["variant"].split("-"), task["examples"], Clock()
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if kind == "packed":
        length = max(int(size), max(len(example["input_ids"]) for example in examples))
        length += -(length + 1) % 8  # it adds one, and its collator pads to a multiple of 8
        rows = dict(pack(examples, tokenizer, length))
        size, number = 1, len(rows["input_ids"])
    else:
        size, number = split_evenly(len(examples), int(size))
        length = max(len(example["input_ids"]) for example in examples)
        rows = {name: [example[name] for example in examples] for name in ("input_ids", "labels")}
        rows |= {
            "attention_mask": [[1] * len(ids) for ids in rows["input_ids"]],
            **{name: [None] * len(examples) for name in ("images", "videos", "audios")}
        }
    with tempfile.TemporaryDirectory() as folder:
        DatasetDict(train=Dataset.from_dict(rows)).save_to_disk(f"{folder}/tokens")
        settings = {
            name: value for name,
            value in common_arguments(task, f"{folder}/out").items() if name not in ("optim", "gradient_checkpointing")
        }
        model, data, training, tuning, generating = get_train_args({
            **settings, "stage": "sft", "do_train": True, "model_name_or_path": task["model"], "adapter_name_or_path": task["adapter"],
            "create_new_adapter": False, "finetuning_type": "lora", "lora_rank": task["lora_r"], "lora_alpha": task["lora_alpha"],
            "lora_target": ",".join(task["lora_targets"]), "template": "empty", "dataset": "given", "dataset_dir": "ONLINE",
            "tokenized_path": f"{folder}/tokens", "cutoff_len": length, "packing": kind == "packed", "neat_packing": kind == "packed",
            "per_device_train_batch_size": size, "gradient_accumulation_steps": number, "optim": "adamw_torch", "flash_attn": task.get("attention", "sdpa"),
            "disable_gradient_checkpointing": True, "upcast_layernorm": False, "infer_dtype": "float32", "trust_remote_code": False,
            "overwrite_output_dir": True, "dataloader_pin_memory": False, "train_sampling_strategy": "group_by_length"})
        model.compute_dtype = torch.float32
        watch = clock_callback(clock, warm_up_on(examples))
        run_sft(model, data, training, tuning, generating, [watch])
    report(task, clock, watch.loss, watch.tokens)


if __name__ == "__main__":
    main()
