"""Extensions that are no files, no Python, no YAML, or add what is no entry; none of them may end the process."""
from . import Bad, setting_file


def python(text, **settings):
    "Make settings that name a Python file of this content."
    return setting_file("mine.py", text, "extensions", **settings)


def yaml(text, **settings):
    "Make settings that name a YAML file of this content."
    return setting_file("mine.yaml", text, "extensions", **settings)


def folder_of(name):
    "Make settings that name a folder."
    return lambda folder: [(folder / name).mkdir(), {"extensions": [str(folder / name)]}][1]


def pipe(folder):
    "Make settings that name a pipe to which nobody writes."
    import os

    os.mkfifo(folder / "mine.py")
    return {"extensions": [str(folder / "mine.py")]}


LAB = "from llmlab import DATASETS, MODELS, PROMPTS, TASKS, Prompt\n"

CASES = [
    # files
    Bad("not there", {"extensions": ["no_such.py"]}, ("extensions", "no_such.py")),
    Bad("another ending", setting_file("mine.txt", "x", "extensions"), ("extensions", r"\.py or \.yaml")),
    Bad("a folder", folder_of("mine.py"), ("extensions", "folder")),
    Bad("a pipe", pipe, ("extensions", "pipe")),
    Bad("a name too long", {"extensions": ["x" * 300 + ".py"]}, "extensions"),
    Bad("a file twice", lambda folder: {"extensions": [str(folder / "a.py")] * 2}, ("extensions", "stands twice")),
    Bad("not UTF-8", python("# 한글".encode("cp949")), ("extensions", "mine.py", "UTF-8")),
    Bad("YAML that is not UTF-8", yaml("이름: 가".encode("utf-16")), ("extensions", "mine.yaml", "UTF-8")),
    # what Python does wrong
    Bad("no Python", python("def (:\n"), (r"mine\.py, line 1", "SyntaxError")),
    Bad("a wrong indentation", python("x = 1\n  y = 2\n"), (r"mine\.py, line 2", "IndentationError")),
    Bad("a NUL in Python", python("x = 1\0\n"), r"mine\.py"),
    Bad("a name that is not defined", python("\n\nprint(undefined)\n"), (r"mine\.py, line 3", "NameError")),
    Bad("a module that is not there", python("import no_such_module_of_mine\n"), (r"mine\.py, line 1", "no_such_module_of_mine")),
    Bad("an error without a message", python("raise TimeoutError()\n"), (r"mine\.py, line 1: TimeoutError\.")),
    Bad("an error with control characters", python("raise ValueError('\\x1b[2J')\n"), (r"mine\.py, line 1", r"\\x1b")),
    Bad("an error of a megabyte", python("raise ValueError('x' * 10**6)\n"), r"mine\.py, line 1: ValueError"),
    Bad("an assertion", python("assert 1 == 2, 'nein'\n"), (r"mine\.py, line 1: AssertionError: nein")),
    Bad("recursion", python("def f():\n    f()\n\nf()\n"), (r"mine\.py, line 2", "RecursionError")),
    # what would end the process
    Bad("it ends the process, well", python("import sys\nsys.exit(0)\n"), r"mine\.py, line 2: SystemExit"),
    Bad("it ends the process, badly", python("raise SystemExit('bye')\n"), r"mine\.py, line 1: SystemExit: bye"),
    Bad("it interrupts", python("raise KeyboardInterrupt\n"), r"mine\.py, line 1: KeyboardInterrupt"),
    Bad("it is a generator that ends", python("raise GeneratorExit\n"), r"mine\.py, line 1: GeneratorExit"),
    Bad("it is cancelled", python("import asyncio\nraise asyncio.CancelledError\n"), r"mine\.py, line 2: CancelledError"),
    # what is no entry
    Bad("a dict among the datasets", python(LAB + "DATASETS['mine'] = {'source': 'a.jsonl'}\n"), ("datasets.mine", r"write DatasetPreset\(")),
    Bad("text among the prompts", python(LAB + "PROMPTS['mine'] = '{question}{answer}'\n"), ("prompts.mine", r"write Prompt\(")),
    Bad("a function among the tasks", python(LAB + "TASKS['mine'] = len\n"), ("tasks.mine", r"write Task\(")),
    Bad("a model that is a prompt", python(LAB + "MODELS['mine'] = PROMPTS['lab']\n"), ("models.mine", r"write ModelPreset\(")),
    Bad("a name that is a number", python(LAB + "PROMPTS[5] = PROMPTS['lab']\n"), ("prompts: 5 is no name")),
    Bad("a name of blanks", python(LAB + "PROMPTS[' '] = PROMPTS['lab']\n"), ("prompts: ' ' is no name")),
    Bad("an entry that is deleted and missed", python(LAB + "PROMPTS['lab'] = None\n"), ("prompts.lab", "Prompt")),
    Bad("a dataset of a number", python("from llmlab.data.sources import DATASETS, DatasetPreset\nDATASETS['mine'] = DatasetPreset(5)\n"),
        ("datasets.mine", "source")),
    Bad("a prompt without an answer", python(LAB + "PROMPTS['mine'] = Prompt((('question', '{question}'),))\n"), (r"mine\.py", "answer part")),
    # YAML
    Bad("broken YAML", yaml("prompts: {a: [\n"), (r"mine\.yaml", "not valid YAML")),
    Bad("YAML of a word", yaml("prompts\n"), (r"mine\.yaml", "no mapping of names")),
    Bad("YAML of a list", yaml("- prompts\n"), (r"mine\.yaml", "section")),
    Bad("a section that nobody knows", yaml("promts: {}\n"), (r"mine\.yaml", "'prompts'")),
    Bad("a section that is a list", yaml("prompts: [a]\n"), (r"mine\.yaml", "no mapping of names")),
    Bad("a section of nothing", yaml("prompts:\n"), (r"mine\.yaml", "no mapping of names")),
    Bad("an entry that is a number", yaml("prompts: {a: 5}\n"), (r"prompts\.a: 5 is no Prompt", "parts")),
    Bad("an entry with a field that is none", yaml("datasets: {a: {sauce: x}}\n"), (r"datasets\.a", "'sauce'", "'source'")),
    Bad("an entry with a value of the wrong kind", yaml("tasks: {a: {max_new_tokens: many}}\n"), (r"tasks\.a", "max_new_tokens")),
    Bad("a name twice", yaml("prompts: {a: {}, a: {}}\n"), (r"mine\.yaml", "'a' stands twice")),
    Bad("a tag", yaml("prompts: !!python/object/apply:os.system ['true']\n"), (r"mine\.yaml", "not valid YAML")),
    Bad("laughs", yaml("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdef", "bcdefg"))),
        (r"mine\.yaml", "more than 100,000 values")),
]
