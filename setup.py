"""Everything is stated in settings.ini, once; this file only hands it to setuptools."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def words(key):
    return shlex.split(settings.get(key, ""))


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Natural Language :: Korean",
        "Programming Language :: Python :: 3",
    ],
    packages=find_packages(include=["llmlab", "llmlab.*"]),
    package_data={"llmlab": ["bundled/*", "config/*.yaml", "models/*.yaml", "runs/*.jinja"]},
    python_requires=f">={settings['min_python']}",
    install_requires=words("requirements"),
    extras_require={"dev": words("dev_requirements"), "eval": words("eval_requirements"), "ray": words("ray_requirements")},
    entry_points={
        "console_scripts": words("console_scripts"),
        "papermill.engine": words("papermill_engines"),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
