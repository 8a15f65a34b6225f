"""The replies of all roles. Descriptions are part of the prompt."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z][a-z0-9_]{2,47}$"
DIFF_FORM = (
    "blocks of the form `<<<<<<< SEARCH`, lines of the given source, `=======`, lines in their place, "
    "`>>>>>>> REPLACE`, each mark on a line of its own; each SEARCH part is an exact copy and stands once in the source"
)
Grade = Annotated[int, Field(ge=1, le=10)]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Summary(_Reply):
    """Of what is known about one design."""

    summary: str = Field(min_length=1, description="the summary, at most 150 words of plain text")


class ProgramReply(_Reply):
    """A new design as program text."""

    name: str = Field(
        pattern=NAME_PATTERN, description="a new name in snake_case that says what is new, 3 to 48 characters"
    )
    motivation: str = Field(
        min_length=40, description="what is changed, why it should help, and what result would show that it does not"
    )
    source: str = Field(default="", description="the complete source file, or empty when `diff` is given")
    diff: str = Field(
        default="",
        description=f"instead of the whole source: {DIFF_FORM}",
    )


class Verdict(_Reply):
    """Whether a motivation repeats earlier ones."""

    duplicate: bool = Field(description="true only if the mechanism is one of the listed ones in other words")
    of: int = Field(default=0, ge=0, description="number of the design that it repeats, 0 for none")
    reason: str = Field(min_length=1, description="one or two sentences")


class Repair(_Reply):
    """A design after debugging."""

    diagnosis: str = Field(min_length=1, description="what made it fail, in one or two sentences")
    change: str = Field(min_length=1, description="what was changed, in one or two sentences")
    source: str = Field(default="", description="the complete repaired source file, or empty when `diff` is given")
    diff: str = Field(default="", description=f"instead of the whole source: {DIFF_FORM}")


class AnalysisReply(_Reply):
    """The Analyst's five parts and the query for retrieval."""

    motivation: str = Field(min_length=1, description="1. whether the idea is sound and the code does what it says")
    results: str = Field(min_length=1, description="2. results against the baselines, the parent and the siblings")
    expectation: str = Field(min_length=1, description="3. what was expected and what happened")
    explanation: str = Field(min_length=1, description="4. the mechanism behind it, tied to code and numbers")
    synthesis: str = Field(min_length=1, description="5. what to keep, what to drop, what to try next")
    shortcomings: str = Field(
        min_length=1,
        description="the observed shortcomings in one to three sentences of plain symptoms, no names of methods: "
        "the literature is searched with them",
    )


class Grades(_Reply):
    """The judge's sub-scores; their weighted sum is made in code."""

    novelty: Grade = Field(description="1 to 10")
    complexity: Grade = Field(description="1 to 10, higher for simpler")
    efficiency: Grade = Field(description="1 to 10")
    results: Grade = Field(description="1 to 10")
    reasons: str = Field(min_length=1, description="two to five sentences, one for each grade")


class Tag(_Reply):
    """One changed component."""

    component: str = Field(description="one of the listed categories")
    change: str = Field(min_length=1, description="what was changed, in a few words")
    origin: Literal["cognition", "analysis", "original"] = Field(description="where the idea comes from")


class Tags(_Reply):
    """All components that a design changed."""

    changes: list[Tag] = Field(min_length=1, max_length=12, description="each with component, change and origin")
