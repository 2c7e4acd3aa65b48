"""quantlib: neural-network quantization and compression from scratch, short, readable and tested.

The three verbs are `prepare(model, qconfig)`, `calibrate(prepared, batches)` and `convert(prepared, kind)`.
"""

from quantlib.quantization.qconfig import QConfig, Scheme
from quantlib.quantization.workflow import calibrate, convert, prepare
from quantlib.subject.checkpoints import load_checkpoint
from quantlib.subject.evaluation import compare, evaluate

__version__ = "0.1.0"

__all__ = ["QConfig", "Scheme", "calibrate", "compare", "convert", "evaluate", "load_checkpoint", "prepare"]
