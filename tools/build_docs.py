"""Build the documentation site into `_docs`: no Quarto, no network, and the working tree stays as it is.

The notebooks go through nbdev's own processing, as in `nbdev_docs`; smalldocs then renders what Quarto would. nbdev writes into the
project while it works (an index of names, a sidebar), so all of it happens in a temporary copy.
"""
import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import latex2mathml.converter
import yaml

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(\]\(|href=\\")([^)"\\\s]+)')  # of Markdown, and of HTML inside a JSON string
IMPORT = re.compile(r"^\s*(import|from)\s", re.MULTILINE)
FOREIGN = re.compile(r"@import url\(https?:[^)]*\);?")  # a font or script from elsewhere: the site asks no other server
# What smalldocs makes of a section of the navigation (a link to nowhere, which no keyboard reaches), and of an icon
SECTION = re.compile(r'<a (class="sidebar-item-text[^>]*data-bs-toggle="collapse"[^>]*) role="navigation"([^>]*)>(.*?)</a>')
ICON = re.compile(r'(<i class="bi [^"]*") role="img"')
FRAME = {
    ">On this page<": ">이 페이지<", "Report an issue": "문제 알리기", 'placeholder="Search" aria-label="Search"':
    'placeholder="검색" aria-label="검색" lang="ko"'
}
MATHS = re.compile(r"(?P<code>```.*?```|`[^`]*`)|\$\$(?P<block>[^$]+)\$\$|\$(?P<line>[^$\n]+)\$", re.DOTALL)
TEST_CALLS = ("test_eq", "test_fail", "test_ne", "test_close", "test_is")
STORY = ("01", "02", "03", "04", "05", "06")  # folders that tell it; the others are for reference
FOUND_FIRST = ("settings.html", "howto/", "ko/", "index.html", "tour.html", "tutorials/", "train.html")  # by search
EXPORT = re.compile(r"^(#\|\s*(exports?|exporti|exec_doc)\b|show_doc\()", re.MULTILINE)


def committed_pages(root: Path, pattern: str) -> list[Path]:
    "List the pages of runs or comparisons that are committed, newest first; what git does not know is not shown."
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--", pattern], capture_output=True, text=True)
    pages = [root / name for name in listed.stdout.split("\0") if name.count("/") == pattern.count("/")]
    return sorted((page for page in pages if page.is_file()), reverse=True)


def record_row(page: Path, link: str) -> str:
    "Describe a record in one row of a Markdown table; whatever its record.json does not say is left blank."
    record_file = page.with_name("record.json")
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    parameters, metrics = record.get("params") or {}, record.get("metrics") or {}

    def change(name):
        values = (metrics.get(key) for key in (f"{name}_before", name))
        return " → ".join(f"{value:.3f}" for value in values if isinstance(value, (int, float)))

    report = page.with_name("verify.json")
    status = record.get("status", "")
    if record.get("rerun_of"):
        same = report.is_file() and json.loads(report.read_text(encoding="utf-8"))["identical"]
        status = f"{'identical' if same else 'a'} rerun of {record['rerun_of']}"
    names = " · ".join(str(parameters[name]) for name in ("model", "dataset") if name in parameters)
    cells = [f"[{names.replace('|', '')}]({link})", change("eval_loss"), change("f1"), status]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def front_matter(title: str, description: str, introduction: str) -> list[str]:
    "Write the beginning of a page."
    return ["---", f"title: {title}", f"description: {description}", "toc-depth: 2", "---", "", introduction, ""]


GALLERY = {  # folder -> title, description, introduction, heads of the table, what else there is, how to add one
    "records": (
        "Gallery", "Executed experiments, each a page with its settings, curves, scores and answers.",
        "These are small on purpose: some minutes of training on a CPU with two cores. Their notebooks, settings, losses and "
        "answers are in the repository, their weights are not: `llmlab rerun RUN --verify` makes those again from the record, "
        "and says whether they are the same.",
        ("Record", "Held-out loss", "F1"), "No record is committed yet.", "Runs side by side",
        "## Add one\n\n`make train`, or `papermill nbs/train.ipynb -p model gemma3-270m`, leaves a finished record in a folder "
        "of its own under `runs/`. Commit that folder (`git add runs/<run id>`; git ignores its weights and checkpoints) and "
        "build the site again: its `train.html` becomes a page here."),
    "ko": (
        "갤러리", "실제로 실행한 실험들. 저마다 설정, 곡선, 점수, 답변이 담긴 한 페이지입니다.",
        "일부러 작게 했습니다. 코어 두 개짜리 CPU에서 몇 분에서 몇십 분이면 끝납니다. 노트북, 설정, 손실, 답변은 저장소에 있고 가중치는 없습니다. "
        "`llmlab rerun RUN --verify`가 기록에서 가중치를 다시 만들고, 같은지 알려 줍니다.",
        ("기록", "검증 손실", "F1"), "아직 커밋된 기록이 없습니다.", "나란히 비교하기",
        "## 하나 더하기\n\n`make train`이나 `papermill nbs/train.ipynb -p model gemma3-270m`을 실행하면 `runs/` 아래에 기록 폴더가 하나 "
        "생깁니다. 그 폴더를 커밋하고(`git add runs/<실행 이름>`, 가중치와 체크포인트는 git이 무시합니다) 사이트를 다시 만들면 "
        "`train.html`이 이곳의 페이지가 됩니다."),
}


def write_records(root: Path, notebooks: Path) -> int:
    "Write the Gallery in two languages, beside a copy of every committed record; return how many there are."
    from llmlab.runs.summary import card_markdown, card_title, run_card

    pages = committed_pages(root, "runs/*/train.html")
    comparisons = committed_pages(root, "runs/comparisons/*/compare.html")
    shutil.rmtree(notebooks / "records", ignore_errors=True)
    for folder in GALLERY:
        (notebooks / folder).mkdir(exist_ok=True)
    for page in [*pages, *comparisons]:
        shutil.copy(page, notebooks / "records" / f"{page.parent.name}.html")
    cards = {page: run_card(page.parent) for page in pages}
    for folder, (title, description, introduction, heads, none, beside, add) in GALLERY.items():
        there = "" if folder == "records" else "../records/"
        links = {page: f"{there}{page.parent.name}.html" for page in [*pages, *comparisons]}
        lines = front_matter(title, description, introduction)
        if pages:
            rows = [record_row(page, links[page]) for page in pages]
            lines += [f"| {' | '.join(heads)} | |", "|---|---|---|---|", *rows, ""]
        else:
            lines += [none, ""]
        if comparisons:
            named = ", ".join(f"[{page.parent.name}]({links[page]})" for page in comparisons)
            lines += [f"{beside}: {named}.", ""]
        for page, card in cards.items():
            lines += [f"## [{card_title(card)}]({links[page]})", "", card_markdown(card), ""]
        name = "index.qmd" if folder == "records" else "gallery.qmd"
        (notebooks / folder / name).write_text("\n".join([*lines, add, ""]), encoding="utf-8")
    return len(pages)


def split_title(cell: dict) -> list[dict]:
    "Give what follows a title and subtitle a cell of its own, since nbdev drops what stands under them in theirs."
    lines = "".join(cell["source"]).splitlines(keepends=True)
    if cell["cell_type"] != "markdown" or not lines or not lines[0].startswith("# "):
        return [cell]
    end = next(
        (number for number, line in enumerate(lines) if line.strip() and not line.startswith(("# ", "> "))), len(lines)
    )
    title = {**cell, "source": "".join(lines[:end])}
    return [
        title, {**cell, "id": f"{cell.get('id', 'title')}-text", "source": "".join(lines[end:])}
    ] if lines[end:] else [title]


def is_test(cell: dict) -> bool:
    "Say whether a cell only tests: it shows nothing, and ends in an assertion."
    if cell["cell_type"] != "code" or cell.get("outputs"):
        return False
    source = "".join(cell["source"])
    try:
        statements = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE)).body
    except SyntaxError:
        return False
    last = statements[-1] if statements and not EXPORT.search(source) else None
    if isinstance(last, (ast.For, ast.With)):
        last = last.body[-1]
    is_call = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    return isinstance(last, ast.Assert) or is_call and getattr(last.value.func, "id", "") in TEST_CALLS


def write_maths(text: str) -> str:
    "Turn formulas between dollars into MathML, which browsers show by themselves; code keeps its dollars."
    def convert(match):
        if match["code"]:
            return match["code"]
        return latex2mathml.converter.convert(
            match["block"] or match["line"], display="block" if match["block"] else "inline"
        )

    return MATHS.sub(convert, text)


def prepare_notebooks(notebooks: Path) -> None:
    """Keep nbdev from losing introductions, from running more than it needs, and from showing tests.

    It runs every cell that imports anything, and needs only the exported ones, and those that say `exec_doc`, whose tables and plots a page
    shows. The rest are examples and tests, which take time and rest on cells that it does not run.
    """
    for path in notebooks.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = [part for cell in notebook["cells"] for part in split_title(cell)]
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                cell["source"] = write_maths(source)
            elif is_test(cell):
                cell["source"] = f"#| include: false\n#| eval: false\n{source}"
            elif cell["cell_type"] == "code" and IMPORT.search(source) and not EXPORT.search(source):
                cell["source"] = f"#| eval: false\n{source}"
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def write_settings(root: Path, notebooks: Path) -> None:
    "Write the Settings page, in English and in Korean: a heading and an anchor for each setting, made from the configuration."
    from llmlab.config.schema import FIRST, default_of, field_comments

    korean = yaml.safe_load((root / "llmlab" / "bundled" / "settings.ko.yaml").read_text(encoding="utf-8"))
    pages = {
        notebooks / "settings.qmd": (
            "Settings", "Every setting by its name, with its default and what it is for.",
            "Write them in the first cell of [the train notebook](train.ipynb), as `-p NAME VALUE` on a command line, or in "
            "a YAML file (`-f FILE`). Names are those of transformers, peft and bitsandbytes where these have one. What you "
            "change first is marked ●.", "default"),
        notebooks / "ko" / "settings.qmd": (
            "설정", "모든 설정의 이름과 기본값, 그리고 쓰임새.",
            "[학습 노트북](../train.ipynb)의 첫 셀에 적거나, 명령줄에서 `-p 이름 값`으로, 또는 YAML 파일(`-f 파일`)로 줍니다. "
            "이름은 transformers, peft, bitsandbytes에 있는 것을 그대로 씁니다. 먼저 바꾸어 볼 설정에는 ●를 붙였습니다.", "기본값"),
    }
    for path, (title, description, introduction, default) in pages.items():
        is_korean = path.parent.name == "ko"
        lines = front_matter(title, description, introduction)
        for section, comments in field_comments().items():
            lines += [f"## {korean['sections'][section] if is_korean else section}", ""]
            for name, comment in comments.items():
                meanings = [comment, korean["settings"][name]]
                first, second = reversed(meanings) if is_korean else meanings
                mark = " ●" if name in FIRST else ""
                lines += [f"### {name} {{#{name}}}", "", f"{first}. {default}: `{default_of(name)!r}`{mark}", "",
                          f"[{second}]{{.other-language}}", ""]
        path.write_text("\n".join(lines), encoding="utf-8")


def write_recipes(notebooks: Path) -> None:
    "Write the page for those who come from another tool, in English and in Korean, from the table that `llmlab import` uses."
    from llmlab.config.recipes import recipe_table

    table = recipe_table()
    words = {
        "howto": ("You come from another tool", "What the settings of LLaMA-Factory, axolotl, TRL and the Trainer are called here.",
                  "`llmlab import recipe.yaml -o settings.yaml` turns a recipe into settings, writes down the defaults of its tool "
                  "where ours differ, and says what did not come along; `llmlab train -f settings.yaml` trains with them.",
                  "There", "Here", "Left out", "Why", "What a recipe leaves unsaid"),
        "ko": ("다른 도구를 쓰다 왔다면", "LLaMA-Factory, axolotl, TRL, Trainer의 설정이 여기서는 무엇인지.",
               "`llmlab import recipe.yaml -o settings.yaml`은 다른 도구의 설정 파일을 이 도구의 설정으로 옮깁니다. 적혀 있지 않아도 "
               "그 도구의 기본값이 다르면 함께 적고, 옮기지 못한 것은 이유와 함께 알려 줍니다. 학습은 "
               "`llmlab train -f settings.yaml`로 합니다.",
               "그곳", "여기", "옮기지 않는 것", "이유", "적혀 있지 않으면"),
    }
    for folder, (title, description, introduction, there, here, left, why, unsaid) in words.items():
        lines = front_matter(title, description, introduction)
        for tool, entry in table["tools"].items():
            lines += [f"## {tool}", "", f"| {there} | {here} |", "|---|---|"]
            lines += [f"| `{theirs}` | `{ours}` |" for theirs, ours in entry["names"].items()]
            for theirs, values in entry.get("values", {}).items():
                for value, settings in values.items():
                    ours = ", ".join(f"`{name}: {json.dumps(known)}`" for name, known in settings.items())
                    lines += [f"| `{theirs}: {json.dumps(value)}` | {ours} |"] if ours else []
            lines += ["", f"| {left} | {why} |", "|---|---|"]
            for kind in ("needless", "missing"):
                for reason, names in entry.get(kind, {}).items():
                    cells = ", ".join(f"`{name}`" for name in names)
                    lines.append(f"| {cells} | {table['reasons'][reason]['ko' if folder == 'ko' else 'en']} |")
            defaults = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in entry["defaults"].items())
            lines += ["", f"{unsaid}: {defaults}.", ""]
        (notebooks / folder / "coming_from.qmd").write_text("\n".join(lines), encoding="utf-8")


def switch_languages(notebooks: Path) -> None:
    "Lead from each page that there is in both languages to the same page in the other."
    for korean in sorted((notebooks / "ko").glob("*.qmd")):
        places = {"settings": "settings.qmd", "index": "index.qmd", "gallery": "records/index.qmd"}
        english = notebooks / places.get(korean.stem, f"howto/{korean.name}")
        here, there = os.path.relpath(korean, english.parent), os.path.relpath(english, korean.parent)
        for path, link in ((english, f"[한국어]({here})"), (korean, f"[English]({there})")):
            if path.is_file():
                front, end, text = path.read_text(encoding="utf-8").partition("\n---\n")
                path.write_text(f"{front}{end}\n::: {{.languages}}\n{link}\n:::\n{text}", encoding="utf-8")


def write_sidebar(notebooks: Path) -> None:
    "Write the site's navigation by what one comes for: to start, to do something, to look something up, to understand."
    def pages(pattern):
        return [str(path.relative_to(notebooks)) for path in sorted(notebooks.glob(pattern))]

    def chapters(numbers):
        folders = [
            path for path in sorted(notebooks.glob("[0-9]*_*")) if path.is_dir() and (path.name[:2] in STORY) == numbers
        ]
        return [{"section": path.name.partition("_")[2].replace("_", " ").capitalize(), "contents": pages(f"{path.name}/*.ipynb")}
                for path in folders]

    order = [
        "index", "my_csv", "formats", "reading", "conversations", "four_bit", "fits", "compare", "sweep", "serve", "reproduce",
        "several_gpus", "coming_from", "troubleshooting", "settings", "gallery"
    ]

    def howtos(folder):
        written = pages(f"{folder}/*.qmd")
        listed = [f"{folder}/{name}.qmd" for name in order]
        return [page for page in listed if page in written] + [page for page in written if page not in listed]

    contents = [
        {"section": "Start", "contents": [*pages("index.ipynb"), *pages("00*.ipynb"), *pages("train.ipynb"), *pages("evaluate.ipynb"),
                                          *pages("compare.ipynb")]},
        {"section": "How to", "contents": [*howtos("howto"), *pages("tutorials/*.ipynb")]},
        {"section": "한국어", "contents": howtos("ko")},
        *pages("settings.qmd"),
        {"section": "Gallery", "contents": ["records/index.qmd", *[page for page in pages("[1-9]*.ipynb")]]},
        {"section": "How it works", "contents": chapters(True)},
        {"section": "API", "contents": chapters(False)},
    ]
    sidebar = {"website": {"sidebar": {"contents": contents, "collapse-level": 1}}}
    (notebooks / "sidebar.yml").write_text(
        yaml.safe_dump(sidebar, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )


def order_search(site: Path) -> None:
    "Let search find settings and how-tos before the code that is behind them."
    path = site / "search.json"
    entries = json.loads(path.read_text(encoding="utf-8"))

    def place(entry):
        return next(
            (number for number, start in enumerate(FOUND_FIRST) if entry["href"].startswith(start)), len(FOUND_FIRST)
        )

    path.write_text(json.dumps(sorted(entries, key=place), ensure_ascii=False), encoding="utf-8")


def ask_nobody(site: Path) -> None:
    "Take out what would be fetched from another server."
    for path in (site / "site_libs").rglob("*.css"):
        css = path.read_text(encoding="utf-8")
        if FOREIGN.search(css):
            path.write_text(FOREIGN.sub("", css), encoding="utf-8")


def open_to_all(site: Path) -> None:
    "Let pages be used with a keyboard and a screen reader: sections are buttons, and each language is called by its name."
    from llmlab.runs.page import mark_korean

    for path in set(site.rglob("*.html")) - set((site / "records").glob("2*.html")):
        page = SECTION.sub(r'<button type="button" \1\2>\3</button>', path.read_text(encoding="utf-8"))
        page = page.replace('role="navigation" aria-expanded', 'aria-hidden="true" aria-expanded')  # the arrow beside it
        page = ICON.sub(r'\1 aria-hidden="true"', page)
        if path.parent.name != "ko":
            path.write_text(mark_korean(page), encoding="utf-8")
            continue
        for english, korean in FRAME.items():
            page = page.replace(english, korean)
        before, start, after = page.replace('<html lang="en">', '<html lang="ko">').partition("<main")
        before = re.sub('<(header|nav id="quarto-sidebar")', r'<\1 lang="en"', before)
        path.write_text(mark_korean(before) + start + after, encoding="utf-8")


def process_notebooks(copy: Path) -> Path:
    "Run nbdev's processing in the copy of the project and return the folder of processed notebooks."
    os.chdir(copy)
    # The worker processes import the library from the copy too, and look for weights nowhere but here.
    search_path = os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.update(
        PYTHONPATH=search_path, HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore:Found cells containing imports"
    )
    sys.path.insert(0, str(copy))
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    _build_modidx()
    write_sidebar(copy / "nbs")
    return proc_nbs(force=True)


def name_pages(processed: Path) -> dict[str, str]:
    "Give each notebook the name of the page nbdev links to (`01_forest` is forest.html), which smalldocs would not do by itself."
    names = {}
    for path in processed.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        first = notebook["cells"][0] if notebook["cells"] else {}
        source = "".join(first.get("source", ""))
        if first.get("cell_type") != "raw" or not source.startswith("---"):
            continue
        front = yaml.safe_load(source.strip().strip("-"))
        page = Path(front.pop("output-file", f"{path.stem}.html")).stem
        first["source"] = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n"
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
        path.rename(path.with_name(f"{page}.ipynb"))
        names[path.name] = f"{page}.ipynb"
    sidebar = processed / "sidebar.yml"
    # folders keep their number
    renamed = re.sub(r"[\w.-]+\.ipynb", lambda name: names.get(name[0], name[0]), sidebar.read_text(encoding="utf-8"))
    sidebar.write_text(renamed, encoding="utf-8")
    return names


def mend_links(processed: Path, names: dict[str, str], settings) -> None:
    "Make links to the published site relative, follow the pages' new names, and send links out of the notebooks' folder to the repository."
    from llmlab.commands.cli import main

    site = f"{settings['doc_host']}{settings['doc_baseurl']}".rstrip("/") + "/"
    for path in (path for pattern in ("*.ipynb", "*.qmd") for path in processed.rglob(pattern)):
        depth = "../" * (len(path.relative_to(processed).parts) - 1)

        def mend(match):
            link, hash_mark, anchor = match[2].partition("#")
            if link.startswith(site):  # made by nbdev, for a name in backticks
                link = depth + (link.removeprefix(site) or "index.html")
                # neither has a signature on its page
                if anchor.startswith("_") or link.endswith("cli.html") and anchor in main.commands:
                    hash_mark = anchor = ""
            elif link.startswith(f"{depth}../"):
                link = f"{settings['git_url']}/blob/{settings['branch']}/{link.removeprefix(f'{depth}../')}"
            else:
                folder, slash, name = link.rpartition("/")
                link = folder + slash + names.get(name, name)
            return match[1] + link + hash_mark + anchor

        path.write_text(LINK.sub(mend, path.read_text(encoding="utf-8")), encoding="utf-8")


def add_pages(root: Path, notebooks: Path) -> int:
    "Write the pages that are made of the project's own tables and records, and prepare the others; count the records."
    records = write_records(root, notebooks)
    write_settings(root, notebooks)
    write_recipes(notebooks)
    switch_languages(notebooks)
    prepare_notebooks(notebooks)
    return records


def build(root: Path = ROOT) -> list[str]:
    "Build the site and return what is wrong with it, such as links that lead nowhere."
    with tempfile.TemporaryDirectory(prefix="llmlab-docs-") as folder:
        copy = Path(folder).resolve()
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "sidebar.yml", "records", "*.db")
        # figures that pages show were written by tools, and their reports are made there
        for name in ("nbs", "llmlab", "tools"):
            shutil.copytree(root / name, copy / name, ignore=ignore)
        shutil.copy(root / "settings.ini", copy)
        records = add_pages(root, copy / "nbs")
        processed = process_notebooks(copy)
        from nbdev.config import get_config
        from smalldocs.site import build as render

        settings = get_config()
        mend_links(processed, name_pages(processed), settings)
        site = render(processed, quiet=True)
        order_search(site.out)
        ask_nobody(site.out)
        open_to_all(site.out)
        output = root / settings.doc_path.name
        shutil.rmtree(output, ignore_errors=True)
        os.chdir(root)
        shutil.move(site.out, output)
    print(f"{len(site.pages)} pages and {records} records in {os.path.relpath(output, root)}/: open index.html there, or run "
          f"`python -m http.server -d {os.path.relpath(output, root)}`, which search needs.")
    return site.warnings


def main() -> int:
    "Build the site, or make the notebooks ready for a build by Quarto."
    parser = argparse.ArgumentParser(description="Build the documentation site into _docs.")
    parser.add_argument("--for-quarto", action="store_true",
                        help="only make nbs/ ready for nbdev_docs, IN PLACE: meant for a throw-away checkout")
    if parser.parse_args().for_quarto:
        records = add_pages(ROOT, ROOT / "nbs")
        write_sidebar(ROOT / "nbs")
        print(f"nbs/ is ready for nbdev_docs, with {records} records.")
        return 0
    problems = build()
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
