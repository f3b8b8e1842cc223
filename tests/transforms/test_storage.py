"""The output folder: an object is there whole or not at all, and only one of many makes it."""

import os
import threading

import pytest

from transforms.storage import OutputFolder, part_name


def test_create_only_once_among_many(tmp_path):
    folder, barrier, won = OutputFolder(str(tmp_path)), threading.Barrier(8), []

    def attempt(i):
        data = bytes([i]) * 100_000
        barrier.wait()
        if folder.create("generations/part", data):
            won.append(data)

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert folder.read("generations/part") == won[0]
    assert folder.list() == {"generations/part": 100_000}


def test_create_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = OutputFolder(str(tmp_path))
    assert folder.create("a", b"1")
    assert not folder.create("a", b"2")
    assert (folder.read("a"), folder.list()) == (b"1", {"a": 1})


def test_put_replaces_and_a_failure_leaves_the_old(tmp_path, monkeypatch):
    folder = OutputFolder(str(tmp_path))
    folder.put("deep/er/name", b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        folder.put("deep/er/name", b"newer")
    monkeypatch.undo()
    assert (folder.read("deep/er/name"), folder.list()) == (b"old", {"deep/er/name": 3})
    folder.put("deep/er/name", b"new")
    assert folder.read("deep/er/name") == b"new"


def test_list_and_delete(tmp_path):
    folder = OutputFolder(str(tmp_path / "absent"))
    assert folder.list() == {}
    folder.put("a", b"1")
    folder.delete(["a", "b"])
    assert folder.list() == {}


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        OutputFolder(str(tmp_path / "file")).list()


def test_names_sort_as_numbers():
    assert part_name(3, 100) == "generations/part-00003-of-00100.parquet"
    assert part_name(390_000, 400_000) == "generations/part-390000-of-400000.parquet"
