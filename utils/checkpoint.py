"""Stand-in until the branch `run` is merged: the names of utils/checkpoint.py from where they are now."""

from utils.errors import InputError
from utils.run.checkpoint import (  # noqa: F401
    holds_run,
    load_checkpoint,
    load_run,
    open_checkpoint,
    results_folder,
    save_checkpoint,
    save_whole,
)
from utils.run.stored import (  # noqa: F401
    caveats,
    progress_of,
    require_class_counts,
    resolve_settings,
    stored_arguments,
)
from utils.run.weights import load_weights, network_of, network_weights, some  # noqa: F401


def require_classes(checkpoint, class_counts, class_names=None):
    require_class_counts(checkpoint, class_counts)
    stored = checkpoint.get("class_names") if isinstance(checkpoint, dict) else None
    if stored and class_names:
        for c, (theirs, ours) in enumerate(zip(stored, class_names, strict=True)):
            if theirs != ours:
                raise InputError(f"class {c} is {ours!r}, in the checkpoint {theirs!r}")
