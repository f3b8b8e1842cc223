"""BLEU of both models, and alpha of the pair over texts that the target makes."""

import argparse
import json
import random
from collections.abc import Sequence

import sacrebleu
import sentencepiece as spm
import torch
from tqdm import tqdm
from transformers import T5ForConditionalGeneration as T5

from translation_pair.data import EOS, PAD, Pair, Row, collate, encode_rows, group_by_length, pad
from translation_pair.model import SHAPES, label_states, load


@torch.no_grad()
def translate(model: T5, sources: Sequence[list[int]], temperature: float) -> list[list[int]]:
    """Translate tokenized sources, in their order: greedily (temperature 0) or by sampling."""
    outputs: list[list[int]] = [[]] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for start in tqdm(range(0, len(order), 64), desc="translate", mininterval=10):
        part = order[start : start + 64]
        ids = pad([sources[i] for i in part])
        limit = min(256, 2 * ids.shape[1] + 16)
        rows = model.generate(input_ids=ids, attention_mask=ids.ne(PAD), max_new_tokens=limit, **choice)
        for i, row in zip(part, rows[:, 1:].tolist()):
            outputs[i] = row[: row.index(EOS) + 1] if EOS in row else row
    return outputs


@torch.no_grad()
def acceptance(target: T5, draft: T5, pairs: Sequence[Pair], temperature: float) -> tuple[float, int]:
    """Return alpha, the mean of sum_x min(p(x), q(x)) over target-made texts, and their number of tokens."""
    total, count = 0.0, 0
    for group in group_by_length(pairs, 2048, 0):
        batch = collate(group)
        p, q = (model.lm_head(label_states(model, batch)) for model in (target, draft))
        if temperature:
            overlap = torch.minimum((p / temperature).softmax(-1), (q / temperature).softmax(-1)).sum(-1)
        else:
            overlap = p.argmax(-1).eq(q.argmax(-1)).float()
        total += overlap.sum().item()
        count += len(overlap)
    return total / count, count


def evaluate(pieces: spm.SentencePieceProcessor, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Report both models' BLEU and the pair's alpha, and show some translations."""
    models = {role: load(role, args.out).eval() for role in SHAPES}
    sources = [pair.source for pair in encode_rows(pieces, rows)]
    report: dict[str, float] = {}
    greedy: dict[str, list[list[int]]] = {}
    for role, model in models.items():
        greedy[role] = translate(model, sources, temperature=0.0)
        bleu = sacrebleu.corpus_bleu(pieces.decode(greedy[role]), [[reference for _, reference in rows]])
        report[f"{role} parameters"] = sum(parameter.numel() for parameter in model.parameters())
        report[f"{role} BLEU"] = bleu.score
    texts = {1.0: translate(models["target"], sources, temperature=1.0), 0.0: greedy["target"]}
    for temperature, made in texts.items():
        pairs = [Pair(*pair) for pair in zip(sources, made)]
        alpha, tokens = acceptance(models["target"], models["draft"], pairs, temperature)
        report |= {f"alpha at T={temperature:g}": alpha, f"tokens at T={temperature:g}": tokens}
    for i in random.Random(0).sample(range(len(rows)), min(args.shown, len(rows))):
        print(f"\nsource:    {rows[i][0]}\nreference: {rows[i][1]}")
        for role in SHAPES:
            print(f"{role + ':':10} {pieces.decode(greedy[role][i])}")
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
