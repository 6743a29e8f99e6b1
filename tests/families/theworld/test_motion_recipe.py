"""The recipe that asks theworld about motion loads, trains and comes to its verdict."""

import json
from pathlib import Path

from plait import cli

RECIPE = Path(__file__).resolve().parents[3] / "configs" / "theworld" / "motion.yaml"


def test_the_motion_recipe_runs_to_its_verdict(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["--train.steps=2", "--train.global_batch=4", "--data.train.0.limit=40", "--data.validation.0.limit=8"]
    settings = [*small, "--data.workers=0", "--evaluate.0.samples=4", "--data.feature_cache=off", "--track.tensorboard=false"]
    assert cli.main(["train", str(RECIPE), f"--run={run}", *settings]) == 0
    assert cli.main(["eval", str(run), "--bench", "accuracy,loss", "--ablate", "world", "--out", str(tmp_path / "out")]) == 0
    for bench in ("accuracy", "loss"):
        figures = json.loads((tmp_path / "out" / bench / "metrics.json").read_text(encoding="utf-8"))
        assert {f"{bench}/world_off", f"{bench}/world_shuffled"} <= figures.keys(), capsys.readouterr().out
