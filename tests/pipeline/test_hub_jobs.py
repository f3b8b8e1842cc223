"""Jobs whose models are ids of the hub: downloaded once, at one commit from the first launch to the last worker."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tokenizers

from tests.pipeline.helpers import rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict(dict(
        input=dict(pattern="in.txt"), model=dict(target="someone/target", draft="someone/draft@v1"),
        decoding=dict(gamma=2, temperature=0.0, max_decode_tokens=8, num_slots=2, input_buckets=(8,)),
        shards=dict(examples_per_shard=1),
    ))
"""


@pytest.fixture
def folder(tmp_path, golden) -> pathlib.Path:
    shutil.copytree(golden / "gpt2", tmp_path / "gpt")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(384)}, "w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "gpt" / "tokenizer.json"))
    return tmp_path / "gpt"


@pytest.fixture
def launch(hub, tmp_path):
    (tmp_path / "in.txt").write_text("w5 w6\nw9\n")
    (tmp_path / "config.py").write_text(CONFIG)

    def run(job, *args, **environment):
        keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, "-m", f"pipeline.{job}", "--config=config.py", *args]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_a_job_by_ids(hub, folder, launch, tmp_path):
    target, draft = hub.publish("someone/target", folder), hub.publish("someone/draft", folder, branch="v1")
    hub.gated["someone/target"] = "a-secret"
    for name, why in (
        ("someone/target", "it is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"),
        ("someone/nothing", "it is not there, or private: check the name, or set HF_TOKEN to a token that may read it"),
    ):
        refused = launch("generate", "--output=out", f"--config.model.target={name}")
        assert refused.returncode == 2
        assert refused.stderr == f"error: model.target: {name!r} is no path here, and as a model of the hub {why}\n"
    assert "model.safetensors" not in hub.served
    two = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    done = launch("generate", "--output=out", *two, HF_TOKEN="a-secret")
    assert done.returncode == 0, done.stderr
    assert "a-secret" not in done.stdout + done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["model"]["target"] == f"someone/target@{target}"
    assert manifest["identity"]["model"]["target"]["commit"] == target
    assert manifest["identity"]["model"]["draft"]["commit"] == draft
    assert "a-secret" not in (tmp_path / "out" / "manifest.json").read_text()
    assert hub.served["model.safetensors"] == 2  # launcher and workers: once for each repository

    local = launch("generate", "--output=local", f"--config.model.target={folder}", f"--config.model.draft={folder}")
    assert local.returncode == 0, local.stderr
    assert rows(tmp_path / "out")["prediction"].tolist() == rows(tmp_path / "local")["prediction"].tolist()

    hub.asked.clear()
    finished = launch("generate", "--output=out")
    assert finished.returncode == 0 and "Finished already" in finished.stdout and not hub.asked
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    (newer / "tokenizer_config.json").write_text("{}")
    later = hub.publish("someone/target", newer)
    part = next((tmp_path / "out" / "generations").iterdir())
    part.unlink()
    (tmp_path / "out" / "_SUCCESS").unlink()
    again = launch("generate", "--output=out")  # at the commit that it was begun with, which is in the cache
    assert again.returncode == 0, again.stderr
    other = launch("generate", "--output=out", f"--config.model.target=someone/target@{later}", HF_TOKEN="a-secret")
    assert other.returncode == 2 and f"{target!r} there, {later!r} now" in other.stderr


@pytest.mark.soak
def test_scores_of_drafts_by_ids(hub, folder, launch, tmp_path):
    hub.publish("someone/target", folder)
    commit = hub.publish("someone/draft", folder, branch="v1")
    assert launch("generate", "--output=texts").returncode == 0
    args = ("--output=scores", "--config.score.generations=texts", "--config.score.drafts.small=someone/draft@v1")
    done = launch("score", *args)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "scores" / "manifest.json").read_text())
    assert manifest["identity"]["drafts"]["small"]["commit"] == commit
    missing = launch("score", *args[:2], "--config.score.drafts.small=someone/nothing")
    assert missing.returncode == 2 and "score.drafts.small: 'someone/nothing' is no path here" in missing.stderr
