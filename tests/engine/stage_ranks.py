"""One rank of `test_stages_and_resumes`: trains the head, unfreezes the tower, trains both; every rank writes its weights."""

import json
import sys
from pathlib import Path
from unittest import mock

from plait.engine.parallel import distributed

from .toy import SquaredError, make_config, make_loop, make_state, micro, step_batch


def main(out: Path, stale: bool) -> None:
    with distributed.join("cpu") as ranks:
        tower = train(ranks, out.with_suffix(".jsonl"), stale)  # a call of its own: no replica outlives the process group
        out.with_suffix(f".{ranks.rank}").write_text(json.dumps(tower))


def train(ranks: distributed.Ranks, quarantine: Path, stale: bool) -> list[float]:
    config = make_config(train={"steps": 3, "global_batch": 8})
    state = make_state(config, trainable=("head",))
    kept = distributed.replicate(state.model, ranks, "none")
    for stage, parts in enumerate([("head",), ("tower", "head")]):
        state.enter(stage + 1, 4, 100)
        state.pause()
        state.begin({part: state.model.components()[part] for part in parts}, config.optim)
        loop = make_loop(state, SquaredError(), config, ranks, quarantine)
        batches = [step_batch(i, [micro(list(range(40 * i + ranks.rank, 40 * i + 8, ranks.size)))]) for i in range(3)]
        with mock.patch.object(distributed, "replicate", return_value=kept) if stale else mock.MagicMock():
            loop.run(batches, state.step + 3)
    return state.model.tower.weight.flatten().tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "stale")
