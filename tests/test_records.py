"""Records: JSON and back, and the refusal of files that were edited or cut short."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import (
    BaselineStats,
    Evaluation,
    Experiment,
    GateReport,
    Generation,
    ImportedRun,
    Published,
    Score,
    TrialRecord,
    from_json,
    to_json,
)

RECORDS = (Experiment, GateReport, TrialRecord, Evaluation, BaselineStats, Score, Generation, Published, ImportedRun)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


@pytest.mark.parametrize("cls", RECORDS)
def test_round_trip(cls: type) -> None:
    @given(
        st.builds(cls, schema_version=st.just(1)) if "schema_version" in cls.__dataclass_fields__ else st.builds(cls)
    )
    def round_trip(record: Any) -> None:
        assert from_json(cls, json.loads(json.dumps(to_json(record)))) == record

    round_trip()


SCORE: dict[str, Any] = {
    "experiment": "3f", "fitness": 0.5, "fitness_sd": 0.1, "loss_part": 0.5, "benchmark_part": 0.5, "judge_part": 0.4,
    "loss": 4.2, "bits_per_byte": 2.0, "benchmark": 0.3, "formula": "f",
    "judgement": {"raw": 5.0, "source": "rule", "version": "1"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fitness": "high"}, "fitness: found 'high', expected float"),
        ({"fitness": True}, "fitness: found True, expected float"),
        ({"fitnes": 1.0}, r"unknown fields \['fitnes'\]"),
        ({"schema_version": 99}, "schema_version 99, expected 1"),
        ({"judgement": 7}, "found int, expected a JSON object"),
        ({"judgement": {"raw": 5.0}}, r"fields \['source', 'version'\] of Judgement are missing"),
        ({"slot": "first"}, "slot: found 'first', expected int"),
    ],
)
def test_a_changed_record_is_refused(change: dict[str, Any], expected: str) -> None:
    assert from_json(Score, SCORE).judgement.raw == 5.0
    with pytest.raises(RecordError, match=expected):
        from_json(Score, SCORE | change, source="score.json")


def test_a_record_that_is_no_object_is_refused() -> None:
    with pytest.raises(RecordError, match=r"score\.json: found list"):
        from_json(Score, [], source="score.json")
