"""`plait report` writes one page of a run, or of several, of every family: true to the run's files, and whole without a network."""

import base64
import io
import json
import re
import shutil
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from plait import cli
from plait.commands.actions.report import against_plan, record, slow
from plait.commands.pages.axes import number
from plait.engine.monitoring.beside.shown import KeptPictures
from plait.engine.monitoring.event_files import TensorBoard
from plait.errors import PlaitError
from plait.training.monitor.causes import Cause
from plait.training.monitor.window import PARTS
from tests.commands.test_answers_page import Page
from tests.golden import recipes
from tests.test_house import ROOT

TEMPLATES = ROOT / "src/plait/commands/pages/templates"
FAMILIES = ["theworld", "molmo", "nanodit"]
HOSTILE = "</title><script>alert(1)</script>{{ 7 * 7 }}\u2028"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny run of each family, by its name."""
    folder = tmp_path_factory.mktemp("report")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAIT_CACHE", str(folder / "cache"))
        assert cli.main([item.format(folder=folder) for item in recipes.LATENTS]) == 0
        for family in FAMILIES:
            recipe = folder / f"{family}.yaml"
            recipe.write_text(recipes.RUNS[family].format(folder=folder))
            assert cli.main(["train", str(recipe)]) == 0
        yield {family: folder / family for family in FAMILIES}
    torch.set_num_threads(threads)


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs["theworld"], tmp_path / "copy")


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def report(*words):
    assert cli.main(["report", "--no-plan", *map(str, words)]) == 0


def test_the_figures_are_those_of_the_files_as_one_object_and_no_page_is_written(copy, capsys):
    rows = rows_of(copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    (copy / "report.html").unlink(missing_ok=True)
    capsys.readouterr()
    assert cli.main(["report", str(copy), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (run,) = told["runs"]
    assert (told["page"], told["settings"], told["verdict"]) == (None, {}, []) and not (copy / "report.html").exists()
    assert run["series"]["loss"] == [[row["step"], row["loss"]] for row in rows if "loss" in row]
    assert set(run["series"]) == {name for row in rows for name, value in row.items() if isinstance(value, int | float)} - {"step", "stage"}
    waited = sum(row["spent"]["seconds"]["data"] for row in rows if "spent" in row)
    assert run["seconds_by_part"]["waiting for data"] == pytest.approx(waited)
    steps = [(one["stage"], one["planned"], one["taken"]) for one in run["plan"] if one["what"] == "steps"]
    assert steps == [("projection", 20, 20), ("all", 20, 20)]
    size = sum(path.stat().st_size for path in run_folders(copy)[-1].rglob("*") if path.is_file())
    assert run["checkpoints"][0] == {"stage": "stage-2-all", "step": 40, "bytes": size}
    assert run["left_out"] == [f"1 of {len(rows) + 1} lines of metrics.jsonl cannot be read, and are left out"]


def run_folders(run):
    return sorted(run.glob("stage-*/step-*"))


def test_the_figures_of_several_runs_have_what_sets_them_apart_and_a_page_where_it_is_named(runs, copy, tmp_path, capsys):
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("seed: 0", "seed: 5", 1))
    assert cli.main(["report", str(runs["theworld"]), str(copy), "--json", f"--out={tmp_path / 'page.html'}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in told["runs"]] == ["theworld", "copy"] and told["settings"]["seed"] == ["0", "5"] and told["verdict"]
    assert told["page"] == str(tmp_path / "page.html") and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def page_of(run):
    report(run)
    return Page(run / "report.html")


def append(run, *rows):
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_of_each_family_has_its_figures_and_loads_nothing(family, runs):
    page, rows = page_of(runs[family]), rows_of(runs[family])
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out = [row["eval/loss"] for row in rows if "eval/loss" in row]
    tiles = dict(zip(page.texts("dt"), page.texts("strong"), strict=False))
    assert tiles["training loss"] == number(losses[-1])
    assert tiles["best loss, held out"] == number(
        min(row["eval/loss"] for row in rows if "eval/loss" in row and row["stage"] == rows[-1]["stage"])
    )
    cells = page.texts("td")
    assert number(held_out[0]) in cells and number(held_out[-1]) in cells
    assert {"Stages", "Loss", "Held out", "Optimisation", "Throughput", "Data"} <= set(page.texts("h3"))
    addresses = re.findall(r"(?:src|href|action|poster)=\"(?!#)([^\"]*)\"|url\((?!data:)|@import|https?://", page.html)
    assert addresses == [] and "<script" not in page.html
    assert "default-src &#39;none&#39;; img-src data:" in page.html


def test_every_component_term_and_source_has_its_line(runs):
    page = page_of(runs["theworld"])
    keys = page.texts("li")
    last = [row for row in rows_of(runs["theworld"]) if "loss" in row][-1]
    for component in ("projector", "vision", "language"):
        assert f"{component} {number(last[f'grad_norm/{component}'])}" in keys
    shares = {name: value for name, value in last.items() if name.startswith("share/") and name.endswith("/samples")}
    assert len(shares) == 2
    assert all(f"{name.split('/')[1]} {number(value)}" in keys for name, value in shares.items())
    terms = [text for text in page_of(runs["nanodit"]).texts("h4") if text.startswith("loss: ")]
    assert "loss: t high, t mid, t low" in terms or "loss: t high, t low, t mid" in terms, terms


def test_a_bench_s_pictures_are_shown_at_the_first_the_last_and_some_steps_between(copy):
    board = TensorBoard(copy, 0)
    for step in range(1, 21):
        board.pictures(step, {"grid/8x8": np.full((8, 8, 3), step, np.uint8)})
    board.close()
    page = page_of(copy)
    titles = [text for text in page.texts("h4") if text.startswith("grid/8x8")]
    assert titles == [f"grid/8x8, step {step}" for step in (1, 5, 9, 12, 16, 20)]
    sources = [given["src"] for tag, given, _ in page.elements if tag == "img"]
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")) for source in sources]
    assert [int(picture[0, 0, 0]) for picture in pixels] == [1, 5, 9, 12, 16, 20]


def test_pictures_that_were_kept_for_trackers_are_shown_without_event_files(copy, tmp_path):
    (tmp_path / "other.png").write_bytes(b"not of the run")
    picture = np.full((8, 8, 3), 7, np.uint8)
    KeptPictures(copy).pictures(20, {"grid/8x8": picture})
    with (copy / "pictures.jsonl").open("a") as file:
        file.write(json.dumps({"step": 40, "pictures": {"grid/8x8": "../other.png", "gone": "pictures/none.png"}}) + "\n")
    page = page_of(copy)
    assert [text for text in page.texts("h4") if ", step " in text] == ["grid/8x8, step 20"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_planned_is_what_was_taken(family, runs):
    run = runs[family]
    found, told = against_plan.table(record.read(run))
    rows = {(row[0], row[1]): row[2:] for row in found.rows}
    stages = {row[0] for row in found.rows}
    assert stages == ({"projection", "all"} if family == "theworld" else {"train"}) and told == ""
    for stage in stages:
        assert rows[stage, "steps"] == ["20", "20", "0 %"]
        apart = [float(rows[stage, what][2].removesuffix(" %")) for what in ("TFLOP a step", "a checkpoint")]
        assert abs(apart[0]) < 3 and abs(apart[1]) < 10, rows  # of 40 kB; manifests hold what varies


def test_a_plan_that_cannot_be_made_costs_its_own_table(copy, monkeypatch):
    def fails(*_):
        raise PlaitError("its sizes are not known here")

    monkeypatch.setattr(against_plan.meta_model, "meta_bundle", fails)
    assert against_plan.table(record.read(copy)) == (None, "plan is not known: its sizes are not known here")


def test_where_the_time_went_is_the_sum_of_what_rows_say(copy):
    seconds = {"data": 1.0, "forward": 2.0, "evaluate": 1.0}
    rows = [{**row, "spent": {"seconds": seconds, "memory_gb": 3.5}} for row in rows_of(copy) if "loss" in row]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(copy)
    assert {"waiting for data 40.0 s, 25.0%", "forward 0:01:20, 50.0%", "evaluations 40.0 s, 25.0%"} <= set(page.texts("li"))
    assert "rank 0 3.5" in page.texts("li"), "the most memory in use"


def test_what_made_steps_slow_stands_with_its_cure(copy, monkeypatch):
    found = [Cause("dense masks", 0.125, "half of the FLOPs", "--model.masks=sparse"), Cause("save", 0.1, "checkpoints are long")]
    monkeypatch.setattr(slow, "causes", lambda window, view, resolved: found if view.name == "all" else [])
    cells = page_of(copy).texts("td")
    first = cells.index("dense masks")
    assert cells[first : first + 4] == ["dense masks", "12.5%", "half of the FLOPs", "--model.masks=sparse"]
    assert cells[first + 4 : first + 8] == ["save", "10.0%", "checkpoints are long", ""]
    assert '<td class="cure">--model.masks=sparse</td>' in (copy / "report.html").read_text(), "a line is not broken behind its dashes"


def test_each_part_of_the_time_has_a_look_of_its_own(copy):
    rows = [{**row, "spent": {"seconds": dict.fromkeys(PARTS, 1.0)}} for row in rows_of(copy) if "loss" in row]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spots = re.findall(r'<i class="spot ([^"]*)"></i><span>', page_of(copy).html)
    assert spots == [*(f"k{i}" for i in range(8)), "k0 hatched", "k1 hatched"]


def test_a_warning_stands_beside_its_step_which_it_does_not_repeat(copy):
    append(copy, {"step": 41, "stage": 2, "loss": 1.0, "warnings": ["step 41: projector does not learn"]})
    cells = page_of(copy).texts("td")
    assert cells[cells.index("projector does not learn") - 1] == "warning"


def test_the_last_look_at_pictures_is_a_sentence(copy):
    look = {"blind/own": 0.5, "blind/other": 0.9, "blind/gain": 0.4, "blind/samples": 16, "intervals": {"blind/gain": [0.3, 0.5]}}
    append(copy, {"step": 40, "stage": 2, **look})
    said = "Pictures make a difference at step 40: the loss is 0.5000 with their own pictures and 0.9000 with another sample's"
    assert any(said in text for text in page_of(copy).texts("p"))


def test_the_style_of_this_page_alone_changes_nothing_of_other_pages_and_is_not_changed_by_theirs():
    names = [
        set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"\{[^{}]*\}", "", (TEMPLATES / name).read_text())))
        for name in ("page.css", "report.css")
    ]
    assert names[0] & names[1] <= {"scroll", "details", "grid", "long", "note", "pairs", "interval"}


def test_what_is_measured_as_components_learn_has_its_section(copy):
    append(copy, *({"step": 41 + i, "stage": 2, "loss": 1.0, "update/vision": 1e-3, "dead/language": 0.25} for i in range(3)))
    page = page_of(copy)
    assert "Learning" in page.texts("h3")
    assert {"vision 0.001", "language 0.25"} <= set(page.texts("li"))
    assert "share of units that are constant" in page.texts("h4")


def test_stages_have_a_row_each_with_what_trained(runs):
    cells = page_of(runs["theworld"]).texts("td")
    assert cells.count("20 of 20") == 2
    assert "planned steps done" in cells
    assert any(re.fullmatch(r"projector [\d,]+, vision [\d,]+, language [\d,]+", cell) for cell in cells)


def test_a_run_without_a_step_has_a_page(copy):
    for path in [copy / "metrics.jsonl", *copy.glob("stage-*"), copy / "ledger"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(copy)
    assert "theworld, new: no step is recorded yet." in page.texts("p")
    assert page.texts("td").count("not begun") == 2
    assert "Loss" not in page.texts("h3") and "Environment and configuration" in page.texts("h3")


def test_a_damaged_line_costs_that_line(copy, capsys):
    before = len(rows_of(copy))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "sta\n[1]\n{"step": "x"}\n')
    (copy / "lineage.json").write_text("{")
    report(copy)
    said = f"3 of {before + 3} lines of metrics.jsonl cannot be read, and are left out"
    assert f"warning: {copy}: {said}" in capsys.readouterr().err
    page = Page(copy / "report.html")
    assert any(said in text and "copy/lineage.json cannot be read, and is left out" in text.lower() for text in page.texts("p"))
    assert f"{40}" in page.texts("strong")


def test_numbers_of_the_wrong_kind_in_a_row_cost_themselves(copy):
    append(
        copy, {"step": 41, "stage": 2, "loss": "broken", "grad_norm": None, "lr/vision": [1], "intervals": 3, "warnings": "x", "spent": 1}
    )
    append(copy, {"step": 42, "stage": 2, "eval/loss": 0.5, "intervals": {"loss": ["a", 1]}})
    assert "42" in page_of(copy).texts("strong")


def test_texts_of_a_run_cannot_change_the_page(copy):
    append(copy, {"step": 41, "stage": 2, "loss": "nan", "warnings": [HOSTILE], HOSTILE: 1.0, f"eval/{HOSTILE}": 0.5})
    page = page_of(copy)
    assert "<script" not in page.html and "49" not in page.texts("td")
    assert any(HOSTILE.strip() in text for text in page.texts("td"))
    assert any("1 not finite, marked above" in text for text in page.texts("p"))


def test_unusable_samples_warnings_starts_and_failures_are_told(copy):
    quarantine = [{"step": step, "stage": 1, "sample": f"a.tar:{step}", "reason": "no picture"} for step in (3, 4)]
    (copy / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in quarantine))
    (copy / "bench_failures.jsonl").write_text(json.dumps({"step": 20, "stage": "all", "bench": "accuracy", "reason": "it broke"}) + "\n")
    start = {
        "from": f"{copy}/stage-1-projection/step-00000020",
        "time_s": rows_of(copy)[24]["time_s"] + 1e-4,
        "rows": [],
        "inexact": ["moments"],
    }
    (copy / "migrations.jsonl").write_text(json.dumps(start) + "\n")
    page = page_of(copy)
    assert "2 samples could not be used, and were replaced." in page.texts("p")
    assert "no picture" in page.texts("th") and "a.tar:3" in page.texts("td")
    assert {"bench accuracy: it broke", "moments", "stage-1-projection/step-00000020"} <= set(page.texts("td"))
    assert any(text.startswith("continued after step ") for text in page.texts("title"))


def test_runs_of_three_families_stand_beside_each_other(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report(*runs.values())
    page = Page(tmp_path / "report.html")
    assert page.texts("h1") == ["theworld, molmo and nanodit"]
    said = "nothing can be compared: the runs are of the families theworld and molmo and nanodit, whose figures are not of one kind."
    assert said in page.texts("p")
    assert page.texts("h2") == FAMILIES
    assert not [name for name in page.texts("th") if name.startswith("model.")]
    colours = {family: re.search(rf'href="#run{i}"><i class="spot k(\d)"></i>{family}', page.html)[1] for i, family in enumerate(FAMILIES)}
    assert sorted(colours.values()) == ["0", "1", "2"]
    last = {family: [row["loss"] for row in rows_of(run) if "loss" in row][-1] for family, run in runs.items()}
    assert all(f"{family} {number(value)}" in page.texts("li") for family, value in last.items())


def test_runs_whose_folders_have_one_name_are_told_apart_by_their_paths(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("low", "high"):
        shutil.copytree(runs["molmo"], tmp_path / folder / "run")
    report("low/run", "high/run")
    page = Page(tmp_path / "report.html")
    assert page.texts("h1") == ["low/run and high/run"] and page.texts("h2") == ["low/run", "high/run"]


def test_what_two_runs_set_differently_is_listed(runs, copy, tmp_path):
    text = (copy / "config.yaml").read_text().replace("global_batch: 8", "global_batch: 4")
    (copy / "config.yaml").write_text("".join(text.splitlines(keepends=True)[:-1]))
    for path in copy.glob("stage-*/step-*/run-config.yaml"):
        path.unlink()
    report(runs["theworld"], copy, "--out", tmp_path / "two.html")
    page = Page(tmp_path / "two.html")
    names, cells = page.texts("th"), page.texts("td")
    assert "train.global_batch" in names
    assert cells[cells.index("8") + 1] == "4"


def test_ten_thousand_steps_take_less_than_3_mb(copy):
    rows = [row for row in rows_of(copy) if "loss" in row]
    grown = [{**rows[i % 20 + 20], "step": i + 1, "stage": 2, "loss": rows[i % 40]["loss"], "time_s": i * 1.0} for i in range(10_000)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in grown))
    page_of(copy)
    assert (copy / "report.html").stat().st_size < 3_000_000
    found = record.read(copy)
    assert (found.last_step, len(found.series("loss"))) == (10_000, 10_000)
    mean = number(statistics.fmean(row["loss"] for row in grown[-200:]))
    assert mean in Page(copy / "report.html").texts("strong")


def test_what_cannot_be_shown_is_one_line(runs, tmp_path, capsys):
    run = runs["molmo"]
    for words, line in (
        ([tmp_path / "no"], f"{tmp_path / 'no'} is no run directory: it has no config.yaml"),
        ([run, run], f"{run} is given twice: a page shows each run once"),
        ([run, f"--out={tmp_path}"], f"{tmp_path} is a folder: name a file for the page, such as {tmp_path}/report.html"),
    ):
        capsys.readouterr()
        assert cli.main(["report", *map(str, words)]) == 2
        assert capsys.readouterr().err == f"plait: {line}\n"
