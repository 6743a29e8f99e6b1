"""The loops that plait's is compared with by benchmarks/overhead.py."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainingArguments

from .work import BATCH, BETAS, CLIP, DECAY, EPS, LOG_EVERY, LR, Clock, Net, Ready, Samples, cosine, optimizer_of, repeated


def bare(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    """What one writes by hand, without a record."""
    by_hand(net, batches, samples, clock, lambda step, loss, norm, lr: None)


def logged(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    """What one writes by hand, with the figures of every 10th step in TensorBoard files."""
    with SummaryWriter(str(folder)) as writer:

        def record(step: int, loss: Tensor, norm: Tensor, lr: float) -> None:
            if step % LOG_EVERY == 0:
                for name, value in (("loss", loss.item()), ("grad_norm", norm.item()), ("lr", lr)):
                    writer.add_scalar(name, value, step)

        by_hand(net, batches, samples, clock, record)


def by_hand(net: Net, batches: Ready | None, samples: Samples, clock: Clock, record: Callable[[int, Tensor, Tensor, float], None]) -> None:
    if batches is None:
        batches = repeated(DataLoader(samples, BATCH, shuffle=True, drop_last=True), clock.steps)
    optimizer, parameters = optimizer_of(net), list(net.parameters())
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LR * cosine(step, clock.steps)
        loss = F.cross_entropy(net(batch["x"]), batch["labels"])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        record(step + 1, loss, norm, optimizer.param_groups[0]["lr"])
        clock.tick(step + 1)


class WithLoss(nn.Module):
    """What HF Trainer wants: a model that returns its own loss."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(x), labels)}


class Ticking(TrainerCallback):
    """Tells the clock after every step of HF Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args, state, control, **_) -> None:
        self.clock.tick(state.global_step)


class ReadyTrainer(Trainer):
    """HF Trainer over ready batches."""

    batches: Ready

    def get_train_dataloader(self) -> Any:
        return self.batches


def trainer(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "events")
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=clock.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        logging_steps=LOG_EVERY,
        report_to=["tensorboard"],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        dataloader_drop_last=True,
        remove_unused_columns=False,
    )
    kind = Trainer if batches is None else ReadyTrainer
    one = kind(WithLoss(net), settings, train_dataset=samples, data_collator=default_collate, callbacks=[Ticking(clock)])
    if batches is not None:
        one.batches = batches
    one.train()


def with_accelerate(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    """The loop of accelerate's own documentation."""
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(folder))
    accelerator.init_trackers("bench")
    optimizer = optimizer_of(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, clock.steps))
    model, optimizer, schedule = accelerator.prepare(net, optimizer, schedule)
    if batches is None:
        loader = accelerator.prepare(DataLoader(samples, BATCH, shuffle=True, drop_last=True))
        batches = repeated(loader, clock.steps)
    for step, batch in enumerate(batches):
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(batch["x"]), batch["labels"])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            accelerator.log({"loss": loss.item(), "grad_norm": norm.item(), "lr": schedule.get_last_lr()[0]}, step=step + 1)
        clock.tick(step + 1)
    accelerator.end_training()


def with_fabric(net: Net, batches: Ready | None, samples: Samples, clock: Clock, folder: Path) -> None:
    """The loop of Lightning Fabric's own documentation."""
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import TensorBoardLogger

    fabric = Fabric(accelerator="cpu", devices=1, loggers=TensorBoardLogger(str(folder)))
    fabric.launch()
    plain = optimizer_of(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: cosine(step, clock.steps))
    model, optimizer = fabric.setup(net, plain)
    if batches is None:
        batches = repeated(fabric.setup_dataloaders(DataLoader(samples, BATCH, shuffle=True, drop_last=True)), clock.steps)
    for step, batch in enumerate(batches):
        loss = F.cross_entropy(model(batch["x"]), batch["labels"])
        fabric.backward(loss)
        norm = fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            fabric.log_dict({"loss": loss.item(), "grad_norm": norm.item(), "lr": schedule.get_last_lr()[0]}, step=step + 1)
        clock.tick(step + 1)
    fabric.logger.finalize("success")


PEERS: dict[str, Callable[[Net, Ready | None, Samples, Clock, Path], None]] = {
    "bare loop": bare,
    "bare loop, logged": logged,
    "accelerate": with_accelerate,
    "HF Trainer": trainer,
}
if importlib.util.find_spec("lightning_fabric"):
    PEERS["Fabric"] = with_fabric
