"""Values that were never filled in are refused at once: no network is asked about them."""

import socket
import time

import pytest

from pipeline import analyze, export_tfds, fit_ngram, generate, inspect, score
from transforms.storage import placeholder_in


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("gs://BUCKET/out", "BUCKET"),
        ("gs://My-Bucket/out", "My-Bucket"),
        ("gs://<bucket>/out", "<bucket>"),
        ("gs://your-bucket/out", "your-bucket"),
        ("gs://good/YOUR_MODEL/x", "YOUR_MODEL"),
        ("/data/<name of the model>", "<name of the model>"),
        ("gs://${BUCKET}/out", "${BUCKET}"),
        ("gs://$BUCKET/out", "$BUCKET"),
        ("gs://{bucket}/out", "{bucket}"),
        ("gs://models/.../t5", "..."),
        ("out/YOUR-FOLDER", "YOUR-FOLDER"),
        ("", ""),
        ("gs://a-bucket.of_mine9/Out/COLOUR_YOURS/*.jsonl", ""),
        ("out/run {1}", "{1}"),
        ("/data/OUT/x-?of-[0-9].jsonl", ""),
        ("hdfs://NameNode/x", ""),
    ],
)
def test_what_is_a_placeholder(path, found):
    assert placeholder_in(path) == found


def test_a_local_path_that_exists_is_none(tmp_path):
    (tmp_path / "<really>").mkdir()
    assert placeholder_in(str(tmp_path / "<really>")) == ""
    assert placeholder_in(str(tmp_path / "<really not>")) == "<really not>"


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (generate, ["--output=gs://BUCKET/out"]),
        (generate, ["--config.input.pattern=gs://BUCKET/*.jsonl"]),
        (generate, ["--config.model.target=gs://BUCKET/t5"]),
        (generate, ["--config.model.draft=gs://BUCKET/t5"]),
        (generate, ["--config.model.tokenizer=gs://BUCKET/t5"]),
        (generate, ["--runner=DataflowRunner", "--temp_location=gs://BUCKET/tmp"]),
        (generate, ["--runner=DataflowRunner", "--project=<BUCKET>"]),
        (score, ["--config.score.generations=gs://BUCKET/out"]),
        (score, ["--config.score.drafts.a=gs://BUCKET/out"]),
        (fit_ngram, ["--generations=gs://BUCKET/out"]),
    ],
)
def test_jobs_refuse_them(command, monkeypatch, capsys, main, args):
    def ask(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    started = time.monotonic()
    assert main.main([*(arg for arg in command() if arg.split("=")[0] != args[0].split("=")[0]), *args]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "placeholder" in said and "BUCKET" in said
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (inspect, ["gs://BUCKET/out"]),
        (analyze, ["--inputs=gs://BUCKET/out", "--output=report"]),
        (export_tfds, ["--inputs=gs://BUCKET/out", "--output=tfds"]),
    ],
)
def test_readers_of_folders_refuse_them(monkeypatch, capsys, main, args):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    assert main.main(args) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "placeholder 'BUCKET'" in said
