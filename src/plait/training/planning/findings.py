"""What `plait plan` says of a stage (part of a run) besides figures: errors, warnings and advice, with cures."""

from dataclasses import dataclass
from typing import Any, Literal

from plait.config.resolved import Resolved, StageView
from plait.config.show import override
from plait.errors import PlaitError

Level = Literal["error", "warning", "advice"]
LEVELS: tuple[Level, ...] = ("error", "warning", "advice")
"""An error: the run would not start, or not end; a warning: it would not do what is meant; advice: it could do better."""


class Unsound(PlaitError):
    """Raised, after a plan is printed, when it has errors. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Finding:
    """One finding. `stage`: its name, "" for the whole run; `what`: a word; `cure`: an override such as "--optim.lr=1e-4", or ""."""

    level: Level
    stage: str
    what: str
    text: str
    cure: str = ""


@dataclass(frozen=True)
class Judge:
    """Makes findings of one stage of `resolved`, with overrides that set only that stage. `section`: the family's `model:` section."""

    resolved: Resolved
    view: StageView
    section: Any

    def override(self, key: str, value: Any) -> str:
        """Return the override that sets `key`, such as "train.steps", for this stage: "--stages.0.train.steps=60" if there are stages."""
        return override(self.resolved, self.view, key, value)

    def find(self, level: Level, what: str, text: str, key: str = "", value: Any = None) -> Finding:
        """Return a finding of the stage; with a `key`, its cure is to set that to `value`."""
        return Finding(level, self.view.name, what, text, self.override(key, value) if key else "")
