"""Job `assess`: the judge's grade, the Analyst's five parts, and what the literature says to the shortcomings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from asiarch_hpc.agents.analyst import analyse
from asiarch_hpc.agents.casefile import CaseFile, Standard
from asiarch_hpc.agents.judge import judge
from asiarch_hpc.agents.llm import Speaker
from asiarch_hpc.errors import AgentError, AsiarchError
from asiarch_hpc.knowledge.cognition import cognition_base
from asiarch_hpc.knowledge.retrieval import remind
from asiarch_hpc.records import Assessment, BaselineStats, Json, Reminder, from_json, to_json
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json, write_json, write_text
from jobs.casefiles import CaseFiles
from jobs.entry import Attempt
from jobs.team import Team, open_team
from jobs.transcripts import collect_exchanges, drop_transcripts, read_rows, rows_text
from jobs.workspace import Workspace


class MissingAssessmentError(AsiarchError):
    """A part could not be had; what could be is stored, and the rest is asked for again."""

    tokens = 0


def run(attempt: Attempt, arguments: Json, speaker: Callable[..., Speaker] | None = None) -> Json:
    """Assesses one trained design; parts that an earlier attempt stored are kept.

    Raises:
        MissingAssessmentError: the judge or the Analyst gave no valid answer.
        ServiceError: no server was up.
    """
    space = Workspace.of(attempt.layout)
    identifier = arguments["experiment"]
    folder = attempt.layout.experiment(identifier)
    cases = CaseFiles(space)
    record = read_experiment(folder)
    found = Assessment(experiment=identifier)
    if folder.assessment.exists():
        found = from_json(Assessment, read_json(folder.assessment), source=str(folder.assessment))
    standard = cases.standard(
        tuple(from_json(BaselineStats, stats, source="arguments") for stats in arguments["baselines"])
    )
    case = cases.of(identifier)
    parent = next((cases.of(p) for p in record.parents if attempt.layout.experiment(p).record.exists()), None)
    siblings = [cases.of(sibling) for sibling in arguments["siblings"]]
    problems: list[str] = []
    seed = f"asiarch/{space.config.search.seed}/assess/{identifier}"
    with open_team(space, attempt, kind="assess", tokens=arguments["tokens"], seed=seed, speaker=speaker) as team:
        team.note(
            {"known": [], "assessed": [], "siblings": arguments["siblings"], "analysed": found.analysis is not None}
        )
        if found.analysis is None:
            found = _try(found, problems, lambda: _analysis(team, space, case, parent, siblings, standard))
        if arguments["judge"] and found.judge is None:
            found = _try(found, problems, lambda: _judge(team, space, case, parent, standard))
        found = replace(found, tokens=found.tokens + team.spending.tokens)
        attempt.check_current()
        write_json(folder.assessment, to_json(found))
        if not problems and record.role != "baseline":  # whose folder, with its many trials, is full
            rows = collect_exchanges(attempt.layout, attempt.work, team.rows)
            own = {row["work"] for row in rows}
            kept = [row for row in read_rows(folder.exchanges) if row.get("work") not in own]
            write_text(folder.exchanges, rows_text([*kept, *rows]))
            drop_transcripts(attempt.layout, attempt.work)
    if problems:
        error = MissingAssessmentError("; ".join(problems))
        error.tokens = team.spending.tokens
        raise error
    return {"assessment": to_json(found), "tokens": team.spending.tokens}


def _try(found: Assessment, problems: list[str], make: Callable[[], Json]) -> Assessment:
    try:
        return replace(found, **make())
    except AgentError as error:
        problems.append(f"{error.cause}: {error}")
        return found


def _analysis(
    team: Team,
    space: Workspace,
    case: CaseFile,
    parent: CaseFile | None,
    siblings: list[CaseFile],
    standard: Standard,
) -> Json:
    analysis = analyse(team.models, case, parent, siblings, standard)
    embedding = space.config.agents.embedding
    reminded = remind(
        analysis.shortcomings,
        cognition_base(),
        team.embedder,
        count=embedding.cognitions,
        threshold=embedding.threshold,
    )
    cognitions = tuple(
        Reminder(
            paper=item.entry.paper.id,
            title=item.entry.paper.title,
            insight=item.entry.cognitions[item.number].insight,
            similarity=round(item.similarity, 4),
            number=item.number,
        )
        for item in reminded
    )
    return {"analysis": analysis, "cognitions": cognitions}


def _judge(team: Team, space: Workspace, case: CaseFile, parent: CaseFile | None, standard: Standard) -> Json:
    grade = judge(
        team.models,
        case,
        parent,
        standard,
        weights=space.config.fitness.judge_weights,
        samples=space.config.agents.judge_samples,
    )
    return {"judge": grade}
