"""The whole job on gs://: input, checkpoints and output in a storage emulator, also where a fifth of all requests fails."""

import pathlib
import time
import types

import pytest

from pipeline import generate
from tests import emulator
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from transforms.storage import OutputFolder


@pytest.fixture(scope="module")
def server():
    with emulator.python_emulator() as url:
        yield url


@pytest.fixture
def impatient(monkeypatch):
    """The clients' retries wait a hundredth as long."""
    import gcsfs.retry
    from google.api_core.retry import retry_unary

    slept = []

    def sleep(seconds):
        slept.append(seconds)
        time.sleep(seconds / 100)

    monkeypatch.setattr(retry_unary, "time", types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    patient = gcsfs.retry.asyncio.sleep
    monkeypatch.setattr(
        gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=lambda seconds: patient(seconds / 100))
    )
    return slept


def put_everything(url: str, models, sentences: pathlib.Path) -> tuple[str, list[str]]:
    """A bucket with models and input, and the overrides that use them."""
    bucket = emulator.make_bucket(url)
    for name in ("target", "draft"):
        emulator.upload_tree(url, bucket, f"models/{name}", models[name])
    emulator.upload(url, bucket, "data/input.jsonl", sentences.read_bytes())
    return bucket, [
        f"--config.input.pattern=gs://{bucket}/data/*.jsonl",
        f"--config.model.target=gs://{bucket}/models/target",
        f"--config.model.draft=gs://{bucket}/models/draft",
    ]


def test_the_job_on_gcs_equals_the_local_one(command, models, sentences, server, tmp_path, monkeypatch):
    """Fake generators, real everything else; a second launch finds nothing to do, and one after a loss does that part."""
    run(command())
    emulator.use(monkeypatch, server)
    bucket, overrides = put_everything(server, models, sentences)
    remote = [*command(output=f"gs://{bucket}/runs/a"), *overrides]
    run(remote)
    emulator.download_tree(server, bucket, "runs/a", tmp_path / "fetched")
    assert files(tmp_path / "fetched") == files(tmp_path / "out")
    assert_same_rows(rows(tmp_path / "out"), rows(tmp_path / "fetched"))
    folder, loads = OutputFolder(f"gs://{bucket}/runs/a"), fakes.loads
    run(remote)
    assert fakes.loads == loads
    folder.delete(["generations/part-00002-of-00004.parquet"])
    run(remote)
    emulator.download_tree(server, bucket, "runs/a", tmp_path / "again")
    assert_same_rows(rows(tmp_path / "out"), rows(tmp_path / "again"))


def test_a_failing_store_changes_nothing(command, models, sentences, server, tmp_path, monkeypatch, impatient):
    run(command())
    with emulator.FailingProxy(server, rate=0.2, seed=7) as proxy:
        bucket, overrides = put_everything(server, models, sentences)
        emulator.use(monkeypatch, proxy.url)
        run([*command(output=f"gs://{bucket}/runs/a"), *overrides])
        failed = sum(count for what, count in proxy.failures.items() if what != "passed")
        assert all(proxy.failures[what] for what in proxy.FAILURES), proxy.failures
        assert failed > 0.1 * sum(proxy.failures.values()), proxy.failures
    emulator.download_tree(server, bucket, "runs/a", tmp_path / "fetched")
    assert files(tmp_path / "fetched") == files(tmp_path / "out")
    assert_same_rows(rows(tmp_path / "out"), rows(tmp_path / "fetched"))
    totals = [summary(tmp_path / name) for name in ("out", "fetched")]
    for total in totals:
        total.pop("timings"), total.pop("finished")
    assert totals[0] == totals[1]


@pytest.mark.parametrize("where", ["output", "input", "target", "draft"])
def test_a_missing_bucket_stops_the_launch(where, command, models, sentences, server, tmp_path, monkeypatch, capsys):
    emulator.use(monkeypatch, server)
    refused(where, "gs://no-such-bucket/x", command, capsys, tmp_path)


@pytest.mark.parametrize("where", ["output", "input", "target", "draft"])
def test_no_permission_stops_the_launch(where, command, models, sentences, server, tmp_path, monkeypatch, capsys):
    bucket = emulator.make_bucket(server)
    with emulator.FailingProxy(server, rate=0) as proxy:
        proxy.denied = bucket
        emulator.use(monkeypatch, proxy.url)
        refused(where, f"gs://{bucket}/x", command, capsys, tmp_path)
        assert 1 <= proxy.failures["403"] <= 4  # asked, and not again and again


def refused(where: str, path: str, command, capsys, tmp_path):
    settings = {"input": "input.pattern", "target": "model.target", "draft": "model.draft"}
    if where == "output":
        args = command(output=path)
    else:
        args = command(f"--config.{settings[where]}={path}", output=tmp_path / "refused")
    loads, start = fakes.loads, time.monotonic()
    assert generate.main(args, fakes.factory()) == 2
    message = capsys.readouterr().err
    assert path in message and message.startswith("error: "), message
    assert message.count("\n") == 1, message
    assert settings.get(where, "output folder") in message
    assert fakes.loads == loads and time.monotonic() - start < 10
    assert not (tmp_path / "refused").exists()
