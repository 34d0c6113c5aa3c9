"""`sophia fp8-check`: measures FP8 in a worker, writes the page and returns a summary."""

from __future__ import annotations

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch import phases
from sophia_mcore.launch.environments import run_ranks
from sophia_mcore.launch.terminal import TerminalProgress
from sophia_mcore.provenance.check import Provenance
from sophia_mcore.provenance.prepare import prepare
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.json_files import require_json
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.train.fp8.gate import advice as _advice
from sophia_mcore.train.fp8.gate import verdict

__all__ = ["_advice", "run_fp8_check"]


def run_fp8_check(config: Config, round_index: int) -> str:
    """Check FP8 on the run's stored trajectories; returns the text to print when the check has passed.

    The phase `fp8-check` of a run does the same with the run's settings. This command takes any settings, and it checks
    again even if a check has passed. It writes RUN/fp8_check.toml (the settings), fp8_check.json and fp8_check.html.
    Raises UsageError when the configuration does not use FP8. Raises SophiaError when no trajectories are stored yet,
    or when the check fails (with a proposal).
    """
    from sophia_mcore.report.fp8_page import write_fp8_page

    if not config.fp8.used:
        raise UsageError("fp8.recipe is 'none': there is nothing to check; --set fp8.recipe=tensorwise asks for it")
    run = RunFolder(config.run.folder)
    round = Round(config, run, round_index)
    if not round.folder.kept_file.is_file():
        raise SophiaError(f"{round.folder.kept_file}: no such file; run 'sophia score' first")
    with folder_lock(run.lock_file), TerminalProgress() as progress:
        write_text(run.fp8_check_config_file, dump_toml(config))
        prepare(Provenance(config, run, phases.PHASES), phases.FP8_CHECK, 0, progress.say, again=True)
        run.fp8_check_file.unlink(missing_ok=True)  # an old result must not remain when this check fails
        arguments = [str(run.fp8_check_config_file), "--round", str(round_index)]
        run_ranks(round, progress, "fp8-check", "sophia_mcore.train.fp8.worker", arguments)
    found = require_json(run.fp8_check_file)
    page = write_fp8_page(run)
    if failure := verdict(found):
        raise SophiaError(f"{failure} (see {page})")
    gap = found["logprob_gap"]
    return (
        f"FP8 is admitted: log-prob gap mean {gap['mean']:.4f}, p99 {gap['p99']:.4f}, max {gap['max']:.4f} nats; "
        f"lowest gradient cosine {min(row['cosine'] for row in found['layers']):.4f}; "
        f"loss differs by {found['loss']['gap']:.2%} over {len(found['loss']['fp8'])} steps (see {page})"
    )
