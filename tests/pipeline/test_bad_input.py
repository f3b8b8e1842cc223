"""What is wrong with the input, the settings or the machine: refused at launch, recorded, or set aside, never lost."""

import gzip
import json
import os
import shutil

import jax

from tests.pipeline import fakes
from tests.pipeline.helpers import errors, files, rows, run, summary
from transforms.parts import read_footer


def test_bad_records_are_recorded_and_the_rest_decoded(command, tmp_path, sentences):
    good = sentences.read_bytes().splitlines()[:10]
    long_line = json.dumps({"en": "word " * 100_000, "de": "Wort"}).encode()
    bad = {
        "MalformedJson": b'{"en": "no end',
        "MissingField": b'{"de": "nur deutsch", "half \\ud83d": 1}',
        "EmptyInput": b'{"en": "", "de": "leer"}',
        "InvalidUtf8": b'{"en": "caf\xe9"}',
        "WrongType": b'{"en": 3}',
        "NotAnObject": b'["en"]',
        "EmptyLine": b"",
        "InvalidText": b'{"en": "half \\ud83d"}',
    }
    lines = [*good[:4], *bad.values(), long_line, *good[4:]]
    sentences.write_bytes(b"\n".join(lines))
    run(command())
    out = tmp_path / "out"
    found = errors(out)
    assert [error["error_type"] for error in found] == list(bad)
    assert [error["place"] for error in found] == [f"input.jsonl:{i}" for i in range(5, 13)]
    assert [error["example_id"] for error in found] == [error["place"] for error in found]
    assert all(error["stage"] == "read" and error["message"] for error in found)
    assert found[0]["record"] == '{"en": "no end'
    assert "caf\\xe9" in found[3]["record"]
    frame = rows(out)
    assert len(frame) == 11
    truncated = frame[frame["input_truncated"]]
    assert list(truncated["example_id"]) == ["input.jsonl:13"]
    assert len(truncated["input_tokens"].iloc[0]) == 128
    assert truncated["input_tokens"].iloc[0][-1] == 1
    total = summary(out)
    assert total["examples"] + total["errors"]["total"] == len(lines)
    assert (total["errors"]["read"], total["truncated_inputs"], total["complete"]) == (8, 1, True)
    assert {name for name in files(out) if name.startswith("errors")} == {
        "errors/part-00000-of-00003.jsonl",
        "errors/part-00001-of-00003.jsonl",
    }


def test_poisoned_examples_are_found_and_set_aside(command, tmp_path):
    poisoned = ("input.jsonl:3", "input.jsonl:20")
    run(command(), poisoned=poisoned)
    found = errors(tmp_path / "out")
    assert [(e["example_id"], e["stage"], e["error_type"]) for e in found] == [
        (name, "decode", "ArithmeticError") for name in poisoned
    ]
    assert json.loads(found[0]["record"])["de"] == "Satz 2 hat einen Bezug."
    total = summary(tmp_path / "out")
    assert (total["examples"], total["errors"], total["complete"]) == (28, {"total": 2, "decode": 2}, True)


def test_failing_shards_are_listed_and_done_by_the_next_launch(command, tmp_path, capsys):
    run(command(), expect=1, broken=True)
    out = tmp_path / "out"
    assert files(out) == [*(f"attempts/part-0000{i}-of-00004.json" for i in range(4)), "manifest.json", "summary.json"]
    missing = summary(out)["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [0, 1, 2, 3]
    assert "no device" in missing[0]["error"]["message"]
    assert "shards are missing" in capsys.readouterr().out
    run(command("--allow_failed_shards=3"), expect=1, broken=True)
    run(command("--allow_failed_shards=4"), expect=0, broken=True)
    assert "_SUCCESS" not in files(out)
    run(command())
    assert summary(out)["examples"] == 30
    assert read_footer(str(out / "generations" / "part-00000-of-00004.parquet")).attempt == 4
    assert not [name for name in files(out) if name.startswith("attempts")]


def test_input_that_changes_under_the_job_is_set_aside(command, tmp_path, sentences, monkeypatch):
    """A file that is truncated between planning and reading costs its shards, not the job."""
    from pipeline.job import run as manifest

    planned = manifest.plan_input

    def plan_then_cut(*args):
        plan = planned(*args)
        sentences.write_bytes(b"\n".join(sentences.read_bytes().splitlines()[:20]) + b"\n")
        return plan

    monkeypatch.setattr(manifest, "plan_input", plan_then_cut)
    run(command(), expect=1)
    missing = summary(tmp_path / "out")["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [2, 3]
    assert missing[0]["error"]["stage"] == "read"
    assert "has changed" in missing[0]["error"]["message"]


def test_full_disk_sets_the_shard_aside(command, tmp_path, monkeypatch):
    from transforms.storage import OutputFolder

    create = OutputFolder.create

    def create_or_fail(self, name, data):
        if name.endswith("part-00002-of-00004.parquet"):
            raise OSError(28, "No space left on device")
        return create(self, name, data)

    monkeypatch.setattr(OutputFolder, "create", create_or_fail)
    run(command(), expect=1)
    monkeypatch.undo()
    missing = summary(tmp_path / "out")["shards"]["missing"]
    assert [shard["shard"] for shard in missing] == [2]
    assert "No space left" in missing[0]["error"]["message"]
    run(command())
    assert summary(tmp_path / "out")["examples"] == 30


# Bad settings: each stops before any model is loaded, with one line and status 2.


def test_launch_refuses(command, tmp_path, capsys, models, sentences, spiece_model):
    def refused(*overrides, parts):
        loads = fakes.loads
        run(command(*overrides), expect=2)
        message = capsys.readouterr().err
        assert fakes.loads == loads
        assert message.startswith("error: ") and message.count("\n") == 1, message
        for part in parts:
            assert part in message, message
        assert not (tmp_path / "out").exists()

    refused("--config.input.pattern=/nowhere/*.jsonl", parts=["input.pattern", "/nowhere/*.jsonl", "no file"])
    refused("--config.input.input_field=english", parts=["input.input_field", "'english'", "de, en"])
    refused("--config.input.target_field=german", parts=["input.target_field", "'german'"])
    refused("--config.input.id_field=de.x", parts=["input.id_field"])
    refused("--config.model.target=/nowhere", parts=["model.target", "/nowhere"])
    refused("--config.model.draft=/nowhere", parts=["model.draft", "/nowhere"])
    refused("--config.model.tokenizer=/nowhere", parts=["model.tokenizer", "/nowhere", "spiece.model"])
    refused("--direct_num_wrokers=3", parts=["'--direct_num_wrokers'"])

    small = tmp_path / "small"
    shutil.copytree(models["draft"], small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    refused(f"--config.model.draft={small}", parts=["model.draft", "vocab_size is 100", "384"])

    other = tmp_path / "other"
    shutil.copytree(models["draft"], other)
    (other / "spiece.model").write_bytes(spiece_model.replace(b"\xe2\x96\x81the", b"\xe2\x96\x81tha"))
    refused(f"--config.model.draft={other}", parts=["model.draft", "tokeniser differs", "▁tha", "▁the"])

    (tmp_path / "empty.jsonl").touch()
    refused(f"--config.input.pattern={tmp_path}/empty.jsonl", parts=["input.pattern", "no record"])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(sentences.read_bytes())[:200])
    refused(f"--config.input.pattern={tmp_path}/cut.jsonl.gz", parts=["input.pattern", "cannot be read"])
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"en": "a", "k": 1}\n{"en": "b", "k": 2}\n{"en": "c", "k": "1"}\n')
    refused(
        f"--config.input.pattern={twice}", "--config.input.id_field=k", "--config.input.target_field=",
        parts=["'k'", "'1' at twice.jsonl:1, twice.jsonl:3"],
    )  # fmt: skip


def test_no_device(command, tmp_path, capsys, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': it is in use")

    monkeypatch.setattr(jax, "devices", fail)
    run(command(), expect=2)
    assert "JAX finds no device to decode on: Unable to initialize backend 'tpu'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ids_from_the_data(command, tmp_path, sentences):
    named = tmp_path / "named.jsonl"
    named.write_text('{"en": "a word", "k": 7}\n{"en": "b word", "k": "x/../y"}\n{"en": "no id"}\n{"en": "d", "k": true}\n')
    run(
        command(
            f"--config.input.pattern={named}", "--config.input.id_field=k", "--config.input.target_field="
        )
    )
    assert list(rows(tmp_path / "out")["example_id"]) == ["7", "x/../y"]
    assert [e["error_type"] for e in errors(tmp_path / "out")] == ["MissingField", "WrongType"]
    assert summary(tmp_path / "out")["bleu"] is None


def test_read_only_output(command, tmp_path, capsys, monkeypatch):
    from transforms.storage import OutputFolder

    def refuse(self, name, data):
        raise PermissionError(13, "Permission denied", self.path(name))

    monkeypatch.setattr(OutputFolder, "create", refuse)
    run(command(), expect=2)
    assert "cannot be written" in capsys.readouterr().err


def test_an_input_that_is_rewritten_while_the_job_runs(command, tmp_path, sentences, monkeypatch, capsys):
    """What was read before is kept, the rest is set aside; the folder never gets complete with texts of both."""
    before, decode = sentences.read_bytes(), fakes.FakeGenerator.generate_with_report
    stat = sentences.stat()

    def rewrite_and_decode(self, inputs, example_ids):
        sentences.write_bytes(before.swapcase().replace(b"EN", b"en").replace(b"DE", b"de"))
        os.utime(sentences, (stat.st_atime, stat.st_mtime))
        return decode(self, inputs, example_ids)

    monkeypatch.setattr(fakes.FakeGenerator, "generate_with_report", rewrite_and_decode)
    run(command(), expect=1)
    total, found = summary(tmp_path / "out"), rows(tmp_path / "out")
    assert not total["complete"] and not (tmp_path / "out" / "_SUCCESS").exists()
    assert 0 < len(found) < 30
    originals = [json.loads(line)["en"] for line in before.splitlines()]
    assert all(text == originals[index] for text, index in zip(found["inputs"], found["index"]))
    assert all("has changed since the job was planned" in shard["error"]["message"] for shard in total["shards"]["missing"])
    monkeypatch.setattr(fakes.FakeGenerator, "generate_with_report", decode)
    run(command(), expect=1)  # the same size and the same time: every shard finds out for itself
    sentences.touch()
    run(command(), expect=2)
    assert "belongs to another run" in capsys.readouterr().err
    sentences.write_bytes(before)
    run(command())
    assert list(rows(tmp_path / "out")["inputs"]) == originals


def test_a_job_in_which_every_record_fails_has_failed(command, tmp_path, capsys):
    names = [f"input.jsonl:{i + 1}" for i in range(30)]
    one_each = "--config.shards.examples_per_shard=1"
    for _ in range(2):
        run(command(one_each), expect=1, poisoned=names)
        assert "all of the 30 records that were read failed, see errors/" in capsys.readouterr().err
    assert summary(tmp_path / "out")["complete"] and not len(errors(tmp_path / "out")) - 30


def test_an_input_of_which_nothing_can_be_read_is_refused(command, tmp_path, sentences, capsys):
    sentences.write_bytes(b"{\n" + sentences.read_bytes().replace(b"{", b"").replace(b"}\n", b",\n") + b"}\n")
    run(command(), expect=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "none of the first 32 records" in line and "it looks like pretty-printed JSON" in line
    assert not (tmp_path / "out").exists()


def test_an_output_below_the_inputs_glob(command, tmp_path, sentences):
    """A run that has left errors/*.jsonl there is continued, and finds itself unchanged."""
    with open(sentences, "ab") as stream:
        stream.write(b"broken\n")
    pattern = f"--config.input.pattern={tmp_path}/**.jsonl"
    run(command(pattern))
    before = rows(tmp_path / "out")
    assert len(before) == 30 and len(errors(tmp_path / "out")) == 1
    (tmp_path / "out" / "_SUCCESS").unlink()
    (tmp_path / "out" / "generations" / "part-00001-of-00004.parquet").unlink()
    run(command(pattern))
    assert list(rows(tmp_path / "out")["inputs"]) == list(before["inputs"])


def test_tabs_are_not_quoted(command, tmp_path):
    (tmp_path / "in.tsv").write_text('en\tde\n"Hello, she said.\tx\nthe dog\ty\nand he said: bye"\tz\n')
    run(command(f"--config.input.pattern={tmp_path}/in.tsv"))
    assert list(rows(tmp_path / "out")["inputs"]) == ['"Hello, she said.', "the dog", 'and he said: bye"']
    run(command(f"--config.input.pattern={tmp_path}/in.tsv", "--config.input.quoting=csv"), expect=2)
    run(command(f"--config.input.pattern={tmp_path}/in.tsv", "--config.input.quoting=csv", output=tmp_path / "quoted"))
    assert len(rows(tmp_path / "quoted")) == 1


def test_paths_that_are_not_utf8(command, tmp_path, capsys):
    run(command(f"--config.input.pattern={tmp_path}/caf\udce9.jsonl"), expect=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "caf\\udce9.jsonl' is not UTF-8" in line
