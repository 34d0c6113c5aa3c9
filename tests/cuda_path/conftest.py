"""Without Transformer Engine's Python files only the test that says so is collected."""

from __future__ import annotations

import sys

if "tests.cuda_path.stand_in" not in sys.modules:
    collect_ignore = ["test_specs.py", "test_training.py", "test_sessions.py", "test_checkpoints.py", "test_fp8.py"]
