"""What a start loads and does: large libraries are imported where they are needed, and objects are not looked through again and again."""

import subprocess
import sys

HEAVY = ("transformers", "diffusers", "peft", "accelerate", "datasets", "wandb", "pandas", "torch._dynamo")
RUN = """
import gc, sys
full = []
gc.callbacks.append(lambda phase, about: full.append(phase) if about["generation"] == 2 and phase == "stop" else None)
from plait.__main__ import main
heavy, sys.argv = sys.argv[3], ["plait", "train", sys.argv[1], "--run=" + sys.argv[2]]
main()
print("collections of all objects:", len(full), "to come:", gc.get_freeze_count() < 100_000)
print("loaded:", *sorted(set(heavy.split(",")) & set(sys.modules)))
"""
CONFIG = """
family: nanodit
model: {space: pixels, image_size: 32, depth: 1, hidden: 32, heads: 2, patch: 8, text: words, text_dim: 8, words: 32, image_dim: 0}
trainable: ["*"]
data: {train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}], workers: 0}
train: {global_batch: 4, steps: 1}
optim: {lr: 1.0e-3}
"""


def test_a_run_of_nanodit_loads_none_of_the_large_libraries_and_looks_for_no_cycles_in_what_it_imports(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = [sys.executable, "-c", RUN, "config.yaml", "run", ",".join(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "1 steps done" in done.stdout, done.stdout + done.stderr
    collections, loaded = done.stdout.splitlines()[-2:]
    assert loaded == "loaded:"
    assert collections in [f"collections of all objects: {count} to come: False" for count in (0, 1)]  # were 6, and more in the exit
