"""What other trainers get wrong around stages, resuming and checkpoints: each fact as a test of this engine."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.data.sources.contract import Source
from plait.engine import optim
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.saver import Saver

from .toy import ALONE, Net, make_config, make_state, micro, step_batch

EMA = {"lr": 0.01, "schedule": {"name": "constant"}, "ema": {"decay": 0.9}}
CONFIG = make_config(optim=EMA)


def trained(make_loop, state, steps):
    make_loop(state, CONFIG).run([step_batch(state.stage_step + i, [micro(list(range(16)))]) for i in range(steps)], state.step + steps)


def saved_and_back(state, folder, trainable):
    """Through a checkpoint on disk into a new process's state, in the stage that trains `trainable`."""
    facts = {"state": state.metadata(), "data": {}, "base": [], "frozen_xxh3": "0"}
    found = checkpoint.write(folder / "stage-1-x" / "step-00000001", state.tensors(), facts)
    back = make_state(CONFIG, trainable=("head",), seed=5)
    back.optimizer, back.ema = None, None
    back.restore(found.manifest["state"], {group: found.tensors(group) for group in ("weights", "ema", "moments")})
    back.begin({part: back.model.components()[part] for part in trainable}, CONFIG.optim)
    return back


def equal(one, other):
    one, other = one.tensors()["moments"], other.tensors()["moments"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_1_a_checkpoint_right_after_unfreezing_loads_and_goes_on(make_loop, tmp_path):
    state = make_state(CONFIG, trainable=("head",))
    trained(make_loop, state, 3)
    state.enter(2, 4, 100)
    state.pause()
    state.begin(state.model.components(), CONFIG.optim)
    back = saved_and_back(state, tmp_path, ("tower", "head"))
    assert equal(state, back)
    for one in (state, back):
        trained(make_loop, one, 2)
    assert torch.equal(state.model.head.weight, back.model.head.weight)
    assert equal(state, back)


def test_1_moments_of_a_refrozen_part_are_not_dropped(make_loop, tmp_path):
    state = make_state(CONFIG)
    trained(make_loop, state, 3)
    before = {name: value.clone() for name, value in state.tensors()["moments"].items() if name.startswith("tower")}
    state.enter(2, 4, 100)
    state.pause()
    state.begin({"head": state.model.components()["head"]}, CONFIG.optim)
    trained(make_loop, state, 2)
    back = saved_and_back(state, tmp_path, ("head",))
    assert len(before) == 6
    assert all(torch.equal(back.tensors()["moments"][name], value) for name, value in before.items())


class Twins(nn.Module):
    """Two layers of one size: nothing but the name tells their moments apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)


def test_2_moments_follow_names_where_sizes_agree():
    net = Twins()
    named = dict(net.named_parameters())
    only_b = optim.build({"b": {name: named[name] for name in ("b.weight", "b.bias")}}, CONFIG.optim)
    net.b(torch.ones(3)).sum().backward()
    only_b.step()
    both = optim.build({"a": {"a.weight": named["a.weight"]}, "b": {"b.weight": named["b.weight"]}}, CONFIG.optim)
    assert optim.load_moments(both, optim.moments(only_b)) == ["a.weight"]
    assert named["a.weight"] not in both.state
    assert torch.equal(both.state[named["b.weight"]]["exp_avg"], only_b.state[named["b.weight"]]["exp_avg"])


def test_2_what_has_no_moments_yet_is_told_and_not_guessed():
    state = make_state(CONFIG)
    assert state.tensors()["moments"] == {}
    assert len(optim.load_moments(state.optimizer, {})) == 4


def replicas(folder, how):
    """The tower of each of two ranks after a stage that freezes and one that unfreezes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engine.stage_ranks", str(folder / how), how]
    root = Path(__file__).parents[2]
    ranks = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=root) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    return [json.loads((folder / how).with_suffix(f".{rank}").read_text()) for rank in range(2)]


def test_3_replicas_stay_one_model_when_a_part_is_unfrozen(tmp_path):
    one, other = replicas(tmp_path, "anew")
    assert one == other
    assert one != Net(0).tower.weight.flatten().tolist()


def test_3_a_replica_kept_from_the_frozen_stage_would_have_diverged(tmp_path):
    one, other = replicas(tmp_path, "stale")
    assert one != other


def test_4_what_is_unfrozen_without_an_optimizer_that_moves_it_is_refused():
    state = make_state(CONFIG, trainable=("head",))
    state.model.tower.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match="optimizer groups and trainable parameters differ"):
        optim.assert_covers(state.model, state.optimizer)
    state.pause()
    state.begin(state.model.components(), CONFIG.optim)
    optim.assert_covers(state.model, state.optimizer)


def test_5_a_flipped_byte_loads_without_an_error_but_not_here(make_loop, tmp_path):
    state = make_state(CONFIG)
    trained(make_loop, state, 1)
    saved_and_back(state, tmp_path, ("head",))
    path = tmp_path / "stage-1-x" / "step-00000001" / "weights.safetensors"
    body = path.read_bytes()
    path.write_bytes(body[:-3] + bytes([body[-3] ^ 4]) + body[-2:])
    assert set(load_file(path)) == set(state.tensors()["weights"]), "the format itself does not notice"
    assert [line.split(": ")[0] for line in integrity.verify(path.parent)] == [f"{path} is damaged"]
    assert integrity.newest_intact(tmp_path)[0] is None


def test_6_an_incomplete_newest_folder_is_never_picked(make_loop, tmp_path):
    state = make_state(CONFIG)
    trained(make_loop, state, 1)
    saved_and_back(state, tmp_path, ("head",))
    whole = tmp_path / "stage-1-x" / "step-00000001"
    for name in ("step-00000002", "step-00000003"):
        shutil.copytree(whole, whole.with_name(name))
    (whole.with_name("step-00000002") / "manifest.json").unlink()
    (whole.with_name("step-00000003") / "moments.safetensors").unlink()
    found, faults = integrity.newest_intact(tmp_path)
    assert found.folder == whole
    assert faults == [
        f"{whole.with_name('step-00000003') / 'moments.safetensors'} is missing",
        f"{whole.with_name('step-00000002')} is no finished checkpoint: it has no manifest.json",
    ]


def test_6_an_old_checkpoint_goes_only_once_the_new_one_is_published(make_loop, tmp_path, monkeypatch):
    state = make_state(CONFIG)
    trained(make_loop, state, 1)
    saver, seen, write = Saver(False, ALONE, lambda part: None), [], checkpoint.write
    facts = {"state": {"step": 1}, "base": [], "data": {}, "frozen_xxh3": "0"}
    watched = lambda *a: (seen.append([path.name for path in checkpoint.published(tmp_path)]), write(*a))[1]  # noqa: E731
    monkeypatch.setattr(checkpoint, "write", watched)
    for step in (1, 2):
        saver.save(checkpoint.folder_of(tmp_path, 1, "x", step), state.tensors(), facts, keep=1)
    assert seen == [[], ["step-00000001"]]
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-00000002"]


class Counted(Source):
    """A source that remembers what was read."""

    name, fingerprint = "counted", "0"

    def __init__(self, size):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        self.read.append(i)
        return {"id": str(i), "images": [], "messages": [], "fields": {"i": i}}


class Plain:
    def encode(self, sample, key):
        return sample["fields"]["i"], key

    def collate(self, examples):
        return {"examples": examples}


def seen(first, last, workers=0, size=10):
    """What steps `first` to `last` - 1 hold: ids, content and keys."""
    order = Order([size], [1.0], 7, 4)
    with Loader([Counted(size)], order, Plain(), seed=7, workers=workers, start_step=first, stop_step=last) as loader:
        return [(batch.step, batch.micro[0].ids, batch.micro[0].batch["examples"]) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_7_a_resume_of_a_resume_in_the_third_epoch_sees_what_a_straight_run_sees(workers):
    straight = seen(0, 12)  # 10 samples, 4 a step: the second epoch begins within step 2, the third with step 5
    assert seen(0, 3, workers) + seen(3, 7, workers) + seen(7, 12, workers) == straight
    assert {identity.epoch for _, ids, _ in straight for identity in ids} == {0, 1, 2, 3, 4}


def test_8_a_resume_reads_nothing_that_was_read_before():
    source, order = Counted(10_000_000), Order([10_000_000], [1.0], 7, 4)
    with Loader([source], order, Plain(), seed=7, workers=0, prefetch=0, start_step=1_000_000, stop_step=1_000_001) as loader:
        (batch,) = loader
    assert source.read == [identity.index for identity in batch.micro[0].ids]


def test_8_a_far_step_is_found_with_no_more_work_than_a_near_one(calls):
    near, far = (calls(lambda step=step: Order([10_000_000], [1.0], 7, 64).ids(step)) for step in (10, 10_000_000))
    assert far < 1.5 * near  # the same arithmetic; a scan would be a million times more. 1.5: a cycle walked past n has a random length
