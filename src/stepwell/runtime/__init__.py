"""What does: clock, threads, loops and processes."""
