"""Model directories with a tokeniser, an input file, and a config over them."""

import io
import json
import pathlib
import shutil

import pytest
import sentencepiece

from tests.pipeline.helpers import run

SENTENCES = [
    "The package provides a small tool to convert files.",
    "No protection when the device is started.",
    "Enhance contrast using the Retinex method",
    "This library reads and writes images in many formats.",
    "It is advised to save your work and restart.",
    "A simple editor for the terminal, with colours.",
    "Network daemon that answers queries about users.",
]


@pytest.fixture(scope="session")
def spiece_model() -> bytes:
    """A sentencepiece model of 384 pieces with byte fallback: the vocabulary of the reference T5 models."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=model, vocab_size=384, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="session")
def models(tmp_path_factory, golden, spiece_model) -> dict[str, pathlib.Path]:
    """Directories of a target and a draft T5, each with its tokeniser."""
    found = {}
    for name in ("target", "draft"):
        found[name] = tmp_path_factory.mktemp("models") / name
        shutil.copytree(golden / f"t5_v1_1_{name}", found[name])
        (found[name] / "spiece.model").write_bytes(spiece_model)
    return found


def write_sentences(path: pathlib.Path) -> pathlib.Path:
    rows = ({"en": f"{SENTENCES[i % len(SENTENCES)]} {i}", "de": f"Satz {i} hat einen Bezug."} for i in range(30))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_config(path: pathlib.Path, models: dict[str, pathlib.Path], sentences: pathlib.Path) -> pathlib.Path:
    path.write_text(
        f"""
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict(dict(
        input=dict(pattern={str(sentences)!r}, input_field="en", target_field="de"),
        model=dict(target={str(models["target"])!r}, draft={str(models["draft"])!r}),
        decoding=dict(gamma=3, max_decode_tokens=12, num_slots=4, input_buckets=(64, 128)),
        shards=dict(examples_per_shard=8),
    ))
"""
    )
    return path


@pytest.fixture
def sentences(tmp_path) -> pathlib.Path:
    """30 records of fields "en" and "de"."""
    return write_sentences(tmp_path / "input.jsonl")


@pytest.fixture
def command(tmp_path, models, sentences):
    """A command line for `pipeline.generate`: command("--config.x=y", output=...) -> list of arguments."""
    config = write_config(tmp_path / "config.py", models, sentences)

    def arguments(*overrides: str, output: pathlib.Path = tmp_path / "out") -> list[str]:
        return [f"--config={config}", f"--output={output}", *overrides]

    return arguments


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, models) -> pathlib.Path:
    """Output of `run(command())`, to be read only: a job costs about a second, and many tests begin where it ends."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "config.py", models, write_sentences(folder / "input.jsonl"))
    run([f"--config={config}", f"--output={folder / 'out'}"])
    return folder / "out"


@pytest.fixture
def finished(tmp_path, finished_run) -> pathlib.Path:
    """A copy of it in `command()`'s own output folder, as if that had been run."""
    return shutil.copytree(finished_run, tmp_path / "out")


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """Folder of a report whose inputs, ids, outputs and folder names are hostile, and analysis.json's content."""
    from tests.pipeline.report_pages import make_report  # needs the extra `report`

    return make_report(tmp_path_factory.mktemp("report"))
