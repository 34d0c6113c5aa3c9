"""Checks whether the results of a run are valid under its settings; if not, names the setting or phase that changed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia_mcore import __version__
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import listed
from sophia_mcore.phase import Part, Phase
from sophia_mcore.provenance.settings import TABLES, Values, as_stored, at_default, covers, differing, flat, relevant
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.content import Contents
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.user_files import user_functions

Key = tuple[str, int]  # name of a result, round
_LISTED = 4


@dataclass(frozen=True, kw_only=True)
class Record:
    """The settings and inputs that a part was made from.

    ``settings``: values of the settings that the part depends on. ``reads``: "name@round" of each input result ->
    [its digest, id of its own record]. ``behind``: "phase: key" -> settings of the inputs, which explain why a digest
    differs. ``adopted``: the record was written later, from config.toml, since the results came without one.
    """

    settings: Values
    reads: Mapping[str, Sequence[str | None]]
    behind: Values
    adopted: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def matches(self, other: Record) -> bool:
        """Whether both records have the same settings and the same digests of inputs."""
        mine, others = ({key: read[0] for key, read in record.reads.items()} for record in (self, other))
        return self.settings == other.settings and mine == others

    def as_json(self) -> dict[str, Any]:
        """The record as the content of its JSON file."""
        return {
            "settings": self.settings,
            "reads": dict(self.reads),
            "behind": self.behind,
            "adopted": self.adopted,
            "id": self.id,
            "sophia_mcore": __version__,
            "time": round(time.time(), 3),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of the check of one part of a phase of a round.

    ``there``: the part has results. ``changed``: settings that the user has changed, key -> "old -> new". ``reasons``:
    why the results are not valid, empty if they are. ``origins``: the phases where that began, each with its reason.
    ``unchecked``: their settings and inputs are unknown.
    """

    phase: str
    round: int
    part: str
    there: bool = False
    changed: Mapping[str, str]
    reasons: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    unchecked: bool = False

    @property
    def stale(self) -> bool:
        return bool(self.reasons)


class Provenance:
    """Compares the results of a run with a configuration.

    Reads each file once and keeps its digest: make a new object after results have changed. ``assumed``: the
    configuration to assume for results without a record.
    """

    def __init__(self, config: Config, run: RunFolder, phases: Sequence[Phase], assumed: Config | None = None) -> None:
        self.config, self.run = config, run
        self._assumed = None if assumed is None else Provenance(assumed, run, phases)
        self.contents = Contents()
        self._phases = [phase for phase in phases if not phase.again]
        self._settings = flat(config)
        self._at_default = at_default(config)
        self._functions = {function.key: function for function in user_functions(config)}
        self._parts: dict[Key, list[Part]] = {}
        self._verdicts: dict[tuple[str, int, str], Verdict] = {}

    def rounds(self) -> list[int]:
        """Sorted indices of the rounds that are configured or have a folder."""
        return sorted({*range(self.config.run.rounds), *self.run.rounds()})

    def parts(self, phase: Phase, index: int) -> list[Part]:
        """The parts of a phase of a round; an empty list if the run does not have this phase."""
        if phase.again or not phase.wanted(self.config):
            return []
        key = phase.name, index
        if key not in self._parts:
            round_ = Round(self.config, self.run, index)
            self._parts[key] = phase.parts(round_) if phase.parts else [self._single_part(phase, index)]
        return self._parts[key]

    def _single_part(self, phase: Phase, index: int) -> Part:
        """One part for the whole phase: it has all its outputs and reads all outputs of the phases that it needs."""
        reads = [
            (name, 0 if needed.once else index)
            for needed in self._phases
            if needed.name in phase.needs
            for part in self.parts(needed, 0 if needed.once else index)
            for name in part.results
        ]
        results = phase.outputs(self.run, index)
        return Part(name=phase.name, results=results, settings=phase.settings, reads=tuple(reads))

    def all_parts(self) -> Iterator[tuple[Phase, int, Part]]:
        """Yield (phase, round, part) for all parts of all rounds in flow order."""
        for index in self.rounds():
            for phase in self._phases:
                if not (phase.once and index > 0):
                    yield from ((phase, index, part) for part in self.parts(phase, index))

    def record_file(self, phase: Phase, index: int, part: Part) -> Path:
        """Path of the part's record."""
        return self.run.records(index, phase.name) / f"{part.name}.json"

    def record(self, phase: Phase, index: int, part: Part) -> Record | None:
        """The part's record; None if it is missing or damaged."""
        found = json_or_empty(self.record_file(phase, index, part))
        try:
            return Record(**{name: found[name] for name in ("settings", "reads", "behind", "adopted", "id")})
        except (KeyError, TypeError):
            return None

    def present(self, phase: Phase, index: int, part: Part, *, adopted: bool = False) -> Record:
        """The record that the part would get if it were made now."""
        return Record(
            settings=self.values(part), reads=self._read(phase, part), behind=self._behind(part), adopted=adopted
        )

    def values(self, part: Part) -> Values:
        """Present values of the settings that the part depends on."""
        found = relevant(self._settings, part.settings, self.contents)
        for name, value in part.values.items():
            found[name] = as_stored(value, self.contents)
        for key, function in self._functions.items():
            if covers(part.settings, key):
                file = function.file if function.file.is_file() else function.copy_in(self.run)
                found[f"{key}: {function.file}"] = as_stored(file, self.contents)
        return found

    def _read(self, phase: Phase, part: Part) -> dict[str, Sequence[str | None]]:
        """The part's inputs from other phases, as in ``Record.reads``. Results of its own phase are not inputs."""
        found: dict[str, Sequence[str | None]] = {}
        for name, index in part.reads:
            maker = self._maker(name, index)
            if maker is not None and maker[0].name != phase.name:
                record = self.record(*maker)
                digest = self.contents.result(maker[2].results[name])
                found[f"{name}@{index}"] = (digest, record.id if record is not None else None)
        return found

    def _maker(self, name: str, index: int) -> tuple[Phase, int, Part] | None:
        for phase in self._phases:
            for part in self.parts(phase, index) if not (phase.once and index > 0) else ():
                if name in part.results:
                    return phase, index, part
        return None

    def makers(self, part: Part) -> list[tuple[Phase, int, Part]]:
        """The parts whose results the part reads."""
        found = {}
        for name, index in part.reads:
            maker = self._maker(name, index)
            if maker is not None:
                found[maker[0].name, index, maker[2].name] = maker
        return list(found.values())

    def _behind(self, part: Part) -> Values:
        found: Values = {}
        for phase, index, maker in self.makers(part):
            record = self.record(phase, index, maker)
            if record is not None:
                found |= record.behind
                found |= {f"{phase.name}: {key}": value for key, value in record.settings.items()}
        return found

    def is_there(self, part: Part) -> bool:
        """Whether the part has any finished results."""
        return any(self.contents.result(path) is not None for path in part.results.values())

    def verdict(self, phase: Phase, index: int, part: Part) -> Verdict:
        """Check whether the results of a part are valid."""
        key = phase.name, index, part.name
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(phase, index, part)
        return self._verdicts[key]

    def _judge(self, phase: Phase, index: int, part: Part) -> Verdict:
        named: dict[str, Any] = {"phase": phase.name, "round": index, "part": part.name}
        if not self.is_there(part):
            return Verdict(**named, changed={})
        if not (part.settings or part.values or part.reads):
            return Verdict(**named, there=True, changed={})  # it depends on nothing that is compared
        record = self.record(phase, index, part)
        makers = self.makers(part)
        if record is None:
            newer = [maker[0].name for maker in makers if self._is_recorded(*maker)]
            reasons = [f"it was made before {name} was done again" for name in dict.fromkeys(newer)]
            changed = differing(self._assumed.values(part), self.values(part)) if self._assumed else {}
            reasons += [_listed(changed)] if changed else []
            return self._found(named, changed, reasons, makers, adopted=True)
        later = {name for name in part.values if name.startswith(TABLES)}
        changed = differing(record.settings, self.values(part), self._at_default | later)
        if part.replaced is not None:
            changed |= part.replaced()
        reasons = [_listed(changed)] if changed else []
        reasons += self._other_inputs(phase, part, record)
        return self._found(named, changed, reasons, makers, adopted=record.adopted)

    def _found(
        self,
        named: Mapping[str, Any],
        changed: Mapping[str, str],
        own: Sequence[str],
        makers: Sequence[tuple[Phase, int, Part]],
        *,
        adopted: bool,
    ) -> Verdict:
        """The verdict on results with reasons of their ``own`` not to be valid, and on what they were made from.

        Of the phases before it names those where it began, not each that followed.
        """
        found = [(maker[0].name == named["phase"], self.verdict(*maker)) for maker in makers]
        before = tuple(dict.fromkeys(line for _, one in found for line in one.origins))
        begun = (f"{named['phase']} of round {named['round']} is no longer valid ({own[0]})",) if own else before
        inside = [line for same, one in found if same for line in one.reasons]  # of another part of this phase
        outside = [line for same, one in found if not same for line in one.origins]
        reasons = tuple(dict.fromkeys((*own, *inside, *outside)))
        unchecked = adopted and not reasons
        return Verdict(**named, there=True, changed=changed, reasons=reasons, origins=begun, unchecked=unchecked)

    def _is_recorded(self, phase: Phase, index: int, part: Part) -> bool:
        record = self.record(phase, index, part)
        return record is not None and not record.adopted and self.is_there(part)

    def _other_inputs(self, phase: Phase, part: Part, record: Record) -> Iterator[str]:
        """Yield a line about the inputs that have changed since the record, with the settings that may be the cause."""
        other = []
        for key, (digest, maker) in self._read(phase, part).items():
            before, maker_before = record.reads.get(key, (None, None))
            started_again = digest is None and maker != maker_before  # and has no result yet
            if before and (started_again or digest not in (None, before)):
                other.append(key.replace("@", " of round "))
        if other:
            why = differing(record.behind, self._behind(part))
            yield f"made from other {' and '.join(other)}" + (f" ({_listed(why)})" if why else "")

    def check_phase(self, phase: Phase, index: int) -> list[Verdict]:
        """Check all parts of a phase of a round."""
        return [self.verdict(phase, index, part) for part in self.parts(phase, index)]

    def why_stale(self, phase: Phase, index: int) -> str:
        """Why results of the phase are not valid; "" if all existing results are valid."""
        return "; ".join(dict.fromkeys(reason for found in self.check_phase(phase, index) for reason in found.reasons))

    def changed(self) -> dict[str, dict[str, str]]:
        """Settings that the user has changed since results were made with them: phase -> key -> "old -> new"."""
        found: dict[str, dict[str, str]] = {}
        for phase, index, part in self.all_parts():
            changes = self.verdict(phase, index, part).changed
            if changes:
                found.setdefault(phase.name, {}).update(changes)
        return found

    def stale_lines(self) -> list[str]:
        """One line for each phase of each round whose results are not valid."""
        return [
            f"{phase.name} of round {index}: {why}"
            for phase, index in self._phases_there()
            if (why := self.why_stale(phase, index))
        ]

    def unchecked_phases(self) -> list[str]:
        """Names of the phases that have results of unknown settings and inputs."""
        found = (one for phase, index in self._phases_there() for one in self.check_phase(phase, index))
        return list(dict.fromkeys(one.phase for one in found if one.unchecked))

    def _phases_there(self) -> list[tuple[Phase, int]]:
        return list({(phase.name, index): (phase, index) for phase, index, _ in self.all_parts()}.values())

    def write(self, phase: Phase, index: int, part: Part, *, adopted: bool = False) -> None:
        """Write the part's record with the present settings and inputs. Raises SophiaError when writing fails."""
        file = self.record_file(phase, index, part)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, self.present(phase, index, part, adopted=adopted).as_json())
        self._verdicts.clear()

    def forget_results(self) -> None:
        """Drop everything that was read about results. Call this after results have been made or moved."""
        self.contents.forget()
        self._parts.clear()
        self._verdicts.clear()


def unchecked_line(run: RunFolder, names: Sequence[str]) -> str:
    """The message about phases (``names``) whose results have no record of their settings and inputs."""
    return (
        f"{', '.join(names)}: made by a version that did not record settings and inputs, so whether these results "
        f"belong to the settings in {run.config_file} is not known (`sophia run --from {names[0]}` makes them again)"
    )


def _listed(changes: Mapping[str, str]) -> str:
    return listed([f"{key} {change}" for key, change in changes.items()], _LISTED)
