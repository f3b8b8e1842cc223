"""Which files an input consists of."""

import os
import re
from collections.abc import Sequence

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems

from transforms import storage
from transforms.inputs.base import FoundFile, InputError

_SPECIAL = re.compile(r"[*?\[]")


def find_files(patterns: Sequence[str], output: str = "") -> list[FoundFile]:
    """All files that the patterns match, each once, ordered by path. What lies below `output` is no input.

    A pattern that is the very name of a file means that file, whatever it would mean as a glob; the same goes for
    folders on a local disk, up to the first that is not there.

    Raises:
      InputError: a pattern matches nothing, or cannot be listed; a name is not UTF-8.
    """
    found = {}
    for pattern in patterns:
        try:
            matched = _match(pattern)
            files = [FoundFile(f.path, int(f.size_in_bytes), float(f.last_updated_in_seconds or 0.0)) for f in matched]
        except Exception as error:  # whatever the client of a store raises, or makes of an answer that is none
            raise InputError(f"{pattern!r} cannot be listed: {error}") from error
        outside = [file for file in files if not _below(output, file.path)]
        if not outside:
            where = " but what lies in the output folder" if files else ""
            raise InputError(f"{pattern!r} matches no file{where}")
        for file in outside:
            if file.path != file.path.encode(errors="replace").decode():
                raise InputError(f"{file.path!r} has a name that is not UTF-8; rename it")
            found[file.path] = file
    return [found[path] for path in sorted(found)]


def _match(pattern: str) -> list[FileMetadata]:
    if not _SPECIAL.search(pattern):
        return FileSystems.match([pattern])[0].metadata_list
    if storage.exists(pattern) and not os.path.isdir(pattern):
        return [FileSystems.get_filesystem(pattern).metadata(pattern)]
    folder = _literal_folder(pattern)
    # Beam has no way to quote what is special, so any character is let in there, and the wrong ones are left out.
    matched = FileSystems.match([_SPECIAL.sub("?", folder) + pattern[len(folder) :]])[0].metadata_list
    return [file for file in matched if file.path.startswith(folder)]


def _literal_folder(pattern: str) -> str:
    """The longest beginning of a local pattern that is a folder's name, "/" included."""
    if storage.is_remote(pattern):
        return ""
    folder = pattern.rpartition("/")[0]
    while folder and not os.path.isdir(folder):
        folder = folder.rpartition("/")[0]
    return folder and folder + "/"


def _below(folder: str, path: str) -> bool:
    return bool(folder) and path.startswith(folder.rstrip("/") + "/")


def short_names(paths: Sequence[str]) -> list[str]:
    """As much of each path's end as tells all of them apart: the file name, where possible."""
    parts = [path.replace("\\", "/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("an input file is listed twice")
