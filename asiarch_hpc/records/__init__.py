"""The records that the store holds, as frozen dataclasses, and their JSON form.

Every record carries `schema_version`. `from_json` checks field names and types, because people edit these files and
crashes truncate them.
"""

from asiarch_hpc.records.codec import (
    SCHEMA_VERSION,
    Json,
    from_json,
    to_json,
)
from asiarch_hpc.records.published import (
    ImportedRun,
    Mark,
    Metrics,
    Published,
    SourceFile,
    Substitution,
)
from asiarch_hpc.records.run import (
    Analysis,
    Assessment,
    BaselineStats,
    Evaluation,
    Experiment,
    Finding,
    Form,
    GateReport,
    Generation,
    JobKind,
    Judgement,
    Operator,
    PoolEntry,
    Reminder,
    Role,
    Score,
    SeedSpread,
    Service,
    Severity,
    TaskScore,
    TrialRecord,
)

__all__ = [
    "SCHEMA_VERSION",
    "Analysis",
    "Assessment",
    "BaselineStats",
    "Evaluation",
    "Experiment",
    "Finding",
    "Form",
    "GateReport",
    "Generation",
    "ImportedRun",
    "JobKind",
    "Json",
    "Judgement",
    "Mark",
    "Metrics",
    "Operator",
    "PoolEntry",
    "Published",
    "Reminder",
    "Role",
    "Score",
    "SeedSpread",
    "Service",
    "Severity",
    "SourceFile",
    "Substitution",
    "TaskScore",
    "TrialRecord",
    "from_json",
    "to_json",
]
