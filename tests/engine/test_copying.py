"""What a save copies while training goes on: the state as it was at the save, to the bit, whatever changes it afterwards.

`held` lets no copy begin before training asks whether it is done: what changes the state without asking is found in the checkpoint.
"""

import contextlib
import errno
import mmap
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import plait
from plait.assembly.configuration import open_config
from plait.engine.averages import Ema
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.saver import Saver
from plait.engine.checkpoints.writing import copying
from plait.engine.evaluation import evaluation_mode
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.errors import PlaitError
from tests import processes
from tests import toy_family as toy

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def hold(patch):
    """Hold every copy until training asks for it, or waits for the write; returns the tensors of each save, as they were at it."""
    go, states = threading.Event(), []
    begin, settle, copy_one = copying.Copying.begin, Saver._settle, copying._copy_on_host

    def begin_held(self, groups):
        go.clear()
        states.append({group: {name: value.detach().clone() for name, value in tensors.items()} for group, tensors in groups.items()})
        copy, wait = begin(self, groups)
        return copy, lambda: (go.set(), wait())

    patch.setattr(copying.Copying, "begin", begin_held)
    patch.setattr(Saver, "_settle", lambda self: (go.set(), settle(self)))
    patch.setattr(copying, "_copy_on_host", lambda *tensors: (go.wait(60), copy_one(*tensors)))
    return states


@pytest.fixture
def held(monkeypatch):
    return hold(monkeypatch)


def check(run, states):
    """Compare each checkpoint of the run with the state at its save."""
    saved = [checkpoint.read(folder) for folder in reversed(checkpoint.published(run))]
    assert len(saved) == len(states) > 2
    for found, state in zip(saved, states, strict=True):
        assert integrity.verify(found.folder) == []
        for group, tensors in state.items():
            assert toy.same(found.tensors(group), tensors), f"{found.folder.name}: {group}"


ALWAYS = ("stages=[]", "checkpoint.async_save=true", "checkpoint.every_steps=1", "checkpoint.keep=0")


@pytest.mark.parametrize(
    "settings",
    [
        ("evaluate=[]", "checkpoint.best=null"),  # the update, and the averages
        ("evaluate=[]", "checkpoint.best=null", "optim.ema.post_hoc=true"),
        ("evaluate=[]", "checkpoint.best=null", "optim.name=muon"),
        ("evaluate=[{bench: loss, every_steps: 1}]", "train.precision=pure_bf16"),  # a swap of averages and weights of another type
        ("evaluate=[]", "checkpoint.best=null", "optim.offload=true", "train.precision=pure_bf16"),
    ],
)
def test_a_checkpoint_is_the_state_at_its_save_whatever_training_does_meanwhile(recipe, tmp_path, held, settings):
    toy.train(recipe, tmp_path / "run", *ALWAYS, *settings)
    check(tmp_path / "run", held)


def ranks(recipe, run, out):
    """Train on two ranks that share the weights; each keeps its rows at the saves."""
    with pytest.MonkeyPatch.context() as patch:
        states = hold(patch)
        toy.train(recipe, run, *ALWAYS, "evaluate=[{bench: loss, every_steps: 1}]", "distributed.strategy=fsdp", "train.steps=3")
    torch.save(states, out.with_suffix(f".{os.environ['RANK']}"))


def joined(parts):
    """The tensors of a state from the rows of each rank; rank 0 has some of all tensors."""
    rows = {group: {name: [part[group][name] for part in parts if name in part[group]] for name in parts[0][group]} for group in parts[0]}
    return {group: {name: torch.cat(own) if own[0].ndim else own[0] for name, own in named.items()} for group, named in rows.items()}


def test_rows_of_ranks_are_those_at_the_save_although_averages_take_their_place_meanwhile(recipe, tmp_path):
    processes.fork(2, ranks, recipe, tmp_path / "run", tmp_path / "rows")
    by_rank = [torch.load(tmp_path / f"rows.{rank}") for rank in range(2)]
    check(tmp_path / "run", [joined(parts) for parts in zip(*by_rank, strict=True)])


def test_a_callback_that_changes_weights_changes_no_checkpoint_that_is_being_copied(recipe, tmp_path, held):
    def clip(row, model):
        for value in model.parameters():
            value.clamp_(-0.2, 0.2)

    settings = ("evaluate=[]", "checkpoint.best=null", "optim.ema=null")
    plait.train(open_config(recipe, [f"run={tmp_path / 'run'}", *ALWAYS, *settings]), callbacks=[clip])
    check(tmp_path / "run", held)


def save(saver, folder, step, **tensors):
    facts = {"base": [], "data": {}, "frozen_xxh3": "0", "state": {"step": step}}
    return saver.save(checkpoint.folder_of(folder, 1, "only", step), {"weights": tensors, "ema": {}}, facts, keep=3)


def test_averages_take_the_place_of_weights_only_once_these_are_copied(tmp_path, held):
    net = torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    state, saver = State(net, ema=Ema(0.5, 0, {"weight": torch.ones(2, 3)}), ever_trained={"weight"}), Saver(True, ALONE, lambda part: None)
    state.copied = save(saver, tmp_path, 1, **state.tensors()["weights"])
    with evaluation_mode(state) as averaged:
        saver.wait()
        assert averaged.weight.unique().tolist() == [1.0]
    assert torch.equal(integrity.newest_intact(tmp_path)[0].tensors("weights")["weight"], net.weight)


def test_what_does_not_ask_for_the_copy_is_found_by_these_tests(tmp_path, held):
    weight, saver = torch.zeros(1000), Saver(True, ALONE, lambda part: None)
    save(saver, tmp_path, 1, w=weight)
    weight.fill_(1.0)
    saver.wait()
    assert integrity.newest_intact(tmp_path)[0].tensors("weights")["w"].unique().tolist() == [1.0]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_copy_is_apart_from_tensors_that_are_changed_once_it_is_done(tmp_path, transposed):
    values = torch.arange(6.0).view(2, 3)
    weight = values.clone().T if transposed else values.clone()
    other, saver = torch.tensor(3, dtype=torch.bfloat16), Saver(True, ALONE, lambda part: None)
    copied = save(saver, tmp_path, 1, w=weight, count=other, none=torch.zeros(0, 2))
    copied()
    weight.fill_(-1.0)
    other.fill_(-1.0)
    saver.wait()
    found = integrity.newest_intact(tmp_path)[0].tensors("weights")
    assert torch.equal(found["w"], values.T if transposed else values)
    assert (found["count"].item(), found["count"].dtype, found["none"].shape) == (3, torch.bfloat16, (0, 2))


def test_a_parameter_that_is_given_other_values_is_saved_with_those_it_had(tmp_path, held):
    weight, saver = torch.nn.Parameter(torch.zeros(10)), Saver(True, ALONE, lambda part: None)
    save(saver, tmp_path, 1, w=weight)
    weight.data = torch.ones(10)
    saver.wait()
    assert integrity.newest_intact(tmp_path)[0].tensors("weights")["w"].abs().max() == 0


def test_the_memory_of_copies_is_kept_where_it_fits_and_freed_at_the_end():
    copies = copying.Copying()
    made = [copies.begin({"weights": {"w": torch.full(shape, value)}})[0]() for shape, value in (((10,), 1.0), ((10,), 2.0), ((5, 2), 3.0))]
    first, second, third = (groups["weights"]["w"] for groups in made)
    assert first.data_ptr() == second.data_ptr() and first.unique().tolist() == [2.0]
    assert third.shape == (5, 2) and third.unique().tolist() == [3.0]
    copies.release()
    assert copies._memory == {}


def test_a_copy_without_room_is_raised_before_the_update_and_tells_what_to_do(tmp_path, monkeypatch):
    full = OSError(errno.ENOMEM, "Cannot allocate memory")
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(full))
    saver = Saver(True, ALONE, lambda part: None)
    copied = save(saver, tmp_path, 1, w=torch.zeros(250_000_000, device="meta"))
    told = (
        r"^no host memory for a copy of 1\.0 GB of the state \(Cannot allocate memory\): free some, or set checkpoint\.async_save=false: "
        r"checkpoints are then written without a copy, while training waits$"
    )
    for wait in (copied, saver.wait):
        with pytest.raises(PlaitError, match=told):
            wait()
    assert list(tmp_path.iterdir()) == []


class Gpu:
    """What `copying` asks of torch.cuda, noted in order; its tensors are on the host, and count as being on the GPU."""

    def __init__(self, monkeypatch, status=0):
        self.calls, self.status, self.registered = [], status, {}
        for name in ("current_stream", "Stream", "stream", "device", "cudart"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        copy_ = torch.Tensor.copy_
        monkeypatch.setattr(
            torch.Tensor,
            "copy_",
            lambda copy, value, **more: (self.note("copy", *more.items()), copy_(copy, value.as_subclass(torch.Tensor)))[1],
        )

    def note(self, *call):
        self.calls.append((threading.current_thread() is threading.main_thread(), *call))

    def event(self, name):
        return SimpleNamespace(name=name, wait=lambda: self.note("wait for", name), synchronize=lambda: self.note("synchronize", name))

    def current_stream(self, device):
        return SimpleNamespace(record_event=lambda: (self.note("record", "ready"), self.event("ready"))[1])

    def Stream(self, device):
        wait = lambda event: self.note("side waits for", event.name)  # noqa: E731
        return SimpleNamespace(wait_event=wait, record_event=lambda: (self.note("record", "copied"), self.event("copied"))[1])

    def stream(self, stream):
        return contextlib.nullcontext()

    device = stream

    def cudart(self):
        def register(place, size, flags):
            assert flags == 0
            self.registered[place] = size
            return self.status

        return SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=self.registered.pop)


class OnGpu(torch.Tensor):
    """A tensor on the host that says it is on a GPU."""

    is_cuda, device = True, torch.device("cuda", 1)


def test_tensors_of_a_gpu_are_copied_on_a_stream_of_their_own_between_two_events(monkeypatch):
    gpu, copies = Gpu(monkeypatch), copying.Copying()
    weight, count = torch.arange(100.0), torch.tensor(3.0)
    copy, wait = copies.begin({"weights": {"w": weight.as_subclass(OnGpu), "step": count}})
    assert gpu.calls == [(True, "record", "ready")]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(copy).result()["weights"]
    in_thread = ["side waits for", "copy", "record", "synchronize"]
    assert [call[:2] for call in gpu.calls[1:]] == [(False, name) for name in in_thread]
    assert gpu.calls[2][2] == ("non_blocking", True)
    wait()
    assert gpu.calls[-1] == (True, "wait for", "copied")
    assert torch.equal(found["w"], weight) and torch.equal(found["step"], count)
    assert list(gpu.registered.values()) == [448 + 64] and found["w"].data_ptr() in gpu.registered  # 400 and 4 bytes, in units of 64
    copies.begin({"weights": {"w": torch.arange(10.0).as_subclass(OnGpu)}})[0]()  # of another size: the old memory is given back first
    assert list(gpu.registered.values()) == [64]
    copies.release()
    assert gpu.registered == {}


def test_memory_that_cannot_be_pinned_is_told_and_used_as_it_is(monkeypatch, caplog):
    Gpu(monkeypatch, status=2)
    copies = copying.Copying()
    copy, _ = copies.begin({"weights": {"w": torch.ones(4).as_subclass(OnGpu)}})
    assert copy()["weights"]["w"].tolist() == [1.0] * 4
    assert caplog.messages == ["0.0 GB for copies of the state could not be pinned (2): saves hold training up"]
    copies.release()


def test_the_thread_gives_way_to_training_until_training_waits_for_it(tmp_path, monkeypatch, held):
    given = []
    monkeypatch.setattr(copying, "give_way", lambda: given.append(threading.current_thread().name))
    saver = Saver(True, ALONE, lambda part: None)
    save(saver, tmp_path, 1, w=torch.zeros(2))()
    saver._thread.join()
    assert given == ["plait-save"]
    save(saver, tmp_path, 2, w=torch.zeros(2))  # held until it is waited for, as at a stop
    saver.wait()
    assert given == ["plait-save"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
def test_a_thread_that_gives_way_leaves_the_others_their_priority():
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
        pool.submit(copying.give_way).result()
        after = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
    assert after == min(before + 15, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
@pytest.mark.parametrize("allowed", [True, False])
def test_a_write_that_is_waited_for_gets_its_priority_back_where_that_is_allowed(tmp_path, monkeypatch, allowed):
    go, own, asked = threading.Event(), os.getpriority(os.PRIO_PROCESS, 0), []
    write, saver = checkpoint.write, Saver(True, ALONE, lambda part: None)

    def set_priority(kind, thread, value):
        asked.append((thread == saver._thread.native_id, value))
        go.set()
        if not allowed:
            raise PermissionError

    monkeypatch.setattr(checkpoint, "write", lambda *given: (go.wait(60), write(*given))[1])
    monkeypatch.setattr(copying, "give_way", lambda: None)
    monkeypatch.setattr(os, "setpriority", set_priority)
    save(saver, tmp_path, 1, w=torch.zeros(2))()
    saver.wait()
    assert asked == [(True, own)]
    assert integrity.newest_intact(tmp_path)[0].step == 1
