"""Jobs with hints from beginning to end: γ = auto, samples, resuming, folders that lack ids, decoder-only models."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from decoding.config import HINT
from pipeline import generate
from tests.pipeline.conftest import SENTENCES
from tests.pipeline.helpers import assert_same_rows, rows, summary
from tests.pipeline.test_decoder_only_jobs import preset as decoder_only_preset
from tests.pipeline.test_decoder_only_jobs import write_lamda
from tests.pipeline.test_smollm2 import first_rows, preset

pytestmark = pytest.mark.slow
RESULT = ["example_id", "inputs", "prediction", "output_tokens", "finish_reason"]


def write_records(path: pathlib.Path, count: int) -> str:
    """Records with ids, and hints that are of another language, empty, long, not there or no text at all."""
    kinds = ["Satz aus einer anderen Sprache", "", "lang " * 20_000, None, 7, "\ud800", ["a", "list"]]
    records = [
        {"id": f"r{i}", "en": f"{SENTENCES[i % len(SENTENCES)]} {i}", "old": kinds[i % len(kinds)], "de": f"Satz {i}."}
        for i in range(count)
    ]
    for record in records[5::7]:
        del record["old"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"--config.input.pattern={path}"


@pytest.mark.parametrize("verification", ["coupled", "block"])
def test_auto_with_samples_and_hints_of_all_kinds_is_resumed(command, tmp_path, models, verification):
    """Greedy, and sampled where tokens are plain decoding's: as without hints; and a lost shard is made again as it was."""
    sampled = ["--config.decoding.temperature=1.0", "--config.decoding.num_samples=2"]
    drawn = sampled if verification == "coupled" else ["--config.decoding.temperature=0.0"]
    common = ["--config.input.id_field=id", f"--config.decoding.verification={verification}", *drawn]
    plain = ["--config.model.draft=", "--config.decoding.gamma=0", write_records(tmp_path / "some" / "input.jsonl", 20)]
    assert generate.main(command(*common, *plain, output=tmp_path / "plain")) == 0
    hinted = command(
        *common, write_records(tmp_path / "all" / "input.jsonl", 30), f"--config.model.draft=lookup,{models['draft']}",
        "--config.decoding.gamma=auto", "--config.decoding.gamma_choices=(0,3)", "--config.decoding.chunk_iterations=4",
        "--config.input.hint_field=('old','de')", f"--config.input.hint_folder={tmp_path / 'plain'}",
    )  # fmt: skip
    assert generate.main(hinted) == 0
    out, expected = tmp_path / "out", rows(tmp_path / "plain")
    first = rows(out)
    assert_same_rows(first[first["example_id"].isin(expected["example_id"])][RESULT].reset_index(drop=True), expected[RESULT])
    assert len(first) == 30 * (2 if drawn is sampled else 1) and summary(out)["hints"]["inputs"] == 30
    assert not list((out / "errors").glob("*"))
    costs = json.loads((out / "manifest.json").read_text())["costs"]
    assert set(costs) == {"-3", "0", "3"}
    # As after a kill: one shard and the end are missing.
    shutil.rmtree(out / "attempts", ignore_errors=True)
    next(iter(sorted((out / "generations").iterdir()))).unlink()
    for name in ("_SUCCESS", "summary.json"):
        (out / name).unlink()
    assert generate.main(hinted) == 0
    assert_same_rows(rows(out), first)


def test_a_decoder_only_job_redone_with_its_outputs(tmp_path, spiece_model):
    target = write_lamda(tmp_path / "target", spiece_model, layers=2, seed=1)

    def job(name: str, **settings) -> pathlib.Path:
        given = dict(
            model__target=target, model__draft="", model__dtype="float32", decoding__temperature="0.0",
            decoding__max_decode_tokens=10, decoding__num_slots=4, decoding__input_buckets="(160,)",
        )  # fmt: skip
        assert generate.main(decoder_only_preset("lamda_dialog.py", tmp_path / name, **given | settings)) == 0
        return tmp_path / name

    plain = job("plain", decoding__gamma=0)
    again = job("again", decoding__gamma=4, input__hint_folder=plain)
    assert_same_rows(rows(again)[RESULT], rows(plain)[RESULT])
    assert set(np.concatenate(rows(again)["origin"])) == {HINT} and summary(again)["target_calls_per_token"] < 1.05 / 4


def test_a_gguf_model_redone_with_its_outputs(tmp_path):
    def job(name: str, *settings: str) -> pathlib.Path:
        given = [first_rows(tmp_path, "prompts.jsonl", 3), "--config.decoding.max_decode_tokens=32", *settings]
        assert generate.main(preset("continue", tmp_path, *given, f"--output={tmp_path / name}")) == 0
        return tmp_path / name

    plain = job("plain", "--config.model.draft=", "--config.decoding.gamma=0")
    again = job("again", "--config.decoding.gamma=7", f"--config.input.hint_folder={plain}")
    assert_same_rows(rows(again)[RESULT], rows(plain)[RESULT])
    assert set(np.concatenate(rows(again)["origin"])) == {HINT}
    assert summary(again)["target_calls_per_token"] <= 1.05 / 7
