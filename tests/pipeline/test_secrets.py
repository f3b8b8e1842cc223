"""What a job writes and prints holds no credential, and what comes from the data cannot leave the output folder."""

import json
import pathlib

import pytest

from pipeline import generate
from tests.pipeline import fakes
from tests.pipeline.helpers import files, rows, run
from transforms.storage import without_query

SECRETS = {
    "GOOGLE_API_KEY": "planted-api-key-1f2e",
    "HF_TOKEN": "hf_planted2a3b4c",
    "AWS_SECRET_ACCESS_KEY": "planted+aws/secret",
    "HARMLESS_NAME": "planted-in-a-harmless-name",
}
OPTIONS = {
    "--service_account_email": "planted-account@project",
    "--dataflow_kms_key": "planted-kms-key",
    "--impersonate_service_account": "planted-impersonated",
    "--labels": "planted=label",
}
SIGNED = "https://storage.googleapis.com/bucket/data.jsonl?X-Goog-Signature=planted-signature&X-Goog-Credential=planted"


def assert_nothing_planted(folder, capsys):
    printed = capsys.readouterr()
    assert "planted" not in printed.out + printed.err
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"planted" not in path.read_bytes(), path
            assert "planted" not in path.name


@pytest.fixture
def planted(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return [f"{name}={value}" for name, value in OPTIONS.items()]


def test_environment_and_options_are_written_nowhere(command, tmp_path, capsys, caplog, planted):
    caplog.set_level(0)
    run(command(*planted))
    run(command(*planted))
    assert_nothing_planted(tmp_path / "out", capsys)
    ours = [record.getMessage() for record in caplog.records if record.name.split(".")[0] in ("pipeline", "transforms")]
    assert not [message for message in ours if "planted" in message]


def test_nor_where_everything_fails(command, tmp_path, capsys, planted, monkeypatch):
    def fail(self, inputs, example_ids):
        raise RuntimeError(f"GET {SIGNED} answered 403")

    monkeypatch.setattr(fakes.FakeGenerator, "generate_with_report", fail)
    run(command(*planted), expect=1)
    (tmp_path / "out" / "manifest.json").write_text("{}")
    run(command(*planted), expect=2)  # and a manifest that is none
    assert_nothing_planted(tmp_path / "out", capsys)


@pytest.mark.parametrize("setting", ["input.pattern", "model.target", "model.draft"])
@pytest.mark.parametrize("url", [SIGNED, "https://user:planted-password@host/bucket/x"])
def test_a_url_with_a_credential_is_refused_unseen(command, tmp_path, capsys, setting, url):
    assert generate.main(command("--config.input.format=jsonl", f"--config.{setting}={url}"), fakes.factory()) == 2
    message = capsys.readouterr().err
    assert "planted" not in message and "https://" in message and "credentials from the environment" in message
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_named_without_its_value(command, capsys):
    assert generate.main(command("--service_acount=planted-account"), fakes.factory()) == 2
    message = capsys.readouterr().err
    assert "'--service_acount'" in message and "planted" not in message


def test_queries_are_cut_and_globs_are_not():
    assert without_query(f"at {SIGNED} now") == "at https://storage.googleapis.com/bucket/data.jsonl?... now"
    assert without_query("gs://bucket/data-?.jsonl and gs://bucket/a?b") == "gs://bucket/data-?.jsonl and gs://bucket/a?b"
    assert without_query("https://me:secret@host/x") == "https://...@host/x"


HOSTILE = [
    "../../x", "/etc/passwd", "a\nb", "..", ".", " ", "a\u0000b", "part-00000-of-00009.parquet", "\u202eevil", "x" * 5000,
]  # fmt: skip


def test_ids_cannot_leave_the_folder(command, tmp_path):
    hostile = tmp_path / "in" / "hostile\n..jsonl"
    hostile.parent.mkdir()
    hostile.write_text("".join(json.dumps({"en": f"text {i}", "k": name}) + "\n" for i, name in enumerate(HOSTILE)))

    def beside() -> set[pathlib.Path]:
        """All but the output and what Python keeps of the config that it has read."""
        found = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")}
        return {path for path in found if "__pycache__" not in path.parts}

    before = beside()
    args = command("--config.input.id_field=k", "--config.input.target_field=", "--config.shards.examples_per_shard=4")
    run([*args, f"--config.input.pattern={hostile}"], poisoned=("/etc/passwd",))
    assert list(rows(tmp_path / "out")["example_id"]) == [name for name in HOSTILE if name != "/etc/passwd"]
    assert files(tmp_path / "out") == [
        "_SUCCESS",
        "errors/part-00000-of-00003.jsonl",
        *(f"generations/part-0000{i}-of-00003.parquet" for i in range(3)),
        "manifest.json",
        "summary.json",
    ]
    assert beside() == before
