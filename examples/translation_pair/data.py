"""Pairs of texts as token ids, in batches."""

import argparse
import gzip
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sentencepiece as spm
import torch
import torch.nn.functional as F
from torch import Tensor

PAD, EOS, UNK = 0, 1, 2
VOCAB_SIZE = 8192
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Row = tuple[str, str]  # source and reference text


class Pair(NamedTuple):
    """Token ids of a source and of its translation, both with the closing EOS."""

    source: list[int]
    reference: list[int]


class Batch(NamedTuple):
    """Padded token ids; `inputs` are the `labels` shifted right behind the start token."""

    source: Tensor
    inputs: Tensor
    labels: Tensor


def read_rows(path: Path, args: argparse.Namespace) -> list[Row]:
    """Read the source and reference texts of a JSON lines file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row[args.source_field], row[args.reference_field]) for row in rows]


def train_tokenizer(rows: Sequence[Row], path: Path) -> None:
    """Train one unigram piece model on both sides of the corpus; rare characters become bytes."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=(text for row in rows for text in row),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=0.9998,
        normalization_rule_name="nmt_nfkc",
        max_sentence_length=8192,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())


def encode_rows(pieces: spm.SentencePieceProcessor, rows: Sequence[Row], max_length: int | None = None) -> list[Pair]:
    """Tokenize rows; with `max_length`, drop pairs with a longer side."""
    sources, references = (pieces.encode(list(texts), add_eos=True) for texts in zip(*rows))
    pairs = [Pair(*pair) for pair in zip(sources, references)]
    return [pair for pair in pairs if max_length is None or max(map(len, pair)) <= max_length]


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Right-pad rows of token ids into one tensor on the device."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], device=DEVICE)


def collate(pairs: Sequence[Pair]) -> Batch:
    """Pad pairs into a batch."""
    labels = pad([pair.reference for pair in pairs])
    return Batch(pad([pair.source for pair in pairs]), F.pad(labels[:, :-1], (1, 0), value=PAD), labels)


def group_by_length(pairs: Sequence[Pair], tokens: int, seed: int) -> list[list[Pair]]:
    """Cut pairs of similar lengths into batches of at most `tokens` padded tokens a side, in random order."""
    rng = random.Random(seed)
    order = sorted(pairs, key=lambda pair: (len(pair.reference) + len(pair.source), rng.random()), reverse=True)
    batches: list[list[Pair]] = [[]]
    width = 0
    for pair in order:
        width = max(width, *map(len, pair))
        if batches[-1] and width * (len(batches[-1]) + 1) > tokens:
            batches.append([])
            width = max(map(len, pair))
        batches[-1].append(pair)
    rng.shuffle(batches)
    return batches
