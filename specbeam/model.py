"""A target with its tokeniser and perhaps a draft: `load`, then `Model.generate`."""

import dataclasses
import threading
from collections.abc import Sequence

import decoding
from decoding import DecodingConfig, Generation
from pipeline.job.pinning import pin_models
from pipeline.job.preflight import CheckedModels, check_models
from pipeline.settings import InputConfig, JobConfig, ModelConfig, build
from transforms.encoding import encode_text
from transforms.tokenize import Tokenizer, load_tokenizer

_SHOWN_CHARS = 40
_ANY_TEXT = InputConfig(pattern="texts.txt")  # what a job would read; here texts are given


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Row(Generation):
    """One generation with its text.

    Attributes:
      text: what was generated.
      inputs: the text that was given.
      example_id: its id.
      sample: which of its `num_samples` generations this is, or of a search's texts, from 0.
      input_truncated: whether the input was longer than the last of `input_buckets`, and cut.
      tokens, source, iteration, beta, target_logprob, draft_logprob, gammas, accepted, finish_reason, decode_seconds, score,
        steps: as of `decoding.Generation`; EOS is among the tokens where it was reached, and not in the text.
    """

    text: str
    inputs: str
    example_id: str
    sample: int
    input_truncated: bool

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN_CHARS else self.text[: _SHOWN_CHARS - 3] + "..."
        return f"Row({text!r}, {len(self.tokens)} tokens in {self.num_iterations} target calls, {self.finish_reason})"


class Model:
    """A loaded target, its tokeniser, and a draft or none. Thread-safe: calls take turns.

    Programs are compiled when settings first need them, and kept in the user's cache folder for later processes.
    """

    def __init__(self, names: ModelConfig, checked: CheckedModels, tokenizer: Tokenizer, target, draft):
        """`load` makes one."""
        self._names, self._checked, self._tokenizer = names, checked, tokenizer
        self._target, self._draft = target, draft
        self._generators: dict[DecodingConfig, decoding.Generator] = {}
        self._turn = threading.Lock()

    def __repr__(self) -> str:
        draft = f", draft={self._names.draft!r}" if self._names.draft else ""
        return f"Model({self._names.target!r}{draft})"

    def generate(
        self, texts: Sequence[str], *, ids: Sequence[str] | None = None, prefix: str = "", **settings
    ) -> list[Row]:
        """Decodes every text.

        Args:
          texts: inputs; those longer than the last of `input_buckets` are cut, and their rows say so.
          ids: distinct; the random numbers of a text derive from its id and the seed. By default its position, "0", "1", ...
          prefix: put before every text, as the task asks ("translate English to German: ").
          **settings: of `decoding.DecodingConfig`, by name. Without a draft γ is 0.

        Returns:
          `num_samples` rows per text, or `num_return_sequences`, in order.

        Raises:
          ValueError: an unknown or impossible setting, a text without tokens, ids that repeat or are not as many.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one text; allowed: a list of texts")
        config = build(DecodingConfig, {"gamma": 0, **settings} if self._draft is None else settings)
        texts = list(texts)
        ids = [str(i) for i in range(len(texts))] if ids is None else list(ids)
        encoded = [self._encode(i, text, prefix, config) for i, text in enumerate(texts)]
        with self._turn:
            generations = self._generator(config).generate([tokens for tokens, _ in encoded], ids)
        rows = []
        for number, generation in enumerate(generations):
            i, sample = divmod(number, config.generations_per_input)
            rows.append(
                Row(
                    **vars(generation),
                    text=self._decode(generation),
                    inputs=texts[i],
                    example_id=ids[i],
                    sample=sample,
                    input_truncated=encoded[i][1],
                )
            )
        return rows

    def _encode(self, i: int, text: str, prefix: str, config: DecodingConfig) -> tuple[list[int], bool]:
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is {text!r:.100}; allowed: text")
        checked = self._checked
        try:
            return encode_text(
                text,
                self._tokenizer,
                prefix=prefix,
                eos_id=checked.input_eos_id,
                max_input_tokens=config.max_input_tokens,
                chat_template=checked.chat_template,
                empty_id=checked.empty_id,
                translation=checked.translation,
            )
        except Exception as error:  # whatever a tokeniser's library raises
            raise ValueError(f"texts[{i}] is {text!r:.100}: {error}") from error

    def _decode(self, generation: Generation) -> str:
        tokens = generation.tokens
        return self._tokenizer.decode((tokens[:-1] if generation.finish_reason == "eos" else tokens).tolist())

    def _generator(self, config: DecodingConfig) -> decoding.Generator:
        """One for all configs that differ in what no program depends on."""
        shapes = dataclasses.replace(config, seed=0, num_samples=1)
        if shapes not in self._generators:
            draft = self._draft if max(config.gammas) > 0 else None
            self._generators[shapes] = decoding.Generator(
                self._target, draft, shapes, vocab_size=self._checked.to_load.vocab_size
            )
        return self._generators[shapes].with_draws(config.seed, config.num_samples)


def load(
    target: str,
    draft: str | None = None,
    *,
    tokenizer: str = "",
    dtype: str = "float32",
    vocab_size: int = 0,
    chat_template: str = "",
) -> Model:
    """Loads a target, and a draft for it, with the target's tokeniser.

    Args:
      target: directory, .gguf file, either local or on gs://, or the id of a model on the Hugging Face hub, perhaps with a
        revision ("google/flan-t5-small@main"), which then is downloaded into its cache.
      draft: the same, the directory of an n-gram, "prompt_lookup" or "uniform"; None for plain decoding.
      tokenizer: directory or file of the tokeniser, "" for the target's.
      dtype: of the parameters, "float32" or "bfloat16".
      vocab_size: how many tokens may occur, where models are padded beyond their tokeniser's; 0 as in `ModelConfig`.
      chat_template: makes prompts for an instruct model: "model" for the template that comes with it, or Jinja source.

    Raises:
      ValueError: with what is wrong: no model there, a draft with another tokeniser.
    """
    names = ModelConfig(
        target=target,
        draft=draft or "",
        tokenizer=tokenizer,
        dtype=dtype,
        vocab_size=vocab_size,
    )
    least: dict = {"input_buckets": (2,), "max_decode_tokens": 1}  # how long texts are `generate` says
    gamma = {} if names.draft else {"gamma": 0}
    inputs = dataclasses.replace(_ANY_TEXT, chat_template=chat_template)
    config = pin_models(JobConfig(inputs, names, DecodingConfig(**least, **gamma)))
    checked = check_models(config)
    decoding.keep_programs()
    models = checked.to_load
    return Model(config.model, checked, load_tokenizer(checked.tokenizer), models.load_target(), models.load_draft())
