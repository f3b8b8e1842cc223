"""The rows of an output folder of `pipeline.generate` or `pipeline.score`, finished or not."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.folder import FolderError, OpenedFolder, open_run


def read(folder: str, *, columns: Sequence[str] | None = None, unfinished: bool = False) -> pa.Table:
    """All rows of an output folder, in the order of the input; docs/outputs.md describes the columns.

    Args:
      folder: local or on gs://.
      columns: those wanted; None for all.
      unfinished: take what there is of a run that is not finished.

    Returns:
      An Arrow table; `.to_pandas()` makes a data frame of it.

    Raises:
      ValueError: it is no such folder, is not finished, or has no such column.
    """
    return pa.concat_tables(list(tables(open_rows(folder, unfinished=unfinished), columns)))


def open_rows(folder: str, *, unfinished: bool) -> OpenedFolder:
    """Opens a folder whose rows are to be read. Raises FolderError where there are none."""
    opened = open_run(folder, "the folder")
    if opened.unfinished and not unfinished:
        raise FolderError(f"the folder {folder!r} {opened.unfinished}; allowed: a finished one, or unfinished=True")
    if not opened.committed:
        raise FolderError(f"the folder {folder!r} {opened.unfinished}: it has no rows yet")
    return opened


def tables(opened: OpenedFolder, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of its committed parts, one part after the other."""
    names = opened.manifest.part_names()
    for shard in opened.committed:
        path = opened.folder.path(names[shard])
        try:
            # Arrow's threads may let go of the stream after `read` has returned, while the interpreter ends, and abort it.
            with storage.open_raw(path) as stream, pq.ParquetFile(stream) as part:
                table = part.read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise FolderError(f"{path!r} cannot be read: {error}") from error
        if columns is not None:
            if absent := [name for name in columns if name not in table.column_names]:
                raise FolderError(f"the columns {absent} are not in {path!r}; allowed: {', '.join(table.column_names)}")
            table = table.select(columns)
        yield table.replace_schema_metadata()  # a part's own, its statistics among it
