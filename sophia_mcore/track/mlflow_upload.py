"""Upload a run folder to MLflow. Repeated uploads send only what MLflow does not have yet.

metrics.jsonl is the truth. The cursor (how many of its lines MLflow has) is a tag of the MLflow run itself and
travels in the same request as the metrics, so a killed upload, another machine or another server all work. A
server that is down costs one short connection attempt and one line on stderr.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import EXTRAS, SophiaError, missing_package
from sophia_mcore.phase import Phase
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import run_uid
from sophia_mcore.store.lock import folder_lock
from sophia_mcore.track.runs import TrackedRun, children_of, parent_of, redact
from sophia_mcore.track.stage import STAGE, origin_of, stage_of

METRICS_PER_REQUEST = 900  # MLflow takes 1,000 entities in a request; room for the cursor
PARAMS_PER_REQUEST = 90
TAGS_PER_REQUEST = 90
_PORTS = {"http": 80, "https": 443}
_UID, _ROUND, _PHASE = "sophia.run_uid", "sophia.round", "sophia.phase"
_LINES, _DIGEST = "sophia.uploaded_lines", "sophia.uploaded_digest"


def upload(run_folder: RunFolder, config: Config, phases: Sequence[Phase]) -> bool:
    """Send MLflow what it does not have yet. Returns whether it has everything now.

    Never raises for an unreachable or failing server: one warning line says that the upload can be repeated.
    """
    track = config.track
    uri = track.tracking_uri
    if ignored := ignored_address(uri):
        print(f"warning: {ignored}", file=sys.stderr)
    if not reachable(uri, track.timeout_seconds):
        _warn(uri, "not reachable")
        return False
    try:
        with folder_lock(run_folder.track_lock_file), _patience(track.timeout_seconds):
            _Uploader(run_folder, config, phases).upload()
    except SophiaError as error:
        _warn(uri, str(error))
        return False
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        _warn(uri, missing_package(missing) if missing in EXTRAS else str(error))
        return False
    except Exception as error:  # whatever a server or a database answers must not stop a run
        lines = str(error).splitlines()
        _warn(uri, f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])
        return False
    return True


def ignored_address(uri: str) -> str:
    """What to say of MLFLOW_TRACKING_URI where it names another server than the settings do; "" where it does not."""
    other = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not other or other.rstrip("/") == uri.rstrip("/"):
        return ""
    return f"MLFLOW_TRACKING_URI = {redact(other)} is not used: track.tracking_uri = {redact(uri)} counts"


def complaint(uri: str, timeout_seconds: float, experiment: str) -> str:
    """One line that says why the service at ``uri`` cannot take runs of ``experiment``; "" if it can."""
    try:
        from mlflow.tracking import MlflowClient

        with _patience(timeout_seconds):
            client = MlflowClient(uri)
            found = [*client.search_experiments(max_results=1)] or [client.get_experiment("0")]
            _living(client, experiment)
    except SophiaError as error:
        return redact(str(error))
    except Exception as error:  # whatever it answers instead
        lines = str(error).splitlines()
        return redact(f"answers, but not as MLflow ({type(error).__name__}: {lines[0] if lines else ''})"[:300])
    return "" if found[0].experiment_id else "answers, but not as MLflow (no experiments)"


class _Uploader:
    def __init__(self, run: RunFolder, config: Config, phases: Sequence[Phase]) -> None:
        from mlflow.tracking import MlflowClient  # here: importing it takes seconds

        for name in ("mlflow", "alembic"):  # a new sqlite store is announced in several lines
            logging.getLogger(name).setLevel(logging.WARNING)

        self._run, self._config, self._phases = run, config, phases
        self._client = MlflowClient(config.track.tracking_uri)
        self._uid = run_uid(run.path)
        self._experiment = self._experiment_id()

    def upload(self) -> None:
        name = self._config.run.name
        for index in self._run.rounds():
            parent = parent_of(self._run, self._config, index, self._phases)
            parent_id = self._sync(parent, str(index), None, f"{name} round {index}")
            for child in children_of(self._run, self._config, index, self._phases):
                self._sync(child, str(index), parent_id, f"{name} round {index} {child.phase}")
        self._upload_stage()

    def _upload_stage(self) -> None:
        """The on-policy stage, below the round (or stage) that it began from, where MLflow knows that one."""
        parent_id = None
        for tracked in stage_of(self._run, self._config):
            if tracked.phase != STAGE:
                self._sync(tracked, STAGE, parent_id, f"{self._config.run.name} {tracked.phase}")
                continue
            origin = origin_of(self._run, self._config, self._uid)
            before = self._find(origin.uid, origin.round, origin.phase) if origin else None
            above = before.info.run_id if before else None
            parent_id = self._sync(tracked, STAGE, above, f"{self._config.run.name} {STAGE}")
            if above is not None:  # also where that run has come to MLflow later than the stage
                self._client.set_tag(parent_id, "mlflow.parentRunId", above)

    def _experiment_id(self) -> str:
        name, uri = self._config.track.experiment, self._config.track.tracking_uri
        found = _living(self._client, name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=_artifact_location(uri))
            except Exception:  # somebody else made it just now
                found = _living(self._client, name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _sync(self, tracked: TrackedRun, round_: str, parent_id: str | None, name: str) -> str:
        """Bring one MLflow run up to date and return its id."""
        run = self._find(self._uid, round_, tracked.phase) or self._create(tracked.phase, round_, parent_id, name)
        run_id, tags = run.info.run_id, run.data.tags
        self._send_params(run_id, tracked, set(run.data.params))
        self._send_lines(run_id, tracked, int(tags.get(_LINES, 0)))
        if tags.get(_DIGEST) != tracked.digest():
            self._send_summary(run_id, tracked)
        if tracked.finished and run.info.status == "RUNNING":
            self._client.set_terminated(run_id)
        return run_id

    def _find(self, uid: str, round_: str, phase: str) -> Any:
        tags = {_UID: uid, _ROUND: round_, _PHASE: phase}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([self._experiment], query, max_results=1)
        return found[0] if found else None

    def _create(self, phase: str, round_: str, parent_id: str | None, name: str) -> Any:
        tags = {_UID: self._uid, _ROUND: round_, _PHASE: phase}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        return self._client.create_run(self._experiment, tags=tags, run_name=name)

    def _send_params(self, run_id: str, tracked: TrackedRun, known: set[str]) -> None:
        """Parameters never change in MLflow: the first value stays, the uploaded config.toml has the latest."""
        from mlflow.entities import Param

        new = [Param(name, value) for name, value in tracked.params.items() if name not in known]
        for start in range(0, len(new), PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=new[start : start + PARAMS_PER_REQUEST])

    def _send_lines(self, run_id: str, tracked: TrackedRun, sent: int) -> None:
        from mlflow.entities import Metric, RunTag

        batch: list[Metric] = []
        for count, line in enumerate(tracked.lines[sent:], start=sent + 1):
            batch += [Metric(name, value, milliseconds, step) for name, value, step, milliseconds in line]
            following = tracked.lines[count] if count < len(tracked.lines) else None
            if following is None or len(batch) + len(following) > METRICS_PER_REQUEST:
                self._client.log_batch(run_id, metrics=batch, tags=[RunTag(_LINES, str(count))])
                batch = []

    def _send_summary(self, run_id: str, tracked: TrackedRun) -> None:
        from mlflow.entities import Metric, RunTag
        from mlflow.utils.time import get_current_time_millis

        for name, text in tracked.texts.items():
            self._client.log_text(run_id, text, name)
        now = get_current_time_millis()
        metrics = [Metric(name, value, now, 0) for name, value in tracked.summary.items()]
        tags = [RunTag(name[:250], value[:5000]) for name, value in tracked.tags.items()]
        for start in range(0, len(tags), TAGS_PER_REQUEST):
            self._client.log_batch(run_id, tags=tags[start : start + TAGS_PER_REQUEST])
        self._client.log_batch(run_id, metrics[:METRICS_PER_REQUEST], tags=[RunTag(_DIGEST, tracked.digest())])


def _living(client: Any, name: str) -> Any:
    """The experiment of that name, None if there is none. Raises SophiaError when it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise SophiaError(
            f"the experiment {name!r} was deleted there: restore it (mlflow experiments restore -x "
            f"{found.experiment_id}), or set track.experiment to another name"
        )
    return found


def reachable(uri: str, timeout_seconds: float) -> bool:
    """Whether something listens at an HTTP address; other URIs count as reachable."""
    parts = urlsplit(uri)
    if parts.scheme not in _PORTS or not parts.hostname:
        return True
    try:
        with socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), timeout_seconds):
            return True
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Short HTTP timeouts (the default is minutes), no printed links. MLflow reads both from variables only."""
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(seconds))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _artifact_location(uri: str) -> str | None:
    """Beside a sqlite database; a server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns").as_uri()


def _warn(uri: str, reason: str) -> None:
    print(f"warning: MLflow at {redact(uri)}: {redact(reason)}; upload later with 'sophia track RUN'", file=sys.stderr)
