"""docs/scaling.md names options, commands and pages that are there."""

import pathlib
import re
import shlex

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from pipeline.runners import options as runners
from pipeline.runners import prism
from pipeline.settings import parse_command_line
from tests.pipeline.helpers import run

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    binary = tmp_path / "prism"
    monkeypatch.setattr(prism, "default_folder", lambda: str(tmp_path))
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [words[:3] for words in commands] == [
        *[["python", "-m", "pipeline.generate"]] * 2, ["python", "-m", "pipeline.runners.prism"],
        ["python", "-m", "pipeline.generate"],
    ]  # fmt: skip
    seen = []
    for words in commands:
        if words[2] == "pipeline.runners.prism":
            binary.write_text("")  # as if it had been built
            assert prism.main(words[3:]) == 0
            continue
        args = [word.replace("out/", f"{tmp_path}/") for word in words[3:]]
        options = runners.beam_options(parse_command_line(args).beam_args)
        seen.append((runners.runner_of(options), runners.num_workers(options), runners.in_this_process(options)))
    assert seen == [("FnApiRunner", 2, True), ("FnApiRunner", 2, False), ("PrismRunner", 1, True)]


def test_threads(tmp_path, monkeypatch):
    """The other ways have tests of their own."""
    monkeypatch.chdir(ROOT)
    (line,) = re.findall(r"^python .*out/threads.*$", GUIDE, re.MULTILINE)
    run([word.replace("out/", f"{tmp_path}/") for word in shlex.split(line)[3:]])
    assert (tmp_path / "threads" / "_SUCCESS").exists()


def test_its_flags_and_pages_exist():
    parser = _BeamArgumentParser(allow_abbrev=False)
    for cls in {cls.__name__: cls for cls in PipelineOptions.__subclasses__()}.values():
        cls._add_argparse_args(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    ours = {"--config", "--output", "--prepare", "--checkpointing_interval"}  # the last is Flink's job server's
    assert set(re.findall(r"--[a-z_]+", GUIDE)) - known - ours == set()
    for page in re.findall(r"\]\((\w+\.md)\)", GUIDE):
        assert (ROOT / "docs" / page).exists(), page
