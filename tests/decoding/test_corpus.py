"""The corpus draft: the order of places against brute force, what is proposed by hand, and that outputs stay the target's."""

import collections
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import decoding
from decoding.config import INDEX
from decoding.drafts import suffixes
from decoding.drafts.suffixes import IndexInfo
from tests.decoding.test_drafts import rows_at
from tests.decoding.test_hints import law
from tests.support import reference
from tests.support.scripted import greedy, random_script

GREEDY = decoding.DecodingConfig(gamma=3, temperature=0.0)


def texts_of(seed: int, vocab_size: int, count: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, rng.integers(0, 30)).tolist() for _ in range(count)]


def save(folder, texts, vocab_size: int) -> str:
    suffixes.save(str(folder), suffixes.divided(texts, vocab_size), IndexInfo(vocab_size, 0, 1, {"texts": len(texts)}))
    return str(folder)


def key(tokens, place: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(int(tokens[place - i]) if place >= i else vocab_size for i in range(suffixes.DEPTH))


@pytest.mark.parametrize("vocab_size", [4, 70_000])
def test_places_are_in_order_however_they_are_cut(vocab_size, monkeypatch):
    tokens = suffixes.divided(texts_of(0, vocab_size), vocab_size)
    assert tokens.dtype == (np.uint16 if vocab_size == 4 else np.uint32)
    places = [i for i in range(len(tokens) - 1) if tokens[i] < vocab_size and tokens[i + 1] < vocab_size]
    expected = sorted(places, key=lambda place: (key(tokens, place, vocab_size), place))
    np.testing.assert_array_equal(suffixes.sorted_places(tokens, vocab_size), expected)
    monkeypatch.setattr(suffixes, "_BLOCK", 7)  # tokens are looked through in blocks
    before = functools.partial(suffixes.count_before, tokens, vocab_size)
    for most in (100, 50):
        pieces = list(suffixes.cut(suffixes.count_places(tokens, vocab_size), before, most))
        assert len(pieces) > 2 and pieces[0][0] == 0 and pieces[-1].high == vocab_size
        if vocab_size == 4:  # a token that alone has too many places is cut by the one before
            assert (pieces[0].before_high <= vocab_size) == (most == 50)
        parts = [suffixes.sorted_places(tokens, vocab_size, piece) for piece in pieces]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def propose(draft, text: list[int], gamma: int, config=GREEDY):
    """The proposal after a text whose first token is the decoder's start."""
    draft = draft.for_target(random_script(0))
    state = draft.follow(draft.init_state(1, 2, 40), jnp.array([text]), jnp.array([0]))
    rows = rows_at([len(text) - 1], [text[max(len(text) - 2, 0)]], [text[-1]])
    return draft.propose(state, rows, gamma, config)[0]


def test_the_longest_match_and_its_most_frequent_continuation(tmp_path):
    texts = [[5, 6, 7, 8, 1], [9, 6, 7, 10, 1], [9, 6, 7, 10, 11, 1], [5, 6, 12, 1], [6, 7]]
    draft = decoding.CorpusDraft.load(save(tmp_path, texts, 20), min_match=1)
    seen = lambda *text: (
        (one := propose(draft, [0, *text], 3)).tokens[0, : int(one.count[0])].tolist(), int(one.match[0]), int(one.origin[0])
    )  # fmt: skip
    assert seen(9, 6, 7) == ([10, 1], 3, INDEX)  # then 1 and 11 once each: the first in order
    assert seen(4, 6, 7) == ([10, 1], 2, INDEX)  # 10 twice, 8 once; in the last text nothing follows "6 7"
    assert seen(5, 6) == ([12, 1], 2, INDEX)  # 12 and 7 once each
    assert seen(4, 6) == ([7, 10, 1], 1, INDEX)  # 7 in four of five, then 10 in two of three
    assert seen(13) == ([], 0, INDEX)
    assert seen(5, 6, 7, 8, 1) == ([], 0, INDEX)  # nothing follows an end
    draft = decoding.CorpusDraft.load(str(tmp_path), min_match=3)
    assert propose(draft, [0, 4, 6, 7], 3).count.tolist() == [0]
    assert propose(draft, [0, 9, 6, 7], 3).count.tolist() != [0]


@pytest.mark.slow
def test_matches_against_brute_force(tmp_path):
    texts = texts_of(3, 5)
    draft = decoding.CorpusDraft.load(save(tmp_path, texts, 5), min_match=1)
    rng = np.random.default_rng(1)
    for _ in range(20):
        text = [0, *rng.integers(0, 5, rng.integers(1, 12)).tolist()]
        found = propose(draft, text, 1)
        following: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
        for one in texts:
            for i in range(len(one) - 1):
                run = 0
                while run < min(i + 1, len(text), suffixes.DEPTH) and one[i - run] == text[-1 - run]:
                    run += 1
                for length in range(1, run + 1):
                    following[length][one[i + 1]] += 1
        longest = max(following)
        assert int(found.match[0]) == longest and int(found.count[0]) == 1
        counts = following[longest]
        if sum(counts.values()) <= 32:
            assert counts[int(found.tokens[0, 0])] == max(counts.values())
        else:  # a sample of them, in which a token that is rare is not the most frequent
            assert counts[int(found.tokens[0, 0])] > 0.5 * max(counts.values())


def test_what_is_drawn_is_what_followed(tmp_path):
    texts = [[6, 7, 8, 1]] * 3 + [[6, 7, 9, 1]] * 1
    draft = decoding.CorpusDraft.load(save(tmp_path, texts, 20), min_match=1)
    proposal = propose(draft, [0, 6, 7], 2, decoding.DecodingConfig(gamma=2, temperature=1.0))
    expected = np.zeros(20)
    expected[8], expected[9] = 0.75, 0.25
    law = proposal.distribution(20)
    np.testing.assert_allclose(law[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(law[0, 1], np.eye(20)[1], atol=1e-6)  # either way the end follows
    assert (
        proposal.support.shape == proposal.probs.shape == proposal.logits.shape == (1, 2, 32)
    )  # no table of the vocabulary
    np.testing.assert_allclose(proposal.chance()[0], [expected[int(proposal.tokens[0, 0])], 1.0], atol=1e-6)
    np.testing.assert_allclose(proposal.log_prob(jnp.array([[9, 8]]))[0], [np.log(0.25), -np.inf], atol=1e-6)
    assert proposal.tokens[0, 0] in (8, 9) and proposal.tokens[0, 1] == 1 and proposal.count.tolist() == [2]


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(decoding.CheckpointError, match="does not exist; pipeline.fit_index"):
        decoding.CorpusDraft.load(str(tmp_path))
    (tmp_path / suffixes.FILE).write_bytes(b"\x10" + bytes(7) + b'{"tokens": 12345')
    with pytest.raises(decoding.CheckpointError, match="is not an index"):
        suffixes.read_info(str(tmp_path))
    save(tmp_path / "good", [[3, 4]], 6)
    info = suffixes.read_info(str(tmp_path / "good"))
    assert (info.vocab_size, info.start_id, info.eos_id, info.about) == (6, 0, 1, {"texts": 1})
    data = (tmp_path / "good" / suffixes.FILE).read_bytes()
    (tmp_path / "good" / suffixes.FILE).write_bytes(data[:-1])
    with pytest.raises(decoding.CheckpointError, match="is not an index"):
        decoding.CorpusDraft.load(str(tmp_path / "good"))


@pytest.mark.parametrize("vocab_size", [20, 70_000])
def test_a_loaded_index_is_the_mapped_file(tmp_path, vocab_size):
    """No copy is made on a processor: what the programs read is the file's pages, which processes share."""
    draft = decoding.CorpusDraft.load(save(tmp_path, texts_of(7, 20), vocab_size)).for_target(random_script(0))
    for array in (draft.tokens[...], draft.places[...]):
        address = array.unsafe_buffer_pointer()
        with open("/proc/self/maps") as maps:
            mine = [line for line in maps if suffixes.FILE in line and str(tmp_path) in line]
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mine]
        assert any(low <= address < high for low, high in ranges)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A scripted target, and an index of texts that are partly its own."""
    target = random_script(3, vocab_size=5, contexts=7, scale=1.0)
    inputs = [[2, 3], [4], [2, 2]]
    own = [greedy(target, tokens, 20) for tokens in inputs]
    return target, inputs, own, save(tmp_path_factory.mktemp("index"), own + texts_of(5, 5), 5)


def test_greedy_output_is_the_targets(drawn):
    target, inputs, own, folder = drawn
    config = decoding.DecodingConfig(gamma=3, temperature=0.0, max_decode_tokens=20, num_slots=2, input_buckets=(2,))
    results = decoding.Generator(target, decoding.CorpusDraft.load(folder), config).generate(inputs, ["a", "b", "c"])
    assert [result.tokens.tolist() for result in results] == own
    assert sum(int(result.accepted.sum()) for result in results) > 0


@pytest.mark.slow
@pytest.mark.parametrize("texts", [[[2, 3]], [[2, 3, 4, 1]] * 100, [[4] * 3000]], ids=["one place", "duplicates", "one token"])
def test_odd_indexes_do_no_harm(drawn, tmp_path, texts):
    target, inputs, own, _ = drawn
    draft = decoding.CorpusDraft.load(save(tmp_path, texts, 5), min_match=1)
    config = decoding.DecodingConfig(gamma=3, temperature=0.0, max_decode_tokens=20, num_slots=2, input_buckets=(2,))
    results = decoding.Generator(target, draft, config).generate(inputs, ["a", "b", "c"])
    assert [result.tokens.tolist() for result in results] == own


@pytest.mark.parametrize(
    "verification", ["token", *(pytest.param(rule, marks=pytest.mark.soak) for rule in ("block", "coupled"))]
)
def test_sampled_texts_have_the_targets_law(drawn, verification):
    assert _pvalue(drawn, verification) > 1e-3


@pytest.mark.slow
def test_a_draft_that_misstates_its_distribution_is_noticed(drawn, monkeypatch):
    monkeypatch.setattr(decoding.CorpusDraft, "propose", _misstated(decoding.CorpusDraft.propose))
    assert _pvalue(drawn, "token") < 1e-6


def _misstated(propose):
    def wrong(self, state, rows, gamma, config):
        proposal, state = propose(self, state, rows, gamma, config)
        return proposal._replace(probs=jnp.full((*proposal.tokens.shape, 5), 0.2), support=None), state

    return wrong


def _pvalue(drawn, verification: str) -> float:
    target, inputs, _, folder = drawn
    config = decoding.DecodingConfig(
        gamma=2, verification=verification, max_decode_tokens=6, num_slots=64, input_buckets=(2,), num_samples=4000
    )
    draft = decoding.CorpusDraft.load(folder, min_match=1)
    results = decoding.Generator(target, draft, config).generate(inputs[:1], ["x"])
    return reference.chi_square([tuple(one.tokens[:3].tolist()) for one in results], law(target, inputs[0], 3))[0]
