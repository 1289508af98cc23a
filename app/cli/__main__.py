"""`python -m app.cli`, the same as the command `maskserve`."""

from app.cli.main import main

main()
