"""The settings of tracking services."""

from typing import Literal

from pydantic import Field

from plait.config.sections.base import Section


class Mlflow(Section):
    """Settings of MLflow, whose user and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""

    experiment: str = Field(description="of MLflow, which is made if it is not there")
    name: str | None = Field(default=None, description="of the run; None: its directory's")
    uri: str | None = Field(default=None, description="of the server or the database, variables filled in; None: MLFLOW_TRACKING_URI")


class Trackio(Section):
    """Settings of Trackio, which keeps a project on this machine, or in a Space of the Hub with HF_TOKEN."""

    project: str = Field(description="of Trackio, which is made if it is not there")
    name: str | None = Field(default=None, description="of the run, before its id; None: its directory's")
    space: str | None = Field(default=None, description="a Space of the Hub, as user/name; None: a database on this machine")


class Wandb(Section):
    """Settings of Weights & Biases, whose API key comes from WANDB_API_KEY. `name`: the run's there; None: its directory's."""

    project: str = Field(description="where the run is shown")
    name: str | None = Field(default=None, description="the run's name there; None: its folder's")
    entity: str | None = Field(default=None, description="user or team; None: that of the key")
    mode: Literal["online", "offline"] = Field(default="online", description="offline: kept in the run, for `wandb sync`")
