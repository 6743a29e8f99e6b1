"""A user's dataset class: read as written, random by key alone, and every mistake in one line."""

import io
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from plait.config.schema import SourceEntry
from plait.data.sources.dataset import UserDataset
from plait.data.sources.open import open_source
from plait.engine.monitoring.signals import Signals
from plait.errors import BadSample, PlaitError, sample_errors

CODE = """
import numpy as np
class Frogs:
    def __init__(self, split, colour="green"):
        self.split, self.colour = split, colour
    def load(self):
        return list(range(5))
    def get(self, idx, rng):
        picture = np.full((4, 6, 3), self.data[idx], np.uint8)
        return {"image": picture, "style": "vqa2", "messages": [
            {"role": "user", "content": f"How many? {rng.randint(10**6)}"},
            {"role": "assistant", "content": f"{idx} {self.colour} of {self.split}"}]}
class Loose:
    def load(self): pass
    def __len__(self): return 2
    def get(self, idx, rng): return [{"image": b"x"}, {"image": None, "messages": []}][idx]
class NoGet:
    def load(self): return [1]
class Fails:
    def load(self): raise FileNotFoundError("no frogs.csv")
    def get(self, idx, rng): return {}
class Several:
    def load(self): return [1]
    def get(self, idx, rng):
        turns = lambda q, a: [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        return {"annotations": [{"messages": turns("a", "b"), "style": "vqa2"}, {"messages": turns("c", "d"), "weight": 2.0}]}
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "frogs.py").write_text(CODE)
    return tmp_path / "frogs.py"


def made(code, name, split="train", limit=None, **options):
    return UserDataset(f"{code}:{name}", split=split, options=options, limit=limit)


def test_a_class_gives_its_picture_messages_and_fields(code):
    found = made(code, "Frogs", split="validation", colour="red")[3]
    assert np.array(Image.open(io.BytesIO(found["images"][0]))).shape == (4, 6, 3)
    assert found["messages"][1] == {"role": "assistant", "content": "3 red of validation"}
    assert found["fields"]["style"] == "vqa2"


def test_randomness_comes_from_the_key_alone(code):
    source, other = made(code, "Frogs"), made(code, "Frogs")
    source.draw(0, 7)
    assert source.draw(1, 42) == other.draw(1, 42)
    assert source.draw(1, 42) != source.draw(1, 43)


def test_a_source_travels_to_another_process(code):
    source = made(code, "Frogs", limit=3)
    other = pickle.loads(pickle.dumps(source))
    assert (len(other), other.fingerprint, other.draw(2, 5)) == (3, source.fingerprint, source.draw(2, 5))


def test_several_annotations_share_a_picture(code):
    found = made(code, "Several")[0]
    assert [one["messages"][1]["content"] for one in found["annotations"]] == ["b", "d"]
    assert found["annotations"][1]["weight"] == 2.0


def test_changed_code_is_another_dataset(code):
    before = made(code, "Frogs").fingerprint
    code.write_text(CODE.replace("10**6", "10**7"))
    assert made(code, "Frogs").fingerprint != before


def test_an_entry_opens_a_class(code):
    assert len(open_source(SourceEntry(source="dataset", name=f"{code}:Frogs", limit=2), seed=0)) == 2


WRONG = {
    "Frog": "no class 'Frog'; did you mean 'Frogs'?",
    "NoGet": "the class has no get(): a dataset has load() and get(idx, rng)",
    "Fails": "load() failed: FileNotFoundError: no frogs.csv",
}


@pytest.mark.parametrize(("name", "line"), WRONG.items())
def test_a_wrong_class_is_told_in_one_line(code, name, line):
    with pytest.raises(PlaitError) as told:
        made(code, name)
    assert line in str(told.value)
    assert "\n" not in str(told.value)


def test_wrong_names_and_options_are_told(code):
    with pytest.raises(PlaitError, match=r"no file .*toads\.py"):
        made(code.with_name("toads.py"), "Frogs")
    with pytest.raises(PlaitError, match="no module 'no_such_module'; install it, set PYTHONPATH, or name a file"):
        UserDataset("no_such_module:Frogs", split="train", options={}, limit=None)
    with pytest.raises(PlaitError, match="its constructor takes no 'size'; it takes split, colour"):
        made(code, "Frogs", size=3)


@pytest.mark.parametrize(("index", "line"), [(0, "returned no `messages`; it returned image"), (1, "`messages` is not a list of turns")])
def test_what_is_no_sample_is_a_bad_sample(code, index, line):
    with pytest.raises(BadSample, match=line):
        made(code, "Loose")[index]


ENDING = """
import multiprocessing, os, sys
class Loads:
    def load(self): ENDS
    def get(self, idx, rng): return {}
class Gets:
    def load(self): return [1, 2]
    def get(self, idx, rng):
        ENDS
        return {}
class Starts:
    def load(self): return [1]
    def get(self, idx, rng):
        child = multiprocessing.get_context("fork").Process(target=os._exit, args=(7,))
        child.start()
        child.join()
        return {"messages": [{"role": "assistant", "content": str(child.exitcode)}]}
"""
ENDS = {
    "os._exit(3)": "it calls os._exit(3) (ends.py:{line})",
    "raise KeyboardInterrupt": "it raises KeyboardInterrupt (ends.py:{line})",
    "sys.exit(3)": "SystemExit: 3",
}


@pytest.mark.parametrize(("statement", "said"), ENDS.items())
def test_a_class_that_wants_to_end_the_process_does_not(tmp_path, statement, said):
    (tmp_path / "ends.py").write_text(ENDING.replace("ENDS", statement))
    with Signals():  # as in a run: Ctrl-C sets a flag
        with pytest.raises(PlaitError) as told:
            made(tmp_path / "ends.py", "Loads")
        assert str(told.value) == f"{tmp_path}/ends.py:Loads: load() failed: {said.format(line=4)}"
        entry = SourceEntry(source="dataset", name=f"{tmp_path}/ends.py:Gets")
        with pytest.raises(BadSample) as bad, sample_errors:
            open_source(entry, seed=0, split="train")[1]
        assert str(bad.value).startswith(said.format(line=9))


def test_ctrl_c_while_a_class_is_called_outside_of_a_run_is_no_bad_sample(tmp_path):
    (tmp_path / "ends.py").write_text(ENDING.replace("ENDS", "raise KeyboardInterrupt"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts commands in the background without it
    try:
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "ends.py", "Gets")[0]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_a_class_starts_may_end(tmp_path):
    (tmp_path / "ends.py").write_text(ENDING.replace("ENDS", "pass"))
    assert made(tmp_path / "ends.py", "Starts")[0]["messages"][0]["content"] == "7"


def test_a_run_whose_class_ends_the_process_says_so_in_one_line(tmp_path):
    (tmp_path / "ends.py").write_text(ENDING.replace("ENDS", "os._exit(0)"))
    recipe = "family: theworld\npreset: tiny\ntrainable: [projector, language]\ndata: {train: [{source: dataset, name: 'ends.py:Loads'}]}\n"
    (tmp_path / "c.yaml").write_text(recipe + "train: {steps: 1}\n")
    done = subprocess.run([sys.executable, "-m", "plait", "train", "c.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"plait: {tmp_path}/ends.py:Loads: load() failed: it calls os._exit(0) (ends.py:4)\n")
