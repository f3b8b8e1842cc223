"""pipeline.inspect: what it says of complete, broken, foreign and half-done folders, and its exit status."""

import json
import re
import shutil

from pipeline import inspect, score
from tests.pipeline.helpers import files, run, summary
from tests.pipeline.score_fakes import fake
from tests.support import emulator


def described(folder, capsys, *flags: str, expect: int) -> dict:
    capsys.readouterr()
    assert inspect.main([str(folder), "--json", *flags]) == expect
    return json.loads(capsys.readouterr().out)


def test_a_complete_folder(command, tmp_path, capsys, sentences):
    sentences.write_bytes(sentences.read_bytes() + b"no json\n\n")
    run(command(), poisoned=("input.jsonl:5",))
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    found, manifest = described(out, capsys, expect=0), json.loads((out / "manifest.json").read_text())
    assert found["complete"] is True and found["problems"] == [] and found["other_files"] == []
    assert found["shards"] == {"total": 4, "committed": 4, "missing": [], "failed": 0, "begun": 0, "retried": 0}
    assert found["errors"] == {"total": 3, "decode": {"ArithmeticError": 1}, "read": {"EmptyLine": 1, "MalformedJson": 1}}
    expected = summary(out)
    for name in ("complete", "fingerprint", "exact", "finished", "shards"):
        expected.pop(name)
    assert found["totals"] == expected
    assert (found["records"], found["totals"]["examples"]) == (32, 29)
    assert found["config"] == manifest["config"] and found["fingerprint"] == manifest["fingerprint"]
    assert found["versions"]["jax"] and found["started"] and found["finished"]
    assert found["shard_seconds"]["min"] == 0.25 and [*found["devices"].values()] == [4]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before  # nothing is written
    quick = described(out, capsys, "--quick", expect=0)
    assert quick["totals"] == expected and quick["errors"] is None
    assert inspect.main([str(out)]) == 0
    shown = capsys.readouterr().out
    for text in ("complete", "4 of 4 are done", "EmptyLine 1, MalformedJson 1", "gamma=3", found["fingerprint"][:20]):
        assert text in shown


def test_failed_begun_and_untouched_shards(command, tmp_path, capsys):
    out = tmp_path / "out"
    run(command("--config.shards.examples_per_shard=4"), expect=1, broken=True)
    for shard in (0, 1, 2, 6):  # as after a crash: 3, 4 and 5 failed, 6 was never begun, 7 was begun
        (out / "attempts" / f"part-0000{shard}-of-00008.json").unlink()
    note = out / "attempts" / "part-00007-of-00008.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "error": None, "attempt": 2}))
    donor = tmp_path / "donor"
    run(command("--config.shards.examples_per_shard=4", output=donor))
    for shard in (0, 1, 2):
        name = f"part-0000{shard}-of-00008.parquet"
        (out / "generations").mkdir(exist_ok=True)
        (donor / "generations" / name).rename(out / "generations" / name)
    found = described(out, capsys, expect=1)
    shards = found["shards"]
    assert (shards["total"], shards["committed"], shards["failed"], shards["begun"]) == (8, 3, 3, 1)
    assert [shard["shard"] for shard in shards["missing"]] == [3, 4, 5, 6, 7]
    assert "no device" in shards["missing"][0]["error"]["message"]
    assert shards["missing"][4] == {"shard": 7, "attempts": 2, "error": None}
    assert found["totals"]["examples"] == 12  # of the parts that are there, whatever summary.json says
    assert summary(out)["examples"] == 0
    assert inspect.main([str(out)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "not complete" in shown and "3 failed, 1 begun, 1 not begun" in shown and "no device" in shown


def test_only_the_end_is_missing(finished, capsys):
    (finished / "_SUCCESS").unlink()
    assert described(finished, capsys, expect=1)["shards"]["missing"] == []
    assert inspect.main([str(finished)]) == 1
    assert "only the end" in capsys.readouterr().out


def test_damage_is_found_in_a_folder_marked_complete(command, tmp_path, capsys):
    whole, part, errors = tmp_path / "out", "generations/part-00001-of-00004.parquet", "errors/part-00000-of-00004.jsonl"
    run(command(), poisoned=("input.jsonl:5",))
    run(command("--config.decoding.seed=1", output=tmp_path / "other"))
    damages = {
        part: (whole / part).read_bytes()[:-10],
        "another run": (tmp_path / "other" / part).read_bytes(),
        f"{errors} cannot be read": b'{"stage": ',
        "errors/ holds 0 records, the parts count 1": None,
    }
    for number, (problem, content) in enumerate(damages.items()):
        out = shutil.copytree(whole, tmp_path / f"damaged{number}")
        file = out / (errors if "errors" in problem else part)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        found = described(out, capsys, expect=1)
        assert len(found["problems"]) == 1 and problem in found["problems"][0]
    for name, content in (("empty", b""), ("lost", None)):
        out = shutil.copytree(whole, tmp_path / name)
        (out / part).unlink()
        if content is not None:
            (out / part).write_bytes(content)
        (out / "thesis.txt").write_text("")
        found = described(out, capsys, expect=1)
        assert [shard["shard"] for shard in found["shards"]["missing"]] == [1]
        assert found["other_files"] == ["thesis.txt"]


def test_folders_of_no_run(tmp_path, capsys):
    def refused(*parts):
        assert inspect.main([str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1 and str(tmp_path) in message
        assert all(part in message for part in parts), message

    assert inspect.main([str(tmp_path / "nowhere")]) == 2
    capsys.readouterr()
    refused("is empty")
    (tmp_path / "a.txt").write_text("")
    refused("1 files and no manifest.json")
    (tmp_path / "manifest.json").write_text("{")
    refused("cannot be used")
    (tmp_path / "manifest.json").write_text("[1]")
    refused("cannot be used", "an array")
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')
    refused("it lacks fingerprint, identity, num_shards, config")


def test_on_gcs(finished_run, capsys, monkeypatch):
    with emulator.python_emulator() as url:
        bucket = emulator.make_bucket(url)
        emulator.upload_tree(url, bucket, "runs/a", finished_run)
        emulator.use(monkeypatch, url)
        remote = described(f"gs://{bucket}/runs/a", capsys, expect=0)
        assert inspect.main([f"gs://{bucket}/runs/b"]) == 2
        assert "is empty or does not exist" in capsys.readouterr().err
    local = described(finished_run, capsys, expect=0)
    remote.pop("output"), local.pop("output")
    assert remote == local
    assert len(files(finished_run)) == 7


def test_a_folder_of_scores(command, tmp_path, capsys, finished_run):
    out = tmp_path / "out"
    assert score.main(command(f"--config.score.generations={finished_run}"), fake()) == 0
    found = described(out, capsys, expect=0)
    assert found["totals"]["tokens"] == summary(out)["tokens"] > 0
    assert found["totals"]["drafts"]["draft"]["alpha"] == summary(out)["drafts"]["draft"]["alpha"]
    assert found["shards"]["committed"] == 4 and found["problems"] == [] and found["other_files"] == []
    (out / "scores" / "part-00002-of-00004.parquet").unlink()
    assert [shard["shard"] for shard in described(out, capsys, expect=1)["shards"]["missing"]] == [2]
    assert inspect.main([str(out)]) == 1
    assert re.search(r"α draft +0\.\d{3} +\[0\.\d{3}, 0\.\d{3}\]", capsys.readouterr().out)
