"""``optimum-cli export poolgraph``: the same options and code as ``poolgraph export``, from the built wheel."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tiny_models import save_checkpoint

from poolgraph import cli_export
from poolgraph.errors import ExportError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.score_template import TEMPLATES

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "src" / "optimum" / "commands" / "register" / "poolgraph.py"
SOURCES = ("src", "graphs", "poolers", "export", "runtime", "serving", "pyproject.toml", "README.md", "LICENSE")
OPTIMUM_CLI = ("-m", "optimum.commands.optimum_cli", "export")
TWICE = ("-c", "from optimum.commands.optimum_cli import main; main(); main()", "export")
"""The same command again in one process, which imports torch once."""


@pytest.fixture
def plugin():
    """The register file, loaded as optimum does but for its name."""
    spec = importlib.util.spec_from_file_location("register_poolgraph", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_plugin(plugin, *argv):
    """Do what optimum's main does with one command."""
    parser = argparse.ArgumentParser("optimum-cli")
    plugin.PoolgraphExportCommand(parser.add_subparsers())
    args = parser.parse_args(["poolgraph", *argv])
    args.func(args).run()


def test_it_runs_the_export_command(plugin, monkeypatch):
    given = []

    def run_export(args):
        given.append(vars(args) | {"func": None, "run": None})
        return 0

    monkeypatch.setattr(plugin, "run_export", run_export)
    monkeypatch.setattr(cli_export, "EXPORT_COMMAND", None)
    options = ["--task", "score", "--precision", "fp32", "--score-template", "plain", "--force"]
    run_plugin(plugin, "--model", "acme/tiny", "out", *options)
    parser = argparse.ArgumentParser()
    plugin.EXPORT_COMMAND.add_arguments(parser)
    expected = vars(parser.parse_args(["acme/tiny", "-o", "out", *options]))
    del expected["list"]  # an export it is not
    assert given == [expected | {"func": None, "run": None}]


def test_errors_are_those_of_the_command_line(plugin, monkeypatch, capsys):
    def run_export(args):
        raise ExportError("no config.json")

    monkeypatch.setattr(plugin, "run_export", run_export)
    with pytest.raises(SystemExit) as stop:
        run_plugin(plugin, "--model", "acme/tiny", "out")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "poolgraph: error: no config.json\n"


def test_the_folder_stays_a_namespace():
    assert [path.name for path in PLUGIN.parent.glob("*.py")] == ["poolgraph.py"]
    assert not [*PLUGIN.parents[1].glob("*.py"), *PLUGIN.parents[2].glob("*.py")]


def test_optimum_loads_no_heavy_library_for_it():
    code = (
        "import runpy, sys, argparse\n"
        f"runpy.run_path({str(PLUGIN)!r})\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy of the sources so that nothing is left in the checkout, and without a compiler."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run_pip("wheel", *options, "-w", str(copy / "dist"), str(copy), env=os.environ | {"CC": "false", "CXX": "false"})
    (built,) = (copy / "dist").glob("poolgraph-*.whl")
    return built


@pytest.fixture
def environment(tmp_path):
    """An environment with a copy of optimum alone, as if pip had put it there."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python3*/site-packages")
    installed = Path(importlib.util.find_spec("optimum.version").origin).parent
    shutil.copytree(installed, packages / "optimum", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_pip(*arguments, env=None):
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True, text=True, env=env)


def run_in(environment, *arguments):
    """Run Python there, with the libraries of this one behind its own."""
    libraries = Path(importlib.util.find_spec("optimum.version").origin).parents[1]
    (packages,) = environment.glob("lib/python3*/site-packages")
    path = os.pathsep.join([str(packages), str(libraries)])
    return subprocess.run(
        [str(environment / "bin" / "python"), "-P", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=environment,
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def files_in(environment):
    return {path for path in environment.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_wheel_adds_the_command_and_takes_it_away(wheel, environment, tmp_path):
    before = files_in(environment)
    assert "poolgraph" not in run_in(environment, *OPTIMUM_CLI, "--help").stdout
    pip = ("--python", str(environment / "bin" / "python"), "--disable-pip-version-check")
    run_pip(*pip, "install", "--no-deps", "--no-index", "--no-compile", str(wheel))
    assert "{poolgraph}" in run_in(environment, *OPTIMUM_CLI, "--help").stdout

    checkpoint = save_checkpoint(tmp_path / "checkpoint", "BertModel")
    output = tmp_path / "artifact"
    done = run_in(environment, *TWICE, "poolgraph", "--model", str(checkpoint), str(output), "--task", "embed")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"poolgraph embed {output} texts.txt" in done.stdout
    assert "--force" in done.stderr
    assert open_artifact(output, check_hashes="all").default_task == "embed"

    templates = run_in(
        environment,
        "-c",
        "import poolgraph; from poolgraph.runtime.score_template import TEMPLATES, resolve_template\n"
        "print(len([resolve_template(name) for name in TEMPLATES]), poolgraph.__file__)",
    ).stdout.split()
    assert templates[0] == str(len(TEMPLATES))
    assert Path(templates[1]).is_relative_to(environment)

    run_pip(*pip, "uninstall", "--yes", "poolgraph")
    assert files_in(environment) == before
    assert run_in(environment, *OPTIMUM_CLI, "--help").returncode == 0
