"""Send a run to everything that `track.to` names."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.phase import Phase
from sophia_mcore.store.layout import RunFolder


def send(run: RunFolder, config: Config, phases: Sequence[Phase]) -> bool:
    """Bring MLflow and TensorBoard's files up to date. Returns whether each has everything now; never raises for one
    that cannot be reached or written: a warning says it."""
    whole = True
    if "tensorboard" in config.track.to:
        from sophia_mcore.track.tensorboard import write_events

        try:
            write_events(run, config, phases)
        except SophiaError as error:
            print(f"warning: {error}", file=sys.stderr)
            whole = False
    if "mlflow" in config.track.to:
        from sophia_mcore.track.mlflow_upload import upload

        whole = upload(run, config, phases) and whole
    return whole
