"""The study of shard sizes as a command."""
import json

import pytest

from benchmarks import simulation


@pytest.mark.slow
def test_command(tmp_path, capsys):
    costs = dict(
        slots=8, load=3.0, read_per_example=1e-4, decode_per_example=0.02, commit_per_example=4e-4, per_shard=0.003,
        occupancy=0.99, texts=[[40, 30], [20, 18], [10, 5], [8, 9]],
    )  # fmt: skip
    (tmp_path / "costs.json").write_text(json.dumps({"costs": [costs]}))
    arguments = [f"--costs={tmp_path / 'costs.json'}", "--examples=1e5", "--workers=8", f"--output={tmp_path / 'out.json'}"]
    assert simulation.main([*arguments, f"--figure={tmp_path / 'waste.png'}"]) == 0
    assert (tmp_path / "waste.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "#### pair, 8 slots, gs://, threads" in said and "| 16,384 | 7 |" in said
    bold = [line.count("**") for line in said.splitlines() if line.startswith("| XXL")]
    assert bold == [2, 2]
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["XXL, 1 slot, gs://, threads"]) == len(simulation.SHARDS) * len(simulation.PREEMPTIONS_PER_HOUR)
