"""Parts say what they are, and notice every changed byte."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.parts import FOOTER_KEY, Footer, PartError, check_part, encode_table, open_part, read_footer
from transforms.statistics.generations import Statistics

NAME = "part-00003-of-00005.parquet"


def part(folder, shard=3, fingerprint="f00"):
    table = pa.table({"text": [f"row {i}" for i in range(40)], "number": np.arange(40)})
    data = encode_table(table, Footer(shard, fingerprint, 2, "cpu", Statistics(parts=1, tokens=7)))
    path = folder / NAME
    path.write_bytes(data)
    return path, table


def test_what_is_read_is_what_was_written(tmp_path):
    path, table = part(tmp_path)
    assert pq.read_table(open_part(str(path), "f00")).remove_column(0).column("number").to_pylist() == list(range(40))
    assert pq.read_table(path).schema.remove_metadata() == table.schema
    footer = check_part(str(path), "f00")
    assert footer == read_footer(str(path)) and footer.sealed
    assert (footer.shard, footer.attempt, footer.statistics.tokens) == (3, 2, 7)
    assert part(tmp_path)[0].read_bytes() == path.read_bytes()


def test_every_flipped_byte_is_noticed(tmp_path):
    path, _ = part(tmp_path)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(PartError, match=NAME):
            check_part(str(path), "f00")


@pytest.mark.parametrize("length", [0, 4, 100, -1, -8, -100])
def test_truncated_parts_are_named(tmp_path, length):
    path, _ = part(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    for read in (read_footer, open_part):
        with pytest.raises(PartError, match=f"{NAME}.* is damaged"):
            read(str(path))


def test_copies(tmp_path):
    path, _ = part(tmp_path)
    with pytest.raises(PartError, match=f"{NAME}.* belongs to another run: its fingerprint is f00, not f01"):
        open_part(str(path), "f01")
    copy = shutil.copy(path, tmp_path / "part-00004-of-00005.parquet")
    with pytest.raises(PartError, match="part-00004.* is a copy of another part, that of shard 3"):
        open_part(str(copy), "f00")


def test_a_part_of_an_earlier_version_has_no_checksum(tmp_path):
    path, table = part(tmp_path)
    footer = Footer(3, "f00", 2, "cpu", Statistics(parts=1)).to_bytes()
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer}), path)
    assert check_part(str(path), "f00").shard == 3


@pytest.mark.parametrize("footer", ["[]", "3", "{", '{"shard": 3}', '{"fingerprint": "f00", "shard": 3}'])
def test_footers_of_somebody_else(tmp_path, footer):
    path, table = part(tmp_path)
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer.encode()}), path)
    with pytest.raises(PartError, match=NAME):
        check_part(str(path), "f00")
    pq.write_table(table, path)
    with pytest.raises(PartError, match=NAME):
        read_footer(str(path))


def test_footers_are_json(tmp_path):
    path, _ = part(tmp_path)
    assert json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])["fingerprint"] == "f00"
