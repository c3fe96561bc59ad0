"""Flags in, a result out: one file a command of `tpas`, named after it."""
