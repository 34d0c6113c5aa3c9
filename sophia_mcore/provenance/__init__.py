"""What the results of each phase were made from, and whether they still hold: no result of other settings is reported.

``Phase.parts`` (``sophia_mcore.phase``) says of each phase which results hold or fall together, which settings they
depend on and what they read. Before a part is worked on, ``Provenance.prepare`` writes that down; everything later is
held against it.
"""
