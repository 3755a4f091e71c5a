"""A whole run: what it leaves, that a stop changes nothing, and what it refuses first."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import NET, settings, write_net, write_photos

import secateur
from secateur import finetune as finetune_room
from secateur.data import batches, load_data
from secateur.errors import InputError, PlanError, SecateurError, TraceError
from secateur.measure import quality
from secateur.models import load_model
from secateur.plan import Plan
from secateur.report.tables import tables
from secateur.results import Result, load_result
from secateur.study import RunConfig, kept, prune_run, store
from secateur.study.config import to_plain

LEFT = {"config.yaml", "model.json", "model.safetensors", "plan.json", "report.html", "result.json"}


def left_by(result: Result) -> set[str]:
    """Name all that a finished run leaves: its record, and every table for other programs."""
    return LEFT | {f"{table.name}.{kind}" for table in tables(result) for kind in ("csv", "json")}


def run(folder: Path, *, resume: bool = False, **over: Any) -> Result:
    return prune_run(RunConfig.model_validate(settings(folder, **over)), resume=resume)


def timeless(result: Result) -> dict[str, Any]:
    """A result without what a clock or the folder's name decides."""
    plain = dataclasses.asdict(result)
    for name in ("dense", "pruned"):
        plain[name]["speeds"] = [speed["batch"] for speed in plain[name]["speeds"]]
    del plain["facts"]["layers"]
    for entry in plain["history"]:
        del entry["seconds"]
    plain["notes"] = plain["notes"][0]
    for name in ("output", "model"):
        del plain["asked"][name]
    return {key: value for key, value in plain.items() if key not in ("command", "environment")}


class TestUndisturbed:
    def test_leaves_what_a_run_folder_holds(self, finished: tuple[Result, Path]) -> None:
        result, folder = finished
        assert {path.name for path in folder.iterdir()} == left_by(result)
        assert load_result(folder / "result.json") == result
        assert result.command == "secateur prune run.yaml"
        assert result.asked["criterion"] == "l2"
        assert (result.asked["finetune"]["seed"], result.asked["seed"]) == (3, 3)

    def test_the_proof_is_one(self, finished: tuple[Result, Path]) -> None:
        check = finished[0].check
        assert check.ok
        assert check.changed
        assert check.max_error <= 1e-10

    def test_sizes_follow_from_the_widths(self, finished: tuple[Result, Path]) -> None:
        result, folder = finished
        widths = {width.layer: (width.dense, width.pruned) for width in result.widths}
        assert widths == {"0": (8, 4), "4": (8, 4), "9": (10, 10)}
        # conv 9w + w, norm 2w, conv 9ww + w, norm 2w, linear 10w + 10
        for measured, width in ((result.dense, 8), (result.pruned, 4)):
            assert measured.size.params == 9 * width**2 + 25 * width + 10
            assert measured.size.macs == 64 * 9 * width + 16 * 9 * width**2 + 10 * width
        plan = Plan.from_json((folder / "plan.json").read_text())
        assert plan.pruned.params == result.pruned.size.params
        raw = (folder / "model.safetensors").stat().st_size
        assert result.pruned.size.bytes_raw == pytest.approx(raw, rel=0.05)

    def test_the_saved_network_scores_what_the_result_says(
        self, finished: tuple[Result, Path]
    ) -> None:
        result, folder = finished
        data = load_data("digits", limit=150, calibration=32, seed=3)
        found = quality(secateur.load(folder), batches(data.test, 32), "test")
        assert found == result.pruned.quality
        assert result.dense.quality.split == "test"
        assert result.dense.quality.count == len(data.test)

    def test_history_and_notes(self, finished: tuple[Result, Path]) -> None:
        result, _ = finished
        assert [(entry.phase, entry.epoch) for entry in result.history] == [
            ("finetune", 1),
            ("finetune", 2),
        ]
        best = max(entry.val_accuracy for entry in result.history)
        assert f"finetuned {best:.2%}" in result.notes[0]

    def test_again_it_is_the_same(self, finished: tuple[Result, Path], tmp_path: Path) -> None:
        torch.manual_seed(999)
        again = run(tmp_path)
        assert timeless(again) == timeless(finished[0])
        assert weights(tmp_path / "run") == weights(finished[1])

    def test_another_seed_is_another_run(
        self, finished: tuple[Result, Path], tmp_path: Path
    ) -> None:
        assert timeless(run(tmp_path, seed=4)) != timeless(finished[0])


def weights(folder: Path) -> dict[str, Any]:
    tensors = load_file(folder / "model.safetensors")
    return {name: value.tolist() for name, value in tensors.items()}


def stop_after(room: object, name: str, when: Callable[..., bool], patch: Any) -> None:
    """Press Ctrl-C right after the call of ``room.name`` for which ``when`` holds."""
    whole = getattr(room, name)

    def stopping(*arguments: Any, **keywords: Any) -> Any:
        outcome = whole(*arguments, **keywords)
        if when(*arguments, **keywords):
            raise KeyboardInterrupt
        return outcome

    patch.setattr(room, name, stopping)


STOPS = {
    "claimed": (store, "write_text", lambda path, _: path.name == "config.yaml"),
    "dense judged": (kept, "tensors", lambda _, name, __: name == "dense-validation"),
    "planned": (store, "write_text", lambda path, _: path.name == "plan.json"),
    "cut judged": (kept, "tensors", lambda _, name, __: name == "cut-validation"),
    "one epoch": (finetune_room, "write_state", lambda _, state, __: len(state.history) == 1),
    "two epochs": (finetune_room, "write_state", lambda _, state, __: len(state.history) == 2),
    "dense tested": (kept, "tensors", lambda _, name, __: name == "dense-test"),
    "pruned tested": (kept, "tensors", lambda _, name, __: name == "pruned-test"),
    "result filed": (store, "finish", lambda *_: True),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_ends_like_an_undisturbed_one(
    stop: str, finished: tuple[Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(*STOPS[stop], patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    judged = []
    whole = kept.answers
    monkeypatch.setattr(kept, "answers", lambda *a, **k: judged.append(a[2]) or whole(*a, **k))
    result = run(tmp_path, resume=True)
    assert timeless(result) == timeless(finished[0])
    assert weights(tmp_path / "run") == weights(finished[1])
    assert {path.name for path in (tmp_path / "run").iterdir()} == left_by(result)
    done = list(STOPS).index(stop)
    # Nothing is judged twice: two networks on validation, two on test.
    assert len(judged) == 4 - sum(done >= list(STOPS).index(name) for name in JUDGED)


JUDGED = ("dense judged", "cut judged", "dense tested", "pruned tested")


def test_resuming_a_finished_run_does_nothing(
    finished: tuple[Result, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = finished
    monkeypatch.setattr(kept, "answers", None)
    before = (folder / "result.json").read_bytes()
    config = RunConfig.model_validate(settings(folder.parent))
    assert prune_run(config, resume=True) == result
    assert (folder / "result.json").read_bytes() == before


def test_without_finetuning_the_cut_network_is_measured(tmp_path: Path) -> None:
    result = run(tmp_path, finetune={"epochs": 0}, criterion="taylor", target={"macs": 0.4})
    assert result.history == ()
    assert result.pruned.size.macs <= 0.4 * result.dense.size.macs
    assert "finetuned" not in result.notes[0]


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    model = load_model(write_net(tmp_path))
    with torch.no_grad():
        model[-1].bias[4] = 50.0  # answers 4 whatever it sees
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    result = run(tmp_path, weights=str(tmp_path / "w.safetensors"), finetune={"epochs": 0})
    assert result.dense.quality.recall == pytest.approx(0.1)
    assert 0.05 < result.dense.quality.accuracy < 0.15


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    splits = {"train": {"cat": 12, "dog": 12}, "test": {"cat": 3, "dog": 3}}
    photos = write_photos(tmp_path / "photos", splits)
    (photos / "train" / "cat" / "0.png").write_bytes(b"no picture")
    data = {"source": str(photos), "batch_size": 8, "validation": 0.3}
    over = {"arguments": {"classes": 2}, "finetune": {"epochs": 0}}
    with pytest.raises(InputError, match=r"cat/0\.png"):
        run(tmp_path, data=data, **over)
    assert not (tmp_path / "run").exists()
    result = run(tmp_path, data={**data, "skip_unreadable": True}, **over)
    assert "1 unreadable images were left out." in result.notes


class TestLoadingAgain:
    def load(
        self, folder: Path, first: str = "", trust: str = "[]"
    ) -> subprocess.CompletedProcess[str]:
        last = f"secateur.load(sys.argv[1], trust={trust})"
        script = f"import sys, secateur, secateur.models\n{first}\n{last}"
        return subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_a_network_from_a_file(self, finished: tuple[Result, Path]) -> None:
        result, folder = finished
        (told,) = (note for note in result.notes if "secateur.load" in note)
        first = re.search(r"secateur\.models\.load_model\(.*?\)", told)
        assert first is not None
        assert self.load(folder).returncode != 0
        assert self.load(folder, first.group()).returncode == 0

    def test_a_network_that_json_cannot_describe(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = "def odd():\n    model = build()\n    model.act = lambda x: x\n    return model\n"
        (tmp_path / "oddities.py").write_text(NET + lines)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"act holds .*lambda"):
            run(tmp_path, model="oddities.py:odd")
        assert not (tmp_path / "run").exists()
        result = run(tmp_path, model="oddities:odd", finetune={"epochs": 0})
        (told,) = (note for note in result.notes if "secateur.load" in note)
        assert "trust=['oddities']" in told
        done = self.load(tmp_path / "run")
        assert done.returncode != 0
        assert "trust=['oddities']" in done.stderr
        assert self.load(tmp_path / "run", trust="['oddities']").returncode == 0
        del sys.modules["oddities"]


class TestRefusedBeforeTheFolderIsClaimed:
    @pytest.mark.parametrize(
        ("over", "kind", "told"),
        [
            ({"model": "nowhere:build"}, InputError, "no module named 'nowhere'"),
            ({"arguments": {"wdith": 3}}, InputError, "wdith"),
            ({"weights": "missing.safetensors"}, InputError, "does not exist"),
            ({"data": {"source": "nowhere"}}, InputError, "nowhere"),
            ({"arguments": {"channels": 3}}, TraceError, "example input"),
            ({"arguments": {"classes": 4}}, InputError, "one output per class"),
        ],
    )
    def test_bad_input(
        self, over: dict[str, Any], kind: type[SecateurError], told: str, tmp_path: Path
    ) -> None:
        with pytest.raises(kind, match=told):
            run(tmp_path, **over)
        assert not (tmp_path / "run").exists()

    def test_nothing_to_cut_says_what_pins(self, tmp_path: Path) -> None:
        model = write_net(tmp_path).replace(":build", ":uncuttable")
        with pytest.raises(PlanError, match=r"nothing can be cut.*1\.weight.*the model's output"):
            run(tmp_path, model=model)
        assert not (tmp_path / "run").exists()

    def test_a_used_folder(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("")
        with pytest.raises(InputError, match="holds something else"):
            run(tmp_path)

    def test_a_finished_run(self, finished: tuple[Result, Path]) -> None:
        config = RunConfig.model_validate(settings(finished[1].parent))
        with pytest.raises(InputError, match="holds another run"):
            prune_run(config)
        with pytest.raises(InputError, match=r"criterion was 'l2', but got 'l1'"):
            prune_run(config.model_copy(update={"criterion": "l1"}), resume=True)
        assert to_plain(config) == finished[0].asked
