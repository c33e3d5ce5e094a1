"""One experiment by two processes: the same step as one takes, under torchrun and on two Ray nodes of which one is killed."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmlab.models.testing import save_tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds until something counts as stuck
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "IN_TEST")},
               "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
SMALL = {"max_train_samples": 16, "max_eval_samples": 4, "num_samples": 1, "max_new_tokens": 4}

# Takes three steps and writes the loss trace, the held-out loss and the gradients of the first step.
STEPS = """
import sys, tempfile
import torch
from transformers import TrainerCallback
from llmlab.config.load import make_config
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.tokens.tokenize import tokenize
from llmlab.tokens.prompts import PROMPTS, render
from llmlab.training.trainer import build_model, make_trainer

class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **others):
        if not state.global_step:
            found[:] = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

def take_steps(folder, batching, size):
    config = make_config({"model": folder, "report_to": [], "max_steps": 3, "learning_rate": 1e-2, "max_grad_norm": 0, "eval_strategy": "no", "batching": batching,
                          "per_device_train_batch_size": size, "gradient_accumulation_steps": 2, **({"pack_tokens": 128} if batching != "padded" else {})})
    model, tokenizer = build_model(config, locate_model(config)), load_tokenizer(folder, config)
    rows = [dict(context="서울은 대한민국의 수도이다. " * (number // 4), question="무엇인가요?" * (number % 3 + 1), answer="대한민국" * (number * number % 7 + 1)) for number in range(24)]
    examples = [tokenize(render(PROMPTS["lab"], row), tokenizer) for row in rows]
    trainer = make_trainer(config, model, tokenizer, examples, examples[:7], tempfile.mkdtemp(), [Gradients()])
    trainer.train()
    return trainer.accelerator.num_processes, trainer.loss_trace, trainer.evaluate()["eval_loss"], list(found)

found = []
if __name__ == "__main__":
    folder, output, *batchings = sys.argv[1:]
    results = {batching: take_steps(folder, batching, 2) for batching in batchings}
    if torch.distributed.get_rank() == 0:
        torch.save(results, output)
"""


def parameters(**settings):
    """Write settings as the words of a command line."""
    return [str(word) for name, value in {**SMALL, **settings}.items() for word in ("-p", name, value)]


def only_run(output):
    """Return the folder and the record of the one run there is."""
    path, = output.glob("*/record.json")
    return path.parent, json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small checkpoint of the LLaMA family."""
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama"))


def test_two_processes_take_the_same_steps_as_one(tiny, tmp_path):
    """Losses, held-out loss and gradients of two processes are those of one with the same examples, for every batching."""
    script, output, batchings = tmp_path / "steps.py", tmp_path / "two.pt", ("tree", "packed", "padded")
    script.write_text(STEPS, encoding="utf-8")
    done = subprocess.run(
        [*TORCHRUN, script, tiny, output, *batchings], cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True,
        timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    here = {"__name__": "steps"}
    exec(STEPS, here)
    for batching, (processes, losses, held_out, gradients) in torch.load(output).items():
        one, expected_losses, expected_held_out, expected_gradients = here["take_steps"](tiny, batching, 4)
        assert (one, processes) == (1, 2)
        assert losses == pytest.approx(expected_losses, rel=1e-5) and held_out == pytest.approx(
            expected_held_out, rel=1e-5
        )
        difference = torch.cat([(a - b).flatten() for a, b in zip(gradients, expected_gradients)])
        whole = torch.cat([gradient.flatten() for gradient in expected_gradients])
        assert len(gradients) == len(expected_gradients) and whole.norm() > 0
        assert difference.norm() / whole.norm() < 1e-5, batching
        print(
            batching, max(abs(a - b) for a, b in zip(losses, expected_losses)),
            (difference.norm() / whole.norm()).item(), difference.abs().max().item()
        )


def test_torchrun_gives_one_record(tiny, tmp_path):
    """Under torchrun the first process starts the notebook: one record, one MLflow run, and the weights that the workers trained."""
    done = subprocess.run([*TORCHRUN, "-m", "llmlab.distributed", *parameters(model=tiny, max_steps=3, output_dir=tmp_path)], cwd=ROOT, env=ENVIRONMENT, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    folder, record = only_run(tmp_path)
    assert record["status"] == "finished" and record["params"]["num_workers"] == 2 and record["metrics"]["steps"] == 3
    assert record["metrics"]["eval_loss"] < record["metrics"]["eval_loss_before"]
    assert not (folder / "workers").exists() and (folder / "train.html").exists() and (folder / "adapter").exists()


def test_a_mistake_ends_all_processes_with_its_message(tiny, tmp_path):
    """What the notebook refuses ends every process, with the message once."""
    done = subprocess.run([*TORCHRUN, "-m", "llmlab.distributed", *parameters(model=tiny, lora_r=0, output_dir=tmp_path / "runs")], cwd=ROOT, env=ENVIRONMENT, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert done.returncode != 0 and done.stderr.count("Error: lora_r=") == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_alone_it_says_how_to_start_it():
    """Started once, the entry names torchrun."""
    from click.testing import CliRunner

    from llmlab.scale.workers import main

    done = CliRunner().invoke(main, [], env={"WORLD_SIZE": "1"})
    assert done.exit_code == 2 and "torchrun" in done.output


@pytest.mark.slow
def test_a_killed_node_costs_steps_not_the_run(tiny, tmp_path):
    """Two workers on two Ray nodes: one node is killed, another takes its place, and all go on from the newest checkpoint."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'llmlab[ray]')")
    from ray.cluster_utils import Cluster

    from llmlab.scale.ray import QUIET

    os.environ.update(QUIET)
    size = dict(num_cpus=1, object_store_memory=10**8)
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        second = cluster.add_node(**size)
        settings = parameters(
            model=tiny, num_workers=2, max_steps=30, save_strategy="steps", save_steps=2, output_dir=tmp_path,
            ray_address=cluster.address, report_to="[]"
        )
        process = subprocess.Popen(
            ["llmlab", "train", *settings], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + PATIENCE
        while not list(tmp_path.glob("*/checkpoints/checkpoint-4/loss_trace.json")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(**size)
        shown = process.communicate(timeout=PATIENCE)[0]
    finally:
        cluster.shutdown()
    assert process.returncode == 0, shown
    folder, record = only_run(tmp_path)
    assert record["status"] == "finished" and "A worker was lost" in (folder / "train.html").read_text(encoding="utf-8")
    steps = [
        entry["step"] for entry in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    assert steps == list(range(1, 31))
