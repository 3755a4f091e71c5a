"""How much each group alone can give up, and how to divide a target by that."""

from secateur.sensitivity.config import SensitivityConfig
from secateur.sensitivity.run import sensitivity_run

__all__ = ["SensitivityConfig", "sensitivity_run"]
