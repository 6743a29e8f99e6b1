"""`plait plan` of steps with fewer samples than ranks, of huge global batches, and of sources that are gone through too often."""

import pytest

from tests.commands.test_plan import findings, plan, recipe  # noqa: F401  a fixture

ONE = ["--stages=[]", "--trainable=[embed, blocks]", "--train.micro_batch=null"]


@pytest.mark.parametrize("ranks", [16, 1_000_000_000])
def test_more_ranks_than_samples_of_a_step_are_an_error_beside_the_other_findings(recipe, capsys, ranks):  # noqa: F811
    held = "--data.validation=[{source: scenes, limit: 16, split: train, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]"
    code, planned, error = plan(recipe, capsys, *ONE, held, f"--ranks={ranks}")
    (found,) = findings(planned, "ranks")
    assert code == 1 and found["text"] == f"a step has 8 samples and there are {ranks:,} ranks: {ranks - 8:,} of them have none"
    assert found["text"] in error and found["cure"] == f"--train.global_batch={ranks}" and len(findings(planned, "held-out")) == 1
    assert planned["stages"][0]["assumed_batch"] is False
    if ranks == 16:
        assert not findings(plan(recipe, capsys, *ONE, found["cure"], f"--ranks={ranks}")[1], "ranks")


def test_the_memory_of_a_micro_batch_that_is_too_large_to_make_follows_from_smaller_ones(recipe, capsys):  # noqa: F811
    small, made, large = (
        plan(recipe, capsys, *ONE, f"--train.global_batch={batch}")[1]["stages"][0]["memory"][0] for batch in (32, 64, 96)
    )
    huge = plan(recipe, capsys, *ONE, "--train.global_batch=640000", "--train.steps=1")[1]["stages"][0]
    for kind in ("activations", "peak"):
        step = made[kind] - small[kind]
        assert large[kind] == pytest.approx(made[kind] + step, rel=0.01) and step > 0
        assert huge["memory"][0][kind] == pytest.approx(small[kind] + step * (640000 - 32) / 32, rel=0.01)


def test_a_source_that_is_gone_through_too_often_is_told_and_cured(recipe, capsys):  # noqa: F811
    often = [*ONE, "--data.train.0.limit=5", "--train={global_batch: 4, steps: 200}"]
    (found,) = findings(plan(recipe, capsys, *often)[1], "data")
    assert found["level"] == "warning" and found["cure"] == "--train.steps=125"
    assert "scenes train is gone through 160 times, 800 samples drawn of 5: it will be known by heart" in found["text"]
    assert not findings(plan(recipe, capsys, *often, found["cure"])[1], "data")
    assert not findings(plan(recipe, capsys, *often, "--train.steps=null", "--train.epochs=160")[1], "data")


def test_samples_that_cannot_be_used_are_an_error_of_the_plan(recipe, capsys, tmp_path):  # noqa: F811
    (tmp_path / "photos").mkdir()
    for i in range(60):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"no picture")
        (tmp_path / "photos" / f"{i}.txt").write_text("a word")
    code, planned, error = plan(recipe, capsys, *ONE, "--data.train=[{source: folder, path: photos}]")
    (found,) = findings(planned, "data")
    assert code == 1 and found["level"] == "error" and "replacements in a row are bad" in found["text"] and found["text"] in error
