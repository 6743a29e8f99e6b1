"""What is released: a source distribution, the wheel built of it, and a small run of the wheel where there is no repository."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
import yaml

import plait
from tests.test_house import ROOT, SOURCE


def run(*command, cwd, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which pip has installed the wheel that was built of the source distribution, without network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as tar:
        tar.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel))
    run(*pip, cwd=folder, PIP_DISABLE_PIP_VERSION_CHECK="1")
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_every_recipe_and_nothing_else(installed):
    (wheel,) = installed.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/plait", "configs"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("no repository of git here")
    wanted = {re.sub(r"^src/|^configs", lambda m: "" if m[0] == "src/" else "plait/recipes", name) for name in tracked.stdout.split()}
    assert inside == wanted
    assert wheel.name == f"plait-{plait.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 2 << 20


def test_a_recipe_of_the_wheel_trains_where_there_is_no_repository(installed, tmp_path):
    wheel = {"PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1"}
    where = run(sys.executable, "-c", "import plait; print(plait.__file__)", cwd=tmp_path, **wheel)
    assert where.startswith(str(installed / "site"))
    script = installed / "site" / "bin" / "plait"
    assert "theworld/demo.yaml" in run(str(script), "recipes", cwd=tmp_path, **wheel)
    copied = run(str(script), "recipes", "molmo/debug", cwd=tmp_path, **wheel)
    assert copied.strip() == "configs/molmo/debug.yaml: `plait train configs/molmo/debug.yaml`, for 2 CPU cores, no network"
    few = ("--train.steps=2", "--evaluate=[]", "--data.validation=[]")
    assert "2 steps done" in run(str(script), "train", "configs/molmo/debug.yaml", *few, cwd=tmp_path, **wheel)
    assert (tmp_path / "runs/molmo-debug").is_dir()


def test_the_version_is_the_same_wherever_it_is_told():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited["version"] == newest[1] == plait.__version__
    assert cited["license"] == "Apache-2.0"


def test_the_image_for_gpu_machines_copies_what_there_is():
    lines = (ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert {"src", "configs"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert SOURCE.is_dir()
