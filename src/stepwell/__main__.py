"""``python -m stepwell`` is the ``stepwell`` command."""

from .cli import main

main(prog_name="stepwell")
