"""What a file that cannot be read probably is, told by its first bytes, for messages at launch."""

import re

from transforms.inputs.base import InputError, InputSpec

_NEVER_TEXT = (
    (rb"PK\x03\x04", "a ZIP archive; unpack it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (rb"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (rb".{257}ustar", "a tar archive; unpack it"),
    (rb"\x04\x22\x4d\x18", "compressed by LZ4; allowed: gzip, bzip2, xz, zstd or not at all"),
    (rb"\xff\x06\x00\x00sNaPpY", "compressed by Snappy; allowed: gzip, bzip2, xz, zstd or not at all"),
    (rb"\x1f[\x9d\xa0]", "compressed by compress; allowed: gzip, bzip2, xz, zstd or not at all"),
    (rb"version https://git-lfs", "Git LFS's pointer to a file; fetch that (git lfs pull)"),
    (rb"PAR1[\x00-\x1f]", 'a Parquet file; set input.format to "parquet"'),
    (rb"ARROW1\x00|ORC[\x00-\x1f]|Obj\x01|\x89HDF|SQLite format 3\x00", "an Arrow, ORC, Avro, HDF5 or SQLite file; allowed: "
     "a format of docs/inputs.md"),
    (rb"[^\x00].{2}\x00{5}", 'a TFRecord file; set input.format to "tfrecord"'),
    (rb"\xff\xfe|\xfe\xff|[^\x00]\x00[^\x00]\x00|\x00[^\x00]\x00[^\x00]", "UTF-16; allowed: UTF-8"),
    (rb"[^\x00]\x00\x00\x00|\x00\x00\x00[^\x00]|\x00\x00\xfe\xff", "UTF-32; allowed: UTF-8"),
)  # fmt: skip


def refuse_what_is_no_text(path: str, head: bytes) -> None:
    """Raises InputError where `head`, the beginning of a file's content, shows that all of it is something else."""
    for pattern, what in _NEVER_TEXT:
        if re.match(pattern, head, re.DOTALL):
            raise InputError(f"{path!r} is {what}")


def likely_cause(head: bytes, spec: InputSpec) -> str:
    """Why no record can be read of a text file that begins with `head`, as far as that shows it; else ""."""
    text = head.decode("utf-8-sig", "replace").lstrip()
    line = text.partition("\n")[0].rstrip("\r")
    if "\r" in text and "\n" not in text:
        return "its lines end with \\r alone; allowed: \\n or \\r\\n"
    if text.startswith("<"):
        return "it looks like XML or HTML"
    if spec.format == "jsonl":
        if text.startswith("["):
            return "it begins like a JSON array, and is not a whole one"
        if text.startswith("{") and line.strip() in ("{", "{ "):
            return "it looks like pretty-printed JSON; an object is needed on every line (jq -c . FILE), or an array of them"
        if text and text[0] not in "{\"'" and spec.fields.inputs in re.split(r"[,;\t|]", line):
            return 'it looks like CSV; set input.format to "csv"'
    if spec.format == "csv":
        if text.startswith(("{", "[")):
            return 'it looks like JSON; set input.format to "jsonl"'
        others = [mark for mark in ",;\t|" if mark != spec.delimiter and spec.fields.inputs in _fields(line, mark)]
        if others:
            return f"input.delimiter is {spec.delimiter!r}, and its fields seem to be parted by {others[0]!r}"
    return ""


def _fields(line: str, mark: str) -> list[str]:
    return [field.strip('"') for field in line.split(mark)]
