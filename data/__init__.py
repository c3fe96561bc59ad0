"""What comes in: PAB, challenges, score files' neighbours, image files and drawn people."""
