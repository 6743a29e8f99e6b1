"""The typed tree of settings: every key with its unit and its default.

How files, presets, stages and the command line are merged is in load.py; which values exclude each other is in conflicts.py. The `model:`
section is validated by the family's own class.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Strict, Tag, model_serializer

from plait.config.sections.adapters import Adapter
from plait.config.sections.alert import Alert
from plait.config.sections.base import Address, Count, Float, Folder, Int, Natural, Rate, Section, Share, Switch
from plait.config.sections.guard import Guard
from plait.config.sections.held_out import HeldOutShare, OwnShare, fraction
from plait.config.sections.hub import Hub
from plait.config.sections.model import ModelSection as ModelSection  # noqa: PLC0414  families import it from here
from plait.config.sections.muon import Muon
from plait.config.sections.selection import Captions, Filter
from plait.config.sections.track import Mlflow, Trackio, Wandb

LENGTH = ("steps", "epochs", "samples")
"""The keys of `train` that set its length: a higher layer that sets one of them removes the others of lower layers."""
WARMUP = ("warmup", "warmup_steps", "warmup_tokens")
"""The keys of a schedule, and of a component, that set its warm-up; a higher layer that sets one removes the others too."""


class Template(Section):
    """Format strings that make a conversation from a record's fields, such as "What is this? {label}". None: without that turn."""

    system: str | None = Field(default=None, description="system text of every conversation")
    user: str | None = Field(default=None, description="the question")
    assistant: str | None = Field(default=None, description="the answer, which is what training supervises")


class WeightedTemplate(Template):
    """One of several templates, which a sample is given by chance."""

    weight: Rate = Field(default=1.0, description="how often it is drawn, relative to the others")


class SourceEntry(Section):
    """One source of samples (a data set), as `data.train` and other lists name it.

    Which of `path` and `name` is needed depends on the kind of source, the value of `source`; other combinations are refused when the
    configuration is read.
    """

    source: str = Field(description="the kind: shards, folder, jsonl, datasets, dataset, latents, nlvr, scenes, or one of another package")
    path: str | None = Field(default=None, description="file, folder or pattern on disk")
    name: str | None = Field(
        default=None,
        description="datasets: a name on the Hub; dataset: one that the family knows, or your own module:Class or file.py:Class",
    )
    split: str | None = Field(default=None, description="part of the source; without it `train` or `validation`, by the list it stands in")
    weight: Rate = Field(default=1.0, description="share in the mixture, relative to the other sources")
    limit: Count | None = Field(default=None, description="at most so many samples, the first ones; a filter counts within them")
    held_out: OwnShare | None = Field(
        default=None, description="in data.train: the share of it that is held out and not trained on, such as 5%; 0: none, of any share"
    )
    filter: Filter | None = Field(default=None, description="which of its samples are read: by size, caption, columns, duplicates")
    rollout: Folder | None = Field(default=None, description="folder of predicted futures of its samples, made by `plait data rollout`")
    columns: dict[str, str] = Field(default={}, description="our name of a field: the record's name of it")
    captions: Captions | None = Field(default=None, description="columns of which one is the caption, drawn anew in each epoch")
    template: Template | None = None
    templates: list[WeightedTemplate] = Field(default=[], description="in place of `template`: several, of which one is drawn")
    allow_blank: bool = Field(default=False, description="train on empty captions, answers and template fields; else bad samples")
    options: dict[str, Any] = Field(default={}, description="settings of the source itself (scenes: their size, shapes, questions)")

    @property
    def own_text(self) -> str | None:
        """Return the first setting by which the entry makes conversations of fields, such as "template"; None without any."""
        given = {"template": self.template, "templates": self.templates, "captions": self.captions, "columns": self.columns}
        return next((name for name, value in given.items() if value), None)


def _kind_of_validation(value: Any) -> str:
    return "share" if isinstance(value, str | int | float) and not isinstance(value, bool) else "sources"


Validation = Annotated[
    Annotated[list[SourceEntry], Tag("sources")] | Annotated[HeldOutShare, Tag("share")], Discriminator(_kind_of_validation)
]
"""Held-out data: a list of sources, or the share of each source of the training data, as "1%"."""


class Data(Section):
    """Training data, held-out data, and how both are loaded.

    `pad`: to the longest of a micro-batch, to a multiple of 128, to `max_tokens`, or not at all (a family may refuse some of them).
    """

    train: list[SourceEntry] = Field(default=[])
    mixture: str | None = Field(
        default=None, description="in place of `train`: a mixture of the family by name, or a YAML or JSON file of one"
    )
    without: list[str] = Field(
        default=[], description="datasets of the mixture to leave out; the others of their group take over their share"
    )
    validation: Validation = Field(
        default=[], description="held-out data: sources, or a share of each training source, such as 1%, which is then not trained on"
    )
    root: str | None = Field(default=None, description="folder of named datasets, a subfolder each; None: the family's own place")
    workers: Natural = Field(default=2, description="threads or processes that prepare samples; 0: none ahead of the step")
    worker_kind: Literal["threads", "processes"] = Field(default="threads", description="processes: for readers that hold Python's lock")
    prefetch: Natural = Field(default=2, description="steps prepared ahead")
    cache: Folder | None = Field(
        default=None, description="indices, fetched files, features, compiled code; None: $PLAIT_CACHE or ~/.cache/plait"
    )
    feature_cache: Switch = Field(default="off", description="keep what frozen encoders make of a picture; auto: where that is faster")
    feature_cache_gb: Rate = Field(default=20.0, description="1e9 bytes that all kept features may take on the disk, of every run")
    feature_cache_of: list[str] = Field(default=[], description="which encoders, such as world_latents; empty: all of the family")
    max_tokens: Count | None = Field(default=None, description="longest sequence, tokens; longer ones are cut at the end")
    truncate: Literal["cut", "refuse", "drop"] = Field(
        default="cut", description="of longer training samples: cut their end; refuse: they are bad samples; drop: leave them out, counted"
    )
    batching: Literal["random", "length"] = Field(
        default="random", description="length: sequences of similar length in a batch, for less padding; samples as often as without"
    )
    pad: Literal["longest", "to_128", "to_max", "none"] = Field(default="longest", description="what sequences are padded to")
    pack_tokens: Count | None = Field(default=None, description="of pad none: tokens of a row at most; rows and ranks get like work")

    @property
    def needs_lengths(self) -> bool:
        """Whether the samples of steps, or who takes them, depend on how many tokens they have."""
        return self.batching == "length" or self.truncate == "drop" or self.pack_tokens is not None

    @property
    def held_out_share(self) -> float | None:
        """The share of each training source that is held out, such as 0.01; None where `validation` lists sources or nothing."""
        return fraction(self.validation) if isinstance(self.validation, str) else None

    def share_of(self, entry: SourceEntry) -> float | None:
        """Return the share of a training source that is held out, its own or that of `validation`; None for none of it."""
        return self.held_out_share if entry.held_out is None else fraction(entry.held_out) or None

    @property
    def shares(self) -> str:
        """What is held out of the training data, as "1% of the training data" or "5% of data.train.0"; "" where nothing is."""
        if isinstance(self.validation, str) and all(entry.held_out is None for entry in self.train):
            return f"{self.validation} of the training data"
        shares = [self.share_of(entry) for entry in self.train]
        return ", ".join(f"{share * 100:.12g}% of data.train.{index}" for index, share in enumerate(shares) if share)

    @property
    def holds_out(self) -> bool:
        """Whether any data is held out: sources that `validation` lists, or a share of training sources."""
        return bool(self.validation_sources or self.shares)

    @property
    def validation_sources(self) -> list[SourceEntry]:
        """The sources that `validation` lists; none where it is a share of the training data."""
        return [] if isinstance(self.validation, str) else self.validation


class Plateau(Section):
    """Early end of a stage, by patience_steps or by window_steps, whichever comes first. Defaults are for millions of image-text pairs."""

    metric: str = Field(default="loss", description="a figure of an `evaluate:` entry, as in metrics without `eval/`")
    better: Literal["lower", "higher"] = Field(default="lower", description="which value of `metric` is the better one")
    min_steps: Natural = Field(default=5000, description="steps of the stage before which it never ends")
    patience_steps: Count = Field(default=2000, description="steps without a new best after which it ends")
    window_steps: Count = Field(default=5000, description="steps over which the best must get better by min_gain")
    min_gain: Annotated[Float, Field(ge=0)] = Field(default=0.01, description="share of the best before them; less ends the stage")


class Train(Section):
    """Length of training, batch sizes and precision. After all layers are merged, exactly one of steps, epochs and samples is set."""

    steps: Count | None = Field(default=None, description="optimizer steps")
    epochs: Rate | None = Field(
        default=None,
        description="passes over the training data; 0.5 is legal. Of a mixture: as many samples as its sources hold together, drawn by "
        "weight, so that each source gets passes of its own, which are printed before step 1",
    )
    samples: Count | None = Field(default=None, description="samples")
    plateau: Plateau | None = Field(default=None, description="ends the stage earlier when a held-out figure is flat; None: never")
    global_batch: Count = Field(default=8, description="samples per step, over all ranks and accumulations")
    micro_batch: Count | None = Field(default=None, description="samples per forward on one rank; None: global_batch / ranks")
    grad_clip: Rate | None = Field(default=1.0, description="largest gradient norm; None: no clipping")
    precision: Literal["fp32", "bf16", "fp16", "pure_bf16"] = Field(
        default="fp32", description="bf16, fp16: products and frozen parts in 16 bits; pure_bf16: what trains and its moments as well"
    )
    residual_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the residual stream through blocks, where it is not of 16 bits anyhow; bfloat16 is for bf16",
    )


class Schedule(Section):
    """The learning rate by step, or by tokens, counted from the start of the stage. Of inverse_sqrt `min_lr` is the least, not the end."""

    name: Literal["constant", "linear", "cosine", "inverse_sqrt"] = Field(default="cosine", description="the curve after the warm-up")
    units: Literal["steps", "tokens"] = Field(default="steps", description="what warm-up and decay are counted in")
    warmup: Share | None = Field(
        default=None, description="linear rise from min_lr: this share of the stage's steps, or of decay_tokens when units are tokens"
    )
    warmup_from: Share | None = Field(default=None, description="where the warm-up begins, as a share of the peak; None: at min_lr")
    warmup_steps: Natural = Field(default=0, description="steps of linear rise from min_lr")
    warmup_tokens: Natural = Field(default=0, description="tokens of linear rise from min_lr, when units are tokens")
    decay_steps: Count | None = Field(default=None, description="steps where linear and cosine reach min_lr; None: the stage's end")
    decay_tokens: Count | None = Field(default=None, description="tokens where linear and cosine reach min_lr, with such units")
    min_lr: Annotated[Float, Field(ge=0)] = Field(default=0.0, description="learning rate at the end; a component's scales with its lr")


class Ema(Section):
    """The exponential moving average of the trained weights, used by evaluation."""

    decay: Share = Field(description="per step, such as 0.9999")
    warmup_steps: Natural = Field(default=0, description="caps the decay of a stage's update k (from 1) at k / this; 0: no cap")
    post_hoc: bool = Field(
        default=False, description="keep two more averages, of which `plait ckpt ema` makes one of any length after training"
    )


class Component(Section):
    """Optimizer settings of one component (part of the model that trains or stays frozen as a whole). None: as in `optim`."""

    lr: Rate | None = Field(default=None, description="peak learning rate")
    weight_decay: Annotated[Float, Field(ge=0)] | None = Field(default=None, description="of its matrices and filters")
    betas: Annotated[tuple[Share, Share], Strict(False)] | None = Field(default=None, description="decay of its two moments")
    eps: Rate | None = Field(default=None, description="added to the root of its second moment")
    warmup: Share | None = Field(default=None, description="linear rise of its rate: share of the stage's steps, or of decay_tokens")
    warmup_steps: Natural | None = Field(default=None, description="the same in steps")
    warmup_tokens: Natural | None = Field(default=None, description="the same in tokens")
    grad_clip: Rate | None = Field(default=None, description="largest norm of its own gradient; None: train.grad_clip, with the others")
    muon: bool | None = Field(default=None, description="whether name muon updates its matrices; None: those that are in blocks (layers)")


class Optim(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon", "adamw8bit"] = Field(
        default="adamw",
        description="AdamW, its weight decay apart from the gradient; muon: Muon for matrices of blocks, and AdamW for the rest; "
        "adamw8bit: AdamW with moments in 8 bits",
    )
    lr: Rate = Field(default=1e-4, description="peak learning rate")
    betas: Annotated[tuple[Share, Share], Strict(False)] = Field(default=(0.9, 0.95), description="decay of the two moments per step")
    eps: Rate = Field(default=1e-8, description="added to the root of the second moment")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(
        default=0.01, description="matrices and filters only, never gains, biases or learned vectors"
    )
    schedule: Schedule = Schedule()
    ema: Ema | None = None
    muon: Muon | None = Field(default=None, description="settings of name muon; None: their defaults")
    offload: bool = Field(default=False, description="moments in the host's memory, where the update is computed; for GPUs too small")
    returning_moments: Literal["keep", "reset"] = Field(
        default="keep", description="reset: what does not train in a stage loses its moments, and returns later without any"
    )
    components: dict[str, Component] = Field(default={}, description="by component: projector, vision, ...")

    @property
    def average_count(self) -> int:
        """How many averages of each trained weight training keeps: 0, 1 with `ema`, or 3 with `ema.post_hoc`."""
        return 0 if self.ema is None else 1 + 2 * self.ema.post_hoc

    @property
    def own_clips(self) -> dict[str, float]:
        """The clipping threshold (largest gradient norm) of each component that sets its own `grad_clip`, as {"vision": 1.0}."""
        return {name: component.grad_clip for name, component in self.components.items() if component.grad_clip is not None}


class Checkpoint(Section):
    """Intervals and number of checkpoints. The end of a stage is always saved."""

    every_steps: Count | None = Field(default=500, description="steps; None: only at the end of a stage")
    keep: Natural = Field(default=3, description="newest checkpoints kept per stage; 0: all")
    async_save: bool = Field(default=True, description="write in the background")
    reference: bool = Field(default=True, description="keep what each block puts out on four samples, for `plait upgrade-check`")
    mirror: Address | None = Field(default=None, description="address (s3://, gs://, file://) where the run's checkpoints are copied to")
    best: str | None = Field(default=None, description="a figure of an `evaluate:` entry whose best checkpoint is kept too, such as loss")
    better: Literal["lower", "higher"] = Field(default="lower", description="which value of `best` is the better one")


class Evaluate(Section):
    """One bench and its interval. `bench`: `loss` or another of the family's, on `data`; or NAME:SPLIT, a dataset with its own metric."""

    bench: str = Field(description="what is measured: loss, a bench of the family, or a dataset with its own rule, as vqa2:validation")
    every_steps: Count | None = Field(default=None, description="steps; None: at the end of the stage")
    samples: Count | None = Field(default=None, description="at most so many samples; None: all")
    batch: Count = Field(default=16, description="samples per forward")
    data: list[SourceEntry] = Field(default=[], description="empty: data.validation")
    ablate: str | None = Field(default=None, description="an input, such as image: measured also without it, and with another sample's")

    @property
    def title(self) -> str:
        """Return the name of what is measured: the bench, with the input that is left out: "accuracy with and without world"."""
        return f"{self.bench} with and without {self.ablate}" if self.ablate else self.bench


class Track(Section):
    """Settings of logging in addition to metrics.jsonl, which is always written."""

    every_steps: Count = Field(default=10, description="steps between records")
    report_every_steps: Count | None = Field(
        default=None, description="steps between pages of the run (RUN/report.html), and one at its end; None: `plait report` alone"
    )
    monitor: bool = Field(default=True, description="record where the time of a step goes (`plait why`) and how components learn")
    tensorboard: bool = Field(default=True, description="write RUN/events for TensorBoard too")
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None
    trackio: Trackio | None = None


class Distributed(Section):
    """Sharding, activation checkpointing, compiling and device: what is learned stays the same, but under `ddp_comm_hook`."""

    strategy: Literal["auto", "ddp", "fsdp", "shard_grad_op", "hsdp"] = Field(
        default="auto",
        description="ddp: whole on each rank; fsdp: all cut; shard_grad_op: weights whole while in use; hsdp: cut in groups; "
        "auto: ddp if the state fits in 0.7 of the memory, else hsdp by node if that fits, else fsdp",
    )
    shard_size: Count | None = Field(default=None, description="hsdp: ranks that share one copy; None: those of one node")
    frozen: Literal["auto", "replicate", "shard"] = Field(default="auto", description="frozen blocks when sharded; auto: whole if it fits")
    memory_gb: Rate | None = Field(default=None, description="per rank, 1e9 bytes, for `auto`; None: what the device has")
    gradient_sync: Literal["step", "micro_batch"] = Field(
        default="step", description="when sharded gradients are reduced; micro_batch: none is ever whole, and they are sent as often"
    )
    ddp_comm_hook: Literal["none", "bf16"] = Field(
        default="none", description="bf16: ddp sends gradients as bfloat16: half the bytes, summed with 8 bits of precision"
    )
    activation_checkpointing: Literal["none", "full", "one_in_two", "one_in_n", "selective"] = Field(
        default="none", description="blocks recomputed in the backward pass; selective: all but matrix products and attention"
    )
    checkpoint_one_in: Annotated[Int, Field(ge=2)] | None = Field(default=None, description="n of one_in_n: 4 recomputes every 4th block")
    compile: bool | Literal["auto"] = Field(default=False, description="compile each block; auto: on a GPU with Triton and a C compiler")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        default="default", description="as of torch.compile"
    )
    compile_dynamic: bool | None = Field(default=None, description="true: one graph for all lengths; false: one each; None: torch decides")
    compile_backend: Literal["inductor", "aot_eager"] = Field(default="inductor", description="aot_eager: traced, not faster")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="which GPU is chosen by CUDA_VISIBLE_DEVICES")


class Stage(Section):
    """A stage: a part of the run with settings of its own. Holds the keys that differ from the run's, over which load.py merges them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="part of a folder name: stage-1-<name>")
    trainable: list[str] = Field(default=[])
    data: dict[str, Any] = Field(default={})
    train: dict[str, Any] = Field(default={})
    optim: dict[str, Any] = Field(default={})
    checkpoint: dict[str, Any] = Field(default={})
    evaluate: list[Any] = Field(default=[])
    track: dict[str, Any] = Field(default={})
    distributed: dict[str, Any] = Field(default={})
    guard: dict[str, Any] = Field(default={})

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class RunConfig(Section):
    """The configuration of a run, or the whole configuration of one stage of it, which then has no stages of its own."""

    run: Folder | None = Field(default=None, description="folder of the run; None: runs/<name of the file>")
    seed: Annotated[Int, Field(ge=0)] = Field(default=0, description="what order, noise, dropout and new weights are drawn from")
    family: str = Field(description="the kind of model: the name of one of the installed families")
    preset: str | None = Field(default=None, description="a preset of the family, under the file")
    model: dict[str, Any] = Field(default={}, description="the family's own section")
    trainable: list[str] = Field(default=["*"], description="components that train; *: all that ever do")
    adapters: dict[str, Adapter] = Field(default={}, description="LoRA and its kin by component; they train as COMPONENT.lora")
    stages: list[Stage] = Field(default=[])
    from_: str | None = Field(default=None, alias="from", description="weights to start from: file, run, run@step or Hub repository")
    data: Data = Data()
    train: Train = Train()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: list[Evaluate] = Field(default=[])
    track: Track = Track()
    distributed: Distributed = Distributed()
    guard: Guard = Guard()
    alert: Alert = Alert()
    hub: Hub | None = Field(default=None, description="push checkpoints to a repository of the Hub; `null`: nothing is pushed")
