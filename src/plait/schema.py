"""The typed tree of settings: what can be set, in which unit, and what it is when nobody sets it.

The tree only: how files, presets, stages and the command line are laid over each other is config.py, which offers these classes as well.
Knows no family: the `model:` section is validated by the family's own class.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_serializer

LENGTH = ("steps", "epochs", "samples")  # of `train`: a higher layer that sets one of them silences the others below it


def _number(value: Any) -> Any:
    """Text such as "3e-4" is the number it spells."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole(value: Any) -> Any:
    """1e4 and "100" are whole numbers; 1.5 is none."""
    number = _number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


Float = Annotated[float, BeforeValidator(_number)]
Int = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Int, Field(ge=1)]
Natural = Annotated[Int, Field(ge=0)]
Rate = Annotated[Float, Field(gt=0)]
Share = Annotated[Float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Strict (no guessing between types), frozen, and closed to unknown keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_by_alias=True, validate_by_name=True)


class Template(Section):
    """How a record becomes a conversation: format strings over the record's fields, such as "What is this? {label}"."""

    system: str | None = Field(default=None, description="system text of every conversation")
    user: str | None = Field(default=None, description="the question")
    assistant: str | None = Field(default=None, description="the answer, which is what training supervises")


class Source(Section):
    """Where samples come from. `datasets` needs `name` or `path`, the others `path`; `scenes` are generated."""

    source: Literal["shards", "folder", "jsonl", "datasets", "latents", "nlvr", "scenes"]
    path: str | None = Field(default=None, description="file, folder or pattern on disk")
    name: str | None = Field(default=None, description="name of a dataset on the Hub")
    split: str | None = Field(default=None, description="part of the source; without it `train` or `validation`, by the list it stands in")
    weight: Rate = Field(default=1.0, description="share in the mixture, relative to the other sources")
    limit: Count | None = Field(default=None, description="at most so many samples, the first ones")
    columns: dict[str, str] = Field(default={}, description="our name of a field: the record's name of it")
    template: Template | None = None
    options: dict[str, Any] = Field(default={}, description="settings of the source itself (scenes: their size, shapes, questions)")


class Data(Section):
    """What is trained on, what is held out, and how it is fetched."""

    train: list[Source] = []
    validation: list[Source] = []
    workers: Natural = Field(default=2, description="threads or processes that prepare samples; 0: the training thread itself")
    worker_kind: Literal["threads", "processes"] = "threads"
    prefetch: Natural = Field(default=2, description="steps prepared ahead")
    cache: str | None = Field(default=None, description="folder of indices and fetched files; None: beside the data, or the user's cache")
    max_tokens: Count | None = Field(default=None, description="longest sequence, tokens; longer ones are cut at the end")
    pad: Literal["longest", "to_128", "to_max", "none"] = Field(default="longest", description="what sequences are padded to")


class Plateau(Section):
    """Ends a stage before its budget, once a held-out figure no longer gets better. The defaults are for millions of image-text pairs."""

    metric: str = Field(default="loss", description="a figure of an `evaluate:` entry, as in metrics without `eval/`")
    better: Literal["lower", "higher"] = "lower"
    min_steps: Natural = Field(default=5000, description="steps of the stage before which it never ends")
    patience_steps: Count = Field(default=2000, description="steps without a new best after which it ends")
    window_steps: Count = Field(default=5000, description="steps over which the best must get better by min_gain")
    min_gain: Annotated[Float, Field(ge=0)] = Field(default=0.01, description="share of the figure; less in window_steps ends the stage")


class Train(Section):
    """How long and in what portions. Exactly one of steps, epochs and samples, by the end of all layers."""

    steps: Count | None = Field(default=None, description="optimizer steps")
    epochs: Rate | None = Field(default=None, description="passes over the training data; 0.5 is legal")
    samples: Count | None = Field(default=None, description="samples")
    plateau: Plateau | None = Field(default=None, description="ends the stage earlier when a held-out figure is flat; None: never")
    global_batch: Count = Field(default=8, description="samples per step, over all ranks and accumulations")
    micro_batch: Count | None = Field(default=None, description="samples per forward on one rank; None: global_batch / ranks")
    grad_clip: Rate | None = Field(default=1.0, description="largest gradient norm; None: no clipping")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: frozen parts stored in bf16, forward under autocast")


class Schedule(Section):
    """The learning rate as a function of the step."""

    name: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    warmup_steps: Natural = Field(default=0, description="steps of linear rise from 0")
    min_lr: Annotated[Float, Field(ge=0)] = Field(default=0.0, description="learning rate at the end")


class Ema(Section):
    """The exponential moving average of the trained weights, used by evaluation."""

    decay: Share = Field(description="per step, such as 0.9999")
    warmup_steps: Natural = Field(default=0, description="steps over which the decay rises from 0")


class Component(Section):
    """What one component of the model does differently. None: as in `optim`."""

    lr: Rate | None = None
    weight_decay: Annotated[Float, Field(ge=0)] | None = None
    betas: Annotated[tuple[Share, Share], Strict(False)] | None = None
    eps: Rate | None = None


class Optim(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw"] = "adamw"
    lr: Rate = Field(default=1e-4, description="peak learning rate")
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Annotated[Float, Field(ge=0)] = Field(default=0.01, description="matrices only; vectors never decay")
    schedule: Schedule = Schedule()
    ema: Ema | None = None
    returning_moments: Literal["keep", "reset"] = Field(
        default="keep", description="reset: what does not train in a stage loses its moments, and returns later without any"
    )
    components: dict[str, Component] = Field(default={}, description="by component: projector, vision, ...")


class Checkpoint(Section):
    """When the run is saved. The end of a stage always is."""

    every_steps: Count | None = Field(default=500, description="steps; None: only at the end of a stage")
    keep: Count = Field(default=3, description="newest checkpoints kept per stage")
    async_save: bool = Field(default=True, description="write in the background")
    best: str | None = Field(default=None, description="a figure of an `evaluate:` entry whose best checkpoint is kept too, such as loss")
    better: Literal["lower", "higher"] = Field(default="lower", description="which value of `best` is the better one")


class Evaluate(Section):
    """One bench and its interval. `loss` is the held-out loss of any family."""

    bench: str
    every_steps: Count | None = Field(default=None, description="steps; None: at the end of the stage")
    samples: Count | None = Field(default=None, description="at most so many samples; None: all")
    batch: Count = Field(default=16, description="samples per forward")
    data: list[Source] = Field(default=[], description="empty: data.validation")


class Wandb(Section):
    """Weights & Biases. The key comes from WANDB_API_KEY."""

    project: str
    name: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class Track(Section):
    """What is logged besides metrics.jsonl, which always is."""

    every_steps: Count = Field(default=10, description="steps between records")
    tensorboard: bool = True
    wandb: Wandb | None = None


class Distributed(Section):
    """How the work is laid on devices; none of it changes what is learned."""

    strategy: Literal["auto", "ddp", "fsdp", "shard_grad_op", "hsdp"] = Field(
        default="auto",
        description="ddp: whole on each rank; fsdp: all cut; shard_grad_op: weights whole while in use; hsdp: cut in groups",
    )
    shard_size: Count | None = Field(default=None, description="hsdp: ranks that share one copy; None: those of one node")
    frozen: Literal["auto", "replicate", "shard"] = Field(default="auto", description="frozen blocks of a sharded stage; auto: by size")
    memory_gb: Rate | None = Field(default=None, description="per rank, 1e9 bytes, for `auto`; None: what the device has")
    activation_checkpointing: Literal["none", "full", "one_in_two", "one_in_n", "selective"] = Field(
        default="none", description="blocks recomputed in the backward pass; selective: all but matrix products and attention"
    )
    checkpoint_one_in: Annotated[Int, Field(ge=2)] | None = Field(
        default=None, description="the n of one_in_n: 4 recomputes every 4th block"
    )
    compile: bool = Field(default=False, description="compile each block")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    compile_dynamic: bool | None = Field(default=None, description="true: one graph for all lengths; false: one each; None: torch decides")
    compile_backend: Literal["inductor", "aot_eager"] = Field(default="inductor", description="aot_eager: traced, not faster")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="which GPU is chosen by CUDA_VISIBLE_DEVICES")


class Guard(Section):
    """What stops a run."""

    max_bad_fraction: Annotated[Float, Field(ge=0, le=1)] = Field(default=0.01, description="share of samples that may be unusable")
    audit: bool = Field(default=True, description="look at every gradient of the first step")
    non_finite: Literal["stop"] = "stop"


class Stage(Section):
    """A stage: its name, and whatever differs from the base. Only what is written is kept; config.py lays it over the base."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="part of a folder name: stage-1-<name>")
    trainable: list[str] = []
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    optim: dict[str, Any] = {}
    checkpoint: dict[str, Any] = {}
    evaluate: list[Any] = []
    track: dict[str, Any] = {}
    distributed: dict[str, Any] = {}
    guard: dict[str, Any] = {}

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class RunConfig(Section):
    """A run. As the effective configuration of a stage it has no stages of its own."""

    run: str | None = Field(default=None, description="folder of the run; None: runs/<name of the file>")
    seed: Annotated[Int, Field(ge=0)] = 0
    family: str = Field(description="theworld, molmo, nanodit")
    preset: str | None = Field(default=None, description="a preset of the family, under the file")
    model: dict[str, Any] = Field(default={}, description="the family's own section")
    trainable: list[str] = Field(default=["*"], description="components that train; *: all that ever do")
    stages: list[Stage] = []
    from_: str | None = Field(default=None, alias="from", description="weights to start from: file, run, run@step or Hub repository")
    data: Data = Data()
    train: Train = Train()
    optim: Optim = Optim()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: list[Evaluate] = []
    track: Track = Track()
    distributed: Distributed = Distributed()
    guard: Guard = Guard()


def conflicts(config: RunConfig) -> list[tuple[tuple[str | int, ...], str]]:
    """What the settings of one stage make impossible together: (path of the setting to blame, what and what to do)."""
    train, optim = config.train, config.optim
    found: list[tuple[tuple[str | int, ...], str]] = []
    lengths = [name for name in LENGTH if getattr(train, name) is not None]
    if len(lengths) != 1:
        said = f"sets {' and '.join(lengths)}: keep one" if lengths else "does not say how long: set one of steps, epochs, samples"
        found.append((("train",), said))
    steps = train.steps or (-(-train.samples // train.global_batch) if train.samples else None)
    warmup = optim.schedule.warmup_steps
    if steps and warmup >= steps:
        said = f"is {warmup}, but the stage has {steps} steps: warm up for fewer, or train longer"
        found.append((("optim", "schedule", "warmup_steps"), said))
    if train.micro_batch and train.global_batch % train.micro_batch:
        near = train.global_batch - train.global_batch % train.micro_batch or train.micro_batch
        said = f"is {train.micro_batch}, not a divisor of train.global_batch {train.global_batch}: for example train.global_batch={near}"
        found.append((("train", "micro_batch"), said))
    if optim.schedule.min_lr > optim.lr:
        said = f"is {optim.schedule.min_lr}, above the peak optim.lr {optim.lr}: lower it"
        found.append((("optim", "schedule", "min_lr"), said))
    spread = config.distributed
    if spread.shard_size is not None and spread.strategy != "hsdp":
        found.append((("distributed", "shard_size"), f"is for strategy hsdp, not {spread.strategy}: leave it out, or set strategy=hsdp"))
    for name in ("frozen", "memory_gb") if spread.strategy == "ddp" else ():
        if getattr(spread, name) not in ("auto", None):
            found.append((("distributed", name), "says how to shard, but strategy ddp never does: leave it out, or set another strategy"))
    if not config.trainable:
        found.append((("trainable",), "is empty, so nothing would train: name components, or '*'"))
    return found + _device_conflicts(config.distributed) + _data_conflicts(config)


def _device_conflicts(distributed: Distributed) -> list[tuple[tuple[str | int, ...], str]]:
    found: list[tuple[str, str]] = []
    kind, one_in = distributed.activation_checkpointing, distributed.checkpoint_one_in
    if kind == "one_in_n" and one_in is None:
        found.append(("activation_checkpointing", "is 'one_in_n' without its n: set distributed.checkpoint_one_in, for example 4"))
    if kind != "one_in_n" and one_in is not None:
        found.append(("checkpoint_one_in", f"is {one_in}, but distributed.activation_checkpointing is {kind!r}: set that to one_in_n"))
    for name, unset in (("compile_mode", "default"), ("compile_dynamic", None), ("compile_backend", "inductor")):
        if not distributed.compile and (value := getattr(distributed, name)) != unset:
            found.append((name, f"is {value!r}, but nothing is compiled: set distributed.compile=true as well"))
    if distributed.compile_mode != "default" and distributed.compile_backend != "inductor":
        said = f"is {distributed.compile_mode!r}, which only inductor knows, and the backend is {distributed.compile_backend!r}: drop one"
        found.append(("compile_mode", said))
    return [(("distributed", name), said) for name, said in found]


def _data_conflicts(config: RunConfig) -> list[tuple[tuple[str | int, ...], str]]:
    found: list[tuple[tuple[str | int, ...], str]] = []
    if not config.data.train:
        found.append((("data", "train"), "names no source: for example data.train=[{source: scenes}]"))
    lists: list[tuple[tuple[str | int, ...], list[Source]]]
    lists = [(("data", "train"), config.data.train), (("data", "validation"), config.data.validation)]
    for index, bench in enumerate(config.evaluate):
        lists.append((("evaluate", index, "data"), bench.data))
        if not bench.data and not config.data.validation:
            said = f"measures {bench.bench!r} on nothing: name sources in data.validation or evaluate.{index}.data"
            found.append((("evaluate", index), said))
    for path, sources in lists:
        for index, one in enumerate(sources):
            if one.source in ("shards", "folder", "jsonl", "latents", "nlvr") and one.path is None:
                found.append(((*path, index), f"of source {one.source!r} needs a path"))
            if one.source == "datasets" and (one.name is None) == (one.path is None):
                found.append(((*path, index), "of source 'datasets' needs either a name on the Hub or a path"))
    return found
