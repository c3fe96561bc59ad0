"""The Space's entry: `tpas app`; the Space's variables say what it searches, see README.md."""

from tpas.commands.app import main

main([])
