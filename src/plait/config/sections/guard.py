"""The section `guard`: what is watched during a run, and what follows."""

from typing import Annotated, Literal

from pydantic import Field

from plait.config.sections.base import Count, Float, Natural, Rate, Section, Share


class Guard(Section):
    """Checks that stop a run: bad samples, of those drawn so far, non-finite gradients, memory, diverged replicas, hangs."""

    max_bad_fraction: Annotated[Float, Field(ge=0, le=1)] = Field(default=0.01, description="share of samples so far that may be unusable")
    audit: bool = Field(default=True, description="look at every gradient of the first step")
    non_finite: Literal["stop", "skip", "rewind"] = Field(
        default="stop",
        description="a loss or gradient that is not finite. skip: no update; rewind: back to the newest checkpoint, then past that step",
    )
    non_finite_steps: Count = Field(default=10, description="steps of a run that skip and rewind may pass over before it stops")
    spikes: Literal["ignore", "tell", "skip", "rewind"] = Field(default="tell", description="a finite loss or norm far above those before")
    spike_boxes: Natural = Field(default=5, description="spikes of a run that are looked into, at most: samples, modules, a replay")
    bench_failure: Literal["continue", "stop"] = Field(
        default="continue", description="a bench that fails during the run: save, report it and go on, or end the run"
    )
    no_input: Literal["stop", "continue"] = Field(
        default="stop", description="a component that trains while no sample looked at before has input for it: vision without images"
    )
    no_gradient: Literal["stop", "continue"] = Field(
        default="stop", description="a gradient of exactly 0 for everything that trains, in each of the first 10 steps after a start"
    )
    blindness: bool = Field(
        default=True,
        description="from step 100 of a stage on, look whether pictures make a difference to the held-out loss, and warn if not",
    )
    forgetting: Share | Literal["stages"] | None = Field(
        default="stages", description="share that a stage may lose of a figure unwarned; stages: 0.05 in a run of several; None: unmeasured"
    )
    memory_probe: Literal["auto", "always", "never"] = Field(
        default="auto", description="try the largest of some micro-batches before the first step; auto: on a GPU"
    )
    replica_check_steps: Count | None = Field(
        default=500, description="under ddp, steps between comparisons of all ranks' weights; None: never"
    )
    hang_timeout_s: Rate | None = Field(default=480.0, description="seconds in which nothing is done that end the run; None: never")
