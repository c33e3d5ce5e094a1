"""A model is asked as it was trained: by every prompt, every kind of tokenizer among the presets, and on any day."""
import datetime
import json
import shutil
from functools import cache

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaTokenizer, PreTrainedTokenizerFast

from llmlab.common.errors import LabError
from llmlab.config.load import make_config
from llmlab.evaluation.generation import answer_text, turn_end
from llmlab.experiment.prepare import prepare
from llmlab.models import clock
from llmlab.models.checkpoints import load_tokenizer, locate_model
from llmlab.models.presets import MODELS
from llmlab.models.testing import TEXT, save_tiny_checkpoint, tiny_model, tiny_tokenizer
from llmlab.publish import template
from llmlab.publish.chat import open_chat
from llmlab.publish.export import export_run
from llmlab.publish.merge import merge_run
from llmlab.publish.template import SPACE, chat_template, served_ids
from llmlab.runs.finished import FinishedRun, load_trained
from llmlab.runs.record import begin_record
from llmlab.runs.rerun import rerun_settings
from llmlab.tokens.prompts import PROMPTS, Prompt, render, spoken
from llmlab.tokens.tokenize import asked_ids, tokenize
from llmlab.training.trainer import build_model

# Tokenizers that behave as those of the presets

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")
TEXTS = TEXT * 4 + ["Below is an instruction. Write a response that fulfils it.\n\n### Response:\n서울은 수도입니다."] * 9
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def turns(opening, middle, end, lead=""):
    "Write a template of the usual kind."
    each = f"{{{{ '{opening}' + message.role + '{middle}' + message.content + {end} }}}}"
    return (f"{lead}{{% for message in messages %}}{each}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ '{opening}assistant{middle}' }}}}{{% endif %}}")


CHATML = turns("<|im_start|>", r"\n", r"'<|im_end|>\n'")
NO_THOUGHT = r"'<think>\n\n</think>\n\n'"
UNASKED = f"{{% if enable_thinking is false %}}{{{{ {NO_THOUGHT} }}}}{{% endif %}}{{% endif %}}"
QWEN3 = CHATML.replace("{% endif %}", UNASKED).replace(
    "+ message.content", f"+ ({NO_THOUGHT} if loop.last and message.role == 'assistant' else '') + message.content")
ZEPHYR = turns("<|", r"|>\n", r"eos_token + '\n'")
SOLAR = turns("### ", r":\n", r"'\n\n' + (eos_token if message.role == 'assistant' else '')")
LLAMA2 = ("{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n' %}"
          "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
          "{{ bos_token + '[INST] ' + (lead if lead and loop.first else '') + m.content.strip() + ' [/INST]' "
          "if m.role == 'user' else ' ' + m.content.strip() + ' ' + eos_token }}{% endfor %}")
GEMMA = ("{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
         + turns("<start_of_turn>", r"\n", r"'<end_of_turn>\n'").replace("message.content", "(message.content | trim)"))
DATED = "{{ bos_token }}" + turns("<|start|>", r"\n", "'<|eot|>'", "Today is {{ strftime_now('%d %b %Y') }}.\n")
SILENT = turns("[", "]", "eos_token").replace("in messages", "in messages if message.role != 'system'")


def sentencepiece(before, normalizer=None, special=("<s>", "</s>"), beginning="<s>", drops_space=True):
    "Train a BPE tokenizer with bytes to fall back on, as SentencePiece makes them."
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    names = ["<unk>", *special, *BYTES]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=900, special_tokens=names, show_progress=False))
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *[decoders.Strip(" ", 1, 0)] * drops_space])
    if normalizer:
        tokenizer.normalizer = normalizer
    return beginning_with(tokenizer, beginning)


def byte_level(special, split=None, add_prefix_space=False, beginning=None):
    "Train a byte-level BPE tokenizer."
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=split is None)
    pieces = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, level])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, **options))
    return beginning_with(tokenizer, beginning)


def beginning_with(tokenizer, token):
    if token:
        pair = (token, tokenizer.token_to_id(token))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[pair])
    return tokenizer


def wrapped(tokenizer, template, **special):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def llama_class(template, **options):
    learned = json.loads(sentencepiece(pre_tokenizers.Metaspace()).to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return LlamaTokenizer(vocab=learned["vocab"], merges=merges, add_bos_token=True, chat_template=template, **options)


def metaspace(scheme, beginning="<s>"):
    return sentencepiece(pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False), beginning=beginning, drops_space=scheme != "never")


def gemma():
    special = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
    words = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer = sentencepiece(words, normalizers.Replace(" ", "▁"), special, "<bos>", drops_space=False)
    return wrapped(tokenizer, GEMMA, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EXAONE = ["[PAD]", "[BOS]", "[EOS]", "[|endofturn|]"]
META = ["<|begin|>", "<|end|>", "<|start|>", "<|eot|>"]
POLYGLOT = {"bos_token": IM[0], "eos_token": IM[0]}
TURNS = turns("[|", "|]", r"'[|endofturn|]\n'")
KINDS = {  # tokenizer and chat template -> how it is made
    "llama 2": lambda: llama_class(LLAMA2),
    "tinyllama": lambda: llama_class(ZEPHYR),
    "solar, legacy": lambda: llama_class(SOLAR, legacy=True),
    "llama 2 by its tokenizer.json": lambda: wrapped(sentencepiece(None, LEGACY), SOLAR, **LLAMA),
    "a prefix always": lambda: wrapped(metaspace("always"), ZEPHYR, **LLAMA),
    "a prefix at first": lambda: wrapped(metaspace("first"), ZEPHYR, **LLAMA),
    "a prefix at first, no beginning": lambda: wrapped(metaspace("first", None), SOLAR, **LLAMA),
    "a prefix never": lambda: wrapped(metaspace("never"), SILENT, **LLAMA),
    "gemma": gemma,
    "polyglot": lambda: wrapped(byte_level(IM[:1]), SILENT, **POLYGLOT),
    "gpt 2 with a prefix": lambda: wrapped(byte_level(IM[:1], add_prefix_space=True), SILENT, **POLYGLOT),
    "qwen, a.x": lambda: wrapped(byte_level(IM, WORDS), CHATML, eos_token="<|im_end|>", pad_token=IM[0]),
    "qwen 3 base": lambda: wrapped(byte_level(IM, WORDS), QWEN3, eos_token=IM[0], pad_token=IM[0]),
    "kanana, mi:dm": lambda: wrapped(
        byte_level(META, WORDS, beginning=META[0]), DATED, bos_token=META[0], eos_token="<|eot|>"),
    "exaone": lambda: wrapped(byte_level(EXAONE, WORDS), TURNS, bos_token="[BOS]", eos_token=EXAONE[3]),
    "hyperclova, smollm": lambda: wrapped(
        byte_level([*IM, "<|endofturn|>"]), CHATML, bos_token=IM[0], eos_token="<|endofturn|>"),
    "turns without an end": lambda: wrapped(byte_level(IM, WORDS), turns("<|", r"|>\n", r"'\n'"), eos_token=IM[0]),
}
FAMILIES = {  # of the presets -> kinds of tokenizers
    "llama": ("llama 2", "tinyllama", "solar, legacy", "kanana, mi:dm", "hyperclova, smollm"),
    "gpt_neox": ("polyglot",), "gemma3_text": ("gemma",),
    "exaone4": ("exaone",), "qwen2": ("qwen, a.x",), "qwen3": ("qwen 3 base",), "hyperclovax": ("hyperclova, smollm",),
    "axk1": ("qwen, a.x",), "exaone_moe": ("exaone",), "solar_open": ("kanana, mi:dm",),
    "deepseek_v3": ("kanana, mi:dm",),
}
SEASON = {"question": "봄에는?", "answer": "꽃이 피고", "learn": False}
QUOTED = {"question": "(겨울)에는?", "answer": '"눈"이 옵니다', "learn": False}
ROWS = [
    {"question": "서울은 어떤 곳인가요?"}, {"question": " 서울은?\n"}, {"question": "왜?", "history": [SEASON]},
    {"question": "왜?", "history": [SEASON, QUOTED]}, {"question": "왜?", "system": "짧게 답해."},
    {"question": "왜?", "context": "서울이\n\n수도다."}, {"question": "{요약}해 줘", "input": '긴 "글"\\n'},
    {"question": "왜?", "system": "짧게.", "context": "문맥 ", "input": "입력", "history": [SEASON, QUOTED]},
]
OWN_PROMPTS = {
    "with a system part": Prompt((
        ("system", "<{system}>\n"), ("marker", "Q: "), ("question", "{question}\n"), ("marker", "A:"),
        ("answer", " {answer}"))),
    "more than the question": Prompt((
        ("header", "규칙대로.\n"), ("question", "질문: {question}"), ("answer", "{answer}!")), chat=True),
    "the system text in the question": Prompt((
        ("system", "[{system}] "), ("question", "{question}"), ("answer", "{answer}")), chat=True),
    "thinking": Prompt(PROMPTS["chat"].parts, chat=True, thinking=True),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def folder_of(place):
    @cache
    def make(kind):
        folder = place / kind.replace(":", "")
        tiny_model("llama", vocab_size=1000).config.save_pretrained(folder)
        KINDS[kind]().save_pretrained(folder)
        return folder

    return make


def test_every_preset_has_a_kind():
    assert {preset.family for preset in MODELS.values()} <= set(FAMILIES)
    assert {kind for kinds in FAMILIES.values() for kind in kinds} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_sends_what_was_trained(folder_of, kind, tmp_path):
    """Every prompt and row: transformers alone sends the tokens before the answer of a training example."""
    tokenizer = load_tokenizer(folder_of(kind))
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(folder_of(kind) / "config.json", tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    for name, prompt in {**PROMPTS, **OWN_PROMPTS}.items():
        text = chat_template(prompt, tokenizer)
        for row in ROWS:
            spans = render(prompt, {**row, "answer": "대한민국의 수도입니다."}, tokenizer)
            example = tokenize(spans, tokenizer, chat=prompt.chat)
            trained = example.input_ids[:example.prompt_length]
            assert served_ids(served, row, text) == trained == asked_ids(prompt, row, tokenizer), (name, row)
            said = prompt.parts[-1][1]  # a client sends a model's words back as they came
            spoken = [{**turn, "answer": said.format(answer=turn["answer"])} for turn in row.get("history", [])]
            assert served_ids(served, {**row, "history": spoken}, text) == trained, (name, row)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_read_as_it_was_learned(folder_of, kind):
    """What a model has learned to say is shown with its first indentation, and without what the prompt wrote around it."""
    tokenizer = load_tokenizer(folder_of(kind))
    for name, prompt in {**PROMPTS, **OWN_PROMPTS}.items():
        for answer in ("수도.", "    수도"):
            spans = render(prompt, {"question": "왜?", "answer": answer}, tokenizer)
            example = tokenize(spans, tokenizer, chat=prompt.chat)
            before, learned = (example.input_ids[part] for part in (
                slice(example.prompt_length - 1, example.prompt_length), slice(example.prompt_length, None)))
            said = answer if answer in spans[-1].text else answer.strip()  # some templates trim
            assert spoken(prompt, tokenizer, answer_text(learned, tokenizer, before)) == said, (name, answer)


def test_a_template_that_cannot_ask_the_same_is_refused():
    """An end token swallows the white space after it: an exchange that begins with a line break is sent without."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": AddedToken("<end>", rstrip=True)})
    parts = (("question", "\n질문: {question}"), ("marker", "\n답:"), ("answer", " {answer}"))
    with pytest.raises(LabError, match="(?s)no chat template asks as this prompt does.*trained on.*sent.*llmlab chat"):
        chat_template(Prompt(parts), tokenizer)
    assert chat_template(PROMPTS["koalpaca"], tokenizer)


def test_llama_cpp_puts_the_space_itself(folder_of):
    """In a GGUF file the template of a Llama tokenizer has no space of its own; of a byte-level one it is the same."""
    tokenizer = load_tokenizer(folder_of("llama 2"))
    assert SPACE in chat_template(PROMPTS["lab"], tokenizer)
    assert SPACE not in chat_template(PROMPTS["lab"], tokenizer, spaced=True)
    tokenizer = load_tokenizer(folder_of("qwen, a.x"))
    assert chat_template(PROMPTS["lab"], tokenizer) == chat_template(PROMPTS["lab"], tokenizer, spaced=True)


# Whole folders

def finished(place, name, tokenizer, samples=(), **settings):
    """Make a finished run by hand: a tiny model, its adapter moved off zero."""
    base = place / f"{name}-base"
    tiny_model("llama", vocab_size=1000).save_pretrained(base)
    tokenizer.save_pretrained(base)
    usual = {"task": "instruct", "dtype": "float32", "report_to": [], "max_new_tokens": 8}
    config = make_config({"model": str(base), **usual, **settings})
    model = build_model(config, locate_model(config))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    record = begin_record(place / name, config)
    record.save_adapter(model)
    record.note(status="finished")
    (record.folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return record.folder


OWN_CHAT = {"parts": OWN_PROMPTS["more than the question"].parts, "chat": True}


@pytest.mark.parametrize("kind, prompt", [
    ("tinyllama", "koalpaca"), ("llama 2", "chat"), ("qwen 3 base", "chat"), ("gemma", OWN_CHAT),
], ids=lambda value: value if isinstance(value, str) else "own")
@pytest.mark.parametrize("write", [merge_run, export_run])
def test_folders_are_asked_as_trained(place, kind, prompt, write):
    """What merge and export write is asked as trained, whatever template the base had, and ends where training did."""
    name = f"{write.__name__}-{kind}"
    samples = [{"question": "</s>의 뜻은?"}] if prompt == "chat" else ()
    run = FinishedRun(finished(place, name, KINDS[kind](), samples, prompt=prompt))
    write(run.folder, place / f"{name}-written")
    served = AutoTokenizer.from_pretrained(place / f"{name}-written")
    for row in ROWS:
        assert served_ids(served, row) == asked_ids(run.prompt, row, run.tokenizer)
    ends = GenerationConfig.from_pretrained(place / f"{name}-written").eos_token_id
    assert {run.tokenizer.eos_token_id, turn_end(run.tokenizer)} - {None} <= set(ends)
    assert served.eos_token == run.tokenizer.eos_token and served.padding_side == "left"
    if write is export_run:
        session = open_chat(model=str(place / f"{name}-written"))
        assert session.prompt_ids(**ROWS[-1]) == asked_ids(run.prompt, ROWS[-1], run.tokenizer)


def test_special_tokens_in_a_question_are_said(place):
    """A server reads the text of a special token as the token, and training did not: that is said, and no more."""
    samples = [{"question": "</s>의 뜻은?"}, {"question": "수도는?"}]
    folder = finished(place, "special", tiny_tokenizer(), samples, prompt="lab")
    with pytest.warns(UserWarning, match="1 held-out rows hold the text of a special token.*</s>의 뜻은"):
        merge_run(folder, place / "special-merged")


def test_a_held_out_row_that_differs_is_refused(place, monkeypatch):
    """A row of the run's own that a server would ask otherwise ends the export, with the first token that differs."""
    folder = finished(place, "differs", tiny_tokenizer(), [{"question": "수도는?"}], prompt="lab")
    usual = template.served_ids

    def add_a_token(tokenizer, row, *others, **named):
        return usual(tokenizer, row, *others, **named) + [5] * ("수도" in row["question"])

    monkeypatch.setattr(template, "served_ids", add_a_token)
    with pytest.raises(LabError, match="(?s)would not be served as.*수도는.*token [0-9]+: trained on.*sent"):
        export_run(folder, place / "differs-exported")
    assert not (place / "differs-exported").exists()


# The day

class Later(datetime.date):
    @classmethod
    def today(cls):
        return cls(2031, 1, 2)


def test_the_day_is_of_the_run(place, monkeypatch):
    """A template that asks for the date is told one day: in record, rerun, cache and export, whenever that is."""
    settings = {"prompt": "chat", "max_train_samples": 4, "max_eval_samples": 2, "report_to": []}
    settings["cache_dir"] = str(place / "cache")
    base = place / "dated-base"
    tiny_model("llama", vocab_size=1000).save_pretrained(base)
    KINDS["kanana, mi:dm"]().save_pretrained(base)
    first = prepare(make_config({"model": str(base), **settings}))
    day = first.config.template_day
    assert day == datetime.date.today().isoformat() and day in first.choices()
    trained = [example.input_ids for example in first.train.examples]
    folder = finished(place, "dated", KINDS["kanana, mi:dm"](), template_day=day, **settings)
    monkeypatch.setattr(clock.datetime, "date", Later)
    again = prepare(make_config(rerun_settings(folder)))
    assert again.config.template_day == day
    assert [example.input_ids for example in again.train.examples] == trained
    other = prepare(make_config({"model": str(base), **settings}))
    assert other.config.template_day == "2031-01-02" and not other.train.tokens.from_cache
    assert [example.input_ids for example in other.train.examples] != trained
    run = FinishedRun(folder)
    export_run(folder, place / "dated-exported")
    served = AutoTokenizer.from_pretrained(place / "dated-exported")
    assert "strftime_now" not in served.chat_template
    assert served_ids(served, ROWS[0]) == asked_ids(run.prompt, ROWS[0], first.tokenizer)


def test_no_day_where_none_is_asked_for(place):
    base = save_tiny_checkpoint(place / "undated", chat_template=CHATML)
    for prompt in ("chat", "lab"):
        settings = {"prompt": prompt, "max_train_samples": 4, "max_eval_samples": 2, "report_to": []}
        assert prepare(make_config({"model": str(base), **settings})).config.template_day is None


# Chance

@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora", "orthogonal", "gaussian"])
def test_a_start_that_draws_is_drawn_again_the_same(place, start):
    """PiSSA and OLoRA take LoRA's start out of the base's weights, and again as a run is loaded: the same one."""
    folder = finished(place, start, tiny_tokenizer(), prompt="lab", lora_args={"init_lora_weights": start})
    logits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        logits.append(load_trained(FinishedRun(folder))(input_ids=torch.tensor([[5, 6, 7, 8]])).logits)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*logits)


def test_new_rows_are_not_left_to_chance(place):
    """A model that gets rows for new tokens, and for special ones that had none, gets the same rows each time."""
    base = place / "grown"
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<idle>"]})
    tiny_model("llama", vocab_size=len(tokenizer) - 1).save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = {"prompt": "lab", "task": "instruct", "dtype": "float32", "report_to": [], "new_tokens": ["훈민정음"]}
    config = make_config({"model": str(base), **settings})
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        tables.append(build_model(config, locate_model(config)).get_output_embeddings().weight.detach().clone())
    assert torch.equal(*tables)
