"""Tokenisers of encoder-decoders, T5's aside, against transformers', over 200 lines in several scripts."""

import json

import pytest
import sentencepiece
import tokenizers
import transformers

from tests.support import tiny_tokenizers
from transforms.encoding import LanguageError, Translation, encode_text
from transforms.tokenize import TokenizerError, find_languages, find_tokenizer, load_tokenizer

LINES = tiny_tokenizers.lines()


def compare(mine, theirs, texts, *, around: slice) -> None:
    """The same ids, special tokens around them aside, and the same texts of these ids."""
    for text in texts:
        ids = theirs(text)["input_ids"][around]
        assert mine.encode(text) == ids, text
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text


def test_marian(tmp_path):
    numbers = tiny_tokenizers.write_marian(tmp_path)
    mine, theirs = load_tokenizer(str(tmp_path)), transformers.MarianTokenizer.from_pretrained(tmp_path)
    compare(mine, theirs, [*LINES, *(f">>fra<< {line}" for line in LINES[:5]), ">>nix<< a", "a </s> b"], around=slice(0, -1))
    assert mine.size == len(numbers) and mine.pieces() == list(numbers)
    assert find_languages(find_tokenizer(str(tmp_path)), mine) is None


@pytest.mark.parametrize("missing", ["source.spm", "target.spm", "vocab.json"])
def test_a_marian_folder_that_is_not_whole(tmp_path, missing):
    tiny_tokenizers.write_marian(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(TokenizerError, match=f"{missing} is not beside it; a Marian model needs source.spm, target.spm and"):
        load_tokenizer(str(tmp_path))


def test_m2m_100(tmp_path):
    size = tiny_tokenizers.write_m2m(tmp_path)
    mine, theirs = load_tokenizer(str(tmp_path)), transformers.M2M100Tokenizer.from_pretrained(tmp_path, src_lang="fr")
    compare(mine, theirs, LINES, around=slice(1, -1))
    languages = find_languages(find_tokenizer(str(tmp_path)), mine)
    assert len(languages.ids) == 100 and not languages.after and len(mine.pieces()) == size
    assert all(languages.ids[code] == theirs.get_lang_id(code) for code in languages.ids)
    around = Translation(languages.ids["fr"], languages.after, languages.ids["de"])
    tokens, cut = encode_text(LINES[0], mine, eos_id=2, max_input_tokens=200, translation=around)
    assert tokens == [theirs.get_lang_id("de"), *theirs(LINES[0])["input_ids"]] and not cut
    tokens, cut = encode_text(LINES[0] * 9, mine, eos_id=2, max_input_tokens=9, translation=around)
    assert (len(tokens), tokens[-1], cut) == (9, 2, True)


def test_nllb(tmp_path):
    """As transformers writes it, and from the sentencepiece model alone, behind which the languages follow as published."""
    size = tiny_tokenizers.write_nllb(tmp_path)
    theirs = transformers.NllbTokenizer.from_pretrained(tmp_path, src_lang="fra_Latn")
    theirs.save_pretrained(tmp_path / "saved")
    mine, saved = load_tokenizer(str(tmp_path)), load_tokenizer(str(tmp_path / "saved"))
    languages = find_languages(find_tokenizer(str(tmp_path / "saved")), saved)
    assert languages.ids == {code: theirs.convert_tokens_to_ids(code) for code in tiny_tokenizers.NLLB} and not languages.after
    around = Translation(languages.ids["fra_Latn"], False, languages.ids["deu_Latn"])
    for text in LINES:
        tokens, _ = encode_text(text, saved, eos_id=2, max_input_tokens=500, translation=around)
        assert tokens == [languages.ids["deu_Latn"], *theirs(text)["input_ids"]], text
    compare(saved, theirs, LINES, around=slice(1, -1))
    for text in (line.strip() for line in LINES):  # blanks at the ends are sentencepiece's to drop
        ids = mine.encode(text)
        assert ids == saved.encode(text) and mine.decode(ids) == saved.decode(ids).strip()
    own = find_languages(find_tokenizer(str(tmp_path)), mine)
    first = size - 1 - len(tiny_tokenizers.NLLB)  # transformers 5 puts the mask in front of them where it makes the numbers
    assert own.ids == {code: first + i for i, code in enumerate(tiny_tokenizers.NLLB)} and len(mine.pieces()) == size


@pytest.mark.parametrize(("name", "after"), [("MBart50Tokenizer", False), ("MBartTokenizer", True)])
def test_mbart(tmp_path, name, after):
    size = tiny_tokenizers.write_fairseq(tmp_path, name)
    mine = load_tokenizer(str(tmp_path))
    theirs = getattr(transformers, name).from_pretrained(tmp_path, src_lang="fr_XX")
    languages = find_languages(find_tokenizer(str(tmp_path)), mine)
    assert languages.after == after and len(mine.pieces()) == size
    assert all(theirs.convert_tokens_to_ids(code) == i for code, i in languages.ids.items())
    around = Translation(languages.ids["fr_XX"], languages.after, None)
    texts = [line.strip() for line in LINES]  # blanks at the ends are sentencepiece's to drop
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert encode_text(text, mine, eos_id=2, max_input_tokens=500, translation=around)[0] == ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    # And as transformers writes it, in a tokenizer.json.
    theirs.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    found = find_languages(find_tokenizer(str(tmp_path / "saved")), saved)
    assert found == languages
    for text in texts[:20]:
        assert encode_text(text, saved, eos_id=2, max_input_tokens=500, translation=around)[0] == theirs(text)["input_ids"]


def test_every_record_may_have_a_language():
    around = Translation(7, False, None, {"de": 8, "fr": 9})
    assert (around.first("fr"), Translation(7, False, 8).first("fr"), Translation(7, True, None).first("")) == ([9], [8], [])
    with pytest.raises(LanguageError, match="the target language is 'xx'; allowed: de, fr"):
        around.first("xx")


def test_bart(tmp_path):
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(LINES, vocab_size=500, special_tokens=special, show_progress=False)
    trained.save_model(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))
    mine = load_tokenizer(str(tmp_path))
    theirs = transformers.BartTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    compare(mine, theirs, [*LINES, "a</s>b", "a <mask> b"], around=slice(1, -1))
    assert mine.begin == (0,)
    assert encode_text(LINES[0], mine, eos_id=2, max_input_tokens=500)[0] == theirs(LINES[0])["input_ids"]
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match="merges.txt is not beside it"):
        load_tokenizer(str(tmp_path))


def test_pegasus(tmp_path):
    """Numbers and special tokens as published: ids of pieces are the sentencepiece model's and 103 more."""
    size = tiny_tokenizers.write_pegasus(tmp_path)
    mine, theirs = load_tokenizer(str(tmp_path)), transformers.PegasusTokenizer.from_pretrained(tmp_path)
    texts = [" ".join(line.split()) for line in LINES]  # blanks at the ends are sentencepiece's to drop
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in [*texts, "a line<n>another"]:
        ids = [i + 103 for i in own.EncodeAsIds(text)]
        assert mine.encode(text) == ids == theirs(text)["input_ids"][:-1], text
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    assert mine.encode("a<mask_1></s>") == [*mine.encode("a"), 2, 1] and mine.size == size
    assert mine.pieces()[:6] == ["<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_3>"]


def test_byt5(tmp_path):
    theirs = transformers.ByT5Tokenizer()
    theirs.save_pretrained(tmp_path)
    mine = load_tokenizer(str(tmp_path))
    compare(mine, theirs, [*LINES, "a <extra_id_3> b", "a </s> b"], around=slice(0, -1))
    assert mine.size == 259 and mine.decode([255, 3, 4, 68]) == theirs.decode([255, 3, 4, 68])


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a": -1}', b"{}"])
def test_vocabularies_that_are_none(tmp_path, content):
    tiny_tokenizers.write_m2m(tmp_path)
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="vocab.json is (not valid JSON|no vocabulary)"):
        load_tokenizer(str(tmp_path))
