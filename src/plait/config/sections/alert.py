"""The settings of alerts: messages to a person about a run's end, failure, spikes, plateaus and a disk that fills up."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from plait.config.sections.base import Rate, Section

Event = Literal["finish", "failure", "spike", "plateau", "disk_low", "stop", "warning"]
"""What an alert may be about. `stop`: a signal such as SIGTERM stopped the run, all saved; `warning`: a line of a monitor or guard."""

_OPEN = ("json", "jsons", "xml", "xmls", "form", "forms", "dbus", "gnome", "kde", "macosx", "syslog", "windows")
"""Kinds of address without a secret in them: web hooks of one's own, and notices on the desktop."""


def _address(text: str) -> str:
    """Return an address as it is written. Raises ValueError where it may hold a secret, or is none."""
    if re.search(r"\$(\w|\{\w)", text):
        return text
    kind, separator, _ = text.partition("://")
    if not separator:
        raise ValueError("an address of an alert is $NAME, a variable of the environment that holds it, or such as json://host:8080/path")
    if kind.lower() not in _OPEN:
        raise ValueError(
            "whoever has an address of this kind can write to its channel, so no file or command line may hold it: put it into a variable "
            "of the environment and name that, as in alert: [$ALERT_URL] (on a command line in single quotes)"
        )
    return text


class Alert(Section):
    """Who is told of a run's events, and of which. A list in its place is that of `urls`."""

    urls: list[Annotated[str, AfterValidator(_address)]] = Field(
        default=[], description="addresses of apprise, each as $NAME of a variable of the environment (pip install 'plait[alert]')"
    )
    command: str | None = Field(default=None, description="run by the shell for each event: PLAIT_EVENT, PLAIT_TEXT, and JSON on its input")
    on: list[Event] = Field(default=["finish", "failure", "spike", "plateau", "disk_low"], description="the events that are told")
    disk_low_gb: Rate | None = Field(default=None, description="1e9 bytes free that are too few; None: two more checkpoints, 1 at least")

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told of anything."""
        return bool((self.urls or self.command) and self.on)
