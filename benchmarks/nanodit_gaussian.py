"""White Gaussian data, whose best loss is known: does nanodit reach it, never pass it, and draw samples of the data's variance?

For x0 ~ N(0, s^2) the best velocity is E[v | z_t] = c(t) z with c = (t - (1 - t) s^2) / d, d = (1 - t)^2 s^2 + t^2, and what remains is
Var(v | z_t) = s^2 / d per element. Its mean over t is what no model can beat. Run: python benchmarks/nanodit_gaussian.py [sd ...]
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from plait.families.nanodit import family
from plait.families.nanodit.config import Config
from plait.families.nanodit.inputs import Inputs
from plait.families.nanodit.network.conditions import Conditions
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key, rng

CONFIG = Config(
    depth=2,
    hidden=64,
    heads=4,
    channels=4,
    text_dim=8,
    image_dim=8,
    sampling={"steps": 50, "solver": "heun", "text_scale": 1.0, "image_scale": 0.0},
)
SIDE, BATCH, STEPS, HELD_OUT = 4, 128, 4000, 65536
TIMES = {
    "logit_normal": lambda random, size: 1 / (1 + np.exp(-random.standard_normal(size))),
    "uniform": lambda random, size: random.random(size),
}


def residual(s: float, t: np.ndarray) -> np.ndarray:
    """Var(v | z_t) per element."""
    return s**2 / ((1 - t) ** 2 * s**2 + t**2)


def optimum(s: float, times: str) -> float:
    """Its mean over t, by quadrature over the logit (for uniform t it is pi s / 2)."""
    x = np.linspace(-20, 20, 400_001)
    t = 1 / (1 + np.exp(-x))
    weight = np.exp(-(x**2) / 2) if times == "logit_normal" else t * (1 - t)
    return float((residual(s, t) * weight).sum() / weight.sum())


def batch(inputs: Inputs, s: float, times: str, name: str, number: int, size: int) -> dict:
    """Fresh data by key, drawn for the whole batch at once."""
    random, shape = rng(name, number), (size, CONFIG.channels, SIDE, SIDE)
    x0, noise = (torch.tensor(random.standard_normal(shape), dtype=torch.float32) for _ in range(2))
    t = torch.tensor(TIMES[times](random, size), dtype=torch.float32)
    return {"x0": s * x0, "noise": noise, "t": t, **inputs.pack([Conditions()] * size)}


def best_loss(b: dict, s: float) -> float:
    """The loss of c(t) z on this very batch."""
    t = b["t"].double()[:, None, None, None]
    z = (1 - t) * b["x0"] + t * b["noise"]
    c = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
    return float((c * z - (b["noise"] - b["x0"])).square().mean())


def run(s: float, times: str) -> dict:
    """Train on sd `s`; figures."""
    began = time.perf_counter()
    model, inputs = family.build(CONFIG, Path("."), seed=1), Inputs(CONFIG, Path("."), train=True)
    loss = family.Loss(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, (k + 1) / 100) * (1 - k / STEPS) ** 0.5)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    first = None
    for step in range(STEPS):
        b = batch(inputs, s, times, "train", step, BATCH)
        total = loss.sums(model, b)["flow"] / BATCH
        first = float(total.detach()) if first is None else first
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 0.01)
    model.load_state_dict(average, strict=False)
    model.eval()
    with torch.no_grad():
        parts = [batch(inputs, s, times, "held-out", i, 1024) for i in range(HELD_OUT // 1024)]
        found = sum(float(loss.sums(model, b)["flow"]) for b in parts) / HELD_OUT
        best = sum(best_loss(b, s) for b in parts) / len(parts)
        requests = [Request(Conditions(), (CONFIG.channels, SIDE, SIDE), key("draw", i)) for i in range(2048)]
        drawn = torch.cat([draw(model, inputs, requests[i : i + 512], CONFIG.sampling) for i in range(0, 2048, 512)])
    return {
        "sd": s,
        "t": times,
        "first loss": round(first, 4),
        "loss": round(found, 4),
        "optimum": round(optimum(s, times), 4),
        "best predictor, same batches": round(best, 4),
        "above optimum": round(found / optimum(s, times) - 1, 4),
        "above best predictor": round(found / best - 1, 4),
        "sample variance / data variance": round(float(drawn.var()) / s**2, 4),
        "seconds": round(time.perf_counter() - began),
    }


if __name__ == "__main__":
    for value in map(float, sys.argv[1:] or ("0.5", "1", "2")):
        for kind in TIMES:
            print(json.dumps(run(value, kind)), flush=True)
