"""The Space's entry: `tpas app`, told by the Space's variables what to search; see README.md."""

from tpas.commands.app import main

main([])
