"""Write README.md from nbs/index.ipynb, or with --check fail when the two have drifted apart. Neither Quarto nor a network is needed."""
import argparse
import json
import os
import re
import sys
from pathlib import Path

import yaml
from build_docs import ROOT, split_title

LINK = re.compile(r'(\]\(|(?:href|src)=")([^)"\s]+)')


def process_index(root: Path):
    "Run nbdev's processors over the start page and return its front matter and its notebook."
    os.chdir(root)  # where nbdev looks for settings.ini
    sys.path.insert(0, str(root))  # its links to names come from this checkout's index of them
    import nbformat
    from execnb.nbio import dict2nb, nb2str
    from nbdev.processors import FilterDefaults

    source = json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    source["cells"] = [part for cell in source["cells"] for part in split_title(cell)]
    processed = dict2nb(source)
    processed.path_ = root / "nbs" / "index.ipynb"
    FilterDefaults()(processed)
    front = yaml.safe_load(processed.cells.pop(0).source.strip().strip("-"))
    notebook = nbformat.reads(nb2str(processed), as_version=4)
    notebook.metadata.language_info = {"name": "python"}  # nbdev_clean drops it, and code blocks are highlighted by it
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if re.search(r"^#\|\s*echo:\s*false", cell.source, re.MULTILINE):
                cell.metadata.tags = ["hide-source"]
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    return front, notebook


def render(root: Path = ROOT) -> str:
    "Render the start page as Markdown whose links work from the root of the repository."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    front, notebook = process_index(root)
    exporter = MarkdownExporter(
        config=Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-source"}})
    )
    body, resources = exporter.from_notebook_node(notebook)
    if resources.get("outputs"):
        raise SystemExit(
            "README.md cannot hold what a cell draws: save it in nbs/images and show it in a Markdown cell."
        )

    def from_root(match):
        link, hash_mark, anchor = match[2].partition("#")
        path = os.path.normpath(f"nbs/{link}")
        return match[1] + (f"{path}{hash_mark}{anchor}" if link and (root / path).exists() else match[2])

    heading = f"# {front['title']}\n\n" + (f"> {front['description']}\n\n" if front.get("description") else "")
    body = re.sub(r"^ +$", "", LINK.sub(from_root, body), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", heading + body.strip()) + "\n"


def main() -> int:
    "Write README.md, or only compare it."
    parser = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if README.md is not what the notebook gives"
    )
    check = parser.parse_args().check
    readme, text = ROOT / "README.md", render()
    if readme.is_file() and readme.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print("README.md is not what nbs/index.ipynb gives. Run `python tools/readme.py` (or `make prepare`) and commit what it writes.",
              file=sys.stderr)
        return 1
    readme.write_text(text, encoding="utf-8")
    print("README.md written from nbs/index.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main())
