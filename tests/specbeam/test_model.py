"""Text in, text out: `load`, `generate`, `read`, and the README's example."""

import pathlib
import re
import shutil

import numpy as np
import pytest
import tokenizers

import decoding
import specbeam
from transforms.tokenize import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ["No protection when the device is started.", "A simple editor."]
SMALL = dict(gamma=2, temperature=1.0, max_decode_tokens=8, input_buckets=(16, 64), num_slots=2, top_k=5)


@pytest.fixture(scope="module")
def loaded(models) -> specbeam.Model:
    return specbeam.load(str(models["target"]), draft=str(models["draft"]))


def test_rows_are_the_generators(loaded, models):
    rows = loaded.generate(TEXTS, **SMALL, num_samples=2, seed=7)
    target, draft = (decoding.load_model(str(models[name])) for name in ("target", "draft"))
    tokenizer = load_tokenizer(str(models["target"]))
    generator = decoding.Generator(target, draft, decoding.DecodingConfig(**SMALL, num_samples=2, seed=7))
    inputs = [[*tokenizer.encode(text), target.eos_id] for text in TEXTS]
    expected = generator.generate(inputs, ["0", "1"])
    assert [(row.example_id, row.sample, row.inputs) for row in rows] == [
        ("0", 0, TEXTS[0]), ("0", 1, TEXTS[0]), ("1", 0, TEXTS[1]), ("1", 1, TEXTS[1]),
    ]  # fmt: skip
    for row, generation in zip(rows, expected, strict=True):
        for name in ("tokens", "source", "iteration", "beta", "target_logprob", "gammas", "accepted"):
            np.testing.assert_array_equal(getattr(row, name), getattr(generation, name), err_msg=name)
        assert row.finish_reason == generation.finish_reason and not row.input_truncated
        kept = generation.tokens[:-1] if generation.finish_reason == "eos" else generation.tokens
        assert row.text == tokenizer.decode(kept.tolist())


def test_a_generator_is_reused_where_programs_agree(loaded):
    loaded.generate(TEXTS[:1], **SMALL)
    known = len(loaded._generators)
    before = decoding.compilation.backend_compilations()[0]
    one = loaded.generate(TEXTS[:1], **SMALL, seed=1, num_samples=2)
    assert len(loaded._generators) == known and decoding.compilation.backend_compilations()[0] == before
    again = loaded.generate(TEXTS[:1], **SMALL, seed=1)
    np.testing.assert_array_equal(again[0].tokens, one[0].tokens)
    others = loaded.generate(TEXTS[:1], ids=["another"], **SMALL, seed=1)
    assert others[0].example_id == "another" and not np.array_equal(others[0].tokens, one[0].tokens)


def test_long_texts_are_cut_and_say_so(loaded):
    (row,) = loaded.generate([" ".join(TEXTS * 20)], **SMALL | dict(input_buckets=(16,)))
    assert row.input_truncated


def test_a_line_each(loaded, models):
    (row,) = loaded.generate(TEXTS[:1], **SMALL)
    for shown in (repr(loaded), repr(row)):
        assert "\n" not in shown and len(shown) < 300
    assert repr(loaded) == f"Model({str(models['target'])!r}, draft={str(models['draft'])!r})"
    assert f"{len(row.tokens)} tokens in {row.num_iterations} target calls" in repr(row)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (TEXTS, {"gama": 3}, "unknown setting 'gama'; did you mean 'gamma'"),
        (TEXTS, {"gamma": -1}, "gamma is -1; allowed"),
        (TEXTS, {"ids": ["a", "a"]}, "repeated"),
        (TEXTS, {"ids": ["a"]}, "2 inputs and 1 example ids"),
        ("a text", {}, "allowed: a list of texts"),
        (["a", 3], {}, r"texts\[1\] is 3; allowed: text"),
        (["a", ""], {}, r"texts\[1\] is ''.*no token"),
    ],
)
def test_what_is_wrong_is_said(loaded, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        loaded.generate(texts, **SMALL | settings)


def test_without_a_draft_decoding_is_plain(models):
    alone = specbeam.load(str(models["target"]))
    assert repr(alone) == f"Model({str(models['target'])!r})"
    (row,) = alone.generate(TEXTS[:1], **SMALL | dict(gamma=0))
    (same,) = alone.generate(TEXTS[:1], **{name: value for name, value in SMALL.items() if name != "gamma"})
    assert set(row.source) == {3} and np.array_equal(row.tokens, same.tokens)
    with pytest.raises(ValueError, match="allowed: 0"):
        alone.generate(TEXTS[:1], **SMALL)


def test_how_many_positions_are_enough_is_up_to_the_texts(tmp_path, golden):
    gpt = shutil.copytree(golden / "gpt2", tmp_path / "gpt")  # 256 positions
    tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(384)}, "w0")).save(f"{gpt}/tokenizer.json")
    model = specbeam.load(str(gpt))
    (row,) = model.generate(["w5"], input_buckets=(8,), max_decode_tokens=4, temperature=0.0, num_slots=1)
    assert 1 <= len(row.tokens) <= 4
    with pytest.raises(ValueError, match="need 640 positions; the model has 256"):
        model.generate(["w5"])


def test_no_such_model(tmp_path):
    with pytest.raises(ValueError, match="model.target is .*nowhere"):
        specbeam.load(str(tmp_path / "nowhere"))


def test_a_model_of_the_hub(models, monkeypatch, tmp_path):
    commit, asked = "0123456789abcdef0123" * 2, []
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / commit).symlink_to(models["target"])

    def download(name, *, revision, **_):
        asked.append((name, revision))
        return str(tmp_path / "snapshots" / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = specbeam.load("someone/a-model", draft="prompt_lookup")
    assert repr(model) == f"Model('someone/a-model@{commit}', draft='prompt_lookup')"
    assert asked[0] == ("someone/a-model", "main") and set(asked[1:]) == {("someone/a-model", commit)}

    def fail(name, **_):
        raise PermissionError(13, "no\nentry")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match="model.target: 'someone/another' is no path here.*no entry; HF_HOME says"):
        specbeam.load("someone/another")


def test_read(finished_run, tmp_path):
    table = specbeam.read(str(finished_run))
    assert table.num_rows == 30 and table["index"].to_pylist() == list(range(30))
    assert {"prediction", "beta", "sample"} <= {*table.column_names} and not table.schema.metadata
    assert specbeam.read(str(finished_run), columns=["prediction"]).column_names == ["prediction"]
    with pytest.raises(ValueError, match=r"the columns \['predictions'\] are not in .*allowed: example_id"):
        specbeam.read(str(finished_run), columns=["predictions"])
    with pytest.raises(ValueError, match="is empty or does not exist"):
        specbeam.read(str(tmp_path / "nowhere"))


def test_read_what_there_is(finished_run, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "out")
    (out / "generations" / "part-00001-of-00004.parquet").unlink()
    with pytest.raises(ValueError, match="parts are gone"):
        specbeam.read(str(out))
    assert specbeam.read(str(out), unfinished=True).num_rows == 22


def readme_example() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return code


def test_the_example_of_the_readme(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quickstart").symlink_to(finished_run)
    names = {}
    exec(compile(readme_example(), "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "Die Datei konnte nicht geöffnet werden." in shown and "eos" in shown
    assert names["table"].num_rows == 30
