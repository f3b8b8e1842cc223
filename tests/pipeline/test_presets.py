"""The paper's presets from end to end: data sets as TFDS writes them, and the reference models instead of the paper's."""

import json
import shutil

import pytest

from decoding import hub
from pipeline import generate
from pipeline.settings import ConfigError, parse_command_line, refuse_placeholders
from tests.pipeline import fakes
from tests.pipeline.helpers import assert_same_rows, rows, summary
from tests.support import datasets
from transforms.inputs import tasks

SMALL = ("--config.decoding.max_decode_tokens=8", "--config.decoding.num_slots=2", "--config.decoding.input_buckets=(64,)",
         "--config.decoding.gamma=2", "--config.model.dtype=float32", "--config.shards.examples_per_shard=4")  # fmt: skip


def launch(name, data_dir, out, target, draft, *overrides, factory=None) -> None:
    models = (f"--config.model.target={target}", f"--config.model.draft={draft}")
    args = [f"--config=configs/{name}.py", f"--output={out}", f"--config.input.data_dir={data_dir}", *models, *SMALL]
    assert generate.main([*args, *overrides], factory=factory) == 0
    assert summary(out)["complete"] and summary(out)["errors"] == {"total": 0}


@pytest.mark.parametrize(
    ("name", "gamma", "temperature"),
    [("wmt_ende_t5_xxl", 7, 0.0), ("cnn_dm_t5_xxl", 5, 0.0), ("lm1b_gpt", 7, 1.0)],
)
def test_settings_are_the_papers(name, gamma, temperature):
    preset = [f"--config=configs/{name}.py", "--output=/x"]
    with pytest.raises(ConfigError, match="model.target is 'gs://BUCKET/.*', with the placeholder 'BUCKET'"):
        refuse_placeholders(parse_command_line(preset))  # the weights are one's own
    own = [f"--config.{path}=gs://mine/{path}" for path in ("model.target", "model.draft", "input.data_dir")]
    config = parse_command_line([*preset, *own]).config
    assert (config.decoding.gamma, config.decoding.temperature, config.decoding.num_slots) == (gamma, temperature, 1)
    assert (config.model.target, config.model.draft) == ("gs://mine/model.target", "gs://mine/model.draft")


@pytest.mark.parametrize("name", ["wmt_ende_t5_xxl", "cnn_dm_t5_xxl"])
def test_beams_of_the_t5_paper(name):
    own = [f"--config.{path}=gs://mine/{path}" for path in ("model.target", "model.draft", "input.data_dir")]
    found = parse_command_line([f"--config=configs/{name}.py:beams", "--output=/x", *own]).config.decoding
    assert (found.num_beams, found.length_penalty, found.length_penalty_form) == (4, 0.6, "t5x")
    assert (found.temperature, found.early_stopping, found.num_return_sequences) == (0.0, "never", 1)


@pytest.mark.slow
def test_wmt(tmp_path, models):
    for name, version in (("wmt14", "1.0.0"), ("wmt16", "1.0.0")):
        datasets.prepare(tmp_path / "data", f"{name}_translate/de-en:{version}", datasets.translations(10), num_files=2)
    pair = (models["target"], models["draft"])
    launch("wmt_ende_t5_xxl", tmp_path / "data", tmp_path / "out", *pair)
    frame = rows(tmp_path / "out")
    pairs = sorted(("translate English to German: " + row["en"], row["de"]) for row in datasets.translations(10))
    assert sorted(zip(frame["inputs"], frame["targets"])) == pairs
    assert all(name.startswith("specbeam_wmt14_ende/wmt14_translate-test.tfrecord-0000") for name in frame["example_id"])
    assert summary(tmp_path / "out")["bleu"]["references"] == 10
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["num_shards"], manifest["num_records"]) == (3, 10)
    # Whole again after a loss, and the same with a mapping of fields instead of a task.
    lossy, found = tmp_path / "lossy", []
    for _ in range(2):
        launch("wmt_ende_t5_xxl", tmp_path / "data", lossy, *pair, factory=fakes.factory())
        found.append(rows(lossy))
        (lossy / "_SUCCESS").unlink()
        (lossy / "generations" / "part-00001-of-00003.parquet").unlink()
    assert_same_rows(*found)
    launch(
        "wmt_ende_t5_xxl", tmp_path / "data", tmp_path / "mapped", *pair,
        "--config.input.format=tfds", "--config.input.name=wmt16_translate/de-en:1.0.0", "--config.input.input_field=en",
        "--config.input.target_field=de", "--config.input.prefix=translate English to German: ",
        factory=fakes.factory(),
    )  # fmt: skip
    mapped = rows(tmp_path / "mapped")
    assert {text: list(tokens) for text, tokens in zip(mapped["inputs"], mapped["input_tokens"])} == {
        text.removeprefix("translate English to German: "): list(tokens)
        for text, tokens in zip(frame["inputs"], frame["input_tokens"])
    }


@pytest.mark.slow
def test_cnn_dm(tmp_path, models):
    datasets.prepare(tmp_path / "data", "cnn_dailymail:3.4.0", datasets.articles())
    launch("cnn_dm_t5_xxl", tmp_path / "data", tmp_path / "out", models["target"], models["draft"])
    frame = rows(tmp_path / "out")
    expected = sorted(("summarize: " + row["article"], row["highlights"]) for row in datasets.articles())
    assert sorted(zip(frame["inputs"], frame["targets"])) == expected
    assert summary(tmp_path / "out")["truncated_inputs"] == frame["input_truncated"].sum() > 0


@pytest.mark.slow
def test_lm1b(tmp_path, golden, spiece_model):
    target = tmp_path / "gpt"
    shutil.copytree(golden / "gpt2", target)
    (target / "spiece.model").write_bytes(spiece_model)
    datasets.prepare(tmp_path / "data", "lm1b:1.1.0", datasets.sentences())
    launch("lm1b_gpt", tmp_path / "data", tmp_path / "out", target, target)
    frame = rows(tmp_path / "out")
    assert len(frame) == 16 == len({tuple(tokens) for tokens in frame["output_tokens"]})
    assert [set(frame["inputs"]), {tuple(tokens) for tokens in frame["input_tokens"]}] == [{""}, {(1,)}]
    prompted = "--config.input.name=specbeam_lm1b_prompted"
    launch("lm1b_gpt", tmp_path / "data", tmp_path / "prompted", target, target, prompted)
    frame = rows(tmp_path / "prompted")
    assert {len(text.split()) for text in frame["inputs"]} == {tasks.PROMPT_WORDS}
    whole = {" ".join(row["text"].split()) for row in datasets.sentences()}
    assert {f"{given} {rest}".strip() for given, rest in zip(frame["inputs"], frame["targets"])} == whole
    assert summary(tmp_path / "prompted")["alpha"]["mean"] > 0.99  # target and draft are the same


@pytest.mark.parametrize("pair", ["pythia", "gemma2", "bart"])
def test_pairs_by_their_ids(pair, tmp_path):
    args = [f"--config=configs/pairs.py:{pair}", "--output=/x", f"--config.input.pattern={tmp_path}/in.jsonl"]
    config = parse_command_line(args).config
    assert hub.is_id(config.model.target) and hub.is_id(config.model.draft)
    refuse_placeholders(parse_command_line(args))
