"""The plan of a job on a slice: what each chip holds, what each program does, and how fast it may be."""

import dataclasses
import time

from decoding import sharding
from pipeline.planning import hlo
from pipeline.planning.command import PlanOptions
from pipeline.planning.jobs import advice, most_slots, needs, slice_job
from pipeline.planning.speed import predict
from pipeline.settings import JobConfig


def plan_slice(config: JobConfig, options: PlanOptions) -> dict:
    """The whole plan as plain data."""
    began = time.monotonic()
    job = slice_job(config, options)
    which = "job" if options.prepare else options.programs
    if options.num_slots is None:
        job, held, programs = most_slots(job, which)
    else:
        held, programs = needs(job, which)
    limit = job.limit
    short = held.total - limit
    result = {
        "topology": job.topology.name,
        "chips": job.mesh.size,
        "mesh": dict(job.mesh.shape),
        "num_slots": job.config.num_slots,
        "draft": "none" if job.draft is None else "split" if sharding.mesh_of(job.draft) else "on every chip",
        "undivided": sharding.undivided(job.target.config, job.mesh),
        "memory": dataclasses.asdict(held) | {"total": held.total, "limit": limit, "fits": short <= 0},
        "predicted": predict(job, options),
        "programs": {
            name if isinstance(name, str) else " ".join(map(str, name)): _program(name, program, job.caches)
            for name, program in programs.items()
        },
        "seconds": time.monotonic() - began,
    }
    if options.prepare:
        mesh = ",".join(f"{axis}:{size}" for axis, size in job.mesh.shape.items())
        result["prepared"] = {"directory": options.prepare, "programs": len(programs), "mesh": mesh}
    if short > 0:
        result["memory"] |= {"short": short, "advice": advice(job, short)}
    return result


def _program(name, program, caches) -> dict:
    """What is known of one compiled program."""
    stats = program.memory_analysis()
    told = {"argument_bytes": stats.argument_size_in_bytes, "temporary_bytes": stats.temp_size_in_bytes}
    if name[0] == "chunk":
        read = hlo.Program(program.as_text())
        traffic = read.collectives()
        copied, moved = read.copies(caches)
        told |= {"cache_copies": copied, "cache_moves": moved}
        told |= {"collectives": traffic.counts, "collective_bytes": traffic.bytes}
    return told
