"""The tokeniser inside a GGUF file, rebuilt from its vocabulary: byte-level BPE ("gpt2") and sentencepiece ("llama", "t5").

How a byte-level BPE cuts text into words before it merges is not in the file, which only names it: `SPLITS` has the
patterns of the names we know, as llama.cpp has them. Another name is refused, since a wrong cut gives other tokens
without any error.
"""

import hashlib
import json

from decoding.checkpoints import gguf
from transforms.text.added_tokens import AddedToken
from transforms.text.sentencepieces import SentencePieceTokenizer
from transforms.text.vocabularies import LibraryTokenizer, TokenizerError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_GPT4 % "",),
    "llama-bpe": (_GPT4 % "{1,3}",),
}

# Types of pieces, as sentencepiece numbers them.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6


def from_gguf(path: str) -> LibraryTokenizer | SentencePieceTokenizer:
    """The file's tokeniser.

    Raises:
      TokenizerError: it is of a kind that is not supported, or incomplete.
      CheckpointError: not a GGUF file.
    """
    with gguf.open_file(path, weights=False) as file:
        kind = file.require("tokenizer.ggml.model")
        if kind == "gpt2":
            return _byte_level(file)
        if kind in ("llama", "t5"):
            return _sentencepiece(file, t5=kind == "t5")
    raise TokenizerError(f"tokenizer.ggml.model is {kind!r}; supported: gpt2, llama, t5")


def _begin(file: gguf.GgufFile, default: bool) -> tuple[int, ...]:
    if not file.get("tokenizer.ggml.add_bos_token", default):
        return ()
    return (file.require("tokenizer.ggml.bos_token_id"),)


def _byte_level(file: gguf.GgufFile) -> LibraryTokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pre = file.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITS:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}; supported: {', '.join(SPLITS)}")
    pieces, merges = file.require("tokenizer.ggml.tokens"), file.require("tokenizer.ggml.merges")
    types = file.get("tokenizer.ggml.token_type", [1] * len(pieces))
    llama3 = pre == "llama-bpe"
    begin = _begin(file, default=llama3)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [tuple(merge.split(" ")) for merge in merges],
            ignore_merges=llama3,  # a word that is a piece is that piece, whatever the merges lead to
        )
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in SPLITS[pre]]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for piece, type_ in zip(pieces, types):
        if type_ in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([tokenizers.AddedToken(piece, normalized=False, special=True)])
        elif type_ == _USER_DEFINED:
            tokenizer.add_tokens([tokenizers.AddedToken(piece, normalized=False)])
    return LibraryTokenizer(tokenizer, _digest(pre, pieces, merges, types, begin), begin)


def _sentencepiece(file: gguf.GgufFile, t5: bool) -> SentencePieceTokenizer:
    """Llama's or T5's vocabulary is a sentencepiece model taken apart, so it is put together again.

    T5's is padded up to the model's, and the tokens that were added to it are its sentinels.
    """
    from sentencepiece import sentencepiece_model_pb2 as protos

    pieces, scores = file.require("tokenizer.ggml.tokens"), file.require("tokenizer.ggml.scores")
    types = [_CONTROL if t5 and kind == _USER_DEFINED else kind for kind in file.require("tokenizer.ggml.token_type")]
    while t5 and types and types[-1] == _UNUSED:
        types.pop()
    model = protos.ModelProto()
    for piece, score, type_ in zip(pieces[: len(types)], scores, types):
        model.pieces.add(piece=piece, score=score, type=type_)
    model.trainer_spec.model_type = protos.TrainerSpec.UNIGRAM if t5 else protos.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(types)
    model.trainer_spec.byte_fallback = _BYTE in types
    model.trainer_spec.unk_id = types.index(_UNKNOWN) if _UNKNOWN in types else 0
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = file.get("tokenizer.ggml.remove_extra_whitespaces", False)
    model.normalizer_spec.precompiled_charsmap = bytes(v % 256 for v in file.get("tokenizer.ggml.precompiled_charsmap", ()))
    model.normalizer_spec.escape_whitespaces = True
    controls = {i: AddedToken(pieces[i]) for i, type_ in enumerate(types) if type_ in (_UNKNOWN, _CONTROL)}
    return SentencePieceTokenizer(model.SerializeToString(), _begin(file, default=not t5), controls)


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
