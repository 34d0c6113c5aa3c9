"""Settings of an on-policy stage that have changed since it was begun: which may change when, and what follows.

| changed | while the stage is under way | when it has ended |
|---|---|---|
| where, how fast and how long (`launch.parts.RL_CHANGEABLE`) | goes on | nothing to do |
| what is chosen or validated at the end | `--new-settings`: goes on | another run.folder |
| weights of [[rewards]] | `--new-settings`: goes on, from a checkpoint of now | `--new-settings`: weighed anew |
| what training does with answers | `--new-settings`: goes on, from a checkpoint of now | another run.folder |
| file of one's own, not a loss | `--new-settings`: untrained batches are sampled anew | another run.folder |
| how answers are sampled and judged | the same, from a checkpoint of now; not with replay | another run.folder |
| the number of updates of a batch, the starting model | another run.folder | another run.folder |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.environments.terms import fingerprint
from sophia_mcore.errors import UsageError, listed
from sophia_mcore.launch.parts import whole_rl
from sophia_mcore.launch.readers import stage_has_ended
from sophia_mcore.provenance.prepare import set_aside
from sophia_mcore.provenance.settings import CHANGE_NO_RESULT, TABLES, as_stored, covers, flat
from sophia_mcore.rl.batches import batch_folders
from sophia_mcore.rl.versions import newest_version
from sophia_mcore.store.content import Contents
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import Round, RunFolder, checkpoint_steps
from sophia_mcore.store.user_files import UserFunction, user_functions

Say = Callable[[str], None]

# Settings that a stage of [[stages]] depends on and a stage of its own does not: limits of grading, and a model that
# is not asked.
_CHANGEABLE = ("models.reasoner", "score.timeout_seconds", "score.memory_limit_mib")
_VALIDATING = ("rl.validation", "evaluate.protocols", "evaluate.questions_per_unit")
_CHOOSING = ("rl.keep", "rl.keep_after_batches", "rl.validate_every_batches")
_TRAINING = (
    "rl.objective", "rl.train", "rl.old", "rl.fill", "rl.ssr", "rl.weigh", "rl.relabel", "rl.overlong",
    "rl.overlong_cache", "rl.rethink.weight", "rl.rethink.learn", "train", "fp8",
)  # fmt: skip
_UPDATES = ("rl.questions_per_batch", "rl.group", "rl.samples_per_update")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """``keys``: settings whose values differ; ``files``: functions of the user's own whose files do. ``before``: the
    settings that the stage was begun with.
    """

    before: Config
    keys: tuple[str, ...]
    files: tuple[UserFunction, ...]

    @property
    def named(self) -> str:
        """For a message."""
        return listed([*self.keys, *(f"the content of {one.file}" for one in self.files)])

    def weights_alone(self, config: Config) -> bool:
        """Whether only weights of the reward's terms differ, so that every stored value still holds."""
        return self.keys == ("rewards",) and not self.files and _same_terms(self.before, config)

    def sampling(self, config: Config) -> list[str]:
        """The keys that change how answers are sampled or judged."""
        free = (*_TRAINING, *_CHOOSING, *_VALIDATING, *(("rewards",) if _same_terms(self.before, config) else ()))
        return [key for key in self.keys if not covers(free, _setting(key))]

    @property
    def needs_checkpoint(self) -> bool:
        """Whether stored answers, trained again, would give other weights than those that later ones come from."""
        late = (*_CHOOSING, *_VALIDATING)
        keys = any(not covers(late, _setting(key)) for key in self.keys)
        return keys or any(one.key.startswith("rl.objective") for one in self.files)


def stage_changes(config: Config, run: RunFolder) -> Changes | None:
    """What has changed since the stage was begun; None where nothing has, or the stage has not begun."""
    if newest_version(run.rl.versions) is None and not run.rl.select.is_dir():
        return None
    before = load_config(run.config_file) if run.config_file.is_file() else None
    if before is None or before.rl is None:  # config.toml was written by a round that was run since
        return None
    old, new = (_compared(one, run) for one in (before, config))
    keys = tuple(sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)))
    files = tuple(_changed_files(config, run))
    return Changes(before=before, keys=keys, files=files) if keys or files else None


def only_weights_changed(config: Config, run: RunFolder) -> Config | None:
    """What a stage that has ended was trained with, where nothing but weights of [[rewards]] has changed since.

    None where something else has changed, or nothing, or the stage has not ended.
    """
    found = stage_changes(config, run)
    return found.before if found and stage_has_ended(config, run) and found.weights_alone(config) else None


def refuse_changed_settings(config: Config, run: RunFolder, *, new_settings: bool = False) -> Changes | None:
    """Raise UsageError if the stage has begun with other settings and cannot go on with these; returns the changes.

    ``new_settings``: the user accepts changes; they are refused all the same where the stage has ended, and where what
    is stored would not mean any more what it has meant.
    """
    found = stage_changes(config, run)
    if found is None:
        return None
    stage = f"the on-policy stage of {run.path}"
    if stage_has_ended(config, run):
        raise UsageError(_of_ended(found, config, run, stage))
    if (why := _fixed(found, config, run)) is not None:
        raise UsageError(f"{stage} cannot go on with {why}: choose another run.folder")
    if not new_settings:
        raise UsageError(
            f"{stage} was started with other settings ({found.named}): choose "
            "another run.folder, or add --new-settings to go on with the new ones"
        )
    saved, newest = max(checkpoint_steps(run.rl.checkpoints), default=0), newest_version(run.rl.versions)
    if found.needs_checkpoint and newest is not None and newest.step > saved:
        way = "go on with the old settings and stop it with Ctrl-C, which saves one, or choose another run.folder"
        if not saved:  # no checkpoint is written before the first update that is not skipped
            way = f"where it has learned nothing yet (every update skipped), choose another run.folder; else {way}"
        raise UsageError(
            f"{stage} is at step {newest.step}, and its last checkpoint is of step {saved}: the new settings "
            f"({found.named}) would not train the same weights again that its answers come from; {way}"
        )
    sampling = found.sampling(config)
    if sampling and found.before.on_policy.fill == "ssr" and newest is not None and newest.version > 0:
        raise UsageError(
            f"{stage} replays answers (rl.fill = 'ssr') that were sampled and judged with other settings "
            f"({listed(sampling)}): choose another run.folder"
        )
    return found


def accept_changed_settings(config: Config, run: RunFolder, say: Say, *, new_settings: bool) -> None:
    """As ``refuse_changed_settings``; then moves aside what was sampled with other settings and not trained on yet.

    Call it with the run's lock held, before the new settings are written down.
    """
    found = refuse_changed_settings(config, run, new_settings=new_settings)
    if found is None:
        return
    why = f"settings of the on-policy stage have changed ({found.named})"
    gone: list[Path] = []
    if found.sampling(config) or any(not one.key.startswith("rl.objective") for one in found.files):
        gone = untrained_batches(found.before, run)
    if any(covers(_VALIDATING, _setting(key)) for key in found.keys) or found.sampling(config):
        gone.append(run.rl.path / "validation")
    target = set_aside(run, [path for path in gone if path.exists()], why)
    if target is not None:
        batches = sum(path.parent == run.rl.rollouts for path in gone)
        say(f"{why}: answers of {batches} batches that are not trained yet are sampled anew; they are in {target}")


def _of_ended(found: Changes, config: Config, run: RunFolder, stage: str) -> str:
    """Why a stage that has ended does nothing with other settings, and what can be done."""
    if found.weights_alone(config):
        pairs = zip(found.before.reward_terms, config.reward_terms, strict=True)
        weights = [f"rewards.{b.label} {a.weight:g} -> {b.weight:g}" for a, b in pairs if a.weight != b.weight]
        if json_or_empty(run.rl.weighed_file).get("weights") == {one.label: one.weight for one in config.reward_terms}:
            return (
                f"{stage} has ended with other weights ({listed(weights)}), and is weighed anew already: see "
                f"{run.rl.weighed} and {run.report_html}; to train with these weights choose another run.folder"
            )
        return (
            f"{stage} has ended with other weights ({listed(weights)}): 'sophia rl' with --new-settings weighs its "
            "answers anew, without sampling or training; to train with these weights choose another run.folder"
        )
    more = ", or a larger rl.batches to go on with the new ones" if _fixed(found, config, run) is None else ""
    return (
        f"{stage} has ended with other settings ({found.named}): choose another run.folder (with rl.start = "
        f"'{run.rl.model}' it begins where this one has ended){more}"
    )


def _fixed(found: Changes, config: Config, run: RunFolder) -> str | None:
    """What can never change in a stage, in words; None if nothing of it has."""
    before, now = found.before.on_policy, config.on_policy
    newest = newest_version(run.rl.versions)
    if newest is not None and newest.step and before.updates_per_batch != now.updates_per_batch:
        keys = listed([key for key in _UPDATES if key in found.keys])
        return (
            f"another number of updates of a batch ({before.updates_per_batch} -> {now.updates_per_batch}, by {keys}), "
            "by which its checkpoint knows where it is"
        )
    if "rl.start" in found.keys and newest is not None:
        old, new = (_compared(one, run)["rl.start"] for one in (found.before, config))
        contents = Contents()
        digests = [as_stored(one, contents)["content"] for one in (old, new)]
        if all(digests) and digests[0] != digests[1]:
            return f"another rl.start ({old} -> {new}), since its weights come from the first"
    return None


def untrained_batches(config: Config, run: RunFolder) -> list[Path]:
    """Folders of the batches of which nothing is trained yet."""
    per_batch, newest = config.on_policy.updates_per_batch, newest_version(run.rl.versions)
    saved = max(checkpoint_steps(run.rl.checkpoints), default=0)
    first = max(-(-saved // per_batch), newest.version if newest is not None else 0)
    return [path for path in batch_folders(run.rl.rollouts) if int(path.name.partition(".")[0]) >= first]


def _same_terms(before: Config, now: Config) -> bool:
    return fingerprint(before.reward_terms) == fingerprint(now.reward_terms)


def _setting(key: str) -> str:
    """The setting of a key of ``_compared``, which names a protocol in brackets."""
    return key.partition(" ")[0]


def _compared(config: Config, run: RunFolder) -> dict[str, Any]:
    """The settings that answers and weights of the stage depend on, by key. No file is read."""
    (part,) = whole_rl(Round(config, run, 0))
    keys, free = part.settings, (*CHANGE_NO_RESULT, *_CHANGEABLE)
    found = {key: value for key, value in flat(config).items() if covers(keys, key) and not covers(free, key)}
    found["rewards"] = config.reward_terms  # none given: the verdict
    return found | {key: value for key, value in part.values.items() if not key.startswith(("file ", TABLES))}


def _changed_files(config: Config, run: RunFolder) -> Iterator[UserFunction]:
    """The user's functions of the stage whose file is not the one that the run has copied."""
    for function in user_functions(config):
        ours = function.key.startswith(("rewards.", "rl.")) and function.copy_in(run).is_file()
        if ours and function.file.is_file() and function.file.read_bytes() != function.copy_in(run).read_bytes():
            yield function
