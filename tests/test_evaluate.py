"""Evaluations, as a person starts them: of a run, of a bare model, and on lm-eval's tasks."""
import ast
import json
import re
from functools import partial
from pathlib import Path

import nbformat
import papermill
import pytest
import torch

from llmlab.config.schema import ExperimentConfig
from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.data.load import load_data
from llmlab.evaluation.answers import answer_rows, evaluate_answers, make_samples
from llmlab.runs.evaluate import compare_rows, open_evaluation
from llmlab.evaluation.benchmarks import run_lm_eval
from llmlab.models.adapters import add_lora
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.prompts import find_prompt
from llmlab.runs.folders import collect_answers
from llmlab.runs.lifecycle import finish_record, start_record
from llmlab.runs.parameters import plan_evaluation
from llmlab.experiment.resolve import resolve_config
from llmlab.models.testing import save_tiny_checkpoint, tiny_model, tiny_tokenizer
from llmlab.training.trainer import build_model, make_trainer, run_training

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "evaluate.ipynb"


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where the runs of these tests are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small checkpoint of the LLaMA family."""
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama"))


def train(output, tiny, **settings):
    """Train for two steps, scoring answers where `eval_generate_steps` says so; return the record and the trainer."""
    settings = dict(model=tiny, dataset="lab-ko-mrc", max_train_samples=8, max_eval_samples=6, max_steps=2, max_length=400, max_new_tokens=6,
                    learning_rate=1e-2, report_to=[], output_dir=str(output), prompt="koalpaca") | settings
    config = make_config(settings)
    record, checkpoint, data = start_record(config), locate_model(config), load_data(config)
    record.note(data=data.report.to_dict())
    config = resolve_config(config, data, checkpoint)
    record.set_config(config)
    tokenizer = load_tokenizer(checkpoint.path, config)
    shared = dict(prompt=find_prompt(config.prompt), tokenizer=tokenizer)
    rows = encode_rows(data.train, settings=config, **shared)
    held_out = encode_rows(data.held_out, settings=config, held_out=True, **shared)
    model = build_model(config, checkpoint)
    score = partial(evaluate_answers, model, tokenizer, held_out, config)
    trainer = make_trainer(config, model, tokenizer, rows.examples, held_out.examples, record.folder, (), score)
    metrics = run_training(trainer)
    samples, scores = make_samples(held_out.rows, None, answer_rows(model, tokenizer, held_out, config))
    finish_record(record, model, {**metrics, **scores}, samples, trainer.loss_trace)
    return record, trainer


@pytest.fixture(scope="module")
def run(output, tiny):
    """A finished run."""
    return train(output, tiny)[0]


def evaluate(tmp_path, **parameters):
    """Run the evaluate notebook; return its executed copy as text."""
    done = papermill.execute_notebook(
        str(NOTEBOOK), str(tmp_path / "out.ipynb"), parameters=parameters, cwd=str(NOTEBOOK.parent), progress_bar=False
    )
    return nbformat.writes(done)


def lines(path):
    """Read a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


# In training

def test_answering_does_not_change_a_training(tiny, tmp_path):
    """A run that answers questions in between, sampling even, has the losses of one that does not, and logs the scores."""
    settings = dict(eval_strategy="steps", eval_steps=1, lora_dropout=0.3, generation_args={"do_sample": True})
    plain, scored = train(tmp_path, tiny, **settings)[1], train(tmp_path, tiny, eval_generate_steps=1, **settings)[1]
    assert scored.loss_trace == plain.loss_trace and len(plain.loss_trace) == 2
    assert sum({"eval_exact_match", "eval_f1"} <= set(entry) for entry in scored.state.log_history) >= 2
    assert not any("eval_f1" in entry for entry in plain.state.log_history)


# The notebook

def test_parameters_are_settings():
    """Every parameter but `run` and `settings` is a setting of the lab, and says what it is."""
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert set(found) - set(ExperimentConfig.model_fields) == {"run", "settings"}
    assert all(entry["help"] for entry in found.values())


def test_notebook_is_short_cells_without_definitions():
    """Cells have one to four lines and define nothing."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert 1 <= len(cell.source.splitlines()) <= 4, cell.source
            assert not any(
                isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))
                for node in ast.walk(ast.parse(cell.source))
            ), cell.source


# A run

def test_run_is_evaluated_as_it_was_trained(run, output, tmp_path):
    """An evaluation of a run gives the loss, the answers and the scores that the run ended with, and lies in its folder."""
    page = evaluate(tmp_path, run=run.folder.name[:20], output_dir=str(output), question_set="lab-ko-questions")
    (folder,) = (run.folder / "evaluations").iterdir()
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["run_id"] == run.folder.name and scores["rows"].startswith(
        "6 held-out rows: those of the run"
    ) and scores["rows"][:30] in page
    for name in ("eval_loss", "exact_match", "f1"):
        assert scores["metrics"][name] == pytest.approx(run.content["metrics"][name], abs=1e-5), name
    assert scores["metrics"]["bits_per_character"] > 0 and scores["metrics"]["perplexity"] > 1
    assert scores["answered"] == {"mrc": 6}
    assert [sample["after"] for sample in lines(folder / "samples.jsonl")] == [
        sample["after"] for sample in lines(run.folder / "samples.jsonl")
    ]
    asked = lines(folder / "questions.jsonl")
    assert len(asked) == 10 and {"id", "kind", "question", "after"} <= set(asked[0])


def test_other_rows_are_said_to_be_others(run, output):
    """Rows chosen by other settings are not passed off as the run's."""
    parameters = dict(run="latest", output_dir=str(output), settings="{split_seed: 7}")
    assert plan_evaluation(parameters)[1].parent == run.folder / "evaluations"
    evaluation = open_evaluation(parameters)
    assert compare_rows(evaluation, load_data(evaluation.config).report).startswith("NOT the run's rows")


@pytest.mark.parametrize("parameters, message", [
    (dict(run="2999"), "is no run"),
    (dict(run="latest", model="gemma3-270m"), "Leave out one of the two"),
    (dict(run="latest", settings={"lora_r": 4}), "no effect on an evaluation"),
    (dict(settings={"doc_strid": 4}), "Did you mean 'doc_stride'?"),
    (dict(max_new_tokens="many"), "max_new_tokens"),
])
def test_mistakes_are_refused(run, output, parameters, message):
    """What cannot be is said before anything is loaded."""
    with pytest.raises(LabError, match=re.escape(message)):
        plan_evaluation({"output_dir": str(output), **parameters})


# A model as it is

def test_bare_model_on_a_mix(run, output, tiny, tmp_path):
    """A model that was never trained here gets a record of its own; a mix is scored by each row's task."""
    before = set(output.iterdir())
    evaluate(tmp_path, model=tiny, dataset="lab-ko-mrc+lab-ko-instruct", max_eval_samples=12, max_length=400, max_new_tokens=4, output_dir=str(output),
             settings={"sampling": "random"})
    (folder,) = set(output.iterdir()) - before
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["kind"] == "evaluation" and record["params"]["prompt"] == "lab"
    assert set(record["answered"]) == {"mrc", "instruct"} and sum(record["answered"].values()) == 12
    assert {"eval_loss", "exact_match", "f1", "chrf", "rouge_l", "rouge_l_syllables"} <= set(record["metrics"])
    assert {sample["task"]: {"f1", "chrf"} & set(sample) for sample in lines(folder / "samples.jsonl")} == {
        "mrc": {"f1"}, "instruct": {"chrf"}
    }
    assert not collect_answers(str(output), [])


# lm-eval

TASK = """task: lab_boolq
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{paragraph}}}}\\n질문: {{{{question}}}}\\n답변:"
doc_to_target: label
doc_to_choice: ["아니오", "예"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_lm_eval_scores_a_local_task(tmp_path):
    """A task of one's own, as a YAML file, is scored as by hand; the model is left as it was."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'llmlab[eval]'")
    rows = [
        dict(paragraph="서울은 대한민국의 수도이다. " * (number + 1), question="서울이 수도인가?", label=number % 2) for number in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    (tmp_path / "task.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"), encoding="utf-8")
    tokenizer, model = tiny_tokenizer(), add_lora(tiny_model("llama"), ["q_proj"], lora_r=4, lora_alpha=8).train()
    metrics = run_lm_eval(
        model, tokenizer, [str(tmp_path / "task.yaml")], lm_eval_limit=4, per_device_eval_batch_size=3
    )
    assert model.training
    right = 0
    for row in rows[:4]:
        scores = []
        for choice in ("아니오", "예"):
            start = tokenizer(f"{row['paragraph']}\n질문: {row['question']}\n답변:").input_ids
            end = tokenizer(f"{row['paragraph']}\n질문: {row['question']}\n답변: {choice}").input_ids[len(start):]
            with torch.no_grad():
                chances = model.eval()(torch.tensor([start + end])).logits[0, len(start) - 1:-1].log_softmax(-1)
            scores.append(sum(chances[place, token].item() for place, token in enumerate(end)))
        right += scores.index(max(scores)) == row["label"]
    assert metrics["lab_boolq_acc"] == pytest.approx(right / 4)
    with pytest.raises(LabError, match="nowhere.yaml.*no such file"):
        run_lm_eval(model, tokenizer, ["nowhere.yaml"])


def test_lm_eval_knows_the_korean_benchmarks():
    """KoBEST, KMMLU and HAERAE are among lm-eval's tasks, and a slip of the pen is answered with the closest."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed: pip install 'llmlab[eval]'")
    assert {"kobest", "kmmlu", "haerae"} <= {path.name for path in Path(tasks.__file__).parent.iterdir()}
    with pytest.raises(LabError, match="Did you mean 'kobest_boolq'"):
        run_lm_eval(None, None, ["kobest_bolq"])
