"""Tokenisers of translation models, trained in a second on lines in several scripts, in the files of their families."""

import io
import json
import pathlib
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protos

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


def write_fairseq(folder, name: str, seed: int = 0) -> int:
    """sentencepiece.bpe.model alone, as of mBART; returns how many tokens there are with languages and mask."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(seed)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    return len(pieces(model)) + 1 + {"MBartTokenizer": 25, "MBart50Tokenizer": 52}[name] + 1
