"""`python -m advalign`."""

from advalign.cli import main

main()
