"""The report of a large run: how long it takes to write, how big it is, how soon a browser paints it.

python -m tests.bench.bench_report [--questions 10000] [--captions 2] [--answers 4]

Prints one JSON line. The run is synthetic (two captions, four trajectories of about 450 characters each, one picture of
its own per question, smooth noise). First paint, first page of examples and a whole search are measured in headless
Chromium from a file, without a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sophia_mcore.launch.phases import PHASES
from sophia_mcore.report.build import write_report
from tests.support.browser import chromium
from tests.support.report_world import make_finished_run

_PAINT = "return performance.getEntriesByType('paint')[0]?.startTime ?? null"


def picture(seed: int) -> bytes:
    """A 320 x 240 photograph-like picture: smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def opened(page: Path) -> dict[str, Any]:
    """Milliseconds of first paint and of the first examples, seconds of a search through everything."""
    with chromium() as browser:
        browser.set_page_load_timeout(300)
        browser.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument",
            {
                "source": "new MutationObserver((_, o) => { if (document.querySelector('article')) {"
                " window.firstExample = performance.now(); o.disconnect(); } })"
                ".observe(document, {childList: true, subtree: true})"
            },
        )
        browser.get(page.as_uri())
        loaded = browser.execute_script("return performance.timing.loadEventEnd - performance.timing.navigationStart")
        began = time.perf_counter()
        browser.find_element("id", "search").send_keys("no such words anywhere")
        while not browser.execute_script("return document.getElementById('count').textContent.startsWith('0 of')"):
            time.sleep(0.05)
        return {
            "first_paint_ms": browser.execute_script(_PAINT),
            "first_examples_ms": round(browser.execute_script("return window.firstExample")),
            "loaded_ms": loaded,
            "search_seconds": round(time.perf_counter() - began, 2),
        }


def main() -> None:
    """Run, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("questions", 10_000), ("captions", 2), ("answers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = [picture(i) for i in range(options.questions)]
        run, config = make_finished_run(
            Path(folder) / "run", options.questions, options.captions, options.answers, images
        )
        began = time.perf_counter()
        page = write_report(config, run, PHASES)
        written = time.perf_counter() - began
        size = page.stat().st_size / 2**20
        line = {"name": "report", "questions": options.questions, "page_mib": round(size, 1)}
        print(json.dumps(line | {"written_seconds": round(written, 1)} | opened(page)))


if __name__ == "__main__":
    main()
