"""Files that mean harm, each written by a function, by the reader that must refuse them.

All are small on the disk; what is large is a hole in a sparse file.
"""

from hostile.backbones import BACKBONES
from hostile.checkpoints import CHECKPOINTS
from hostile.files import Build
from hostile.images import IMAGES
from hostile.mat_files import RDMS
from hostile.records import CONFIGS, LEDGERS, RESULTS
from hostile.tables import PROMPTS, TABLES

# What a reader takes with good reason: an empty configuration is the synthetic data set's, any bytes are digested,
# and a ledger that is empty or not there says nothing.
ACCEPTED = {
    ("config", "empty"),
    ("image digest", "empty"),
    ("image digest", "zeros"),
    ("ledger", "empty"),
    ("ledger", "circle_of_links"),
    ("ledger", "name_too_long"),
}

CORPUS: dict[str, list[tuple[str, Build]]] = {
    "checkpoint": CHECKPOINTS,
    "backbone": BACKBONES,
    "table": TABLES,
    "prompts": PROMPTS,
    "rdm": RDMS,
    "image": IMAGES,
    "config": CONFIGS,
    "results": RESULTS,
    "ledger": LEDGERS,
}
