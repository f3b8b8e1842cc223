"""A demo translation to compare runners by, and the fixtures of tests/pipeline."""

import functools
import json
import pathlib

import pytest

from pipeline import generate
from tests.pipeline.conftest import command, models, sentences, spiece_model
from tests.pipeline.helpers import assert_same_rows, files, rows, summary

__all__ = ["command", "models", "sentences", "spiece_model"]

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """40 demo sentences in ten shards: `demo.arguments(output, *options)`, and `demo.check(output)` against the local runner.

    Sampled, so that equal rows are no accident of greedy decoding.
    """
    folder = tmp_path_factory.mktemp("demo")
    lines = (_ROOT / "examples" / "data" / "ende_software.test.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    (folder / "input.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    settings = {"decoding.temperature": 1.0, "decoding.num_slots": 4, "decoding.max_decode_tokens": 48,
                "decoding.input_buckets": "(64,)", "shards.examples_per_shard": 4,
                "input.pattern": folder / "input.jsonl"}  # fmt: skip
    return Demo(folder, tuple(f"--config.{name}={value}" for name, value in settings.items()))


class Demo:
    def __init__(self, folder: pathlib.Path, settings: tuple[str, ...]):
        self._folder, self._settings = folder, settings

    def arguments(self, output: pathlib.Path, *options: str) -> list[str]:
        """A command line of `pipeline.generate`."""
        return [f"--config={_ROOT / 'configs' / 'quickstart.py'}", f"--output={output}", *self._settings, *options]

    @functools.cached_property
    def alone(self) -> pathlib.Path:
        """The output folder of the local runner in this process."""
        output = self._folder / "alone"
        assert generate.main(self.arguments(output)) == 0
        return output

    def check(self, output: pathlib.Path) -> None:
        """Files, rows and summary but for times are those of the local runner, every example once."""
        assert files(output) == files(self.alone)
        found = rows(output)
        assert len(found) == 40 and len(set(found["example_id"])) == 40
        assert_same_rows(rows(self.alone), found)
        totals = [summary(folder) for folder in (self.alone, output)]
        for total in totals:
            for name in ("timings", "finished", "compilations", "fingerprint"):  # the last is of the code as well
                total.pop(name)
        assert json.dumps(totals[0]) == json.dumps(totals[1])
