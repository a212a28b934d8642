"""`python -m tempme_export` is `tempme-export`."""

from tempme_export.cli.export import main

main()
