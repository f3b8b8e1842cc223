"""Names of families, drafts and rules."""

import sys

import pytest

import decoding
from decoding import registry
from decoding.models.t5 import T5Config
from decoding.verification import Token
from tests.support import reference
from tests.support.scripted import near, next_logits, random_script


@pytest.fixture
def names() -> registry.Registry:
    return registry.Registry("the.setting", {"token": "decoding.verification:Token"})


def test_built_in_ones_are_imported_when_asked_for(names):
    assert "token" in names and names.get("token") is Token
    assert registry.FAMILIES.get("mt5").config is T5Config
    assert registry.DRAFTS.get("uniform") is decoding.UniformDraft


def test_names_are_added_once(names):
    names.register("mine", Token)
    names.register("mine", Token)  # a module that is imported again
    assert names.names() == ("token", "mine") and names.get("mine") is Token
    with pytest.raises(ValueError, match=r"the.setting 'mine' is registered already"):
        names.register("mine", object())
    for wrong in ("", "a/b", "gs://bucket", "a b"):
        with pytest.raises(ValueError, match="allowed: letters"):
            names.register(wrong, Token)


def test_unknown_names_say_what_is_allowed(names):
    assert "nonesuch" not in names and "models/t5" not in names
    with pytest.raises(ValueError, match=r"the.setting is 'nonesuch'; allowed: token"):
        names.get("nonesuch")


def test_a_plugin_that_cannot_be_imported_is_named(names, tmp_path, monkeypatch):
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no such device')\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\nmine = broken_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._import_plugins.cache_clear()
    assert "token" in names  # for a known name nothing is imported
    with pytest.raises(ValueError, match="entry point mine = 'broken_plugin' cannot be imported: no such device"):
        "mine" in names  # noqa: B015
    sys.modules.pop("broken_plugin", None)
    registry._import_plugins.cache_clear()


@pytest.mark.slow
def test_a_rule_from_outside_keeps_the_law(monkeypatch):
    """Of whole sequences over 2e4 samples, by chi-square: p above 1e-6."""
    monkeypatch.setattr(registry.RULES, "_entries", dict(registry.RULES._entries))
    sys.modules.pop("tests.additions.sample_and_compare", None)
    from tests.additions import sample_and_compare  # noqa: F401

    target = random_script(0)
    config = decoding.DecodingConfig(
        gamma=2,
        verification="sample_and_compare",
        num_samples=20_000,
        num_slots=256,
        max_decode_tokens=4,
        input_buckets=(2,),
    )
    rows = decoding.Generator(target, near(target, 1), config).generate([[2, 3]], ["example"])
    assert sum(int(row.accepted.sum()) for row in rows) > 10_000
    law = {}

    def extend(tokens: tuple[int, ...], probability: float) -> None:
        if len(tokens) == 3 or (tokens and tokens[-1] == target.eos_id):
            law[tokens] = probability
            return
        p = reference.standardize(next_logits(target, [2, 3], tokens))
        for token in range(target.vocab_size):
            extend((*tokens, token), probability * p[token])

    extend((), 1.0)
    assert reference.chi_square([tuple(row.tokens[:3].tolist()) for row in rows], law)[0] > 1e-6
