"""One rank of `test_distributed`: trains the toy five steps on its share of fixed global batches, and writes what rank 0 saw."""

import json
from pathlib import Path

from plait.data.order import rank_slices
from plait.engine import evaluation, source_shares
from plait.engine.held_out_loss import held_out_loss
from plait.engine.parallel import distributed
from plait.errors import BadSample

from .toy import Id, SquaredError, make_config, make_loop, make_state, micro, step_batch


def mixed(indices, padding):
    """A micro-batch of three sources, whose samples come in turns of 4, 1 and 2."""
    found = micro(indices, padding)
    found.ids = [Id((0, 0, 0, 0, 1, 2, 2)[i % 7], i, 0) for i in indices]
    return found


def predict(model, samples, inputs, *, batch, moment):
    return [{"id": sample} for sample in samples]


NUMBERS = evaluation.Bench(predict, lambda rows: {"count": float(len(rows))})


class Seven:
    """Samples 0 to 6, of which 5 cannot be read."""

    def __len__(self):
        return 7

    def __getitem__(self, place):
        if place == 5:
            raise BadSample("torn")
        return place

    def name(self, place):
        return place


def main(out: Path) -> None:
    with distributed.join("cpu") as ranks:
        config = make_config(train={"steps": 5, "global_batch": 15, "grad_clip": 1.0})
        state = make_state(config)
        rows = []
        loop = make_loop(state, SquaredError(), config, ranks, out.with_suffix(".jsonl"), [lambda _, row: rows.append(row)])
        loop.sources = ["a", "b", "c"]

        def cut(step):
            ids = [Id(0, step * 15 + i, 0) for i in range(15)]
            slices = rank_slices(ids, ranks.rank, ranks.size, 4)
            return step_batch(step, [mixed([i.index for i in part], padding) for part, padding in slices])

        loop.run([cut(step) for step in range(5)], 5)
        held_out = held_out_loss(state.model, SquaredError(), [cut(9)], ranks, "fp32")
        _, bench = evaluation.run_bench(NUMBERS, state.model, Seven(), inputs=None, batch=4, ranks=ranks, precision="fp32", moment="")
        if ranks.first:
            figures = {"loss": [row["loss"] for row in rows], "grad_norm": [row["grad_norm"] for row in rows], "held_out": held_out["loss"]}
            weights = state.model.tower.weight.flatten().tolist()
            given = {name: value for name, value in state.totals.items() if name.startswith(source_shares.PREFIX)}
            out.write_text(json.dumps({**figures, "weights": weights, "drawn": given, "bench": [row["id"] for row in bench]}))
