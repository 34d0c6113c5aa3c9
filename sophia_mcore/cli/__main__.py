"""`python -m sophia_mcore.cli`: the `sophia` command."""

from sophia_mcore.cli.commands import main

main()
