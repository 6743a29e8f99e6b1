"""What logits of supervised positions alone save: forward and backward of a head beside the cross-entropy of the logits of all positions.

    OMP_NUM_THREADS=1 python benchmarks/logits.py [--rounds 7]

Hidden states (2,048 x 512), a head of 32,768 words, an eighth of the positions supervised, as of short answers to a picture of 256 tokens.
Rounds take both in turn; the gradients are compared. Writes benchmarks/results/logits.json.
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.files import write_json
from plait.nn.losses import IGNORED, token_cross_entropy

RESULTS = Path(__file__).resolve().parent / "results" / "logits.json"
POSITIONS, WIDTH, WORDS, SUPERVISED = 2048, 512, 32768, 256


def main() -> None:
    """Run the rounds, compare the gradients, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=draw).requires_grad_()
    head = (torch.randn(WORDS, WIDTH, generator=draw) * 0.02).requires_grad_()
    target = torch.randint(WORDS, (POSITIONS,), generator=draw).where(torch.arange(POSITIONS) >= POSITIONS - SUPERVISED, IGNORED)

    def ours() -> Tensor:
        return token_cross_entropy(hidden, head, target)

    def all_positions() -> Tensor:
        return F.cross_entropy(hidden @ head.T, target, ignore_index=IGNORED, reduction="sum")

    taken: dict[str, list[float]] = {"supervised": [], "all": []}
    gradients: dict[str, Tensor] = {}
    for _ in range(1 + asked.rounds):
        for name, loss in (("supervised", ours), ("all", all_positions)):
            hidden.grad = head.grad = None
            began = time.process_time()
            loss().backward()
            taken[name].append(time.process_time() - began)
            assert hidden.grad is not None and head.grad is not None
            gradients[name] = torch.cat([hidden.grad.flatten(), head.grad.flatten()])
    median = {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first warms up
    apart = float((gradients["supervised"] - gradients["all"]).norm() / gradients["all"].norm())
    ratio = median["all"] / median["supervised"]
    print(
        f"supervised {median['supervised']:.3f} s, all {median['all']:.3f} s of the processor: {ratio:.2f} x; gradients apart {apart:.1e}"
    )
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    write_json(RESULTS, {"machine": machine, "median_s": median, "ratio": ratio, "gradient_apart": apart})


if __name__ == "__main__":
    main()
