"""`model.draft_vocabulary` in jobs: outputs stay plain decoding's, what is refused, where it is left out, the shipped one."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from decoding.config import ACCEPTED, CORRECTED
from decoding.drafts import ngram
from pipeline import fit_ngram, generate, plan, quickstart
from pipeline.distilling.prepare import prepare
from pipeline.job.preflight import check_models, models_of
from pipeline.planning import chips
from pipeline.planning.jobs import abstract_models
from pipeline.runners.options import paths_of
from pipeline.settings import parse_command_line
from tests.pipeline.conftest import SENTENCES
from tests.pipeline.helpers import rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"
PAIR = ROOT / "examples" / "models" / "ende_software"
GREEDY = ("--config.decoding.temperature=0.0", "--config.decoding.max_decode_tokens=12")


def vocabulary(folder, size: int) -> tuple[str, str]:
    return f"--config.model.draft_vocabulary={folder}", f"--config.model.draft_vocabulary_size={size}"


@pytest.fixture(scope="module")
def unigram(tmp_path_factory, models) -> str:
    """The folder of one of the sentences."""
    folder = tmp_path_factory.mktemp("unigram")
    path = folder / "texts.txt"
    path.write_text("\n".join(SENTENCES))
    words = (f"--config.input.pattern={path}", f"--config.model.target={models['target']}", f"--output={folder / 'fitted'}")
    assert fit_ngram.main([QUICKSTART, *words, "--order=1", "--held_out=0"]) == 0
    return str(folder / "fitted")


def test_a_job_says_what_plain_decoding_says(command, tmp_path, models):
    """A draft that is the target, less what this says seldom: all that it is corrected by lies outside."""
    plain, drafted, said = tmp_path / "plain", tmp_path / "drafted", tmp_path / "said"
    assert generate.main(command(*GREEDY, "--config.model.draft=", "--config.decoding.gamma=0", output=plain)) == 0
    assert fit_ngram.main(command(f"--generations={plain}", "--order=1", "--held_out=0", output=said)) == 0
    whole = f"--config.model.draft={models['target']}"
    assert generate.main(command(*GREEDY, whole, *vocabulary(said, 20), output=drafted)) == 0
    expected, found = rows(plain), rows(drafted)
    assert [a.tolist() for a in found["output_tokens"]] == [a.tolist() for a in expected["output_tokens"]]
    tokens, source = (np.concatenate(found[name].tolist()) for name in ("output_tokens", "source"))
    inside = np.isin(tokens, ngram.frequent_tokens(str(said), 20))
    assert np.any(source == ACCEPTED) and np.all(inside[source == ACCEPTED])
    assert np.any(source == CORRECTED) and not np.any(inside[source == CORRECTED])
    identity = json.loads((drafted / "manifest.json").read_text())["identity"]["model"]["draft"]
    assert identity["vocabulary"]["size"] == 20 and len(identity["vocabulary"]["digest"]) == 64


@pytest.mark.parametrize(
    ("size", "other", "message"),
    [
        (0, False, "model.draft_vocabulary_size is 0; allowed: at least 1 with model.draft_vocabulary"),
        (385, False, "model.draft_vocabulary_size is 385; allowed: 1 to 384"),
        (300, True, "fitted with another tokeniser than that of"),
    ],
)
def test_what_is_refused(command, unigram, capsys, size, other, message):
    folder = PAIR / "unigram" if other else unigram
    assert generate.main(command(*vocabulary(folder, size))) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_an_ngram_is_refused(command, tmp_path, capsys):
    assert generate.main(command(*vocabulary(tmp_path, 300))) == 2
    assert "model.draft_vocabulary is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ((), 4096),
        (("--config.model.draft=out/another",), 4096),
        (("--config.model.draft_vocabulary_size=2048",), 2048),
        (("--config.model.target=models/t5",), 0),
        (("--config.model.target=models/t5", *vocabulary(PAIR / "unigram", 7)), 7),
        (("--config.model.draft_vocabulary=",), 0),
    ],
)
def test_the_presets_vocabulary_is_its_targets(words, size):
    model = parse_command_line([QUICKSTART, "--output=out", *words]).config.model
    assert (model.draft_vocabulary, model.draft_vocabulary_size) == (str(PAIR / "unigram") if size else "", size)


def test_workers_elsewhere_need_it_too(command, unigram):
    paths = paths_of(parse_command_line(command(*vocabulary(unigram, 300))).config, "out")
    assert paths["model.draft_vocabulary"] == unigram


def test_a_training_is_the_same_with_it(command, tmp_path, models, unigram):
    generated = tmp_path / "generated"
    assert generate.main(command("--config.model.draft=", "--config.decoding.gamma=0", output=generated)) == 0
    begin = (f"--config.distill.generations={generated}", f"--config.distill.start={models['draft']}")
    one, other = (
        prepare(parse_command_line(command(*begin, *more)).config, str(tmp_path / "draft"))
        for more in ((), vocabulary(unigram, 300))
    )
    assert one.identity == other.identity


def test_the_shipped_pair_guesses_4096_pieces_in_all_of_quickstarts_runs():
    """What is shipped is p(x) alone, and of enough text: a piece that was never seen is not among the guesses."""
    config = parse_command_line([*quickstart.PARTS["translation"].settings, "--output=out"]).config
    check_models(config)
    draft = models_of(config.model).load_draft()
    assert draft.model.config.head_size == 4096 and draft.vocab_size == 8192
    file = PAIR / "unigram" / ngram.FILE
    assert file.stat().st_size < 36_000
    with safe_open(file, framework="numpy") as opened:
        seen = np.sort(opened.get_tensor("unigram"))
    assert seen[-4096] > seen[0]


def test_a_plan_has_the_drafts_very_shape():
    plain = ("--config.model.weights=plain", "--config.model.draft_weights=plain")
    config = parse_command_line([QUICKSTART, "--output=out", *plain]).config
    shapes = lambda model: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.to_pure_dict(nnx.state(model)))
    assert shapes(abstract_models(config)[1]) == shapes(models_of(config.model).load_draft())


@pytest.mark.parametrize("split", [(), ("--split_draft",)])
def test_a_plan_counts_the_head_that_is_there(monkeypatch, tmp_path, split):
    monkeypatch.setattr(chips, "has_compiler", lambda: False)
    results = []
    for words in ((), ("--config.model.draft_vocabulary=",)):
        assert plan.main([QUICKSTART, *words, *split, "--topology=v4:2x2x1", f"--json={tmp_path / 'plan.json'}"]) == 0
        results.append(json.loads((tmp_path / "plan.json").read_text()))
    some, whole = results
    saved = 4 * 128 * 4096 // (4 if split else 1) - 4 * 8192  # half of the head, less where each token's column is
    assert whole["memory"]["parameters"] - some["memory"]["parameters"] == saved
    assert some["predicted"]["draft_seconds"] < whole["predicted"]["draft_seconds"]
