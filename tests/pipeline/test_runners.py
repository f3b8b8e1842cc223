"""What is said at launch of runners and their options, before anything is begun."""

import os

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

import decoding
from pipeline import generate
from pipeline.runners import options as runners
from pipeline.runners.options import LOCAL_RUNNER, beam_options
from pipeline.settings import ConfigError
from tests.pipeline import fakes
from tests.pipeline.helpers import run
from transforms.decode import SpeculativeModelHandler
from transforms.score import ScoreModelHandler

DATAFLOW = ("--runner=DataflowRunner", "--project=a-project", "--region=us-central1", "--temp_location=gs://bucket/temp")


@pytest.fixture(autouse=True)
def no_single_runner(monkeypatch):
    """What each runner checks for itself is tested with it, and needs its packages."""
    monkeypatch.setattr(runners, "_CHECKED_BY", {})


@pytest.mark.parametrize("name", ["", "FnApiRunner", "direct", "DirectRunner", LOCAL_RUNNER])
def test_the_local_runner(name):
    options = beam_options([f"--runner={name}"] if name else [])
    assert runners.is_local(options)
    assert runners.in_this_process(options)
    assert runners.num_workers(options) == 1


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--runner=Flimk"], r"--runner is 'Flimk'; allowed: .*DataflowRunner, .*FlinkRunner, .*PrismRunner"),
        (["--runner=no.such.Runner"], r"--runner is 'no.such.Runner': No module named 'no'"),
        (["--gama=3"], r"'--gama' is neither an option of this job nor of Beam"),
        (["--runner=Dataflow", "--gama=3"], r"'--gama' is neither"),
        (["--direct_num_workers=two"], r"argument --direct_num_workers: invalid int value: 'two'"),
        (["--direct_num_workers=-1"], r"--direct_num_workers is -1; allowed: 0 for one per processor, or more"),
        (["--direct_running_mode=multi"], r"argument --direct_running_mode: invalid choice: 'multi'"),
        (["--runner=PortableRunner"], r"--job_endpoint is missing"),
        (["--runner=FlinkRunner", "--environment_type=PROCESS"], r"process_command is required for environment type PROCESS"),
    ],
)
def test_what_is_refused(args, found):
    with pytest.raises(ConfigError, match=found):
        beam_options(args)


def test_secrets_are_not_shown():
    with pytest.raises(ConfigError) as caught:
        beam_options(["--s3_secret_kee=hunter2"])
    assert "hunter2" not in str(caught.value)


def test_options_of_a_job_server_pass_through(capsys):
    options = beam_options(["--runner=FlinkRunner", "--parallelism=3", "--checkpointing_interval=5"])
    assert "'--checkpointing_interval' is no option of this job" in capsys.readouterr().err
    assert options.get_all_options(retain_unknown_options=True)["checkpointing_interval"] == "5"
    assert runners.num_workers(options) == 3


def test_options_of_beam_pass_through():
    given = ["--runner=Flink", "--flink_version=1.19", "--environment_type=EXTERNAL", "--environment_config=localhost:50000",
             "--resource_hint=min_ram=1GB", "--experiments=a", "--experiments=b"]  # fmt: skip
    options = beam_options(given).get_all_options(drop_default=True)
    assert options["experiments"] == ["a", "b"]
    assert options["runner"] == "apache_beam.runners.portability.flink_runner.FlinkRunner"
    beams = PipelineOptions(given).get_all_options(drop_default=True) | {"runner": options["runner"]}
    assert options | {"save_main_session": None} == beams | {"save_main_session": None}  # its validation fills that in


@pytest.mark.parametrize("setting", ["--output", "input.pattern", "model.target"])
def test_dataflow_does_not_reach_a_local_disk(setting):
    with pytest.raises(ConfigError, match=f"{setting} is '/data/x', on this machine's disk"):
        beam_options(DATAFLOW, {setting: "/data/x"})
    beam_options(DATAFLOW, {setting: "gs://bucket/x"})


def test_models_may_be_in_the_image():
    image = (*DATAFLOW, "--sdk_container_image=example/image")
    beam_options(image, {"--output": "gs://bucket/x", "model.target": "/models/x"})
    with pytest.raises(ConfigError, match="--output is '/x'"):
        beam_options(image, {"--output": "/x", "model.target": "/models/x"})


@pytest.mark.parametrize(
    ("args", "warned"),
    [
        (["--runner=FlinkRunner", "--flink_master=cluster:8081"], True),
        (["--runner=FlinkRunner", "--flink_master=http://localhost:8081"], False),
        (["--runner=FlinkRunner"], False),
        (["--runner=FlinkRunner", "--flink_master=cluster:8081", "--environment_type=LOOPBACK"], False),
        (["--runner=PortableRunner", "--job_endpoint=10.0.0.2:8099"], True),
        ([], False),
    ],
)
def test_workers_elsewhere_need_the_same_files(args, warned, capsys):
    beam_options(args, {"--output": "/data/out", "model.target": "gs://bucket/model"})
    assert ("they have to find the same files at --output (/data/out)" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("args", "workers"),
    [
        (["--direct_num_workers=3"], 3),
        (["--direct_num_workers=0"], os.cpu_count()),
        ([*DATAFLOW, "--num_workers=2", "--max_num_workers=8"], 8),
        ([*DATAFLOW, "--num_workers=2"], 2),
        (["--runner=FlinkRunner", "--parallelism=6"], 6),
        (["--runner=FlinkRunner"], 1),
    ],
)
def test_warns_of_few_shards(args, workers, capsys):
    options = beam_options(args)
    assert runners.num_workers(options) == workers
    capsys.readouterr()
    runners.warn_of_few_shards(options, 4 * workers)
    assert capsys.readouterr().err == ""
    runners.warn_of_few_shards(options, 4 * workers - 1)
    assert (f"{4 * workers - 1} shards for {workers} workers" in capsys.readouterr().err) == (workers > 1)


def test_a_job_warns_and_refuses(command, tmp_path, capsys):
    """30 examples in shards of 8: four shards."""
    out = tmp_path / "out"
    assert generate.main(command(*DATAFLOW), fakes.factory()) == 2
    assert "--output is" in capsys.readouterr().err
    assert not out.exists()
    run(command("--direct_num_workers=2"))
    assert "4 shards for 2 workers" in capsys.readouterr().err


def test_models_of_other_processes_are_not_this_ones():
    options = beam_options(["--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    assert runners.uses_processes(options)
    assert not runners.in_this_process(options)
    assert not runners.in_this_process(beam_options(["--runner=FlinkRunner"]))


@pytest.mark.parametrize(
    ("args", "passed_on"),
    [
        ([], False),
        (["--runner=Prism"], False),
        (["--runner=FlinkRunner"], True),
        (["--direct_running_mode=multi_processing"], True),
    ],
)
def test_workers_keep_programs_where_the_launch_says(args, passed_on, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/programs")
    expected = {"JAX_COMPILATION_CACHE_DIR": "gs://bucket/programs"} if passed_on else {}
    assert runners.worker_environment(beam_options(args)) == expected
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert runners.worker_environment(beam_options(args)) == {}


def test_models_are_loaded_after_jax_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(decoding, "keep_programs", told.append)
    environment = {"JAX_COMPILATION_CACHE_DIR": "gs://bucket/programs"}
    generating = SpeculativeModelHandler("target", env_vars=environment, factory=lambda *_: told.append("generator"))
    scoring = ScoreModelHandler(None, lambda _: told.append("scorer"), env_vars=environment)
    for handler in (generating, scoring):
        handler.load_model()
    assert told == ["gs://bucket/programs", "generator", "gs://bucket/programs", "scorer"]
