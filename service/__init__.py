"""What others build on: galleries over HTTP for programs, their keys, and the log of who was shown what."""
