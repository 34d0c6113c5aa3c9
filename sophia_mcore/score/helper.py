"""A helper process of the score phase or of `sophia grade` (see ``children.helpers``): its job arrives on stdin."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sophia_mcore.config.schema import Config, Score
from sophia_mcore.errors import SophiaError
from sophia_mcore.progress import NoProgress
from sophia_mcore.score.children import end_with_parent


def main() -> int:
    """Work on the job's units until none is left."""
    job = json.loads(sys.stdin.buffer.readline())
    end_with_parent()
    try:
        if job["kind"] == "round":
            from sophia_mcore.score.phase import grade_round
            from sophia_mcore.store.layout import Round, RunFolder

            config = Config.model_validate_json(job["config"])
            grade_round(Round(config, RunFolder(Path(job["folder"])), job["round"]), NoProgress(), workers=1)
        else:
            from sophia_mcore.score.grade_file import grade_lines

            score = Score.model_validate_json(job["config"])
            grade_lines(Path(job["in"]), Path(job["out"]), score, NoProgress())
    except SophiaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
