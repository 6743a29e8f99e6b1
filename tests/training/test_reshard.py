"""A run that goes on with another number of ranks and another strategy, and the checkpoints that many ranks write together."""

import json
import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from plait import cli
from plait.engine.checkpoints import checkpoint, integrity, stored_files
from plait.engine.checkpoints.writing import tensor_file
from plait.engine.parallel import distributed
from plait.engine.state import State
from plait.errors import PlaitError, Stopped
from plait.training import from_weights
from plait.training.stage import StageRun
from tests import processes
from tests import toy_family as toy

GROUPS = ("weights", "ema", "moments")
FSDP = ["distributed.strategy=fsdp", "distributed.frozen=shard"]
HYBRID = ["distributed.strategy=hsdp", "distributed.frozen=shard", "distributed.shard_size=2"]


def dump(state, path):
    """The whole tensors of a state that may be cut over ranks, written by rank 0."""
    found = {f"{group} {name}": distributed.full_tensor(value) for group, part in state.tensors().items() for name, value in part.items()}
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_file({name: value.clone() for name, value in found.items()}, path)


def link(recipe, run, begun, last, settings):
    """Go on with the run; keep the state that a stage begins with in `begun`, and end abruptly after step `last`."""
    begin, after = State.begin, StageRun.after_step

    def spied(state, *arguments):
        begin(state, *arguments)
        dump(state, begun / f"{state.step}.safetensors")

    def ended(stage, state, row):
        after(stage, state, row)
        if state.step == last:
            dump(state, begun / "last.safetensors")
            os._exit(0)

    with mock.patch.object(State, "begin", spied), mock.patch.object(StageRun, "after_step", ended):
        toy.train(recipe, run, *settings)


CHAIN = [(2, 4, FSDP), (1, 14, []), (4, 18, HYBRID)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reshard")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        toy.train(recipe, folder / "straight")
        for number, (size, last, settings) in enumerate(CHAIN):
            (folder / f"link-{number}").mkdir()
            processes.fork(size, link, recipe, folder / "chain", folder / f"link-{number}", last, settings)
        yield folder


def test_two_ranks_then_one_then_four_give_the_straight_runs_samples_and_losses(made):
    straight, chain = toy.figures(made / "straight"), toy.figures(made / "chain")
    for one, other in zip(straight, chain, strict=True):
        assert one.get("ids") == other.get("ids")
        own = ("update/", "moved/")  # of rank 0's rows
        numbers = {name: value for name, value in one.items() if name != "ids" and not name.startswith(own)}
        # fp32, 18 updates at a rate of 0.01; sums in other orders
        assert {name: other[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-6)


def of(path):
    """The groups of a dump."""
    found = {group: {} for group in GROUPS}
    for name, value in load_file(path).items():
        found[name.split()[0]][name.split()[1]] = value
    return found


@pytest.mark.parametrize(("step", "number"), [(4, 1), (14, 2)])
def test_what_some_ranks_saved_begins_on_others_to_the_bit(made, step, number):
    saved, begun = toy.at(made / "chain", step), of(made / f"link-{number}" / f"{step}.safetensors")
    assert len(begun["moments"]) == {4: 6, 14: 18}[step]
    assert all(toy.same(saved.tensors(group), begun[group]) for group in GROUPS)


def test_what_four_ranks_held_loads_on_one_to_the_bit(made):
    found = toy.at(made / "chain", 18)
    names = {f"{group}/{rank:05d}-of-00004.safetensors" for group in GROUPS for rank in range(2)}
    assert found.manifest["files"].keys() >= names
    state = State(toy.Net(4, 5))
    state.restore(found.manifest["state"], {group: found.tensors(group) for group in GROUPS})
    held = of(made / "link-2" / "last.safetensors")
    assert toy.same(dict(state.model.named_parameters()), held["weights"])
    assert toy.same(state.paused, held["moments"])
    assert toy.same(state.ema.average, held["ema"])


def test_torchs_own_reader_reads_the_pieces(made):
    found = toy.at(made / "chain", 4)
    for group in ("weights", "moments"):
        ours = found.tensors(group)
        theirs = {name: torch.empty_like(value) for name, value in ours.items()}
        with pytest.warns(UserWarning, match="uninitialized, assuming the intent is to load in a single process"):
            load(theirs, storage_reader=HuggingFaceStorageReader(str(found.folder / group)), no_dist=True)
        assert toy.same(ours, theirs)


def test_a_flipped_byte_in_one_ranks_piece_is_named_and_walked_back_from(made):
    folder = toy.at(made / "chain", 18).folder
    path = folder / "moments" / "00001-of-00004.safetensors"
    body = path.read_bytes()
    path.write_bytes(body[:-2] + bytes([body[-2] ^ 1]) + body[-1:])
    found, faults = integrity.newest_intact(made / "chain")
    path.write_bytes(body)
    assert found.step == 16
    assert faults[0].startswith(f"{path} is damaged: xxh3 ")


def test_rows_that_no_file_holds_are_missed(made):
    found = toy.at(made / "chain", 4)
    listed = [name for name in found.manifest["files"] if not name.endswith("00000-of-00002.safetensors")]
    with pytest.raises(PlaitError, match=r"of 'projector.bias' the rows from 0 to 2 are in no file"):
        stored_files.read(found.folder, "weights", listed)


def refused(recipe, run, setting, out):
    """Train on two ranks while rank 1's disk fills at the second save; each rank writes what it raised."""
    rank, saved = int(os.environ["RANK"]), []

    def full(*arguments, **keywords):
        saved.append(arguments)
        if rank == 1 and len(saved) > 3:
            raise OSError(28, "No space left on device")
        return write(*arguments, **keywords)

    write = tensor_file.write
    with mock.patch.object(tensor_file, "write", full), pytest.raises(PlaitError) as caught:
        toy.train(recipe, run, *FSDP, setting)
    out.with_suffix(f".{rank}").write_text(str(caught.value))


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_full_disk_under_one_rank_is_told_to_all_and_leaves_the_earlier_checkpoint(made, tmp_path, background):
    out, run = tmp_path / "said", tmp_path / "run"
    processes.fork(2, refused, made / "recipe.yaml", run, f"checkpoint.async_save={background}", out)
    said = [out.with_suffix(f".{rank}").read_text() for rank in range(2)]
    assert "on rank 1: [Errno 28] No space left on device; earlier checkpoints are intact" in said[0]
    assert "could not be written: [Errno 28] No space left on device; earlier checkpoints are intact" in said[1]
    assert [path.name for path in checkpoint.published(run)] == ["step-00000002"]
    assert integrity.newest_intact(run)[0].step == 2
    assert [path.name for path in (run / "stage-1-projection").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(("option", "group"), [([], "ema"), (["--last"], "weights")])
def test_consolidated_weights_are_whole_and_start_another_run(made, tmp_path, option, group, capsys):
    assert cli.main(["ckpt", "consolidate", f"{made / 'chain'}@18", str(tmp_path / "out"), *option]) == 0
    found = toy.at(made / "chain", 18)
    assert toy.same(load_file(tmp_path / "out" / "model.safetensors"), found.tensors(group))
    about = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert (about["kind"], about["step"], about["averaged"]) == ("weights", 18, group == "ema")
    tensors, manifest, _ = from_weights.read_from(str(tmp_path / "out"))
    assert manifest is None
    assert toy.same(tensors["weights"], found.tensors(group))
    assert cli.main(["ckpt", "consolidate", f"{made / 'chain'}@18", str(tmp_path / "out")]) == 2
    assert "out exists already: give a new folder, or remove it" in capsys.readouterr().err


def test_inspect_counts_the_rows_of_all_ranks(made, capsys):
    assert cli.main(["ckpt", "inspect", str(toy.at(made / "chain", 4).folder)]) == 0
    assert "trained now or ever: 20 parameters" in capsys.readouterr().out


UNSAVED = ("checkpoint.every_steps=null", "checkpoint.best=null", "evaluate=[]")
"""Nothing is saved before the steps that are not finite: a save would find the weights unfit first."""


def not_finite(recipe, run, out):
    """Train on two ranks at a rate that no number survives; each rank writes what stopped it."""
    with pytest.raises(Stopped) as caught:
        toy.train(recipe, run, *FSDP, "optim.lr=1e30", "train.grad_clip=null", *UNSAVED)
    out.with_suffix(f".{os.environ['RANK']}").write_text(str(caught.value))


def test_numbers_that_are_not_finite_stop_all_ranks_and_name_the_gradients_of_all(made, tmp_path):
    processes.fork(2, not_finite, made / "recipe.yaml", tmp_path / "run", tmp_path / "said")
    one, other = ((tmp_path / "said").with_suffix(f".{rank}").read_text() for rank in range(2))
    assert one == other
    assert one.startswith("step 3 is not finite (")
    assert "gradients not finite in projector.weight, projector.bias;" in one
