"""The job that makes an index: one file whatever the cutting, and a job that looks things up in it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from decoding.drafts import suffixes
from decoding.drafts.suffixes import IndexInfo
from pipeline import fit_index, generate
from tests.pipeline.helpers import files, rows, summary
from transforms import index
from transforms.tokenize import load_tokenizer


def fitted(command, folder, *overrides, expect=0):
    assert fit_index.main(command(*overrides, output=folder)) == expect
    return folder


def test_an_index_of_the_references(command, tmp_path, models, sentences, monkeypatch, capsys):
    folder = fitted(command, tmp_path / "index")
    assert files(folder) == [suffixes.FILE]
    info, tokens, places = suffixes.read(str(folder))
    tokenizer = load_tokenizer(str(models["target"]))
    texts = [[*tokenizer.encode(json.loads(line)["de"]), 1] for line in sentences.read_text().splitlines()]
    np.testing.assert_array_equal(tokens, suffixes.divided(texts, info.vocab_size))
    np.testing.assert_array_equal(places, suffixes.sorted_places(tokens, info.vocab_size))
    assert info.about["texts"] == 30 and info.about["places"] == len(places) and info.about["failed"] == 0
    assert "30 texts" in capsys.readouterr().out
    # In other pieces it is the same file, also in the place of an earlier one.
    monkeypatch.setattr(index, "_PLACES_PER_PIECE", 100)
    monkeypatch.setattr("pipeline.job.corpus._EXAMPLES_PER_SHARD", 4)
    before = (folder / suffixes.FILE).read_bytes()
    assert (fitted(command, folder) / suffixes.FILE).read_bytes() == before


def test_an_index_of_generations(command, tmp_path, finished_run):
    folder = fitted(command, tmp_path / "index", f"--generations={finished_run}")
    _, tokens, _ = suffixes.read(str(folder))
    texts = [text for part in sorted((finished_run / "generations").iterdir())
             for text in pq.read_table(part)["output_tokens"].to_pylist()]  # fmt: skip
    np.testing.assert_array_equal(tokens, suffixes.divided(texts, 384))


@pytest.mark.slow
def test_a_job_with_an_index_and_one_with_a_cascade(command, tmp_path, models):
    """Greedy tokens are plain decoding's; parts and the fingerprint say what was looked up."""
    greedy = ["--config.decoding.temperature=0.0"]
    assert generate.main(command(*greedy, "--config.model.draft=", "--config.decoding.gamma=0", output=tmp_path / "plain")) == 0
    folder = fitted(command, tmp_path / "index", f"--generations={tmp_path / 'plain'}")
    plain = rows(tmp_path / "plain")["output_tokens"]
    for name, draft in (("index", f"{folder}"), ("cascade", f"lookup,{folder},{models['draft']}")):
        output = tmp_path / f"out_{name}"
        assert generate.main(command(*greedy, f"--config.model.draft={draft}", output=output)) == 0
        written = rows(output)
        for tokens, expected in zip(written["output_tokens"], plain):
            np.testing.assert_array_equal(tokens, expected)
        assert 4 in np.concatenate(written["origin"]) and summary(output)["target_calls_per_token"] < 1
        identity = json.loads((output / "manifest.json").read_text())["identity"]["model"]["draft"]
        assert identity["kind"] == name and identity["min_match"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.model.draft={draft},lookup"], 'allowed before a comma: "prompt_lookup" or the directory of an index'),
        (["--config.model.draft=lookup,nowhere"], "model.draft is .*nowhere"),
        (["--config.model.draft_min_match=9"], "model.draft_min_match is 9; allowed: a whole number from 1 to 8"),
    ],
)
def test_cascades_that_are_none_stop_the_launch(command, models, capsys, overrides, message):
    assert generate.main(command(*(one.format(**models) for one in overrides))) == 2
    assert message.partition(".*")[0] in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_something_else_is_not_written_into(command, tmp_path, capsys):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine.txt").write_text("mine")
    fitted(command, tmp_path / "index", expect=2)
    assert "holds other files, for example 'mine.txt'" in capsys.readouterr().err.replace("\n", " ")


def test_indexes_that_cannot_be_the_jobs_stop_the_launch(command, tmp_path, capsys):
    """Another tokeniser's, another end, another size, cut off; alone and in a cascade."""
    folder, tokens = str(tmp_path / "other"), suffixes.divided([[3, 4]], 384)
    for info, message in (
        (IndexInfo(384, 0, 1, {"pieces_sha256": "0" * 64}), "fitted with another tokeniser than that of"),
        (IndexInfo(384, 0, 2, {}), "whose eos_id is 2; allowed:"),
        (IndexInfo(384, 5, 1, {}), "whose start_id is 5; allowed:"),
        (IndexInfo(390, 0, 1, {}), "whose vocab_size is 390; allowed:"),
        (None, "is not an index as pipeline.fit_index writes it"),
    ):
        if info:
            suffixes.save(folder, tokens, info)
        else:
            file = tmp_path / "other" / suffixes.FILE
            file.write_bytes(file.read_bytes()[:-1])
        for draft in (folder, f"lookup,{folder}"):
            assert generate.main(command(f"--config.model.draft={draft}")) == 2
            assert message in " ".join(capsys.readouterr().err.split())


def test_texts_in_which_nothing_follows_make_no_index(command, tmp_path, sentences, capsys):
    sentences.write_text("".join(json.dumps({"en": "x", "de": ""}) + "\n" for _ in range(9)))
    fitted(command, tmp_path / "index", expect=1)
    assert "0 places; allowed: 1 to" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "index" / suffixes.FILE).exists()
