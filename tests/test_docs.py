"""The documentation site and README.md, built in a copy of the project as anyone would build them, and then read as a browser does."""
import contextlib
import functools
import html
import html.parser
import http.server
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from browser import CHROMIUM, needs_browser

ROOT = Path(__file__).resolve().parent.parent
RECORD = "20260101-120000-gemma3-270m-lab-ko-instruct-test"
HANGUL = re.compile("[가-힣]{2,}")
ACCESS = (ROOT / "tests" / "access.js").read_text(encoding="utf-8")
# Python reads this module at its start: whatever looks beyond this machine is written down and refused.
NO_NETWORK = """
import pathlib, socket
def refuse(host, *rest, **named):
    if host not in (None, "localhost", "127.0.0.1", "::1", b"localhost"):
        pathlib.Path(__file__).with_name("attempts").open("a").write(f"{host}\\n")
        raise OSError("no network in this test")
    return resolve(host, *rest, **named)
resolve, socket.getaddrinfo = socket.getaddrinfo, refuse
"""


def git(folder, *words):
    "Run git in a folder and return what it prints."
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "core.hooksPath=/dev/null"]
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout


def run_tool(project, name, *words):
    "Run one of the project's tools from somewhere else, without a network and without Quarto."
    guard = project.parent / "guard"
    environment = {**os.environ, "PYTHONPATH": str(guard), "PATH": f"{guard}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([sys.executable, project / "tools" / name, *words], cwd=project.parent, env=environment, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "Copy the files, tracked or new, into a repository of their own, with one committed record and one that is not."
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no telling which files are the project's")
    base = tmp_path_factory.mktemp("docs")
    project, guard = base / "project", base / "guard"
    for name in filter(None, git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_NETWORK)
    for tool in ("quarto", "curl"):
        (guard / tool).write_text(f"#!/bin/sh\necho {tool} >> {guard}/attempts\nexit 1\n")
        (guard / tool).chmod(0o755)
    record = {
        "status": "finished", "params": {"model": "gemma3-270m"}, "metrics": {"eval_loss_before": 3.2, "eval_loss": 2.1}
    }
    page = '<html><body><h1 id="top">기록</h1><a href="#top">top</a></body></html>'
    for name in (RECORD, "not-committed"):
        folder = project / "runs" / name
        folder.mkdir(parents=True)
        (folder / "train.html").write_text(page, encoding="utf-8")
        (folder / "record.json").write_text(json.dumps(record))
    git(project, "init", "-q")
    git(project, "add", "-A", "--", ".", ":!runs/not-committed")
    git(project, "commit", "-q", "-m", "all")
    return project


@pytest.fixture(scope="module")
def site(project):
    "Build the site once, and see that the build is quiet, keeps to itself and leaves nothing behind."
    before = git(project, "status", "--porcelain")
    done = run_tool(project, "build_docs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) <= 3 and not done.stderr, done.stdout + done.stderr
    assert git(project, "status", "--porcelain") == before
    attempts = project.parent / "guard" / "attempts"
    assert not attempts.exists(), f"the build looked for {attempts.read_text().split()}"
    return project / "_docs"


class Page(html.parser.HTMLParser):
    "The links, the pictures and the anchors of a page."

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(filter(None, (attributes.get("id"), attributes.get("name"))))
        if tag not in ("link", "script") or not attributes.get("crossorigin"):
            self.links.update(filter(None, (attributes.get("href"), attributes.get("src"))))


@pytest.fixture(scope="module")
def pages(site):
    "Read every page of the site."
    return {path: Page(path) for path in site.rglob("*.html")}


def notebooks(project):
    "List the notebooks that become pages."
    return [path for path in sorted((project / "nbs").rglob("*.ipynb")) if path.name[0] not in "._"]


def page_name(notebook):
    "Name the page of a notebook as nbdev does: in the same folder, without the number."
    folders = [parent.name for parent in notebook.parents][:[parent.name for parent in notebook.parents].index("nbs")]
    return "/".join([*reversed(folders), re.sub(r"^\d+\w?_", "", notebook.stem) + ".html"])


def words_of(notebook):
    "List the Korean words in the text of a notebook, but for subtitles: those are not searched."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return set(HANGUL.findall(re.sub("```.*?```|^> .*?$", "", text, flags=re.DOTALL | re.MULTILINE)))


def test_each_notebook_is_a_page(project, site):
    for notebook in notebooks(project):
        assert (site / page_name(notebook)).is_file(), f"{notebook.name} has no page"


def test_no_text_of_a_notebook_is_lost(project, site):
    """nbdev makes front matter of the cell that holds the title, and would drop the rest of it."""
    for notebook in notebooks(project):
        shown = html.unescape((site / page_name(notebook)).read_text(encoding="utf-8"))
        first = next(
            cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "markdown"
        )
        plain = re.sub(r"[`*_]|\[|\]\(.*?\)", "", "".join(first["source"]))
        for words in re.findall(r"^(?:[#>] )?([\w ]{12,})", plain, re.MULTILINE):
            assert words in re.sub("<[^>]*>", "", shown), f"{notebook.name}: '{words}' is not on its page"


def test_every_local_link_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = (target / "index.html" if target.is_dir() else target).resolve()
            if not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.name}: {link} (no such anchor)")
    assert not broken, "\n".join(sorted(broken))


def test_links_between_pages_stay_on_the_site(project, pages):
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(project / "settings.ini", encoding="utf-8")
    host = settings["DEFAULT"]["doc_host"]
    away = [f"{path.name}: {link}" for path, page in pages.items() for link in page.links if link.startswith(host)]
    assert not away, "\n".join(away)


def is_command(name):
    """Tell a command of the command line, which has its own help on its page in place of a signature."""
    module, _, attribute = name.rpartition(".")
    return module in ("llmlab.commands.cli", "llmlab.distributed", "llmlab.scale.workers") and isinstance(
        getattr(importlib.import_module(module), attribute), click.Command
    )


def test_every_public_name_is_documented(project, site, pages):
    index = runpy.run_path(str(project / "llmlab" / "_modidx.py"))["d"]
    assert index["syms"], "nbdev's index of names is empty"
    for names in index["syms"].values():
        for name, (address, _) in names.items():
            page, anchor = address.split("#")
            if not re.search(r"\._|\.[A-Z]\w*\.", name.removeprefix("llmlab")) and not is_command(name):
                assert anchor in pages[(site / page).resolve()].anchors, f"{name} is not on {page}"


def test_a_signature_has_its_parameters_comments_and_source(project, site):
    page = (site / "13_common" / "errors.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub("<[^>]*>", "", page))
    assert re.search(r"def lookup\(\s*name:str, # the entry wanted", shown)
    assert re.search(r'href="https://[^"]*/llmlab/common/errors.py#L\d+"[^>]*>source', page)


def test_search_finds_korean_words(project, site):
    entries = json.loads((site / "search.json").read_text(encoding="utf-8"))
    found = 0
    for notebook in notebooks(project):
        own = [entry for entry in entries if entry["href"].partition("#")[0] == page_name(notebook)]
        text = " ".join(f"{entry['title']} {entry['section']} {entry['text']}" for entry in own)
        missing = {word for word in words_of(notebook) if word not in text}
        assert not missing, f"search does not find {missing} of {notebook.name}"
        found += len(words_of(notebook))
    assert found, "no notebook has a Korean word to look for"


def test_pages_show_what_was_measured(project, site):
    """Tables and plots of measurements are made as the site is built, from the figures in the files: nobody copies them into a notebook."""
    plan, bench = ((site / name).read_text(encoding="utf-8") for name in ("09_experiment/plan.html", "bench.html"))
    rows = json.loads((project / "tools" / "plan_measured.json").read_text(encoding="utf-8"))["rows"].values()
    assert len(rows) >= 8 and all(f"{row['error']:+.1%}" in plan for row in rows)
    results = json.loads((project / "nbs" / "bench" / "results.json").read_text(encoding="utf-8"))
    assert all(f"{name}</h" in bench for name in results if "/" in name) and bench.count("Against the fastest peer") == sum("/" in name for name in results)
    measured = [
        bool(results), *((project / "nbs" / "bench" / name).exists() for name in ("sampling.json", "scale.json"))
    ]
    assert bench.count("data:image/png") == sum(measured)  # each plot once


def test_only_committed_records_become_pages(site):
    listed = (site / "records" / "index.html").read_text(encoding="utf-8")
    assert f'href="{RECORD}.html"' in listed or f'href="../records/{RECORD}.html"' in listed
    assert "3.200 → 2.100" in listed
    korean = (site / "ko" / "gallery.html").read_text(encoding="utf-8")
    assert f'href="../records/{RECORD}.html"' in korean and "3.2 → 2.1" in korean
    assert "기록" in (site / "records" / f"{RECORD}.html").read_text(encoding="utf-8")
    assert "not-committed" not in listed and not (site / "records" / "not-committed.html").exists()


def test_without_records_the_page_says_how_to_make_one(tmp_path):
    write_records = runpy.run_path(str(ROOT / "tools" / "build_docs.py"))["write_records"]
    assert write_records(tmp_path, tmp_path) == 0
    assert "make train" in (tmp_path / "records" / "index.qmd").read_text(encoding="utf-8")


def test_readme_is_what_the_start_page_gives(project):
    """One test, in order: the committed README.md, a change of the notebook, and the way out that the message names."""
    done = run_tool(project, "readme.py", "--check")
    assert done.returncode == 0, done.stderr
    index, readme = project / "nbs" / "index.ipynb", project / "README.md"
    before = index.read_text(encoding="utf-8"), readme.read_text(encoding="utf-8")
    try:
        notebook = json.loads(before[0])
        notebook["cells"].append(
            {"cell_type": "markdown", "id": "added", "metadata": {}, "source": "덧붙인 문장. [Train](train.ipynb#data)"}
        )
        index.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
        done = run_tool(project, "readme.py", "--check")
        assert done.returncode == 1 and "python tools/readme.py" in done.stderr
        assert readme.read_text(encoding="utf-8") == before[1], "--check wrote README.md"
        assert run_tool(project, "readme.py").returncode == 0
        assert "덧붙인 문장. [Train](nbs/train.ipynb#data)" in readme.read_text(encoding="utf-8")
        assert run_tool(project, "readme.py", "--check").returncode == 0
    finally:
        index.write_text(before[0], encoding="utf-8")
        readme.write_text(before[1], encoding="utf-8")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    "A file server that keeps its log to itself."

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def serving(folder):
    "Serve a folder, and say where."
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def search(site, folder, text):
    "Type into the search box of the start page, in a browser, and return what it shows."
    typing = f"""<script>addEventListener("load", () => {{
        const box = document.querySelector("#quarto-search input");
        box.value = {json.dumps(text)};
        box.dispatchEvent(new Event("input"));
    }})</script></body>"""
    served = shutil.copytree(site, folder / "site")
    start = (served / "index.html").read_text(encoding="utf-8")
    (served / "typed.html").write_text(start.replace("</body>", typing), encoding="utf-8")
    with serving(served) as address:
        # Virtual time runs on only while nothing is being loaded, so that the search has always answered by its end.
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
                   "--virtual-time-budget=10000", "--dump-dom", f"{address}/typed.html"]
        shown = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60).stdout
    return shown.partition("smalldocs-search-results")[2].partition("</header>")[0]


@needs_browser
def test_a_browser_finds_a_korean_word(project, site, tmp_path):
    words = {notebook: words_of(notebook) for notebook in notebooks(project)}
    places = Counter(word for found in words.values() for word in found)
    notebook, word = next(
        (notebook, word) for notebook, found in words.items() for word in sorted(found) if places[word] == 1
    )
    results = search(site, tmp_path, word)
    assert f'{page_name(notebook)}' in results and f"<mark>{word}</mark>" in results, results[:2000]


@needs_browser
@pytest.mark.parametrize("text, first", [
    ("learning_rate", "settings.html#learning_rate"), ("학습률", "settings.html#"), ("데이터셋", "ko/formats.html"), ("메모리", "ko/troubleshooting.html"),
])
def test_search_finds_settings_and_howtos_before_internals(site, tmp_path, text, first):
    found = re.findall(r'class="search-result" href="([^"]+)"', search(site, tmp_path, text))
    assert found and first in found[0], found


def test_the_site_asks_no_other_server(site):
    asked = re.compile(r"""(?:@import\s+url\(|src=["']|<link[^>]+stylesheet[^>]+href=["'])\s*["']?https?://[^"')\s]+""")
    foreign = {str(path.relative_to(site)): asked.findall(path.read_text(encoding="utf-8"))
               for pattern in ("*.html", "*.css") for path in site.rglob(pattern) if "records" not in path.parts}
    assert not {name: found for name, found in foreign.items() if found}


def test_tests_are_not_in_the_pages(site):
    shown = {
        path.name for path in site.rglob("*.html")
        if "<span class=\"n\">test_eq</span>" in path.read_text(encoding="utf-8")
    }
    assert not shown


def test_pages_in_two_languages_lead_to_one_another(site):
    for korean in (site / "ko").glob("*.html"):
        if korean.stem != "index":
            places = {"settings": "settings.html", "gallery": "records/index.html"}
            english = site / places.get(korean.stem, f"howto/{korean.name}")
            for here, there in ((korean, english), (english, korean)):
                assert os.path.relpath(there, here.parent) in here.read_text(encoding="utf-8")


# For everybody: WCAG 2.2 AA, as far as a browser can measure it

@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everybody_can_read_the_pages(site, browser, dark):
    """Contrast, names of pictures and controls, languages, order of headings, links told by more than colour; on a telephone too."""
    found = {}
    committed = sorted(page.parent.name for page in (ROOT / "runs").glob("*/train.html") if page.with_name("record.json").is_file())
    shown = {name: f"records/{name}.html" for name in committed if (site / "records" / f"{name}.html").is_file()}
    with serving(site) as address:
        for name in ("index.html", "howto/my_csv.html", "ko/my_csv.html", "settings.html", "ko/settings.html", "records/index.html",
                     "train.html", "06_runs/page.html", *list(shown.values())[:1]):
            browser.screen(dark=dark)
            browser.open(f"{address}/{name}")
            page = browser.value(ACCESS)
            assert page["seen"] > 20 and page["lang"] == ("ko" if name.startswith("ko/") else "en"), name
            browser.picture(f"docs_{name.replace('/', '_')}_{'dark' if dark else 'light'}")
            browser.screen(width=320, height=800, dark=dark)
            width = browser.value("document.scrollingElement.scrollWidth")
            found[name] = page["problems"] + ([f"{width} pixels wide on a telephone"] if width > 320 else [])
    assert shown and not any(found.values()), json.dumps({name: each for name, each in found.items() if each}, indent=1, ensure_ascii=False)


def test_the_measure_of_pages_finds_what_is_wrong(tmp_path, browser):
    (tmp_path / "bad.html").write_text("""<html><head><meta charset="utf-8"></head><body><main><h1>Title</h1><h3>Deeper</h3>
        <p style="color: #888">pale</p><p>한국어 문장입니다</p><p>A <a href="#" style="text-decoration: none">link</a></p>
        <img src="x.png"><button></button><input style="border: 1px solid #ddd"></main></body></html>""", encoding="utf-8")
    browser.open((tmp_path / "bad.html").as_uri())
    found = "\n".join(browser.value(ACCESS)["problems"])
    for problem in ("contrast 3.5", "heading of level 3 after 1", "Korean without lang=ko", "only its colour", "picture without words",
                    "control without a name: <button", "control without a name: <input", "box without an edge", "no title", "no language"):
        assert problem in found, found


def test_a_keyboard_reaches_everything(site, browser):
    """Tab goes from one thing to the next, each is seen to be the one, and Enter opens a section of the navigation."""
    with serving(site) as address:
        browser.open(f"{address}/howto/my_csv.html")
        reached = []
        for _ in range(40):
            browser.press("Tab")
            name, outline, box, state = browser.value("""(() => {
                const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect()
                return [(element.innerText || element.placeholder || element.className).trim(),
                        style.outlineStyle != "none" && parseFloat(style.outlineWidth), box.width * box.height,
                        element.getAttribute("aria-expanded")]
            })()""")
            assert outline >= 1 and box > 0, name
            reached.append(name)
            if name == "Gallery" and state == "false":
                browser.press("Enter")
                assert browser.value("document.activeElement.getAttribute('aria-expanded')") == "true"
                browser.picture("docs_keyboard")
                break
        assert {"llmlab", "Search", "Start", "Settings", "Gallery"} <= set(reached), reached
