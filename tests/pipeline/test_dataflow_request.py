"""`--dry_run`: the whole request of a Dataflow job, its graph, and what is staged, on a storage emulator."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import types

import apache_beam as beam
import pytest
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline import generate
from pipeline.job import run as manifest
from pipeline.job.preflight import check_models
from pipeline.runners import options as runners
from pipeline.runners.dataflow.graph import describe
from pipeline.runners.supervise import Launch
from pipeline.settings import parse_command_line
from tests.pipeline import fakes
from tests.pipeline.helpers import files
from tests.support import emulator

IMAGE = "us-docker.pkg.dev/a-project/r/specbeam:tpu"
ONE_STAGE = (
    "Read/ReadAndTokenize/ParDo(_ReadShard)",
    "Decode/OneShardBatches",
    "Decode/RunInference/BeamML_RunInference",
    "Commit/ParDo(_CommitShard)/ParDo(_CommitShard)",
)


@pytest.fixture(scope="module")
def server():
    with emulator.python_emulator() as url:
        yield url


@pytest.fixture
def launch(server, models, sentences, command, tmp_path, monkeypatch):
    """Runs a dry run of the tiny job on a TPU; the result has `status`, `bucket` and the parsed `request`."""
    emulator.use(monkeypatch, server)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    bucket = emulator.make_bucket(server)
    for name in ("target", "draft"):
        emulator.upload_tree(server, bucket, f"models/{name}", models[name])
    emulator.upload(server, bucket, "data/input.jsonl", sentences.read_bytes())

    def run(*extra: str):
        path = tmp_path / "job.json"
        args = command(
            f"--config.input.pattern=gs://{bucket}/data/*.jsonl",
            f"--config.model.target=gs://{bucket}/models/target",
            f"--config.model.draft=gs://{bucket}/models/draft",
            "--config.model.mesh=data:1,model:4", "--runner=DataflowRunner", "--project=a-project", "--region=us-west4",
            f"--temp_location=gs://{bucket}/tmp", f"--sdk_container_image={IMAGE}", "--num_workers=1",
            "--worker_zone=us-west4-a", "--job_name=a-job", f"--dataflow_job_file={path}", "--dry_run", *extra,
            output=f"gs://{bucket}/out",
        )  # fmt: skip
        status = generate.main(args, fakes.factory())
        return types.SimpleNamespace(status=status, bucket=bucket, request=json.loads(path.read_text()))

    return run


def test_the_request_of_a_tpu_job(launch, server, capsys):
    before = fakes.loads
    done = launch("--accelerator=v5e:2x2")
    assert done.status == 0 and fakes.loads == before
    environment = done.request["environment"]
    (pool,) = environment["workerPools"]
    (container,) = pool["sdkHarnessContainerImages"]  # one environment: one process to a worker
    assert done.request["name"] == "a-job" and done.request["type"] == "JOB_TYPE_BATCH"
    assert environment["serviceOptions"] == ["worker_accelerator=type:tpu-v5-lite-podslice;topology:2x2"]
    assert environment["workerZone"] == "us-west4-a"
    assert {"use_runner_v2", "no_use_multiple_sdk_containers"} <= set(environment["experiments"])
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert container["containerImage"] == pool["workerHarnessContainerImage"] == IMAGE
    assert (pool["machineType"], pool["numWorkers"], pool["diskSizeGb"]) == ("ct5lp-hightpu-4t", 1, 100)
    assert pool["numThreadsPerWorker"] == 2
    assert pool["autoscalingSettings"] == {"algorithm": "AUTOSCALING_ALGORITHM_NONE"}
    options = environment["sdkPipelineOptions"]["options"]
    assert not options.get("dry_run") and not options.get("no_auth")  # else the request is not the real one

    staged = staged_files(server, done.bucket)
    assert {"pipeline.pb", "submission_environment_dependencies.txt"} <= staged.keys()
    assert {package["name"] for package in pool["packages"]} == staged.keys() - {"pipeline.pb"}
    assert hashlib.sha256(staged["pipeline.pb"]).hexdigest() == options["pipelineProtoHash"]
    proto = beam_runner_api_pb2.Pipeline.FromString(staged["pipeline.pb"])
    check_graph(proto)
    assert objects(server, done.bucket, "out/") == []  # neither manifest nor attempts
    shown = " ".join(capsys.readouterr().out.split())
    for what in ("shards 4, 4 of them to do", "shards per worker 4.0", "machine ct5lp-hightpu-4t in us-west4-a",
                 "workers 1, fixed", "shuffles 4", "of at most 20.0 MiB", "pipeline.pb"):  # fmt: skip
        assert what in shown, shown


def check_graph(proto):
    """Shards are numbers where they are shuffled; read, decoded and committed they pass from hand to hand in one stage."""
    graph = describe(proto)
    assert sorted(name.split("/")[0] for name in graph.shuffles) == ["Finish", "Finish", "Read", "Settled"]
    (stage,) = [stage for stage in graph.stages if ONE_STAGE[0] in stage]
    assert set(ONE_STAGE) <= set(stage), stage
    assert sum("RunInference" in " ".join(stage) for stage in graph.stages) == 1
    assert graph.size_bytes < 200_000


def test_prime_gets_hints_and_keeps_the_steps_together(launch, server):
    """Hints of the handler are those of every step between the shuffles: with different ones they would not be fused."""
    done = launch(
        "--accelerator=l4", "--config.model.mesh=", "--dataflow_service_options=enable_prime", "--max_num_workers=3"
    )
    assert done.status == 0
    proto = beam_runner_api_pb2.Pipeline.FromString(staged_files(server, done.bucket)["pipeline.pb"])
    hints = {
        transform.unique_name: dict(proto.components.environments[transform.environment_id].resource_hints)
        for transform in proto.components.transforms.values()
        if transform.environment_id
    }
    accelerator = hints["Decode/RunInference/BeamML_RunInference"][common_urns.resource_hints.ACCELERATOR.urn]
    assert accelerator == b"type:nvidia-l4;count:1;install-nvidia-driver:5xx"
    for name in ONE_STAGE:
        assert hints[name] == hints["Decode/RunInference/BeamML_RunInference"], name
        assert int(hints[name][common_urns.resource_hints.MIN_RAM_BYTES.urn]) > 8 << 30
    assert hints["Finish/ReadFooters"] == {}
    assert done.request["environment"]["serviceOptions"] == ["enable_prime"]


def test_a_bucket_that_is_not_there(launch, capsys):
    with pytest.raises(FileNotFoundError):  # no request was written
        launch("--accelerator=v5e:2x2", "--temp_location=gs://no-such-bucket/tmp")
    assert "no-such-bucket" in capsys.readouterr().err


def staged_files(server: str, bucket: str) -> dict[str, bytes]:
    """Contents of what lies in the job's own folder, by name."""
    names = objects(server, bucket, "tmp/")
    assert len({name.rsplit("/", 1)[0] for name in names}) == 1
    client = emulator._client(server)
    return {name.rsplit("/", 1)[1]: client.bucket(bucket).blob(name).download_as_bytes() for name in names}


def objects(server: str, bucket: str, prefix: str) -> list[str]:
    return [blob.name for blob in emulator._client(server).list_blobs(bucket, prefix=prefix)]


def test_a_local_dry_run_shows_the_plan_and_begins_nothing(command, tmp_path, capsys):
    before = fakes.loads
    assert generate.main(command("--dry_run"), fakes.factory()) == 0
    assert fakes.loads == before
    assert [name for name in files(tmp_path / "out") if not name.startswith("attempts/")] == []
    shown = " ".join(capsys.readouterr().out.split())
    assert "shards 4, 4 of them to do" in shown and "30 records" in shown and "nothing was begun" in shown
    assert generate.main(command(), fakes.factory()) == 0
    assert generate.main(command("--dry_run"), fakes.factory()) == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_graph_does_not_grow_with_its_shards(command):
    """10^8 examples are 390,625 shards: a range where none is done, and a bounded number of them where every other is."""
    parsed = parse_command_line(command())
    run = manifest.prepare(parsed.config, parsed.output, check_models(parsed.config), launch=Launch(dry_run=True))

    def size(pending) -> int:
        pipeline = beam.Pipeline(options=runners.beam_options([]))
        generate.build_pipeline(pipeline, run=dataclasses.replace(run, pending=tuple(pending)))
        return pipeline.to_runner_api().ByteSize()

    small = size(range(4))
    # What is pickled is compressed, and so not of one size: 108 bytes were seen. A list of shards takes far more.
    assert abs(size(range(390_625)) - small) < 1000
    assert size(range(0, 390_625, 2)) - small < 50_000


@pytest.mark.parametrize("step, most", [(2, 10), (3, 1), (1, 5)])
def test_ranges_are_bounded_and_lose_nothing(step, most):
    wanted = [*range(0, 300, step), *range(1000, 1300, step), 5000]
    found = manifest.ranges(wanted, most=most)
    assert len(found) <= most
    covered = [shard for first, end in found for shard in range(first, end)]
    assert len(covered) == len(set(covered)) and covered == sorted(covered)
    assert set(wanted) <= set(covered) <= set(range(5001))
    if most >= 3:  # the widest gaps are left out
        assert not set(range(400, 1000)) & set(covered) and not set(range(1300, 5000)) & set(covered)


WORKER = """
import importlib.util, sys
find = importlib.util.find_spec   # the image has no TensorFlow unless asked for
importlib.util.find_spec = lambda name, *rest: None if name.startswith("tensorflow") else find(name, *rest)
import jax, jax.numpy as jnp
import jax.monitoring
import decoding
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
decoding.keep_programs(sys.argv[1])
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(events.count("cache_hits"), events.count("cache_misses"))
"""


@pytest.mark.slow
def test_programs_are_compiled_once_for_all_workers(server, monkeypatch):
    emulator.use(monkeypatch, server)
    bucket = emulator.make_bucket(server)
    command = [sys.executable, "-c", WORKER, f"gs://{bucket}/specbeam/programs"]
    counts = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    (first_hits, compiled), (hits, compiled_again) = counts
    assert first_hits == compiled_again == "0" and hits == compiled != "0"
    assert len(objects(server, bucket, "specbeam/programs/")) == int(compiled)
