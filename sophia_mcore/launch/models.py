"""Models that the configuration names by their name on the hub, as folders of this machine."""

from __future__ import annotations

from collections.abc import Collection

from sophia_mcore.config.schema import Config
from sophia_mcore.launch.environments import asks_an_endpoint_only
from sophia_mcore.launch.phases import PHASES
from sophia_mcore.pretrained.hub import local_folder


def with_local_models(config: Config, names: Collection[str], *, download: bool) -> Config:
    """The configuration with local folders in place of the models' names on the hub, if the phases ``names`` need them.

    ``download``: fetch models that are not in the local cache. Raises like ``hub.local_folder``.
    """
    if asks_an_endpoint_only(config) or not any(phase.preflight for phase in PHASES if phase.name in names):
        return config
    folders = {
        name: local_folder(path, download=download)
        for name in ("policy", "reasoner")
        if (path := getattr(config.models, name)) is not None
    }
    return config.model_copy(update={"models": config.models.model_copy(update=folders)})
