"""How fast a job's passes are: predicted for a slice, measured on this machine."""

import dataclasses

import jax
import numpy as np

from decoding import sharding, theory
from decoding.checkpoints import architecture
from decoding.checkpoints.load import DTYPES
from decoding.programs import max_positions
from pipeline.benchmarking.passes import PassTimer
from pipeline.job.preflight import models_of
from pipeline.planning import chips, roofline
from pipeline.planning.command import PlanOptions
from pipeline.planning.jobs import SliceJob, abstract_models, inner
from pipeline.settings import JobConfig

_LONGEST = 16  # γ that the best is looked for among


def predict(job: SliceJob, options: PlanOptions) -> dict:
    """Rooflines of the passes, and what follows from them for the given α."""
    chip, ways, gamma = job.topology.chip, job.mesh.shape["model"], max(job.config.gammas)

    def seconds(model, positions: int) -> float:
        if model.config is None:  # a table, or copying
            return 0.0
        shared = 1 if sharding.mesh_of(model) is None else ways
        return job.work(model, positions).seconds(chip, shared, options.overhead)

    plain = seconds(job.target, 1)
    draft = seconds(job.draft, 1) if job.draft is not None else 0.0
    rate = lambda gamma: theory.expected_tokens(options.alpha, gamma) / (gamma * draft + seconds(job.target, gamma + 1))
    best = max(range(_LONGEST + 1) if job.draft is not None else [0], key=rate)
    predicted = {
        "target_seconds": plain,
        "verify_seconds": seconds(job.target, gamma + 1),
        "draft_seconds": draft,
        "c": draft / plain,
        "gamma": gamma,
        "alpha": options.alpha,
        "speedup": rate(gamma) * plain,
        "best_gamma": best,
        "best_speedup": rate(best) * plain,
        "tokens_per_second": job.config.num_slots * rate(gamma),
        "plain_tokens_per_second": job.config.num_slots / plain,
    }
    used = job.mesh.size
    if options.price:
        for name in ("", "plain_"):
            hours = 1e6 / predicted[f"{name}tokens_per_second"] / 3600
            predicted[f"{name}cost_per_million_tokens"] = options.price * used * hours
    return predicted


def measured(config: JobConfig, options: PlanOptions) -> dict:
    """Seconds of single passes of the config's models here, beside the roofline where the chip's peaks are known."""
    gamma, decoding_config = max(config.decoding.gammas), config.decoding
    slots = options.num_slots or decoding_config.num_slots
    device = jax.devices()[0]
    chip = chips.gpu(device.device_kind)
    target, draft = abstract_models(config)
    room = max_positions(dataclasses.replace(decoding_config, num_slots=slots))
    result = {"device": device.device_kind, "num_slots": slots, "passes": []}
    seconds, models = {}, models_of(dataclasses.replace(config.model, mesh=""))
    for name, shape, widths in (("target", target, [1, gamma + 1]), ("draft", draft, [1])):
        if shape is None or shape.config is None:
            continue
        path = getattr(config.model, name)
        dtype = config.model.dtype
        if "preset:" in path:
            model = architecture.build(shape.config, DTYPES[dtype])
        else:
            model = models.load_target() if name == "target" else models.load_draft()
        timer = PassTimer(
            model,
            num_slots=slots,
            input_bucket=decoding_config.max_input_tokens,
            max_positions=room,
            positions=sorted(set(widths)),
        )
        example = np.full(decoding_config.max_input_tokens, max(model.eos_id, 2) + 1).tolist()
        timed = timer.seconds(example, decoding_config.max_decode_tokens, sorted(set(widths)))
        for width in sorted(set(widths)):
            seconds[name, width] = timed[width]
            row = {"model": name, "positions": width, "seconds": timed[width]}
            if chip:
                mesh = jax.sharding.AbstractMesh((1, 1), ("data", "model"))
                work = roofline.step_work(
                    sharding.shard(inner(shape), mesh),
                    mesh,
                    slots=slots,
                    positions=width,
                    input_length=decoding_config.max_input_tokens,
                    max_decode_tokens=decoding_config.max_decode_tokens,
                    max_positions=room,
                )
                row |= {"roofline": work.seconds(chip, 1), "ratio": timed[width] / work.seconds(chip, 1)}
            result["passes"].append(row)
    if ("draft", 1) in seconds:
        c = seconds["draft", 1] / seconds["target", 1]
        cost = seconds["target", gamma + 1] / seconds["target", 1]
        result |= {
            "c": c,
            "gamma": gamma,
            "alpha": options.alpha,
            "speedup": theory.walltime_improvement_measured(options.alpha, gamma, c, cost),
        }
    return result
