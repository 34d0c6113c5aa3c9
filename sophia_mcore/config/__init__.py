"""Typed configuration: `schema` says what exists, `load` reads TOML with overlays and explains mistakes."""

from sophia_mcore.config.load import dump_toml, load_config
from sophia_mcore.config.schema import Config

__all__ = ["Config", "dump_toml", "load_config"]
