"""A folder that was finished once, and is not what it was: every job says what it is, in one line, or mends it."""

import dataclasses
import json
import os
import shutil

import pytest

from pipeline import analyze, export_tfds, fit_ngram, generate, inspect, score
from tests.pipeline.helpers import assert_same_rows, files, rows, run
from transforms.folder import Manifest, read_manifest
from transforms.storage import OutputFolder

PART = "generations/part-00001-of-00004.parquet"


def lose(name):
    return lambda folder: (folder / name).unlink()


def edit_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


FOREIGN = '{"fingerprint": "f00", "shards": {}}'


DAMAGES = [
    pytest.param(lose("summary.json"), ["marked as finished", "has no summary.json"], id="summary lost"),
    pytest.param(write("summary.json", '{"fingerpr'), ["its summary.json cannot be read"], id="summary torn"),
    pytest.param(write("summary.json", FOREIGN), ["of another run", "f00"], id="summary foreign"),
    pytest.param(lose(PART), ["1 of its 4 parts are gone", PART], id="part lost"),
    pytest.param(lambda f: (f / PART).write_bytes(b""), ["1 of its 4 parts are gone", PART], id="part empty"),
    pytest.param(lose("_SUCCESS"), ["its end, _SUCCESS, is missing"], id="marker lost"),
    pytest.param(edit_manifest, ["it has been edited since it was written"], id="manifest edited"),
    pytest.param(write("manifest.json", "[" * 100_000), ["manifest.json", "cannot be used"], id="manifest deep"),
    pytest.param(write("manifest.json", '{"num_shards": 4}'), ["it lacks fingerprint, identity, config"], id="manifest poor"),
]


@pytest.fixture
def jobs(command, finished, tmp_path):
    """Every job that reads a finished folder, on one that `command()` finishes."""
    fitted = [argument for argument in command(output=tmp_path / "fitted") if "draft" not in argument]
    return {
        "inspect": lambda: inspect.main([str(finished)]),
        "analyze": lambda: analyze.main([f"--inputs={finished}", f"--output={tmp_path / 'report'}"]),
        "score": lambda: score.main(command(f"--config.score.generations={finished}", output=tmp_path / "scores")),
        "export_tfds": lambda: export_tfds.main([f"--inputs={finished}", f"--output={tmp_path / 'tfds'}"]),
        "fit_ngram": lambda: fit_ngram.main([*fitted, f"--generations={finished}"]),
    }


@pytest.mark.parametrize(("damage", "parts"), DAMAGES)
def test_every_job_says_what_the_folder_is(jobs, finished, capsys, tmp_path, damage, parts):
    damage(finished)
    before = files(finished)
    for name, job in jobs.items():
        capsys.readouterr()
        status = job()
        said = capsys.readouterr()
        if name == "inspect" and "manifest" not in parts[0] and "lacks" not in parts[0] and "edited" not in parts[0]:
            assert status == 1, name
            continue
        assert status == 2, name
        assert said.err.count("\n") == 1 and said.err.startswith("error: ") and str(finished) in said.err, (name, said.err)
        assert all(part in said.err for part in parts), (name, said.err)
    assert files(finished) == before
    assert not [name for name in ("report", "scores", "tfds", "fitted") if (tmp_path / name).exists()]


@pytest.mark.parametrize(("damage", "parts"), DAMAGES[:6])
def test_the_same_command_mends_it(command, finished, finished_run, capsys, damage, parts):
    damage(finished)
    run(command())
    assert files(finished) == files(finished_run)
    assert_same_rows(rows(finished), rows(finished_run))
    said = capsys.readouterr().err
    if parts != ["its end, _SUCCESS, is missing"]:
        assert all(part in said for part in parts)
    assert inspect.main([str(finished)]) == 0


@pytest.mark.parametrize(("damage", "parts"), DAMAGES[6:])
def test_a_manifest_that_no_launch_has_written_is_not_continued(command, finished, capsys, damage, parts):
    damage(finished)
    assert generate.main(command()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(part in said for part in parts)


def test_inspect_says_what_is_gone(finished, capsys):
    (finished / "summary.json").unlink()
    assert inspect.main([str(finished), "--quick", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == ["the folder is marked as finished, but has no summary.json"] and not found["complete"]


# Manifests.


def test_a_manifest_of_an_earlier_version_has_no_digest(finished):
    path = finished / "manifest.json"
    entries = json.loads(path.read_text())
    assert entries.pop("sha256")
    path.write_text(json.dumps(entries))
    manifest = read_manifest(OutputFolder(str(finished)))
    assert manifest.num_shards == 4
    assert Manifest.decode(manifest.encode()) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_shards": "4"}, "its num_shards is '4'; allowed: a whole number"),
        ({"num_shards": True}, "its num_shards is True"),
        ({"num_shards": 10**12}, "its num_shards is 1000000000000, and that of its identity 4"),
        ({"identity": []}, "its identity is an array; allowed: an object"),
        ({"plan": None}, "its plan is null"),
        ({"config": {"input": {}, "model": 3, "decoding": {}}}, "no section 'model'"),
        ({"job": "paint"}, "its job is 'paint'; allowed: generate, score"),
        ({"fingerprint": "f00"}, "edited"),
    ],
)
def test_malformed_manifests(finished, change, message):
    """As of an earlier version, whose manifest no digest protects."""
    entries = json.loads((finished / "manifest.json").read_text())
    entries.pop("sha256")
    with pytest.raises(ValueError, match="its|edited") as raised:
        Manifest.decode(json.dumps(entries | change).encode())
    assert message in str(raised.value)


@pytest.mark.parametrize("plan", [{"files": 3}, {"files": []}, {"files": [{"path": "x"}], "examples_per_shard": 0}])
def test_a_malformed_plan(command, finished, capsys, plan):
    manifest = dataclasses.replace(read_manifest(OutputFolder(str(finished))), plan=plan)
    (finished / "manifest.json").write_bytes(manifest.encode())
    assert generate.main(command()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the plan in manifest.json" in said


@pytest.mark.parametrize("content", ["{", "[[1]]", '[["a", "b", 3]]', "3"])
def test_malformed_costs(command, tmp_path, capsys, content):
    run(command("--config.decoding.gamma=auto"), expect=1, broken=True)
    (tmp_path / "out" / "attempts" / "costs.json").write_text(content)
    assert generate.main(command("--config.decoding.gamma=auto")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "attempts/costs.json" in said


@pytest.mark.parametrize("note", ["[]", "3", '{"attempt": "two"}', '{"error": 5}', '{"attempt": 1e400}', "{", "\x00"])
def test_malformed_notes_are_none(command, tmp_path, finished_run, note):
    run(command(), expect=1, broken=True)
    attempts = tmp_path / "out" / "attempts"
    for shard in range(4):
        (attempts / f"part-0000{shard}-of-00004.json").write_text(note)
    assert inspect.main([str(tmp_path / "out")]) == 1
    run(command())
    assert files(tmp_path / "out") == files(finished_run)


def test_names_that_are_not_utf8(command, finished, capfdbinary):
    """Of somebody else's files, which are told of and left alone; in a folder without a manifest they are refused."""
    name = os.fsencode(finished) + b"/caf\xe9.txt"
    with open(name, "wb"):
        pass
    for flags in ([], ["--json"], ["--quick"]):
        assert inspect.main([str(finished), *flags]) == 0
    for kept in ("manifest.json", "summary.json", "_SUCCESS"):
        (finished / kept).unlink()
    shutil.rmtree(finished / "generations")
    capfdbinary.readouterr()
    assert generate.main(command()) == 2
    said = capfdbinary.readouterr().err
    assert said.count(b"\n") == 1 and b"caf" in said
