"""The folder of claims: what its last owner removes."""

from __future__ import annotations

import os
from pathlib import Path

from sophia_mcore.records import Kept
from sophia_mcore.store import atomic
from sophia_mcore.store.units import Unit, UnitQueue, run_units


def test_the_last_owner_leaves_what_a_late_one_is_writing(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    claims.mkdir()
    late, left_behind = (claims / f"{atomic.TEMPORARY_PREFIX}{name}" for name in ("late", "left"))
    late.touch()
    left_behind.touch()
    os.utime(left_behind, (1.0, 1.0))
    run_units(UnitQueue(tmp_path, [Unit("u", ("1",))]), Kept, lambda unit, report: [])
    assert late.exists() and not left_behind.exists()
