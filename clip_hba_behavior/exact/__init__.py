"""Numerics whose bits depend on the numbers alone.

Every function here returns the same bits on every processor, with any number of threads, version of torch and
split of a batch, as long as torch's float64 and integer operations are IEEE's: it is defined by mathematics and
single operations, not by a kernel. The docstrings have each one's definition, accuracy and proof. Inputs are
float32 or float64; results have the input's dtype and float32's accuracy. The sign and payload of a NaN are not
defined.

The package knows torch alone and can be used by any project. Three things must stay off: flush-to-zero
(`torch.set_flush_denormal`), `torch.compile` around these functions, and CUDA's emulation of float64 products.
"""

from clip_hba_behavior.exact.adamw import AdamW
from clip_hba_behavior.exact.attention import attention
from clip_hba_behavior.exact.autograd import branches
from clip_hba_behavior.exact.cross import cross
from clip_hba_behavior.exact.digests import digests
from clip_hba_behavior.exact.dropout import Draw, dropout, philox
from clip_hba_behavior.exact.engine import Choice, int8_is_exact, use_engine
from clip_hba_behavior.exact.normalization import layer_norm, normalize, softmax
from clip_hba_behavior.exact.pointwise import erf, exp, exp2, gelu, quick_gelu, sqrt
from clip_hba_behavior.exact.product import FrozenWeight, linear, matmul
from clip_hba_behavior.exact.sums import norm, sum
from clip_hba_behavior.exact.totals import Reduce, column_totals, mse_loss, total

DEFINITION = 1
"""Version of the definitions. A change of any result's bits is a new one."""

__all__ = [
    "DEFINITION",
    "AdamW",
    "Choice",
    "Draw",
    "FrozenWeight",
    "Reduce",
    "attention",
    "branches",
    "column_totals",
    "cross",
    "digests",
    "dropout",
    "erf",
    "exp",
    "exp2",
    "gelu",
    "int8_is_exact",
    "layer_norm",
    "linear",
    "matmul",
    "mse_loss",
    "norm",
    "normalize",
    "philox",
    "quick_gelu",
    "softmax",
    "sqrt",
    "sum",
    "total",
    "use_engine",
]
