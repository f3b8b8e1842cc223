"""Which files a pattern means: names before globs, nothing of the output folder, and one line for what is no listing."""

import os

import pytest
from apache_beam.io.filesystems import FileSystems

from transforms import storage
from transforms.inputs.base import InputError
from transforms.inputs.files import find_files


def names(folder, *patterns, output="") -> list[str]:
    found = find_files([str(folder / pattern) for pattern in patterns], str(output))
    return [os.path.relpath(file.path, folder) for file in found]


def touch(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x\n")


@pytest.mark.parametrize(
    ("name", "other"), [("data[1].txt", "data1.txt"), ("what?.txt", "whatx.txt"), ("a*b.txt", "aab.txt"), ("[.txt", "b.txt")]
)
def test_a_files_name_is_no_glob(tmp_path, name, other):
    touch(tmp_path, other)
    if name != "[.txt":
        assert names(tmp_path, name) == [other]
    touch(tmp_path, name)
    assert names(tmp_path, name) == [name]
    assert names(tmp_path, name, other) == sorted([name, other])


def test_a_folders_name_is_no_glob(tmp_path):
    touch(tmp_path, "run[12]/a.txt", "run[12]/b.txt", "run1/a.txt", "run2/c.txt")
    assert names(tmp_path, "run[12]/*.txt") == ["run[12]/a.txt", "run[12]/b.txt"]
    assert names(tmp_path, "run[12]/[b].txt") == ["run[12]/b.txt"]
    assert names(tmp_path, "run[1-2]/*.txt") == ["run1/a.txt", "run2/c.txt"]


def test_globs_as_before(tmp_path):
    touch(tmp_path, "a.txt", "deep/b.txt", "deep/er/c.txt")
    assert names(tmp_path, "*.txt") == ["a.txt"]
    assert names(tmp_path, "**.txt") == ["a.txt", "deep/b.txt", "deep/er/c.txt"]
    assert names(tmp_path, "a.txt", "[a-b].txt") == ["a.txt"]


def test_the_output_is_no_input(tmp_path):
    touch(tmp_path, "a.jsonl", "out/errors/part-00000-of-00001.jsonl", "outer/b.jsonl")
    assert names(tmp_path, "**.jsonl", output=tmp_path / "out") == ["a.jsonl", "outer/b.jsonl"]
    assert names(tmp_path, "**.jsonl", output=f"{tmp_path}/out/") == ["a.jsonl", "outer/b.jsonl"]
    assert len(names(tmp_path, "**.jsonl")) == 3
    with pytest.raises(InputError, match=r"errors/\*' matches no file but what lies in the output folder"):
        names(tmp_path, "out/errors/*", output=tmp_path / "out")


def test_a_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as stream:
        stream.write("x\n")
    with pytest.raises(InputError, match=r"caf\\udce9.txt' has a name that is not UTF-8"):
        names(tmp_path, "*.txt")
    with pytest.raises(InputError, match="matches no file"):
        names(tmp_path, "*.jsonl")


@pytest.mark.parametrize("problem", [KeyError("items"), TypeError("'str' object"), AssertionError("size_in_bytes")])
def test_what_is_no_listing(monkeypatch, problem):
    def match(patterns):
        raise problem

    monkeypatch.setattr(FileSystems, "match", match)
    with pytest.raises(InputError, match="'gs://b/x' cannot be listed"):
        find_files(["gs://b/x"])


@pytest.mark.parametrize("answer", [[("gs://b/run/x", None)], [("gs://b/run/x", "many")], ["gs://b/run/x"], [None]])
def test_what_is_no_listing_of_a_folder(monkeypatch, answer):
    class Client:
        def list_files(self, base):
            yield from answer

    monkeypatch.setattr(storage, "_gcs", Client)
    with pytest.raises(OSError, match=r"'gs://b/run': the answer is no listing"):
        storage.list_tree("gs://b/run")


def test_an_encoding_that_the_client_cannot_undo():
    with pytest.raises(OSError, match="'gs://b/x': NotImplementedError: Doubly"), storage.store_errors("gs://b/x"):
        raise NotImplementedError("Doubly compressed files not supported.")
