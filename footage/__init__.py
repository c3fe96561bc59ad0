"""Films and cameras: people found, followed, and kept with camera and time."""
