"""Tokenisers trained in a second on lines in several scripts, in the files of their families.

Of every writer the result is how many tokens there are, unless it says otherwise.
"""

import io
import json
import pathlib
import random

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as protos
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

_WORDS = (
    "the file was read twice and then closed again quickly without any error Überraschung größer Straße "
    "naïve façade быстрая коричневая лиса прыгает через ленивую собаку γρήγορη αλεπού πηδάει πάνω από τον "
    "σκύλο الثعلب البني السريع يقفز فوق الكلب تیز بھوری لومڑی तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है "
    "敏捷的棕色狐狸 跳过了 懒狗 素早い茶色の狐が のろまな犬を 飛び越える 빠른 갈색 여우가 게으른 "
    "개를 뛰어넘는다 12 3.5 1,000 — «да» “yes” ok! 🙂 "
)
NLLB = ["ace_Arab", "deu_Latn", "eng_Latn", "fra_Latn", "zho_Hans", "zul_Latn"]


def lines(count: int = 200, seed: int = 0) -> list[str]:
    """Lines of words of several scripts, some with blanks where one does not expect them."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        words = rng.choices(_WORDS.split(), k=rng.randint(1, 12))
        text = " ".join(words)
        found.append(text.replace(" ", "  ", 1) if i % 17 == 3 else f" {text} " if i % 19 == 4 else text)
    return found


def sentencepiece_model(seed: int, size: int = 180, kind: str = "unigram", **options) -> bytes:
    """The bytes of a model whose first pieces are <unk>, <s> and </s> unless the trainer's `options` say otherwise."""
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(400, seed)), model_writer=data, vocab_size=size, model_type=kind, minloglevel=2,
        character_coverage=0.98, hard_vocab_limit=False, **options,
    )  # fmt: skip
    return data.getvalue()


def pieces(model: bytes) -> list[str]:
    return [piece.piece for piece in protos.ModelProto.FromString(model).pieces]


def write_marian(folder, seed: int = 0) -> dict[str, int]:
    """source.spm, target.spm and a vocab.json of both; returns the latter. ">>fra<<" is among its pieces."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    models = sentencepiece_model(seed), sentencepiece_model(seed + 1)
    own = [piece for model in models for piece in pieces(model)[3:]]
    random.Random(seed).shuffle(own)
    names = list(dict.fromkeys(["</s>", "<unk>", ">>fra<<", *own, "<pad>"]))
    for name, model in zip(("source.spm", "target.spm"), models):
        (folder / name).write_bytes(model)
    numbers = {piece: i for i, piece in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    return numbers


def write_m2m(folder, seed: int = 0) -> int:
    """sentencepiece.bpe.model and vocab.json; returns how many tokens there are with the languages."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(seed, kind="bpe")
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces(model)[3:][::-1]]
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(names)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "M2M100Tokenizer"}))
    return len(names) + 100


def write_nllb(folder, seed: int = 0) -> int:
    """sentencepiece.bpe.model, and a config that names the languages; returns how many tokens there are with them and mask."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(seed, kind="bpe")
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    named = {"additional_special_tokens": NLLB}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NllbTokenizer", **named}))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))  # as published, once more
    return len(pieces(model)) + 1 + len(NLLB) + 1


def write_pegasus(folder, seed: int = 0) -> int:
    """spiece.model, before whose pieces 103 tokens stand."""
    model = sentencepiece_model(seed, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=["<n>"])
    _begin(folder, tokenizer_class="PegasusTokenizer", mask_token="<mask_2>", mask_token_sent="<mask_1>", offset=103)
    (folder / "spiece.model").write_bytes(model)
    return len(pieces(model)) + 103


def write_fairseq(folder, name: str, seed: int = 0) -> int:
    """sentencepiece.bpe.model alone, as of mBART; returns how many tokens there are with languages and mask."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(seed)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    return len(pieces(model)) + 1 + {"MBartTokenizer": 25, "MBart50Tokenizer": 52}[name] + 1


def write_gemma(folder) -> int:
    """tokenizer.model, in which runs of blanks and newlines are tokens."""
    model = sentencepiece_model(
        0, 700, "bpe", byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁"], split_digits=True,
    )  # fmt: skip
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    _begin(folder, tokenizer_class="GemmaTokenizer", add_bos_token=True, **special)
    (folder / "tokenizer.model").write_bytes(model)
    return len(pieces(model))


def write_gpt_neox(folder) -> int:
    """tokenizer.json, of pairs of bytes in NFC."""
    special = ["<|endoftext|>", "<|padding|>"]
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), special[0])
    _begin(folder, tokenizer_class="GPTNeoXTokenizer", add_prefix_space=False, **named)
    return _write_pairs(folder, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False), special)


def write_opt(folder) -> int:
    """vocab.json and merges.txt; its texts begin with its end token."""
    named = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "</s>") | {"pad_token": "<pad>"}
    _begin(folder, tokenizer_class="GPT2Tokenizer", add_prefix_space=False, add_bos_token=True, **named)
    pairs = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pairs.train_from_iterator(lines(), vocab_size=600, special_tokens=special, show_progress=False)
    pairs.save_model(str(folder))
    return pairs.get_vocab_size()


def write_phi3(folder) -> int:
    """Llama's pieces in a tokenizer.json; behind some of its added tokens blanks are dropped."""
    from transformers.convert_slow_tokenizer import generate_merges

    named = dict(bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<unk>")
    _begin(folder, tokenizer_class="LlamaTokenizer", add_bos_token=False, legacy=False, **named)
    options = dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    own = protos.ModelProto.FromString(sentencepiece_model(0, 700, "bpe", **options)).pieces
    numbers, scores = {piece.piece: i for i, piece in enumerate(own)}, {piece.piece: piece.score for piece in own}
    merges = generate_merges(numbers, scores)
    found = tokenizers.Tokenizer(BPE(numbers, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    found.add_special_tokens(["<unk>", "<s>", "<|endoftext|>"])
    found.add_tokens([tokenizers.AddedToken("</s>", rstrip=True)])
    found.add_special_tokens([tokenizers.AddedToken(text, rstrip=True) for text in ("<|assistant|>", "<|end|>")])
    found.save(str(folder / "tokenizer.json"))
    return found.get_vocab_size()


def write_phi4(folder) -> int:
    """tokenizer.json, of pairs of bytes in words as GPT-4 has them."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = ["<|endoftext|>", "<|end|>"]
    named = dict(bos_token=special[0], eos_token=special[1], pad_token=special[0], unk_token=special[0])
    _begin(folder, tokenizer_class="GPT2Tokenizer", add_prefix_space=False, **named)
    split = pre_tokenizers.Split(tokenizers.Regex(words), "removed", invert=True)
    cut = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return _write_pairs(folder, None, cut, special, lstrip=True, rstrip=True)


def _begin(folder, **config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _write_pairs(folder, normalizer, words, special: list[str], **flags) -> int:
    found = tokenizers.Tokenizer(BPE())
    found.pre_tokenizer, found.decoder = words, decoders.ByteLevel()
    if normalizer:
        found.normalizer = normalizer
    first, alphabet = [tokenizers.AddedToken(text, **flags) for text in special], pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(lines(), trainer)
    found.add_tokens([tokenizers.AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    found.save(str(folder / "tokenizer.json"))
    return found.get_vocab_size()
