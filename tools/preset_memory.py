"""Write llmlab/bundled/memory.yaml: what each preset takes in memory, by the rule of nbs/09_experiment/10_memory.ipynb."""
from llmlab.common.files import bundled, write_atomic
from llmlab.experiment.memory import memory_key, preset_memory
from llmlab.models.presets import MODELS


def written() -> str:
    """Give the file as it should be: one line for each preset, under a hash of what it depends on."""
    lines = ["# Bytes by preset, so that `llmlab presets` needs no torch. Written by tools/preset_memory.py"]
    for name, preset in MODELS.items():
        sizes = ", ".join(f"{kind}: {size}" for kind, size in preset_memory(preset).items())
        lines.append(f"'{memory_key(preset)}': {{{sizes}}}  # {name}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_atomic(bundled("memory.yaml"), written())
