"""Write the table "which model fits which card" into the how-to, in both languages: python tools/fits.py"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmlab.common.cards import CARDS  # noqa: E402
from llmlab.common.device import block_bytes  # noqa: E402
from llmlab.config.schema import default_of  # noqa: E402
from llmlab.experiment.memory import known_memory  # noqa: E402
from llmlab.experiment.plan import CUDA_CONTEXT_BYTES  # noqa: E402
from llmlab.experiment.trace import FRAGMENT_SHARE  # noqa: E402
from llmlab.models.presets import MODELS  # noqa: E402

PAGES = {"nbs/howto/fits.qmd": "model", "nbs/ko/fits.qmd": "모델"}
SHOWN = ["rtx-3060-12gb", "rtx-4080", "t4", "rtx-4090", "a10", "rtx-5090", "l40s", "rtx-a6000", "a100-80gb", "h200"]
WAYS = {"train_bfloat16": "16", "train_4bit": "4"}  # what the memory is of, and how it is written
TOKENS = default_of("per_device_train_batch_size") * default_of("max_length")  # that the presets' rule allows for
PLACE = re.compile(r"(<!-- written by tools/fits.py -->\n).*?(<!-- end -->\n)", re.DOTALL)


def saved(config: dict) -> int:
    """Count the bytes that gradient checkpointing saves: of all blocks but one, what is more than its input."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    block = block_bytes(hidden, config["intermediate_size"])
    return TOKENS * (layers * (block - 2 * hidden) - block)


def way(preset, card) -> str:
    """Say in how many bits a model's weights can be while LoRA is trained on a card; * with gradient checkpointing."""
    memory = known_memory(preset)
    for kind, word in WAYS.items():
        for less, mark in ((0, ""), (saved(preset.config), "\\*")):
            if (memory[kind] - less) * (1 + FRAGMENT_SHARE) + CUDA_CONTEXT_BYTES <= card.usable:
                return word + mark
    return ""


def table(heading: str) -> str:
    """Write the table, the smallest models first; those that fit in the same way stand on one line."""
    lines = {}
    for name, preset in MODELS.items():
        memory = known_memory(preset)
        row = tuple(way(preset, CARDS[card]) for card in SHOWN) if memory else None
        if row:
            lines.setdefault(row, []).append((memory["train_bfloat16"], name))
    rows = [[heading, *SHOWN], ["---", *[":-:"] * len(SHOWN)]]
    for row, models in sorted(lines.items(), key=lambda line: min(line[1])):
        rows.append([", ".join(name for _, name in sorted(models)), *row])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written(path: str) -> str:
    """Give a page as it should be."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return PLACE.sub(lambda found: f"{found[1]}\n{table(PAGES[path])}\n{found[2]}", text)


if __name__ == "__main__":
    for path in PAGES:
        (ROOT / path).write_text(written(path), encoding="utf-8")
