"""Both tokeniser formats: text survives, and ids that are no piece are left out."""

import io

import pytest
import sentencepiece
import tokenizers

from transforms.tokenize import TokenizerError, find_tokenizer, load_tokenizer

TEXT = "a tool for files"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("tokenizers")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9), model_writer=model, vocab_size=300, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (found / "spiece").mkdir()
    (found / "spiece" / "spiece.model").write_bytes(model.getvalue())
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "tool": 2, "for": 5, "files": 4}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.enable_truncation(2)
    (found / "json").mkdir()
    words.save(str(found / "json" / "tokenizer.json"))
    return found


@pytest.mark.parametrize("kind", ["spiece", "json"])
def test_text_survives_and_nothing_is_added(folder, kind):
    tokenizer = load_tokenizer(str(folder / kind))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert 1 not in ids[1:]
    assert len(tokenizer.sha256) == 64
    pieces = tokenizer.pieces()
    assert all(pieces[i] for i in ids)


def test_ids_beyond_the_pieces_are_left_out(folder):
    tokenizer = load_tokenizer(str(folder / "spiece"))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode([*ids, 99_999, 0, 1]) == TEXT


def test_json_truncation_is_not_applied(folder):
    assert load_tokenizer(str(folder / "json")).encode(TEXT) == [1, 2, 5, 4]


def test_sentencepiece_comes_first(folder, tmp_path):
    for kind, name in (("spiece", "spiece.model"), ("json", "tokenizer.json")):
        (tmp_path / name).write_bytes((folder / kind / name).read_bytes())
    assert find_tokenizer(str(tmp_path)).endswith("spiece.model")
    assert find_tokenizer(str(tmp_path / "tokenizer.json")).endswith("tokenizer.json")


def test_missing_or_broken(tmp_path):
    with pytest.raises(TokenizerError, match="no tokeniser at"):
        load_tokenizer(str(tmp_path))
    for name in ("spiece.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(TokenizerError, match=name):
            load_tokenizer(str(tmp_path / name))
