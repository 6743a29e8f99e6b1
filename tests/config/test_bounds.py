"""Files and settings that are deep, or large by aliases: one clear line, soon, and never the interpreter's own limit."""

import pytest

from plait import cli
from plait.config import reading
from plait.config.reading import Override
from plait.errors import PlaitError

DEEP = "more than 64 mappings and lists are inside each other"
LIMIT = "and a configuration has at most 1,048,576: keep data in files of their own, and name these"
LARGE = "it holds more than 100,000 values, with those that its aliases repeat"


def laughs(make, levels=40):
    return "".join(make(f"a{i}", f"*a{i - 1}" if i else "1") for i in range(levels))


FILES = {
    "lists.yaml": ("x: " + "[" * 10_000 + "]" * 10_000, f"lists.yaml:1: invalid YAML: {DEEP}"),
    "unclosed.yaml": ("x: " + "[" * 10_000, f"unclosed.yaml:1: invalid YAML: {DEEP}"),
    "mappings.yaml": ("{a: " * 10_000, f"mappings.yaml:1: invalid YAML: {DEEP}"),
    "blocks.yaml": ("".join(f"{' ' * i}a:\n" for i in range(1_000)), f"blocks.yaml:65: invalid YAML: {DEEP}"),
    "laughs.yaml": (laughs(lambda own, other: f"{own}: &{own} [{other}, {other}]\n"), f"laughs.yaml: invalid YAML: {LARGE}"),
    "tower.yaml": (laughs(lambda own, other: f"{own}: &{own} [{other}]\n", 2_000), f"tower.yaml:1: invalid YAML: {DEEP}"),
    "comment.yaml": (
        "_comment:\n" + "".join(f"- &a{i} {{<<: {f'*a{i - 1}' if i else '{b: 1}'}}}\n" for i in range(3_000)) + "seed: {<<: *a2999}\n",
        f"comment.yaml: invalid YAML: {DEEP}",
    ),
    "digits.yaml": ("seed: " + "1" * 10_000, "digits.yaml:1: invalid YAML: seed is no value that can be read"),
    "int.yaml": ("seed: !!int abc", "int.yaml:1: invalid YAML: seed is no value that can be read"),
    "key.yaml": ("optim: {<<: {[a]: 1}}", "key.yaml:1: invalid YAML: a key is one word, not a list or a mapping"),
    "lists.json": ('{"x": ' + "[" * 10_000, f"lists.json:1: invalid JSON: {DEEP}"),
    "mappings.json": ('{"a": ' * 10_000, f"mappings.json:1: invalid JSON: {DEEP}"),
    "text.yaml": ("run: " + "x" * 20_000_000, f"text.yaml: 20,000,005 bytes, {LIMIT}"),
    "text.json": ('{"run": "' + "x" * 20_000_000 + '"}', f"text.json: 20,000,011 bytes, {LIMIT}"),
    "texts.yaml": (
        f"a: &a {'x' * 100_000}\nb: [" + "*a, " * 20 + "]\n",
        "texts.yaml: invalid YAML: it holds more than 1,048,576 letters, with those that its aliases repeat",
    ),
    "digits.json": (
        '{"seed": ' + "1" * 10_000 + "}",
        "digits.json:1: invalid JSON: expected a number, true, false, null or text in double quotes",
    ),
}
SETTINGS = {
    "--" + ".".join("abcde" * 1_000) + "=1": "command line: --a.... is a key of 5000 parts, and no setting has more than 64",
    "--data.train=" + "[" * 10_000: f"command line: invalid YAML: {DEEP}",
    "--data.train.0.options=" + "{a: " * 10_000: f"command line: invalid YAML: {DEEP}",
    "--seed=" + "1" * 10_000: "command line: invalid YAML: the value is no value that can be read",
    "--data.train=&a [*a]": "command line: invalid YAML: the value.0 contains itself through an alias",
    "--data.train=[" + ", ".join(f"&a{i} [{f'*a{i - 1}' if i else 1}, {f'*a{i - 1}' if i else 1}]" for i in range(40)) + "]": (
        f"command line: invalid YAML: {LARGE}"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_too_deep_or_too_large_is_one_line(name, tmp_path, monkeypatch, capsys):
    text, message = FILES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert cli.main(["config", name]) == 2
    assert capsys.readouterr().err == f"plait: {message}\n"


def test_a_mixture_that_is_too_large_is_one_line(tmp_path, capsys):
    (tmp_path / "mix.yaml").write_text("".join(f"- {{name: vqa2, weight: 1}} # {'x' * 100}\n" for _ in range(10_000)))
    (tmp_path / "x.yaml").write_text("family: molmo\npreset: debug\ndata: {mixture: mix.yaml}\ntrain: {steps: 1}\n")
    assert cli.main(["config", str(tmp_path / "x.yaml")]) == 2
    assert capsys.readouterr().err == f"plait: {tmp_path / 'mix.yaml'}: 1,290,000 bytes, {LIMIT}\n"


def test_a_configuration_that_is_too_large_with_its_defaults_is_one_line():
    with pytest.raises(PlaitError, match=rf"the configuration with all its defaults has 1,100,006 bytes, {LIMIT}"):
        reading.write_yaml({"run": "x" * 1_100_000})


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting[:24] for setting in SETTINGS])
def test_a_setting_that_is_too_deep_or_too_large_is_one_line(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("family: theworld\nmodel: {base: tiny}\ndata: {train: [{source: scenes}]}\ntrain: {steps: 1}\n")
    assert cli.main(["config", "x.yaml", setting]) == 2
    assert capsys.readouterr().err == f"plait: {SETTINGS[setting]}\n"


def test_what_is_within_the_bounds_is_read(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("x: " + "[" * 63 + "1" + "]" * 63)
    assert str(reading.to_plain(reading.read(file))).count("[") == 63
    file.write_text(
        "a: &a {x: 1, y: 2}\n" + "".join(f"b{i}: &b{i} {{<<: [{f'*b{i - 1}' if i else '*a'}, *a], z: {i}}}\n" for i in range(60))
    )
    assert reading.to_plain(reading.read(file))["b59"] == {"x": 1, "y": 2, "z": 59}
    file.with_suffix(".json").write_text('{"x": ' + "[" * 63 + "]" * 63 + "}")
    assert str(reading.to_plain(reading.read(file.with_suffix(".json")))).count("[") == 63
    assert Override.parse(".".join("a" * 64) + "=1").value() == 1


def test_a_value_that_is_no_yaml_is_one_line_in_another_dialect_too(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"model_name": "google/gemma-3-4b-it", "cosmos_model_name": "a/b", "num_epochs": 1}')
    assert cli.main(["config", str(tmp_path / "x.json"), "--num_epochs=["]) == 2
    assert capsys.readouterr().err == "plait: command line: the value of num_epochs is not YAML: quote it, as in --num_epochs=\"'...'\"\n"
