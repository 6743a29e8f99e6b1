"""The settings of Muon, of which the defaults let it take a learning rate that was found for AdamW."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from plait.config.sections.base import Float, Int, Rate, Section, Share


class Muon(Section):
    """Settings of Muon, as `torch.optim.Muon` names them; what it does not update has those of AdamW."""

    lr: Rate | None = Field(
        default=None, description="peak learning rate of its matrices, which scales with a component's own; None: optim.lr"
    )
    momentum: Share = Field(default=0.95, description="decay of the moment per step")
    nesterov: bool = Field(default=True, description="look ahead along the moment")
    ns_steps: Annotated[Int, Field(ge=1, lt=100)] = Field(default=5, description="Newton-Schulz iterations that orthogonalise an update")
    ns_coefficients: Annotated[tuple[Float, Float, Float], Strict(False)] = Field(
        default=(3.4445, -4.775, 2.0315), description="a, b, c of each: a X + (b G + c G G) X, G = X X^T"
    )
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw",
        description="what the rate is multiplied with: 0.2 sqrt(max(rows, columns)), as large as AdamW's; or sqrt(max(1, rows / columns))",
    )
