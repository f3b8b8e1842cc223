"""Drafts without a model in a job, from the command line on: fitting an n-gram, using it, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import decoding
from decoding.drafts import ngram
from pipeline import fit_ngram, generate
from pipeline.job.preflight import check_draft, pieces_sha256, shared_vocab_size
from pipeline.settings import ConfigError, InputConfig, JobConfig, ModelConfig, build
from tests.pipeline.helpers import rows, summary
from tests.pipeline.test_generate_t5 import SMALL
from transforms.tokenize import load_tokenizer

GREEDY = (*SMALL, "--config.decoding.temperature=0.0", "--config.decoding.max_decode_tokens=12")


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "input.jsonl"
    texts = ["A tool.", "Reads and writes files in many formats.", "Editor", "It is advised to save.", "Network daemon"]
    path.write_text("".join(json.dumps({"en": text, "de": f"{text} Wort."}) + "\n" for text in texts) + "broken\n")
    return path


@pytest.mark.slow
def test_drafts_of_negligible_cost_leave_greedy_output_alone(command, tmp_path, models, capsys):
    plain, bigram = tmp_path / "plain", tmp_path / "bigram"
    assert generate.main(command(*GREEDY, "--config.model.draft=", "--config.decoding.gamma=0", output=plain)) == 0
    fitted = command(f"--generations={plain}", "--held_out=0", output=bigram)
    assert fit_ngram.main(fitted) == 0
    shown = capsys.readouterr().out
    expected = rows(plain)["output_tokens"]
    assert f"bigram of 5 texts, {sum(map(len, expected))} tokens" in shown and str(bigram) in shown
    fit = decoding.NGramDraft.fit(expected, 384, start_id=0, eos_id=1)
    found = decoding.NGramDraft.load(str(bigram))
    np.testing.assert_array_equal(found.shares[...], fit.shares[...])
    np.testing.assert_array_equal(found.unigram[...], fit.unigram[...])
    for draft in (str(bigram), "prompt_lookup"):
        output = tmp_path / draft.rsplit("/", 1)[-1].replace("bigram", "with_bigram")
        assert generate.main(command(*GREEDY, f"--config.model.draft={draft}", output=output)) == 0
        for a, b in zip(rows(output)["output_tokens"], expected, strict=True):
            assert a.tolist() == b.tolist()
        assert summary(output)["draft_tokens"]["proposed"] > 0
        manifest = json.loads((output / "manifest.json").read_text())
        identity = manifest["identity"]["model"]["draft"]
        assert identity == {"kind": draft, "max_ngram": 3, "min_ngram": 1} or list(identity) == [ngram.FILE]
        assert manifest["config"]["model"]["draft"] == draft
    assert summary(tmp_path / "with_bigram")["draft_tokens"]["accepted"] > 0


def test_fitting_to_text(command, tmp_path, models, capsys):
    """By default the references, EOS at the end; records that cannot be read are counted and left out."""
    tokenizer = load_tokenizer(str(models["target"]))
    for arguments, ending in ((("--order=2",), " Wort."), (("--order=1", "--text_field=en"), "")):
        assert fit_ngram.main(command(*arguments, "--held_out=0", output=tmp_path / "fitted")) == 0
        texts = [json.loads(line)["en"] + ending for line in (tmp_path / "input.jsonl").read_text().splitlines()[:5]]
        order = int(arguments[0][-1])
        expected = decoding.NGramDraft.fit(
            [[*tokenizer.encode(text), 1] for text in texts], 384, start_id=0, eos_id=1, order=order
        )
        found = decoding.NGramDraft.load(str(tmp_path / "fitted"))
        np.testing.assert_array_equal(found.unigram[...], expected.unigram[...])
        np.testing.assert_array_equal(found.shares[...], expected.shares[...])
        about = ngram.read_info(str(tmp_path / "fitted")).about
        assert (about["texts"], about["failed"], about["order"]) == (5, 1, order)
        assert about["source"]["field"] == ("en" if order == 1 else "de")
    assert "1 records that cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--order=3"], ["--order is '3'", "from 1 to 2"]),
        (["--min_count=none"], ["--min_count is 'none'", "at least 1"]),
        (["--held_out=0.9"], ["--held_out", "from 0 to 0.5"]),
        (["--generations=/nowhere"], ["/nowhere", "is empty or does not exist"]),
        (["--generations=/nowhere", "--text_field=en"], ["--text_field", "--generations"]),
        (["--text_field=fr"], ["fr", "en"]),
        (["--orders=2"], ["--orders"]),
    ],
)
def test_wrong_commands_are_refused(command, capsys, arguments, parts):
    assert fit_ngram.main(command(*arguments)) == 2
    shown = capsys.readouterr().err
    assert all(part in shown for part in parts), shown


def test_a_folder_of_something_else_is_not_written_into(command, models, capsys):
    assert fit_ngram.main(command(output=models["draft"])) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (models["draft"] / ngram.FILE).exists()


@pytest.fixture
def refused(command, capsys):
    def check(*overrides, parts):
        assert generate.main(command(*overrides)) == 2
        shown = capsys.readouterr().err
        assert all(part in shown for part in parts), shown

    return check


def test_wrong_drafts_are_refused_at_launch(refused, tmp_path):
    refused("--config.model.draft=promt_lookup", parts=["model.draft", "did you mean 'prompt_lookup'?"])
    refused("--config.model.prompt_lookup_max_ngram=0", parts=["model.prompt_lookup_max_ngram is 0", "at least"])
    other = str(tmp_path / "other")
    special = {"start_id": 0, "eos_id": 1}
    decoding.NGramDraft.fit([[2]], 384, **special).save(other, {"pieces_sha256": "0" * 64})
    refused(f"--config.model.draft={other}", parts=["model.draft", other, "another tokeniser"])
    decoding.NGramDraft.fit([[2]], 384, start_id=0, eos_id=2).save(other)
    refused(f"--config.model.draft={other}", parts=["eos_id is 2", "1"])
    decoding.NGramDraft.fit([[2]], 390, **special).save(other)  # without a tokeniser's digest nobody knows
    refused(f"--config.model.draft={other}", parts=["vocab_size is 390", "384"])


def info(vocab_size, encoder_decoder=False, eos_id=2):
    return decoding.CheckpointInfo("qwen2", vocab_size, 0, eos_id, 0, encoder_decoder, ())


def test_what_differently_padded_vocabularies_are_cut_to(tmp_path):
    """Qwen2's case in small: one tokeniser of 384 pieces, 400 rows in the target and 392 in the draft."""
    config = build(ModelConfig, {"target": "/t", "draft": "/d"}, "model")
    pieces = [str(i) for i in range(384)]
    draft = tmp_path / "draft"
    decoding.NGramDraft.fit([[2]], 392, start_id=0, eos_id=2).save(str(draft), {"pieces_sha256": pieces_sha256(pieces)})
    job = JobConfig(InputConfig(pattern="a.txt"), config)
    checked = check_draft("model.draft", str(draft), job, info(400), pieces)
    assert checked.vocab_size == 392
    assert shared_vocab_size(config, info(400), [checked], pieces) == 384
    assert shared_vocab_size(config, info(400, encoder_decoder=True), [checked], pieces) == 392
    assert shared_vocab_size(config, info(400, eos_id=390), [checked], pieces) == 391
    assert shared_vocab_size(config, info(392), [checked], pieces) is None
    setting = build(ModelConfig, {"target": "/t", "vocab_size": 386}, "model")
    assert shared_vocab_size(setting, info(400), [], pieces) == 386
    for wrong in (401, 2):
        with pytest.raises(ConfigError, match=f"model.vocab_size is {wrong}; allowed: 3, .*400"):
            shared_vocab_size(build(ModelConfig, {"target": "/t", "vocab_size": wrong}, "model"), info(400), [], pieces)


@pytest.mark.slow
def test_a_padded_draft_in_a_job(command, tmp_path, models):
    """Two more rows in the draft than in the target, one tokeniser: greedy output is plain decoding's."""
    padded = tmp_path / "padded_draft"
    shutil.copytree(models["draft"], padded)
    tensors = safetensors.numpy.load_file(padded / "model.safetensors")
    for name in ("shared.weight", "lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], 9 * np.ones_like(tensors[name][:2])])
    safetensors.numpy.save_file(tensors, padded / "model.safetensors")
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 386}))
    outputs = []
    for name, draft in (("equal", models["draft"]), ("padded", padded)):
        assert generate.main(command(*GREEDY, f"--config.model.draft={draft}", output=tmp_path / name)) == 0
        outputs.append(rows(tmp_path / name))
    for column in ("output_tokens", "source", "gammas", "beta"):
        for a, b in zip(outputs[0][column], outputs[1][column], strict=True):
            np.testing.assert_array_equal(a, b)
    identity = json.loads((tmp_path / "padded" / "manifest.json").read_text())["identity"]
    assert identity["model"]["vocab_size"] == 384
