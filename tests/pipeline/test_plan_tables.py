"""docs/tpu.md's tables of compiled loops against a fresh compilation by libtpu."""

import json
import pathlib

import pytest

from decoding.checkpoints.presets import PRESETS
from pipeline import plan
from pipeline.planning import chips

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart.py'}"
NEEDS_LIBTPU = pytest.mark.skipif(not chips.has_compiler(), reason="libtpu is not installed (extra tpu)")

XXL, OTHERS = "T5 v1.1 XXL on v4, as compiled", "Other shapes, as compiled"
MOST = " (the most slots that fit)"
ROWS = {(f"T5-{size}{most}", chips) for size in ("small", "base", "large") for most in ("", MOST) for chips in "14"}
SHAPES = {
    "LaMDA 137B, draft 100M": ["--topology=v4:4x4x4", "--target=lamda-137b", "--draft=lamda-100m"],
    "LaMDA 137B, draft 2B, split": ["--topology=v4:4x4x4", "--target=lamda-137b", "--draft=lamda-2b", "--split_draft"],
    "LaMDA 137B, draft 8B, split": ["--topology=v4:4x4x4", "--target=lamda-137b", "--draft=lamda-8b", "--split_draft"],
    "NLLB-200 3.3B, draft 600M": ["--topology=v4:2x2x1", "--target=nllb-200-3.3b", "--draft=nllb-200-600m"],
    "Gemma 2 27B, draft 2B": ["--topology=v4:2x2x1", "--target=gemma-2-27b", "--draft=gemma-2-2b"],
    "Llama 2 70B shape, plain": [
        "--topology=v4:2x2x2", "--target=llama-2-70b", "--config.model.draft=", "--config.decoding.gamma=0",
    ],
}  # fmt: skip


def table(heading: str) -> list[dict[str, str]]:
    """Rows of the first table under a heading, by column."""
    text = (ROOT / "docs" / "tpu.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row)) for row in rows]


def xxl(draft: str, count: str) -> dict[str, str]:
    return next(row for row in table(XXL) if (row["draft"], row["chips"]) == (draft, count))


def check(row: dict[str, str], args: list[str], programs: str, tmp_path) -> None:
    """The job at the row's slots fits, its loop copies no cache, and needs and sends what the row says, within 1%."""
    file, gamma = tmp_path / "plan.json", [] if any("gamma" in arg for arg in args) else ["--config.decoding.gamma=7"]
    job = ["--config.model.dtype=bfloat16", "--config.decoding.input_buckets=(128,)"]
    command = [CONFIG, *args, *gamma, *job, f"--chips={row['chips']}", f"--json={file}"]
    status = plan.main([*command, f"--num_slots={row['slots']}", f"--programs={programs}"])
    found = json.loads(file.read_text())
    held, loop = found["memory"], next(one for name, one in found["programs"].items() if name.startswith("chunk"))
    assert status == 0 and held["compiled"] and held["total"] <= held["limit"] == int(30.75 * chips.GIB)
    assert loop["cache_copies"] == [] and row["cache copies in the loop"] == "none"
    whole = float(row["in all, GiB per chip"])
    for name, column in [(one, one) for one in ("parameters", "states", "staged", "temporary")] + [("total", "")]:
        said = float(row[column]) if column else whole
        assert held[name] / chips.GIB == pytest.approx(said, abs=max(0.01 * whole, 0.01)), (name, row)
    kinds = ", ".join(f"{count} {kind}" for kind, count in loop["collectives"].items())
    sent = f"{kinds}, {loop['collective_bytes'] / 1e6:.1f} MB" if kinds else "none"
    assert sent == row["collectives per iteration"]
    if row.get("draft", "").endswith(MOST):
        plan.main([*command, f"--num_slots={int(row['slots']) + 8}", "--programs=none"])
        more = json.loads(file.read_text())["memory"]
        assert more["parameters"] + more["states"] + more["staged"] + held["temporary"] > held["limit"]


def test_the_tables_have_what_is_to_be_shown():
    assert {(row["draft"], row["chips"]) for row in table(XXL)} == ROWS
    assert {row["slots"] for row in table(XXL) if not row["draft"].endswith(MOST)} == {"1"}
    assert {row["shape"] for row in table(OTHERS)} == set(SHAPES)
    # A program that needs more than 30.75 of a v4's 32 GiB is refused.
    assert all(float(row["in all, GiB per chip"]) <= 30.75 for row in (*table(XXL), *table(OTHERS)))


# All programs of a row are one to four minutes of a core.
@NEEDS_LIBTPU
@pytest.mark.parametrize(
    ("draft", "count"),
    [
        pytest.param(*row, marks=pytest.mark.slow if row == ("T5-small", "1") else pytest.mark.soak)
        for row in sorted(ROWS)
    ],
)
def test_xxl_fits_and_its_loop_copies_no_cache(draft, count, tmp_path):
    model = draft.removesuffix(MOST).replace("T5-", "t5-v1.1-")
    check(xxl(draft, count), ["--topology=v4:2x2x1", "--target=t5-v1.1-xxl", f"--draft={model}"], "all", tmp_path)


@pytest.mark.soak
@NEEDS_LIBTPU
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes(shape, tmp_path):
    check(next(row for row in table(OTHERS) if row["shape"] == shape), SHAPES[shape], "loop", tmp_path)


@pytest.mark.slow
@NEEDS_LIBTPU
@pytest.mark.parametrize("head_dim", [64, 128])
def test_caches_stay_where_they_lie_whatever_the_width_of_heads(head_dim, monkeypatch, tmp_path):
    """A TPU lays them out by it; LaMDA's and Llama's heads are of 128, T5's of 64."""
    shape = PRESETS["lamda-100m"] | {"hidden_size": 256, "num_hidden_layers": 1, "vocab_size": 512, "head_dim": head_dim}
    monkeypatch.setitem(PRESETS, "lamda-100m", shape)
    file = tmp_path / "plan.json"
    status = plan.main([
        CONFIG, "--target=lamda-100m", "--draft=lamda-100m", "--topology=v4:2x2x1", "--mesh=model:4", "--num_slots=8",
        "--programs=loop", "--config.decoding.input_buckets=(128,)", "--config.model.dtype=bfloat16", f"--json={file}",
    ])  # fmt: skip
    assert status == 0
    assert json.loads(file.read_text())["programs"]["chunk 3"]["cache_copies"] == []
