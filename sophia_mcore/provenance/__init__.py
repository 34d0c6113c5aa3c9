"""Records the settings and inputs of each result, and checks whether they are still the same.

So no result of other settings is reported. ``Phase.parts`` (``sophia_mcore.phase``) divides a phase's results into
parts. Each part says which settings it depends on and which results of other phases it reads. ``prepare.prepare``
records their values before the work on a part begins; ``check.Provenance`` compares the record with the present.
"""
