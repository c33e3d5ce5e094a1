"""In llmlab's environment: choose examples, turn them into tokens, make the adapter that all begin with, and write the task of one pair."""
import json
import sys
from pathlib import Path

from flops import count_work, sizes_of

QUESTIONS = 6  # of one paragraph, at most
LONGEST = 2048  # tokens of an example


def read_rows(source: str) -> list:
    """Read a set's rows in the lab's shape."""
    from llmlab.common.settings import DataSettings
    from llmlab.data.report import SplitReport, check_rows
    from llmlab.data.sources import check_dataset_name, open_member

    member = check_dataset_name(source)[0]
    _, _, readers = open_member(member, None, DataSettings(), [])
    report = SplitReport(member.name, member.preset.license)
    return list(check_rows(next(iter(readers.values()))(), report, "auto", {}))


def spread(things: list, count: int) -> list:
    """Take `count` things from all over a list, always the same ones."""
    return [things[(2 * number + 1) * len(things) // (2 * count)] for number in range(min(count, len(things)))]


def choose_rows(rows: list, workload: str, count: int) -> list:
    """Choose whole groups of questions on one paragraph, or rows from all over the set."""
    if workload == "instruct":
        return spread(rows, count)
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    most = max(min(len(group), QUESTIONS) for group in groups.values())
    full = [group[:most] for group in groups.values() if len(group) >= most]
    return [row for group in spread(full, -(-count // most)) for row in group][:count]


def main(folder: str, workload: str, model: str, source: str, count: int, seed: int):
    from llmlab.config.load import make_config
    from llmlab.models.checkpoints import load_tokenizer, locate_model
    from llmlab.tokens.truncation import make_encoder, fit_rows
    from llmlab.tokens.prompts import find_prompt
    from llmlab.training.trainer import build_model

    checkpoint = locate_model(model)
    config = make_config(dict(model=model, seed=seed, target_modules=["q_proj", "v_proj"], lora_r=8, lora_alpha=16))
    encoder = make_encoder(find_prompt("lab"), load_tokenizer(checkpoint.path), max_length=LONGEST, truncation=False)
    rows = choose_rows(read_rows(source), workload, count)
    examples = []
    for example in (example for fitted in fit_rows(rows, encoder) for example in fitted.examples):
        labels = [-100] * len(example.input_ids)
        for start, stop in example.learned:
            labels[start:stop] = example.input_ids[start:stop]
        examples.append(
            {"input_ids": list(example.input_ids), "labels": labels, "prompt_length": example.prompt_length}
        )
    adapted = build_model(config, checkpoint)
    adapted.save_pretrained(f"{folder}/adapter")
    settings = {name: getattr(config, name) for name in ("seed", "learning_rate", "lora_r", "lora_alpha")}
    sizes = sizes_of(json.loads((checkpoint.path / "config.json").read_text()))
    task = {"workload": workload, "name": model, "model": str(checkpoint.path), "adapter": f"{folder}/adapter", "data": Path(source).name,
            "paragraphs": len({row["group"] for row in rows}), "lora_targets": ["q_proj", "v_proj"], **settings, "examples": examples,
            "work": count_work(examples, sizes, config.lora_r)}
    Path(folder, "task.json").write_text(json.dumps(task))


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:7]))
