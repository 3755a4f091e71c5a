"""Networks for other runtimes: ONNX files and ``torch.export`` programs, checked first."""

from secateur.deployment.agreement import Exported
from secateur.deployment.onnx_files import export_onnx
from secateur.deployment.programs import export_program

__all__ = ["Exported", "export_onnx", "export_program"]
