"""What a launch sees before it reads anything: where that is what the launch before saw, a finished folder is finished.

It is a digest of the settings, the code, and the names, sizes and times of change of all files that they name. The
manifest keeps it beside the fingerprint, which takes JAX to compute and decides wherever the digests differ.
"""

import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

import decoding
import transforms
from decoding import hub
from decoding.registry import DRAFTS, drafts_of
from pipeline.settings import JobConfig
from transforms.folder import FolderError, open_folder
from transforms.inputs import FILE_FORMATS
from transforms.storage import is_remote


def code_digest() -> str:
    """SHA-256 of the sources of `decoding/` and `transforms/`."""
    digest = hashlib.sha256()
    for package in (decoding, transforms):
        root = pathlib.Path(package.__file__).parent
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cc", ".h")):
            digest.update(f"{package.__name__}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def seen(job: str, config: JobConfig) -> str:
    """The digest of what a launch of `job` sees now; "" where not everything is a file on this machine."""
    model, score = config.model, config.score
    folders = [model.target, model.draft_vocabulary, model.tokenizer, score.generations, *score.drafts.values()]
    folders += [config.input.hint_folder, *drafts_of(model.draft)]
    folders = [path for path in folders if path and path not in DRAFTS and not hub.is_id(path)]  # the hub is not asked
    if config.input.resolved_format not in FILE_FORMATS or any(map(is_remote, (*config.input.patterns, *folders))):
        return ""
    try:
        files = [*map(_stat, _inputs(config)), *(_stat(file) for folder in folders for file in _files(folder))]
    except OSError:  # what is wrong, the job will say
        return ""
    text = json.dumps([job, config.to_json(), code_digest(), sorted(files)])
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def is_finished(job: str, config: JobConfig, output: str) -> bool:
    """Whether `output` is the finished folder of a run whose launch saw what there is now. Where it is not, it may be all
    the same."""
    try:
        opened = open_folder(output)
    except FolderError:
        return False
    manifest = opened.manifest
    return bool(manifest and manifest.seen and not opened.unfinished and manifest.seen == seen(job, config))


def _inputs(config: JobConfig) -> Iterator[str]:
    for pattern in config.input.patterns:
        yield from [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)


def _files(path: str) -> Iterator[str]:
    """Of a directory all files, of a file those beside it: there may be a tokeniser's settings."""
    if not os.path.isdir(path):
        path = os.path.dirname(path)
        yield from (entry.path for entry in os.scandir(path) if entry.is_file())
        return
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)


def _stat(path: str) -> tuple[str, int, int]:
    found = os.stat(path)
    return path, found.st_size, found.st_mtime_ns
