"""The project's exceptions.

Each class is the project base plus a builtin, so that callers may catch either. A message says what was
found, what was expected, and what to do about it.
"""


class AsiarchError(Exception):
    """Base of every error that a user of the project can cause or meet."""


class ConfigError(AsiarchError, ValueError):
    """A configuration key or value is unknown, of a wrong type, or contradicts another."""


class RecordError(AsiarchError, ValueError):
    """A stored record does not parse, lacks a field, or does not match its hash."""


class StoreError(AsiarchError, OSError):
    """The results tree cannot be read or written (disk full, permissions, not a run)."""


class LeaseError(AsiarchError, RuntimeError):
    """Another controller holds the run, or took it over."""


class DesignError(AsiarchError, ValueError):
    """A design cannot be parsed, composed, or built."""


class CorpusError(AsiarchError, ValueError):
    """A corpus is missing, empty, or of an unexpected format."""


class TrainingError(AsiarchError, RuntimeError):
    """A training stopped for a cause that belongs to the design or to its settings."""


class PeerLostError(AsiarchError, RuntimeError):
    """Another process of the same training is gone or does not answer; nothing is known of the design."""


class EvaluationError(AsiarchError, RuntimeError):
    """An evaluation must not produce a score: wrong weights, untrained weights, absurd numbers."""


class SchedulerError(AsiarchError, RuntimeError):
    """The scheduler refused a request or cannot be reached."""


class SandboxError(AsiarchError, RuntimeError):
    """The requested isolation is not available on this machine."""


class AgentError(AsiarchError, RuntimeError):
    """A language model gave no usable answer; `cause` is what the failure is counted under."""

    stage = "agent"

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class StoppedError(AsiarchError):
    """A job was told to end and did, with nothing lost: the same work is started again."""


class ServiceError(AsiarchError, ConnectionError):
    """A language-model server failed, or gave no answer however often it was asked."""


class NoServerError(ServiceError):
    """No language-model server is up: nobody is at fault, and the same job waits for one again."""
