"""The parts of an evaluation: rank at bounded memory, measure, compare, show."""
