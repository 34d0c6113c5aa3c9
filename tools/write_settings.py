"""Write docs/settings.md, the page of all settings: `python tools/write_settings.py` (a test says when it is due)."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.reference import as_markdown

if __name__ == "__main__":
    Path(__file__).resolve().parents[1].joinpath("docs", "settings.md").write_text(as_markdown())
