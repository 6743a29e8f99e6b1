"""Ranks killed inside of steps: two ranks under `plait train --nproc 2 --max-restarts=N`, which must go on by itself."""

import rank_kills

from fault_rows.bench import Bench, Row
from fault_rows.kills import steps_of, trained_config
from plait.commands.prove import prove
from plait.commands.prove.prove import Trial
from plait.keys import rng
from plait.training import launch

_PER_RUN = 4


def inside_steps(setting: Bench) -> list[Row]:
    """SIGKILL to one rank of two inside of a step, several times a run; every run ends by itself at the bits of the run left alone."""
    place, row = setting.place("ranks"), Row("kill of one of two ranks inside a step")
    config, straight = trained_config(place)
    events = prove.run_straight(Trial(config, launch.Fresh(rank_kills.RANKS)), straight)
    left, number = setting.count(12), 0
    while left:
        kills, draw = min(left, _PER_RUN), rng(setting.seed, "ranks inside", number)
        plan = [
            prove.Kill("SIGKILL", event.phase, event.step, float(draw.uniform(0, event.seconds))) for event in steps_of(events, draw, kills)
        ]
        done = rank_kills.one_run(config, straight, events, kills, setting.seed + number, plan)
        left, number = left - kills, number + 1
        for kill in plan:
            row.add(done["divergence"], inside_a_step=int(kill.moment.startswith("step ")))
        row.notes["processes_left"] = row.notes.get("processes_left", 0) + done["left"]
    return [row]
