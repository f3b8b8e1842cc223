"""Models by their id: which names are ids, what is fetched, once, and what is said where it cannot be."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import decoding
from decoding import hub as ids

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "someone/tiny-model"


@pytest.fixture
def folder(tmp_path, golden) -> pathlib.Path:
    """A model as hubs have them: weights in other formats beside, and folders of other frameworks."""
    shutil.copytree(golden / "gpt2", tmp_path / "repository")
    (tmp_path / "repository" / "onnx").mkdir()
    for name in ("onnx/config.json", "onnx/model.safetensors", "pytorch_model.bin", "tokenizer.json", "README.md", "a.py"):
        (tmp_path / "repository" / name).write_text("{}")
    return tmp_path / "repository"


@pytest.fixture
def ask(hub, tmp_path):
    """Runs Python with the hub's address and a cache of its own; gives what it printed, or its error's last line."""

    def run(code: str, *, wait: bool = True, **environment):
        keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, "-c", f"from decoding import hub\n{code}"]
        if not wait:
            return subprocess.Popen(command, env=env, cwd=tmp_path)
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    return run


def fetched(name: str = NAME) -> str:
    return f"p = hub.pin({name!r}); hub.fetch_weights(p); print(p)"


def cached(tmp_path) -> list[str]:
    root = next((tmp_path / "home" / "hub").glob("models--*")) / "snapshots"
    return sorted(path.relative_to(root).as_posix().split("/", 1)[1] for path in root.rglob("*") if not path.is_dir())


def test_names_that_are_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    names = ("google/flan-t5-xl", "google/flan-t5-xl@main", "a/b@refs/pr/4", "a/b/x-Q4_K_M.gguf", "a/b@v1/q/x.gguf")
    assert all(map(ids.is_id, (*names, "a/b@" + "0" * 40)))
    paths = (
        "", "models/here", "models/not-here", "./google/x", "../google/x", "/google/x", "google", "google/", "a/b/c",
        "gs://a/b", "a/model.safetensors", "a/x.gguf", "a/spiece.model", "~/x", "a/b@", "a b/c", "a/..", "preset:a/b@c d",
    )  # fmt: skip
    assert not any(map(ids.is_id, paths))
    assert all(ids.pin(path) == path and ids.local(path) == path for path in paths)
    (tmp_path / "google" / "flan-t5-xl").mkdir(parents=True)
    assert not ids.is_id("google/flan-t5-xl")


def test_what_is_needed_and_nothing_else_once(hub, folder, ask, tmp_path):
    commit = hub.publish(NAME, folder)
    assert ask(fetched()) == f"{NAME}@{commit}"
    assert cached(tmp_path) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    first = dict(hub.served)
    assert set(first.values()) == {1}
    newer = folder.parent / "newer"
    shutil.copytree(folder, newer)
    later = hub.publish(NAME, newer)
    hub.asked.clear()
    assert ask(fetched(f"{NAME}@{commit}")) == f"{NAME}@{commit}"
    assert hub.asked == [] and hub.served == first  # a commit that is there is not asked for
    assert ask(fetched()) == f"{NAME}@{later}" and hub.served["model.safetensors"] <= 2
    assert ask(fetched(f"{NAME}@nowhere")).endswith("it has no such revision: name a branch, a tag or a commit after the @")


@pytest.mark.slow
def test_a_model_loads_by_its_id(hub, folder, ask, golden):
    commit = hub.publish(NAME, folder, branch="v1")
    code = "import decoding, numpy as np\nm = decoding.load_model({!r}, weights='plain')\n"
    code += "print(float(abs(np.asarray(m.logits(np.array([[1, 2, 3]])))).sum()))"
    model = decoding.load_model(str(golden / "gpt2"), weights="plain")
    expected = np.abs(np.asarray(model.logits(np.array([[1, 2, 3]])))).sum()
    assert float(ask(code.format(f"{NAME}@v1"))) == pytest.approx(expected)
    assert float(ask(code.format(f"{NAME}@{commit}"), HF_HUB_OFFLINE="1")) == pytest.approx(expected)


@pytest.mark.slow
def test_offline(hub, folder, ask, tmp_path):
    hub.publish(NAME, folder)
    why = ask(fetched(), HF_HUB_OFFLINE="1")
    assert why.endswith("it is not whole in the cache, and HF_HUB_OFFLINE is set: unset it, or name the folder of a model")
    pinned = ask(f"print(hub.pin({NAME!r}))")
    assert ask(f"print(hub.pin({NAME!r}))", HF_HUB_OFFLINE="1") == pinned
    assert "not whole in the cache" in ask(fetched(), HF_HUB_OFFLINE="1")  # the weights are not there
    assert ask(fetched()) == pinned == ask(fetched(), HF_HUB_OFFLINE="1")
    hub.asked.clear()
    assert ask(fetched(), HF_ENDPOINT="http://127.0.0.1:9") == pinned and hub.asked == []  # nor is a dead network missed


@pytest.mark.slow
def test_without_a_network_one_line_says_so(ask):
    line = ask(fetched(), HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith(f"decoding.hub.HubError: '{NAME}' is no path here, and as a model of the hub it cannot be had now")
    assert "check the network and HF_ENDPOINT" in line


@pytest.mark.slow
def test_gated_private_and_missing(hub, folder, ask):
    hub.publish(NAME, folder)
    hub.publish("someone/private", folder)
    hub.gated[NAME], hub.private["someone/private"] = "secret-1", "secret-2"
    assert "it is gated: accept its terms on its page, and set HF_TOKEN" in ask(fetched())
    refused = ask(fetched(), HF_TOKEN="wrong-secret")
    assert "it is gated" in refused and "wrong-secret" not in refused
    assert ask(fetched(), HF_TOKEN="secret-1").startswith(f"{NAME}@")
    assert "it is not there, or private" in ask(fetched("someone/private"))
    assert ask(fetched("someone/private"), HF_TOKEN="secret-2").startswith("someone/private@")
    assert "'someone/nothing' is no path here" in ask(fetched("someone/nothing"))
    assert {"secret-1", "secret-2"} < hub.tokens


@pytest.mark.slow
def test_a_hub_that_fails_for_a_while(hub, folder, ask, tmp_path):
    hub.publish(NAME, folder)
    hub.fail = 2
    assert ask(fetched()).startswith(f"{NAME}@")
    assert (next((tmp_path / "home").rglob("model.safetensors"))).read_bytes() == (folder / "model.safetensors").read_bytes()
    hub.fail = 10**6
    assert "it cannot be had now" in ask(fetched("someone/else"))


@pytest.mark.slow
def test_downloads_that_are_cut_or_slow(hub, folder, ask, tmp_path):
    hub.publish(NAME, folder)
    hub.cut, hub.pause = 3, 0.05
    assert ask(fetched()).startswith(f"{NAME}@")
    assert (next((tmp_path / "home").rglob("model.safetensors"))).read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_download_that_was_killed_is_not_taken_for_whole(hub, folder, ask, tmp_path):
    commit = hub.publish(NAME, folder)
    whole = (folder / "model.safetensors").read_bytes()
    assert ask(f"print(hub.pin({NAME!r}))").startswith(NAME)
    hub.pause = 0.5 * (1 << 16) / len(whole) * 8
    process = ask(fetched(), wait=False)
    while "model.safetensors" not in hub.served:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.pause = 0.0
    pinned = f"{NAME}@{commit}"
    assert "not whole in the cache" in ask(fetched(pinned), HF_HUB_OFFLINE="1")
    assert ask(fetched(pinned)) == pinned
    assert next((tmp_path / "home").rglob("model.safetensors")).read_bytes() == whole


@pytest.mark.slow
def test_split_safetensors_and_gguf(hub, folder, ask, tmp_path):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        (folder / name).write_bytes(weights)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.publish(NAME, folder)
    assert ask(fetched()).startswith(f"{NAME}@")
    assert "consolidated.safetensors" not in cached(tmp_path) and "model-00002-of-00002.safetensors" in cached(tmp_path)

    ggufs = tmp_path / "ggufs"
    ggufs.mkdir()
    (ggufs / "m-Q4_K_M-00001-of-00002.gguf").write_bytes(b"1")
    (ggufs / "m-Q4_K_M-00002-of-00002.gguf").write_bytes(b"2")
    one = hub.publish("someone/one-gguf", ggufs)
    assert ask(fetched("someone/one-gguf")) == f"someone/one-gguf@{one}/m-Q4_K_M-00001-of-00002.gguf"
    assert hub.served["m-Q4_K_M-00002-of-00002.gguf"] == 1
    (ggufs / "m-Q8_0.gguf").write_bytes(b"3")
    several = hub.publish("someone/one-gguf", ggufs)
    assert "it has several GGUF files, name one as owner/name/FILE" in ask(fetched("someone/one-gguf"))
    named = "someone/one-gguf/m-Q8_0.gguf"
    assert ask(fetched(named)) == f"someone/one-gguf@{several}/m-Q8_0.gguf" and hub.served["m-Q8_0.gguf"] == 1
    assert re.search("has no file 'other.gguf'.*m-Q8_0.gguf", ask(fetched("someone/one-gguf/other.gguf")))


def test_pickles_are_refused_before_they_are_fetched(hub, folder, ask):
    (folder / "model.safetensors").unlink()
    hub.publish(NAME, folder)
    assert "pytorch_model.bin is never loaded" in ask(fetched())
    assert "pytorch_model.bin" not in hub.served
