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
import gzip
import io
import json
import random
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import sacrebleu
import sentencepiece as spm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import T5Config
from transformers import T5ForConditionalGeneration as T5

PAD, EOS, UNK = 0, 1, 2
VOCAB_SIZE = 8192
SHAPES = {
    "target": {"d_model": 256, "d_ff": 768, "num_heads": 8, "d_kv": 32, "num_layers": 4, "num_decoder_layers": 3},
    "draft": {"d_model": 96, "d_ff": 256, "num_heads": 4, "d_kv": 32, "num_layers": 1, "num_decoder_layers": 1},
}
WARMUP_STEPS = 60
CURRICULUM = 0.1  # share of the time until pairs of every length take part
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


def new_model(role: str) -> T5:
    """Build an untrained T5 v1.1 whose first predictions are close to uniform."""
    config = T5Config(
        **SHAPES[role],
        vocab_size=VOCAB_SIZE,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = T5(config)
    # Newer transformers tie the head of a new T5 to its embeddings whatever the configuration says.
    model.lm_head.weight = nn.Parameter(torch.randn(VOCAB_SIZE, config.d_model) * 0.02)
    nn.init.normal_(model.shared.weight, std=0.3)
    return model.to(DEVICE)


def stack_states(model: T5, source: Tensor, inputs: Tensor) -> Tensor:
    """Run encoder and decoder, up to the vocabulary projection."""
    mask = source.ne(PAD)
    memory = model.encoder(input_ids=source, attention_mask=mask).last_hidden_state
    decoded = model.decoder(
        input_ids=inputs, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False
    )
    return decoded.last_hidden_state


compiled_stack_states = torch.compile(stack_states, dynamic=True)


def label_states(model: T5, batch: Batch) -> Tensor:
    """Return the decoder's states where there is a label: compiled and in bfloat16 while training."""
    if model.training:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            states = compiled_stack_states(model, batch.source, batch.inputs)
    else:
        states = stack_states(model, batch.source, batch.inputs)
    return states[batch.labels.ne(PAD)]


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of the vocabulary projection, in chunks that stay in cache.

    The forward pass makes the gradients too, so that no chunk's logits are kept. Products run in
    bfloat16, softmax and loss in float32. Labels are token ids or, for distillation, the teacher's
    states and head weight.
    """

    CHUNK = 256 if DEVICE.type == "cpu" else 16384

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss; keep the gradients of `states` and `weight`."""
        half, head = states.bfloat16(), weight.bfloat16()
        grad_states, grad_weight = torch.empty_like(half), torch.zeros_like(weight)
        total = torch.zeros((), device=states.device)
        for start in range(0, len(half), HeadLoss.CHUNK):
            part = slice(start, start + HeadLoss.CHUNK)
            log_q = (half[part] @ head.T).float().log_softmax(-1)
            if isinstance(labels, tuple):
                p = (labels[0][part].bfloat16() @ labels[1].bfloat16().T).float().softmax(-1)
                total -= torch.dot(p.flatten(), log_q.flatten())
                grad = log_q.exp_().sub_(p)
            else:
                ids = labels[part, None]
                total -= log_q.gather(1, ids).sum()
                grad = log_q.exp_().scatter_add_(1, ids, torch.full_like(log_q[:, :1], -1.0))
            grad = grad.div_(len(half)).bfloat16()
            grad_states[part] = grad @ head
            grad_weight += grad.T @ half[part]
        ctx.save_for_backward(grad_states.to(states.dtype), grad_weight)
        return total / len(half)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the kept gradients."""
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states * grad, grad_weight * grad, None


def batch_loss(model: T5, batch: Batch, teacher: T5 | None) -> Tensor:
    """Cross-entropy per token against the references or, given a teacher, against its distributions."""
    labels: Tensor | tuple[Tensor, Tensor] = batch.labels[batch.labels.ne(PAD)]
    if teacher is not None:
        with torch.no_grad():
            labels = (label_states(teacher, batch), teacher.lm_head.weight)
    return HeadLoss.apply(label_states(model, batch), model.lm_head.weight, labels)


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


def export(model: T5, role: str, out: Path) -> None:
    """Write a Hugging Face directory: bfloat16 weights, configuration, piece model."""
    folder = out / role
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": EOS}
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": VOCAB_SIZE,
        **SHAPES[role],
        **tokens,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(tokens, indent=2) + "\n")
    (folder / "spiece.model").write_bytes((out / "spiece.model").read_bytes())
    # The stacks' embed_tokens are `shared` itself.
    names = [name for name in model.state_dict() if "embed_tokens" not in name]
    weights = {name: model.state_dict()[name].bfloat16().cpu() for name in names}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(role: str, out: Path) -> T5:
    """Load an exported model, in float32."""
    model = new_model(role)
    model.load_state_dict(load_file(out / role / "model.safetensors"), strict=False)
    return model.requires_grad_(False)


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
