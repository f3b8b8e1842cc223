"""The training itself: steps, a look at α now and then, the best weights kept, and a state from which it goes on."""

import json
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from decoding.checkpoints import CheckpointError
from decoding.checkpoints import storage as files
from decoding.training.checkpoint import pack, unpack
from decoding.training.trainer import Text, TrainState
from decoding.training.weights import Weights
from decoding.version import __version__
from pipeline.distilling.prepare import Distillation
from transforms import storage
from transforms.folder import FolderError
from transforms.statistics.intervals import NUM_REPLICATES, estimate, poisson_weights, ratio

RECORD, STATE = "distill.json", "training/state.safetensors"
_SYNCHRONISE_STEPS = 16  # between two losses that are waited for


def train(job: Distillation, say: Callable[[str], None]) -> dict:
    """Trains to the end, or goes on to it. Returns the record that the draft's directory then has.

    Args:
      job: what to do.
      say: told in a few words what goes on.

    Raises:
      FolderError: the output folder holds something else.
    """
    recipe, trainer, settings = job.config.distill.recipe, job.trainer, job.config.distill
    if finished := _finished(job):
        return finished
    state, about = _begin(job)
    history, first, texts = about["history"], int(state.step), job.texts.texts
    if not history:
        say("measuring α before the first step")
        history.append({"step": 0, "loss": None, "alpha": _alpha(job, state)})
    if recipe.target_top_k:
        texts = trainer.with_likely(texts, lambda done: say(f"the target's likeliest tokens, text {done:,} of {len(texts):,}"))
    losses: list[jax.Array] = []
    began = time.monotonic()
    for batch, cut in _batches(job, texts, first):
        step = first + len(losses) + 1
        state, loss = trainer.step(state, batch, cut, recipe.own(step))
        losses.append(loss)
        if step % _SYNCHRONISE_STEPS == 0:
            left = (time.monotonic() - began) / len(losses) * (recipe.steps - step)
            loss.block_until_ready()
            shown = ", ".join(f"{alpha['mean']:.3f}" for alpha in history[-1]["alpha"])
            say(f"training step {step:,} of {recipe.steps:,}, loss {float(loss):.3f}, α {shown}, {left / 60:.0f} minutes left")
        if step % settings.evaluate_steps == 0 or step == recipe.steps:
            recent = losses[-settings.evaluate_steps :]
            history.append({"step": step, "loss": float(np.mean(jax.device_get(recent))), "alpha": _alpha(job, state)})
            scores = [_score(entry) for entry in history]
            if scores[-1] == max(scores):
                _write(job, state)
            files.write_bytes(_path(job, STATE), pack(state, {"identity": job.identity, "history": history}))
            if settings.patience and len(scores) - 1 - scores.index(max(scores)) >= settings.patience:
                break
    record = _record(job, history)
    files.write_bytes(_path(job, RECORD), (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return record


def _batches(job: Distillation, texts: Sequence[Text], done: int):
    """Batches from the one after the first `done` on, epoch after epoch, as many as the recipe still has steps."""
    epoch, left = 0, job.config.distill.recipe.steps - done
    while left > 0:
        for batch, cut, _ in job.trainer.batches(texts, epoch):
            if done > 0:
                done -= 1
            elif left > 0:
                left -= 1
                yield batch, cut
        epoch += 1


def _alpha(job: Distillation, state: TrainState) -> list[dict]:
    """α on the held-out texts of every law, with its interval over examples."""
    beta, count = (np.zeros(len(job.held_out.texts)) for _ in range(2))
    for batch, cut, numbers in job.trainer.batches(job.held_out.texts, None):
        beta[numbers] = job.trainer.beta(state.tensors, batch, cut).sum(axis=1)[: len(numbers)]
        count[numbers] = batch.lengths[: len(numbers)]
    weights = np.stack([np.append(1, poisson_weights(example, NUM_REPLICATES)) for example in job.held_out.example_ids])
    results = []
    for law in job.laws:
        of_law = np.array([text.law == law for text in job.held_out.texts])
        texts, used = int(of_law.sum()), weights[of_law]
        alpha = estimate(ratio(beta[of_law] @ used, count[of_law] @ used), texts, proportion=True)
        results.append({**law._asdict(), **(alpha or {}), "texts": texts, "tokens": int(count[of_law].sum())})
    return results


def _score(entry: dict) -> float:
    """What is best where it is largest: the mean α of the laws that there are texts of."""
    return float(np.mean([alpha["mean"] for alpha in entry["alpha"] if "mean" in alpha] or [math.nan]))


def _begin(job: Distillation) -> tuple[TrainState, dict]:
    state = job.trainer.begin(job.start)
    try:
        data = storage.read_bytes(_path(job, STATE))
    except FileNotFoundError:
        names = [name for name in storage.list_tree(job.output) if not name.startswith(("generated/", "training/"))]
        if names:
            held = f"holds other files, for example {names[0]!r}; give an empty folder"
            raise FolderError(f"the output folder {job.output!r} {held}") from None
        return state, {"history": []}
    try:
        state, about = unpack(data, state, _path(job, STATE))
    except CheckpointError as error:
        raise FolderError(f"the output folder {job.output!r} cannot be continued: {error}") from error
    _refuse_other(job, about["identity"])
    return state, about


def _finished(job: Distillation) -> dict | None:
    try:
        record = json.loads(storage.read_bytes(_path(job, RECORD)))
    except FileNotFoundError:
        return None
    _refuse_other(job, record["identity"])
    return record


def _refuse_other(job: Distillation, identity: dict) -> None:
    differing = [name for name in job.identity if identity.get(name) != job.identity[name]]
    if differing:
        raise FolderError(
            f"the output folder {job.output!r} belongs to another training, whose {', '.join(differing)} differ; give another "
            "folder, or the settings that it was begun with"
        )


def _write(job: Distillation, state: TrainState) -> None:
    dtype = np.float32 if job.config.distill.dtype == "float32" else jax.numpy.bfloat16
    Weights(job.start.raw, jax.device_get(state.tensors)).write(job.output, job.beside, dtype)


def _record(job: Distillation, history: Sequence[dict]) -> dict:
    best = max(history[1:], key=_score)
    settings = job.config.distill
    return {
        "specbeam": __version__,
        "target": job.config.model.target,
        "generations": list(settings.folders),
        "texts": len(job.texts.texts),
        "tokens": job.texts.tokens,
        "left_out": job.left_out,
        "parameters": job.start.size,
        "steps": history[-1]["step"],
        "best_step": best["step"],
        "alpha": {"before": history[0]["alpha"], "after": best["alpha"]},
        "history": list(history),
        "identity": job.identity,
    }


def _path(job: Distillation, name: str) -> str:
    return storage.join(job.output, name)
