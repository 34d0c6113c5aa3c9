"""Typed configuration: `schema` defines the settings, `load` reads TOML with overlays and explains errors."""

from sophia_mcore.config.load import dump_toml, load_config
from sophia_mcore.config.schema import Config

__all__ = ["Config", "dump_toml", "load_config"]
