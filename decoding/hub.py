"""Models by their id on the Hugging Face hub: "google/flan-t5-xl", "google/flan-t5-xl@REVISION", "owner/name/model.gguf".

`pin` resolves an id to a commit, "google/flan-t5-xl@<commit>", which is a path like any other from there on: what reads
files asks `local` where they lie.  That is a folder of the hub's cache on the machine that asks, filled when it is first
asked for and complete from then on without a network, so that all workers read the launcher's commit, wherever they are.
huggingface_hub does the fetching; its environment variables hold (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

import functools
import json
import os
import re
import time
from collections.abc import Iterable

import tqdm

_COMMIT = r"[0-9a-f]{40}"
_REPOSITORY = r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)"
_ID = re.compile(_REPOSITORY + r"(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[\w./-]+\.gguf))?", re.ASCII)
_PINNED = re.compile(_REPOSITORY + rf"@(?P<commit>{_COMMIT})(?:/(?P<file>.*))?", re.ASCII)
_FILES = (".bin", ".gguf", ".json", ".model", ".py", ".safetensors", ".spm", ".txt")  # what ends so, names no repository
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL = (
    "config.json", "generation_config.json", _INDEX, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "source.spm",
    "target.spm", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_WAITS_SECS = (1, 4)  # what fails for the moment is asked again
_SHOWN = 5


class HubError(OSError):
    """A model of the hub that cannot be had: one line with its id, why, and what to do."""


class _Bar(tqdm.tqdm):
    """Progress, on a terminal only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"disable": None, **kwargs})


def is_id(name: str) -> bool:
    """Whether a name is one of the hub's: a path that exists is that path, and so is one below a folder that exists."""
    if os.path.exists(name) or not (found := _ID.fullmatch(name)) or found["repository"].endswith(_FILES):
        return False
    return not os.path.isdir(name.partition("/")[0])


def pin(name: str) -> str:
    """`name` with the commit that its revision means now; what is no id, or has a commit, as it is.

    The repository's small files are then in the cache.  Of one that has a single GGUF file and no safetensors it is that
    file.

    Raises:
      HubError: the hub has no such model or revision, shows it to others only, or cannot be reached.
    """
    if not is_id(name):
        return name
    found = _ID.fullmatch(name)
    repository, revision = found["repository"], found["revision"] or "main"
    folder = _small(repository, revision) if re.fullmatch(_COMMIT, revision) else _download(repository, revision, _SMALL)
    commit = os.path.basename(folder)
    file = found["file"] or _only_gguf(repository, commit)
    return f"{repository}@{commit}/{file}" if file else f"{repository}@{commit}"


def commit_of(path: str) -> str | None:
    """The commit of a pinned id, None of any other path."""
    found = _PINNED.fullmatch(path)
    return found["commit"] if found else None


def local(path: str) -> str:
    """Where the file or folder lies that a pinned id, or a path below one, stands for; any other path as it is.

    Small files are fetched, and a GGUF file that it names; safetensors are there once `fetch_weights` was asked for them.

    Raises:
      HubError: the files cannot be had.
    """
    found = _PINNED.fullmatch(path)
    if found is None or os.path.exists(path):
        return path
    folder = _small(found["repository"], found["commit"])
    if (found["file"] or "").endswith(".gguf"):
        fetch_weights(path)
    return os.path.join(folder, found["file"]) if found["file"] else folder


def fetch_weights(path: str) -> None:
    """Has the weights of a pinned id in the cache: safetensors, whole or those of the index, or the GGUF file that it names.

    Raises:
      HubError: the repository has none of them, or they cannot be had.
    """
    found = _PINNED.fullmatch(path)
    if found is not None and not os.path.exists(path):
        _weights(found["repository"], found["commit"], found["file"])


@functools.lru_cache
def _small(repository: str, commit: str) -> str:
    return _download(repository, commit, _SMALL)


@functools.lru_cache
def _weights(repository: str, commit: str, file: str | None) -> None:
    names, shown = _names(repository, commit), f"{repository}@{commit}"
    if file:
        if file not in names:
            found = ", ".join(name for name in names if name.endswith(".gguf")) or "none"
            raise HubError(f"{shown!r} has no file {file!r:.200}; of GGUF files it has {found:.500}")
        wanted = _parts(file, names)
    elif _SINGLE in names:
        wanted = [_SINGLE]
    elif _INDEX in names:
        with open(os.path.join(_small(repository, commit), _INDEX), encoding="utf-8") as file_:
            wanted = sorted(set(json.load(file_).get("weight_map", {}).values()))
    else:
        raise HubError(f"{shown!r} has no weights that can be read: {_instead(names)}")
    _download(repository, commit, wanted)


def _instead(names: list[str]) -> str:
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        more = f" and {len(ggufs) - _SHOWN} more" if len(ggufs) > _SHOWN else ""
        return f"it has several GGUF files, name one as owner/name/FILE: {', '.join(ggufs[:_SHOWN])}{more}"
    pickled = [name for name in names if name.endswith((".bin", ".msgpack", ".h5", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return (
            f"{', '.join(pickled[:_SHOWN])} is never loaded (pickles may run code); a revision with model.safetensors is "
            "needed (often one of its pull requests, owner/name@refs/pr/NUMBER), or a folder that was converted"
        )
    return f"{_SINGLE}, {_INDEX} with its files, or a GGUF file is needed"


def _only_gguf(repository: str, commit: str) -> str | None:
    names = _names(repository, commit)
    if _SINGLE in names or _INDEX in names:
        return None
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    return ggufs[0] if ggufs and len(_parts(ggufs[0], names)) == len(ggufs) else None


def _parts(file: str, names: Iterable[str]) -> list[str]:
    """Of a split GGUF file all, of another itself."""
    part = _PART.fullmatch(file)
    same = [name for name in names if part and (other := _PART.fullmatch(name)) and other.groups() == part.groups()]
    return sorted(same) or [file]


def _names(repository: str, commit: str) -> list[str]:
    """Files of the repository, or where a cache of an earlier huggingface_hub does not say, those that it has."""
    import huggingface_hub
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in huggingface_hub.get_cached_repo_tree(repository, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return sorted(os.listdir(_small(repository, commit)))


def _download(repository: str, revision: str, names: Iterable[str]) -> str:
    """The folder of the cache with these files, as far as the repository has them.

    Raises:
      HubError: they cannot be had.
    """
    import huggingface_hub  # only now: it takes a while, and reads its environment then

    allowed = [name.replace("[", "[[]") for name in names]
    for wait in (*_WAITS_SECS, None):
        try:
            return huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=allowed, tqdm_class=_Bar
            )
        except Exception as error:  # of the client and of what it speaks HTTP with, which have many
            why = _why(error)
            if wait is None or why:
                shown = repository if revision == "main" else f"{repository}@{revision}"
                why = why or _unreachable(error)
                raise HubError(f"{shown!r} is no path here, and as a model of the hub {why}") from None
            time.sleep(wait)
    raise AssertionError("unreachable")


def _why(error: Exception) -> str:
    """What is wrong for good, and what to do; "" of what may pass."""
    from huggingface_hub import errors

    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    status = next((cause.response.status_code for cause in causes if isinstance(cause, errors.HfHubHTTPError)), 0)

    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(errors.GatedRepoError):
        return "it is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
    if caused_by(errors.RepositoryNotFoundError):
        return "it is not there, or private: check the name, or set HF_TOKEN to a token that may read it"
    if caused_by(errors.RevisionNotFoundError):
        return "it has no such revision: name a branch, a tag or a commit after the @"
    if caused_by(errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "it is not whole in the cache, and HF_HUB_OFFLINE is set: unset it, or name the folder of a model"
    if caused_by(errors.HFValidationError):
        return f"it has no valid name: {_line(error)}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return f"it cannot be kept in the cache: {_line(error)}; HF_HOME says where that is"
    if status in (401, 403):
        return f"it is refused (status {status}): set HF_TOKEN to a token that may read it"
    return f"it cannot be had: {_line(error)}" if 400 <= status < 500 and status not in (408, 429) else ""


def _unreachable(error: Exception) -> str:
    return (
        f"it cannot be had now ({type(error.__cause__ or error).__name__}: {_line(error)}): check the network and "
        "HF_ENDPOINT, fetch it into the cache where there is a network, or name the folder of a model"
    )


def _line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= 200 else line[:200] + "..."
