"""Whether the results of a run hold under its settings, and if not, which setting or which phase is to blame."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sophia_mcore import __version__
from sophia_mcore.config.schema import Config
from sophia_mcore.phase import Part, Phase
from sophia_mcore.provenance.settings import Values, as_stored, covers, differing, flat, relevant
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.content import Contents
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.user_files import user_functions

Key = tuple[str, int]  # name of a result, round
_LISTED = 4


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a part was made from. ``reads``: by "name@round" [digest, id of the record of what was read].

    ``behind``: the settings of all that was read, by "phase: key", which say why a digest differs. ``adopted``: written
    later, for results of a version that kept no records; the settings are those of config.toml then.
    """

    settings: Values
    reads: Mapping[str, Sequence[str | None]]
    behind: Values
    adopted: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def says_the_same(self, other: Record) -> bool:
        """Whether both are about the same settings and the same results."""
        mine, others = ({key: read[0] for key, read in record.reads.items()} for record in (self, other))
        return self.settings == other.settings and mine == others

    def as_json(self) -> dict[str, Any]:
        """For a file."""
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
    """What is to be said of one part of a phase of a round.

    ``there``: it has results. ``changed``: the user's own changes, key -> "old -> new"; ``reasons``: why the results
    do not hold, () when they do. ``unchecked``: what they were made from is not known.
    """

    phase: str
    round: int
    part: str
    there: bool = False
    changed: Mapping[str, str]
    reasons: tuple[str, ...] = ()
    unchecked: bool = False

    @property
    def stale(self) -> bool:
        return bool(self.reasons)


class Provenance:
    """The results of a run, held against a configuration. Looks at each file once: make a new one after any work.

    ``assumed``: the configuration that results without a record were made with.
    """

    def __init__(self, config: Config, run: RunFolder, phases: Sequence[Phase], assumed: Config | None = None) -> None:
        self.config, self.run = config, run
        self._assumed = None if assumed is None else Provenance(assumed, run, phases)
        self.contents = Contents()
        self._phases = [phase for phase in phases if not phase.again]
        self._settings = flat(config)
        self._functions = {function.key: function for function in user_functions(config)}
        self._parts: dict[Key, list[Part]] = {}
        self._verdicts: dict[tuple[str, int, str], Verdict] = {}

    def rounds(self) -> list[int]:
        """Rounds that are configured, or have a folder."""
        found = (re.fullmatch(r"round-(\d+)", path.name) for path in self.run.path.glob("round-*"))
        return sorted({*range(self.config.run.rounds), *(int(match[1]) for match in found if match)})

    def parts(self, phase: Phase, index: int) -> list[Part]:
        """The parts of a phase of a round; [] of one that is no part of the run."""
        if phase.again or not phase.wanted(self.config):
            return []
        key = phase.name, index
        if key not in self._parts:
            round_ = Round(self.config, self.run, index)
            self._parts[key] = phase.parts(round_) if phase.parts else [self._whole(phase, index)]
        return self._parts[key]

    def _whole(self, phase: Phase, index: int) -> Part:
        """All that a phase leaves, reading all that the phases it needs leave."""
        reads = [
            (name, 0 if needed.once else index)
            for needed in self._phases
            if needed.name in phase.needs
            for part in self.parts(needed, 0 if needed.once else index)
            for name in part.results
        ]
        results = phase.outputs(self.run, index)
        return Part(name=phase.name, results=results, settings=phase.settings, reads=tuple(reads))

    def everything(self) -> Iterator[tuple[Phase, int, Part]]:
        """All parts of all rounds in flow order."""
        for index in self.rounds():
            for phase in self._phases:
                if not (phase.once and index > 0):
                    yield from ((phase, index, part) for part in self.parts(phase, index))

    def record_file(self, phase: Phase, index: int, part: Part) -> Path:
        """Where it is written what a part was made from."""
        return self.run.records(index, phase.name) / f"{part.name}.json"

    def record(self, phase: Phase, index: int, part: Part) -> Record | None:
        """What the part was made from; None when nobody has written that down."""
        found = json_or_empty(self.record_file(phase, index, part))
        try:
            return Record(**{name: found[name] for name in ("settings", "reads", "behind", "adopted", "id")})
        except (KeyError, TypeError):
            return None

    def present(self, phase: Phase, index: int, part: Part, *, adopted: bool = False) -> Record:
        """What the part would be made from now."""
        return Record(
            settings=self.values(part), reads=self._read(phase, part), behind=self._behind(part), adopted=adopted
        )

    def values(self, part: Part) -> Values:
        """The settings that the part depends on, as they are now."""
        found = relevant(self._settings, part.settings, self.contents)
        for name, value in part.values.items():
            found[name] = as_stored(value, self.contents)
        for key, function in self._functions.items():
            if covers(part.settings, key):
                file = function.file if function.file.is_file() else function.copy_in(self.run)
                found[f"{key}: {function.file}"] = as_stored(file, self.contents)
        return found

    def _read(self, phase: Phase, part: Part) -> dict[str, Sequence[str | None]]:
        """What the part reads of other phases, as in a record. What its own phase has made belongs to the same work."""
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
        """Whether any of its work is finished."""
        return any(self.contents.result(path) is not None for path in part.results.values())

    def verdict(self, phase: Phase, index: int, part: Part) -> Verdict:
        """Whether the results of a part hold."""
        key = phase.name, index, part.name
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(phase, index, part)
        return self._verdicts[key]

    def _judge(self, phase: Phase, index: int, part: Part) -> Verdict:
        named: dict[str, Any] = {"phase": phase.name, "round": index, "part": part.name}
        if not self.is_there(part):
            return Verdict(**named, changed={})
        record = self.record(phase, index, part)
        makers = self.makers(part)
        if record is None:
            newer = [maker[0].name for maker in makers if self._is_recorded(*maker)]
            reasons = [f"it was made before {name} was done anew" for name in dict.fromkeys(newer)]
            changed = differing(self._assumed.values(part), self.values(part)) if self._assumed else {}
            reasons += [*([_listed(changed)] if changed else []), *self._upstream(makers)]
            return Verdict(**named, there=True, changed=changed, reasons=tuple(reasons), unchecked=not reasons)
        changed = differing(record.settings, self.values(part))
        reasons = [_listed(changed)] if changed else []
        reasons += self._other_inputs(phase, part, record)
        reasons += self._upstream(makers)
        return Verdict(
            **named, there=True, changed=changed, reasons=tuple(reasons), unchecked=record.adopted and not reasons
        )

    def _upstream(self, makers: Sequence[tuple[Phase, int, Part]]) -> list[str]:
        """What was read does not hold itself; said once for each phase, with the first reason there is."""
        found = [verdict for maker in makers if (verdict := self.verdict(*maker)).stale]
        return list(
            dict.fromkeys(f"{one.phase} of round {one.round} does not hold ({one.reasons[0]})" for one in found)
        )

    def _is_recorded(self, phase: Phase, index: int, part: Part) -> bool:
        record = self.record(phase, index, part)
        return record is not None and not record.adopted and self.is_there(part)

    def _other_inputs(self, phase: Phase, part: Part, record: Record) -> Iterator[str]:
        """What was read and is not the same any more, with the settings that may have done it."""
        other = []
        for key, (digest, maker) in self._read(phase, part).items():
            before, maker_before = record.reads.get(key, (None, None))
            begun_anew = digest is None and maker != maker_before  # and there is nothing of it yet
            if before and (begun_anew or digest not in (None, before)):
                other.append(key.replace("@", " of round "))
        if other:
            why = differing(record.behind, self._behind(part))
            yield f"made from other {' and '.join(other)}" + (f" ({_listed(why)})" if why else "")

    def of_phase(self, phase: Phase, index: int) -> list[Verdict]:
        """The verdicts on all parts of a phase of a round."""
        return [self.verdict(phase, index, part) for part in self.parts(phase, index)]

    def why_stale(self, phase: Phase, index: int) -> str:
        """Why results of the phase do not hold; "" when all that are there do."""
        return "; ".join(dict.fromkeys(reason for found in self.of_phase(phase, index) for reason in found.reasons))

    def changed(self) -> dict[str, dict[str, str]]:
        """The user's own changes since results were made that depend on them: by phase, key -> "old -> new"."""
        found: dict[str, dict[str, str]] = {}
        for phase, index, part in self.everything():
            changes = self.verdict(phase, index, part).changed
            if changes:
                found.setdefault(phase.name, {}).update(changes)
        return found

    def stale_lines(self) -> list[str]:
        """One line for each phase of each round whose results do not hold."""
        return [
            f"{phase.name} of round {index}: {why}"
            for phase, index in self._phases_there()
            if (why := self.why_stale(phase, index))
        ]

    def unchecked_phases(self) -> list[str]:
        """Phases with results of which nobody has written down what they were made from."""
        found = (f.phase for phase, index in self._phases_there() for f in self.of_phase(phase, index) if f.unchecked)
        return list(dict.fromkeys(found))

    def _phases_there(self) -> list[tuple[Phase, int]]:
        return list({(phase.name, index): (phase, index) for phase, index, _ in self.everything()}.values())

    def write(self, phase: Phase, index: int, part: Part, *, adopted: bool = False) -> None:
        """Write down what the part is made from now."""
        file = self.record_file(phase, index, part)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, self.present(phase, index, part, adopted=adopted).as_json())
        self._verdicts.clear()

    def look_again(self) -> None:
        """Results have been made or moved."""
        self.contents.forget()
        self._parts.clear()
        self._verdicts.clear()


def unchecked_line(run: RunFolder, names: Sequence[str]) -> str:
    """What is to be said of results without a record of what they were made from."""
    return (
        f"{', '.join(names)}: made by a version that did not record settings and inputs, so whether these results "
        f"belong to the settings in {run.config_file} is not known (`sophia run --from {names[0]}` makes them anew)"
    )


def _listed(changes: Mapping[str, str]) -> str:
    items = [f"{key} {change}" for key, change in changes.items()]
    return ", ".join(items[:_LISTED]) + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
