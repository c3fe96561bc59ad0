"""What comes in: PAB, challenges, score files' neighbours, picture files and drawn people."""
