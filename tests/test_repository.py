"""What the README, the lock and the packaging promise."""

import importlib.util
import pathlib
import re
import shlex
import tomllib

import pytest
from packaging.requirements import Requirement

import specbeam
from pipeline.settings import parse_command_line

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [body for name, body in blocks if name == language]


def commands() -> list[list[str]]:
    joined = "\n".join(fenced("")).replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.startswith(("make ", "bash ", ".venv/bin/python "))]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_readme_has_commands():
    assert {words[0] for words in commands()} == {"make", "bash", ".venv/bin/python"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_readme_exist(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[1] == "-m"
        assert importlib.util.find_spec(words[2]) is not None
        if words[2] == "pipeline.generate":
            assert parse_command_line(words[3:]).beam_args == ()   # every flag is one of the job's own


def test_python_of_the_readme_names_what_exists():
    (code,) = fenced("python")
    compile(code, "README.md", "exec")
    names = set(re.findall(r"specbeam\.(\w+)", code))
    assert names == {"load", "read"} and all(hasattr(specbeam, name) for name in names)  # it runs in tests/specbeam


def test_the_lock_pins_every_dependency_within_its_bounds_and_names_no_host():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins: dict[str, list[str]] = {}
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].strip().split("==")
            pins.setdefault(name, []).append(version)
    assert "://" not in lock
    for text in [*project["dependencies"], *(t for ts in project["optional-dependencies"].values() for t in ts)]:
        requirement = Requirement(text)
        if requirement.name == "specbeam":
            continue   # an extra made of others
        assert requirement.name in pins, f"{text} is not in the lock: make lock"
        for version in pins[requirement.name]:
            assert version in requirement.specifier, f"{text} and {version} of the lock do not agree: make lock"


@pytest.mark.parametrize(("python", "newest"), [("3.11", (0, 10)), ("3.12", (0, 12)), ("3.13", (0, 12))])
def test_every_python_has_the_newest_jax_it_can_have(python, newest):
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line.startswith(("jax==", "jaxlib=="))]
    taken = [pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_full_version": f"{python}.1"})]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in taken}
    assert len(taken) == 2 and versions["jax"] == versions["jaxlib"]
    assert tuple(map(int, versions["jax"].split(".")[:2])) >= newest
