"""`--dry_run`: a job is planned, checked and translated for its runner, and what would happen is printed.

For Dataflow the request is built and its files are staged; see `pipeline.runners.dataflow.request`. Other runners have
nothing to prepare: their jobs are shown as they would be handed over.
"""

import pathlib

import apache_beam as beam
from apache_beam.options.pipeline_options import DebugOptions
from rich.console import Console

from pipeline.job.run import Run
from pipeline.job.terminal import facts
from pipeline.runners import options as runners
from pipeline.runners.dataflow import options as dataflow
from pipeline.runners.dataflow.graph import Graph, describe
from pipeline.runners.dataflow.request import GRAPH_LIMIT_BYTES, REQUEST_LIMIT_BYTES, JobRequest, build_request

_REQUEST_FILE = "dataflow_job.json"


def dry_run(pipeline: beam.Pipeline, run: Run, console: Console) -> int:
    """Prints what a job would be. Returns the exit status: 1 where Dataflow would not take it."""
    options, rows, problems = pipeline.options, _plan_rows(run, pipeline), []
    if not dataflow.is_dataflow(options):
        console.print(facts([*rows, *_graph_rows(describe(pipeline.to_runner_api()))]))
        console.print("Dry run: nothing was begun.")
        return 0
    request = build_request(pipeline)
    path = pathlib.Path(options.view_as(DebugOptions).dataflow_job_file or _REQUEST_FILE)
    path.write_text(request.body, encoding="utf-8")
    console.print(facts([*rows, *_graph_rows(request.graph), *_worker_rows(request), *_request_rows(request)]))
    for what, size, limit in (
        ("request", len(request.body), REQUEST_LIMIT_BYTES),
        ("graph", request.graph.size_bytes, GRAPH_LIMIT_BYTES),
    ):
        if size > limit:
            problems.append(f"the {what} has {_bytes(size)}; Dataflow takes {_bytes(limit)}")
    for problem in problems:
        console.print(f"error: {problem}", style="bold red", markup=False)
    console.print(f"Dry run: nothing was submitted. The request: {path}", soft_wrap=True, highlight=False, markup=False)
    return 1 if problems else 0


def _plan_rows(run: Run, pipeline: beam.Pipeline) -> list[tuple[str, str]]:
    plan, workers = run.plan, runners.num_workers(pipeline.options)
    records = "not counted" if plan.num_records is None else f"{plan.num_records:,}"
    per_worker = f"{len(run.pending) / workers:,.1f} for each of {workers:,} workers"
    return [
        ("runner", runners.runner_of(pipeline.options)),
        ("output", run.folder.root),
        ("input", f"{len(plan.files):,} files, {records} records"),
        ("shards", f"{plan.num_shards:,}, {len(run.pending):,} of them to do"),
        ("shards per worker", per_worker),
    ]


def _graph_rows(graph: Graph) -> list[tuple[str, str]]:
    shuffles = f"{len(graph.shuffles)}: {', '.join('/'.join(name.split('/')[:2]) for name in graph.shuffles)}"
    return [
        ("steps", f"{graph.steps}, fused to {len(graph.stages)} stages"),
        ("shuffles", shuffles),
    ]


def _worker_rows(request: JobRequest) -> list[tuple[str, str]]:
    environment = request.job["environment"]
    (pool,) = environment["workerPools"]
    services = environment.get("serviceOptions", [])
    otherwise = "by the steps' resource hints" if "enable_prime" in services else "none"
    accelerator = next((s.partition("=")[2] for s in services if s.startswith("worker_accelerator=")), otherwise)
    scaling = pool.get("autoscalingSettings", {})
    fixed = scaling.get("algorithm") == "AUTOSCALING_ALGORITHM_NONE"
    most = scaling.get("maxNumWorkers", "as many as Dataflow sees fit")
    first = pool.get("numWorkers", "Dataflow chooses")
    workers = f"{first}, fixed" if fixed else f"{first} at first, at most {most}"
    where = environment.get("workerZone") or environment.get("workerRegion") or "the job's region"
    return [
        ("workers", workers),
        ("machine", f"{pool.get('machineType', 'Dataflow chooses')} in {where}"),
        ("accelerator", accelerator),
        ("image", ", ".join(sorted({image["containerImage"] for image in pool["sdkHarnessContainerImages"]}))),
        ("threads per process", str(pool["numThreadsPerWorker"])),
        ("experiments", ", ".join(environment["experiments"])),
    ]


def _request_rows(request: JobRequest) -> list[tuple[str, str]]:
    files = ", ".join(f"{name} ({_bytes(size)})" for name, size in sorted(request.staged.items()))
    return [
        ("request", f"{_bytes(len(request.body))} of at most {_bytes(REQUEST_LIMIT_BYTES)}"),
        ("graph", f"{_bytes(request.graph.size_bytes)} of at most {_bytes(GRAPH_LIMIT_BYTES)}"),
        ("staged in", request.staging_location),
        ("staged files", files),
    ]


def _bytes(size: int) -> str:
    return f"{size / 1024:,.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):,.1f} MiB"
