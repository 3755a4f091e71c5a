"""Layer-wise relevance propagation through the recorded operations of any network.

See ``docs/relevance.md`` for the rule of every operation and where it comes from.
"""

from secateur.relevance.propagate import Captured, Place, propagate
from secateur.relevance.settings import RULE_NAMES, Settings
from secateur.relevance.stream import stream

__all__ = ["RULE_NAMES", "Captured", "Place", "Settings", "propagate", "stream"]
