"""Jobs with Marian, BART, M2M-100 and mBART models and their own tokenisers, and what is wrong with such folders at launch."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
from flax import nnx

import decoding
from decoding.checkpoints import architecture, orbax
from pipeline import generate
from tests.pipeline.helpers import errors, rows, summary
from tests.support import tiny_tokenizers
from transforms.tokenize import load_tokenizer

SENTENCES = pathlib.Path(__file__).parents[1] / "testdata" / "sentences" / "sentences_software.test.jsonl"
LANGUAGES = ("source_language", "target_language", "target_language_field")
LINES = [line.strip() for line in tiny_tokenizers.lines(6)]


def write_model(folder: pathlib.Path, family: str, size: int, seed: int = 1, **changes) -> str:
    raw = {
        "model_type": family, "vocab_size": size, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "max_position_embeddings": 128,
    } | changes  # fmt: skip
    model = architecture.build(architecture.parse_config(raw, ""), "float32")
    rng = np.random.default_rng(seed)
    leaves = nnx.to_flat_state(nnx.state(model))
    values = {".".join(map(str, keys)): rng.normal(size=leaf.shape).astype(np.float32) for keys, leaf in leaves}
    orbax.write(str(folder), raw, values.items())
    return str(folder)


@pytest.fixture
def launch(tmp_path):
    def run(target: str, records: list[dict], *settings: str, code: int = 0) -> pathlib.Path:
        data, config = tmp_path / "texts.jsonl", tmp_path / "job.py"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        sections = {
            "input": {"pattern": str(data), "input_field": "text", **dict.fromkeys(LANGUAGES, "")},
            "model": {"target": target, "draft": "prompt_lookup"},
            "decoding": dict(gamma=2, temperature=0.0, max_decode_tokens=9, num_slots=2, input_buckets=(64,)),
        }
        made = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({sections!r})\n"
        config.write_text(made)
        out = tmp_path / "out"
        command = [f"--config={config}", f"--output={out}", *(f"--config.input.{setting}" for setting in settings)]
        assert generate.main(command) == code
        return out

    return run


def texts(**fields) -> list[dict]:
    return [{"text": line} | {name: values[i] for name, values in fields.items()} for i, line in enumerate(LINES)]


@pytest.mark.slow
def test_many_to_many(tmp_path, launch):
    """A language per record; one that the model does not have is that record's error."""
    folder = tmp_path / "m2m"
    size = tiny_tokenizers.write_m2m(folder)
    target, tokenizer = write_model(folder, "m2m_100", size + 8), load_tokenizer(str(folder))
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces())}
    out = launch(target, texts(to=["de", "fr", "xx", "de", "zu", "sv"]), "source_language=en", "target_language_field=to")
    found = rows(out)
    first = [ids[f"__{code}__"] for code in ("de", "fr", "de", "zu", "sv")]
    assert [row[0] for row in found["output_tokens"]] == first
    assert [row[:2].tolist() for row in found["input_tokens"]] == [[token, ids["__en__"]] for token in first]
    assert found["inputs"].tolist() == [line for i, line in enumerate(LINES) if i != 2]
    assert not any("__" in text for text in found["prediction"])
    (error,) = errors(out)
    assert error["error_type"] == "LanguageError" and "the target language is 'xx'; allowed: af, am" in error["message"]


def test_one_pair_of_languages(tmp_path, launch):
    folder = tmp_path / "mbart"
    size = tiny_tokenizers.write_fairseq(folder, "MBart50Tokenizer")
    target = write_model(folder, "mbart", size, decoder_start_token_id=2)
    pieces = load_tokenizer(str(folder)).pieces()
    found = rows(launch(target, texts(), "source_language=fr_XX", "target_language=de_DE"))
    assert {pieces[row[0]] for row in found["output_tokens"]} == {"de_DE"}
    assert {pieces[row[1]] for row in found["input_tokens"]} == {"fr_XX"} and {row[-1] for row in found["input_tokens"]} == {2}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Models for many languages by name."""
    root = tmp_path_factory.mktemp("many")
    sizes = {"m2m": tiny_tokenizers.write_m2m(root / "m2m"), "nllb": tiny_tokenizers.write_nllb(root / "nllb")}
    for name, kind in (("mbart", "MBartTokenizer"), ("mbart50", "MBart50Tokenizer")):
        sizes[name] = tiny_tokenizers.write_fairseq(root / name, kind)
    starts = {"mbart": sizes["mbart"] - 2, "mbart50": 2}  # the first one's texts begin with a language
    return {
        name: write_model(root / name, "mbart", size, decoder_start_token_id=starts[name]) if name in starts
        else write_model(root / name, "m2m_100", size) for name, size in sizes.items()
    }  # fmt: skip


def refused(capsys, message: str) -> None:
    """The launch has said one line."""
    shown = capsys.readouterr().err
    assert message in shown and shown.startswith("error: ") and shown.count("\n") == 1, shown


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(decoding, "load_model", pytest.fail)


@pytest.mark.parametrize(("model", "settings", "message"), [
    ("m2m", [], "input.source_language is ''; allowed: af, am, ar"),
    ("m2m", ["source_language=eng"], "is 'eng'; allowed: af, am, ar, ast, az, ba, be, bg, bn, br, bs, ca and 88 more"),
    ("m2m", ["source_language=en"], 'input.target_language is ""; allowed: af'),
    ("m2m", ["source_language=en", "target_language=german"], "input.target_language is 'german'; allowed: af"),
    (
        "m2m", ["source_language=en", "target_language=de", "target_language_field=to"],
        "input.target_language is 'de'; allowed: \"\"",
    ),
    ("nllb", [], "input.source_language is ''; allowed: ace_Arab, deu_Latn, eng_Latn, fra_Latn, zho_Hans, zul_Latn"),
    ("nllb", ["source_language=en", "target_language=deu_Latn"], "input.source_language is 'en'; allowed: ace_Arab, deu_Latn"),
    ("nllb", ["source_language=eng_Latn"], 'input.target_language is ""; allowed: ace_Arab, deu_Latn'),
    ("nllb", ["source_language=eng_Latn", "target_language=de_DE"], "input.target_language is 'de_DE'; allowed: ace_Arab"),
    ("mbart50", ["source_language=en", "target_language=de_DE"], "input.source_language is 'en'; allowed: af_ZA, ar_AR"),
    ("mbart50", ["source_language=en_XX", "target_language=de"], "input.target_language is 'de'; allowed: af_ZA, ar_AR"),
    ("mbart50", ["source_language=en_XX"], 'input.target_language is ""; allowed: af_ZA, ar_AR'),
    ("mbart", ["source_language=en_XX", "target_language=de"], "input.target_language is 'de'; allowed: "),
])  # fmt: skip
def test_languages_that_a_model_lacks(many, launch, capsys, nothing_is_loaded, model, settings, message):
    launch(many[model], texts(), *settings, code=2)
    refused(capsys, message)


def test_marian(tmp_path, launch):
    folder = tmp_path / "marian"
    numbers = tiny_tokenizers.write_marian(folder)
    pad = numbers["<pad>"]
    special = dict(pad_token_id=pad, decoder_start_token_id=pad, bad_words_ids=[[pad]])
    target = write_model(folder, "marian", len(numbers), **special)
    out = launch(target, texts())
    found = rows(out)
    assert summary(out)["errors"] == {"total": 0} and found["inputs"].tolist() == LINES
    assert {row[-1] for row in found["input_tokens"]} == {0} and all(pad not in row for row in found["output_tokens"])


def test_marian_folders_that_are_not_whole(tmp_path, launch, capsys, nothing_is_loaded):
    folder = tmp_path / "marian"
    numbers = tiny_tokenizers.write_marian(folder)
    target = write_model(folder, "marian", len(numbers), decoder_start_token_id=numbers["<pad>"])
    launch(target, texts(), "source_language=en", code=2)
    refused(capsys, "input.source_language is 'en'; allowed: \"\"")
    for name in ("target.spm", "source.spm", "vocab.json"):
        (folder / name).rename(folder / "away")
        launch(target, texts(), code=2)
        refused(capsys, f"{name} is not beside it; a Marian model needs source.spm, target.spm and vocab.json")
        (folder / "away").rename(folder / name)
    for name in ("source.spm", "target.spm"):
        (folder / name).unlink()
    launch(target, texts(), code=2)
    refused(capsys, "source.spm is not beside it")
    (folder / "vocab.json").unlink()
    launch(target, texts(), code=2)
    refused(capsys, "no tokeniser at ")


def test_bart(tmp_path, launch):
    folder = tmp_path / "bart"
    folder.mkdir()
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(LINES, vocab_size=400, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    target = write_model(folder, "bart", trained.get_vocab_size(), forced_bos_token_id=0)
    found = rows(launch(target, texts()))
    assert {(row[0], row[-1]) for row in found["input_tokens"]} == {(0, 2)}
    assert {row[0] for row in found["output_tokens"]} == {0}
    assert {row[-1] for row in found["output_tokens"] if len(row) == 9} <= {2}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pegasus", "nllb"])
def test_real_sentences(family, tmp_path, launch, many):
    folder, settings, languages = tmp_path / "pegasus", [], []
    if family == "pegasus":
        target = write_model(folder, family, tiny_tokenizers.write_pegasus(folder), decoder_start_token_id=0, eos_token_id=1)
    else:
        target, settings = many[family], ["source_language=eng_Latn", "target_language=deu_Latn"]
    tokenizer = load_tokenizer(target)
    sentences = [json.loads(line)["text"][:40].strip() for line in SENTENCES.read_text().splitlines()[:6]]
    out = launch(target, [{"text": text} for text in sentences], *settings)
    found = rows(out)
    assert summary(out)["errors"] == {"total": 0} and found["inputs"].tolist() == sentences
    if family == "nllb":
        languages = [tokenizer.pieces().index(code) for code in ("deu_Latn", "eng_Latn")]
    end = 1 if family == "pegasus" else 2
    for text, row in zip(sentences, found.to_dict("records")):
        assert row["input_tokens"].tolist() == [*languages, *tokenizer.encode(text), end]
        assert row["prediction"] == tokenizer.decode(row["output_tokens"])
        assert row["output_tokens"][0] == languages[0] if languages else row["output_tokens"][0] != 0
