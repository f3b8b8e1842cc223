"""Train a translation pair for speculative decoding: a small T5 target and its distilled draft.

From one parallel corpus in JSON lines (gzipped or not) the script makes

1. a sentencepiece model, shared by both languages and both models,
2. a target, a T5 v1.1 encoder-decoder trained on the references,
3. a draft, a much smaller T5 v1.1 trained to imitate the target's distributions,
4. a report on the test split: BLEU of greedy translations and alpha, the mean acceptance
   probability of the draft's tokens, at temperatures 1 and 0.

Both models are written as Hugging Face directories. Training is limited by time: the learning
rate reaches zero when --target-minutes and --draft-minutes are used up, not counting pauses of
the process. A stopped run (SIGTERM saves first) goes on from its last checkpoint when the same
command is given again. A GPU is used when PyTorch finds one.
"""

import argparse
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece as spm
import torch
from tqdm import tqdm
from transformers import T5ForConditionalGeneration as T5
from translation_pair.data import DEVICE, Pair, collate, encode_rows, group_by_length, read_rows, train_tokenizer
from translation_pair.evaluation import evaluate
from translation_pair.model import batch_loss, export, load, new_model

WARMUP_STEPS = 60
CURRICULUM = 0.1  # share of the time until pairs of every length take part


@dataclass
class Progress:
    """How far a training run has come; part of its checkpoint."""

    seconds: float = 0.0
    step: int = 0
    epoch: int = 0
    next_batch: int = 0
    tokens: int = 0


def make_optimizers(model: T5, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and position biases.

    T5 does not divide attention scores by sqrt(d_kv). Its query matrices carry that factor, and so
    do their updates.
    """
    queries, matrices, others = [], [], []
    for name, parameter in model.named_parameters():
        if ".block." not in name or parameter.ndim != 2 or "relative_attention_bias" in name:
            others.append(parameter)
        else:
            (queries if name.endswith(".q.weight") else matrices).append(parameter)
    groups = [{"params": matrices}, {"params": queries, "lr": muon_lr * model.config.d_kv**-0.5}]
    muon = torch.optim.Muon(groups, lr=muon_lr, weight_decay=0.02)
    adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for group in (*muon.param_groups, *adam.param_groups):
        group["peak_lr"] = group["lr"]
    return [muon, adam]


def batches_from(pairs: Sequence[Pair], tokens: int, seed: int, progress: Progress) -> Iterator[list[Pair]]:
    """Yield batches without end, epoch after epoch, from where `progress` stands."""
    while True:
        batches = group_by_length(pairs, tokens, seed + progress.epoch)
        while progress.next_batch < len(batches):
            progress.next_batch += 1
            yield batches[progress.next_batch - 1]
        progress.epoch, progress.next_batch = progress.epoch + 1, 0


@torch.no_grad()
def mean_loss(model: T5, pairs: Sequence[Pair], teacher: T5 | None) -> float:
    """Cross-entropy per token over all pairs."""
    total = count = 0.0
    for group in group_by_length(pairs, 4096, 0):
        tokens = sum(len(pair.reference) for pair in group)
        total += batch_loss(model, collate(group), teacher).item() * tokens
        count += tokens
    return total / count


def train(
    role: str,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    minutes: float,
    args: argparse.Namespace,
    teacher: T5 | None = None,
) -> None:
    """Train one model for some minutes, saving and exporting it on the way."""
    model = new_model(role)
    optimizers = make_optimizers(model, args.muon_lr, args.adam_lr)
    progress = Progress()
    checkpoint = args.out / f"{role}.checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=DEVICE)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(optimizer_state)
        progress = Progress(**state["progress"])

    def save() -> None:
        tqdm.write(f"{role} {asdict(progress)} validation loss {mean_loss(model, validation, teacher):.4f}")
        optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
        state = {"model": model.state_dict(), "optimizers": optimizer_states, "progress": asdict(progress)}
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        export(model, role, args.out)

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    saved_at = progress.seconds
    durations: deque[float] = deque(maxlen=50)
    losses: deque[float] = deque(maxlen=50)
    bar = tqdm(desc=role, unit="step", initial=progress.step, mininterval=10)
    for group in batches_from(pairs, args.batch_tokens, args.seed, progress):
        share = progress.seconds / (minutes * 60)
        if share >= 1 or stopped:
            break
        # Short pairs first: on them cross-attention soon learns to align.
        if max(len(ids) for pair in group for ids in pair) > 16 + args.max_length * share / CURRICULUM:
            continue
        started = time.perf_counter()
        loss = batch_loss(model, collate(group), teacher)
        loss.backward()
        rate = min(1.0, (progress.step + 1) / WARMUP_STEPS) * (1 - share)
        for optimizer in optimizers:
            for param_group in optimizer.param_groups:
                param_group["lr"] = param_group["peak_lr"] * rate
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        # A pause of the process must not use up the schedule.
        durations.append(time.perf_counter() - started)
        progress.seconds += min(durations[-1], 3 * statistics.median(durations))
        progress.step += 1
        progress.tokens += sum(len(pair.reference) for pair in group)
        bar.set_postfix(loss=f"{statistics.mean(losses):.3f}", epoch=progress.epoch, refresh=False)
        bar.update()
        if progress.seconds - saved_at > args.save_minutes * 60:
            save()
            saved_at = progress.seconds
    bar.close()
    if progress.seconds > saved_at:
        save()
    if stopped:
        raise SystemExit(f"{role}: stopped before its time was used up")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for name in ("train", "validation", "test"):
        add(f"--{name}", type=Path, required=True, metavar="FILE", help=f"{name} split, JSON lines, .gz or not")
    add("--out", type=Path, required=True, metavar="FOLDER", help="checkpoints, target/, draft/ and report.json")
    add("--source-field", default="en", help="field of the text to translate (default: %(default)s)")
    add("--reference-field", default="de", help="field of its translation (default: %(default)s)")
    stages = ("target", "draft", "evaluate")
    add("--stages", nargs="+", choices=stages, default=stages, help="what to do (default: all)")
    add("--target-minutes", type=float, default=80, help="training time of the target (default: %(default)s)")
    add("--draft-minutes", type=float, default=20, help="training time of the draft (default: %(default)s)")
    add("--save-minutes", type=float, default=10, help="between checkpoints (default: %(default)s)")
    add("--batch-tokens", type=int, default=4096, help="padded tokens a side in a batch (default: %(default)s)")
    add("--max-length", type=int, default=128, help="drop longer training pairs (default: %(default)s tokens)")
    add("--muon-lr", type=float, default=0.02, help="peak rate of the blocks' matrices (default: %(default)s)")
    add("--adam-lr", type=float, default=4e-3, help="peak rate of the other parameters (default: %(default)s)")
    add("--compile", action="store_true", help="compile the models: a minute once, then a fifth faster")
    add("--shown", type=int, default=10, help="test translations to show (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Run the chosen stages in order."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    if not args.compile:
        torch.compiler.set_stance("force_eager")
    rows = read_rows(args.train, args)
    piece_model = args.out / "spiece.model"
    if not piece_model.exists():
        train_tokenizer(rows, piece_model)
    pieces = spm.SentencePieceProcessor(model_file=str(piece_model))
    pairs = encode_rows(pieces, rows, args.max_length)
    validation = encode_rows(pieces, read_rows(args.validation, args), args.max_length)
    if "target" in args.stages:
        train("target", pairs, validation, args.target_minutes, args)
    if "draft" in args.stages:
        teacher = load("target", args.out).train()  # in training mode it is fast; there is no dropout
        train("draft", pairs, validation, args.draft_minutes, args, teacher)
    if "evaluate" in args.stages:
        evaluate(pieces, read_rows(args.test, args), args)


if __name__ == "__main__":
    main()
