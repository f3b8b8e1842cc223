"""The whole job on gs://: input, checkpoints and output in a storage emulator, also where a fifth of all requests fails."""

import concurrent.futures
import pathlib
import time
import types

import numpy as np
import pytest
from apache_beam.io.gcp import gcsio_retry

import decoding
from pipeline import generate
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, files, rows, run, summary
from tests.support import emulator
from transforms.storage import OutputFolder

ENDINGS = {"output": "", "input": ".jsonl", "target": "", "draft": ""}


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


def test_the_job_on_gcs_equals_the_local_one(command, finished_run, models, sentences, server, tmp_path, monkeypatch):
    """Fake generators, real everything else; a second launch finds nothing to do, and one after a loss does that part."""
    emulator.use(monkeypatch, server)
    bucket, overrides = put_everything(server, models, sentences)
    remote = [*command(output=f"gs://{bucket}/runs/a"), *overrides]
    run(remote)
    emulator.download_tree(server, bucket, "runs/a", tmp_path / "fetched")
    assert files(tmp_path / "fetched") == files(finished_run)
    assert_same_rows(rows(finished_run), rows(tmp_path / "fetched"))
    folder, loads = OutputFolder(f"gs://{bucket}/runs/a"), fakes.loads
    run(remote)
    assert fakes.loads == loads
    folder.delete(["generations/part-00002-of-00004.parquet"])
    run(remote)
    emulator.download_tree(server, bucket, "runs/a", tmp_path / "again")
    assert_same_rows(rows(finished_run), rows(tmp_path / "again"))


def test_a_failing_store_changes_nothing(
    command, finished_run, models, sentences, server, tmp_path, monkeypatch, impatient
):
    with emulator.FailingProxy(server, rate=0.2, seed=7) as proxy:
        bucket, overrides = put_everything(server, models, sentences)
        emulator.use(monkeypatch, proxy.url)
        run([*command(output=f"gs://{bucket}/runs/a"), *overrides])
        failed = sum(count for what, count in proxy.failures.items() if what != "passed")
        assert all(proxy.failures[what] for what in proxy.FAILURES), proxy.failures
        assert failed > 0.1 * sum(proxy.failures.values()), proxy.failures
    emulator.download_tree(server, bucket, "runs/a", tmp_path / "fetched")
    assert files(tmp_path / "fetched") == files(finished_run)
    assert_same_rows(rows(finished_run), rows(tmp_path / "fetched"))
    totals = [summary(folder) for folder in (finished_run, tmp_path / "fetched")]
    for total in totals:
        total.pop("timings"), total.pop("finished"), total.pop("compilations")
    assert totals[0] == totals[1]


@pytest.mark.slow
def test_weights_survive_a_failing_store(models, server, monkeypatch, impatient):
    with emulator.FailingProxy(server, rate=0.2, seed=3) as proxy:
        bucket = emulator.make_bucket(server)
        emulator.upload_tree(server, bucket, "models/target", models["target"])
        emulator.use(monkeypatch, proxy.url)
        fetched = decoding.load_model(f"gs://{bucket}/models/target")
        assert sum(proxy.failures.values()) > proxy.failures["passed"] > 0, proxy.failures
    local = decoding.load_model(str(models["target"]))
    inputs = np.array([[0, 5, 9]]), np.array([[7, 8, 1]]), np.array([3])
    np.testing.assert_array_equal(fetched.logits(*inputs), local.logits(*inputs))


@pytest.mark.slow
def test_real_models_and_preconditions(command, models, sentences, tmp_path, monkeypatch, impatient):
    """With an emulator that refuses to overwrite: only one of many commits wins, and the job, models and all, is right."""
    assert generate.main(command()) == 0
    with emulator.FailingProxy(rate=0.2, seed=11) as proxy, emulator.go_emulator(proxy.url) as url:
        proxy.upstream = url
        bucket, overrides = put_everything(url, models, sentences)
        emulator.use(monkeypatch, proxy.url)
        folder = OutputFolder(f"gs://{bucket}/race")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i: folder.create("generations/part", b"%d" % i * 1000), range(8)))
        assert sum(won) <= 1  # none, where the winner's reply was lost
        assert folder.list() == {"generations/part": 1000}
        first = folder.read("generations/part")
        assert won == [False] * 8 or first == b"%d" % won.index(True) * 1000
        assert not folder.create("generations/part", b"late")
        assert folder.read("generations/part") == first
        folder.put("generations/part", b"replaced")
        assert folder.read("generations/part") == b"replaced"
        assert generate.main([*command(output=f"gs://{bucket}/runs/a"), *overrides]) == 0
        assert all(proxy.failures[what] for what in proxy.FAILURES), proxy.failures
        emulator.download_tree(url, bucket, "runs/a", tmp_path / "fetched")
    assert files(tmp_path / "fetched") == files(tmp_path / "out")
    assert_same_rows(rows(tmp_path / "out"), rows(tmp_path / "fetched"))


@pytest.mark.parametrize("where", ENDINGS)
def test_a_missing_bucket_stops_the_launch(where, command, models, sentences, server, tmp_path, monkeypatch, capsys):
    emulator.use(monkeypatch, server)
    refused(where, f"gs://no-such-bucket/x{ENDINGS[where]}", command, capsys, tmp_path)


@pytest.mark.parametrize("where", ENDINGS)
def test_no_permission_stops_the_launch(where, command, models, sentences, server, tmp_path, monkeypatch, capsys):
    bucket = emulator.make_bucket(server)
    with emulator.FailingProxy(server, rate=0) as proxy:
        proxy.denied = bucket
        emulator.use(monkeypatch, proxy.url)
        refused(where, f"gs://{bucket}/x{ENDINGS[where]}", command, capsys, tmp_path)
        assert 1 <= proxy.failures["403"] <= 12  # asked, for each kind of checkpoint, and not again and again


@pytest.mark.parametrize("where", ENDINGS)
def test_a_store_that_stays_away_stops_the_launch(where, command, models, server, tmp_path, monkeypatch, capsys, impatient):
    bucket = emulator.make_bucket(server)
    emulator.upload_tree(server, bucket, "x", models["target"])
    with emulator.FailingProxy(server, rate=1) as proxy:
        proxy.FAILURES = ("503",)
        emulator.use(monkeypatch, proxy.url)
        monkeypatch.setattr(gcsio_retry.DEFAULT_RETRY_WITH_THROTTLING_COUNTER, "_timeout", 1.0)
        refused(where, f"gs://{bucket}/x{ENDINGS[where]}", command, capsys, tmp_path)
        assert proxy.failures["503"] > 1


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
    assert fakes.loads == loads and time.monotonic() - start < 30  # clients try again for two minutes
    assert not (tmp_path / "refused").exists()
