"""README and guides, the commands' docstrings and the presets' name files, modules, settings and flags that exist."""

import ast
import importlib.util
import pathlib
import re
import shlex

import pytest
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from pipeline.settings import command_line, parse_command_line

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = {path: path.read_text(encoding="utf-8") for name in ("specbeam", "pipeline", "benchmarks", "examples", "configs")
           for path in sorted((ROOT / name).rglob("*.py"))}  # fmt: skip
PROGRAMS = [path for path, text in SOURCES.items() if "python -m" in text or "__main__" in text]
ELSEWHERE = {"--checkpointing_interval"}  # of Flink's job server
FOLDERS = "specbeam|decoding|transforms|pipeline|tests|benchmarks|configs|examples|docs"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def flags_that_exist() -> set[str]:
    """Beam's, and every word that stands in quotes in a program, which is where flags are defined."""
    parser = _BeamArgumentParser(allow_abbrev=False)
    for cls in {cls.__name__: cls for cls in PipelineOptions.__subclasses__()}.values():
        cls._add_argparse_args(parser)
    quoted = re.findall(r"[\"'](?:--)?([a-z][\w-]*)[\"'.]", "".join(SOURCES.values()))
    return {*parser._option_string_actions, *(f"--{name}" for name in quoted), *ELSEWHERE}


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of every `python -m` command of a page, from the module's name on."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(body for language, body in blocks if language in ("", "sh")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines if "python -m " in line]
    return [words[words.index("-m") + 1 :] for words in split]


def test_there_are_commands():
    assert {page.stem for page in PAGES if page.parent.name == "docs" and not commands(page)} == {"exactness", "outputs"}


@each_page
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = [ROOT / name for name in re.findall(rf"`((?:{FOLDERS})/[\w/]+\.\w+)`", text)]
    assert [path for path in (*links, *files) if not path.exists()] == []


@each_page
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    # Readers and users of presets put their own bucket where gs://BUCKET stands.
    monkeypatch.setattr(command_line, "placeholder_in", lambda path: "")
    known = flags_that_exist()
    for module, *words in commands(page):
        assert importlib.util.find_spec(module) is not None, module
        flags = {word.split("=")[0] for word in words if word.startswith("--") and not word.startswith("--config.")}
        assert flags - known == set(), (module, words)
        if settings := [word for word in words if word.startswith("--config")]:
            shown = [re.sub(r"^--config=(FILE|\.\.\.)$", "--config=configs/quickstart.py", word) for word in settings]
            file = [] if any(word.startswith("--config=") for word in shown) else ["--config=configs/quickstart.py"]
            parse_command_line([*file, *shown, "--output=out"])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_name_flags_that_exist(path, monkeypatch):
    text = ast.get_docstring(ast.parse(SOURCES[path])) or ""
    flags = re.findall(r"(?<![\w-])(--[a-z][a-z_-]*)", text)
    assert {flag for flag in flags if flag != "--config"} - flags_that_exist() == set()


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_machine_of_ours(path):
    assert re.findall(r"(?<![\w.}])/(?:tmp|work|home|root)/\S*", path.read_text(encoding="utf-8")) == []
