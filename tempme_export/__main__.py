"""`python -m tempme_export` is `tempme-export`."""

from tempme_export.cli import main

main()
