"""What `accelerate launch --module tests.hf.launched FOLDER` starts in each process: two trainings of the run in FOLDER."""

import json
import sys
from pathlib import Path

import plait
from tests.hf import recipes


def main(folder):
    """Train, continue from the middle of what one process has trained, and write the rows of both."""
    trainer = recipes.trainer_of(folder / "run.yaml", folder / "launched")
    trainer.train()
    rows = recipes.of_trainer(trainer)
    again = recipes.trainer_of(folder / "run.yaml", folder / "launched-again")
    again.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-10"))
    again.save_model(str(folder / "launched-model"))
    try:
        again.save_model("/proc/no/folder")
    except plait.PlaitError as error:
        (folder / f"refused-{again.args.process_index}.txt").write_text(str(error))
    if trainer.is_world_process_zero():
        told = {"processes": trainer.args.world_size, "rows": rows, "continued": recipes.of_trainer(again)}
        (folder / "launched.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
