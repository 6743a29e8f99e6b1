"""What other packages add and what breaks its contract is told in one line, when it is loaded: what is missing or wrong."""

import dataclasses
import importlib
from types import ModuleType

import pytest
from pydantic import BaseModel
from torch import nn

from plait import cli
from plait.engine.loss import Loss
from plait.errors import PlaitError
from plait.families import members, offers, registry, returned

CHANGES = {
    "it lacks blocks(model)": {"blocks": None},
    "it lacks components(model); it lacks Loss(config)": {"components": None, "Loss": None},
    "build cannot be called as build(config, assets, *, seed) (missing a required argument: 'device')": {
        "build": lambda config, assets, device, *, seed: None
    },
    "components cannot be called as components(model) (too many positional arguments)": {"components": lambda: {}},
    "Config is to be a subclass of plait.config.schema.ModelSection": {"Config": BaseModel},
    "Loss is to be a subclass of plait.engine.loss.Loss": {"Loss": object},
    "Loss lacks weights and sums": {"Loss": type("Loss", (Loss,), {})},
    "Loss.sums cannot be called as sums(model, batch) (too many positional arguments)": {
        "Loss": type(
            "Loss", (Loss,), {"__init__": lambda self, config: None, "weights": lambda self, batch: {}, "sums": lambda self, batch: {}}
        )
    },
    "Inputs lacks collate": {"Inputs": type("Inputs", (), {"encode": lambda self, sample, key: None})},
    "blocks is to be callable: blocks(model)": {"blocks": []},
    "never_trained is to be a frozenset of component names": {"never_trained": ["table"]},
    "generate and GenerateOptions belong together, and it has one of them": {"GenerateOptions": None},
}


@pytest.mark.parametrize("fault", CHANGES)
def test_family_that_breaks_the_contract_is_told_how(here, fault):
    module = ModuleType("words_family.family")
    changed = vars(importlib.import_module("words_family.family")) | CHANGES[fault]
    vars(module).update({name: value for name, value in changed.items() if value is not None})
    with pytest.raises(PlaitError) as caught:
        members.check("words", module)
    assert str(caught.value) == f"family 'words' (words_family.family) does not fulfil the contract: {fault}"


FAMILY = "[plait.families]\nmumble = mumble"
SECTION = "from plait.config.schema import ModelSection as Config"
BROKEN = [
    (FAMILY, {}, "family 'mumble': there is no module mumble.config; a family is a package with "),
    (
        FAMILY,
        {"config": ""},
        "family 'mumble': mumble.config has no Config, a subclass of plait.config.schema.",
    ),
    (
        FAMILY,
        {"config": SECTION, "family": SECTION},
        "family 'mumble' (mumble.family) does not fulfil the contract: it lacks build(config, assets, *, seed); "
        "it lacks components(model); ",
    ),
    (
        FAMILY,
        {"config": "1 / 0"},
        "family 'mumble': mumble.config cannot be imported: ZeroDivisionError: division by zero",
    ),
    (
        FAMILY,
        {"config": "import no_such_thing"},
        "family 'mumble': mumble.config cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    (
        FAMILY,
        {"config": SECTION, "family": "def build(:"},
        "family 'mumble': mumble.family cannot be imported: SyntaxError: invalid syntax",
    ),
    (
        "[plait.commands]\nmumble = mumble.verb",
        {"verb": "1 / 0"},
        "verb 'mumble' cannot be loaded from mumble.verb: ZeroDivisionError: division by zero (package mumble 2.0)",
    ),
    (
        "[plait.commands]\nmumble = mumble.verb",
        {"verb": ""},
        "verb 'mumble' cannot be added: mumble.verb has no COMMANDS, a tuple of plait.commands.command.Command (package mumble 2.0)",
    ),
    (
        "[plait.commands]\nmumble = mumble.verb",
        {"verb": "from plait.commands.train import COMMANDS"},
        "verb 'mumble' cannot be added: there is `plait train` already, of plait itself (package mumble 2.0)",
    ),
    (
        "[plait.dialects]\nmumble = mumble.dialect:DIALECT",
        {"dialect": "DIALECT = 'mumble'"},
        "dialect 'mumble' cannot be loaded: mumble.dialect:DIALECT is a str, not a Dialect (package mumble 2.0)",
    ),
]


@pytest.mark.parametrize(("entry_points", "modules", "error"), BROKEN)
def test_package_that_is_broken_is_named_in_one_line(install, capsys, entry_points, modules, error):
    install(entry_points, modules)
    recipe = "mumble.yaml" if "families" in entry_points else "words.yaml"
    assert cli.main(["train", recipe, "--run=never"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("plait: ") and said.count("\n") == 1
    assert said.removeprefix("plait: ").removeprefix("mumble.yaml:2: ").startswith(error)


@pytest.mark.parametrize("config", ["1 / 0", "import no_such_thing", "def build(:"])
def test_a_broken_family_breaks_no_command_that_does_not_name_it(install, here, capsys, config):
    install(FAMILY, {"config": config})
    assert cli.main(["config", "words.yaml"]) == 0
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "--help"])
    assert ended.value.code == 0 and "--bench" in capsys.readouterr().out


EVALUATE = [
    ("", "mumble.evaluate has no benches, a mapping of name to plait.engine.evaluation.Bench"),
    ("benches = []", "mumble.evaluate.benches is a list, not a mapping of name to plait.engine.evaluation.Bench"),
    ("benches = {'one': print}", "mumble.evaluate.benches['one'] is no Bench: it is to be a mapping of name to plait."),
    ("1 / 0", "mumble.evaluate cannot be imported: ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("body", "error"), EVALUATE)
def test_benches_that_are_none_are_told_in_one_line(install, body, error):
    install(FAMILY, {"config": SECTION, "family": "", "evaluate": body})
    with pytest.raises(PlaitError) as caught:
        registry.benches("mumble")
    assert str(caught.value).startswith(f"family 'mumble': {error}")


@pytest.mark.parametrize("body", ["", "exports = 3", "exports = {'hf': 3}"])
def test_exports_that_are_none_are_told_in_one_line(install, body):
    install(FAMILY, {"config": SECTION, "family": "", "export": body})
    with pytest.raises(PlaitError, match=r"family 'mumble': mumble\.export has no exports, a mapping of layout"):
        offers.publisher("mumble")


def without(parts, name):
    return {part: {key: value for key, value in held.items() if key != name} for part, held in parts.items()}


BUILT = {
    "components(model) leaves out 1 of 9 parameters, the first 'layers.0.bias'": without,
    "components(model) has 'layers.0.bias' in two components": lambda parts, name: {**parts, "more": {name: None}},
    "components(model) names 'nothing', which is no parameter of the model": lambda parts, name: {**parts, "more": {"nothing": None}},
}


@pytest.mark.parametrize("change", [0, 1, 2])
def test_components_that_do_not_hold_each_parameter_once_are_told_before_training(here, capsys, monkeypatch, change):
    family = registry.load("words")
    sizes = []

    def components(model):
        parts = family.components(model)
        names = [name for held in parts.values() for name in held]
        sizes[:] = [len(names), names[-1]]
        return list(BUILT.values())[change](parts, names[-1])

    monkeypatch.setattr(registry, "load", lambda name: returned.checked(dataclasses.replace(family, components=components)))
    assert cli.main(["train", "words.yaml", f"--run=never-{change}"]) == 2
    error = list(BUILT)[change].replace("layers.0.bias", str(sizes[1])).replace("1 of 9", f"1 of {sizes[0]}")
    assert f"family 'words': {error}" in capsys.readouterr().err


def with_members(**members):
    """A constructor of a Loss that sets these members."""

    def make(self, config):
        vars(self).update({"coefficients": {"loss": 1.0}} | members)

    return make


def test_blocks_and_losses_that_are_none_are_told_before_training(here, capsys, monkeypatch):
    family, words_loss = registry.load("words"), importlib.import_module("words_family.family").Loss
    for number, (name, value, error) in enumerate(
        [
            ("blocks", lambda model: [nn.Linear(1, 1)], "blocks(model) returned "),
            ("blocks", lambda model: next(iter(model.children())), "blocks(model) returned "),
            ("blocks", lambda model: None, "blocks(model) returned "),
            ("components", lambda model: list(model.named_parameters()), "components(model) returned a "),
            ("components", lambda model: {"all": list(model.parameters())}, "components(model) returned a "),
            (
                "Loss",
                type("Listed", (words_loss,), {"__init__": with_members(coefficients=["loss"])}),
                "coefficients of its Loss is to be",
            ),
            ("Loss", type("Text", (words_loss,), {"__init__": with_members(counts="tokens")}), "counts of its Loss is to be a sequence"),
            ("Loss", type("Bare", (words_loss,), {"__init__": lambda self, config: None}), "its Loss sets no coefficients"),
        ]
    ):
        changed = returned.checked(dataclasses.replace(family, **{name: value}))
        monkeypatch.setattr(registry, "load", lambda _, changed=changed: changed)
        assert cli.main(["train", "words.yaml", f"--run=never-built-{number}"]) == 2
        assert f"family 'words': {error}" in capsys.readouterr().err


def refused(capsys, *arguments):
    """The one line of error that a command of wrong input ends with."""
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("plait: ") and said.count("\n") == 1
    return said.strip().removeprefix("plait: ")


KIND = "[plait.sources]\nmumble = mumble.kind:KIND"
SOURCE = """
from plait.data.sources.contract import Source
from plait.data.sources.kind import SourceKind

class Mumbles(Source):
    name, fingerprint = "mumbles", "1"
    def __len__(self): return 8
    def __getitem__(self, index): return {}

"""
KINDS = {
    "open=3": "open is to be callable: open(entry, opening)",
    "open=lambda entry: Mumbles()": "open cannot be called as open(entry, opening) (too many positional arguments)",
    "open=lambda entry, opening, cache: Mumbles()": "open cannot be called as open(entry, opening) (missing a required argument: 'cache')",
    "open=Opens, needs='nonsense'": "needs is 'nonsense': it should be 'path', 'name', 'path or name' or 'nothing'",
    "open=Opens, options=3": "options is 3: it should be a valid tuple",
    "open=Opens, options='lines'": "options is 'lines': it should be a valid tuple",
    "open=Opens, options=(3,)": "options is (3,): it should be a valid string",
    "open=Opens, own_text=None": "own_text is None: it should be a valid string",
    "open=Opens, names_itself='yes'": "names_itself is 'yes': it should be a valid boolean",
    "open=Opens, check=lambda: None": "check cannot be called as check(options) (too many positional arguments)",
    "open=3, needs=4": "needs is 4: it should be 'path', 'name', 'path or name' or 'nothing'; open is to be callable: open(entry, opening)",
}


@pytest.mark.parametrize("arguments", KINDS)
def test_a_kind_of_source_that_breaks_the_contract_is_told_how(install, capsys, arguments):
    install(KIND, {"kind": f"{SOURCE}Opens = lambda entry, opening: Mumbles()\nKIND = SourceKind('mumble', {arguments})"})
    fault = (
        f"(mumble.kind:KIND) does not fulfil the contract of plait.data.sources.kind.SourceKind: {KINDS[arguments]} (package mumble 2.0)"
    )
    assert refused(capsys, "config", "words.yaml", "--data.train=[{source: mumble, path: x}]").endswith(f"source 'mumble' {fault}")


def test_a_kind_of_source_whose_path_is_no_option_is_told(install, capsys):
    install(KIND, {"kind": f"{SOURCE}KIND = SourceKind('mumble', paths=('where',), open=lambda entry, opening: Mumbles())"})
    error = refused(capsys, "config", "words.yaml", "--data.train=[{source: mumble, path: x}]")
    assert error.endswith("mumble.kind:KIND has 'where' in paths, which is none of its options (package mumble 2.0)")


OPENED = {
    "del Mumbles.fingerprint": "a source has a name and a fingerprint, which are texts: 'Mumbles' object has no attribute 'fingerprint'",
    "del Mumbles.name": "a source has a name and a fingerprint, which are texts: 'Mumbles' object has no attribute 'name'",
    "Mumbles.fingerprint = 3": "a source has a name and a fingerprint, which are texts: fingerprint is 3",
    "class Mumbles(Source): pass": "mumble.kind.Mumbles lacks __getitem__ and __len__: a source has len(source) and source[i]",
    "class Mumbles(Source):\n  __getitem__ = dict.get": "mumble.kind.Mumbles lacks __len__: a source has len(source) and source[i]",
    "Mumbles = list": "its kind opened a list, which is no subclass of plait.data.sources.contract.Source",
}


@pytest.mark.parametrize("change", OPENED)
def test_a_source_that_lacks_what_every_source_has_is_told_when_it_is_opened(install, capsys, change):
    kind = "KIND = SourceKind('mumble', needs='nothing', open=lambda entry, opening: Mumbles())"
    install(KIND, {"kind": f"{SOURCE}{change}\n{kind}"})
    error = refused(capsys, "train", "words.yaml", "--run=never", "--data.train=[{source: mumble}]")
    assert error == f"data source mumble: {OPENED[change]}"


DIALECT = "[plait.dialects]\nmumble = mumble.dialect:DIALECT"
DIALECTS = {
    "": "cannot be loaded from mumble.dialect:DIALECT: TypeError: Dialect.__init__() missing 2 required positional arguments: "
    "'recognise' and 'translate'",
    "recognise=lambda tree: True, translate=put": "recognise cannot be called as recognise(tree, own) (too many positional arguments)",
    "recognise=see, translate={}": "translate is to be callable: translate(tree, overrides, path, own)",
    "recognise=see, translate=see": "translate cannot be called as translate(tree, overrides, path, own) (too many positional arguments)",
    "recognise=see, translate=put, scripts=('mumble/go',)": "scripts is ('mumble/go',): it should be a valid dictionary",
    "recognise=see, translate=put, scripts={'mumble/go': ()}": "(mumble.dialect:DIALECT) has scripts and no open_script(name, ",
    "recognise=see, translate=put, open_script=see, scripts={'mumble/go': ()}, name=3": "name is 3: it should be a valid string",
}


@pytest.mark.parametrize("arguments", DIALECTS)
def test_a_dialect_that_breaks_the_contract_is_told_how(install, capsys, arguments):
    see = "see = lambda tree, own: False\nput = lambda tree, overrides, path, own: None\n"
    call = f"DIALECT = Dialect(**{{'name': 'mumbled'}} | dict({arguments}))"
    install(DIALECT, {"dialect": f"from plait.config.translation import Dialect\n{see}{call}"})
    error = refused(capsys, "config", "words.yaml")
    assert error.startswith("dialect 'mumble' ") and DIALECTS[arguments] in error and error.endswith(" (package mumble 2.0)")


@pytest.mark.parametrize(
    ("arguments", "file", "error"),
    [
        (
            "lambda tree, own: True, lambda tree, overrides, path, own: {}",
            "words.yaml",
            "words.yaml: the mumbled dialect translated into a dict, not a plait.config.translation.Translation",
        ),
        (
            "lambda tree, own: False, print, {'mumble/go': ('WHERE',)}, lambda name, words: list(words)",
            "mumble/go",
            "mumble/go: the mumbled dialect opened a list, not a plait.config.nodes.Node",
        ),
    ],
)
def test_what_a_dialect_makes_of_a_file_is_checked(install, capsys, arguments, file, error):
    install(DIALECT, {"dialect": f"from plait.config.translation import Dialect\nDIALECT = Dialect('mumbled', {arguments})"})
    assert refused(capsys, "config", file) == error


BENCHES = {
    "'one': Bench(3, summarise)": "benches['one'] does not fulfil the contract of plait.engine.evaluation.Bench: predict is to be "
    "callable: predict(model, samples, inputs, *, batch, moment)",
    "'one': Bench(lambda model, samples, inputs: [], summarise)": "predict cannot be called as predict(model, samples, inputs, *, batch, "
    "moment) (got an unexpected keyword argument 'batch')",
    "'one': Bench(predict, lambda: {})": "summarise cannot be called as summarise(rows) (too many positional arguments)",
    "'one': Bench(predict, summarise, pictures=3)": "pictures is to be callable: pictures(rows)",
    "'one': Bench(predict, summarise, needs=None)": "needs is to be callable: needs(section)",
    "'one': Bench(predict, summarise, about=lambda: {})": "about cannot be called as about(rows) (too many positional arguments)",
    "'one': Bench(predict, summarise, means='yes')": "means is 'yes': it should be a valid boolean",
    "'loss': Bench(predict, summarise)": "benches['loss'] has a name that cannot be used: it is to be a text without : and /, and ",
    "'one:two': Bench(predict, summarise)": "benches['one:two'] has a name that cannot be used",
    "3: Bench(predict, summarise)": "benches[3] has a name that cannot be used",
}


@pytest.mark.parametrize("body", BENCHES)
def test_a_bench_that_breaks_the_contract_is_told_how(install, body):
    text = "from plait.engine.evaluation import Bench\nfrom words_family.evaluate import predict, summarise\n"
    install(FAMILY, {"config": SECTION, "family": "", "evaluate": f"{text}benches = {{{body}}}"})
    with pytest.raises(PlaitError) as caught:
        registry.benches("mumble")
    assert str(caught.value).startswith("family 'mumble': mumble.evaluate.benches[") and BENCHES[body] in str(caught.value)


@pytest.mark.parametrize("rows", ["[]", "[{'id': ''}, {'id': ''}] * len(samples)"])
def test_a_bench_with_other_rows_than_samples_is_told_before_training(install, here, capsys, rows):
    predict = f"predict = lambda model, samples, inputs, *, batch, moment: {rows}"
    text = f"from plait.engine.evaluation import Bench\n{predict}\nbenches = {{'one': Bench(predict, lambda rows: {{}})}}"
    words = {name: f"from words_family.{name} import *" for name in ("config", "family")}
    install(FAMILY, {**words, "evaluate": text})
    error = refused(capsys, "train", "mumble.yaml", f"--run=never-{len(rows)}", "--evaluate=[{bench: one, batch: 2}]")
    count = len(eval(rows, {"samples": range(8)}))
    assert error.endswith(f"its predict returned {count} rows for 8 samples: it is to return one for each, in order")


VERB = "[plait.commands]\nmumble = mumble.verb"
VERBS = {
    "COMMANDS = ()": "cannot be added: mumble.verb has no COMMANDS, a tuple of plait.commands.command.Command",
    "COMMANDS = [Command(('mumble',), 'say', declare, run)]": "cannot be added: mumble.verb has no COMMANDS, a tuple of plait.commands.",
    "COMMANDS = (3,)": "cannot be added: mumble.verb has no COMMANDS, a tuple of plait.commands.command.Command",
    "COMMANDS = (Command(('train',), 'say', declare, run),)": "cannot be added: there is `plait train` already",
    "COMMANDS = (Command(('data', 'index'), 'say', declare, run),)": "cannot be added: there is `plait data index` already",
    "COMMANDS = (Command(('data',), 'say', declare, run),)": "cannot be added: `plait data` is a group of verbs, such as `plait data ",
    "COMMANDS = (Command(('train', 'twice'), 'say', declare, run),)": "cannot be added: `plait train` is a verb, so there is no `",
    "COMMANDS = 2 * (Command(('mumble',), 'say', declare, run),)": "cannot be added: there is `plait mumble` already",
    "COMMANDS = (Command('mumble', 'say', declare, run),)": "words is 'mumble': it should be a valid tuple",
    "COMMANDS = (Command((), 'say', declare, run),)": "words is (): it should be one or two of lower-case letters, digits, - and ",
    "COMMANDS = (Command(('Mumble',), 'say', declare, run),)": "words is ('Mumble',): it should be one or two of lower-case letters",
    "COMMANDS = (Command(('--mumble',), 'say', declare, run),)": "words is ('--mumble',): it should be one or two of lower-case letters",
    "COMMANDS = (Command(('mumble',), 'say', 3, run),)": "declare is to be callable: declare(parser)",
    "COMMANDS = (Command(('mumble',), 'say', declare, lambda: None),)": "run cannot be called as run(arguments) (too many ",
    "COMMANDS = (Command(('mumble',), 3, declare, run),)": "help is 3: it should be a valid string",
    "COMMANDS = (Command(('mumble',), 'say', lambda parser: parser.add_argument('--help'), run),)": "its arguments and help cannot be "
    "declared: ArgumentError: argument --help: conflicting option string: --help",
    "COMMANDS = (Command(('mumble',), 'say', declare, run, scripts='yes'),)": "scripts is 'yes': it should be a valid boolean",
}


@pytest.mark.parametrize("body", VERBS)
def test_a_verb_that_breaks_the_contract_is_told_how(install, capsys, body):
    text = "from plait.commands.command import Command\ndeclare = lambda parser: None\nrun = lambda arguments: None\n"
    install(VERB, {"verb": text + body})
    error = refused(capsys, "config", "words.yaml")
    assert error.startswith("verb 'mumble' ") and VERBS[body] in error and error.endswith(" (package mumble 2.0)")


CATALOGUE = "DATASETS, ALIASES = {}, {}\nrule_of = evaluation_split = lambda name: 'x'\nsplit_of = lambda name, split: split\n"
CATALOGUES = {
    "": "it lacks DATASETS, a mapping by name; it lacks ALIASES, a mapping by name; it lacks open_dataset(entry, split, *, root, cache); "
    "it lacks rule_of(name); it lacks split_of(name, split); it lacks evaluation_split(name); it lacks scored()",
    f"{CATALOGUE}scored = lambda: []\nopen_dataset = lambda entry, split: None": "open_dataset cannot be called as "
    "open_dataset(entry, split, *, root, cache) (got an unexpected keyword argument 'root')",
    f"{CATALOGUE}scored = []\nopen_dataset = lambda entry, split, *, root, cache: None": "scored is to be callable: scored()",
    f"{CATALOGUE}scored = lambda: []\nopen_dataset = lambda entry, split, **more: None\nDATASETS = []": "it lacks DATASETS, "
    "a mapping by name",
}


@pytest.mark.parametrize("body", CATALOGUES)
def test_a_catalogue_of_datasets_that_breaks_the_contract_is_told_how(install, capsys, body):
    words = {name: f"from words_family.{name} import *" for name in ("config", "family", "evaluate")}
    install(FAMILY, {**words, "catalogue/datasets": body})
    error = refused(capsys, "train", "mumble.yaml", "--run=never", "--data.train=[{source: dataset, name: some}]")
    assert error == f"family 'mumble' (mumble.catalogue.datasets) does not fulfil the contract: {CATALOGUES[body]}"


def test_a_rule_that_is_no_bench_of_the_family_is_told(install, capsys):
    words = {name: f"from words_family.{name} import *" for name in ("config", "family", "evaluate")}
    opens = "scored = lambda: []\nopen_dataset = lambda entry, split, *, root, cache: None"
    install(FAMILY, {**words, "catalogue/datasets": CATALOGUE + opens})
    error = refused(capsys, "train", "mumble.yaml", "--run=never-ruled", "--evaluate=[{bench: 'some:test'}]")
    assert error.endswith("bench 'some:test': its rule 'x' is no bench of family 'mumble': known: first_word")


def test_weights_of_other_software_need_a_way_back(install):
    export = "exports = {'hf': lambda model, config: []}"
    install(FAMILY, {"config": CONFIG.format("layouts = {'hf': ''}"), "family": "", "export": export})
    with pytest.raises(PlaitError) as caught:
        offers.publisher("mumble")
    assert str(caught.value) == (
        "family 'mumble' (mumble.export) does not fulfil the contract: it lacks imported(weights, model); exports['hf'] cannot be called "
        "as exports['hf'](model, config, assets, out) (too many positional arguments)"
    )


CONFIG = "from plait.config.schema import ModelSection\nclass Config(ModelSection):\n    {}"


def test_layouts_are_those_that_the_family_writes(install):
    install(FAMILY, {"config": CONFIG.format("layouts = {'hg': ''}"), "family": "", "export": "exports = {'hf': print, 'onnx': print}"})
    with pytest.raises(PlaitError) as caught:
        offers.publisher("mumble")
    told = "family 'mumble': mumble.export has exports hf, onnx, and Config.layouts of its config.py names hg"
    assert str(caught.value) == told


TABLES = {
    "layouts = 3": "layouts is 3: it should be a valid dictionary",
    "variants = {'loud': 2}": "variants is {'loud': 2}: it should be a valid string",
    "refused = {'data.pad': {}}": "refused is {'data.pad': {}}: it should be a valid tuple",
}


@pytest.mark.parametrize("line", TABLES)
def test_tables_of_a_familys_config_are_checked(install, capsys, line):
    install(FAMILY, {"config": CONFIG.format(line)})
    assert refused(capsys, "config", "mumble.yaml").endswith(f"(mumble.config.Config) does not fulfil the contract: {TABLES[line]}")


def test_help_lists_the_layouts_switches_and_scripts_of_other_packages(install, capsys):
    tables = "layouts = {'onnx': 'in 100 % of cases'}; variants = {'loud': 'it shouts, 50 % louder', 'high-res': 'more words'}; "
    tables += "variant = lambda self, name: (self, 64)"
    see = "lambda tree, own: False, lambda tree, overrides, path, own: None, {'mumble/go': ('WHERE', 'WHEN')}, lambda name, words: None"
    dialect = f"from plait.config.translation import Dialect\nDIALECT = Dialect('mumbled', {see})"
    install(f"{FAMILY}\n{DIALECT}", {"config": CONFIG.format(tables), "dialect": dialect})
    lines = {}
    for verb in ("export", "eval", "train"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        lines[verb] = " ".join(capsys.readouterr().out.split())
    assert (
        "of molmo: the published Molmo layout; onnx, of mumble: in 100 % of cases; diffusers, of nanodit: diffusers, with"
        in lines["export"]
    )
    assert "--high-res molmo: 36 crops and 4096 tokens; mumble: more words" in lines["eval"]
    assert "--loud mumble: it shouts, 50 % louder" in lines["eval"]
    assert "molmo/captioner MODEL, molmo/multitask MIXTURE CHECKPOINT, mumble/go WHERE WHEN" in lines["train"]


def test_a_variant_with_the_name_of_an_option_is_told(install, capsys):
    install(FAMILY, {"config": CONFIG.format("variants = {'bench': 'another'}; variant = lambda self, name: (self, 64)")})
    error = refused(capsys, "config", "words.yaml")
    assert error == "family 'mumble': its variant 'bench' is an option of plait eval: give it another name"


@pytest.mark.parametrize(
    ("entry_points", "arguments", "error"),
    [
        (FAMILY, ["mumble.yaml"], "family 'mumble' is offered by mumble 2.0 and by mutter 2.0: remove all but one"),
        (
            KIND,
            ["words.yaml", "--data.train=[{source: mumble}]"],
            "source 'mumble' is offered by mumble 2.0 and by mutter 2.0: remove all but",
        ),
    ],
)
def test_one_name_of_two_packages_is_told(install, capsys, entry_points, arguments, error):
    install(entry_points, {"config": SECTION})
    install(entry_points, {"config": SECTION}, package="mutter")
    assert "mumble 2.0 and" in error
    said = refused(capsys, "config", *arguments)
    assert error in said or error.replace("mumble 2.0 and by mutter 2.0", "mutter 2.0 and by mumble 2.0") in said


def test_a_family_below_a_package_that_breaks_is_told(install, capsys):
    install("[plait.families]\nmumble = mumble.inner", {"__init__": "1 / 0"})
    error = refused(capsys, "config", "mumble.yaml", "--preset=tiny")
    assert "family 'mumble': mumble.inner" in error and error.endswith("ZeroDivisionError: division by zero")
