"""After training: merged, exported, described, talked to and served; always compared with the model that was trained."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmlab.runs.finished import FinishedRun, load_trained
from llmlab.publish.export import export_run
from llmlab.publish.chat import open_chat
from llmlab.publish.serve import log_mlflow_model
from llmlab.publish.merge import merge_run
from llmlab.runs.card import write_card
from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.data.load import load_data
from llmlab.evaluation.answers import answer_rows, make_samples
from llmlab.evaluation.generation import generate_answers
from llmlab.models.checkpoints import describe_model, load_base_model, load_tokenizer, locate_model
from llmlab.tokens.encode import encode_rows
from llmlab.tokens.tokenize import tokenize
from llmlab.tokens.prompts import find_prompt
from llmlab.runs.record import begin_record
from llmlab.experiment.resolve import describe_entries, resolve_config
from llmlab.runs.lifecycle import finish_record
from llmlab.models.testing import tiny_model, tiny_tokenizer
from llmlab.runs.tracking import MlflowRun, tracking_uri
from llmlab.training.trainer import build_model, make_trainer, run_training

QUESTIONS = ("서울은 어디인가요?", "봄에는 무엇이 피나요?", "17 + 25는?")
TEMPLATE = ("{% for message in messages %}{{ '<s>' + message.role + ': ' + message.content }}{% if message.role == 'assistant' %}</s>{% endif %}\n"
            "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}")


def save_checkpoint(folder, family, tied=None):
    """Write a tiny model; `tied` says whether embeddings and head are one, None leaves it to the family."""
    tiny_model(family, **({} if tied is None else {"tie_word_embeddings": tied})).save_pretrained(folder)
    tiny_tokenizer(beginning=family != "gpt_neox", chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def train(folder, family="llama", tied=None, track=False, **settings):
    """Train for two steps with the lab's functions; return the run's folder."""
    model = save_checkpoint(folder.parent / f"{folder.name}-base", family, tied)
    chosen = {"model": str(model), "prompt": "koalpaca", "dataset": "lab-ko-instruct", "max_train_samples": 8, "max_eval_samples": 2, "max_steps": 2, "learning_rate": 0.05,
              "max_new_tokens": 12, "report_to": [], "output_dir": str(folder.parent), **settings}
    config = make_config(chosen)
    checkpoint, record = locate_model(config), begin_record(folder, config)
    data = load_data(config)
    config = resolve_config(config, data, checkpoint)
    record.set_config(config, describe_entries(config, checkpoint, data))
    tokenizer = load_tokenizer(checkpoint.path, config)
    parts = [encode_rows(rows, find_prompt(config.prompt), tokenizer, config, held_out=held_out)
             for rows, held_out in ((data.train, False), (data.held_out, True))]
    if track:
        record.mlflow = MlflowRun.start(
            tracking_uri(None, config.output_dir), "after", folder.name, {}, folder.parent / "artifacts"
        )
        record.note(mlflow_run_id=record.mlflow.run_id)
    trained = build_model(config, checkpoint)
    record.note(data=data.report.to_dict(), model=describe_model(trained, checkpoint))
    before = answer_rows(trained, tokenizer, parts[1], config)
    trainer = make_trainer(config, trained, tokenizer, parts[0].examples, parts[1].examples, folder)
    metrics = run_training(trainer)
    after = answer_rows(trained, tokenizer, parts[1], config)
    samples, scores = make_samples(parts[1].rows, before, after, config.task)
    finish_record(record, trained, {**metrics, **scores}, samples, trainer.loss_trace)
    return folder


def logits(model, tokenizer):
    """Compute logits of a Korean text."""
    with torch.no_grad():
        return model(input_ids=tokenizer("받침이 있으면 ‘은’을, 없으면 ‘는’을 씁니다.", return_tensors="pt").input_ids).logits


def lab_answers(folder):
    """Answer the questions as the lab does in evaluation."""
    run = FinishedRun(folder)
    prompts = [
        tokenize(run.spans({"question": question})[:-1], run.tokenizer, end=False, chat=run.prompt.chat).input_ids
        for question in QUESTIONS
    ]
    return generate_answers(load_trained(run), run.tokenizer, prompts, run.max_new_tokens)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("after")


@pytest.fixture(scope="module")
def run(place):
    """A LoRA run with a plain prompt, known to MLflow."""
    return train(place / "run", track=True, report_to=["mlflow"])


# Merging

@pytest.mark.parametrize("family, tied, settings", [
    ("llama", False, {}), ("llama", True, {"use_dora": True}), ("gpt_neox", None, {"use_rslora": True}), ("gemma3_text", None, {"bias": "all"}),
    ("llama", True, {"modules_to_save": ["embed_tokens"]}), ("llama", False, {"modules_to_save": ["lm_head"]}), ("gemma3_text", None, {"modules_to_save": ["embed_tokens"]}),
    ("llama", True, {"new_tokens": ["받침이", "조사"]}), ("gemma3_text", None, {"target_modules": ["q_proj", "lm_head"]}), ("gpt_neox", None, {"use_peft": False}),
    ("llama", True, {"load_in_4bit": True}), ("gpt_neox", None, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "fp4"}),
    ("gemma3_text", None, {"load_in_4bit": True, "use_dora": True}),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value))
def test_merged_equals_trained(place, request, family, tied, settings):
    """The merged weights on disk compute what the adapter computes, on a 4-bit base as on a float one."""
    name = request.node.callspec.id.replace("/", "-")
    folder = train(place / name, family, tied, **settings)
    measured = merge_run(folder, place / f"{name}-merged")
    assert measured["difference"] < 1e-4
    trained = FinishedRun(folder)
    tokenizer = AutoTokenizer.from_pretrained(place / f"{name}-merged")
    assert len(tokenizer) == len(trained.tokenizer)
    own, merged = load_trained(trained), AutoModelForCausalLM.from_pretrained(place / f"{name}-merged")
    base = load_base_model(trained.checkpoint.path, torch.float32)
    assert (logits(merged, tokenizer) - logits(own, tokenizer)).abs().max() < 1e-4
    if not settings.get("new_tokens"):
        assert (logits(merged, tokenizer) - logits(base, tokenizer)).abs().max() > 1e-2  # training did something


def test_merge_in_half_precision(place, run):
    """Rounding to bfloat16 is told apart from a wrong merge."""
    measured = merge_run(run, place / "half", dtype="bfloat16")
    assert measured["difference"] < 1e-4 < measured["rounding"]
    assert AutoModelForCausalLM.from_pretrained(place / "half").dtype == torch.bfloat16


# Exporting

@pytest.mark.parametrize("family, prompt", [("llama", "lab"), ("gpt_neox", "koalpaca"), ("gemma3_text", "chat")])
def test_transformers_alone_answers_the_same(place, family, prompt):
    """The exported folder, asked through its chat template by transformers alone, gives the lab's answers."""
    folder, output = train(place / f"export-{family}", family, prompt=prompt), place / f"exported-{family}"
    assert export_run(folder, output)["difference"] < 1e-4
    model, tokenizer, answers = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output), []
    for question in QUESTIONS:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        answers.append(
            tokenizer.decode(model.generate(**asked)[0][asked["input_ids"].shape[1]:], skip_special_tokens=True).rstrip()
        )
    assert answers == lab_answers(folder)
    session = open_chat(model=str(output))  # the lab knows its own exports
    assert "".join(session.ask(QUESTIONS[0])) == answers[0].rstrip("\ufffd").strip()


def test_card(place, run):
    """The card says what the record says, for people and for the hub, and nothing of this machine."""
    from huggingface_hub import ModelCard

    export_run(run, place / "with-card")
    card, record = ModelCard.load(place / "with-card" / "README.md"), json.loads((run / "record.json").read_text())
    assert (card.data.language, card.data.base_model, card.data.library_name) == ("ko", "run-base", "transformers")
    assert "llmlab" in card.data.tags and {score.metric_type for score in card.data.eval_results} >= {"eval_loss"}
    for text in (
        record["data"]["fingerprint"], record["model"]["sha256"], "`learning_rate` | `0.05`", "### 답변:",
        f"{record['metrics']['eval_loss']:.4g}", "Apache-2.0"
    ):
        assert text in card.text
    for path in (place / "with-card").iterdir():
        assert path.suffix == ".safetensors" or str(place) not in path.read_text(), path.name


def test_finished_run_has_its_card(place, run):
    """Beside the weights lies the lab's card and not peft's, in MLflow too, and nothing there names a path of this machine."""
    from huggingface_hub import ModelCard
    from mlflow.artifacts import download_artifacts

    record = json.loads((run / "record.json").read_text())
    tracked = download_artifacts(
        run_id=record["mlflow_run_id"], artifact_path="adapter", tracking_uri=tracking_uri(None, str(place)),
        dst_path=place / "tracked"
    )
    for folder in (run / "adapter", Path(tracked)):
        card, settings = ModelCard.load(folder / "README.md"), json.loads((folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == card.data.base_model == record["model"]["id"] == "run-base"
        assert "## How to ask" in card.text and record["model"]["sha256"] in card.text and f"{record['metrics']['eval_loss']:.4g}" in card.text
        for path in folder.iterdir():
            assert path.suffix == ".safetensors" or str(place) not in path.read_text(), path.name


def test_card_of_a_full_run(place):
    """All weights get a card as well, and their configuration names no path."""
    folder = train(place / "all-weights", use_peft=False)
    card = (folder / "adapter" / "README.md").read_text()
    assert "Base model: all-weights-base" in card and "; full fine-tuning on lab-ko-instruct" in card
    for path in (folder / "adapter").iterdir():
        assert path.suffix == ".safetensors" or str(place) not in path.read_text(), path.name


def test_base_of_a_packaged_model_is_its_hub_id(place, run):
    """An adapter of a packaged model names the model on the hub, not the folder that its weights were unpacked into."""
    folder, settings = place / "packaged", "adapter/adapter_config.json"
    shutil.copytree(run, folder)
    record = json.loads((run / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "params": {**record["params"], "model": "smollm2-135m"}}))
    (folder / settings).write_text(json.dumps({
        **json.loads((run / settings).read_text()), "base_model_name_or_path": str(FinishedRun(folder).checkpoint.path)
    }))
    card = write_card(folder).read_text()
    assert json.loads((folder / settings).read_text())["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card and str(Path.home()) not in card


def test_gguf_needs_the_converter(place, run, tmp_path):
    """Without llama.cpp the error says how to come by it; with a converter it is run on the exported folder."""
    with pytest.raises(LabError, match="git clone"):
        export_run(run, place / "gguf", format="gguf")
    script = tmp_path / "convert.py"
    script.write_text("import sys, pathlib\nfrom gguf import GGUFWriter\nfolder, _, file, _, kind = sys.argv[1:]\n"
                      "names = ' '.join(sorted(path.name for path in pathlib.Path(folder).iterdir()))\n"
                      "writer = GGUFWriter(file, 'llama')\nwriter.add_tokenizer_model('gpt2')\n"
                      "writer.add_chat_template((pathlib.Path(folder) / 'chat_template.jinja').read_text())\n"
                      "writer.add_description(kind + ' of ' + names)\n"
                      "writer.write_header_to_file()\nwriter.write_kv_data_to_file()\nwriter.write_tensors_to_file()\nwriter.close()\n")
    export_run(run, place / "gguf", format="gguf", converter=script)
    described = GGUFReader(place / "gguf" / "model.gguf").get_field("general.description").contents()
    assert described.startswith("f32 of README.md chat_template.jinja config.json")
    assert not list((place / "gguf").glob("*.safetensors"))
    whole = script.read_text()
    for old, new, lost in (("writer.add_chat_template", "str", "chat template"),
                           ("writer.add_desc", "writer.add_eos_token_id(5)\nwriter.add_desc", "end token")):
        script.write_text(whole.replace(old, new))
        with pytest.raises(LabError, match=f"did not take over the {lost}"):
            export_run(run, place / "gguf-lost", format="gguf", converter=script)
    script.write_text("raise SystemExit('Model Unheard is not supported')")
    with pytest.raises(LabError, match="Unheard is not supported"):
        export_run(run, place / "gguf-failed", format="gguf", converter=script)
    assert not (place / "gguf-failed").exists()


def test_errors(place, run):
    """What cannot be merged is said before anything is written."""
    record = json.loads((run / "record.json").read_text())
    for name, status, message in (("running", "running", "is running"), ("bare", "finished", "no weights in adapter/")):
        (place / name).mkdir()
        (place / name / "record.json").write_text(json.dumps({**record, "status": status}))
        with pytest.raises(LabError, match=message):
            merge_run(place / name, place / "never")
    (place / "homeless").mkdir()
    (place / "homeless" / "adapter").symlink_to(run / "adapter")
    (place / "homeless" / "record.json").write_text(
        json.dumps({**record, "params": {**record["params"], "model": "nobody/nothing"}})
    )
    with pytest.raises(LabError, match="nobody/nothing' cannot be had"):
        merge_run(place / "homeless", place / "never")
    assert not (place / "never").exists()


# Talking

def test_chat_through_a_pipe(run):
    """Each line of a pipe is a question; commands are obeyed, mistakes told, and the conversation is remembered."""
    code = "import sys; from llmlab.publish.chat import chat, open_chat; chat(open_chat(sys.argv[1]))"
    lines = f"{QUESTIONS[0]}\n/reset\n{QUESTIONS[0]}\n/rest\n/context 서울이 수도다.\n\n{QUESTIONS[1]}\n/quit\n{QUESTIONS[2]}\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], input=lines, capture_output=True, text=True, encoding="utf-8",
        timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer = lab_answers(run)[0].rstrip("\ufffd").strip()
    assert done.stdout.count(answer) >= 2 and done.stdout.startswith(answer)
    assert "Did you mean '/reset'" in done.stdout and "text of 8 characters" in done.stdout


def test_chat_keeps_the_conversation(run):
    """What was said is sent again as in training: earlier answers with their end tokens."""
    session = open_chat(run)
    first = "".join(session.ask(QUESTIONS[0]))
    sent = session.prompt_ids(QUESTIONS[1], history=session.history)
    tokenizer = session.tokenizer
    assert sent[:len(session.prompt_ids(QUESTIONS[0]))] == session.prompt_ids(QUESTIONS[0])
    assert sent.count(tokenizer.eos_token_id) == 1 and sent.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(sent, skip_special_tokens=True).endswith(
        f"### 답변: {first}### 질문: {QUESTIONS[1]}\n\n### 답변:"
    )


# Serving

def test_mlflow_predict(place, run):
    """`mlflow models predict` gives the lab's answers, from the run in MLflow."""
    uri = log_mlflow_model(run)
    (place / "input.json").write_text(
        json.dumps({"dataframe_records": [{"question": question} for question in QUESTIONS]})
    )
    words = [
        "models", "predict", "-m", uri, "-i", place / "input.json", "-o", place / "output.json", "--env-manager",
        "local"
    ]
    done = subprocess.run([sys.executable, "-m", "mlflow", *map(str, words)], capture_output=True, text=True, timeout=300, cwd=place,
                          env={**__import__("os").environ, "MLFLOW_TRACKING_URI": tracking_uri(None, str(place)), "MLFLOW_DISABLE_TELEMETRY": "true"})
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "output.json").read_text())["predictions"] == lab_answers(run)
