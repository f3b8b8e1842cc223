"""zarr arrays on disk or gs://, through tensorstore."""

from collections.abc import Mapping

import numpy as np

from decoding.checkpoints.storage import CheckpointError


class Arrays:
    """`decoding.checkpoints.fill.Tensors` over zarr arrays.

    Attributes:
      shapes: by name.

    Raises:
      CheckpointError: one of them is not a zarr array.
    """

    def __init__(self, root: str, driver: str, kvstores: Mapping[str, Mapping], context=None):
        """
        Args:
          root: the checkpoint, for messages.
          driver: "zarr" (version 2) or "zarr3".
          kvstores: tensorstore's description of where each array lies, by name.
          context: tensorstore's, shared by all.
        """
        import tensorstore

        self._root = root
        # Without the flag a chunk that is not there reads as zeros.
        specs = {name: {"driver": driver, "kvstore": kv, "fill_missing_data_reads": False} for name, kv in kvstores.items()}
        opening = {name: tensorstore.open(spec, open=True, read=True, context=context) for name, spec in specs.items()}
        self._stores = {name: self._result(name, future) for name, future in opening.items()}
        self.shapes = {name: tuple(store.shape) for name, store in self._stores.items()}

    def read(self, name: str) -> np.ndarray:
        return self._result(name, self._stores[name].read())

    def _result(self, name: str, future):
        try:
            return future.result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._root}: {name} cannot be read as a zarr array: {error}") from error
