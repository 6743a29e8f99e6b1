"""Numbers of tables of parquet, as a template writes them: what the column holds, not what Python makes of it."""

import pytest

from plait import cli
from tests.data.test_dirty_records import opened, outcomes

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("datasets")


COLUMNS = {
    "float32": (pyarrow.array([0.1, 123456792.0, 1e20, None], pyarrow.float32()), "{a}", ["0.1", "123456792.0", "1e+20"]),
    "float16": (pyarrow.array([0.1, 2.5, 65504.0, None], pyarrow.float16()), "{a}", ["0.1", "2.5", "65504.0"]),
    "float64": (pyarrow.array([0.1, 1 / 3, 7.0, None], pyarrow.float64()), "{a}", ["0.1", "0.3333333333333333", "7.0"]),
    "int64": (pyarrow.array([7, 2**53 + 1, -1, None], pyarrow.int64()), "{a}", ["7", "9007199254740993", "-1"]),
    "list": (pyarrow.array([[0.1], [0.2], [0.3], [None]], pyarrow.list_(pyarrow.float32())), "{a[0]}", ["0.1", "0.2", "0.3"]),
    "fixed": (pyarrow.array([[0.1], [0.2], [0.3], None], pyarrow.list_(pyarrow.float32(), 1)), "{a[0]}", ["0.1", "0.2", "0.3"]),
    "struct": (
        pyarrow.array([{"x": 0.1}, {"x": 0.2}, {"x": 0.3}, {"x": None}], pyarrow.struct([("x", pyarrow.float32())])),
        "{a[x]}",
        ["0.1", "0.2", "0.3"],
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_number_is_written_as_its_column_holds_it(tmp_path, kind):
    import pyarrow.parquet

    column, pattern, texts = COLUMNS[kind]
    pyarrow.parquet.write_table(pyarrow.table({"a": column}), tmp_path / "a.parquet")
    source = opened("datasets", tmp_path / "a.parquet", template={"assistant": pattern})
    *good, bad = outcomes(source)
    assert good == texts and isinstance(bad, Exception)


def damaged(folder, how):
    """Write two tables, the second of them damaged, and return its name and what is said of it."""
    import pyarrow.parquet

    for name in ("a.parquet", "b.parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"caption": ["one", "two"] * 50}), folder / name)
    whole = (folder / "b.parquet").read_bytes()
    bodies = {"cut": whole[: len(whole) // 2], "page": whole[:12] + b"\xff" * 60 + whole[72:], "web page": b"<html>not found</html>"}
    (folder / "b.parquet").write_bytes(bodies[how])
    return f"{folder / 'b.parquet'} is no whole parquet file ("


@pytest.mark.parametrize("how", ["cut", "page", "web page"])
@pytest.mark.parametrize("verb", [["train"], ["data", "inspect"]], ids=" ".join)
def test_a_damaged_table_is_one_line_that_names_the_file(tmp_path, capfd, how, verb):
    told = damaged(tmp_path, how)
    data = f"data: {{train: [{{source: datasets, path: '{tmp_path}/*.parquet'}}]}}"
    (tmp_path / "recipe.yaml").write_text(f"family: theworld\npreset: tiny\n{data}\ntrain: {{steps: 1}}\n")
    settings = [f"--data.cache={tmp_path / 'cache'}", *([f"--run={tmp_path / 'run'}"] if verb == ["train"] else [])]
    assert cli.main([*verb, str(tmp_path / "recipe.yaml"), *settings]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"plait: data source datasets:*.parquet: {told}") and error.endswith("): copy or download it again\n")
    assert error.count("\n") == 1
