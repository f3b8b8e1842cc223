"""Fingerprints, and what the manifest says and does not say."""

import json

import pytest

from pipeline.job import run as manifest
from pipeline.job import seen
from pipeline.job.preflight import check_models
from pipeline.settings import parse_command_line
from transforms.storage import OutputFolder


def prepared(command, *overrides, **kwargs):
    parsed = parse_command_line(command(*overrides))
    return manifest.prepare(parsed.config, parsed.output, check_models(parsed.config), **kwargs)


def test_two_launches_at_once_share_one_plan(command, tmp_path, monkeypatch):
    """The second sees no manifest when it lists, and the first's when it wants to create its own."""
    first = prepared(command)
    monkeypatch.setattr(OutputFolder, "list", lambda self: {})
    second = prepared(command)
    assert second.fingerprint == first.fingerprint
    with pytest.raises(manifest.FolderError, match="another run"):
        prepared(command, "--config.decoding.seed=5")


def test_the_folder_is_listed_once(command, monkeypatch):
    prepared(command)
    calls, listing = [], OutputFolder.list
    monkeypatch.setattr(OutputFolder, "list", lambda self: calls.append(1) or listing(self))
    prepared(command)
    assert len(calls) == 1


def test_empty_parts_do_not_count_and_make_room(command, tmp_path):
    run = prepared(command)
    part = tmp_path / "out" / "generations" / "part-00001-of-00004.parquet"
    part.parent.mkdir()
    part.touch()
    (part.parent / "part-00001-of-00005.parquet").write_bytes(b"other")
    assert prepared(command).pending == run.pending == (0, 1, 2, 3)
    assert not part.exists()


def test_secrets_stay_out(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/planted/key.json")
    prepared(command, "--service_account_email=planted@example.com")
    assert "planted" not in (tmp_path / "out" / "manifest.json").read_text()


def test_manifest_is_compact(command, tmp_path):
    prepared(command, "--config.shards.examples_per_shard=1")
    lines = (tmp_path / "out" / "manifest.json").read_text().splitlines()
    assert len([line for line in lines if line.startswith('"plan"')]) == 1
    assert len(json.loads("".join(lines))["plan"]["files"][0]["shard_bytes"]) == 30


def test_broken_manifest(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(manifest.FolderError, match="cannot be used: Expecting property name"):
        prepared(command)


def test_leftovers_of_a_launch_that_never_began(command, tmp_path):
    (tmp_path / "out" / "attempts").mkdir(parents=True)
    (tmp_path / "out" / "attempts" / "manifest.json.12.tmp").write_bytes(b"half")
    assert len(prepared(command).pending) == 4


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], []), ([3], [(3, 4)]), ([0, 1, 2, 5, 7, 8], [(0, 3), (5, 6), (7, 9)])],
)
def test_ranges(numbers, expected):
    assert manifest.ranges(numbers) == expected


def test_code_digest_sees_every_source(tmp_path, monkeypatch):
    class Package:
        __name__ = "decoding"
        __file__ = str(tmp_path / "__init__.py")

    (tmp_path / "inner").mkdir()
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(seen, "decoding", Package)
    before = seen.code_digest()
    (tmp_path / "inner" / "new.py").write_text("x = 1")
    assert seen.code_digest() != before


def test_large_weights_are_sampled(tmp_path, monkeypatch):
    from pipeline.job import preflight

    monkeypatch.setattr(preflight, "_WHOLE_FILE_BYTES", 1000)
    monkeypatch.setattr(preflight, "_SAMPLE_BYTES", 16)
    path, data = tmp_path / "weights", bytearray(range(256)) * 20
    path.write_bytes(data)
    digest = preflight._digest(str(path))
    assert digest.startswith("sampled-")
    for changed in (0, len(data) - 1):
        other = bytearray(data)
        other[changed] ^= 1
        path.write_bytes(other)
        assert preflight._digest(str(path)) != digest
    path.write_bytes(data + b"x")
    assert preflight._digest(str(path)) != digest


def test_one_of_very_many_weight_files(tmp_path):
    """Its share of what is hashed whole is less than a sample has."""
    from pipeline.job import preflight

    path = tmp_path / "weights"
    path.write_bytes(bytes(60_000))
    digest = preflight._digest(str(path), files=5000)
    assert digest.startswith("sampled-")
    path.write_bytes(bytes(59_999) + b"x")
    assert preflight._digest(str(path), files=5000) != digest
