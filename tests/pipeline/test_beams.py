"""Jobs with beams: what is in their parts and summaries."""

import numpy as np
import pytest

from pipeline import analyze, generate
from tests.pipeline.helpers import rows, summary
from tests.pipeline.test_generate_t5 import SMALL, sentences  # noqa: F401  a fixture

BEAMS = (
    *SMALL,
    "--config.decoding.temperature=0.0",
    "--config.decoding.num_beams=2",
    "--config.decoding.num_return_sequences=2",
    "--config.decoding.length_penalty=0.6",
    "--config.decoding.early_stopping=never",
)


@pytest.mark.slow
def test_speculative_beams_are_plain_beams(command, tmp_path):
    assert generate.main(command(*BEAMS)) == 0
    plain = ("--config.model.draft=", "--config.decoding.gamma=0")
    assert generate.main(command(*BEAMS, *plain, output=tmp_path / "plain")) == 0
    speculative, wanted = rows(tmp_path / "out"), rows(tmp_path / "plain")
    assert speculative["sample"].tolist() == [0, 1] * 5
    for a, b in zip(speculative["output_tokens"], wanted["output_tokens"], strict=True):
        assert a.tolist() == b.tolist()
    np.testing.assert_allclose(speculative["score"], wanted["score"], atol=1e-5)
    scores = speculative["score"].to_numpy().reshape(5, 2)
    assert (scores[:, 0] >= scores[:, 1]).all()
    found, alone = (summary(folder)["beam_search"] for folder in (tmp_path / "out", tmp_path / "plain"))
    firsts = speculative[speculative["sample"] == 0]
    assert found["searches"] == alone["searches"] == 5
    assert found["steps"] == alone["steps"] == alone["target_calls"] == sum(map(len, firsts["steps"]))
    assert found["target_calls"] == firsts["num_iterations"].sum() == summary(tmp_path / "out")["target_calls"]
    steps = np.concatenate(firsts["steps"].tolist())
    examined = np.isin(steps, (0, 1))
    assert found["covered"]["positions"] == examined.sum()
    np.testing.assert_allclose(found["covered"]["mean"], (steps[examined] == 1).mean())
    assert alone["covered"] is None
    assert set(found["covered_by_level"]) <= {"0", "1"}


def test_settings_that_beams_refuse_stop_the_job(command, capsys):
    assert generate.main(command(*BEAMS[:-1], "--config.decoding.num_samples=2")) == 2
    assert "decoding.num_samples is 2; allowed: 1 with num_beams above 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_reads_beams(command, tmp_path):
    assert generate.main(command(*BEAMS)) == 0
    assert analyze.main([f"--inputs={tmp_path / 'out'}", f"--output={tmp_path / 'report'}"]) == 0
    assert (tmp_path / "report" / "report.html").exists()
