"""The commands of docs/operations.md do what it says they do."""

import pathlib
import re
import shlex

from pipeline import generate, inspect
from pipeline.settings import parse_command_line
from tests.pipeline import fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    found = commands()
    assert [words[2] for words in found] == ["pipeline.generate", *["pipeline.inspect"] * 3, "pipeline.generate"]
    out = str(tmp_path / "out")
    assert inspect.main([out]) == 2
    for words in found:
        assert words[:2] == ["python", "-m"]
        args = [word.replace("out/quickstart", out) for word in words[3:]]
        assert args != words[3:]
        if words[2] == "pipeline.generate":
            assert parse_command_line(args).beam_args == ()
            assert generate.main(args, fakes.factory()) == 0
        else:
            assert inspect.main(args) == 0
    assert "Finished already" in capsys.readouterr().out
    (tmp_path / "out" / "generations" / "part-00001-of-00005.parquet").unlink()
    assert inspect.main([out]) == 1


def test_what_it_names_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = str(tmp_path / "out")
    assert generate.main(["--config=configs/quickstart.py", f"--output={out}"], fakes.factory()) == 0
    found = inspect.inspect_folder(out)
    keys = re.search(r"`--json` has the keys (.*?)\. `--quick`", GUIDE, re.DOTALL).group(1)
    shards = re.search(r"`shards`\s*\((.*?)\)", keys, re.DOTALL).group(1)
    assert set(re.findall(r"`(\w+)`", shards)) == set(found["shards"])
    named = set(re.findall(r"`(\w+)`", keys)) - set(re.findall(r"`(\w+)`", shards))
    assert named <= found.keys()
    sources = "".join(path.read_text() for path in (ROOT / "transforms").glob("*.py"))
    for counter in re.findall(r"`(\w+)`", GUIDE.partition("namespace `specbeam`:")[2]):
        assert f'"{counter}"' in sources
