"""The probabilities of `register` follow from the committed ends of the choosing seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.studies.gauntlet import calibration
from drrkit.registration import certainty

ROWS = Path(__file__).parents[2] / "bench" / "results" / "gauntlet" / "calibration.csv"


@pytest.mark.parametrize("limit", [2.0, 10.0])
def test_the_probabilities_follow_from_the_committed_rows(limit):
    fitted = calibration.fitted(calibration.read(ROWS), limit)
    used = certainty._CALIBRATED[limit]
    for own, used_one in zip(fitted, used, strict=True):
        assert used_one == pytest.approx(own, abs=0.05 if own > 1 else 5e-4)


def test_ends_that_were_refused_for_a_reason_are_not_fitted():
    ends = calibration.read(ROWS)
    kept = [end for end in ends if not end.reasons]
    assert 0 < len(kept) < len(ends)
    assert calibration.fitted(kept, 10.0) == calibration.fitted(ends, 10.0)
