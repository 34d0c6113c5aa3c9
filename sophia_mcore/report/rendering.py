"""Fills the templates of the report's pages: texts from models are data there, and no script but the package's runs."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import time
from pathlib import Path
from typing import Any

from sophia_mcore import __version__

_HERE = Path(__file__).parent / "page"


def render(template: str, scripts: list[str], **values: Any) -> str:
    """A page of the package. Only its own scripts may run: the page names their hashes, all else is refused."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sophia_mcore.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    script = "\n".join((_HERE / name).read_text() for name in scripts)
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")  # as the browser will read it
    return environment.get_template(template).render(
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        python=platform.python_version(),
        style=(_HERE / "page.css").read_text(),
        script=script,
        plotly=plotly,
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (script, plotly)),
        **values,
    )


_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)  # page.js has the same


def visible(text: str) -> str:
    """``text`` with the characters written out that are not seen or that turn the reading direction."""
    return _HIDDEN.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", text)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
