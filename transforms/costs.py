"""The measured costs of γ = "auto": frozen once per run, so that every worker and every resume chooses the same γ.

The first worker to have measured creates attempts/costs.json; all others, and later launches, use its numbers. At the
end of the run they move into the manifest.
"""

import dataclasses
import json

from decoding.adaptive import Costs, decode_costs, encode_costs
from transforms import storage
from transforms.folder import FolderError, read_manifest
from transforms.storage import OutputFolder

NAME = f"{storage.ATTEMPTS}/costs.json"


def read(folder: OutputFolder) -> Costs | None:
    """The run's frozen costs, None where none were measured yet.

    Raises:
      FolderError: what is there is not what a worker has written.
    """
    frozen, name = read_manifest(folder).costs, storage.MANIFEST
    if frozen is None and folder.exists(NAME):
        frozen, name = _read_measured(folder), NAME
    try:
        return None if frozen is None else decode_costs(frozen)
    except ValueError as error:
        raise FolderError(f"{name} of {folder.root!r} cannot be used: {error}") from error


def _read_measured(folder: OutputFolder):
    """What attempts/costs.json holds, None where it has just moved into the manifest."""
    try:
        return json.loads(folder.read(NAME))
    except FileNotFoundError:
        return read_manifest(folder).costs
    except ValueError as error:
        raise FolderError(f"{NAME} of {folder.root!r} cannot be used: {error}; without it, costs are measured anew") from error


def freeze(folder: OutputFolder, costs: Costs) -> Costs:
    """Offers `costs` as the run's. Returns the ones that it has from now on."""
    data = json.dumps(encode_costs(costs)).encode()
    return costs if folder.create(NAME, data) else read(folder)


def move_to_manifest(folder: OutputFolder) -> None:
    """Writes frozen costs, if there are any, into the manifest, from where they are read afterwards."""
    if folder.exists(NAME) and (measured := _read_measured(folder)) is not None:
        folder.put(storage.MANIFEST, dataclasses.replace(read_manifest(folder), costs=measured).encode())
