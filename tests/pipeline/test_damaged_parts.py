"""A committed part that is not what was committed: named, set aside, and its shard done again, by the same command."""

import shutil

import pytest

from pipeline import analyze, fit_ngram, inspect, score
from tests.pipeline.helpers import assert_same_rows, errors, files, rows, run, summary
from tests.pipeline.score_fakes import fake

PART, OTHER = (f"generations/part-0000{shard}-of-00004.parquet" for shard in (1, 2))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


def copy_another(path):
    shutil.copy(path.parent.parent / OTHER, path)


DAMAGES = [
    pytest.param(truncate, "cannot be read as a part", id="truncated"),
    pytest.param(flip, "its checksum is not that of its content", id="a flipped byte"),
    pytest.param(copy_another, "a copy of another part, that of shard 2", id="copied"),
    pytest.param(lambda path: path.write_bytes(b"PAR1"), "cannot be read as a part", id="foreign"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_the_same_command_names_it_and_does_the_shard_again(command, finished, finished_run, capsys, caplog, damage, message):
    damage(finished / PART)
    (finished / "_SUCCESS").unlink()
    run(command())
    said = caplog.text + capsys.readouterr().err
    assert message in said and PART.split("/")[1] in said
    kept = [name for name in files(finished) if name.startswith("damaged/")]
    assert len(kept) == 1 and kept[0].startswith("damaged/part-00001-of-00004.")
    assert [name for name in files(finished) if name not in kept] == files(finished_run)
    assert_same_rows(rows(finished_run), rows(finished))
    assert summary(finished)["complete"] and errors(finished) == errors(finished_run)
    assert inspect.main([str(finished)]) == 0


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_whoever_reads_it_names_it(command, finished, tmp_path, capsys, caplog, damage, message):
    damage(finished / PART)
    fitted = [argument for argument in command(output=tmp_path / "fitted") if "draft" not in argument]
    jobs = {
        inspect: lambda: inspect.main([str(finished)]),
        analyze: lambda: analyze.main([f"--inputs={finished}", f"--output={tmp_path / 'report'}"]),
        score: lambda: score.main(command(f"--config.score.generations={finished}", output=tmp_path / "scores"), fake()),
        fit_ngram: lambda: fit_ngram.main([*fitted, f"--generations={finished}"]),
    }
    for job, launch in jobs.items():
        capsys.readouterr()
        assert launch() == (2 if job is analyze else 1), job
        said = capsys.readouterr()
        told = " ".join((said.out + said.err).split())
        assert "part-00001-of-00004.parquet" in told and message in told, (job, told)
        assert "Traceback" not in told, job
