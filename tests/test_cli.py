"""The command line as people use it: what it prints, how it fails, how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result as Outcome
from safetensors.torch import load_file, save_file
from small_runs import settings, write_net, write_photos
from typer.testing import CliRunner

from secateur import finetune
from secateur.allocation import timed
from secateur.cli import app
from secateur.latency import paired
from secateur.models import load_model
from secateur.results import load_result
from secateur.study import stages


def secateur(*words: str | Path) -> Outcome:
    return CliRunner().invoke(app, [str(word) for word in words])


def write_settings(folder: Path, **over: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **over)))
    return path


def refused(outcome: Outcome, *told: str) -> None:
    """An error is one line on stderr with exit code 2, and no traceback."""
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert "Traceback" not in outcome.output
    for part in told:
        assert part in outcome.stderr


class TestPrune:
    def test_by_a_file(self, tmp_path: Path) -> None:
        outcome = secateur("prune", write_settings(tmp_path))
        assert outcome.exit_code == 0, outcome.output
        assert re.search(r"Parameters\s+786\s+254\s+-67\.7 %", outcome.stdout)
        assert outcome.stdout.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
        assert "masked reference" in outcome.stdout
        assert (tmp_path / "run" / "report.html").is_file()

    def test_flags_override_the_file(self, tmp_path: Path) -> None:
        path = write_settings(tmp_path)
        flags = ["--epochs", "0", "--macs", "0.9", "--arg", "width=6", "--limit", "120"]
        outcome = secateur("prune", path, *flags, "--output", tmp_path / "other")
        assert outcome.exit_code == 0, outcome.output
        result = load_result(tmp_path / "other" / "result.json")
        assert result.asked["target"] == {"macs": 0.9}
        assert result.asked["arguments"] == {"width": 6}
        assert result.asked["data"]["limit"] == 120
        assert result.asked["data"]["batch_size"] == 32
        assert result.history == ()
        assert not (tmp_path / "run").exists()

    def test_by_flags_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(stages, "paired", lambda *a, **k: paired(*a, **{**k, "seconds": 0.01}))
        photos = write_photos(
            tmp_path / "photos",
            {"train": {"cat": 20, "dog": 20}, "test": {"cat": 4, "dog": 4}},
            side=6,
        )
        model = load_model(write_net(tmp_path), {"classes": 2})
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        words = f"""prune --model net.py:build --arg classes=2 --weights w.safetensors
            --data {photos.name} --image-size 8 --batch-size 8 --criterion l1 --sparsity 0.25
            --scope local --round-to 2 --epochs 1 --lr 0.01 --optimizer sgd --seed 1 --threads 1"""
        outcome = secateur(*words.split())
        assert outcome.exit_code == 0, outcome.output
        result = load_result(tmp_path / "runs" / "prune" / "result.json")
        assert {w.layer: w.pruned for w in result.widths} == {"0": 6, "4": 6, "9": 2}
        assert result.environment["threads"] == "1"

    def test_what_may_go_and_what_competes(self, tmp_path: Path) -> None:
        path = write_settings(tmp_path, limits={"4": 0.9}, target={"macs": 0.9})
        flags = """--sparsity 0.75 --group-limit 4=0.25 --protect 0 --scope isomorphic
            --normalisation none --aggregation max --criterion weight_statistic
            --option statistic=max_abs --epochs 0"""
        outcome = secateur("prune", path, *flags.split())
        assert outcome.exit_code == 2
        assert "sparsity=0.75 cannot be met: the limits let 2 of 8" in outcome.stderr
        outcome = secateur("prune", path, *flags.replace("0.75", "0.25").split(), "--output",
                           tmp_path / "other")  # fmt: skip
        assert outcome.exit_code == 0, outcome.output
        result = load_result(tmp_path / "other" / "result.json")
        assert {w.layer: w.pruned for w in result.widths} == {"0": 8, "4": 6, "9": 10}
        told = ("protect", "limits", "normalisation", "aggregation", "options", "scope")
        assert [result.asked[key] for key in told] == [
            ["0"], {"4": 0.25}, "none", "max", {"statistic": "max_abs"}, "isomorphic",
        ]  # fmt: skip

    def test_by_a_time_that_is_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def by_parameters(dense: Any, pruned: Any, **options: Any) -> float:
            asked.append(options["timing"])
            sizes = [sum(p.numel() for p in model.parameters()) for model in (dense, pruned)]
            return sizes[1] / sizes[0]

        monkeypatch.setattr(timed, "relative_time", by_parameters)
        path = write_settings(tmp_path, arguments={"width": 40}, threads=1)
        outcome = secateur("prune", path, "--latency", "0.5", "--latency-batch", "7",
                           "--epochs", "0")  # fmt: skip
        assert outcome.exit_code == 0, outcome.output
        result = load_result(tmp_path / "run" / "result.json")
        assert result.asked["target"] == {"latency": 0.5}
        assert {(timing.batch, timing.threads) for timing in asked} == {(7, 1)}
        assert abs(result.pruned.size.params / result.dense.size.params / 0.5 - 1) <= 0.05

    def test_the_saved_network_loads_in_a_new_process(self, tmp_path: Path) -> None:
        path = write_settings(tmp_path, model="secateur.models:digits_cnn")
        outcome = secateur("prune", path, "--epochs", "0")
        assert outcome.exit_code == 0, outcome.output
        script = (
            "import sys, torch, secateur\n"
            "model = secateur.load(sys.argv[1]).eval()\n"
            "print(sum(p.numel() for p in model.parameters()))\n"
            "print(*model(torch.ones(2, 1, 8, 8)).shape)"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "run")],
            capture_output=True,
            text=True,
            check=True,
        )
        params = load_result(tmp_path / "run" / "result.json").pruned.size.params
        assert run.stdout.split() == [str(params), "2", "10"]


class TestBadInput:
    """Everything here is refused before any long work: no folder is claimed."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, tmp_path: Path) -> Any:
        yield
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("over", "told"),
        [
            ({"criterion": "tayler"}, ["criterion: must be one of", "l1, l2", "'tayler'"]),
            ({"target": {"sparsity": 1.0}}, ["sparsity must satisfy 0 <= sparsity < 1", "1.0"]),
            ({"target": {"sparsity": -0.5}}, ["0 <= sparsity < 1, but got -0.5"]),
            (
                {"target": {"macs": 0.5, "params": 0.1}},
                ["exactly one of sparsity, macs, params, latency"],
            ),
            ({"target": {}}, ["exactly one of sparsity, macs, params, latency", "got none"]),
            ({"data": {"source": "nowhere"}}, ["nowhere"]),
            ({"weights": "nowhere.safetensors"}, ["weights", "nowhere.safetensors"]),
            ({"model": "net"}, ["model", "'net'"]),
            ({"arguments": {"channels": 3}}, ["the model fails on its example input"]),
            ({"protect": ["head"]}, ["protect", "'head' matches nothing", "the nearest are"]),
            ({"limits": {"5": 0.5}}, ["limits", "'5' matches nothing; the nearest are"]),
            ({"finetune": {"lr": "fast"}}, ["finetune.lr: must be a valid number", "'fast'"]),
            ({"finetune": {"epoch": 1}}, ["finetune.epoch: unknown key; did you mean 'epochs'?"]),
        ],
    )
    def test_settings(self, over: dict[str, Any], told: list[str], tmp_path: Path) -> None:
        refused(secateur("prune", write_settings(tmp_path, **over)), *told)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda w: w.pop("4.weight"), ["4.weight is not in the file"]),
            (
                lambda w: w.update({"4.weight": torch.zeros(8, 8, 1, 1)}),
                ["4.weight is (8, 8, 3, 3) in the model", "(8, 8, 1, 1) in the file"],
            ),
            (lambda w: w.update({"head.weight": torch.zeros(1)}), ["head.weight"]),
        ],
        ids=["missing", "shape", "unknown"],
    )
    def test_weights_that_do_not_fit(self, change: Any, told: list[str], tmp_path: Path) -> None:
        tensors = dict(load_model(write_net(tmp_path)).state_dict())
        change(tensors)
        save_file(tensors, tmp_path / "w.safetensors")
        path = write_settings(tmp_path, weights=str(tmp_path / "w.safetensors"))
        refused(secateur("prune", path), *told)

    def test_a_folder_without_images(self, tmp_path: Path) -> None:
        (tmp_path / "photos" / "cat").mkdir(parents=True)
        path = write_settings(tmp_path, data={"source": str(tmp_path / "photos")})
        refused(secateur("prune", path), "must hold images", "photos")

    def test_an_unreadable_image_is_named(self, tmp_path: Path) -> None:
        photos = write_photos(
            tmp_path / "photos",
            {"train": {"cat": 9, "dog": 9}, "test": {"cat": 2, "dog": 2}},
        )
        (photos / "train" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        path = write_settings(tmp_path, data={"source": str(photos)}, arguments={"classes": 2})
        refused(secateur("prune", path), "dog/3.png", "cannot be read")

    def test_a_class_in_one_split_only(self, tmp_path: Path) -> None:
        photos = write_photos(
            tmp_path / "photos",
            {"train": {"cat": 9, "dog": 9}, "test": {"cat": 2, "dog": 2, "emu": 2}},
        )
        path = write_settings(tmp_path, data={"source": str(photos)}, arguments={"classes": 3})
        refused(secateur("prune", path), "emu")

    @pytest.mark.parametrize("name", ["failing", "uncuttable"])
    def test_models_that_cannot_be_pruned(self, name: str, tmp_path: Path) -> None:
        model = write_net(tmp_path).replace("build", name)
        told = {
            "failing": ["the model fails on its example input"],
            "uncuttable": ["nothing can be cut", "1.weight", "the model's output"],
        }
        refused(secateur("prune", write_settings(tmp_path, model=model)), *told[name])

    def test_every_error_of_a_file_at_once(self, tmp_path: Path) -> None:
        path = write_settings(tmp_path, criterion="l3", seed=-1, scoop="local")
        outcome = secateur("prune", path)
        assert outcome.exit_code == 2
        lines = outcome.stderr.splitlines()
        assert lines[0] == f"error: 3 errors in {path}:"
        assert [line.split(":")[0].strip() for line in lines[1:]] == ["seed", "criterion", "scoop"]

    def test_flags(self, tmp_path: Path) -> None:
        outcome = secateur("prune", "--criterion", "l3")
        assert outcome.exit_code == 2
        assert "error: 4 errors in the options:" in outcome.stderr
        assert "model: is required" in outcome.stderr
        refused(secateur("prune", "--arg", "width"), "name=value", "'width'")
        refused(secateur("prune", "--group-limit", "=1"), "group-limit", "name=value", "'=1'")
        refused(secateur("prune", "--option", "a b=1"), "option must look like name=value")
        refused(secateur("prune", "--resume"), "resume needs the run folder")
        refused(secateur("prune", tmp_path / "no.yaml"), "no.yaml cannot be read")
        refused(secateur("demo", "--seed", "-1"), "seed", "-1")

    def test_a_flag_that_is_not_there(self) -> None:
        outcome = secateur("prune", "--sparsty", "0.5")
        assert outcome.exit_code == 2
        assert "No such option" in outcome.stderr

    def test_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        outcome = secateur("prune", write_settings(tmp_path, criterion="l3"), "--debug")
        assert outcome.exit_code == 2
        assert "error: " in outcome.stderr
        script = [sys.executable, "-m", "secateur", "prune", str(tmp_path / "no.yaml"), "--debug"]
        run = subprocess.run(script, capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert "Traceback" in run.stderr
        assert run.stderr.splitlines()[-1].startswith("error: ")


class TestFolders:
    def test_another_run_is_never_overwritten(self, tmp_path: Path) -> None:
        path = write_settings(tmp_path)
        assert secateur("prune", path, "--epochs", "0").exit_code == 0
        before = (tmp_path / "run" / "result.json").read_bytes()
        refused(secateur("prune", path), "holds another run", "--resume")
        assert (tmp_path / "run" / "result.json").read_bytes() == before

    def test_resume_of_nothing(self, tmp_path: Path) -> None:
        refused(secateur("prune", write_settings(tmp_path), "--resume"), "holds a run")


class TestStopping:
    def test_ctrl_c_says_how_to_go_on_and_that_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_settings(tmp_path)
        whole = finetune.write_state

        def stop(*arguments: Any) -> None:
            whole(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(finetune, "write_state", stop)
            outcome = secateur("prune", path)
        assert outcome.exit_code == 130
        again = f"secateur prune {tmp_path / 'run' / 'config.yaml'} --resume"
        assert outcome.stderr.splitlines()[-1] == f"stopped; go on with: {again}"
        assert not (tmp_path / "run" / "result.json").exists()
        resumed = secateur(*again.split()[1:])
        assert resumed.exit_code == 0, resumed.output
        assert secateur("prune", path, "--output", tmp_path / "straight").exit_code == 0
        left, right = (
            load_file(tmp_path / name / "model.safetensors") for name in ("run", "straight")
        )
        assert all(torch.equal(left[name], right[name]) for name in left)

    def test_before_the_run_has_begun(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("secateur.study.run.load_data", stop)
        outcome = secateur("prune", write_settings(tmp_path))
        assert outcome.exit_code == 130
        assert "nothing is left of it" in outcome.stderr

    def test_a_signal_to_a_real_process(self, tmp_path: Path) -> None:
        path = write_settings(tmp_path, finetune={"epochs": 100_000, "lr": 0.001})
        running = subprocess.Popen(
            [sys.executable, "-m", "secateur", "prune", str(path)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A job started in the background inherits an ignored interrupt.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            kept = tmp_path / "run" / "stages" / "finetune" / "epoch-0002.json"
            waited = time.monotonic() + 120
            while not kept.exists() and running.poll() is None and time.monotonic() < waited:
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            told = running.communicate(timeout=60)[1]
        finally:
            running.kill()
        assert running.returncode == 130
        assert told.splitlines()[-1].startswith("stopped; go on with: secateur prune ")
        assert "Traceback" not in told


class TestDemo:
    def test_the_line_to_go_on_with(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "demo").mkdir(parents=True)

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("secateur.study.kept.finetune", stop)
        outcome = secateur("demo", "--seed", "4", "--threads", "2")
        assert outcome.exit_code == 130
        again = "secateur demo --output runs/demo-2 --seed 4 --threads 2 --resume"
        assert outcome.stderr.splitlines()[-1] == f"stopped; go on with: {again}"
        assert secateur(*again.split()[1:]).exit_code == 130

    @pytest.mark.slow
    def test_as_a_newcomer_runs_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        began = time.monotonic()
        outcome = secateur("demo")
        assert outcome.exit_code == 0, outcome.output
        assert time.monotonic() - began < 180
        assert outcome.stdout.splitlines()[-1] == "report: runs/demo/report.html"
        result = load_result(tmp_path / "runs" / "demo" / "result.json")
        assert result.dense.quality.accuracy > 0.97
        assert result.pruned.quality.accuracy > result.dense.quality.accuracy - 0.03
        assert result.pruned.size.macs < 0.5 * result.dense.size.macs
        assert result.check.ok
        assert result.check.changed


class TestInspect:
    def test_table(self, tmp_path: Path) -> None:
        outcome = secateur("inspect", write_net(tmp_path), "--input", "1x8x8")
        assert outcome.exit_code == 0, outcome.output
        assert re.search(r"^0\s+channel\s+4\s+8\s+", outcome.stdout, re.MULTILINE)
        assert re.search(r"9\.weight\[0\].*the model's output", outcome.stdout)
        assert "786 parameters" in outcome.stdout

    def test_json(self, tmp_path: Path) -> None:
        outcome = secateur("inspect", write_net(tmp_path), "-i", "1,8,8", "-a", "width=4", "--json")
        found = json.loads(outcome.stdout)
        assert [group["size"] for group in found["groups"]] == [4, 4]

    @pytest.mark.parametrize("shape", ["1x8x", "0x8x8", "axb", "1x-8x8"])
    def test_shape(self, shape: str, tmp_path: Path) -> None:
        outcome = secateur("inspect", write_net(tmp_path), "--input", shape)
        refused(outcome, "input must look like 3x224x224", repr(shape))

    def test_wrong_shape(self, tmp_path: Path) -> None:
        outcome = secateur("inspect", write_net(tmp_path), "--input", "3x8x8")
        refused(outcome, "the model fails on its example input")


class TestReport:
    def test_draws_again(self, tmp_path: Path) -> None:
        assert secateur("prune", write_settings(tmp_path), "--epochs", "0").exit_code == 0
        page = tmp_path / "run" / "report.html"
        before = page.read_bytes()
        page.unlink()
        outcome = secateur("report", tmp_path / "run")
        assert outcome.exit_code == 0
        assert outcome.stdout == f"report: {page}\n"
        assert page.read_bytes() == before

    def test_of_nothing(self, tmp_path: Path) -> None:
        refused(secateur("report", tmp_path), "must hold a finished run", "result.json")

    def test_needs_no_torch(self) -> None:
        script = (
            "import sys, secateur.cli, secateur.report\n"
            "assert not {'torch', 'accelerate', 'datasets', 'sklearn'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("verb", ["demo", "prune", "inspect", "report"])
def test_help_ends_in_examples(verb: str) -> None:
    outcome = secateur(verb, "--help")
    assert outcome.exit_code == 0
    _, examples = outcome.stdout.split("Examples:\n")
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert lines[0].startswith(f"secateur {verb} ") or lines[0] == f"secateur {verb}"
