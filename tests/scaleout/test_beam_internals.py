"""Beam's private names: those that are used hold in the installed version, and nobody else uses any."""

import pathlib
import re

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.runners.portability.fn_api_runner.worker_handlers import WorkerHandler

from pipeline.runners import beam_internals

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_version_is_the_one_that_was_checked():
    assert beam.__version__ == beam_internals.CHECKED_WITH


def test_options():
    def refuse(message):
        raise ValueError(message)

    known, unknown = beam_internals.parse_options(["--parallelism=3", "--no_such=1"], refuse)
    assert known.parallelism == 3 and unknown == ["--no_such=1"]
    with pytest.raises(ValueError, match="invalid int value"):
        beam_internals.parse_options(["--parallelism=many"], refuse)
    assert beam_internals.given_flags(PipelineOptions(["--parallelism=3", "--runner=X"])) == {"--parallelism", "--runner"}


def test_worker_processes_are_ours_for_a_while():
    registered = WorkerHandler._registered_environments
    before = registered[python_urns.SUBPROCESS_SDK]
    with beam_internals.worker_processes_by(beam_internals.SubprocessSdkWorkerHandler):
        assert registered[python_urns.SUBPROCESS_SDK][0] is beam_internals.SubprocessSdkWorkerHandler
    assert registered[python_urns.SUBPROCESS_SDK] is before


def test_steps_are_fused():
    pipeline = beam.Pipeline()
    _ = pipeline | beam.Create([1]) | "A" >> beam.Map(str) | "B" >> beam.Map(len) | beam.Reshuffle() | "C" >> beam.Map(str)
    own = frozenset({common_urns.primitives.GROUP_BY_KEY.urn, common_urns.primitives.IMPULSE.urn})
    stages = beam_internals.fused_stages(pipeline.to_runner_api(), own)
    fused = [{step.unique_name for step in stage.transforms} for stage in stages]
    assert any({"A", "B"} <= names for names in fused) and not any({"A", "C"} <= names for names in fused)


def test_nothing_is_stopped_where_no_prism_runs():
    beam_internals.stop_prism()


def test_nobody_else_imports_private_names():
    private = re.compile(r"^\s*from apache_beam[\w.]* import .*\b_[A-Za-z]", re.MULTILINE)
    users = [path for path in (ROOT / "pipeline").rglob("*.py") if private.search(path.read_text())]
    assert users == [ROOT / "pipeline" / "runners" / "beam_internals.py"]
