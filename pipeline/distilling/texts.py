"""What a draft is trained on: the target's texts in finished folders of `pipeline.generate`, each with its own sampling."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from decoding.training.recipe import Law
from decoding.training.trainer import Text
from transforms.folder import OpenedFolder
from transforms.parts import read_rows

_COLUMNS = ("example_id", "input_tokens", "output_tokens", "input_truncated")
_MOST_HELD_OUT = 0.1  # share of the examples


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts, and the example that each is of."""

    texts: tuple[Text, ...]
    example_ids: tuple[str, ...]

    def only(self, keep: Callable[[Text], bool]) -> "Texts":
        pairs = [(text, example) for text, example in zip(self.texts, self.example_ids) if keep(text)]
        return Texts(tuple(text for text, _ in pairs), tuple(example for _, example in pairs))

    @property
    def tokens(self) -> int:
        return sum(len(text.tokens) for text in self.texts)


def law_of(opened: OpenedFolder) -> Law:
    """How a folder's texts were sampled."""
    was = opened.manifest.identity["decoding"]
    return Law(float(was["temperature"]), was["top_k"], float(was["top_p"]))


def read_texts(folders: Sequence[OpenedFolder], held_out: int) -> tuple[Texts, Texts]:
    """The texts to train on and those held out, in the folders' order; truncated inputs are left out.

    Held out are all texts of `held_out` examples, at most a tenth of them: those whose ids have the smallest hashes, so that
    more texts of an example, or another order of folders, change nothing.
    """
    rows: list[tuple[str, Text]] = []
    for opened in folders:
        law = law_of(opened)
        for name in opened.manifest.part_names():
            table = read_rows(opened.folder.path(name), _COLUMNS, opened.manifest.fingerprint)
            for example, inputs, tokens, truncated in zip(*(table[column].to_pylist() for column in _COLUMNS)):
                if not truncated and inputs and tokens:
                    rows.append((example, Text(np.array(inputs, np.int32), np.array(tokens, np.int32), law)))
    ids = sorted({example for example, _ in rows}, key=lambda example: hashlib.blake2b(example.encode()).digest())
    kept = {*ids[: min(held_out, int(len(ids) * _MOST_HELD_OUT))]}
    parts = ([row for row in rows if row[0] not in kept], [row for row in rows if row[0] in kept])
    return tuple(Texts(tuple(text for _, text in part), tuple(example for example, _ in part)) for part in parts)
