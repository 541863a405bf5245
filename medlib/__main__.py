"""``python -m medlib``."""

from medlib.cli.main import main

main()
