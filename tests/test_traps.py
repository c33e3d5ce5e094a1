"""The traps that fine-tuning is known for: each is set here, and must stay shut."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llmlab.config.load import make_config
from llmlab.data.load import load_data
from llmlab.evaluation.answers import answer_rows
from llmlab.evaluation.tasks import find_task
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.prompts import find_prompt
from llmlab.models.testing import save_tiny_checkpoint
from llmlab.training.trainer import build_model, make_trainer

ROOT = Path(__file__).resolve().parent.parent
CHATML = ("{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Make a tiny model whose tokenizer adds a beginning token, and whose chat template writes one too."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", beginning=True, chat_template=CHATML)


@pytest.fixture(scope="module")
def rows():
    """Read the bundled instructions."""
    return load_data("lab-ko-instruct", max_train_samples=60, max_eval_samples=10)


def encoded(rows, tokenizer, prompt, **settings):
    """Turn rows into examples, anew."""
    return encode_rows(
        rows, find_prompt(prompt), tokenizer, **{"max_length": 1024, "preprocessing_num_workers": 1, **settings}
    )


@pytest.mark.parametrize("prompt", ["chat", "lab", "koalpaca"])
def test_one_beginning_and_a_learned_end(tiny, rows, prompt):
    """A template that writes the beginning token over a tokenizer that adds it gives one; the end token is learned, last."""
    tokenizer = load_tokenizer(tiny)
    for example in encoded(rows.train, tokenizer, prompt).examples:
        assert example.input_ids.count(tokenizer.bos_token_id) == 1 and example.input_ids[0] == tokenizer.bos_token_id
        start, stop = example.learned[-1]
        assert example.input_ids[stop - 1] == tokenizer.eos_token_id and start == example.prompt_length
        assert example.input_ids[:start].count(tokenizer.eos_token_id) == (prompt == "chat")  # that of the user's turn


@pytest.mark.parametrize("prompt", ["chat", "lab", "koalpaca"])
def test_a_model_is_asked_as_it_was_trained(tiny, rows, prompt, monkeypatch):
    """The ids that generation is sent are the beginning of the training example, to the token."""
    from llmlab.evaluation import answers as evaluation

    tokenizer, sent = load_tokenizer(tiny), []
    held_out = encoded(rows.held_out, tokenizer, prompt, held_out=True)
    real = evaluation.generate_scored
    monkeypatch.setattr(
        evaluation, "generate_scored", lambda model, tokenizer, prompts, *rest,
        **named: sent.extend(prompts) or real(model, tokenizer, prompts, *rest, **named)
    )
    config = make_config({"model": str(tiny)})
    answer_rows(build_model(config, locate_model(config.model)), tokenizer, held_out, max_new_tokens=2)
    assert sorted(sent) == sorted(
        list(example.input_ids[:example.prompt_length]) for example in held_out.examples
    ) and len(sent) == 10


def test_nothing_is_learned_silently_when_a_prompt_is_cut(tiny):
    """Where max_length cuts a prompt short, an example keeps learned tokens, or is counted out with its reason."""
    tokenizer = load_tokenizer(tiny)
    rows = [
        {"question": "무엇인가요? " * size, "input": "", "context": "", "answer": "대한민국 " * size, "where": f"row {size}"}
        for size in (1, 5, 20, 40)
    ]
    rows = [{
        "id": row["where"], "task": "instruct", "source": "x", "system": "", "history": [], "answers": [row["answer"]],
        "group": "", **row
    } for row in rows]
    for length in (64, 128, 256):
        made = encoded(rows, tokenizer, "koalpaca", max_length=length)
        assert all(example.learned and len(example.input_ids) <= length for example in made.examples)
        assert len(made.rows) + sum(entry["rows"] for entry in made.tokens.dropped.values()) == len(rows)


def weights_after(tiny, examples, tokenizer, size, accumulation, tmp_path):
    """Take two optimizer steps of eight examples, in as many passes as asked for; return what was learned, and the losses."""
    config = make_config(dict(model=str(tiny), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=2, eval_strategy="no",
                              report_to=[], optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0))
    model = build_model(config, locate_model(config.model))
    trainer = make_trainer(config, model, tokenizer, examples, examples[:2], tmp_path / f"{size}x{accumulation}")
    trainer.train()
    return torch.cat(
        [weight.detach().flatten() for weight in model.parameters() if weight.requires_grad]
    ), trainer.loss_trace


def test_accumulation_changes_neither_loss_nor_gradient(tiny, rows, tmp_path):
    """8x1 equals 2x4 equals 1x8, on examples of very different lengths, to 1e-6."""
    tokenizer = load_tokenizer(tiny)
    examples = encoded(rows.train, tokenizer, "lab").examples
    expected, losses = weights_after(tiny, examples, tokenizer, 8, 1, tmp_path)
    for size, accumulation in ((2, 4), (1, 8)):
        weights, others = weights_after(tiny, examples, tokenizer, size, accumulation, tmp_path)
        assert (weights - expected).norm() < 1e-6 * expected.norm()
        assert max(abs(one - other) for one, other in zip(losses, others)) < 1e-6


def test_lora_starts_from_the_seed(tiny):
    """LoRA's random half is drawn after the seed is set, whatever was drawn before."""
    def start(seed):
        torch.manual_seed(random.randrange(2**31))
        model = build_model(make_config({"model": str(tiny), "seed": seed}), locate_model(str(tiny)))
        return torch.cat([weight.flatten() for name, weight in model.named_parameters() if "lora_A" in name])

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))


def test_rouge_reads_hangul():
    """The usual ROUGE tokenizer drops Hangul and gives 0; the lab's does not."""
    scores = find_task("instruct").measure("서울은 한국의 수도입니다", ["서울은 대한민국의 수도입니다"])
    assert 0 < scores["rouge_l"] < 1 and 0 < scores["chrf"]
    same = find_task("instruct").measure("대한민국의 수도", ["대한민국의 수도"])
    assert same["rouge_l"] == pytest.approx(1) and same["chrf"] == pytest.approx(1)


def lab(*words, **others):
    """Start a command of the lab."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "LLMLAB_RUN_DIR")
    }
    return subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT / "nbs", env=environment, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **others)


def test_resume_goes_on_in_the_same_mlflow_run(tiny, tmp_path):
    """A run killed in the middle goes on in its own record and its own MLflow run, and ends as one that was never stopped."""
    from llmlab.runs.tracking import connect

    settings = {"model": tiny, "max_train_samples": 64, "max_eval_samples": 4, "num_samples": 1, "max_new_tokens": 4, "max_steps": 16, "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "no", "learning_rate": 0.01}
    words = [word for name, value in settings.items() for word in ("-p", name, value)]

    def finish(*command):
        process = lab(*command)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output

    finish("papermill", "train.ipynb", *words, "-p", "output_dir", tmp_path / "whole")
    process, output = lab("papermill", "train.ipynb", *words, "-p", "output_dir", tmp_path / "cut"), tmp_path / "cut"
    deadline = time.monotonic() + 120
    while not list(output.glob("*/checkpoints/checkpoint-4/complete.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    folder = next(path.parent for path in output.glob("*/record.json"))
    before = json.loads((folder / "record.json").read_text())
    os.kill(before["process"], signal.SIGKILL)  # the kernel, where training runs
    os.killpg(process.pid, signal.SIGKILL)  # and papermill, which would note its end
    process.communicate()
    assert before["status"] == "running"
    finish("papermill", "train.ipynb", "-p", "resume", "latest", "-p", "output_dir", output)
    after, whole = (
        json.loads((path / "record.json").read_text())
        for path in (folder, next((tmp_path / "whole").glob("*/record.json")).parent)
    )
    assert after["status"] == "finished" and len(list(output.glob("*/record.json"))) == 1
    assert after["mlflow_run_id"] == before["mlflow_run_id"] and after["resumed"][0]["step"] >= 4
    assert after["adapter_sha256"] == whole["adapter_sha256"] and after["loss_trace_sha256"] == whole["loss_trace_sha256"]
    client = connect(f"sqlite:///{output / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [run.info.run_id for run in runs] == [after["mlflow_run_id"]] and runs[0].info.status == "FINISHED"
    refused = lab("papermill", "train.ipynb", "-p", "resume", folder)
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode != 0 and "finished" in output
