"""Prepared TFDS data sets of the published names, versions and features, written by TFDS itself from other sentences."""

import json
import pathlib
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
SENTENCES = ROOT / "tests" / "testdata" / "sentences"


def read_rows(path: pathlib.Path, count: int) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()[:count]]


def translations(count: int = 20) -> list[dict]:
    rows = read_rows(ROOT / "examples" / "data" / "ende_software.test.jsonl", count)
    return [{"en": row["en"], "de": row["de"]} for row in rows]


def articles() -> list[dict]:
    rows = read_rows(SENTENCES / "summarize_software.test.jsonl", 12)
    return [{**row, "id": f"{i:040x}", "publisher": "Debian"} for i, row in enumerate(rows)]


def sentences() -> list[dict]:
    return read_rows(SENTENCES / "sentences_software.test.jsonl", 16)


def prepare(data_dir: pathlib.Path, name: str, rows: list[dict], split: str = "test", num_files: int = 1):
    """Writes `rows` as the split of the data set `name`, and returns its builder. Downloads nothing."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(data_dir))
    generate = {split: ((i, row) for i, row in enumerate(rows))}
    with mock.patch.object(type(builder), "_split_generators", lambda self, dl_manager: generate):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=num_files, compute_stats="skip")
        )
    return builder
