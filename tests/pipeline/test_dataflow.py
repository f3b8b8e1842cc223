"""Dataflow's options: what `--accelerator` stands for, what is filled in, and what is refused at launch."""

import logging
import pathlib
import re
import shlex

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
    _BeamArgumentParser,
)

import decoding
from pipeline import generate
from pipeline.runners import options as runners
from pipeline.runners.dataflow import options as dataflow
from pipeline.runners.dataflow.accelerators import ACCELERATORS, by_request
from pipeline.settings import ConfigError, parse_command_line
from tests.pipeline import fakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ("--runner=DataflowRunner", "--project=a-project", "--region=us-west4", "--temp_location=gs://bucket/tmp")
IMAGE = "--sdk_container_image=us-docker.pkg.dev/a-project/r/specbeam:1"
TPU = (*BASE, IMAGE, "--worker_zone=us-west4-a", "--num_workers=4")
RAW = "--dataflow_service_options=worker_accelerator=type:"


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch, tmp_path):
    """Neither gcloud nor the environment answer for what is left out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CLOUDSDK_COMPUTE_REGION", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


def options_of(*args: str):
    return runners.beam_options([*args, "--dry_run=True"])


def settings(options) -> dict:
    cloud, workers, debug = (options.view_as(cls) for cls in (GoogleCloudOptions, WorkerOptions, DebugOptions))
    return {
        "service": cloud.dataflow_service_options,
        "machine": workers.machine_type,
        "disk": workers.disk_size_gb,
        "scaling": workers.autoscaling_algorithm,
        "experiments": debug.experiments,
        "threads": debug.number_of_worker_harness_threads,
    }


def test_a_tpu_by_name():
    assert settings(options_of(*TPU, "--accelerator=v5e:2x2")) == {
        "service": ["worker_accelerator=type:tpu-v5-lite-podslice;topology:2x2"],
        "machine": "ct5lp-hightpu-4t",
        "disk": 100,
        "scaling": "NONE",
        "experiments": ["no_use_multiple_sdk_containers"],
        "threads": 2,
    }


def test_a_gpu_by_name_and_what_is_given_wins():
    given = ("--machine_type=g2-standard-16", "--disk_size_gb=300", "--max_num_workers=9", "--experiments=a,b",
             "--number_of_worker_harness_threads=3", "--dataflow_service_options=c")  # fmt: skip
    assert settings(options_of(*BASE, IMAGE, "--accelerator=l4", *given)) == {
        "service": ["c", "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"],
        "machine": "g2-standard-16",
        "disk": 300,
        "scaling": None,
        "experiments": ["a", "b", "no_use_multiple_sdk_containers"],
        "threads": 3,
    }


def test_processors_alone():
    assert settings(options_of(*BASE, "--setup_file=./setup.py")) == {
        "service": None,
        "machine": None,
        "disk": None,
        "scaling": None,
        "experiments": ["no_use_multiple_sdk_containers"],
        "threads": 2,
    }


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_accelerator_is_the_one_that_its_request_says(name):
    accelerator = ACCELERATORS[name]
    assert by_request(accelerator.request) is accelerator
    assert accelerator.machine_type.startswith(accelerator.machine_family)
    options = options_of(*TPU, f"--accelerator={name}")
    assert dataflow.accelerator_of(options) is accelerator
    raw, machine = RAW + accelerator.request.removeprefix("type:"), f"--machine_type={accelerator.machine_type}"
    assert dataflow.accelerator_of(options_of(*TPU, raw, machine)) is accelerator
    if accelerator.is_tpu:
        bounds = accelerator.environment["TPU_CHIPS_PER_HOST_BOUNDS"].split(",")
        assert accelerator.devices == int(bounds[0]) * int(bounds[1]) * int(bounds[2])


def test_tpus_of_dataflow():
    """The pairs of type, topology and machine that Dataflow's page on TPUs lists."""
    listed = """
        tpu-v5-lite-podslice 1x1 ct5lp-hightpu-1t 1
        tpu-v5-lite-podslice 2x2 ct5lp-hightpu-4t 4
        tpu-v5-lite-podslice 2x4 ct5lp-hightpu-8t 8
        tpu-v6e-slice 1x1 ct6e-standard-1t 1
        tpu-v6e-slice 2x2 ct6e-standard-4t 4
        tpu-v6e-slice 2x4 ct6e-standard-8t 8
        tpu-v5p-slice 2x2x1 ct5p-hightpu-4t 4
    """
    expected = {
        (f"type:{kind};topology:{topology}", machine, int(devices))
        for kind, topology, machine, devices in map(str.split, listed.strip().splitlines())
    }
    assert {(one.request, one.machine_type, one.devices) for one in ACCELERATORS.values() if one.is_tpu} == expected


def without(args, *names: str) -> tuple[str, ...]:
    return tuple(arg for arg in args if not arg.startswith(tuple(f"--{name}" for name in names)))


V5E = (*TPU, "--accelerator=v5e:2x2")
REFUSED = {
    "no project": (without(V5E, "project"), "Missing required option: project"),
    "no region": (without(V5E, "region"), "Missing required option: region"),
    "no temp_location": (without(V5E, "temp_location"), "--temp_location is missing; allowed: a folder on gs://"),
    "a local temp_location": ((*without(V5E, "temp_location"), "--temp_location=/somewhere"), "/somewhere"),
    "a bad project": ((*V5E, "--project=A Project"), "A Project"),
    "no zone": (without(V5E, "worker_zone"), "--worker_zone is missing"),
    "a zone elsewhere": ((*without(V5E, "worker_zone"), "--worker_zone=europe-west4-b"), "a zone of --region, us-west4"),
    "no image": (without(V5E, "sdk_container_image"), "--sdk_container_image is missing"),
    "setup_file for a TPU": ((*without(V5E, "sdk_container_image"), "--setup_file=./setup.py"), "has no JAX"),
    "neither image nor setup_file": (BASE, "or --setup_file=./setup.py"),
    "no number of workers": (without(V5E, "num_workers"), "--max_num_workers is missing"),
    "another machine": ((*V5E, "--machine_type=n1-standard-8"), "allowed with v5e:2x2: ct5lp-hightpu-4t"),
    "a GPU's machine": ((*TPU, "--accelerator=l4:2", "--machine_type=n1-standard-8"), "g2-..., for example g2-standard-24"),
    "too few GPUs in it": ((*TPU, "--accelerator=a100:2", "--machine_type=a2-highgpu-1g"), "a100:2: a2-highgpu-2g"),
    "many processes": ((*V5E, "--experiments=use_multiple_sdk_containers"), "one process owns an accelerator"),
    "v4": ((*TPU, "--accelerator=v4:2x2x1"), "docs/flink.md"),
    "v4 written out": ((*TPU, RAW + "tpu-v4-podslice;topology:2x2x1"), "docs/flink.md"),
    "no such topology": ((*TPU, "--accelerator=v5e:4x4"), "allowed: v5e:1x1, v5e:2x2"),
    "no such topology, written out": ((*TPU, RAW + "tpu-v6e-slice;topology:4x4"), "type:tpu-v6e-slice;topology:2x4"),
    "two accelerators": ((*V5E, RAW + "nvidia-l4;count:1"), "allowed: one of the two"),
    "Prime and a TPU": ((*V5E, "--dataflow_service_options=enable_prime"), "enable_prime excludes TPUs"),
    "FlexRS and a TPU": ((*V5E, "--flexrs_goal=COST_OPTIMIZED"), "has no TPUs"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    args, message = REFUSED[what]
    with pytest.raises(ConfigError) as refusal:
        options_of(*args)
    assert message in str(refusal.value)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as refusal:
        options_of("--runner=dataflow", "--accelerator=v6e:1x1")
    for name in ("project", "region", "--temp_location", "--sdk_container_image", "--max_num_workers", "--worker_zone"):
        assert name in str(refusal.value)


def test_an_accelerator_that_is_not_known_passes():
    service = settings(options_of(*TPU, RAW + "nvidia-new;count:3"))["service"]
    assert service == ["worker_accelerator=type:nvidia-new;count:3"]


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(dataflow, "_installed", lambda *modules: "google_auth_httplib2" not in modules)
    with pytest.raises(ConfigError, match=r"the extra 'gcp'"):
        runners.beam_options(V5E)
    options_of(*V5E)
    monkeypatch.setattr(dataflow, "_installed", lambda *modules: False)
    with pytest.raises(ConfigError, match="google-cloud-dataflow-client"):
        options_of(*V5E)


def test_the_workers_environment(monkeypatch):
    options = options_of(*V5E)
    assert dataflow.worker_environment(options) == {
        "JAX_COMPILATION_CACHE_DIR": "gs://bucket/specbeam/programs",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
        "TPU_HOST_BOUNDS": "1,1,1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/home/me/cache")
    assert dataflow.worker_environment(options)["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/specbeam/programs"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://other/programs")
    assert dataflow.worker_environment(options)["JAX_COMPILATION_CACHE_DIR"] == "gs://other/programs"
    assert dataflow.worker_environment(runners.beam_options([])) == {}


@pytest.mark.parametrize("mesh, ok", [("data:1,model:4", True), ("data:4,model:1", True), ("", False), ("model:2", False),
                                      ("data:2,model:4", False)])  # fmt: skip
def test_a_mesh_uses_every_chip(mesh, ok, command):
    config = parse_command_line(command(f"--config.model.mesh={mesh}")).config
    options = options_of(*V5E)
    if ok:
        dataflow.check_config(options, config)
    else:
        with pytest.raises(ConfigError, match="allowed: data:1,model:4 or data:2,model:2 or data:4,model:1"):
            dataflow.check_config(options, config)


def test_hints_are_for_prime_alone():
    models = ["/models/target", "prompt_lookup"]
    assert dataflow.resource_hints(options_of(*BASE, IMAGE), models) == {}
    prime = options_of(*BASE, IMAGE, "--accelerator=l4", "--max_num_workers=3", "--dataflow_service_options=enable_prime")
    assert settings(prime)["service"] == ["enable_prime"] and settings(prime)["machine"] is None
    hints = dataflow.resource_hints(prime, models)
    assert hints == {"min_ram": 8 << 30, "accelerator": "type:nvidia-l4;count:1;install-nvidia-driver:5xx"}


def test_hints_leave_room_for_the_weights_of_a_draft_of_n_grams_too(models, tmp_path, monkeypatch):
    fitted = decoding.NGramDraft.fit([[5, 6, 1], [5, 7, 1]], 384, start_id=0, eos_id=1, order=2, min_count=1)
    fitted.save(str(tmp_path / "bigram"), {"order": 2})
    prime = options_of(*BASE, IMAGE, "--accelerator=l4", "--max_num_workers=3", "--dataflow_service_options=enable_prime")
    monkeypatch.setattr(dataflow.storage, "is_remote", lambda path: path.startswith("/"))
    files = [*models["target"].glob("*.safetensors"), tmp_path / "bigram" / "ngram.safetensors"]
    hints = dataflow.resource_hints(prime, [str(models["target"]), str(tmp_path / "bigram")])
    assert hints["min_ram"] == (8 << 30) + 2 * sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    "args, message",
    [
        (("--accelerator=v5e:2x2",), "--runner=DataflowRunner"),
        ((*BASE, IMAGE), "gs://"),  # output, input and models are on this machine
        (V5E, "gs://"),
    ],
)
def test_the_job_ends_before_it_begins(args, message, command, tmp_path, capsys):
    loads = fakes.loads
    assert generate.main([*command(), *args, "--dry_run"], fakes.factory()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert fakes.loads == loads and not (tmp_path / "out").exists()


GUIDE = (ROOT / "docs" / "dataflow.md").read_text(encoding="utf-8")
OWN = {"--accelerator", "--allow_code_change", "--allow_failed_shards", "--config", "--dry_run", "--output"}


def commands_of_the_guide() -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = (line.replace("BUCKET", "bucket").replace("PROJECT", "a-project") for line in lines if line.strip())
    return [shlex.split(line) for line in lines]


def test_every_flag_of_the_guide_is_one_of_beam_or_of_this_project():
    parser = _BeamArgumentParser(allow_abbrev=False)
    for cls in {cls.__name__: cls for cls in PipelineOptions.__subclasses__()}.values():
        cls._add_argparse_args(parser)
    others = [words for words in commands_of_the_guide() if words[0] in ("gcloud", "docker") or "pipeline.plan" in words]
    elsewhere = {word.split("=")[0] for words in others for word in words if word.startswith("--")} - {"--config"}
    flags = set(re.findall(r"(?<![\w-])--[a-z_]+\b(?!-)", GUIDE)) - {"--build"}
    flags -= {flag for flag in elsewhere if "_" not in flag}
    assert len(flags) > 20
    assert [flag for flag in sorted(flags - OWN) if flag not in parser._option_string_actions] == []


def test_commands_of_the_guide_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    launches = [words for words in commands_of_the_guide() if "pipeline.generate" in words]
    assert len(launches) == 3
    for words in launches:
        parsed = parse_command_line([*words[3:], "--dry_run"])
        options = runners.beam_options(parsed.beam_args, runners.paths_of(parsed.config, parsed.output))
        dataflow.check_config(options, parsed.config)
        assert dataflow.is_dataflow(options)


def test_what_the_guide_says_an_accelerator_stands_for():
    service, machine = (words[0] for words in commands_of_the_guide() if words[0].startswith(("--dataflow", "--machine")))
    given = options_of(*TPU, service, machine)
    assert settings(options_of(*TPU, "--accelerator=v5e:2x2")) == settings(given)
    for name in re.findall(r"`(\w+:\dx\d(?:x\d)?)`", GUIDE):
        assert name in ACCELERATORS


def test_beam_says_where_the_job_is(caplog):
    dataflow.show_job()
    client = logging.getLogger("apache_beam.runners.dataflow.internal.apiclient")
    client.info("Create job: %s", "a page of fields")
    client.info("To access the Dataflow monitoring console, please navigate to ...")
    client.warning("something is wrong")
    assert [record.getMessage()[:9] for record in caplog.records] == ["To access", "something"]
