"""What is answered without JAX and Beam is answered at once."""

import resource
import shutil
import subprocess
import sys
import time

import pytest

from decoding.version import __version__
from pipeline import score
from specbeam.command import JOBS, SHOW
from tests.pipeline import score_fakes
from tests.pipeline.helpers import run

HEAVY = ("jax", "flax", "apache_beam", "pyarrow", "numpy", "sentencepiece", "tokenizers", "tensorflow")


@pytest.mark.parametrize(
    "program",
    [
        "import specbeam",
        "import specbeam.command; specbeam.command.help_text()",
        "from pipeline.settings import help_text; help_text('')",
        *(f"import pipeline.{job}" for job in JOBS if job != "inspect"),
        "import specbeam.show",
    ],
)
def test_nothing_heavy_is_imported(program):
    program += f"; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_looking_into_folders_waits_for_no_framework():
    """`inspect` reads parts, with Arrow and NumPy, and what generations and scores add up to."""
    program = "import pipeline.inspect, sys; print(*[name for name in {} if name in sys.modules])"
    heavy = [name for name in HEAVY if name not in ("pyarrow", "numpy")] + ["scipy.special"]
    program = program.format(heavy)
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def seconds(*args: str, expect: int = 0) -> tuple[float, str]:
    """Seconds of processor that `python -m ARGS` takes, with its own children, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == expect, found.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, found.stdout + found.stderr


def quickest(*args: str, expect: int = 0) -> tuple[float, str]:
    """The least of three: whatever else the machine does only adds."""
    return min(seconds(*args, expect=expect) for _ in range(3))


def limit() -> float:
    """One second; on a slow or busy machine five times what takes a fifth of a second elsewhere, two seconds at most."""
    start = time.process_time()
    sum(i * i for i in range(3_000_000))
    return min(max(1.0, 5 * (time.process_time() - start)), 2.0)


@pytest.mark.slow  # a busy machine makes everything slower
@pytest.mark.parametrize("job", [*JOBS, SHOW])
def test_seconds_of_processor_for_help_and_a_typo(job, command):
    used, shown = quickest("specbeam", job, "--help")
    assert job in shown.replace("specbeam.show", SHOW) and used < limit(), used
    typo = "--config.decoding.gama=3" if job in ("generate", "score", "benchmark", "plan", "fit_ngram") else "--outptu=x"
    words = [*command(), typo] if job in ("generate", "score") else [command()[0], typo, "--inputs=x"]
    if job == "quickstart":
        return  # its flags are those of `generate`
    used, shown = quickest("specbeam", job, *words, expect=2)
    assert shown.startswith("error: ") and used < limit(), (used, shown)


@pytest.mark.slow
def test_seconds_of_processor(command, tmp_path):
    run(command())
    out, scores = str(tmp_path / "out"), tmp_path / "scores"
    score_command = command(f"--config.score.generations={out}", output=scores)
    assert score.main(score_command, score_fakes.fake()) == 0
    for words, expect, told in (
        (["specbeam", "--help"], 0, "fit_ngram"),
        (["specbeam", "--version"], 0, __version__),
        (["specbeam", "generat"], 2, "did you mean 'generate'"),
        (["pipeline.generate", *command("--gamma=3")], 2, "--config.decoding.gamma"),
        (["pipeline.generate", *command()], 0, "Finished already"),
        (["pipeline.score", *score_command], 0, "Finished already"),
        *((["pipeline.inspect", str(folder), *flags], 0, told)
          for folder in (out, scores) for flags, told in (([], "complete"), (["--json"], '"complete": true'))),
    ):  # fmt: skip
        used, shown = quickest(*words, expect=expect)
        assert told in shown
        assert used < limit(), (words, used)


def test_a_finished_folder_is_known_without_models(command, tmp_path, monkeypatch, capsys):
    run(command())
    capsys.readouterr()
    refuse = lambda *_: pytest.fail("looked into models")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.job.preflight.check_models", refuse)
        run(command())
        assert capsys.readouterr().out.startswith("Finished already, nothing to do")
    # Whatever was touched is looked at.
    (tmp_path / "input.jsonl").touch()
    run(command())
    assert "Finished already" in capsys.readouterr().out  # by its content


@pytest.mark.parametrize("change", ["setting", "input", "part", "summary", "code", "job"])
def test_what_has_changed_is_looked_into(command, tmp_path, monkeypatch, change):
    from pipeline.job.seen import is_finished
    from pipeline.settings import parse_command_line

    run(command())
    finished = lambda *settings, job="generate": is_finished(
        job, parse_command_line(command(*settings)).config, str(tmp_path / "out")
    )
    assert finished()
    match change:
        case "setting":
            assert not finished("--config.decoding.seed=1")
        case "job":
            assert not finished(job="score")
        case "input":
            with open(tmp_path / "input.jsonl", "a") as file:
                file.write("\n")
            assert not finished()
        case "part":
            (tmp_path / "out" / "generations" / "part-00001-of-00004.parquet").unlink()
            assert not finished()
        case "summary":
            (tmp_path / "out" / "summary.json").unlink()
            assert not finished()
        case "code":
            monkeypatch.setattr("pipeline.job.seen.code_digest", lambda: "other")
            assert not finished()
    assert not is_finished("generate", parse_command_line(command()).config, str(tmp_path / "nowhere"))


def test_models_that_have_changed(command, tmp_path, models):
    from pipeline.job.seen import seen
    from pipeline.settings import parse_command_line

    copy = shutil.copytree(models["target"], tmp_path / "target")
    config = parse_command_line(command(f"--config.model.target={copy}")).config
    before = seen("generate", config)
    assert before == seen("generate", config) != ""
    (copy / "generation_config.json").write_text("{}")
    assert seen("generate", config) != before
    remote = parse_command_line(command("--config.model.target=gs://b/m")).config
    assert seen("generate", remote) == ""
