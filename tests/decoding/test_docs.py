"""The draft that docs/drafts.md adds, run as it stands there."""

import pathlib
import re

import decoding
from tests.support.scripted import reciting

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "drafts.md"


def test_the_example_proposes_what_it_says_and_leaves_the_output_alone():
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    names: dict = {}
    exec(compile(code, PAGE.name, "exec"), names)
    config = decoding.DecodingConfig(gamma=2, temperature=0.0, max_decode_tokens=8, num_slots=1, input_buckets=(2,))
    target = reciting([5, 5, 5, 5, 3, 4, 4, 6])
    (result,) = names["generator"](target, config).generate([[2]], ["a"])
    assert result.tokens.tolist() == [5, 5, 5, 5, 3, 4, 4, 6]
    # 5 5 stand there: two more are right, and 3 is the bonus; 4 4 stand there: 6 comes instead of a third.
    assert result.gammas.tolist() == [0, 0, 2, 0, 0, 2]
    assert result.accepted.tolist() == [0, 0, 2, 0, 0, 0]
