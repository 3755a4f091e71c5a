"""Real architectures, cut in half, as files: what is told of them and what a user runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

pytest.importorskip("transformers", reason="Hugging Face models need transformers")

from export_cases import CASES

from secateur.deployment import export_onnx, export_program
from secateur.errors import ExportError

# Loops over the experts that the tokens chose.
BY_VALUES = "transformers/mixtral"

# Warnings of other libraries about themselves are none of ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in CASES if name != BY_VALUES])
def test_half_of_a_real_network_as_files(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pruned = case.halved(case.dense()).model
    for export, file in ((export_onnx, "net.onnx"), (export_program, "net.pt2")):
        found = export(pruned, case.example, tmp_path / file)
        assert found.max_error < 1e-4
        assert found.varied
        assert found.left_out == case.left_out


@pytest.mark.zoo
def test_code_that_follows_values_is_refused(tmp_path: Path) -> None:
    case = CASES[BY_VALUES]
    pruned = case.halved(case.dense()).model
    for export, file in ((export_onnx, "net.onnx"), (export_program, "net.pt2")):
        with pytest.raises(ExportError, match="data-dependent"):
            export(pruned, case.example, tmp_path / file)
    assert not list(tmp_path.iterdir())


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", ["torchvision/mobilenet_v3_small", "transformers/vit", "transformers/gpt2"]
)
def test_half_of_the_weights_at_zero(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = export_onnx(case.zeroed(case.dense()), case.example, tmp_path / "net.onnx")
    assert found.max_error < 1e-4
    assert found.varied


@pytest.mark.zoo
def test_a_padded_batch_of_another_size(tmp_path: Path) -> None:
    """What a user does with the file: other sentences, other lengths of padding."""
    case = CASES["transformers/bert"]
    pruned = case.halved(case.dense()).model
    export_onnx(pruned, case.example, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([9, 1, 4, 7, 2])
    inputs = {
        "input_ids": torch.randint(3, 97, (5, 9), generator=generator),
        "attention_mask": (torch.arange(9) < lengths[:, None]).long(),
        "token_type_ids": torch.randint(0, 2, (5, 9), generator=generator),
    }
    assert [one.name for one in session.get_inputs()] == list(case.example) == list(inputs)
    assert {one.shape[0] for one in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
    (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        wanted = pruned(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - wanted[:1]).abs().max() > 0.01


@pytest.mark.zoo
def test_a_program_runs_where_transformers_is_not(tmp_path: Path) -> None:
    case = CASES["transformers/gpt2, cache"]
    pruned = case.halved(case.dense()).model
    done = export_program(pruned, case.example, tmp_path / "net.pt2")
    assert done.left_out == ("past_key_values (DynamicCache)",)
    torch.save(case.example, tmp_path / "inputs.pt")
    script = (
        "import sys, torch\n"
        "sys.modules['transformers'] = None\n"
        "net = torch.export.load('net.pt2').module()\n"
        "torch.save(net(**torch.load('inputs.pt')), 'outputs.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    found = torch.load(tmp_path / "outputs.pt")
    assert list(found) == ["logits"]
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], pruned(**case.example).logits)
