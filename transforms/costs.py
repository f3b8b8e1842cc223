"""The measured costs of γ = "auto": frozen once per run, so that every worker and every resume chooses the same γ.

The first worker to have measured creates attempts/costs.json; all others, and later launches, use its numbers. At the
end of the run they move into the manifest.
"""

import json

from transforms import storage
from transforms.storage import OutputFolder

Costs = dict[tuple[int, int], float]
"""Seconds per iteration by (input bucket, γ)."""

NAME = f"{storage.ATTEMPTS}/costs.json"


def read(folder: OutputFolder) -> Costs | None:
    """The run's frozen costs, None where none were measured yet."""
    frozen = json.loads(folder.read(storage.MANIFEST))["costs"]
    if frozen is None and folder.exists(NAME):
        frozen = json.loads(folder.read(NAME))
    return None if frozen is None else {(bucket, gamma): seconds for bucket, gamma, seconds in frozen}


def freeze(folder: OutputFolder, costs: Costs) -> Costs:
    """Offers `costs` as the run's. Returns the ones that it has from now on."""
    data = json.dumps([[*key, seconds] for key, seconds in sorted(costs.items())]).encode()
    return costs if folder.create(NAME, data) else read(folder)


def move_to_manifest(folder: OutputFolder) -> None:
    """Writes frozen costs, if there are any, into the manifest, from where they are read afterwards."""
    if folder.exists(NAME):
        manifest = json.loads(folder.read(storage.MANIFEST))
        manifest["costs"] = json.loads(folder.read(NAME))
        folder.put(storage.MANIFEST, storage.encode_manifest(manifest))
