"""What is decoded and how: `DecodingConfig` in, `Generation` out."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable

from decoding.registry import RULES

if typing.TYPE_CHECKING:
    import numpy as np

# Axes of a mesh of devices: groups of slots, and the devices that a model is split over.
DATA, MODEL = "data", "model"

# Glossary.  These words mean the same in code, docs and reports.
#
# What a token of a generation was:
#   accepted    a drafted token that the target agreed with
#   corrected   the target's token in the place of the first drafted one that it rejected
#   bonus       the target's token after all drafted ones were accepted
#   plain       the target's token where nothing was drafted
#
# Where and when:
#   position    a place in the decoder's inputs, from 0
#   iteration   one call of the target for a row: γ drafted positions and one more; it emits 1 to γ + 1 tokens
#   chunk       the iterations of one call of a compiled program
#   row         one generation in the making: one sample of one example
#   slot        a place in the batch, which rows pass through one after the other
#   shard       the examples that are read, decoded, committed, retried and resumed together
#   part        the file that a committed shard is, and all that is known of it

# Settings that mean something in beam search only, and those that mean nothing in it.
_OF_BEAMS = (
    "length_penalty", "length_penalty_form", "early_stopping", "num_return_sequences", "draft_beams", "min_new_tokens",
    "no_repeat_ngram_size",
)  # fmt: skip
_NOT_WITH_BEAMS = ("temperature", "top_k", "top_p", "lenience", "num_samples", "verification", "hint_tokens")

# Per-token sources of a Generation: by number, name and meaning.
CORRECTED, ACCEPTED, BONUS, PLAIN = 0, 1, 2, 3
TOKEN_KINDS = {
    CORRECTED: ("corrected", "the target's own choice after it rejected the draft's"),
    ACCEPTED: ("accepted", "drafted, and the target accepts it"),
    BONUS: ("bonus", "the target's next token after accepting all of the draft"),
    PLAIN: ("plain", "decoded without a draft"),
}

# Where the guesses of an iteration came from: by number, name and meaning; -1 where there were none.
NOTHING, MODEL_GUESS, OUTPUT, INPUT, HINT, INDEX = range(-1, 5)
ORIGINS = {
    MODEL_GUESS: ("model", "a draft with a distribution of its own"),
    OUTPUT: ("output", "copied from the row's own output"),
    INPUT: ("input", "copied from its input"),
    HINT: ("hint", "copied from a hint"),
    INDEX: ("index", "what followed the last tokens in a corpus"),
}


def parse_mesh(text: str) -> tuple[int, int]:
    """(data, model) of "data:2,model:4"; an axis that is not named is 1. Raises ValueError where it is none."""
    parts = dict(part.partition(":")[::2] for part in text.split(","))
    if not set(parts) <= {DATA, MODEL} or not all(size.isdigit() and int(size) for size in parts.values()):
        raise ValueError(f'a mesh is {text!r}; allowed: numbers of at least 1, as in "data:2,model:4"')
    return int(parts.get(DATA, 1)), int(parts.get(MODEL, 1))


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Settings of speculative decoding.  Everything here determines the result and belongs to the fingerprint.

    Attributes:
      gamma: number of tokens drafted per iteration; 0 decodes plainly; "auto" chooses per chunk from
        `gamma_choices` by measured costs and running acceptance.
      gamma_choices: the set that "auto" chooses from; must contain 0.
      verification: "token" (Algorithm 1 of Leviathan et al.), "block" (Sun et al., 2403.10444) or "coupled"
        (shared Gumbel noise, 2408.07978), or one that was registered (`decoding.registry`).  These three are exact.
      temperature: 0 takes the argmax; else logits are divided by it.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose probability reaches top_p; 1.0 keeps all.
      max_decode_tokens: tokens per generation at most, EOS included.
      lenience: l of section A.5; 1.0 is exact, below it the output is biased towards the draft.
      num_slots: rows decoded together; batches are always padded to it.
      num_samples: generations per input, each with its own random key.
      seed: with example id, sample and position, the only source of randomness.
      input_buckets: increasing input lengths in tokens that prefill is compiled for; the last is the longest
        input allowed.
      chunk_iterations: iterations on device between two looks of the host, at most.
      first_from_input: an input's first token is what its text has to begin with, a language's code say, and only the rest
        is the encoder's; it takes the place of what the checkpoint forces.
      num_beams: 1 samples, or takes the argmax; above it, beam search with so many beams, at temperature 0 only.
      length_penalty: the exponent of a text's length, which its log-probability is divided by before texts are compared.
      length_penalty_form: "transformers" divides by length ** length_penalty, "t5x" by
        ((5 + length) / 6) ** length_penalty, Google's brevity penalty.
      early_stopping: when a search ends: True as soon as there are num_beams hypotheses, False when the best running beam
        would not beat the worst of them if it ended now, "never" when no running beam could.
      num_return_sequences: texts per input, the best first; at most num_beams.
      draft_beams: beams of the draft in speculative beam search, at least num_beams; 0 for twice as many. Drafts that copy
        have one guess per beam.
      min_new_tokens: a text does not end before it has so many tokens; with beams only, as the next one.
      no_repeat_ngram_size: no so many tokens in a row occur twice in a text; 0 for no limit.
      hint_tokens: room for the hints of a row, in tokens: texts that its output nearly is, which the draft copies from. 0 for
        none; a job whose input has hints sets it, to max_decode_tokens for each, where it is 0.

    Raises:
      ValueError: at construction, with the setting, its value and what is allowed.
    """

    gamma: int | str = 5
    verification: str = "token"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_decode_tokens: int = 128
    lenience: float = 1.0
    num_slots: int = 8
    num_samples: int = 1
    seed: int = 0
    input_buckets: tuple[int, ...] = (32, 64, 128, 256, 512)
    chunk_iterations: int = 32
    gamma_choices: tuple[int, ...] = (0, 1, 2, 3, 5, 7)
    first_from_input: bool = False
    hint_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    length_penalty_form: str = "transformers"
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    draft_beams: int = 0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0

    def __post_init__(self):
        def require(condition: bool, name: str, allowed: str):
            if not condition:
                raise ValueError(f"decoding.{name} is {getattr(self, name)!r}; allowed: {allowed}")

        def is_whole(value, low: float = float("-inf"), high: float = float("inf")) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        def whole(name: str, low: int):
            require(is_whole(getattr(self, name), low), name, f"a whole number of at least {low}")

        def number(name: str, condition: Callable[[float], bool], allowed: str):
            value = getattr(self, name)
            ok = isinstance(value, int | float) and not isinstance(value, bool) and condition(value)
            require(ok, name, allowed)
            require(not 0.0 < value < 1e-30, name, f"{allowed}; below 1e-30 float32 does not reach")

        def wholes(name: str, low: int, high: float = float("inf")) -> bool:
            value = getattr(self, name)
            return isinstance(value, tuple | list) and all(is_whole(one, low, high) for one in value)

        if self.gamma != "auto":
            require(is_whole(self.gamma, 0, 64), "gamma", 'a whole number from 0 to 64, or "auto"')
        if self.verification not in RULES:
            require(False, "verification", ", ".join(RULES.names()))
        number("temperature", lambda value: 0.0 <= value < float("inf"), "a number of at least 0; 0 is argmax")
        whole("top_k", 0)
        number("top_p", lambda value: 0.0 < value <= 1.0, "a number above 0 and at most 1; 1 keeps all tokens")
        whole("max_decode_tokens", 1)
        number("lenience", lambda value: 0.0 < value <= 1.0, "a number above 0 and at most 1; 1 is exact")
        require(
            self.lenience == 1.0 or self.verification == "token",
            "lenience",
            f'1.0 with verification={self.verification!r}; lenience is defined for verification="token" only',
        )
        whole("num_slots", 1)
        whole("num_samples", 1)
        require(is_whole(self.seed), "seed", "a whole number")
        whole("chunk_iterations", 1)
        require(isinstance(self.first_from_input, bool), "first_from_input", "true or false")
        whole("hint_tokens", 0)
        buckets = self.input_buckets
        least = 1 + self.first_from_input
        ok = wholes("input_buckets", least) and len(buckets) > 0 and all(a < b for a, b in itertools.pairwise(buckets))
        require(ok, "input_buckets", "a tuple of increasing positive lengths")
        choices = self.gamma_choices
        ok = wholes("gamma_choices", 0, 64) and 0 in choices and len(set(choices)) == len(choices)
        require(ok, "gamma_choices", "a tuple of distinct whole numbers from 0 to 64, 0 among them")

        whole("num_beams", 1)
        finite = isinstance(self.length_penalty, int | float) and math.isfinite(self.length_penalty)
        require(finite and not isinstance(self.length_penalty, bool), "length_penalty", "a number")
        require(self.length_penalty_form in ("transformers", "t5x"), "length_penalty_form", '"transformers" or "t5x"')
        require(self.early_stopping in (True, False, "never"), "early_stopping", 'true, false or "never"')
        ok = is_whole(self.num_return_sequences, 1, self.num_beams)
        require(ok, "num_return_sequences", f"1 to {self.num_beams}, num_beams")
        ok = self.draft_beams == 0 or is_whole(self.draft_beams, self.num_beams)
        require(ok, "draft_beams", f"0, or at least {self.num_beams}, num_beams")
        most = self.max_decode_tokens - 1
        require(is_whole(self.min_new_tokens, 0, most), "min_new_tokens", f"0 to {most}")
        whole("no_repeat_ngram_size", 0)
        if self.num_beams == 1:
            for name in _OF_BEAMS:
                default = getattr(type(self), name)
                require(getattr(self, name) == default, name, f"{default!r} where num_beams is 1")
            return
        for name in _NOT_WITH_BEAMS:
            default = 0.0 if name == "temperature" else getattr(type(self), name)
            require(getattr(self, name) == default, name, f"{default!r} with num_beams above 1")

    @property
    def beam_search(self) -> bool:
        """Whether texts are found by beam search."""
        return self.num_beams > 1

    @property
    def draft_width(self) -> int:
        """Beams that a draft which is a model searches with, u."""
        return self.draft_beams or 2 * self.num_beams

    def call_positions(self, gamma: int) -> int:
        """Positions of a row that a target call at this γ is fed; with beams nodes of a tree, where the draft searches."""
        return self.num_beams + gamma * self.draft_width if self.beam_search else gamma + 1

    @property
    def generations_per_input(self) -> int:
        """How many texts an input becomes."""
        return self.num_return_sequences if self.beam_search else self.num_samples

    @property
    def max_input_tokens(self) -> int:
        """Longest input in tokens."""
        return self.input_buckets[-1]

    @property
    def gammas(self) -> tuple[int, ...]:
        """Every γ that a job with this config can use, increasing."""
        return tuple(sorted(self.gamma_choices)) if self.gamma == "auto" else (self.gamma,)

    @property
    def exact(self) -> bool:
        """Whether outputs have exactly the target's distribution."""
        return self.lenience == 1.0


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generated sequence with what the speculation did, in NumPy.

    T tokens in I iterations; an iteration is one call of the target for this row.

    Attributes:
      tokens: int32[T], EOS included when reached.
      source: int8[T], what each token was: 0 corrected, 1 accepted, 2 bonus, 3 plain; see the glossary.
      iteration: int32[T], from 0.
      beta: float32[T], Σ_x min(p(x), q(x)) (Theorem 3.5) where a draft distribution was examined, else NaN; p and q
        are standardised (section 2.2); under lenience it is Σ_x min(p(x) / l, q(x)).
      target_logprob: float32[T], of the raw target at temperature 1.
      draft_logprob: float32[T], of the raw draft at temperature 1, NaN where no draft distribution was examined; a
        deterministic draft's is 0 for what it proposed and -inf for all else.
      gammas: int16[I], tokens drafted.
      accepted: int16[I], drafted tokens that were accepted and emitted.
      origin: int8[I], where the drafted tokens came from, -1 where there were none; see `ORIGINS`.
      match: int16[I], how many of the tokens before them stood there too, as far as the draft looks; 0 of a model's.
      score: of beam search, the sum of log-probabilities with its length penalty; None else.
      steps: int8[S], of beam search, every step of the search that found this text, which may go on beyond its end: what the
        step was, as in `source`, ACCEPTED where all beams that ran on had been drafted.
      finish_reason: "eos" or "length".
      decode_seconds: wall time from prefill to harvest, shared with the other rows in flight.
    """

    tokens: np.ndarray
    source: np.ndarray
    iteration: np.ndarray
    beta: np.ndarray
    target_logprob: np.ndarray
    draft_logprob: np.ndarray
    gammas: np.ndarray
    accepted: np.ndarray
    finish_reason: str
    decode_seconds: float
    origin: np.ndarray | None = None
    match: np.ndarray | None = None
    score: float | None = None
    steps: np.ndarray | None = None

    @property
    def num_iterations(self) -> int:
        return len(self.gammas)

    @property
    def target_calls(self) -> int:
        """Calls of the target for this row, one per iteration."""
        return len(self.gammas)
