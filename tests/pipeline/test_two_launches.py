"""Two launches that come to the end of one folder together: both end well, and nothing is left in attempts/."""

import json
import os
import shutil

import pytest

from tests.pipeline.helpers import files
from transforms import costs, finish
from transforms.folder import open_finished, read_manifest
from transforms.parts import read_footer
from transforms.statistics.generations import Statistics
from transforms.storage import OutputFolder


@pytest.fixture
def ending(finished):
    """`ending()` writes the summary of a folder that lacks only its end, as a launch does."""
    (finished / "_SUCCESS").unlink()
    (finished / "summary.json").unlink()
    folder = OutputFolder(str(finished))
    manifest, statistics = read_manifest(folder), Statistics()
    for name in manifest.part_names():
        statistics = statistics.merge(read_footer(folder.path(name)).statistics)
    return lambda: finish.write_summary(
        statistics, output=str(finished), num_shards=manifest.num_shards, fingerprint=manifest.fingerprint, exact=True
    )


@pytest.mark.parametrize("at", ["summary.json", "_SUCCESS", "manifest.json"])
def test_another_launch_ends_in_the_middle_of_this_ones_end(ending, finished, finished_run, monkeypatch, at):
    """Between writing a temporary file and giving it its name, all of another launch's end happens."""
    (finished / "attempts").mkdir(exist_ok=True)
    (finished / costs.NAME).write_text("[[64, 0, 0.5]]")
    replace, others = os.replace, []

    def replace_after_another(scratch, final):
        if str(final).endswith(at) and not others:
            others.append(at)
            others.append(ending())
        return replace(scratch, final)

    monkeypatch.setattr(os, "replace", replace_after_another)
    mine = ending()
    assert len(others) == 2 and mine["complete"] and others[1]["complete"]
    assert files(finished) == files(finished_run)
    assert json.loads((finished / "manifest.json").read_text())["costs"] == [[64, 0, 0.5]]
    assert not open_finished(str(finished), "generate", what="the folder").unfinished


def test_a_commit_while_another_launch_ends(tmp_path, monkeypatch):
    folder, link = OutputFolder(str(tmp_path)), os.link

    def link_after_the_end(scratch, final):
        monkeypatch.setattr(os, "link", link)
        shutil.rmtree(tmp_path / "attempts")
        return link(scratch, final)

    monkeypatch.setattr(os, "link", link_after_the_end)
    assert folder.create("generations/part", b"rows")
    assert folder.read("generations/part") == b"rows"
    assert not folder.create("generations/part", b"other")


def test_what_never_works_is_raised(tmp_path, monkeypatch):
    def never(scratch, final):
        os.remove(scratch)
        raise FileNotFoundError(scratch)

    monkeypatch.setattr(os, "replace", never)
    with pytest.raises(FileNotFoundError):
        OutputFolder(str(tmp_path)).put("name", b"content")
