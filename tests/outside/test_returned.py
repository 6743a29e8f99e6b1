"""What functions of other packages return is checked where plait calls them: a mistake is one line that names member, value and cure."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plait import cli
from plait.errors import PlaitError
from plait.families import registry
from tests.outside.conftest import PACKAGE
from tests.outside.test_contracts import CONFIG, DIALECT, FAMILY, KIND, SOURCE, VERB, refused

WORDS = {name: f"from words_family.{name} import *\n" for name in ("config", "family", "evaluate")}
TRAIN = ("train", "mumble.yaml", "--train.steps=1", "--optim.schedule.warmup_steps=0")


@pytest.fixture
def mumble(install):
    """Install a family that is words but for what is added to one of its modules."""

    def mumble(text, module="family"):
        install(FAMILY, {**WORDS, module: WORDS[module] + text})

    return mumble


LOSS = "from words_family import family as words\nclass Loss(words.Loss):\n    "
BY_SAMPLE = "amounts = ('words',)\n    by_sample = lambda self, batch: "
SCALARS = "it is to return a scalar tensor for each of "
LOSSES = {
    "__init__ = lambda self, config: setattr(self, 'coefficients', {'words': 1.0, 'more': 0.5})": (
        f"weights(batch) returned the names words: {SCALARS}words, more"
    ),
    "counts = ('tokens',)": f"weights(batch) returned the names words: {SCALARS}words, tokens",
    "weights = lambda self, batch: None": f"weights(batch) returned a NoneType: {SCALARS}words",
    "weights = lambda self, batch: {'words': batch['labels']}": "weights(batch) returned words as a tensor of shape (",
    "sums = lambda self, model, batch: {'word': words.Loss.sums(self, model, batch)['words']}": (
        f"sums(model, batch) returned the names word: {SCALARS}words"
    ),
    "sums = lambda self, model, batch: {'words': model(batch['tokens']).logits.sum(-1)}": "sums(model, batch) returned words as a tensor ",
    "sums = lambda self, model, batch: {}": f"sums(model, batch) returned no names: {SCALARS}words",
    "sums = lambda self, model, batch: {'words': 3.0}": f"sums(model, batch) returned words as a float: {SCALARS}words",
    f"{BY_SAMPLE}self.weights(batch)": "by_sample(batch) returned words as a scalar tensor: it is to return a tensor of shape (8,) for eac",
    f"{BY_SAMPLE}{{}}": "by_sample(batch) returned no names: it is to return a tensor of shape (8,) for each of words",
}
TWICE = "--data.train=[{source: jsonl, path: talk.jsonl}, {source: jsonl, path: talk.jsonl}]"


@pytest.mark.parametrize("body", LOSSES)
def test_a_loss_that_returns_something_else_is_told_at_the_first_step(mumble, capsys, body):
    mumble(LOSS + body)
    error = refused(capsys, *TRAIN, "--run=never-lost", "--train.global_batch=8", TWICE)
    assert error.startswith(f"mumble.family.Loss.{LOSSES[body]}")


MEMBERS = {
    "counts = ('words',)": "counts of its Loss names 'words', which is a term of coefficients: a name is one or the other",
    "amounts = ('word',)": "amounts of its Loss names 'word', which there is not: known: words",
    "may_idle = ('vision',)": "may_idle of its Loss names 'vision', which there is not: known: table, layers",
    "__init__ = lambda self, config: setattr(self, 'coefficients', {'words': 'one'})": "coefficients of its Loss is to be a mapping, ",
}


@pytest.mark.parametrize("body", MEMBERS)
def test_names_of_a_loss_that_there_are_not_are_told(mumble, capsys, body):
    mumble(LOSS + body)
    assert refused(capsys, *TRAIN, "--run=never-named").startswith(f"family 'mumble': {MEMBERS[body]}")


RETURNS = {
    "build = lambda config, assets, *, seed: None": "family 'mumble': build(config, assets, *, seed) returned None: it is to return a torc",
    "limits = lambda config: {'positions': 64}": "family 'mumble': limits(config) returned a dict: it is to return a plait.families.limits",
    "from plait.families.limits import Limits\nlimits = lambda config: Limits('64')": (
        "family 'mumble': limits(config) returned Limits whose positions is '64': it should be a valid integer"
    ),
    "monitors = lambda config: None": "family 'mumble': monitors(config) returned None: it is to return a list of functions, monitor(row)",
    "monitors = lambda config: [lambda: []]": "family 'mumble': monitors(config) returned a list: it is to return a list of functions, ",
    "base = lambda config: {'part': 'words'}": "family 'mumble': base(config) returned a dict: it is to return a list of dicts of part, na",
    "base = lambda config: [{'part': 'words'}]": "family 'mumble': base(config) returned a list: it is to return a list of dicts of part, ",
    "never_trained = frozenset({'tabel'})": "family 'mumble': never_trained names 'tabel', which there is not: known: table, layers",
    "blocks = lambda model: None": "family 'mumble': blocks(model) returned None: it is to return a list of modules of the model",
    "components = lambda model: None": "family 'mumble': components(model) returned None: it is to return {component: {",
    "Inputs = lambda config, assets, **more: 3": "family 'mumble': Inputs(config, assets, ...) returned 3: it is to return an object with "
    "encode(sample, key) and collate(examples); it lacks encode(sample, key); it lacks collate(examples)",
    "Inputs.collate = lambda self, examples: (1, 2)": "words_family.family.Inputs.collate(examples) returned a tuple: it is to return a di",
}


@pytest.mark.parametrize("text", RETURNS)
def test_a_family_that_returns_something_else_is_told_before_training(mumble, capsys, monkeypatch, text):
    words = sys.modules["words_family.family"]
    monkeypatch.setattr(words.Inputs, "collate", words.Inputs.collate)
    mumble(text)
    assert refused(capsys, *TRAIN, "--run=never-returned").startswith(RETURNS[text])


def test_what_a_monitor_returns_is_checked(mumble):
    mumble("monitors = lambda config: [lambda row: row['warnings']]")
    (monitor,) = registry.load("mumble").monitors(None)
    assert monitor({"warnings": ["too hot"]}) == ["too hot"]
    for returned in (None, "too hot", [3]):
        with pytest.raises(
            PlaitError, match=r"^family 'mumble': a function of monitors\(config\) returned .*: it is to return a list of texts"
        ):
            monitor({"warnings": returned})


def test_what_frozen_features_returns_is_checked(mumble, capsys):
    mumble("frozen_features = lambda config: [1]")
    said = refused(capsys, *TRAIN, "--run=never-kept", "--data.feature_cache=on")
    assert said.startswith("family 'mumble': frozen_features(config) returned a list: it is to return a list of plait.families.frozen.Fr")


PICTURE = "__import__('numpy').zeros((2, 2, 3), 'uint8')"
SEEN = {
    "None": "returned None: it is to return a dict of images",
    "{'text': [], 'notes': {}}": "returned a dict without 'images': it is to return a dict of images",
    "{'images': [3], 'text': [], 'notes': {}}": "returned other images: it is to return a dict of images (a list of uint8 arrays, H x W x",
    "{'images': [], 'text': ['a'], 'notes': {}}": "returned other text: it is to return a dict of images",
    "{'images': [], 'text': [], 'notes': []}": "returned other notes: it is to return a dict of images",
    f"{{'images': [{PICTURE}], 'text': [], 'notes': {{}}, 'labels': []}}": "returned other labels: it is to return a dict of images",
}


@pytest.mark.parametrize("value", SEEN)
def test_what_inspect_shows_is_checked(mumble, here, capsys, value):
    mumble(f"inspect = lambda inputs, sample, example: {value}")
    error = refused(capsys, "data", "inspect", "mumble.yaml", "--samples=1", f"--out=unseen-{len(value)}")
    assert error.startswith(f"family 'mumble': inspect(inputs, sample, example) {SEEN[value]}")


def test_lines_of_generate_are_texts(install, capsys):
    texts = ["None", "'blue'", "[3]", "('b', 'c')"]
    for number, value in enumerate(texts):
        install(FAMILY, {**WORDS, "family": f"{WORDS['family']}generate = lambda model, inputs, options, out, moment: {value}"})
        for name in [name for name in sys.modules if name.partition(".")[0] == "mumble"]:
            del sys.modules[name]
        if number == 0:
            assert cli.main([*TRAIN, "--run=generates"]) == 0
        capsys.readouterr()
        if number == 3:
            assert cli.main(["generate", "generates", "--prompt=One sky?"]) == 0
            assert capsys.readouterr().out.endswith("b\nc\n")
            return
        returned = ("None", "'blue'", "3")[number]
        error = refused(capsys, "generate", "generates", "--prompt=One sky?")
        assert error.startswith(
            f"family 'mumble': generate(model, inputs, options, out, moment) returned {returned}: it is to return texts"
        )


BENCH = "predict = lambda model, samples, inputs, *, batch, moment: {}\nbenches = {{'one': Bench(predict, lambda rows: {}, {})}}"
ROWS, TENSOR = "[{'id': str(number)} for number, _ in enumerate(samples)]", "__import__('torch').ones(2)"
BENCHES = {
    (f"[{{'answer': {TENSOR}}} for sample in samples]", "{}", ""): "its predict returned row 0 without an id: it has answer",
    (
        f"[{{'id': 'a', 'scores': [1, {TENSOR}]}} for sample in samples]",
        "{}",
        "",
    ): "its predict returned row 0 with a Tensor as scores.1: a row",
    ("[3 for sample in samples]", "{}", ""): "its predict returned 3 as row 0: a row is a dict of JSON values with an id",
    ("None", "{}", ""): "its predict returned None: it is to return a list of rows, one for each sample, in order",
    (ROWS, "None", ""): "its summarise returned None: it is to return figures, a dict of numbers by name",
    (ROWS, "'good'", ""): "its summarise returned 'good': it is to return figures, a dict of numbers by name",
    (ROWS, f"{{'all': {TENSOR}.sum()}}", ""): "its summarise returned a Tensor as 'all': a figure is a number; of a tensor, .item()",
    (ROWS, "{'all': 1.0}", "pictures=lambda rows: [3]"): "its pictures returned a list: it is to return pictures by name",
    (ROWS, "{'all': 1.0}", "about=lambda rows: 'good'"): "its about returned 'good': it is to return a dict of texts by name",
    (ROWS, "{'all': 1.0}", "finish=lambda rows: rows[:1]"): "its finish returned a list: it is to return a list of as many rows, in order",
    (ROWS, "{'all': 1.0}", "needs=lambda section: 'clip'"): "its needs returned 'clip': it is to return a list of names of encoders",
}


@pytest.mark.parametrize("parts", BENCHES)
def test_a_bench_that_returns_something_else_is_told(mumble, parts):
    mumble(f"from plait.engine.evaluation import Bench\n{BENCH.format(*parts)}", "evaluate")
    bench = registry.benches("mumble")["one"]

    def use():
        rows = bench.predict(None, [1, 2], None, batch=2, moment="step-00000001")
        assert rows == [{"id": "0"}, {"id": "1"}]
        assert bench.summarise(bench.finish(rows)) == {"all": 1.0}
        (bench.pictures or bench.about)(rows)
        bench.needs(None)

    with pytest.raises(PlaitError) as caught:
        use()
    assert str(caught.value).startswith(f"family 'mumble': bench 'one': {BENCHES[parts]}")


def test_a_bench_that_returns_something_else_ends_training_and_eval_in_a_line(mumble, capsys):
    mumble(f"from plait.engine.evaluation import Bench\n{BENCH.format(ROWS, 'None', '')}", "evaluate")
    fault = "family 'mumble': bench 'one': its summarise returned None: it is to return figures, a dict of numbers by name"
    error = refused(capsys, *TRAIN, "--run=never-bench", "--evaluate=[{bench: one, batch: 2}]")
    assert error == f"bench one cannot be run, and would fail during the run: {fault}"
    assert refused(capsys, "eval", "--base", "mumble.yaml", "--bench", "one", "--out=unmeasured") == fault


SAMPLE = "a sample is a dict of id, images, messages, fields"
SAMPLES = {
    "{}": "is a dict without 'id' and 'images' and 'messages' and 'fields'",
    "None": "is a NoneType without 'id' and 'images' and 'messages' and 'fields'",
    "{'id': 'a', 'images': [], 'fields': {}}": "is a dict without 'messages'",
    "{'id': 'a', 'messages': [], 'fields': {}}": "is a dict without 'images'",
}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("command", [("train", "words.yaml", "--run=never-sampled"), ("data", "inspect", "words.yaml", "--out=unsampled")])
def test_a_sample_that_is_none_is_the_fault_of_its_source(install, capsys, sample, command):
    source = SOURCE.replace("return {}", f"return {sample}")
    install(KIND, {"kind": f"{source}KIND = SourceKind('mumble', needs='nothing', open=lambda entry, opening: Mumbles())"})
    error = refused(capsys, *command, "--data.train=[{source: mumble}]")
    assert error.startswith("mumbles: sample ") and f", made by mumble.kind.Mumbles, {SAMPLES[sample]}: {SAMPLE}" in error


def test_a_held_out_sample_that_is_none_is_the_fault_of_its_source(install, capsys):
    install(KIND, {"kind": f"{SOURCE}KIND = SourceKind('mumble', needs='nothing', open=lambda entry, opening: Mumbles())"})
    for bench in ("loss", "first_word"):
        error = refused(capsys, "eval", "--base", "words.yaml", "--bench", bench, "--data=[{source: mumble}]", f"--out=un-{bench}")
        assert "made by mumble.kind.Mumbles, is a dict without 'id' and 'images' and 'messages' and 'fields'" in error


REFUSED = {
    "{('data', 'padd'): {'to_max': ''}}": "refused names data.padd, which is no setting: did you mean 'pad'?",
    "{('data', 'pad', 'more'): {'to_max': ''}}": "refused names data.pad.more, which is no setting: known: none",
    "{('data', 'pad'): {'to_maxx': ''}}": "refused names data.pad = 'to_maxx', which it never is: did you mean 'to_max'?",
    "{('data', 'workers'): {'two': ''}}": "refused names data.workers = 'two', which it never is: known: none",
}


@pytest.mark.parametrize("table", REFUSED)
def test_a_refusal_of_what_there_is_not_is_told(install, capsys, table):
    install(FAMILY, {"config": CONFIG.format(f"refused = {table}")})
    assert f"(mumble.config.Config) does not fulfil the contract: {REFUSED[table]}" in refused(capsys, "config", "mumble.yaml")


def test_a_refusal_below_a_section_that_is_off_refuses_nothing(install, here):
    install(FAMILY, {"config": CONFIG.format("refused = {('train', 'plateau', 'better'): {'higher': ''}}")})
    assert cli.main(["config", "mumble.yaml"]) == 0


def test_variants_without_a_function_of_them_are_told(install, capsys):
    install(FAMILY, {"config": CONFIG.format("variants = {'loud': 'louder'}")})
    assert "variants names 'loud', and Config has no variant(name)" in refused(capsys, "config", "mumble.yaml")


RECOGNISE = "from plait.config.translation import Dialect, Translation\n"
CURE = "mend it, or uninstall the package to go on without this dialect (package mumble 2.0)"
DIALECTS = {
    "lambda tree, own: tree['STEPS'], lambda tree, overrides, path, own: None": (
        f"failed in recognise(tree, own): TypeError: 'Node' object is not subscriptable (dialect.py:2); {CURE}"
    ),
    "lambda tree, own: True, lambda tree, overrides, path, own: own[99]": "failed in translate(tree, overrides, path, own): IndexError: "
    f"tuple index out of range (dialect.py:2); {CURE}",
    "lambda tree, own: True, lambda tree, overrides, path, own: Translation({}, [])": "returned from translate(tree, overrides, path, own) "
    "a Translation whose tree is {}: it should be an instance of Node (package mumble 2.0)",
}


@pytest.mark.parametrize("arguments", DIALECTS)
def test_a_dialect_that_fails_is_named(install, capsys, arguments):
    install(DIALECT, {"dialect": f"{RECOGNISE}DIALECT = Dialect('mumbled', {arguments})"})
    assert refused(capsys, "config", "words.yaml") == f"dialect 'mumble' {DIALECTS[arguments]}"


NEVER = "lambda tree, own: False, lambda tree, overrides, path, own: None"
SCRIPTS = "{'molmo/captioner': ('MODEL',)}, lambda name, words: None"
OWN = {
    "[plait.families]\nmolmo = mumble": ("config", "words.yaml", "--family=molmo"),
    "[plait.sources]\nscenes = mumble.kind:KIND": ("config", "words.yaml", "--data.train=[{source: scenes}]"),
    "[plait.dialects]\nflat JSON = mumble.dialect:DIALECT": ("config", "words.yaml"),
    "[plait.commands]\nmumble = mumble.verb": ("config", "words.yaml"),
    "[plait.dialects]\nmumble = mumble.dialect:DIALECT": ("config", "words.yaml"),
    "[plait.dialects]\nmutter = mumble.scripts:DIALECT": ("config", "words.yaml"),
}
REMOVE = "is offered by plait itself and by mumble 2.0: remove that package, or rename what it adds"
TAKEN = [
    f"family 'molmo' {REMOVE}",
    f"source 'scenes' {REMOVE}",
    f"dialect 'flat JSON' {REMOVE}",
    "verb 'mumble' cannot be added: there is `plait train` already, of plait itself (package mumble 2.0)",
    "dialect 'mumble' cannot be added: there is a dialect 'flat JSON' already, of plait itself (package mumble 2.0)",
    "dialect 'mutter' cannot be added: there is a script 'molmo/captioner' already, of plait itself (package mumble 2.0)",
]


@pytest.mark.parametrize(("entry_points", "error"), list(zip(OWN, TAKEN, strict=True)))
def test_a_name_of_plaits_own_is_told_with_both(install, capsys, entry_points, error):
    dialects = {"dialect": f"'flat JSON', {NEVER}", "scripts": f"'muttered', {NEVER}, {SCRIPTS}"}
    modules = {name: f"{RECOGNISE}DIALECT = Dialect({arguments})" for name, arguments in dialects.items()}
    install(entry_points, {**modules, "verb": "from plait.commands.train import COMMANDS"})
    assert refused(capsys, *OWN[entry_points]).endswith(error)


@pytest.mark.parametrize("kind", ["dialect", "verb"])
def test_a_dialect_and_a_verb_of_two_packages_are_told_with_both(install, capsys, kind):
    declare = "from plait.commands.command import Command\nCOMMANDS = (Command(('mumble',), 'say', lambda parser: None, print),)"
    modules = {"dialect": f"{RECOGNISE}DIALECT = Dialect('mumbled', {NEVER})", "verb": declare}
    entry_points = {"dialect": DIALECT, "verb": VERB}[kind]
    install(entry_points, modules)
    install(entry_points, modules, package="mutter")
    error = refused(capsys, "config", "words.yaml")
    assert error.startswith(f"{kind} 'mumble' ") and "mumble 2.0" in error and "mutter 2.0" in error


@pytest.mark.parametrize(
    ("entry_points", "module", "error"),
    [
        (FAMILY, "config", "family 'mumble': mumble.config imports torch, for which every command would wait: import it in family.py"),
        (VERB, "verb", "verb 'mumble' cannot be loaded: mumble.verb imports torch, for which every command would wait: import it inside"),
    ],
)
def test_torch_in_what_every_command_loads_is_told(install, here, entry_points, module, error):
    text = "import torch\nfrom plait.config.schema import ModelSection as Config\nfrom plait.commands.command import Command\nCOMMANDS = ()"
    site = install(entry_points, {module: text})
    path = os.pathsep.join([str(site), str(PACKAGE), *(entry for entry in sys.path if entry and "site-" not in Path(entry).name[:5])])
    command = [sys.executable, "-m", "plait", "config", "mumble.yaml" if module == "config" else "words.yaml"]
    done = subprocess.run(command, cwd=here, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert error in done.stderr


VALIDATED = """
from pydantic import field_validator
from plait.config.schema import ModelSection
class Config(ModelSection):
    size: int = 3
    @field_validator("size")
    @classmethod
    def odd(cls, value):
        raise ValueError("must be odd,\\n  and is not")
"""


def test_a_message_of_two_lines_becomes_one(install, capsys):
    install(FAMILY, {"config": VALIDATED})
    assert refused(capsys, "config", "mumble.yaml", "--model.size=4") == "command line: model.size: must be odd,; and is not"


def test_help_with_percent_signs_is_shown_as_written(install, capsys):
    say = "parser.add_argument('--off', default=7, help='5 % sale, 50% (of %(default)s)')"
    verb = f"COMMANDS = (Command(('mumble',), '50 % share, 9 %(loss)', lambda parser: {say}, print),)"
    install(VERB, {"verb": f"from plait.commands.command import Command\n{verb}"})
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "50 % share, 9 %(loss)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["mumble", "--help"])
    assert "5 % sale, 50% (of 7)" in " ".join(capsys.readouterr().out.split())


def test_a_family_is_asked_for_components_and_blocks_once(here, monkeypatch):
    family, calls = registry.load("words"), []
    counted = dataclasses.replace(
        family,
        components=lambda model: calls.append("components") or family.components(model),
        blocks=lambda model: calls.append("blocks") or family.blocks(model),
    )
    monkeypatch.setattr(registry, "load", lambda name: counted)
    stages = "--stages=[{name: one, train: {steps: 1}}, {name: two, train: {steps: 2}, trainable: [layers]}]"
    again = stages.replace("steps: 2", "steps: 3")
    for command in ([stages], [again]):  # a start that continues compares with the checkpoint
        assert cli.main(["train", "words.yaml", "--run=asked", "--optim.schedule.warmup_steps=0", "--train.steps=null", *command]) == 0
        assert sorted(calls) == ["blocks", "components"]
        calls.clear()
