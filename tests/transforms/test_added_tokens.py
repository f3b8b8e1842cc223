"""Tokens around a sentencepiece model are read and written as transformers does it with the same directory."""

import io
import itertools
import json

import pytest
import sentencepiece
import tokenizers

from transforms.tokenize import TokenizerError, load_tokenizer

SENTENCES = ["The quick brown fox jumps over the lazy dog.", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "[INST] |"]
TEXTS = (
    "the dog", "a {b} c", "<s>[INST] the dog [/INST]", "<s> the [INST] x </s>y", " the  dog ", "</s>", "a<unk>b", "x{ the}",
    "{the} dog", "<extra_id_0> fox <extra_id_1>.", "<s><s>a</s> </s>", "{", "a  {  b", "fox |>  dog", "<|x fox",
)  # fmt: skip


def train(path, **settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", **settings,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).GetPieceSize()


def t5(folder):
    settings = dict(vocab_size=120, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return train(folder / "spiece.model", **settings)


def llama(folder):
    settings = dict(vocab_size=360, model_type="bpe", byte_fallback=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    return train(folder / "tokenizer.model", remove_extra_whitespaces=False, **settings)


def decoder_of(added, **flags):
    return {str(i): {"content": t, "special": t[0] == "<", "normalized": False} | flags for t, i in added.items()}


CASES = {
    "t5, sentinels unsaid": (t5, lambda n: ({"tokenizer_class": "T5Tokenizer"}, {}, {})),
    "t5, added_tokens.json": (t5, lambda n: ({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, {}, {"{": n, "}": n + 1})),
    "t5, decoder": (t5, lambda n: (
        {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0,
         "added_tokens_decoder": decoder_of({"{": n, "}": n + 1, "<extra_id_1>": n + 2, "<extra_id_0>": n + 3})}, {}, {})),
    "llama": (llama, lambda n: ({"tokenizer_class": "LlamaTokenizer"}, {}, {})),
    "llama, legacy": (llama, lambda n: ({"tokenizer_class": "LlamaTokenizer", "legacy": True}, {}, {})),
    "llama, not legacy": (llama, lambda n: ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, {}, {"{": n, "}": n + 1})),
    "llama, no space": (llama, lambda n: ({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, {}, {})),
    "llama, named": (llama, lambda n: (
        {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": ["<q>"]}, {"pad_token": "<p>"}, {"{": n, "}": n + 1})),
    "llama, pieces": (llama, lambda n: (
        {"tokenizer_class": "LlamaTokenizer", "pad_token": "x"}, {}, {})),
    "llama, flags": (llama, lambda n: (
        {"tokenizer_class": "LlamaTokenizer", "legacy": False,
         "added_tokens_decoder": decoder_of({"{": n, "|>": n + 1, "<|x": n + 2}, lstrip=True, rstrip=True)}, {}, {})),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_as_transformers(tmp_path, case):
    transformers = pytest.importorskip("transformers")
    make, about = CASES[case]
    size = make(tmp_path)
    config, special, added = about(size)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5" if make is t5 else "llama"}))
    for name, value in (("tokenizer_config", config), ("special_tokens_map", special), ("added_tokens", added)):
        if value:
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    assert len(ours.pieces()) == len(theirs) and ours.size == size
    assert ours.pieces() == theirs.convert_ids_to_tokens(list(range(len(theirs))))
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text
    for pair in itertools.product(range(size, len(theirs)), range(3, 40, 7)):
        assert ours.decode(pair) == theirs.decode(pair, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_directory_with_both_files_is_its_tokenizer_json(tmp_path):
    transformers = pytest.importorskip("transformers")
    llama(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "the": 1, "dog": 2, "</s>": 3}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_tokens(["{"])
    words.save(str(tmp_path / "tokenizer.json"))
    decoder = {"4": {"content": "{"}, "5": {"content": "<|im_end|>", "special": True}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    text = "the {dog<|im_end|>the</s>"
    assert ours.encode(text) == theirs(text)["input_ids"] == [1, 4, 2, 5, 1, 3]
    assert ours.decode([1, 4, 5, 2, 3]) == theirs.decode([1, 4, 5, 2, 3], skip_special_tokens=True)
    assert (ours.size, len(ours.pieces())) == (4, 6)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("about", [{"legacy": True}, {"legacy": False}, {}, {"legacy": False, "add_prefix_space": False}])
def test_the_spaces_of_a_llama_with_a_tokenizer_json(tmp_path, about, model_type):
    """As older converters wrote it, with a space before every part; transformers goes by the class and `legacy`."""
    transformers = pytest.importorskip("transformers")
    llama(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": true}')
    older = transformers.AutoTokenizer.from_pretrained(tmp_path)._tokenizer
    space = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    older.normalizer, older.pre_tokenizer = tokenizers.normalizers.Sequence(space), None
    older.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast", **about}))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text


def test_added_tokens_are_part_of_a_tokenisers_identity(tmp_path):
    size = llama(tmp_path)
    found = []
    for added in ({}, {"{": size}, {"{": size + 1}):
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        found.append(load_tokenizer(str(tmp_path)).sha256)
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false}')
    assert len({*found, load_tokenizer(str(tmp_path)).sha256}) == 4


def test_a_begin_that_is_no_token(tmp_path):
    t5(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "add_bos_token": true}')
    with pytest.raises(TokenizerError, match="'<s>', which is not one of its special tokens"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer_config.json", "[]", "holds a JSON list"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[" * 100_000, "not valid JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "id 'x'; allowed: whole numbers"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999999": {"content": "a"}}}', "id '99999999999'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {}}}', "allowed: objects with content"),
        ("added_tokens.json", '{"a": "b"}', "id 'b'"),
        ("special_tokens_map.json", "3", "holds a JSON int"),
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "tiktoken, beside which a tokenizer.json is needed"),
        ("tokenizer.model", "nonsense", "no sentencepiece model"),
    ],
)
def test_broken_surroundings(tmp_path, name, text, said):
    llama(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match=said) as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
