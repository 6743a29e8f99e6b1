"""Train a stage by a Trainer of transformers, with the data, losses, optimizer and schedule of plait's own loop.

What is transformers' own: the order of a step's calls, callbacks, what is logged where, checkpoints in `checkpoint-STEP`, DDP or DeepSpeed
through accelerate. What a checkpoint holds and how one is continued is in `trainer_checkpoint.py`.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from plait.api import open_autocast
from plait.assembly import weight_files
from plait.assembly.held_out import open_held_out
from plait.config.schema import Evaluate, RunConfig
from plait.data.loading.loader import StepBatch
from plait.engine import blocks, nonfinite_report, optim
from plait.engine.guards import GradientWatch, Quarantine
from plait.engine.held_out_loss import held_out_loss
from plait.engine.loop import own_loss_weights, seed, sum_over_ranks
from plait.engine.loss import has_targets, sums_of
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.parallel.rank_failures import attempt, raise_on_all
from plait.engine.precision import autocast
from plait.errors import PlaitError, Recurring
from plait.hf import checkpoint_files, model_folder, trainer_checkpoint
from plait.hf.batches import Part, StepBatches
from plait.hf.schedule import StageSchedule
from plait.hf.trained_stage import Stage, Wrapped
from plait.keys import key


@dataclass
class Figures:
    """Losses of the steps since the last record. `add` a micro-batch's numerators; `take` the means over steps, of all ranks."""

    coefficients: Mapping[str, float]
    ranks: Ranks
    steps: int = 0
    losses: dict[str, Tensor] = field(default_factory=dict)
    """This rank's share of each term, numerators over global denominators, summed over the steps before the last."""
    counts: dict[str, int] = field(default_factory=dict)
    """In how many of those steps a term had weight."""
    last: tuple[Mapping[str, float], dict[str, Tensor]] = field(default_factory=lambda: ({}, {}))
    """Of the last step, the global denominators and this rank's numerators."""

    def add(self, part: Part, sums: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's numerators `sums` to those of its step."""
        if part.index == 0:
            self._close()
            self.steps, self.last = self.steps + 1, (part.loss_weights, {})
        own = self.last[1]
        for name, value in sums.items() if not part.micro.padding else ():
            own[name] = own[name] + value.detach().double() if name in own else value.detach().double()

    def _close(self) -> None:
        """Add the last step to the sums."""
        (weights, own), self.last = self.last, ({}, {})
        for name in (name for name in weights if weights[name] > 0):
            share = own[name] / weights[name] if name in own else torch.zeros((), dtype=torch.float64, device=self.ranks.device)
            self.losses[name] = self.losses[name] + share if name in self.losses else share
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return {"loss": mean over the steps, "loss/TERM": ...} of the global batches, and forget them. All ranks call this."""
        self._close()
        names = [name for name in self.coefficients if name in self.losses]
        own = torch.stack([self.losses[name] for name in names]).tolist() if names else []
        losses, counts, steps = dict(zip(names, sum_over_ranks(own, self.ranks), strict=True)), self.counts, max(1, self.steps)
        self.steps, self.losses, self.counts = 0, {}, {}
        total = sum(self.coefficients[name] * value for name, value in losses.items()) / steps
        return {"loss": total, **{f"loss/{name}": value / counts[name] for name, value in losses.items()}}


class StageTrainer(Trainer):
    """Trains one stage of a configuration. `plait.hf.trainer` makes it."""

    def __init__(self, stage: Stage, args: TrainingArguments, callbacks: Sequence[TrainerCallback]) -> None:
        plan, config = stage.plan, stage.config
        self.stage, self.ranks, self.run_state = stage, stage.ranks, stage.state
        self.figures = Figures(plan.loss.coefficients, stage.ranks)
        self.quarantine = Quarantine(stage.out / "quarantine.jsonl", config.guard.max_bad_fraction)
        self.watch = GradientWatch(list(plan.trained), stop=config.guard.no_gradient == "stop")
        self.norm: Tensor | None = None
        """The gradient's norm in the present step, before clipping; None: not measured here."""
        self.step_loss = torch.zeros(())
        """The loss of the present step on this rank, times the ranks."""
        self.batches = StepBatches(plan, stage.bundle, stage.ranks, lambda: self.state.global_step, args.gradient_accumulation_steps)
        super().__init__(
            model=Wrapped(stage.bundle.model),
            args=args,
            train_dataset=self.batches.dataset,
            eval_dataset=[config.data.shares or "data.validation"] if config.data.holds_out else None,
            callbacks=[_Steps(self), *callbacks],
        )
        self._check_accelerator(config)
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            self._keep_gathered()

    def _check_accelerator(self, config: RunConfig) -> None:
        """Raise PlaitError where `accelerate launch` was configured for what the configuration does not say, or cannot be done."""
        precision, wanted = self.accelerator.mixed_precision, config.train.precision
        if precision not in ("no", wanted):
            raise PlaitError(
                f"accelerate is set to mixed precision {precision}, and train.precision is {wanted}: "
                "start with `accelerate launch --mixed_precision no`, the precision is the configuration's"
            )
        if self.is_fsdp_enabled:
            raise PlaitError("FSDP of accelerate is not taken: shard with DeepSpeed, or with `plait train` and distributed.strategy")
        if self.is_deepspeed_enabled:
            given = self.accelerator.state.deepspeed_plugin.deepspeed_config
            if named := [name for name in ("optimizer", "scheduler") if name in given]:
                raise PlaitError(f"the DeepSpeed configuration has {' and '.join(named)}: leave it out, it is that of `optim`")
            zero = given.get("zero_optimization", {})
            if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
                raise PlaitError(
                    "ZeRO 3: set zero_optimization.stage3_gather_16bit_weights_on_model_save, or no checkpoint has the weights"
                )
            if config.optim.ema is not None or config.optim.own_clips or config.data.pack_tokens:
                raise PlaitError("optim.ema, a grad_clip of a component and data.pack_tokens are not for DeepSpeed: leave them out")
            if config.optim.name != "adamw":
                raise PlaitError(f"optim.name {config.optim.name} is not for DeepSpeed, which flattens weights: leave one of them out")

    def _keep_gathered(self) -> None:
        """Have ZeRO 3 gather what is in no block for the whole step: a model may use it outside of the layer that holds it."""
        import deepspeed

        inside = {id(value) for block in self.stage.bundle.blocks for value in block.parameters()}
        for value in self.stage.bundle.model.parameters():
            if id(value) not in inside:
                deepspeed.zero.register_external_parameter(self.model, value)

    def get_train_dataloader(self) -> Any:
        """Return the iteration over the stage's steps, from the one that the trainer is at."""
        return self.batches

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device
    ) -> tuple[list[list[Part]], Tensor | None]:
        """Return the micro-batches of the next step, with the global denominators of its losses. Raises PlaitError for unusable data.

        One for each of the trainer's `num_batches`; with `data.pack_tokens`, which has as many as it needs, all of them for its only one.
        """
        plan, state = self.stage.plan, self.run_state
        batch, failure = attempt(lambda: next(epoch_iterator), StepBatch(self.state.global_step, [], [], 0.0))
        own = dict.fromkeys((*sorted(plan.loss.coefficients), *plan.loss.counts), 0.0)
        if failure is None:
            own, failure = attempt(lambda: own_loss_weights(plan.loss, batch.micro), own)
        *sums, failed = sum_over_ranks([*own.values(), failure is not None], self.ranks)
        raise_on_all(self.ranks, failure, on_any=failed > 0)
        assert batch.step == self.state.global_step, "the loader and the trainer are at other steps"
        weights = dict(zip(own, sums, strict=True))
        counts = {name: weights.pop(name) for name in plan.loss.counts}
        if isinstance(self.lr_scheduler, StageSchedule):
            self.lr_scheduler.begin(counts)
        state.count({"samples": self.stage.config.train.global_batch, **counts})
        self.quarantine.add(self.state.global_step + 1, batch.bad, state.totals, self.ranks)
        last = len(batch.micro) - 1
        parts = [Part(micro, weights, index, index == last) for index, micro in enumerate(batch.micro)]
        batches = [parts] if self.stage.config.data.pack_tokens else [[part] for part in parts]
        assert len(batches) == num_batches
        return batches, None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Compute the gradient of micro-batches, `inputs`, as the loop does; returns their part of the global loss, times the ranks."""
        model.train()
        losses = []
        with blocks.kept_casts(self.stage.config, self.stage.bundle.model, self.ranks):
            for part in inputs:
                with contextlib.nullcontext() if part is inputs[-1] else self.accelerator.no_sync(model):
                    losses.append(self._backward(model, part))
        loss = torch.stack(losses).sum()
        self.step_loss = loss + (self.step_loss if inputs[0].index else 0.0)
        if inputs[-1].last and not self.is_deepspeed_enabled:
            self.norm = self._clip(inputs[-1])
        return loss

    def _backward(self, model: nn.Module, part: Part) -> Tensor:
        """Run forward and backward of a micro-batch; returns its part of the global loss, times the ranks."""
        plan, config, ranks, weights = self.stage.plan, self.stage.config, self.ranks, part.loss_weights
        seed(key(config.seed, "dropout", self.run_state.step, ranks.rank, part.index), ranks.device)
        batch = distributed.to_device(part.micro.batch, ranks.device)
        with autocast(config.train.precision, ranks.device):
            sums = sums_of(plan.loss, model, batch)
        factor = 0.0 if part.micro.padding or not has_targets(plan.loss, weights) else float(ranks.size)
        terms = [name for name in sums if weights[name] > 0 or not factor]
        scaled = [sums[name] * (factor * plan.loss.coefficients[name] / (weights[name] or 1.0)) for name in terms]
        total = torch.stack([value for value in scaled if value.requires_grad]).sum()
        self.accelerator.backward(total, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
        self.figures.add(part, sums)
        return total.detach()

    def _clip(self, part: Part) -> Tensor:
        """Clip the step's gradient as the loop does; returns its norm. Raises Recurring where it is not finite, or always 0."""
        config, state = self.stage.config, self.run_state
        assert self.optimizer is not None
        norms, clip = optim.measure(optim.by_component(self.optimizer), config.train.grad_clip, config.optim.own_clips)
        *measured, loss = torch.stack([*norms.values(), self.step_loss.to(norms["grad_norm"])]).tolist()
        values = dict(zip(norms, measured, strict=True))
        clip(values)
        if not math.isfinite(values["grad_norm"]):
            ids = [f"{i.source}:{i.index}@{i.epoch}" for i in part.micro.ids]
            model, run = self.stage.bundle.model, self.stage.out
            told = nonfinite_report.make_report(state.step + 1, values, ids, model=model, ranks=self.ranks, run=run)
            raise Recurring(f"{told.what}, stopped before the update; of its samples: {told.where}")
        self.watch({"loss": loss, **values}, last=self.state.global_step + 1 == self.stage.plan.steps)
        optim.drop_idle(self.optimizer, self.stage.plan.loss.may_idle, values)
        return norms["grad_norm"]

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float:
        """Return the norm of the gradient, which is clipped already; DeepSpeed clips its own."""
        return self.norm if self.norm is not None else super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Return the norm of the gradient before it was clipped."""
        return self.norm if self.norm is not None else super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of the stage, with its groups by component, and the moments that it began with."""
        if self.optimizer is None:
            state, plan, bundle = self.run_state, self.stage.plan, self.stage.bundle
            state.begin(plan.trained_parameters(bundle.model), plan.config.optim, plan.config.seed, bundle.blocks)
            self.optimizer = state.optimizer
        assert self.optimizer is not None
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the schedule of the stage's learning rates."""
        if self.lr_scheduler is None:
            plan, chosen = self.stage.plan, optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = StageSchedule(chosen, plan.config.optim, plan.steps, self.run_state)  # type: ignore[assignment]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; the loss of steps is that of their global batches, in float64, with each of its terms."""
        if "loss" in logs and self.figures.steps:
            counts = {name: self.run_state.totals[name] for name in ("samples", *self.stage.plan.loss.counts)}
            logs = {**logs, **self.figures.take(), **counts}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: FLOPs are counted by `plait train`."""
        return 0

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Measure the loss on the configuration's held-out data; returns {"eval_loss": ..., "eval_loss/TERM": ...}, and logs it.

        Raises PlaitError for other data, and where nothing is held out.
        """
        config = self.stage.config
        if eval_dataset is not None:
            raise PlaitError("evaluate measures the held-out data of the configuration (data.validation): give no eval_dataset")
        entry = Evaluate(bench="loss", batch=self.args.per_device_eval_batch_size)
        batches = open_held_out(self.stage.bundle, config, self.ranks).batches(entry)
        self.stage.bundle.model.eval()
        with model_folder.averaged(self.stage):
            figures = held_out_loss(self.stage.bundle.model, self.stage.plan.loss, batches, self.ranks, config.train.precision)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_: Any, **__: Any) -> Any:
        """Refuse: answers are those of `plait generate` and `plait eval`. Raises PlaitError."""
        raise PlaitError("a trainer of plait does not predict: save_model, then `plait generate` or `plait eval` on what it wrote")

    def push_to_hub(self, *_: Any, **__: Any) -> Any:
        """Refuse: a trainer's folder is no export. Raises PlaitError."""
        raise PlaitError("a trainer of plait does not push: save_model, then `hf upload REPO DIR` with what it wrote")

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Train the stage; `resume_from_checkpoint`: a checkpoint-STEP folder, or True for the newest whole one in `args.output_dir`.

        Raises PlaitError where that is of another stage, of other data or order, or not whole, and inside an autocast.
        """
        open_autocast.refuse("a trainer of plait")
        needed = () if self.is_deepspeed_enabled else trainer_checkpoint.MOMENTS
        folder = self._restore(resume_from_checkpoint, needed)
        return super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)

    def _restore(self, named: object, needed: tuple[str, ...] = ()) -> Path | None:
        """Load the weights of the checkpoint that is `named`, and return it. `needed`: files that it must have beside them."""
        folder = trainer_checkpoint.chosen(named, self.stage.out, self.ranks, needed)
        if folder is not None:
            on_every_rank(self.ranks, lambda: trainer_checkpoint.restore(folder, self.stage))
        return folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `train` has restored the weights."""

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint, where `load_best_model_at_end` asks for it."""
        self._restore(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the moments and the schedule of a checkpoint, on the host: transformers 5.17 asks for a device that torch has not."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        for name, target in zip(trainer_checkpoint.MOMENTS, (self.optimizer, self.lr_scheduler), strict=True):
            assert target is not None
            target.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Export the model into `output_dir`, in the layout that holds all of it; as `plait export` does. None: `args.output_dir`/model.

        Averaged (EMA) weights are taken where there are any. An earlier export there is replaced. Raises PlaitError for a folder that holds
        anything else, and under ZeRO 3.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
        elif self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise PlaitError("save_model: under ZeRO 3 no process has the whole model; begin a trainer without it from a checkpoint: from")
        else:
            model_folder.export(self.stage, output_dir or self.stage.out / "model")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether a new best value of `metric_for_best_model` was measured. Raises PlaitError for a metric that there is not."""
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:
            known = ", ".join(name for name in metrics if name.startswith("eval_"))
            raise PlaitError(f"args: metric_for_best_model {self.args.metric_for_best_model!r} is not measured: known: {known}") from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, last of all the hashes of its files, and only then remove older ones. Raises PlaitError where it cannot."""
        limit = self.args.save_total_limit
        self.args.save_total_limit = None  # older ones go when this one is whole
        try:
            on_every_rank(self.ranks, lambda: super(StageTrainer, self)._save_checkpoint(model, trial))
        finally:
            self.args.save_total_limit = limit
        on_every_rank(self.ranks, self._finish_checkpoint)

    def _finish_checkpoint(self) -> None:
        if self.args.should_save:
            folder, best = self.stage.out / f"checkpoint-{self.state.global_step}", self.state.best_model_checkpoint
            torch.save(self.args, folder / "training_args.bin")
            weight_files.write_list(folder)
            checkpoint_files.remove_older(self.stage.out, self.args.save_total_limit, {folder, *([Path(best)] if best else [])})

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the weights that train into a checkpoint's folder, their averages, and what it is a checkpoint of."""
        if self.args.should_save and output_dir is not None:
            trainer_checkpoint.save(self.stage, Path(output_dir), state_dict)


class _Steps(TrainerCallback):
    """Keeps plait's state of the run at the trainer's step, and its averages."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.stage, self.quarantine = trainer.stage, trainer.quarantine

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go to the step that the trainer continues from."""
        run = self.stage.state
        run.step = run.stage_start + state.global_step
        if not state.global_step:
            run.totals.clear()
        if self.stage.ranks.first:
            self.quarantine.resume(state.global_step)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Update the averages."""
        self.stage.state.average()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step, and tell passes over the data as the epoch."""
        plan, run = self.stage.plan, self.stage.state
        run.step = run.stage_start + state.global_step
        state.epoch = plan.order.samples(state.global_step) / sum(plan.order.sizes)
